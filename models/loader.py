"""把 safetensors 里的权重填进模型：每个张量都要有去处，每个参数都要被填满，形状都要相符。

只读 safetensors，不读 pickle：后者在加载时能执行任意代码。

Fill the model from safetensors: every tensor must have a place, every parameter must be filled, every shape must fit.

Only safetensors are read, never pickle, which can run any code while loading.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from layers.linear import FusedLinear
from models.config import ModelLoadError, read_json
from models.llama import LlamaForCausalLM

_INDEX_FILE = "model.safetensors.index.json"
_SINGLE_FILE = "model.safetensors"


def shard_files(folder: Path) -> list[Path]:
    """权重文件的列表：一个文件，或索引里列出的若干分片。

    The weight files: a single one, or the shards that the index lists.

    Raises:
        ModelLoadError: none there, a shard missing, or a shard name that leaves the folder
    """
    if not (folder / _INDEX_FILE).exists():
        if not (folder / _SINGLE_FILE).exists():
            raise ModelLoadError(
                f"{folder} has neither {_SINGLE_FILE} nor {_INDEX_FILE}: download the model again "
                "(only safetensors are read, not .bin or .pth)"
            )
        return [folder / _SINGLE_FILE]
    weight_map = read_json(folder / _INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelLoadError(f"{folder / _INDEX_FILE}: weight_map must be an object that names the shards")
    names = set(weight_map.values())
    for name in names:
        # 索引是外来数据：“../../别处”这样的名字会读到文件夹外面去，只接受单纯的文件名。
        # The index is foreign data: a name such as "../../elsewhere" would leave the folder; plain names only.
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelLoadError(f"{folder / _INDEX_FILE}: shard name {name!r} is not a plain file name")
        if not (folder / name).exists():
            raise ModelLoadError(f"{folder / name} is missing: {_INDEX_FILE} lists it; download it again")
    return [folder / name for name in sorted(names)]


def weight_targets(model: nn.Module) -> dict[str, Tensor]:
    """文件里的张量名 -> 它该填入的位置（参数本身，或融合参数的一段）。

    The tensor name in the file -> where it goes: a parameter, or a slice of a fused one.
    """
    targets: dict[str, Tensor] = dict(model.named_parameters())
    for module_name, module in model.named_modules():
        if not isinstance(module, FusedLinear):
            continue
        # 例：`self_attn.qkv_proj` 由 `self_attn.q_proj`、`self_attn.k_proj`、`self_attn.v_proj` 拼成。
        # Example: `self_attn.qkv_proj` is made of `self_attn.q_proj`, `self_attn.k_proj` and `self_attn.v_proj`.
        parent = module_name.rpartition(".")[0]
        for kind, parameter in list(module.named_parameters(recurse=False)):
            del targets[f"{module_name}.{kind}"]
            for piece, rows in module.pieces.items():
                targets[f"{parent}.{piece}.{kind}"] = parameter[rows]
    return targets


def _iterate_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """逐个读出一个文件里的张量，读完一个再读下一个，内存里不会同时有整份权重的两份拷贝。

    Read one file's tensors one by one, so that memory never holds all weights twice.
    """
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ModelLoadError(f"{path} is truncated or corrupt ({error}): download it again") from None


def _fill(name: str, target: Tensor, tensor: Tensor) -> None:
    """检查形状和类型，再复制；dtype 不同时 `copy_` 会转换。

    Check shape and kind, then copy; `copy_` converts the dtype.
    """
    if tensor.shape != target.shape:
        raise ModelLoadError(
            f"tensor {name} has shape {list(tensor.shape)}, the model needs {list(target.shape)}: "
            "config.json and the weights do not belong together"
        )
    if tensor.dtype not in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        raise ModelLoadError(f"tensor {name} has dtype {tensor.dtype}: only floating-point weights are supported")
    target.copy_(tensor)


def load_weights(
    model: LlamaForCausalLM, folder: Path, on_progress: Callable[[int, int], None] | None = None
) -> None:
    """把文件夹里的权重全部填进模型。

    Fill the model with all weights of the folder.

    Args:
        on_progress: called with (tensors loaded, tensors in all) after each tensor

    Raises:
        ModelLoadError: a tensor is missing, unexpected, wrongly shaped, or a file is damaged
    """
    targets = weight_targets(model)
    loaded: set[str] = set()
    for path in shard_files(folder):
        for name, tensor in _iterate_tensors(path):
            # 共用权重的模型有时也存了一份 `lm_head.weight`，它和词嵌入是同一个参数。
            # A tied model may store `lm_head.weight` as well; it is the same parameter as the embedding.
            if name == "lm_head.weight" and model.config.tie_word_embeddings:
                name = "model.embed_tokens.weight"
            # 旧的权重文件会带上 RoPE 的频率表；它由配置算出，不需要读。
            # Old files carry RoPE's frequencies; they follow from the configuration and are not read.
            if name.endswith("rotary_emb.inv_freq"):
                continue
            if name not in targets:
                raise ModelLoadError(f"unexpected tensor {name} {list(tensor.shape)} in {path.name}: wrong model?")
            # 同一个参数出现两次时，两份内容必须相同，否则不知道该信哪一份。
            # Where a parameter comes twice, both must be equal, or nobody knows which to believe.
            if name in loaded and not torch.equal(targets[name], tensor.to(targets[name])):
                raise ModelLoadError(f"{name} is stored twice with different values: config.json or the file is wrong")
            _fill(name, targets[name], tensor)
            loaded.add(name)
            if on_progress:
                on_progress(len(loaded), len(targets))
    missing = sorted(targets.keys() - loaded)
    if missing:
        shape = list(targets[missing[0]].shape)
        raise ModelLoadError(
            f"{len(missing)} tensors are missing in {folder}, first {missing[0]} {shape}: download the model again"
        )
