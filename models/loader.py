"""把 safetensors 里的权重填进模型：每个张量都要有去处，每个参数都要被填满，形状都要相符。

只读 safetensors，不读 pickle：后者在加载时能执行任意代码。

Fill the model from safetensors: every tensor must have a place, every parameter must be filled, every shape must fit.

Only safetensors are read, never pickle, which can run any code while loading.
"""

import json
import math
import re
from collections.abc import Callable, Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from backends.quantized_weight import QuantizedWeight
from layers.linear import StackedLinear
from models.checkpoint_formats import CheckpointFormat, Stored
from models.fields import ModelLoadError, read_json
from models.llama import LlamaForCausalLM
from models.refusals import WEIGHTS, first_match
from models.shares import cut, undivided

# Hugging Face 的固定文件名：小模型一个文件，大模型切成几片，由索引说明哪个张量在哪一片。
# Hugging Face's fixed names: a small model is one file, a large one several shards, and the index says what lies where.
#     {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors", ...}}
_INDEX_FILE = "model.safetensors.index.json"
_SINGLE_FILE = "model.safetensors"
# safetensors 的浮点类型；整数权重是量化过的，缺了缩放因子就没有意义，`copy_` 却会照样把它们转成浮点数。
# The floating-point types of safetensors; integer weights are quantized and mean nothing without their scales, yet
# `copy_` would turn them into floats.
_FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float32}
# 旧的权重文件里由配置就能算出的表，不需要读，transformers 也不读。
# Tables in old files that follow from the configuration; neither we nor transformers read them.
_DERIVED = re.compile(r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$|\.masked_bias$")
_OTHER = "config.json belongs to another model, download both again"


def shard_files(folder: Path) -> list[Path]:
    """权重文件的列表：一个文件，或索引里列出的若干分片。

    The weight files: a single one, or the shards that the index lists.

    Raises:
        ModelLoadError: 没有权重、缺分片，或分片名指到文件夹之外；no weights, a missing shard, or one outside the folder
    """
    # 两种都有时用单个文件，与 transformers 相同：同一个文件夹，两边读到的是同一份权重。
    # Where both exist the single file is taken, as in transformers: the same folder gives both the same weights.
    if (folder / _SINGLE_FILE).exists():
        return [folder / _SINGLE_FILE]
    index = folder / _INDEX_FILE
    if not index.exists():
        raise ModelLoadError(str(first_match(folder, WEIGHTS)))
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelLoadError(f"{index}: weight_map must be an object that names the shards")
    # 先逐个检查，最后才取集合：值若是列表，`set` 会抛出 `TypeError`，用户就看不到下面那句说明。
    # Check one by one and build the set last:
    # for a list as a value `set` raises `TypeError`, and the message below is lost.
    names, present = list(weight_map.values()), {path.name for path in folder.iterdir()}
    for name in names:
        # 索引是外来数据：“../../别处”这样的名字会读到文件夹外面去，只接受单纯的文件名。
        # The index is foreign data: a name such as "../../elsewhere" would leave the folder; plain names only.
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelLoadError(f"{index}: shard name {name!r:.100} is no plain file name that ends in .safetensors")
        if name not in present:
            raise ModelLoadError(f"{folder}: {name!r:.100} is missing: {_INDEX_FILE} lists it; download it again")
    # 几百个张量只在几片里，取集合，每片只读一次；排序让每次加载的次序都相同。
    # Hundreds of tensors lie in a few shards: the set reads each shard once,
    # the sort makes every load go in the same order.
    return [folder / name for name in sorted(set(names))]


def read_headers(folder: Path, packing: CheckpointFormat | None = None) -> dict[str, Stored]:
    """只读各个文件的头：有哪些张量，什么形状，什么类型；给了 `packing`，量化过的层就只有一项 `X.weight`。

    Read the headers of the files only: which tensors there are, of what shapes and types; with `packing` a layer that
    is stored quantized is a single entry, `X.weight`.

    Raises:
        ModelLoadError: 文件缺失或损坏，或两个文件里有同一个张量；a missing or damaged file, or a tensor in two files
    """
    stored: dict[str, Stored] = {}
    for path in shard_files(folder):
        try:
            with path.open("rb") as file:
                # 几千个张量的头也不到 1 MB；再大，光是解析就要占满内存。
                # The header of thousands of tensors is below 1 MB; far larger ones fill the memory by being parsed.
                if (length := int.from_bytes(file.read(8), "little")) > 1 << 24:
                    raise ValueError(f"a header of {length} bytes")
                # 打开就是检查：每个张量的字节区间（不重叠、不留空）和文件的大小，都由库来核对。
                # To open is to check: the library compares the byte ranges (no overlap, no gap) and the file's size.
                with safe_open(str(path), framework="pt", device="cpu"):
                    header = json.loads(file.read(length), object_pairs_hook=list)
        except (SafetensorError, OSError, ValueError, RecursionError) as error:
            raise ModelLoadError(f"{path} is truncated or corrupt ({error!s:.120}): download it again") from None
        # 读成列表而不是字典：同一个名字写两遍，字典里后一个会悄悄盖住前一个。
        # A list and no dict: in a dict a name's second entry would quietly hide the first.
        for name, entry in header:
            if name in stored:
                raise ModelLoadError(f"{path} holds {name!r:.60}, and so does {stored[name][0]}: download it again")
            if name != "__metadata__":
                stored[name] = path.name, dict(entry)["shape"], dict(entry)["dtype"]
    return packing.fold(stored) if packing else stored


def stored_dtype(folder: Path) -> torch.dtype:
    """`config.json` 没写 dtype 时，以最大的那个张量为准。

    The dtype where `config.json` names none: that of the largest tensor.
    """
    floats = [stored for stored in read_headers(folder).values() if stored[2] in _FLOATS]
    return _FLOATS[max(floats, key=lambda stored: math.prod(stored[1]), default=("", [], "F32"))[2]]


def weight_targets(model: nn.Module) -> dict[str, Any]:
    """文件里的张量名 -> 它该填入的位置（参数本身，或拼接参数的一段）。

    The tensor name in the file -> where it goes: a parameter, or a slice of a stacked one.
    """
    # 一张核对清单：文件里的名字 -> 目的地。装完后清单上每一项都要打勾，多一个、少一个都是错误。
    # A checklist: name in the file -> destination.
    # In the end every item must be ticked; one too many or too few is an error.
    targets: dict[str, Any] = dict(model.named_parameters())
    for module_name, module in model.named_modules():
        # 量化的权重不是参数，要自己登记；输出头可能与词嵌入共用一个，只登记一次。
        # A quantized weight is no parameter and is entered here, once: the head may share the embedding's.
        weight = getattr(module, "weight", None)
        if isinstance(weight, QuantizedWeight) and all(weight is not each for each in targets.values()):
            targets[f"{module_name}.weight"] = weight
        if not isinstance(module, StackedLinear):
            continue
        # 例：`self_attn.qkv_proj` 由 `self_attn.q_proj`、`self_attn.k_proj`、`self_attn.v_proj` 拼成。
        # Example: `self_attn.qkv_proj` is made of `self_attn.q_proj`, `self_attn.k_proj` and `self_attn.v_proj`.
        parent = module_name.rpartition(".")[0]
        # `kind` 是 `weight`，有偏置时还有 `bias`；偏置同样按行拼接。
        # `kind` is `weight`, and `bias` where there is one; biases are joined by rows as well.
        for kind in ("weight", "bias"):
            if (parameter := targets.pop(f"{module_name}.{kind}", None)) is None:
                continue
            for piece, rows in module.pieces.items():
                # 切片是视图，不是拷贝：往里 `copy_` 就直接写进了拼接的权重。1B 的 `k_proj` 对应 2048 到 2559 行。
                # A slice is a view and no copy: `copy_` into it writes the stacked weight itself.
                # In the 1B, `k_proj` is rows 2048 to 2559.
                targets[f"{parent}.{piece}.{kind}"] = parameter[rows]  # [rows, in_features]
    return targets


def materialize(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """给架子分配内存，参数按指名的 `dtype` 和设备；内容还是垃圾值，由 `load_weights` 填。

    Allocate the frame: parameters in the `dtype` and on the device that are named, still full of garbage for
    `load_weights` to fill.
    """
    # 不借用 torch 的默认 dtype：那是整个进程的设置，别人的代码会跟着变。
    # torch's default dtype is left alone: it belongs to the whole process, and other code would change with it.
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, old in module.named_parameters(recurse=False):
            # 共用的权重（词嵌入与输出头）只分配一次，之后仍是同一个对象。
            # A shared weight, of embedding and head, is allocated once and stays one object.
            if old not in made:
                empty = torch.empty(old.shape, dtype=dtype, device=device)
                made[old] = nn.Parameter(empty, requires_grad=False)
            setattr(module, name, made[old])
        if isinstance(weight := getattr(module, "weight", None), QuantizedWeight):
            weight.materialize(dtype, device)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def model_names(names: Collection[str], tied: bool = False) -> dict[str, str]:
    """文件里的名字 -> 模型里的名字。

    有的文件夹只存主干（没有 `model.` 前缀），有的带着外层的前缀（`language_model.model.`）：
    词嵌入的名字说明前缀是什么，其余的都要与之一致。

    The name in the file -> the name in the model. Some folders hold the trunk only (without the prefix `model.`), some
    have an outer prefix (`language_model.model.`): the name of the embedding tells it, and all others must agree.
    """
    embedding = next((name for name in names if name.endswith("embed_tokens.weight")), "model.embed_tokens.weight")
    trunk = embedding.removesuffix("embed_tokens.weight")
    # 共用权重的模型有时也存了一份 `lm_head.weight`，它和词嵌入是同一个参数。
    # A tied model may store `lm_head.weight` as well; it is the same parameter as the embedding.
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    places = {trunk.removesuffix("model.") + "lm_head.weight": head}
    for name in names:
        if not _DERIVED.search(name):
            places.setdefault(name, "model." + name.removeprefix(trunk) if name.startswith(trunk) else name)
    return {name: place for name, place in places.items() if name in names}


def check_weights(model: LlamaForCausalLM, folder: Path) -> dict[str, str]:
    """用文件头核对：每个张量都有去处，形状相符，一个也不少；此时还没有分配内存，也没有读权重。

    Check against the headers: every tensor has a place and fits it, and none is missing. No memory has been taken yet
    and no weight been read.

    Returns:
        文件里的名字 -> 该填入的位置，同 `weight_targets`；name in the file -> its place, as in `weight_targets`

    Raises:
        ModelLoadError: 张量缺失、多余、形状不对，或文件损坏；a missing, unexpected or misshapen tensor, a damaged file
    """
    stored, targets = read_headers(folder, model.config.packing), weight_targets(model)
    places, shapes = model_names(stored, model.config.tie_word_embeddings), weight_targets(undivided(model))
    for name, place in places.items():
        file, shape, dtype = stored[name]
        what = f"tensor {name!r:.100}"
        # 多余的张量也是错误：例如带 `q_norm` 的 Qwen3 权重配上 Llama 的配置，跳过它就会输出错的结果。
        # A tensor too many is an error too: Qwen3 weights with `q_norm` under a Llama configuration would compute wrong
        # results if it were skipped.
        if place not in targets:
            # 有些 GPTQ 文件给没有偏置的层也存了偏置，全是零；是不是零，读的时候再看。
            # Some GPTQ files store a bias of zeros for layers that have none; whether it is shows once it is read.
            if place.endswith(".bias") and stored.get(f"{name[:-4]}weight", "  ")[2].startswith("int"):
                continue
            raise ModelLoadError(f"unexpected {what} {shape!s:.60} in {file}: {_OTHER}")
        # 必须自己比形状：`copy_` 会广播，一个 [1] 的张量会悄悄填满整个 [2048] 的参数。
        # Compare shapes ourselves: `copy_` broadcasts, and a tensor of [1] would quietly fill a parameter of [2048].
        needed = list(shapes[place].shape)
        if shape != needed:
            raise ModelLoadError(f"{what} has shape {shape!s:.60}, the model needs {needed}: {_OTHER}")
        if dtype not in (*_FLOATS, f"int{getattr(targets[place], 'bits', 0)}"):
            raise ModelLoadError(f"{what} has dtype {dtype}: only floating-point weights are supported")
    # 没填的参数里是 `torch.empty` 的垃圾值，模型能跑，却在胡说：所以少一个就整个失败。
    # An unfilled parameter holds what `torch.empty` left: the model would run and talk nonsense, so any gap fails the
    # load.
    if missing := sorted(targets.keys() - places.values()):
        first = f"{missing[0]} {list(shapes[missing[0]].shape)}"
        tie = "set tie_word_embeddings to true, or " if missing == ["lm_head.weight"] else ""
        raise ModelLoadError(
            f"{len(missing)} tensors are missing in {folder}, first {first}: {tie}download the model again"
        )
    return places


def _iterate_tensors(
    folder: Path, names: Collection[str], packing: CheckpointFormat | None
) -> Iterator[tuple[str, Any]]:
    """逐个读出张量，读完一个再读下一个，内存里不会同时有整份权重的两份拷贝；量化过的层，几个张量合成一个。

    Read tensors one by one, so that memory never holds all weights twice; the several tensors of a layer that is stored
    quantized become one.
    """
    stored = read_headers(folder)
    folded = packing.fold(stored) if packing else stored
    # 每个文件只打开一次：打开就要解析整个文件头，几百个张量不该各解析一遍。
    # A file is opened once: opening parses its whole header, and hundreds of tensors should not each do so.
    opened = cache(lambda path: safe_open(str(path), framework="pt", device="cpu"))

    def get(name: str) -> Tensor:
        path = folder / stored[name][0]
        try:
            # 用到哪个张量，才从文件里读哪一段。
            # A tensor's bytes are read from the file on demand.
            return opened(path).get_tensor(name)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise ModelLoadError(f"{path} is truncated or corrupt ({error!s:.120}): download it again") from None

    # 一个文件读完再读下一个；折叠过的名字在文件里另有内容，或者根本没有。
    # One file after the other; of a folded name the file has something else, or nothing at all.
    for name in sorted(names, key=lambda each: folded[each][0]):
        yield name, packing.read(name, get) if packing and folded[name] != stored.get(name) else get(name)


def _equal(target: Any, tensor: Tensor) -> bool:
    """填的正是这个张量。

    Whether this is the tensor that it was filled with.
    """
    return bool(target.equal(tensor.to(target) if isinstance(target, Tensor) else tensor))


def _fill(name: str, target: Any, tensor: Tensor) -> None:
    """复制；dtype 不同时 `copy_` 会转换；复制完看一眼是不是有限的数。

    Copy, and `copy_` converts the dtype; then see whether all numbers are finite.
    """
    # 文件是 bf16，而参数在 CPU 上是 float32 时，转换就发生在这里；参数在 GPU 上时，搬运也发生在这里。
    # If the file is bf16 and the parameter float32, as on a CPU, the conversion happens here; so does the copy to a
    # GPU.
    target.copy_(tensor)
    # 一个 NaN 就足以让每个回答都是 `!!!!`。最小和最大值都有限，全部就都有限：NaN 会传到这两个数上。
    # A single NaN makes every answer `!!!!`. If minimum and maximum are finite all are: NaN spreads to both.
    # 量化的看缩放：一组里有一个坏数，缩放就是坏的。
    # Of a quantized one look at the scales: one bad number in a group makes its scale bad.
    filled, stored = (getattr(each, "ruler", each) for each in (target, tensor))
    if all(bound.isfinite() for bound in torch.aminmax(filled)):
        return
    if all(bound.isfinite() for bound in torch.aminmax(stored)):
        raise ModelLoadError(f"tensor {name!r:.100} does not fit into {target.dtype}: use dtype bfloat16 or float32")
    raise ModelLoadError(f"tensor {name!r:.100} holds NaN or infinity: the file is damaged, download it again")


def load_weights(model: LlamaForCausalLM, folder: Path, on_progress: Callable[[int, int], None] | None = None) -> None:
    """把文件夹里的权重全部填进模型。

    Fill the model with all weights of the folder.

    Args:
        on_progress: 每读完一个张量调用一次：（已读的张量数，总数）；called with (loaded, in all) after each tensor

    Raises:
        ModelLoadError: 见 `check_weights`；或张量里有 NaN 或无穷大；see `check_weights`; or NaN or infinity in a tensor
    """
    places, targets = check_weights(model, folder), weight_targets(model)
    loaded: set[str] = set()
    for name, tensor in _iterate_tensors(folder, places, model.config.packing):
        place = places[name]
        if place not in targets:
            if tensor.any():
                raise ModelLoadError(f"unexpected tensor {name!r:.100} that is not zero: {_OTHER}")
            continue
        tensor = cut(tensor, targets[place], model.config.ranks)
        # 词嵌入与 `lm_head.weight` 都存了的时候，两份内容必须相同，否则不知道该信哪一份。
        # Where both the embedding and `lm_head.weight` are stored they must be equal, or nobody knows which to trust.
        if place in loaded and not _equal(targets[place], tensor):
            remedy = "set tie_word_embeddings to false in config.json to use both"
            raise ModelLoadError(f"{place} is stored twice with different values (lm_head.weight): {remedy}")
        _fill(name, targets[place], tensor)
        loaded.add(place)
        if on_progress:
            on_progress(len(loaded), len(targets))
    assert loaded == targets.keys(), "check_weights has seen other names than the library reads"


def randomize_weights(model: nn.Module, seed: int, std: float = 0.02) -> None:
    """填入随机权重，用于测速：速度与权重的值无关。

    Fill in random weights, for measuring speed, which does not depend on their values.
    """
    # 发生器必须与参数在同一设备上，否则 `normal_` 会报错；自带种子，不受全局随机状态影响。
    # The generator must live on the parameters' device or `normal_` fails; its own seed keeps global state out.
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    for name, target in weight_targets(model).items():
        # 归一化的权重取 1，各层输出的量级才像真模型；`input_layernorm.weight`、`q_norm.weight` 都以此结尾。
        # Norm weights are 1, so that each layer's output has a real model's scale;
        # `input_layernorm.weight` and `q_norm.weight` both end so.
        if name.endswith("norm.weight"):
            target.fill_(1.0)
        else:
            target.copy_(torch.empty(target.shape, device=device).normal_(std=std, generator=generator))
