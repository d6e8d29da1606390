"""实验 2：跟着一个 token 走一遍。

学什么：一个 token 经过词嵌入、各层、KV 缓存，最后变成 logits；每经过一层，模型的猜测怎样变化。
试一试：`--token 3` 换一个 token 跟；`--layer 0` 看第一层的 K、V；换 `--prompt`，看哪一层开始猜对；
改 `rotate` 里标着 TODO 的一行，看检查怎样发现。
怎样算对：槽位由块表手算得出；缓存里的 V 就是这一层刚算出的 V，K 是手工旋转过的 K；由最后一层手算的分数与引擎的相同；
下一步只输入新的 1 个 token。

Lab 2: one token's way.

Teaches: a token's way through embedding, layers and KV cache to the logits, and how the model's guess changes with
each layer.
Try: `--token 3` follows another token; `--layer 0` shows K and V of the first layer; change `--prompt` and see at which
layer the guess becomes right; change the line marked TODO in `rotate` and see the check find it.
Check: slots follow from the block table by hand; V in the cache is what the layer has just computed, K is that K
rotated by hand; scores worked out by hand from the last layer are the engine's; the next step brings only the 1 new
token.
"""

import argparse

import torch
from common import Check, ask, make_engine, run_lab, say, title
from torch import Tensor, nn

from engine.batch import build_batch
from engine.sampling_params import SamplingParams


def slot_of(position: int, block_table: list[int], block_size: int) -> int:
    """位置 -> 槽位；实验 3 专讲这一行。

    Position -> slot; lab 3 is about this line.
    """
    return block_table[position // block_size] * block_size + position % block_size


def rotate(x: Tensor, position: int, frequencies: Tensor) -> Tensor:
    """旋转位置编码，写成复数：(x[i], x[i + D/2]) 是一个复数，转 `position * frequencies[i]` 弧度。

    Rotary embedding in complex numbers: (x[i], x[i + D/2]) is one, turned by `position * frequencies[i]` radians.

    Args:
        x: [heads, D]
        frequencies: [D // 2]
    """
    # TODO 试试写错：换成相邻的配对 `x[:, 0::2], x[:, 1::2]`，或者反着转。
    # TODO try a mistake: pairs of neighbours, `x[:, 0::2], x[:, 1::2]`, or turn the other way.
    turned = torch.complex(*x.chunk(2, dim=1)) * torch.exp(1j * position * frequencies)  # [heads, D // 2]
    return torch.cat([turned.real, turned.imag], dim=1)  # [heads, D]


def scores_of(x: Tensor, norm: Tensor, eps: float, words: Tensor) -> Tensor:
    """隐藏向量 -> 每个 token 的分数：归一化，再与每个 token 的词嵌入做点积。

    Hidden vector -> a score for each token: normalise, then the dot product with each token's embedding.

    Args:
        x, norm: [hidden]
        words: [vocab_size, hidden]
    """
    return words @ (x / (x.square().mean() + eps).sqrt() * norm)  # [vocab_size]


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
    # 让块表不从 0 开始：否则槽位碰巧等于位置，看不出块表有什么用。
    # A block table that does not begin at 0: else slots happen to equal positions, and the table seems useless.
    for block_id in (3, 1):
        engine.block_manager.free_queue.move_to_end(block_id, last=False)
    try:
        engine.add_request(prompt, SamplingParams(temperature=0.0, max_tokens=4), "r")
    except ValueError as error:
        parser.error(str(error))

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
    slots = [slot_of(position, seq.block_table, block_size) for position in range(len(prompt))]
    block, offset = divmod(slots[row], block_size)

    title("进来", "in")
    token = prompt[row]
    say(f"第 {row} 个 token：{token} {decode(token)!r}", f"token {row}: {token} {decode(token)!r}")
    print(f"  block table {seq.block_table}, block size {block_size}")
    print(f"  position {row} -> slot {slots[row]} = block {block} * {block_size} + offset {offset}")

    title("经过各层", "through the layers")
    say("每层之后若就此打住，模型会猜的下一个 token：", "If it stopped after this layer, the next token would be:")
    norm, eps, words = model.model.norm.weight, model.model.norm.eps, model.model.embed_tokens.weight
    for name in ("embed_tokens", *(f"layer {i}" for i in range(len(model.model.layers)))):
        x = seen[name][row]  # [hidden]
        scores = scores_of(x, norm, eps, words)  # [vocab_size]
        guess = int(scores.argmax())
        shape = list(seen[name].shape)
        print(f"  {name:<12} {shape!s:<10} |x| = {float(x.norm()):7.2f}   {decode(guess)!r} {float(scores.max()):.1f}")

    title("缓存", "the cache")
    q, k, v = seen["qkv"][row].split([attention.q_size, attention.kv_size, attention.kv_size])
    cache = attention.attn.cache()
    cached_k, cached_v = cache.k[block, offset], cache.v[block, offset]  # [Hkv, D]
    heads_k, heads_v = (x.unflatten(0, (-1, attention.head_dim)) for x in (k, v))  # [Hkv, D]
    print(f"  layer {args.layer}: q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}; "
          f"cache {list(cache.k.shape)} [num_blocks, block_size, Hkv, D]")  # fmt: skip
    print(f"  k now     {k[:4].tolist()} ... |k| = {float(k.norm()):.3f}")
    print(f"  k cached  {cached_k.flatten()[:4].tolist()} ... |k| = {float(cached_k.norm()):.3f}")

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
    following = build_batch(engine.plan(), block_size, runner.device)

    frequencies = model.model.rotary.inv_freq  # [D // 2]
    check = Check()
    check.same(
        "每个位置的槽位与手算的相同", "each position's slot is the one worked out by hand",
        got=batch.metadata.slot_mapping.tolist(), expected=slots, where="position",
        likely=(
            "槽位 = 块表[位置 // 块大小] * 块大小 + 位置 % 块大小",
            "slot = table[position // size] * size + position % size",
        ),
        mistakes={("没有经过块表", "the block table was not used"): list(range(len(prompt)))},
    )  # fmt: skip
    check.same(
        "缓存里的 V 就是刚算的 V", "V in the cache is the V just computed",
        got=cached_v, expected=heads_v, where="KV head",
        likely=("V 不旋转，写进自己的槽位", "V is not rotated, and goes to its own slot"),
        mistakes={("V 也旋转了", "V was rotated as well"): rotate(heads_v, row, frequencies)}, tolerance=1e-4,
    )  # fmt: skip
    check.same(
        "缓存里的 K 就是手工旋转的 K", "K in the cache is K rotated by hand",
        got=cached_k, expected=rotate(heads_k, row, frequencies), where="KV head", tolerance=1e-3,
        likely=("配对是 (x[i], x[i + D/2])；槽位要对", "pairs are (x[i], x[i + D/2]); the slot has to be right"),
        mistakes={
            ("写进缓存之前没有旋转", "stored without being rotated"): heads_k,
            ("转反了：sin 的符号", "turned the wrong way: the sign of sin"): rotate(heads_k, -row, frequencies),
            ("位置多了 1：从 0 数起", "a position 1 too high: count from 0"): rotate(heads_k, row + 1, frequencies),
        },
    )  # fmt: skip
    # 只有最后一行采样，引擎只有它的 logits，与跟的是哪个 token 无关。
    # Only the last row samples, and its logits are all that the engine has, whichever token is followed.
    last = seen[f"layer {len(model.model.layers) - 1}"][-1]  # [hidden]
    names = {repr(decode(i)): i for i in top.indices.tolist()}
    check.same(
        "由最后一层手算的分数与引擎的相同", "scores by hand from the last layer are the engine's",
        got={name: float(logits[0, i]) for name, i in names.items()},
        expected={name: float(scores_of(last, norm, eps, words)[i]) for name, i in names.items()},
        where="token", tolerance=1e-2,
        likely=(
            "手算：归一化，乘权重，再点积；引擎：只有最后一行采样",
            "by hand: normalise, times the weight, dot product; the engine: only the last row samples",
        ),
        mistakes={
            ("最后没有归一化", "the last normalisation is missing"):
                {name: float(words[i] @ last) for name, i in names.items()},
            ("归一化没有乘权重", "the normalisation lacks its weight"):
                {name: float(scores_of(last, torch.ones_like(norm), eps, words)[i]) for name, i in names.items()},
        },
    )  # fmt: skip
    check.same(
        "下一步只算新的 1 个 token", "the next step computes only the 1 new token",
        got={
            "input_ids": following.input_ids.tolist(), "positions": following.positions.tolist(),
            "cache_seqlens": following.metadata.cache_seqlens.tolist(),
        },
        expected={"input_ids": [chosen], "positions": [len(prompt)], "cache_seqlens": [len(prompt) + 1]}, where="field",
        likely=(
            "`Scheduler.advance` 把算过的记下来，`build_batch` 从那里接着取",
            "`Scheduler.advance` counts what is computed, and `build_batch` goes on from there",
        ),
    )  # fmt: skip
    return check.finish()


if __name__ == "__main__":
    run_lab(main)
