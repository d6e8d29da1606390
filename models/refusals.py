"""不能加载的东西，按“它是什么”来拒绝：一行话说出名字和补救办法。都写成表，加一种就是加一行。

你在这里：`config.py`、`registry.py` 和 `loader.py` 来问，得到一句话就抛出 `ModelLoadError`。

What cannot be loaded is refused by what it is: one line with its name and a remedy. It is all tables, and a further
kind is a further row.

You are here: `config.py`, `registry.py` and `loader.py` ask, and raise a `ModelLoadError` with the answer.
"""

import json
import re
from collections.abc import Collection, Mapping
from fnmatch import filter as matching
from pathlib import Path
from typing import Any

from models.checkpoint_formats import KEYS

Rows = tuple[tuple[str, str, str], ...]

_EMBEDS = "is an embedding model and writes no text: use sentence-transformers for it"
_CONVERT = "python -c \"from transformers import {0} as M; M.from_pretrained('{{0}}').save_pretrained('{{0}}')\""
# （有这样的文件，又没有那样的文件，那么它是什么、怎么办）；先是不看 `config.json` 就知道的。
# (a file like this, none like that, what it is then and what to do); first what shows without `config.json`.
FOREIGN: Rows = (
    ("adapter_config.json", "", "is an adapter (LoRA) of {1}, no whole model: merge it into that (peft: "
     "merge_and_unload, then save_pretrained)"),
    ("model_index.json", "config.json", "is a pipeline of diffusers and writes no text: use diffusers for it"),
    ("*.gguf", "*.safetensors", "holds GGUF, which is not read: take the model in safetensors, or use llama.cpp"),
    ("params.json", "config.json", "is in its makers' own format: download the version that has config.json"),
)  # fmt: skip
# 架构认得，却仍然不是能加载的语言模型。
# The architecture is known, and still it is no language model that could be loaded.
UNUSABLE: Rows = (
    ("modules.json", "", _EMBEDS),
    ("config_sentence_transformers.json", "", _EMBEDS),
    *((name, "tokenizer.json", f"has {name} but no tokenizer.json; convert: pip install sentencepiece protobuf; "
       f"{_CONVERT.format('AutoTokenizer')}") for name in ("tokenizer.model", "vocab.json")),
)  # fmt: skip
# 权重是量化过的，`config.json` 里却没有写。
# The weights are quantized, and `config.json` does not say so.
_UNTOLD = "weights that config.json does not tell of: copy it there as quantization_config, with quant_method"
UNTOLD: Rows = (
    ("quantize_config.json", "", f'holds GPTQ {_UNTOLD} "gptq"'),
    ("quant_config.json", "", f'holds AWQ {_UNTOLD} "awq"'),
)
# 没有能读的权重文件时，有的是什么。
# What there is where no weight file can be read.
WEIGHTS: Rows = (
    ("*.bin", "", "has pickle weights, and only safetensors are read: download model.safetensors, or convert: "
     f"{_CONVERT.format('AutoModelForCausalLM')}"),
    *((kind, "", f"has pickle weights ({kind[1:]}), and only safetensors are read: download model.safetensors, or "
       "convert: load them in transformers, then save_pretrained") for kind in ("*.pth", "*.pt", "*.ckpt")),
    ("", "", "has neither model.safetensors nor model.safetensors.index.json: download the model again "
     "(only safetensors are read, not .bin or .pth)"),
)  # fmt: skip

# （架构名里的片段，或 `config.json` 里的键，那么它是什么）；一个名字可以符合几行，先写的先算。
# (a piece of the architecture's name, or a key of `config.json`, what it is then); the first row that fits counts.
_KINDS = (
    (r"VL|Vision|Llava|Image|Pixtral", ("vision_config", "visual"), "a vision model"),
    (r"Whisper|Audio|Speech|Wav2Vec", ("audio_config",), "a speech model"),
    (r"Moe|MoE|Mixtral", ("num_experts", "num_local_experts", "n_routed_experts"), "a mixture of experts"),
    (r"Bart|T5|Marian|Pegasus|EncoderDecoder", ("encoder_layers", "is_encoder_decoder"), "an encoder-decoder model"),
    (r"Classification|Reward|QuestionAnswering", (), "a classifier"),
    (r"ForMaskedLM|Bert|Model$", (), "an encoder or embedding model"),
)

# 键 -> 这里支持的值，没写的键算作支持。若被忽略，模型照样能跑，只是输出不对，最难查。
# Key -> values supported here, and an absent key is fine. Ignored, each would run and give wrong output, hard to trace.
OPTIONS: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"), "partial_rotary_factor": (1.0,), "rope_interleaved": (False,),
    "is_causal": (True,), "use_bidirectional_attention": (False,), "is_encoder_decoder": (False,),
    "attn_logit_softcapping": (None,), "final_logit_softcapping": (None,),
}  # fmt: skip
ROPE_OPTIONS: dict[str, tuple[Any, ...]] = {
    "partial_rotary_factor": (1.0,), "extrapolation_factor": (1.0,), "apply_yarn_scaling": (True,),
    "mrope_section": (None,), "alpha": (None,),
}  # fmt: skip


def first_match(folder: Path, rows: Rows) -> str | None:
    """文件夹符合表里的哪一行，返回那句话；都不符合返回 None。

    The sentence of the first row that the folder fits, or None.
    """
    names = [path.name for path in folder.iterdir()]
    for present, absent, text in rows:
        if (not present or matching(names, present)) and not matching(names, absent):
            return f"{folder} {text.format(folder, _adapter_base(folder))}"
    return None


def _adapter_base(folder: Path) -> str:
    """适配器要合并进哪个模型。

    The model that an adapter is to be merged into.
    """
    try:
        return repr(json.loads((folder / "adapter_config.json").read_bytes())["base_model_name_or_path"])[:100]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return "another model"


def why_not(folder: Path, known: Collection[str]) -> str | None:
    """这个文件夹为什么不是能加载的模型：先看它是什么，再看架构；能加载，或毛病不在这里，返回 None。

    Why the folder is no model that we load: what it is, then its architecture; None if it is one, or if the fault lies
    elsewhere.
    """
    try:
        for path in folder.iterdir():
            # 管道和设备会让读取永远等下去，64 MB 以上的 JSON 会吃光内存，所以打开任何文件之前，先看一遍。
            # A pipe or a device makes a read wait for ever, over 64 MB of JSON eat up the memory: look at all before
            # any is opened.
            if not (path.is_file() or path.is_dir()) or (path.suffix == ".json" and path.stat().st_size > 1 << 26):
                return f"{folder}: {path.name!r} is a pipe, a device, a broken link or too large: download it again"
        if reason := first_match(folder, FOREIGN):
            return reason
        raw = json.loads((folder / "config.json").read_bytes())
        name = raw["architectures"][0]
        if isinstance(name, str) and name not in known:
            return unknown_architecture(name, raw, known)
    # 读不了、写错了的 `config.json`，由 `load_config` 来说。
    # A `config.json` that is unreadable or ill-formed is for `load_config` to tell.
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return first_match(folder, UNUSABLE if any(raw.get(key) for key in KEYS) else UNUSABLE + UNTOLD)


def unknown_architecture(name: str, raw: Mapping[str, Any], known: Collection[str]) -> str:
    """不认识的架构：叫什么、是哪一类、认识哪些。

    An unknown architecture: its name, its kind, and which are known.
    """
    found = {key for key, value in raw.items() if value not in (None, False, 0)}
    what = next((f" ({kind})" for pattern, keys, kind in _KINDS if re.search(pattern, name) or found & {*keys}), "")
    return f"unknown architecture {name!r:.60}{what}: supported are {', '.join(known)}; use transformers for it"


def unsupported_option(values: Mapping[str, Any], options: Mapping[str, tuple[Any, ...]]) -> str | None:
    """会改变计算结果而这里没有实现的选项：宁可报错，也不装作没看见。

    An option that would change the result and is not implemented: an error is better than looking away.
    """
    for key, supported in options.items():
        if values.get(key, supported[0]) not in supported:
            return f"{key}={values[key]!r:.60} is not supported: only {supported[0]!r} is; use transformers for it"
    return None
