"""评测内置模型：用训练从未见过的模板、数对和问题种类提问，打印正确率表。

默认用 `transformers` 的 `generate`，贪心，float32 计算；权重已经过 bfloat16 舍入。

    python tools/eval_tiny_llama.py --count 100
    python tools/eval_tiny_llama.py --count 20 --history 1700 --device cuda
    python tools/eval_tiny_llama.py --count 100 --quantization int8

第二条命令在每个问题之前先放一段约 1700 个词元的对话，看上下文的末尾是否也答得对；第三条由本引擎回答，
看量化之后还对几成。

Judges the embedded model by question templates, number pairs and kinds of questions that training never saw, and
prints the table of accuracy.

It uses `transformers`' `generate`, greedy, computing in float32 on weights that went through bfloat16 rounding.

The second command puts a conversation of about 1700 tokens before each question, to see whether the end of the context
is answered right as well; with the third this engine answers, to see how much is still right once it is quantized.
"""

import argparse
import difflib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.sampling_params import SamplingParams
from serving.llm import LLM
from tools.corpus_tables import ANSWERS
from tools.make_corpus import (
    ASK,
    LANGS,
    ROOT,
    Item,
    Message,
    held_out_items,
    near_unknown_items,
    terms,
    training_items,
)

# 七个固定的提问，不经任何修饰。
# The seven fixed prompts, asked as they stand.
PRIMES_TO_100 = "2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97."
Generate = Callable[[list[str]], list[str]]


def seven_prompts() -> list[Item]:
    """七个必须答对的提问。

    The seven prompts that must be answered right.
    """
    define = {term.en: term.definition for term in terms()}
    return [
        Item("seven", "en", "introduce yourself", ANSWERS["who"]["en"]),
        Item("seven", "zh", "中国的首都是哪里？", "中国的首都是北京。"),
        Item("seven", "en", "list all prime numbers within 100", f"The primes up to 100: {PRIMES_TO_100}"),
        Item("seven", "en", "can you help to sum up from 1 to 10?", "The sum from 1 to 10 is 55."),
        Item("seven", "en", "what is a KV cache?", define["KV cache"]["en"]),
        Item("seven", "zh", "什么是前缀缓存？", define["prefix caching"]["zh"]),
        Item("seven", "en", "What is 23 + 45?", "23 + 45 = 68."),
    ]


def is_right(item: Item, answer: str) -> bool:
    """判断回答是否正确：一般要求逐字相同。

    “不知道”只看开头；术语的定义允许一成以内的出入，那时解释的仍是这个术语。

    Judges an answer: in general it must be the expected one, letter by letter.

    Declining is judged by its beginning; a definition may differ by a tenth, which still explains the right term.
    """
    if item.category in ("unknown", "near_unknown"):
        return answer.startswith(("I don't know", "这个我不知道"))
    if item.category in ("glossary", "compare"):
        return difflib.SequenceMatcher(None, answer, item.answer, autojunk=False).ratio() >= 0.9
    return answer == item.answer


def history(tokenizer: Any, tokens: int, seed: int) -> list[Message]:
    """一段不超过 `tokens` 个词元的对话，问题都是训练里的样子。

    A conversation of at most `tokens` tokens whose questions look like those of training.
    """
    messages: list[Message] = []
    for item in training_items(seed, tokens):
        turn = [{"role": "user", "content": item.question}, {"role": "assistant", "content": item.answer}]
        if len(tokenizer.apply_chat_template(messages + turn, return_dict=False)) > tokens:
            break
        messages += turn
    return messages


def transformers_generator(
    model: Path, device: str, batch_size: int, max_new_tokens: int, history_tokens: int = 0
) -> Generate:
    """用 `transformers` 批量贪心生成的函数；每个问题之前有一段不超过 `history_tokens` 个词元的对话。

    A function that generates greedily in batches with `transformers`; before each question stands a conversation of at
    most `history_tokens` tokens.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model, padding_side="left")
    network: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    network.to(device).eval()

    def generate(prompts: list[str]) -> list[str]:
        answers: list[str] = []
        for start in range(0, len(prompts), batch_size):
            chats = [[*history(tokenizer, history_tokens, start + i), {"role": "user", "content": prompt}]
                     for i, prompt in enumerate(prompts[start : start + batch_size])]
            inputs = tokenizer.apply_chat_template(
                chats, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True
            ).to(device)
            with torch.inference_mode():
                out = network.generate(**inputs, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id)
            answers += tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            print(f"\r{len(answers)}/{len(prompts)}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        return answers

    return generate


def engine_generator(model: Path, device: str, max_new_tokens: int, **options: Any) -> Generate:
    """用本引擎贪心生成的函数：量化之后答得怎么样，就用它问。

    A function that generates greedily with this engine: with it one asks how a quantized model answers.

    Args:
        options: `LLM` 的选项，例如 `quantization`；options of `LLM`, such as `quantization`
    """
    llm = LLM(model, device=device, **options)

    def generate(prompts: list[str]) -> list[str]:
        params = SamplingParams(temperature=0.0, max_tokens=max_new_tokens)
        outputs = llm.chat([[{"role": "user", "content": prompt}] for prompt in prompts], params)
        return [output.outputs[0].text for output in outputs]

    return generate


def questions(count: int, seed: int) -> list[Item]:
    """全部评测题：每类每种语言 `count` 道。

    All questions of the evaluation: `count` for each category and language.
    """
    items = [item for c in ASK for lang in LANGS for item in held_out_items(c, lang, count, seed)]
    near = [item for lang in LANGS for item in near_unknown_items(lang, count, seed)]
    return items + [Item("near_unknown", item.lang, item.question, item.answer) for item in near]


def evaluate(generate: Generate, items: list[Item]) -> dict[str, dict[str, dict[str, Any]]]:
    """提问并判分，返回 {类别: {语言: {总数, 答对数, 错误}}}。

    Asks and judges; returns {category: {language: {total, right, wrong answers}}}.
    """
    # 回答差不多长的排在一批，短回答就不必陪跑。
    # Answers of similar length share a batch, so that short ones do not wait for long ones.
    ordered = sorted(items, key=lambda item: len(item.answer.encode()))
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for item in items:
        fresh: dict[str, Any] = {"total": 0, "right": 0, "wrong": []}
        results.setdefault(item.category, {}).setdefault(item.lang, fresh)
    for item, answer in zip(ordered, generate([item.question for item in ordered]), strict=True):
        result = results[item.category][item.lang]
        result["total"] += 1
        if is_right(item, answer):
            result["right"] += 1
        else:
            result["wrong"].append({"question": item.question, "expected": item.answer, "answer": answer})
    return results


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Markdown 正确率表。

    The table of accuracy in Markdown.
    """
    rows = ["| category | en | zh |", "|---|---|---|"]
    for category, by_lang in results.items():
        cells = [f"{100 * r['right'] / r['total']:.1f} % ({r['right']}/{r['total']})" for r in by_lang.values()]
        rows.append(f"| {category} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main(argv: list[str] | None = None) -> int:
    """命令行入口；七个提问有一个答错时返回 1。

    The command line; returns 1 if one of the seven prompts is answered wrong.
    """
    parser = argparse.ArgumentParser(description="评测内置模型 / judge the embedded model")
    parser.add_argument("--model", type=Path, default=ROOT / "assets" / "tiny-llama", help="模型目录 / model folder")
    parser.add_argument("--count", type=int, default=100, help="每类每语言题数 / questions a cell of the table")
    parser.add_argument("--device", default="cpu", help="设备 / device")
    parser.add_argument("--batch-size", type=int, default=100, help="每批多少题 / questions a batch")
    parser.add_argument("--max-new-tokens", type=int, default=320, help="回答最长多少词元 / longest answer in tokens")
    parser.add_argument("--history", type=int, default=0, help="提问之前的对话长度 / tokens of conversation before it")
    parser.add_argument("--seed", type=int, default=0, help="随机种子 / random seed")
    parser.add_argument("--failures", type=int, default=0, help="每类打印几个错误 / wrong answers to print")
    for name in ("quantization", "kv-cache-dtype"):
        parser.add_argument(f"--{name}", help="由本引擎回答，带上这个选项 / this engine answers, with it")
    parser.add_argument("--json", type=Path, help="把全部结果写入这个文件 / write all results to this file")
    args = parser.parse_args(argv)

    options = {name: value for name in ("quantization", "kv_cache_dtype") if (value := getattr(args, name)) is not None}
    if options and (args.history or args.batch_size != parser.get_default("batch_size")):
        parser.error("--history and --batch-size are for transformers: leave out --quantization and --kv-cache-dtype")
    if options:
        generate = engine_generator(args.model, args.device, args.max_new_tokens, **options)
    else:
        generate = transformers_generator(args.model, args.device, args.batch_size, args.max_new_tokens, args.history)
    seven = seven_prompts()
    answers = generate([item.question for item in seven])
    right = [is_right(item, answer) for item, answer in zip(seven, answers, strict=True)]
    results = evaluate(generate, questions(args.count, args.seed))
    for category, by_lang in results.items():
        for lang, result in by_lang.items():
            for wrong in result["wrong"][: args.failures]:
                print(f"[{category}/{lang}] {wrong['question']!r} -> {wrong['answer']!r}")
    print(table(results))
    print()
    for item, answer, good in zip(seven, answers, right, strict=True):
        print(f"- {'ok' if good else 'WRONG'}: {item.question} -> {answer}")
    if args.json:
        triples = zip(seven, answers, right, strict=True)
        prompts = [{"question": item.question, "answer": answer, "right": good} for item, answer, good in triples]
        report = {"results": results, "seven": prompts}
        args.json.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return 0 if all(right) else 1


if __name__ == "__main__":
    raise SystemExit(main())
