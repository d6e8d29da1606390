"""实验 2：跟着一个 token 走一遍。

学什么：一个 token 经过词嵌入、各层、KV 缓存，最后变成 logits；每经过一层，模型的猜测怎样变化。
试一试：`--token 3` 换一个 token 跟；`--layer 0` 看第一层的 K、V；换 `--prompt`，看哪一层开始猜对。
怎样算对：缓存里的 V 就是这一层刚算出的 V；K 被旋转过，数变了，长度不变；由隐藏向量重算的 logits 选出同一个 token。

Lab 2: one token's way.

Teaches: a token's way through embedding, layers and KV cache to the logits, and how the model's guess changes with
each layer.
Try: `--token 3` follows another token; `--layer 0` shows K and V of the first layer; change `--prompt` and see at which
layer the guess becomes right.
Check: V in the cache is what the layer has just computed; K was rotated, so its numbers differ and its length does not;
logits computed again from the hidden vector choose the same token.
"""

import argparse
import sys

import torch
from common import Check, ask, make_engine, say, title
from torch import Tensor, nn

from engine.batch import build_batch
from engine.sampling_params import SamplingParams


def main() -> int:
    """跑实验，返回退出码。

    Run the lab and return the exit code.
    """
    parser = argparse.ArgumentParser(description="one token's way / 跟着一个 token 走")
    parser.add_argument("--prompt", default="What is the capital of Japan?")
    parser.add_argument("--token", type=int, default=-1, help="跟第几个 token / which token to follow")
    parser.add_argument("--layer", type=int, default=2, help="看哪一层的 K、V / whose K and V to look at")
    args = parser.parse_args()

    # 逐步执行，不用融合的核函数：每一步的中间结果都拿得到。
    # Step by step, without fused kernels: every intermediate result can be seen.
    engine = make_engine(max_model_len=512, num_kvcache_blocks=64, enforce_eager=True)
    runner, decode = engine.model_runner, engine.tokenizer.decode_token
    model, block_size = runner.model, engine.pool.block_size
    prompt = ask(engine, args.prompt)
    if not -len(prompt) <= args.token < len(prompt) or not 0 <= args.layer < len(model.model.layers):
        parser.error(f"tokens go from 0 to {len(prompt) - 1}, layers from 0 to {len(model.model.layers) - 1}")
    row = args.token % len(prompt)
    engine.add_request(prompt, SamplingParams(temperature=0.0, max_tokens=4), "r")

    # PyTorch 的 hook：某个模块算完时，把它的输出抄一份。
    # PyTorch's hooks: when a module is done, keep what it put out.
    seen: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module) -> None:
        def hook(_: nn.Module, __: object, out: Tensor | tuple[Tensor, Tensor]) -> None:
            # 一层交出残差流 x 和还没加上去的修正，两者之和才是这一层之后的向量。
            # A layer returns the residual stream x and a correction not added yet; their sum is the vector after it.
            seen[name] = out if isinstance(out, Tensor) else out[0] + out[1]

        module.register_forward_hook(hook)

    keep("embed_tokens", model.model.embed_tokens)
    for index, layer in enumerate(model.model.layers):
        keep(f"layer {index}", layer)
    attention = model.model.layers[args.layer].self_attn
    keep("qkv", attention.qkv_proj)

    schedule = engine.plan()
    batch = build_batch(schedule, block_size, runner.device)
    logits = runner.execute(batch)  # [1, vocab_size]
    seq = schedule[0].seq
    slot = int(batch.metadata.slot_mapping[row])
    block, offset = divmod(slot, block_size)

    title("进来", "in")
    token = prompt[row]
    say(f"第 {row} 个 token：{token} {decode(token)!r}", f"token {row}: {token} {decode(token)!r}")
    print(f"  block table {seq.block_table}, block size {block_size}")
    print(f"  position {row} -> slot {slot} = block {block} * {block_size} + offset {offset}")

    title("经过各层", "through the layers")
    say("每层之后若就此打住，模型会猜的下一个 token：", "If it stopped after this layer, the next token would be:")
    guess = -1
    for name in ("embed_tokens", *(f"layer {i}" for i in range(len(model.model.layers)))):
        x = seen[name][row]  # [hidden]
        normed, _ = model.model.norm.add_and_norm(x[None], None)  # [1, hidden]
        scores = model.compute_logits(normed)[0]  # [vocab_size]
        guess = int(scores.argmax())
        shape = list(seen[name].shape)
        print(f"  {name:<12} {shape!s:<10} |x| = {float(x.norm()):7.2f}   {decode(guess)!r} {float(scores.max()):.1f}")

    title("缓存", "the cache")
    q, k, v = seen["qkv"][row].split([attention.q_size, attention.kv_size, attention.kv_size])
    cache = attention.attn.cache()
    cached_k, cached_v = cache.k[block, offset].flatten(), cache.v[block, offset].flatten()  # [Hkv * D]
    print(f"  layer {args.layer}: q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}; "
          f"cache {list(cache.k.shape)} [num_blocks, block_size, Hkv, D]")  # fmt: skip
    print(f"  k now     {k[:4].tolist()} ... |k| = {float(k.norm()):.3f}")
    print(f"  k cached  {cached_k[:4].tolist()} ... |k| = {float(cached_k.norm()):.3f}")

    title("出去", "out")
    top = torch.topk(logits[0], 5)
    for score, index in zip(top.values.tolist(), top.indices.tolist()):
        print(f"  {score:8.2f}  {index:>5} {decode(index)!r}")
    chosen = engine.sampler.choose(schedule, logits)[0][0]
    engine.scheduler.update(schedule, [[chosen]])
    say(
        f"最后一行选出 {decode(chosen)!r}；下一步只算这 1 个 token，其余的 K、V 都在缓存里。",
        f"The last row chose {decode(chosen)!r}; the next step computes this 1 token, all other K and V are cached.",
    )
    batch = build_batch(engine.plan(), block_size, runner.device)

    check = Check()
    check.that(torch.equal(cached_v, v), "缓存里的 V 就是刚算的 V", "V in the cache is the V just computed")
    same_length = torch.allclose(cached_k.norm(), k.norm(), rtol=1e-4)
    check.that(
        same_length and (row == 0 or not torch.equal(cached_k, k)),
        "K 旋转过：长度不变，数变了（位置 0 不转）", "K was rotated: same length, other numbers (not at position 0)",
    )
    # 只有最后一行采样；跟别的 token 时，它的猜测与提示词里的下一个 token 无关，不检查。
    # Only the last row samples; the guess of any other token is not used, so it is not checked.
    if row == len(prompt) - 1:
        check.that(guess == chosen, "由最后一层重算，选的相同", "the last layer's vector chooses the same token")
    one = batch.input_ids.tolist() == [chosen]
    check.that(one, "下一步只算新的 1 个 token", "the next step computes only the new token")
    return check.finish()


if __name__ == "__main__":
    sys.exit(main())
