"""EngineConfig：用户能设的全部选项，只在这里列出、只在这里检查；`resolve` 把它落到这台机器和这个模型上。

    EngineConfig ── resolve ──> EngineSetup ──> ModelRunner, KVPool, ...

EngineConfig: all that a user may set, listed and checked here and nowhere else; `resolve` settles it for this machine
and this model.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from backends import create_backend, create_kernels
from backends.base import AttentionBackend
from backends.kernels import FusedKernels
from backends.quantized_cache import CODE_DTYPES, why_no_instructions
from engine.block_manager import num_blocks_needed
from engine.validation import MAX_INT, check_flag, checked_int, is_number
from layers.quantized import QUANTIZATIONS
from layers.ranks import LOCAL_CUDA, connect
from models.config import DTYPES, ModelConfig, load_config
from models.fields import ModelLoadError
from models.loader import stored_dtype
from models.registry import check_folder
from models.shares import divide

logger = logging.getLogger(__name__)

# 随仓库带着的模型，名字就是目录名。从本文件的位置推出，不看当前目录：在哪里启动都找得到。
# The models that come with the repository, called as their folders are. Derived from this file's place and not the
# current directory, so they are found wherever one starts.
_ASSETS = Path(__file__).resolve().parent.parent / "assets"
EMBEDDED_MODELS = {name: _ASSETS / name for name in ("tiny-llama", "tiny-poet", "tiny-poet-draft")}
EMBEDDED_MODEL = EMBEDDED_MODELS["tiny-llama"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """引擎的选项，默认值适合笔记本电脑。

    The engine's options; the defaults suit a laptop.

    Attributes:
        model: 模型文件夹、本地缓存里的 hub id，None 是内置模型；folder, hub id in the local cache; None: embedded
        backend: 注意力后端，或 "auto"；attention backend, or "auto"
        device: "auto", "cpu", "cuda", "cuda:1", ...
        dtype: "auto", "float32", "bfloat16", "float16"
        max_model_len: 提示词加输出的上限；None 由模型和内存决定；most tokens, prompt + output; None: model and memory
        max_num_seqs: 最多同时运行几个序列；most sequences running at once
        max_num_batched_tokens: 一步的 token 预算，默认 8192（CUDA）或 2048（CPU）；
            budget of a step: 8192 (CUDA), 2048 (CPU)
        kvcache_block_size: 每块多少 token；None 取后端的默认值；tokens per block; None is the backend's default
        num_kvcache_blocks: 块池有多少块；None 由内存决定；size of the pool; None is what the memory allows
        gpu_memory_utilization: 显存最多占几成，含别的程序，(0, 1]；share of the GPU to fill, others included, (0, 1]
        enable_prefix_caching: 相同的前缀共用块；share blocks of equal prefixes
        enforce_eager: 不用 CUDA graph、融合核函数和重叠循环，便于调试；no CUDA graphs, fusion or overlap; for debugging
        kv_cache_dtype: KV 缓存的类型："auto" 与模型相同，"int8" 和 "fp8" 是量化的；
            of the KV cache: "auto" is the model's, "int8" and "fp8" are quantized
        load_format: "auto" 读权重，"dummy" 用随机权重（测速用）；"auto" reads weights, "dummy" draws random ones
        seed: 没给种子的请求，种子由它产生；where the seeds of requests without one come from
        quantization: 把权重量化成 "int8" 或 "int4"；None 照文件；quantize weights to "int8" or "int4"; None: as stored
        speculative_config: 怎样猜后面的 token，见 `engine/drafters.py`；None 不猜；
            how to guess the tokens that follow, see `engine/drafters.py`; None: not at all
        tensor_parallel_size: 几个进程合算一个模型：1，或 torchrun 起的进程数；
            processes that share a model: 1, or as many as torchrun has started
        strict: 每步检查全部不变量（慢，供测试和学习）；check all invariants in each step (slow; to test and learn)

    Raises:
        ValueError: 某个值超出范围；a value is out of range
    """

    # None 是随仓库附带的小模型：不下载、不要 GPU，第一次读源码就用它。
    # None is the small model in the repository: no download, no GPU; take it for a first reading.
    model: str | Path | None = None
    backend: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    # 写 None 的几项由机器决定：块大小问后端，块数看内存，长度看模型和块数。
    # What is None the machine decides: block size by backend, blocks by memory, length by model and blocks.
    max_model_len: int | None = None
    # 类似连接池的上限：同时运行的序列至多 256 个（请求的每份输出算一个），其余在 `waiting` 里排队，而不是被拒绝。
    # Like a connection pool's cap: at most 256 sequences run (each output of a request is one), the others wait in
    # `waiting` and are not refused.
    # 调大则吞吐高，但每个请求分到的块少，抢占也多；块不够时，真正的上限是块数而不是它。
    # More means more throughput, but fewer blocks for each and more preemption;
    # when blocks are short, they are the limit.
    max_num_seqs: int = 256
    # 调小则长提示词切得更碎，别人的解码等得更短，代价是提示词自己要走更多步；设成 16 最便于单步观察。
    # Less cuts long prompts finer: others' decodes wait less, and the prompt takes more steps; 16 is good for stepping.
    max_num_batched_tokens: int | None = None
    # 例：1000 个 token，块大小 16 占 63 个块、空 8 个槽位；块大小 256 占 4 个块、空 24 个槽位，块表却短得多。
    # Example, 1000 tokens: blocks of 16 take 63 and leave 8 slots empty;
    # blocks of 256 take 4 and leave 24, but the table is far shorter.
    kvcache_block_size: int | None = None
    # 想亲眼看抢占，就把它设小，再同时跑几个请求，看 `scheduler.num_preemptions`。
    # To see preemption happen, make this small, run a few requests at once and look at `scheduler.num_preemptions`.
    num_kvcache_blocks: int | None = None
    # 整张卡最多用到几成满：权重、中间结果和别的程序占的都算在内，到这条线为止剩下的，才给 KV 缓存。
    # How full the whole card may get: weights, intermediate results and other programs all count, and the KV cache gets
    # what is left below that line.
    # 例：同一张卡上，第 1 个引擎给 0.45，第 2 个就要给 0.9。
    # Example: on one card engine 1 gets 0.45, then engine 2 needs 0.9.
    gpu_memory_utilization: float = 0.9
    enable_prefix_caching: bool = True
    # 调试时设为真：每个操作都由 Python 逐行发出，断点才停得住。
    # Set it when debugging: Python issues every operation line by line, so breakpoints are hit.
    enforce_eager: bool = False
    # 例：head_dim 128，bf16 的一个头 256 字节，int8 的 128 + 4 字节：同样的内存装得下 1.94 倍的 token。
    # Example: with head_dim 128 a head takes 256 bytes in bf16 and 128 + 4 in int8: 1.94 times the tokens fit.
    kv_cache_dtype: str = "auto"
    load_format: str = "auto"
    seed: int | None = None
    quantization: str | None = None
    speculative_config: Mapping[str, Any] | None = None
    tensor_parallel_size: int = 1
    strict: bool = False

    def __post_init__(self) -> None:
        # `torch.device` 和 `torch.float16` 也收，统一成名字。
        # `torch.device` and `torch.float16` are welcome too, and become names.
        object.__setattr__(self, "device", str(self.device))
        object.__setattr__(self, "dtype", str(self.dtype).removeprefix("torch."))
        # None 表示由引擎定：真正的数要看模型和内存，此刻还不知道，所以这里只查用户给的。
        # None leaves it to the engine: the number depends on model and memory,
        # unknown as yet, so only what users gave is checked.
        optional = ("max_model_len", "max_num_batched_tokens", "kvcache_block_size", "num_kvcache_blocks", "seed")
        # 一个 token 的提示词加一个 token 的输出，至少要 2。
        # A prompt of one token and an output of one token need at least 2.
        lowest = {"max_model_len": 2, "seed": 0}
        for name in ("max_num_seqs", "tensor_parallel_size", *optional):
            if (value := getattr(self, name)) is not None or name not in optional:
                object.__setattr__(self, name, checked_int(name, value, lowest.get(name, 1), MAX_INT))
        # 有人会写 90，意思是百分之九十；让它过去，到分配显存时才会莫名其妙地失败。
        # Some will write 90 and mean percent; let through, it fails much later, when memory is allocated.
        share = self.gpu_memory_utilization
        if not is_number(share) or not 0 < share <= 1:
            raise ValueError(f"gpu_memory_utilization={share!r} is out of range: use a share in (0, 1]")
        named = {"load_format": ("auto", "dummy"), "dtype": ("auto", *DTYPES), "kv_cache_dtype": tuple(CODE_DTYPES)}
        for name, known in {**named, "quantization": (None, *QUANTIZATIONS)}.items():
            if (value := getattr(self, name)) not in known:
                # 来自 vLLM 的人会写 "gptq"、"awq"：这样的文件不用说，自己认得出。
                # Who comes from vLLM writes "gptq" or "awq": such files are recognised without being told.
                hint = "; for files that are quantized already, none" if name == "quantization" else ""
                raise ValueError(f"{name}={value!r:.40} is unknown: use one of {', '.join(filter(None, known))}{hint}")
        for name in ("enable_prefix_caching", "enforce_eager", "strict"):
            check_flag(name, getattr(self, name))

    def resolve(self) -> "EngineSetup":
        """落到这台机器和这个模型上。全是开销很小的检查：选错后端应当立刻报错，而不是读完 6 GB 权重之后。

        Settle everything for this machine and this model. All of it is cheap: a wrong backend fails at once, and not
        after reading 6 GB of weights.

        Raises:
            ValueError, ModelLoadError, BackendUnavailableError: 有什么不合适；something does not fit
        """
        device, folder = self.resolve_device(), self.resolve_model_folder()
        # 往下只看得到这个进程的那一份：头数、MLP 的宽度、KV 缓存，都照着它来。
        # From here on only the share of this process is seen: heads, the MLP's width and the KV cache go by it.
        model_config = divide(load_config(folder), connect(self.tensor_parallel_size, device, self.strict))
        # 配置没写 dtype，就看权重自己是什么；随机的权重没有文件可问，用 float32。
        # Where the configuration names no dtype the weights tell; random ones have no file to ask and take float32.
        stored = model_config.dtype or (torch.float32 if self.load_format == "dummy" else stored_dtype(folder))
        dtype = self.resolve_dtype(stored, device, self.quantization is not None or model_config.packing is not None)
        codes = CODE_DTYPES[self.kv_cache_dtype]
        backend = create_backend(self.backend, device, model_config.head_dim, dtype, codes)
        # “能在这台机器上跑”和“支持这个模型”是两回事：前者 `create_backend` 已查过，后者要知道 `head_dim` 才能查。
        # Two questions: `create_backend` answered "does it run here"; "does it suit this model" needs `head_dim`.
        reason = backend.why_unsupported(model_config.head_dim, dtype, codes) or why_no_instructions(codes, device)
        if reason:
            raise ValueError(f"backend '{backend.name}' does not support this model: {reason}")
        # 这里用 `or` 取默认值是安全的：`__post_init__` 已拒绝 0，不会把用户写的 0 当成没写。
        # `or` is safe here: `__post_init__` has refused 0, so no user's 0 is mistaken for "not given".
        block_size = self.kvcache_block_size or backend.default_block_size
        backend.check_block_size(block_size)
        # 超过 `limit` 的位置，RoPE 的角度模型没有见过：不会报错，只会越说越乱，所以在这里拒绝。
        # Beyond `limit` the model has never seen RoPE's angles: no error, just worse and worse text, so refuse here.
        limit, window = model_config.max_position_embeddings, model_config.sliding_window
        if self.max_model_len is None and window:
            logger.warning("max_model_len is the model's sliding window, %d. / 最大长度取模型的滑动窗口。", limit)
        if self.max_model_len is not None and self.max_model_len > limit:
            raise ValueError(
                f"max_model_len={self.max_model_len} exceeds the model's {'sliding window' if window else 'limit'} "
                f"of {limit} positions: use at most {limit}"
            )
        # 块数写明了，装不装得下现在就知道。
        # With the number of blocks given, whether it fits is known now.
        if self.num_kvcache_blocks is not None:
            check_pool_size(self.num_kvcache_blocks, block_size, self.max_model_len, limit)
        return EngineSetup(
            config=self, folder=folder, model_config=model_config, device=device, dtype=dtype, backend=backend,
            # 单步调试时逐个执行：融合的核函数里没有可以停的地方。
            # One step after the other for debugging: inside a fused kernel there is nowhere to stop.
            kernels=None if self.enforce_eager else create_kernels(backend, model_config.head_dim, dtype, codes),
            block_size=block_size, codes=codes,
            # 预算越大，长提示算完得越快，但同一步里的解码都要等它；CPU 慢，所以给得小些。
            # A larger budget ends long prompts sooner but delays the decodes of the same step; a slow CPU gets less.
            max_num_batched_tokens=self.max_num_batched_tokens or (8192 if device.type == "cuda" else 2048),
        )

    def resolve_device(self) -> torch.device:
        """`auto` 是有 CUDA 就用 CUDA，否则 CPU。

        `auto` is CUDA where there is one, else the CPU.

        Raises:
            ValueError: 这台机器没有这个设备；no such device here
        """
        name = self.device
        if name == "auto":
            # 没有 GPU 也能跑，只是慢：每一行都能在笔记本电脑的调试器里走一遍。
            # It runs without a GPU as well, only slower: each line can be stepped through in a laptop's debugger.
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(LOCAL_CUDA if name == "cuda" else name)
        except RuntimeError:
            raise ValueError(f"device={self.device!r} is unknown: use auto, cpu, cuda or cuda:N") from None
        # torch 认得的设备更多：`mps`、`meta` 都能通过上面那行，所以类型还要再查。
        # torch knows more devices: `mps` and `meta` get past the line above, so the type is checked as well.
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"device={self.device!r} is not supported: use auto, cpu, cuda or cuda:N")
        # `cuda:9` 语法上没错，有没有这块卡要到分配显存时才知道；在这里数一数，当场说清。
        # `cuda:9` is good syntax, and only allocating memory would show that there is no such card;
        # count and say so now.
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device={str(device)!r}: only {torch.cuda.device_count()} CUDA devices here; use cpu")
        return device

    def resolve_dtype(self, model_dtype: torch.dtype, device: torch.device, quantized: bool) -> torch.dtype:
        """`auto`：CPU 上用 float32；CUDA 上用模型自己的，不支持 bf16 的老卡改用 float16。

        `auto`: float32 on the CPU; on CUDA the model's own, or float16 where the GPU has no bf16.
        """
        if self.dtype != "auto":
            return DTYPES[self.dtype]
        # 很多 CPU 没有 bf16 的矩阵指令，用它反而更慢、更不准。
        # Many CPUs have no matrix instructions for bf16, where it is slower and less exact.
        # 权重量化之后例外：PyTorch 读整数权重的乘法只有 bf16 的快。
        # Quantized weights are the exception: PyTorch's products that read integers are fast in bf16 only.
        if device.type == "cpu":
            return torch.bfloat16 if quantized else torch.float32
        # 不算模拟：torch 把老卡上用软件换算的 bf16 也报成“支持”，那样很慢。
        # Emulation does not count: torch also reports bf16 as supported on old cards that convert in software, slowly.
        # float16 最大只到 65504，而 bf16 的范围与 float32 相同；换过去之后输出若出现 NaN，先想到这里。
        # float16 ends at 65504 while bf16 reaches as far as float32; if NaN appears after this swap, think of it first.
        if model_dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.float16
        return model_dtype

    def resolve_model_folder(self) -> Path:
        """None 是内置模型；存在的路径就用它；然后看是不是内置模型的名字；像 `org/name` 的当作 hub id，到本地缓存里找。

        None is the embedded model; an existing path is used; then come the embedded models' names; what looks like
        `org/name` is a hub id, looked up in the local cache.

        Raises:
            ModelLoadError: 都不是，消息里写明怎样下载；none of these; the message says how to download
        """
        if self.model is None:
            return EMBEDDED_MODEL
        name = str(self.model)
        try:
            folder = Path(name).expanduser()
            exists, is_file = folder.exists(), folder.is_file()
        # 没有这个用户的家目录，或名字长得连文件系统都不收。
        # No home directory of that name, or a name too long for the file system.
        except (RuntimeError, OSError) as error:
            raise ModelLoadError(f"model {name:.80} is not a folder ({error}): check --model") from None
        # 空字符串会变成当前目录，报出来的却是“缺 `config.json`”。
        # An empty string would become the current directory, and the message a missing `config.json`.
        if not name or is_file:
            raise ModelLoadError(f"model {name!r} is not a folder: give the folder that holds config.json")
        if not exists and name in EMBEDDED_MODELS:
            return EMBEDDED_MODELS[name]
        # 恰好 1 个斜杠、不以 . 或 / 开头的，才可能是 hub id；其余一律是路径。
        # Only a name with exactly 1 slash that starts with neither . nor / can be a hub id; all else is a path.
        # 路径不存在也照样返回：读 `config.json` 时会报出完整路径，比在这里猜用户的意思更清楚。
        # A path that does not exist is returned too: reading `config.json` then names the full path,
        # which beats guessing here.
        if exists or name.count("/") != 1 or name.startswith((".", "/", "~")):
            return check_folder(folder)
        # 用到才导入：内置模型和本地文件夹用不着它，启动也就更快。
        # Imported only when needed: the embedded model and local folders do without it and start faster.
        from models.hub import cached_folder

        return check_folder(cached_folder(name))


@dataclass(frozen=True, slots=True)
class EngineSetup:
    """`EngineConfig` 在这台机器、这个模型上的结果：没有 "auto"，也没有留空的；往下只传它。

    What an `EngineConfig` comes to on this machine and with this model: no "auto" and nothing left open; this is what
    is passed on.

    Attributes:
        config: 用户给的选项，不需要换算的都从这里取；what the user said, for what needs no settling
        model_config: 整个模型的，张量并行时是这个进程的那一份；of the whole model, or of this process's share
        codes: 量化的 KV 缓存里编码的类型；没有量化时为 None；of the codes in a quantized KV cache, or None
        kernels: 融合核函数；每一步要单独执行时为 None；the fused kernels, or None if every step is to run by itself
    """

    config: EngineConfig
    folder: Path
    model_config: ModelConfig
    device: torch.device
    dtype: torch.dtype
    backend: AttentionBackend
    kernels: FusedKernels | None
    block_size: int
    codes: torch.dtype | None
    max_num_batched_tokens: int


def check_pool_size(num_blocks: int, block_size: int, requested: int | None, limit: int) -> None:
    """块池至少要装得下一条明说要的最长序列；没有明说时，至少要有一个块。

    The pool must hold one sequence of the length that was asked for; if none was, at least a block.

    Raises:
        ValueError: 装不下；it does not
    """
    wanted, fits = requested or limit, num_blocks * block_size
    if fits < wanted and (requested is not None or fits == 0):
        raise ValueError(
            f"the KV cache cannot hold one sequence of max_model_len={wanted}: it needs "
            f"{num_blocks_needed(wanted, block_size)} blocks of {block_size} tokens, there are {num_blocks}; "
            f"use max_model_len <= {fits}, or more memory"
        )
