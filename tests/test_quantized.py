"""量化的权重：误差的界、引擎端到端、加载时的内存峰值、各种组合，以及拒绝时的一行话。

Quantized weights: bounds of the error, the engine end to end, the peak of memory while loading, all combinations, and
the one line of a refusal.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from backends.cpu_kernels import _say_slow
from backends.quantized_weight import GROUP, QuantizedWeight, pack_int4, quantize_int4, quantize_int8, unpack_int4
from engine.config import EMBEDDED_MODELS, EngineConfig
from layers.embedding import Embedding
from layers.linear import Linear
from mini_llama import LLM, SamplingParams
from serving.compare import compare_backends

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
GREEDY = SamplingParams(temperature=0.0, max_tokens=24)
QUESTIONS = ["list all prime numbers within 100", "中国的首都是哪里？", "What is 23 + 45?"]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantized(weight: Tensor, bits: int, dtype: torch.dtype = torch.float32) -> QuantizedWeight:
    made = QuantizedWeight.frame(bits, weight.shape)
    made.materialize(dtype, CPU)
    made.copy_(weight)
    return made


# ---- 编码 ----
# ---- codes ----


def test_the_worked_examples() -> None:
    # 文档字符串里的例子：手算的结果写在这里，不由代码算出。
    # The examples of the docstrings; the results are worked out by hand and not by the code.
    codes, scales = quantize_int8(torch.tensor([[0.5, -1.27, 0.02, 1.0]]), torch.float32)
    assert codes.tolist() == [[50, -127, 2, 100]] and scales.tolist() == pytest.approx([0.01])
    row = torch.linspace(-0.7, 0.8, GROUP)
    row[5] = 0.33
    packed, scales, zeros = quantize_int4(row[None], torch.float32)
    assert scales.item() == pytest.approx(0.1) and zeros.item() == pytest.approx(0.1)
    codes = unpack_int4(packed)[0].tolist()
    assert (codes[0], codes[5], codes[-1]) == (0, 10, 15)


def test_two_codes_share_a_byte() -> None:
    codes = torch.tensor([[1, 2, 15, 0]], dtype=torch.uint8)
    assert pack_int4(codes).tolist() == [[0x21, 0x0F]]
    many = torch.randint(0, 16, (7, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert unpack_int4(pack_int4(many)).equal(many)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [8, 4])
def test_every_weight_is_within_half_a_step(bits: int, dtype: torch.dtype) -> None:
    weight = random(96, 160) * torch.logspace(-3, 2, 96)[:, None]
    weight[3], weight[4, :GROUP] = 0.0, 0.25
    made = quantized(weight, bits, dtype)
    steps = made.scales.double()
    steps = steps[:, None] if bits == 8 else steps.repeat_interleave(GROUP, 1)
    error = (made.dequantize(torch.float64) - weight.double()).abs()
    # 缩放（和中值）先舍入到 `dtype`；编码 127 步之外、15 步之外会被截断，多出的不超过舍入误差的倍数。
    # Scales and zeros are rounded to `dtype` first; what lies beyond the last code is clamped, and the excess is a
    # multiple of that rounding.
    slack = (127 if bits == 8 else 16) * torch.finfo(dtype).eps * steps + 1e-6 * weight.double().abs()
    zero = 0 if made.zeros is None else made.zeros.double().abs().repeat_interleave(GROUP, 1) * torch.finfo(dtype).eps
    assert bool((error <= steps / 2 + slack + zero).all())
    assert bool((made.dequantize()[3] == 0).all())


@pytest.mark.parametrize("bits", [8, 4])
def test_the_error_of_a_layer_is_within_its_bound(bits: int) -> None:
    weight, x = random(64, 256, seed=2), random(5, 256, seed=3)
    made = quantized(weight, bits)
    steps = made.scales[:, None].expand(64, 256) if bits == 8 else made.scales.repeat_interleave(GROUP, 1)
    error = (F.linear(x.double(), made.dequantize(torch.float64)) - F.linear(x.double(), weight.double())).abs()
    # 每个权重差不过半步，一行点积就差不过 Σ|x|·半步；典型的误差小得多，约是它的几十分之一。
    # Each weight is within half a step, so a dot product is within the sum of |x| times half a step; the usual error is
    # dozens of times smaller.
    bound = x.double().abs() @ steps.double().T / 2
    assert bool((error <= bound * (1 + 1e-5)).all())
    assert float(error.mean() / bound.mean()) < 0.1


def test_a_bad_number_spoils_its_scale_and_rows_are_windows() -> None:
    weight = random(8, 64)
    for bits in (8, 4):
        for bad in (float("nan"), float("inf")):
            spoilt = weight.clone()
            spoilt[2, 40] = bad
            finite = quantized(spoilt, bits).scales.isfinite()
            assert not bool(finite[2].all()) and bool(finite[[0, 1, 3, 4, 5, 6, 7]].all())
        made = quantized(weight, bits)
        made[2:4].copy_(weight[:2])
        assert made.equal(torch.cat((weight[:2], weight[:2], weight[4:])))
        assert not made.equal(weight)
        assert made[torch.tensor([3, 0])].equal(made.dequantize()[[3, 0]])
        with pytest.raises(TypeError):
            torch.add(made, 1)  # type: ignore[call-overload]


# ---- 引擎 ----
# ---- the engine ----


def layers_of(llm: LLM) -> dict[str, Any]:
    modules = llm.engine.model_runner.model.named_modules()
    return {name: module.weight for name, module in modules if isinstance(module, Linear | Embedding)}


@pytest.mark.parametrize("quantization, bits", [("int8", 8), ("int4", 4)])
def test_which_layers_are_quantized(quantization: str, bits: int) -> None:
    llm = LLM(quantization=quantization, device="cpu", enforce_eager=True, num_kvcache_blocks=64, max_model_len=512)
    weights = layers_of(llm)
    assert all(isinstance(weight, QuantizedWeight) for weight in weights.values())
    found = {name.rpartition(".")[2]: weight.bits for name, weight in weights.items()}
    assert found == {"embed_tokens": 8, "lm_head": 8, "qkv_proj": bits, "o_proj": bits, "gate_up_proj": bits,
                     "down_proj": bits}  # fmt: skip
    # 共用的仍是同一个；归一化不量化；CPU 上的 `auto` 是 bfloat16。
    # What is shared is still one; norms are not quantized; on a CPU `auto` is bfloat16.
    assert weights["model.embed_tokens"] is weights["lm_head"]
    runner = llm.engine.model_runner
    assert runner.dtype == torch.bfloat16 and {p.dtype for p in runner.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("backend, eager", [("torch", True), ("sdpa", True), ("sdpa", False)])
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_the_embedded_model_still_answers(backend: str, eager: bool, quantization: str) -> None:
    llm = LLM(backend=backend, device="cpu", quantization=quantization, enforce_eager=eager, num_kvcache_blocks=256,
              max_model_len=1024)  # fmt: skip
    conversations = [[{"role": "user", "content": text}] for text in QUESTIONS]
    answers = [out.outputs[0].text for out in llm.chat(conversations, SamplingParams(temperature=0.0, max_tokens=32))]
    assert answers[0].startswith("The primes up to 100: 2, 3, 5, 7, 11") and "北京" in answers[1] and "68" in answers[2]


@pytest.mark.parametrize("bits", [8, 4])
def test_kernels_equal_the_plain_lines_in_an_engine(bits: int) -> None:
    # float32 时选的 token 相同；bfloat16 时，两边的编码相同，首个 token 的对数概率只差舍入。
    # In float32 the tokens are equal; in bfloat16 the codes are, and the first token's log-probability differs by
    # rounding only.
    options = {"model": "tiny-poet", "device": "cpu", "backend": "sdpa", "quantization": f"int{bits}",
               "num_kvcache_blocks": 64, "max_model_len": 256}  # fmt: skip
    prompts = ["moon:", "床前明月光，", "philosopher:"]
    params = SamplingParams(temperature=0.0, max_tokens=16, logprobs=0)
    found = {}
    for dtype in ("float32", "bfloat16"):
        for eager in (True, False):
            outputs = LLM(**options, dtype=dtype, enforce_eager=eager).generate(prompts, params, progress=False)
            found[dtype, eager] = [out.outputs[0] for out in outputs]
    exact = found["float32", True]
    assert [out.token_ids for out in found["float32", False]] == [out.token_ids for out in exact]
    for plain, fast in zip(found["bfloat16", True], found["bfloat16", False]):
        token = plain.token_ids[0]
        assert fast.token_ids[0] == token
        assert abs(fast.logprobs[0][token].logprob - plain.logprobs[0][token].logprob) < 0.15


@pytest.mark.parametrize("dtype, times", [("float32", 1), ("bfloat16", 0)])
def test_that_another_dtype_is_slow_on_a_cpu_is_said_once(
    dtype: str, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    _say_slow.cache_clear()
    LLM(quantization="int8", dtype=dtype, device="cpu", num_kvcache_blocks=64, max_model_len=512)
    LLM(quantization="int4", dtype=dtype, device="cpu", num_kvcache_blocks=64, max_model_len=512)
    said = [record.getMessage() for record in caplog.records if "use dtype bfloat16" in record.getMessage()]
    assert len(said) == times


# ---- 形状不合的层 ----
# ---- layers whose shape does not suit ----

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 256,
         "initializer_range": 0.2}  # fmt: skip
CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


def save_model(folder: Path, kind: str = "llama", **sizes: Any) -> Path:
    torch.manual_seed(0)
    config = CONFIGS[kind](**{**SIZES, "head_dim": 16, "tie_word_embeddings": False, **sizes})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED_MODELS["tiny-llama"] / name, folder)
    return folder


def test_a_layer_that_does_not_divide_stays_int8_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_model(tmp_path, intermediate_size=72)
    llm = LLM(str(tmp_path), quantization="int4", device="cpu", num_kvcache_blocks=16)
    bits = {name: weight.bits for name, weight in layers_of(llm).items() if name.startswith("model.layers.1.")}
    # gate_up 的输入是 64，合适；down 的输入是 72，不是 32 的倍数。
    # gate_up has 64 inputs, which suits; down has 72, no multiple of 32.
    assert bits == {"model.layers.1.self_attn.qkv_proj": 4, "model.layers.1.self_attn.o_proj": 4,
                    "model.layers.1.mlp.gate_up_proj": 4, "model.layers.1.mlp.down_proj": 8}  # fmt: skip
    (said,) = [record.getMessage() for record in caplog.records if "stay int8" in record.getMessage()]
    assert said.startswith("2 layers (model.layers.0.mlp.down_proj, ...) stay int8")
    assert llm.generate([[1, 2, 3]], GREEDY, progress=False)[0].outputs[0].token_ids


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_backends_agree_on_every_model(kind: str, quantization: str, tmp_path: Path) -> None:
    # 误差与未量化的模型同级：同样的整数编码，各后端只差浮点舍入。
    # Errors are those of the unquantized model: the integers are the same, and backends differ by rounding only.
    save_model(tmp_path, kind)
    prompt, outputs = [[5, 9, 200, 31, 7, 77, 3]], {}
    for backend in ("torch", "sdpa"):
        for eager in (True, False):
            llm = LLM(str(tmp_path), backend=backend, quantization=quantization, device="cpu", dtype="float32",
                      enforce_eager=eager, num_kvcache_blocks=16)  # fmt: skip
            params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=0)
            outputs[backend, eager] = llm.generate(prompt, params, progress=False)[0].outputs[0]
    first = outputs["torch", True]
    for out in outputs.values():
        assert out.token_ids == first.token_ids
        assert out.cumulative_logprob == pytest.approx(first.cumulative_logprob, abs=1e-3)


# 在同样的位置上，logits 最多差多少。编码的公式只有一个，float32 下各后端量到 5e-6，留出余地：舍入偶尔会让一个编码差 1。
# fp8 与不量化的缓存相比，量到 0.63；这个模型的 logits 在 -6 到 5 之间。
# How far logits may be apart at the same places. There is one formula for codes, and in float32 backends are within
# 5e-6 as measured; the rest allows for a rounding that now and then moves a code by 1. fp8 is 0.63 from a cache of
# floats, as measured; this model's logits lie between -6 and 5.
TOLERANCE = {"auto": 1e-4, "int8": 2e-2, "fp8": 1.5}


@pytest.mark.parametrize("backend", ["torch", "sdpa", "triton"])
@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
@pytest.mark.parametrize("cache", ["auto", "int8", "fp8"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_every_combination_runs_or_is_refused_in_one_line(
    kind: str, cache: str, quantization: str | None, backend: str, tmp_path: Path
) -> None:
    if backend == "triton":
        pytest.importorskip("triton")
    folder = save_model(tmp_path, kind, num_hidden_layers=1)
    config = EngineConfig(str(folder), backend=backend, device="cpu", dtype="float32", quantization=quantization,
                          kv_cache_dtype=cache, num_kvcache_blocks=16, kvcache_block_size=16)  # fmt: skip
    if cache == "fp8" and backend != "triton":
        with pytest.raises(ValueError, match=f"'{backend}' .* kv_cache_dtype=fp8, it supports auto, int8") as error:
            config.resolve()
        assert "\n" not in str(error.value)
        return
    # 参照：参考后端，同样的缓存；fp8 只有 triton 认得，所以不能拿同样的缓存作参照。
    # The reference: the reference backend with the same cache; fp8, which triton alone knows, is held against a cache
    # of floats.
    name = "torch" + (f":{quantization}" if quantization else "") + (f":kv-{cache}" if cache == "int8" else "")
    own = backend + (f":{quantization}" if quantization else "") + (f":kv-{cache}" if cache != "auto" else "")
    plain = replace(config, backend="torch", quantization=None, kv_cache_dtype="auto")
    params = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
    steps = list(compare_backends(plain, (name, own), [[5, 9, 200, 31, 7, 77, 3], [1, 2]], params))
    assert len(steps) == 3 and max(step.max_difference for step in steps) < TOLERANCE[cache]


def test_the_unquantized_engine_runs_none_of_it() -> None:
    # 关着就是关着：连模块的一行都不执行。
    # Off is off: not a line of it runs.
    program = """
import sys
sys.path.insert(0, ".")
from backends.cpu_kernels import _say_slow
from backends.quantized_weight import QuantizedWeight
import layers.quantized
for name in ("__init__", "dequantize", "copy_"):
    setattr(QuantizedWeight, name, lambda *_: 1 / 0)
layers.quantized.quantize_layers.__code__ = (lambda *_: 1 / 0).__code__
from mini_llama import LLM, SamplingParams
from serving.compare import compare_backends
llm = LLM(num_kvcache_blocks=32, max_model_len=256)
print(llm.generate("a", SamplingParams(max_tokens=2), progress=False)[0].finished)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["True"], done.stderr


# ---- 加载的内存 ----
# ---- memory while loading ----


def test_loading_peaks_at_the_quantized_weights_and_twice_the_largest_tensor(tmp_path: Path) -> None:
    # 一个 134 MB（float32）的词嵌入，8 层各 25 MB；量化后一共约 75 MB。
    # An embedding of 134 MB in float32 and 8 layers of 25 MB each; quantized about 75 MB in all.
    save_model(tmp_path, hidden_size=512, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=8,
               num_key_value_heads=8, head_dim=64, vocab_size=65536, tie_word_embeddings=True)  # fmt: skip
    program = f"""
import resource, sys, threading, time
sys.path.insert(0, ".")
from pathlib import Path
import torch
from engine.config import EngineConfig
from engine.model_runner import ModelRunner
def private():
    return sum(int(l.split()[1]) for l in open("/proc/self/smaps_rollup") if l.startswith(("Anonymous:",))) * 1024
setup = EngineConfig({str(tmp_path)!r}, device="cpu", quantization=sys.argv[1], num_kvcache_blocks=8).resolve()
most, stop, before = 0, False, private()
def watch():
    global most
    while not stop:
        most = max(most, private())
        time.sleep(0.002)
thread = threading.Thread(target=watch); thread.start()
runner = ModelRunner(setup)
stop = True; thread.join()
print(most - before)
"""
    largest = 65536 * 512 * 4
    weights = {"int8": 65536 * 512 + 8 * 4 * 512 * 512 * 4, "int4": 65536 * 512 + 8 * 4 * 512 * 512 * 4 * 0.625}
    for quantization in ("int8", "int4"):
        done = subprocess.run(
            [sys.executable, "-c", program, quantization], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert int(done.stdout) < weights[quantization] + 2 * largest, quantization


# ---- 拒绝 ----
# ---- refusals ----


@pytest.mark.parametrize("value", ["int5", "awq", "gptq", 8, True, ""])
def test_unknown_values_are_refused_in_one_line(value: Any) -> None:
    with pytest.raises(ValueError, match="use one of int8, int4; for files that are quantized already, none") as error:
        EngineConfig(quantization=value)
    assert "\n" not in str(error.value)


# ---- 自带量化的文件 ----
# ---- files that bring their own ----


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """每行 32 // bits 个编码放进一个 int32，低位在前；逐个元素，照公布的布局写。

    32 // bits codes of a row go into an int32, the lowest bits first; element by element, as the layout is published.
    """
    per_word = 32 // bits
    rows = []
    for row in codes.tolist():
        words = []
        for start in range(0, len(row), per_word):
            word = sum(code << bits * place for place, code in enumerate(row[start : start + per_word]))
            words.append(word - (1 << 32) if word >= 1 << 31 else word)
        rows.append(words)
    return torch.tensor(rows, dtype=torch.int32)


def store_packed(
    source: Path, folder: Path, bits: int, group: int, layout: str = "pack-quantized", pattern: str = "proj.weight"
) -> dict[str, Tensor]:
    """把一个文件夹的线性层改存成 compressed-tensors 的一种格式，返回各层还原后的权重。

    Store a folder's linear layers in a format of compressed-tensors; returns the restored weight of each.
    """
    shutil.copytree(source, folder)
    tensors, restored = load_file(folder / "model.safetensors"), {}
    middle = 1 << (bits - 1)
    for name in [name for name in tensors if name.endswith(pattern)]:
        weight = tensors.pop(name).float()
        groups = weight.unflatten(1, (-1, weight.shape[1] if group < 0 else group))
        scales = (groups.abs().amax(2) / (middle - 1)).half().float()
        codes = (groups / scales[:, :, None]).round().clamp(-middle, middle - 1)
        restored[name] = (codes * scales[:, :, None]).flatten(1)
        layer = name.removesuffix("weight")
        tensors[layer + "weight_scale"] = scales.half()
        if layout == "int-quantized":
            tensors[layer + "weight"] = codes.flatten(1).to(torch.int8)
        else:
            tensors[layer + "weight_packed"] = pack_words((codes + middle).flatten(1).int(), bits)
            tensors[layer + "weight_shape"] = torch.tensor(weight.shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "channel" if group < 0 else "group",
               "group_size": None if group < 0 else group}  # fmt: skip
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": layout, "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return restored


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("bits, group, layout", [
    (8, -1, "pack-quantized"), (4, 32, "pack-quantized"), (4, 64, "pack-quantized"), (4, -1, "pack-quantized"),
    (8, -1, "int-quantized"),
])  # fmt: skip
def test_a_packed_checkpoint_equals_its_restored_weights(
    bits: int, group: int, layout: str, kind: str, tmp_path: Path
) -> None:
    source = save_model(tmp_path / "source", kind, hidden_size=64, intermediate_size=128)
    restored = store_packed(source, tmp_path / "packed", bits, group, layout)
    options = {"device": "cpu", "dtype": "float32", "num_kvcache_blocks": 16, "backend": "torch"}
    packed = LLM(str(tmp_path / "packed"), **options)
    weights = layers_of(packed)
    # 文件里没有量化的，这里也不量化。
    # What the file has not quantized is not quantized here.
    assert not isinstance(weights["lm_head"], QuantizedWeight) and not isinstance(
        weights["model.embed_tokens"], QuantizedWeight
    )
    layer = weights["model.layers.1.mlp.down_proj"]
    assert layer.bits == bits
    assert torch.allclose(layer.dequantize(), restored["model.layers.1.mlp.down_proj.weight"], rtol=1e-6, atol=1e-7)
    # 参照：把还原后的浮点权重写回文件，当作普通模型读。
    # The reference: write the restored floats back and read them as an ordinary model.
    plain = tmp_path / "plain"
    shutil.copytree(source, plain)
    save_file({**load_file(plain / "model.safetensors"), **restored}, plain / "model.safetensors", {"format": "pt"})
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=0)
    both = (packed, LLM(str(plain), **options))
    outs = [llm.generate([[5, 9, 200, 31]], params, progress=False)[0].outputs[0] for llm in both]
    assert outs[0].token_ids == outs[1].token_ids
    assert outs[0].cumulative_logprob == pytest.approx(outs[1].cumulative_logprob, abs=1e-3)
    # CPU 的 `auto` 是 bfloat16，走打包的乘法；重复写同样的位数可以，写别的不行。
    # `auto` on a CPU is bfloat16 with packed products; to name the same bits again is fine, others are not.
    again = LLM(str(tmp_path / "packed"), device="cpu", num_kvcache_blocks=16, quantization=f"int{bits}")
    assert again.engine.model_runner.dtype == torch.bfloat16
    assert again.generate([[5, 9, 200, 31]], params, progress=False)[0].outputs[0].token_ids
    with pytest.raises(ValueError, match=f"the model is int{bits} already: leave it out"):
        LLM(str(tmp_path / "packed"), quantization=f"int{12 - bits}", device="cpu")


@pytest.mark.parametrize("value", [0.0, 1e-3])
def test_a_bias_of_zeros_that_the_model_lacks_is_passed_over(value: float, tmp_path: Path) -> None:
    store_packed(save_model(tmp_path / "source"), tmp_path / "packed", 4, 32)
    file = tmp_path / "packed" / "model.safetensors"
    bias = torch.zeros(64)
    bias[7] = value
    save_file({**load_file(file), "model.layers.0.self_attn.q_proj.bias": bias}, file, {"format": "pt"})
    if value == 0.0:
        LLM(str(tmp_path / "packed"), device="cpu", num_kvcache_blocks=16)
    else:
        with pytest.raises(ValueError, match=r"unexpected tensor .*q_proj.bias' that is not zero"):
            LLM(str(tmp_path / "packed"), device="cpu", num_kvcache_blocks=16)


def test_a_quantized_embedding_that_the_head_shares_is_refused(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", tie_word_embeddings=True)
    store_packed(source, tmp_path / "packed", 4, 32, pattern="embed_tokens.weight")
    with pytest.raises(ValueError, match=r"embed_tokens.weight is quantized and shared by embedding and head"):
        LLM(str(tmp_path / "packed"), device="cpu", num_kvcache_blocks=16)


def test_a_configuration_that_promises_quantized_weights_is_held_to_it(tmp_path: Path) -> None:
    store_packed(save_model(tmp_path / "source"), tmp_path / "packed", 4, 32, pattern="nothing")
    with pytest.raises(ValueError, match="none is: drop quantization_config"):
        LLM(str(tmp_path / "packed"), device="cpu", num_kvcache_blocks=16)


@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
def test_what_does_not_fit_into_float16_is_refused(quantization: str | None, tmp_path: Path) -> None:
    file = save_model(tmp_path) / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = 2e5
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"up_proj.weight' does not fit into torch.float16"):
        LLM(str(tmp_path), device="cpu", dtype="float16", quantization=quantization, num_kvcache_blocks=16)


@pytest.mark.parametrize("inputs", [72, 88, 100])
def test_inputs_of_any_number_give_the_plain_result(inputs: int, tmp_path: Path) -> None:
    # PyTorch 的 int8 乘法要求输入是 16 的倍数，否则读到末尾之外。
    # PyTorch's int8 product wants inputs in multiples of 16, and else reads past the end.
    save_model(tmp_path, intermediate_size=inputs)
    prompt = [[5, 9, 200, 31, 7, 77, 3]]
    params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, logprobs=0)
    chosen = []
    for eager in (True, False):
        llm = LLM(str(tmp_path), device="cpu", quantization="int8", num_kvcache_blocks=16, enforce_eager=eager)
        chosen.append(llm.generate(prompt, params, progress=False)[0].outputs[0])
    assert chosen[0].token_ids == chosen[1].token_ids
    assert chosen[0].cumulative_logprob == pytest.approx(chosen[1].cumulative_logprob, abs=0.1)


def test_of_stacked_layers_all_or_none_are_quantized(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source")
    restored = store_packed(source, tmp_path / "packed", 4, 32)
    tensors = load_file(tmp_path / "packed" / "model.safetensors")
    layer = "model.layers.0.self_attn.k_proj."
    for part in ("weight_packed", "weight_scale", "weight_shape"):
        del tensors[layer + part]
    tensors[layer + "weight"] = restored[layer + "weight"]
    save_file(tensors, tmp_path / "packed" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"q_proj.weight is quantized and .*k_proj.weight is not"):
        LLM(str(tmp_path / "packed"), device="cpu", num_kvcache_blocks=16)
