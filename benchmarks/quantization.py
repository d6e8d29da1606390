"""量化省多少时间和内存：同一个模型的 bfloat16、int8、int4，轮流运行；加 `--transformers`，旁边再跑它的 bfloat16。

一个请求，128 个 token 的提示词，随机权重：首个 token 的时间，此后每个 token 的时间，权重占多少字节，
一个 token 的 KV 缓存占多少字节。

What quantization saves in time and memory: bfloat16, int8 and int4 of one model take turns; with `--transformers` its
bfloat16 runs beside them. One request with a prompt of 128 tokens and random weights: the time to the first token, that
of each token after it, and the bytes of the weights and of a token's KV cache.

Usage: python benchmarks/quantization.py [--config FILE] [--transformers] [--repeats N] [--json FILE]
"""

import argparse
import random
import tempfile
from typing import Any

import torch
from common import ROOT, add_model_options, environment, make_llm, model_name, random_prompts, spread, write_report
from compare_hf import save_random_model, time_ours, time_theirs

from backends.quantized_weight import QuantizedWeight
from mini_llama import LLM

# 名字 -> 引擎的选项。
# The name -> options of the engine.
VARIANTS: dict[str, dict[str, Any]] = {
    "bfloat16": {},
    "int8": {"quantization": "int8"},
    "int4": {"quantization": "int4"},
    "int4, KV int8": {"quantization": "int4", "kv_cache_dtype": "int8"},
}


def weight_bytes(llm: LLM) -> int:
    """全部权重的字节数，共用的只算一次；核函数另存的也算。

    Bytes of all weights, shared ones once; what the kernels keep in an order of their own counts, too.
    """
    tensors: dict[int, torch.Tensor] = {id(p): p for p in llm.engine.model_runner.model.parameters()}
    for module in llm.engine.model_runner.model.modules():
        kept = [getattr(module, "weight", None), getattr(module, "packed", None)]
        for each in kept:
            parts = each.parts if isinstance(each, QuantizedWeight) else each if isinstance(each, tuple) else [each]
            tensors |= {id(part): part for part in parts if part is not None}
    return sum(tensor.nbytes for tensor in tensors.values() if tensor.device.type != "meta")


def kv_bytes(llm: LLM) -> int:
    """一个 token 的 KV 缓存在所有层里共占多少字节，缩放也算。

    Bytes of a token's KV cache over all layers, scales included.
    """
    caches = [layer.cache() for layer in llm.engine.model_runner.model.attention_layers()]
    parts = [part for cache in caches for part in (cache.k, cache.v, cache.k_descale, cache.v_descale)]
    return sum(part.nbytes for part in parts if part is not None) // (caches[0].k.shape[0] * caches[0].k.shape[1])


def main() -> None:
    """读选项，轮流运行，打印一张表。

    Read the options, run in turns, print a table.
    """
    parser = argparse.ArgumentParser(description="量化省多少 / what quantization saves")
    add_model_options(parser)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=65)
    parser.add_argument("--transformers", action="store_true", help="也跑 transformers / run transformers, too")
    args = parser.parse_args()
    if args.output_tokens < 2:
        parser.error(f"--output-tokens {args.output_tokens}: the time of a token after the first needs at least 2")
    args.config = args.config or str(ROOT / "benchmarks" / "configs" / "qwen3-0.6b.json")
    tokens = args.prompt_tokens + args.output_tokens
    common = {"device": args.device, "dtype": "bfloat16", "enable_prefix_caching": False}
    llms = {name: make_llm(args, **common, num_kvcache_blocks=tokens // 16 + 2, kvcache_block_size=16, **options)
            for name, options in VARIANTS.items()}  # fmt: skip
    runs: dict[str, Any] = {
        name: lambda prompts, length, llm=llm: time_ours(llm, prompts, [length])[0] for name, llm in llms.items()
    }
    if args.transformers:
        from transformers import AutoModelForCausalLM

        with tempfile.TemporaryDirectory() as folder:
            save_random_model(args.config, folder)
            theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa")
        theirs = theirs.to(next(iter(llms.values())).engine.model_runner.device).eval()
        theirs.generation_config.eos_token_id = None
        runs["transformers"] = lambda prompts, length: time_theirs(theirs, prompts, [length])[0]
    vocab_size = next(iter(llms.values())).engine.model_runner.model_config.vocab_size
    rng, times = random.Random(0), {name: {"first": [], "later": []} for name in runs}
    # 第 0 次是热身，不计入；大家轮流跑，机器忽快忽慢时影响相同。
    # Run 0 warms up and does not count; all take turns, so a machine that speeds up or slows down hits all.
    for repeat in range(args.repeats + 1):
        for name, run in runs.items():
            one, other = (random_prompts(rng, [args.prompt_tokens], vocab_size) for _ in range(2))
            first, total = run(one, 1), run(other, args.output_tokens)
            if repeat > 0:
                times[name]["first"].append(first * 1e3)
                times[name]["later"].append((total - first) / (args.output_tokens - 1) * 1e3)
    results = []
    print(f"{'':16}{'first token ms':>16}{'ms a token':>12}{'ratio':>8}{'weights MB':>12}{'KV bytes a token':>18}")
    for name in runs:
        result: dict[str, Any] = {"name": name} | {key: spread(values) for key, values in times[name].items()}
        result["ratio"] = result["later"]["median"] / spread(times["bfloat16"]["later"])["median"]
        line = f"{name:16}{result['first']['median']:16,.0f}{result['later']['median']:12.1f}{result['ratio']:8.2f}"
        if name in llms:
            result |= {"weight_bytes": weight_bytes(llms[name]), "kv_bytes": kv_bytes(llms[name])}
            line += f"{result['weight_bytes'] / 1e6:12,.0f}{result['kv_bytes']:18,}"
        print(line)
        results.append(result)
    info = environment(next(iter(llms.values()))) | {"threads": torch.get_num_threads()}
    write_report(args.json, {"model": model_name(args), "environment": info, "repeats": args.repeats,
                             "prompt_tokens": args.prompt_tokens, "results": results})  # fmt: skip


if __name__ == "__main__":
    main()
