"""评测量化：同样的文本，各种 `kv_cache_dtype` 和 `quantization` 下的困惑度。

文本默认由模型自己写：温度 1，不受限制地采样；`--text FILE` 换成一个文件，每行一篇。每篇一次预填充，K、V 都经过缓存，
量化的误差全在里面。

    python tools/eval_perplexity.py --model tiny-poet
    python tools/eval_perplexity.py --model tiny-poet --quantization int8 int4
    python tools/eval_perplexity.py --model DIR --text FILE --device cuda --kv-cache-dtype int8 fp8

Judges quantization: the perplexity of the same text with each `kv_cache_dtype` and each `quantization`.

By default the model writes the text itself, sampled freely at temperature 1; `--text FILE` takes a file, a document a
line. Each document is one prefill that reads K and V from the cache, with all the error of quantization.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.batch import build_batch
from engine.block_manager import num_blocks_needed
from engine.sampling_params import SamplingParams
from engine.scheduler import ScheduledSequence
from engine.sequence import Sequence
from serving.llm import LLM


def nats(llm: LLM, token_ids: list[int]) -> float:
    """一篇文本的负对数似然：除了第一个，每个词元在前文之后的概率。

    The negative log-likelihood of a document: the probability of each token but the first behind those before it.
    """
    engine, size = llm.engine, llm.engine.pool.block_size
    blocks = list(range(num_blocks_needed(len(token_ids), size)))
    seq = Sequence("", token_ids, len(token_ids), SamplingParams(), block_table=blocks)
    device = engine.model_runner.device
    batch = build_batch([ScheduledSequence(seq, len(token_ids), 1)], size, device)
    # 每个位置都要分数，不只是最后一个。
    # Scores are wanted at each position and not just the last.
    batch.logits_indices = torch.arange(len(token_ids) - 1, device=device)
    scores = engine.model_runner.execute(batch).float().log_softmax(-1)  # [S - 1, vocab]
    return -float(scores.gather(1, batch.input_ids[1:, None]).double().sum())


def perplexity(llm: LLM, texts: list[list[int]]) -> float:
    """平均每个词元的困惑度：exp(总的负对数似然 / 词元数)。

    Perplexity a token: exp(all negative log-likelihood / number of tokens).
    """
    return math.exp(sum(nats(llm, text) for text in texts) / sum(len(text) - 1 for text in texts))


def own_texts(llm: LLM, count: int, length: int, seed: int = 0) -> list[list[int]]:
    """模型自己写的 `count` 篇文本，每篇 `length` 个词元，第一个是开头的词元。

    `count` documents that the model writes itself, `length` tokens each, the first being the one that begins a text.
    """
    first = llm.engine.tokenizer.encode("")[:1] or [0]
    params = [
        SamplingParams(temperature=1.0, max_tokens=length - 1, seed=seed + i, ignore_eos=True) for i in range(count)
    ]
    outputs = llm.generate([first] * count, params, progress=False)
    return [first + list(output.outputs[0].token_ids) for output in outputs]


def main(argv: list[str] | None = None) -> int:
    """命令行入口。

    The command line.
    """
    parser = argparse.ArgumentParser(description="评测量化 / judge quantization")
    parser.add_argument("--model", default="tiny-llama", help="模型 / the model")
    parser.add_argument("--text", type=Path, help="每行一篇的文件 / a file with a document a line")
    parser.add_argument("--count", type=int, default=40, help="自己写几篇 / how many documents to write")
    parser.add_argument("--length", type=int, default=200, help="每篇最多多少词元 / tokens of a document at most")
    parser.add_argument("--backend", default="auto", help="注意力后端 / attention backend")
    parser.add_argument("--device", default="auto", help="设备 / device")
    parser.add_argument("--dtype", default="float32", help="计算的精度 / precision of the computation")
    parser.add_argument("--kv-cache-dtype", nargs="+", default=["int8"], help="要比的 / those to compare")
    parser.add_argument("--quantization", nargs="+", default=["int8", "int4"], help="要比的 / those to compare")
    args = parser.parse_args(argv)

    try:
        lines = args.text.read_text(encoding="utf-8").splitlines() if args.text else []
    except (OSError, ValueError) as error:
        parser.error(f"--text {args.text}: {error}")
    texts: list[list[int]] = []
    plain = 0.0
    print("| quantized | perplexity | change |\n|---|---|---|")
    caches = [(f"KV cache {name}", {"kv_cache_dtype": name}) for name in args.kv_cache_dtype]
    weights = [(f"weights {name}", {"quantization": name}) for name in args.quantization]
    variants: list[tuple[str, dict[str, Any]]] = [("nothing", {}), *caches, *weights]
    for name, options in variants:
        llm = LLM(args.model, backend=args.backend, device=args.device, dtype=args.dtype, **options)
        if not texts:
            length = min(args.length, llm.engine.pool.max_model_len)
            encoded = [llm.engine.tokenizer.encode(line)[:length] for line in lines]
            texts = [ids for ids in encoded if len(ids) > 1] if args.text else own_texts(llm, args.count, length)
        if not texts:
            parser.error(f"--text {args.text} has no line of two tokens")
        value = perplexity(llm, texts)
        plain = plain or value
        print(f"| {name} | {value:.4f} | {100 * (value / plain - 1):+.3f} % |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
