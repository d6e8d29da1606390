"""模型与 `transformers` 的比较：每种架构的随机小模型，以及内置模型。
Models against `transformers`: random small models of every architecture, and the embedded model.

判据：以 `transformers` 的 float64 为准，我们的 float32 logits 的误差不超过它自己的 float32 的 3 倍。
The judge is a float64 run of `transformers`: our float32 error is at most 3 times that of its own float32 run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EMBEDDED_MODEL, LLAMA3_SCALING, make_hf_model, read_config
from torch import Tensor, nn

from backends import create_backend, create_kernels
from backends.base import AttentionMetadata
from backends.kv_cache import KVCache
from models.config import load_config
from models.llama import LlamaForCausalLM
from models.loader import load_weights, materialize, randomize_weights
from models.registry import MODEL_REGISTRY, create_model

pytestmark = pytest.mark.usefixtures("one_thread")

BLOCK_SIZE = 8
# 绝对下限：`transformers` 自己恰好几乎没有误差时，不要求我们也恰好没有。
# An absolute floor: where transformers happens to have almost no error, ours need not happen to have none.
FLOOR = 1e-7


def load(folder: Path, backend: str = "sdpa", dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """不经过引擎，直接读一个模型文件夹；核函数也像引擎那样交给它。
    Read a model folder without the engine; the kernels are handed to it as the engine does.
    """
    config, chosen = load_config(folder), create_backend(backend, "cpu")
    model = create_model(config, chosen)
    materialize(model, dtype, chosen.device)
    load_weights(model, folder)
    kernels = create_kernels(chosen, config.head_dim, dtype)
    assert (kernels is None) == (backend == "torch")
    if kernels is not None:
        model.use_kernels(kernels)
    return model


class Runner:
    """一条序列，一张打乱了次序的块表，一个写满 NaN 的缓存：引擎最小的替身。
    One sequence, a table of shuffled blocks, a cache full of NaN: the smallest stand-in for the engine.
    """

    def __init__(self, model: LlamaForCausalLM, max_tokens: int, positions: Tensor | None = None) -> None:
        self.model, self.length = model, 0
        self.positions = torch.arange(max_tokens) if positions is None else positions
        num_blocks = -(-max_tokens // BLOCK_SIZE)
        self.table = torch.randperm(num_blocks + 2, generator=torch.Generator().manual_seed(5))[:num_blocks].int()
        for layer in model.attention_layers():
            config = model.config
            shape = (num_blocks + 2, BLOCK_SIZE, config.num_key_value_heads, config.head_dim)
            dtype = model.lm_head.weight.dtype
            layer.kv_cache = KVCache(*(torch.full(shape, float("nan"), dtype=dtype) for _ in range(2)))

    def forward(self, token_ids: list[int]) -> Tensor:
        """接着上次的位置算下去；1 个 token 走解码的路，多个走预填充的路。
        Continue after the last position; 1 token takes the decode path, more take the prefill path. [T, vocab]
        """
        start, count = self.length, len(token_ids)
        self.length = end = start + count
        decodes = int(count == 1)
        places = torch.arange(start, end)
        table = self.table[None, : -(-end // BLOCK_SIZE)]
        metadata = AttentionMetadata(
            num_decodes=decodes,
            slot_mapping=self.table.long()[places // BLOCK_SIZE] * BLOCK_SIZE + places % BLOCK_SIZE,
            decode_block_tables=table[:decodes],
            cache_seqlens=torch.tensor([end] * decodes, dtype=torch.int32),
            prefill_block_tables=table[decodes:],
            cu_seqlens_q=torch.tensor([0] if decodes else [0, count], dtype=torch.int32),
            cu_seqlens_k=torch.tensor([0] if decodes else [0, end], dtype=torch.int32),
            max_seqlen_q=0 if decodes else count,
            max_seqlen_k=0 if decodes else end,
            block_size=BLOCK_SIZE,
        )
        metadata.plan = self.model.attention_layers()[0].backend.prepare(metadata)
        with torch.inference_mode():
            hidden = self.model(torch.tensor(token_ids), self.positions[start:end], metadata)
            return self.model.compute_logits(hidden)


def run(
    model: LlamaForCausalLM, token_ids: list[int], chunk: int | None = None, positions: Tensor | None = None
) -> Tensor:
    """整段、分块（`chunk` 个一块）或逐个 token 地算出全部 logits。
    All logits: in one piece, in chunks of `chunk`, or token by token. [T, vocab]
    """
    runner = Runner(model, len(token_ids), positions)
    size = chunk or len(token_ids)
    return torch.cat([runner.forward(token_ids[i : i + size]) for i in range(0, len(token_ids), size)])


def load_hf(folder: Path, dtype: torch.dtype) -> nn.Module:
    """`transformers` 的模型；它的 RMSNorm 总在 float32 里算，求真值时换成 float64 的公式。
    The model of `transformers`; its RMSNorm always computes in float32, so for the truth the formula in float64.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()
    if dtype == torch.float64:
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = exact_rms_norm(module)
    return model


def exact_rms_norm(module: nn.Module) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        return module.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)

    return forward


def run_hf(model: nn.Module, token_ids: list[int], positions: Tensor | None = None) -> Tensor:
    """给出全 1 的掩码：否则 `transformers` 会把跳跃的位置当成几条拼在一起的序列。
    A mask of ones: else `transformers` takes jumps between positions for several sequences packed together.
    """
    ids = torch.tensor([token_ids])
    positions = torch.arange(len(token_ids)) if positions is None else positions
    with torch.inference_mode():
        return model(ids, position_ids=positions[None], attention_mask=torch.ones_like(ids)).logits[0]


def error(actual: Tensor, truth: Tensor) -> float:
    return float((actual.double() - truth).norm() / truth.norm())


def assert_as_good_as_transformers(folder: Path, token_ids: list[int], positions: Tensor | None = None) -> None:
    """两个后端，整段、分块、逐个：误差都不超过 `transformers` 的 3 倍。
    Both backends; whole, in chunks, one by one: each error at most 3 times that of `transformers`.
    """
    truth = run_hf(load_hf(folder, torch.float64), token_ids, positions)
    assert truth.dtype == torch.float64
    theirs = error(run_hf(load_hf(folder, torch.float32), token_ids, positions), truth)
    assert theirs < 1e-2
    for backend in ("torch", "sdpa"):
        model = load(folder, backend)
        for chunk in (None, 5, 1):
            logits = run(model, token_ids, chunk, positions)
            assert logits.dtype == torch.float32
            assert logits.shape == truth.shape
            ours = error(logits, truth)
            assert ours <= 3 * theirs + FLOOR, f"{backend}, chunk {chunk}: {ours:.2e} against {theirs:.2e}"


def save_model(folder: Path, architecture: str = "llama", max_shard_size: str = "5GB", **overrides: Any) -> Path:
    """存一个随机小模型；偏置也填上随机数，否则漏掉它也看不出来。
    Save a small random model; biases get random values too, or leaving them out would not show.
    """
    options = {"vocab_size": 320, "hidden_size": 48, "intermediate_size": 80, **overrides}
    model = make_hf_model(architecture, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.uniform_(-1.0, 1.0)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def random_tokens(count: int, vocab_size: int = 320, seed: int = 1) -> list[int]:
    return torch.randint(vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def rope(factor: float | None = None, theta: float = 500000.0) -> dict[str, Any]:
    scaling = {**LLAMA3_SCALING, "factor": factor} if factor else {"rope_type": "default"}
    return {"rope_theta": theta, **scaling}


LONG = {"max_position_embeddings": 131072}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama tied": {},
    "llama untied": {"tie_word_embeddings": False},
    "llama scaled 32": {**LONG, "rope_parameters": rope(32.0)},
    "llama scaled 8 untied": {**LONG, "rope_parameters": rope(8.0), "tie_word_embeddings": False},
    "llama theta": {"rope_parameters": rope(None)},
    "llama head_dim": {"head_dim": 32},
    "llama ratio 3": {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8},
    "llama one kv head": {"num_key_value_heads": 1},
    "llama no groups": {"num_key_value_heads": 4, "rms_norm_eps": 1e-3},
    "llama biases": {"attention_bias": True, "mlp_bias": True},
    "llama shards": {"max_shard_size": "60KB", "num_hidden_layers": 3},
    "mistral": {"architecture": "mistral", "tie_word_embeddings": False, "sliding_window": None},
    "mistral head_dim": {"architecture": "mistral", "head_dim": 32, "sliding_window": None, "num_key_value_heads": 1},
    "qwen2 tied": {"architecture": "qwen2"},
    "qwen2 untied": {"architecture": "qwen2", "tie_word_embeddings": False, "rope_parameters": rope(None, 1e6)},
    "qwen2 shards": {"architecture": "qwen2", "max_shard_size": "60KB", "tie_word_embeddings": False},
    "qwen3 tied": {"architecture": "qwen3"},
    "qwen3 untied": {"architecture": "qwen3", "tie_word_embeddings": False},
    "qwen3 ratio 3": {"architecture": "qwen3", "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32},
    "qwen3 scaled": {"architecture": "qwen3", **LONG, "rope_parameters": rope(32.0)},
    "qwen3 bias": {"architecture": "qwen3", "attention_bias": True, "rope_parameters": rope(None, 1e6)},
    "qwen3 shards": {"architecture": "qwen3", "max_shard_size": "60KB", "tie_word_embeddings": False},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_random_models(tmp_path: Path, variant: str) -> None:
    folder = save_model(tmp_path / "model", **VARIANTS[variant])
    shards = len(list(folder.glob("*.safetensors")))
    assert (shards > 2) == ("shards" in variant)
    assert_as_good_as_transformers(folder, random_tokens(21))


# 旋转只与距离有关，所以光把整段挪远还不够，token 之间也要隔得远。
# Rotation depends on distances alone: moving the whole run is not enough, tokens have to stand far apart as well.
FAR = torch.tensor([0, 1, 2, 3, 700, 2047, 2048, 5000, 8190, 8191, 8192, 8193, 16384, 40000, 65536, 99999, 131071])
POSITIONS = {"across 8192": torch.arange(8180, 8197), "at the limit": torch.arange(131055, 131072), "far apart": FAR}


@pytest.mark.parametrize("where", POSITIONS)
@pytest.mark.parametrize("variant", ["llama scaled 32", "llama scaled 8 untied", "qwen3 scaled", "qwen3 bias"])
def test_positions_beyond_8192(tmp_path: Path, variant: str, where: str) -> None:
    folder = save_model(tmp_path / "model", **{**VARIANTS[variant], **LONG})
    assert_as_good_as_transformers(folder, random_tokens(17), POSITIONS[where])


@pytest.mark.parametrize("changed", [{"factor": 8.0}, {"low_freq_factor": 2.0}, {"rope_theta": 10000.0}, None], ids=str)
def test_scaling_matters_for_the_logits(tmp_path: Path, changed: dict[str, Any] | None) -> None:
    # 若缩放的某个参数被忽略，上面的比较必须能看出来。
    # If a parameter of the scaling were ignored, the comparison above has to show it.
    folder = save_model(tmp_path / "model", **{**VARIANTS["llama scaled 32"], "head_dim": 64})
    token_ids = random_tokens(17)
    scaled = run(load(folder), token_ids, positions=FAR)
    config = read_config(folder)
    config["rope_parameters"] = {**rope(32.0), **changed} if changed else rope(None)
    (folder / "config.json").write_text(json.dumps(config))
    assert error(run(load(folder), token_ids, positions=FAR), scaled.double()) > 3e-2


@pytest.mark.parametrize("variant", ["llama scaled 32", "llama theta", "qwen3 bias"])
def test_both_spellings_of_the_configuration(tmp_path: Path, variant: str) -> None:
    folder = save_model(tmp_path / "model", **VARIANTS[variant])
    token_ids = random_tokens(21)
    config = read_config(folder)
    newer = load_config(folder)
    logits = run(load(folder), token_ids)
    # transformers 5 写出的就是较新的写法。
    # What transformers 5 writes is the newer spelling.
    parameters = config.pop("rope_parameters")
    assert "dtype" in config and "rope_theta" not in config
    config["torch_dtype"] = config.pop("dtype")
    config["rope_theta"] = parameters.pop("rope_theta")
    for scaling in (parameters, {**parameters, "type": parameters["rope_type"]}):
        plain = parameters["rope_type"] == "default"
        config["rope_scaling"] = None if plain else scaling
        (folder / "config.json").write_text(json.dumps(config))
        assert load_config(folder) == newer
    assert torch.equal(run(load(folder), token_ids), logits)
    assert_as_good_as_transformers(folder, token_ids)


def test_type_without_rope_type_is_an_old_spelling_too(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", **VARIANTS["llama scaled 32"])
    newer, config = load_config(folder), read_config(folder)
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    config["rope_scaling"] = {**parameters, "type": parameters.pop("rope_type")}
    del config["rope_scaling"]["rope_type"]
    (folder / "config.json").write_text(json.dumps(config))
    assert load_config(folder) == newer
    assert newer.rope_scaling is not None and newer.rope_scaling.factor == 32.0


def assert_greedy_tokens_equal(folder: Path, prompt: list[int], count: int) -> None:
    """贪心的 token 与 `transformers` 相同；若分开，当时前两名的分数必须相差不到 1e-3。
    Greedy tokens equal those of `transformers`, or first part where the top two scores differ by less than 1e-3.
    """
    hf, runner, tokens = load_hf(folder, torch.float32), Runner(load(folder), len(prompt) + count), list(prompt)
    ours = runner.forward(prompt)[-1]
    for _ in range(count):
        theirs = run_hf(hf, tokens)[-1]
        if int(ours.argmax()) != int(theirs.argmax()):
            first, second = theirs.topk(2).values.tolist()
            assert first - second < 1e-3
            return
        tokens.append(int(ours.argmax()))
        ours = runner.forward(tokens[-1:])[-1]


@pytest.mark.parametrize("variant", ["llama scaled 32", "llama ratio 3", "qwen3 tied"])
def test_greedy_tokens(tmp_path: Path, variant: str) -> None:
    folder = save_model(tmp_path / "model", **VARIANTS[variant])
    for seed, length in enumerate((1, BLOCK_SIZE, 13)):
        assert_greedy_tokens_equal(folder, random_tokens(length, seed=seed), 20)


def embedded_prompts() -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    return [
        tokenizer.encode(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            ),
            add_special_tokens=False,
        )
        for text in ("What is 23 + 45?", "什么是前缀缓存？")
    ]


def test_embedded_model() -> None:
    for prompt in embedded_prompts():
        assert_as_good_as_transformers(EMBEDDED_MODEL, prompt)


def test_embedded_model_beyond_8192() -> None:
    prompt = embedded_prompts()[0]
    positions = torch.arange(len(prompt)) * 1009
    assert int(positions[-1]) > 8192
    assert_as_good_as_transformers(EMBEDDED_MODEL, prompt, positions)


def test_embedded_model_greedy_tokens() -> None:
    for prompt in embedded_prompts():
        assert_greedy_tokens_equal(EMBEDDED_MODEL, prompt, 24)


def test_embedded_model_is_what_its_card_says() -> None:
    config = load_config(EMBEDDED_MODEL)
    assert config.architecture == "LlamaForCausalLM"
    assert config.dtype == torch.bfloat16
    assert config.tie_word_embeddings and config.rope_scaling is not None
    assert config.num_attention_heads > config.num_key_value_heads
    assert len(config.eos_token_ids) > 1
    files = list(EMBEDDED_MODEL.glob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) <= 10 * 2**20


# ---- details ----


def test_a_bfloat16_model_stays_bfloat16_to_the_logits(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", **VARIANTS["llama scaled 32"])
    token_ids = random_tokens(21)
    truth = run_hf(load_hf(folder, torch.float64), token_ids)
    model = load(folder, dtype=torch.bfloat16)
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    assert model.model.rotary.inv_freq.dtype == torch.float32
    logits = run(model, token_ids)
    theirs = error(run_hf(load_hf(folder, torch.bfloat16), token_ids), truth)
    assert logits.dtype == torch.bfloat16
    assert error(logits, truth) <= 2 * theirs


def test_logits_of_chosen_rows_only(tmp_path: Path) -> None:
    model = load(save_model(tmp_path / "model"))
    hidden = torch.randn(7, 48)
    whole = model.compute_logits(hidden)
    torch.testing.assert_close(model.compute_logits(hidden[[6, 2]]), whole[[6, 2]], rtol=1e-5, atol=1e-5)


def test_attention_layers_come_in_order(tmp_path: Path) -> None:
    model = load(save_model(tmp_path / "model", num_hidden_layers=12))
    expected = [layer.self_attn.attn for layer in model.model.layers]
    assert len(expected) == 12
    assert all(a is b for a, b in zip(model.attention_layers(), expected))


def test_every_registered_model_has_a_test_above() -> None:
    tested = {name.split()[0] for name in VARIANTS}
    assert tested == {name.removesuffix("ForCausalLM").lower() for name in MODEL_REGISTRY}


def test_random_weights_are_reproducible(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "qwen3")
    models = [create_model(load_config(folder), create_backend("sdpa", "cpu")) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1)):
        materialize(model, torch.float32, torch.device("cpu"))
        randomize_weights(model, seed)
    same, other = ([*models[1].parameters()], [*models[2].parameters()])
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), same))
    assert not all(torch.equal(a, b) for a, b in zip(models[0].parameters(), other))
    assert run(models[0], random_tokens(9)).isfinite().all()
