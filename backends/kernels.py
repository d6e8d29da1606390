"""融合核函数的接口契约：几个小步骤并成一次调用。与注意力后端互不相干：后端按名字选，核函数按设备选。

你在这里：`layers/` 和 `models/` 里有融合实现的步骤调用它；`cpu_kernels.py` 和 `triton/` 实现它。

The contract of fused kernels: several small steps in one call. It is apart from attention: backends are chosen by name,
kernels by the device.

You are here: the steps in `layers/` and `models/` that have a fast twin call it; `cpu_kernels.py` and `triton/`
implement it.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from backends.kv_cache import KVCache
from backends.quantized_weight import Weight

# 采样的参数，一行一个值，一种一列：前 6 列是整数，后 6 列是浮点数，存的是 float64 的位；
# 合成一个 int64 张量，一次拷贝就够。
# Sampling parameters, a value a row and a column for each kind: the first 6 are integers, the last 6 are floats, as the
# bits of a float64; together they are one int64 tensor and a single copy.
# `places` 是序列在计数表和掩码里的行，没有就是 -1；`masked` 是用不用掩码；`reports` 是 0（不报告）或 1 + `logprobs`。
# `places` is the sequence's row of counts and masks, -1 for none; `masked` whether the mask applies; `reports` is 0 for
# none or 1 + `logprobs`.
SAMPLING_COLUMNS = (
    "seeds", "output_indices", "places", "masked", "top_ks", "reports",
    "temperatures", "top_ps", "min_ps", "repetition", "frequency", "presence",
)  # fmt: skip


class FusedKernels(ABC):
    """几个融合步骤。没有核函数时（参考后端，或 `enforce_eager`），走逐步的写法。

    每个方法都有对应的朴素实现，在 `layers/` 和 `models/` 里；测试保证两者结果相同。

    The fused steps. Without kernels (the reference backend, or `enforce_eager`) the written-out steps run.
    Each has its plain twin in `layers/` or `models/`, and tests hold the two equal.
    """

    # 采样的核函数可有可无：只有 GPU 上才值得写，CUDA graph 非它不可。
    # Sampling is optional: worth a kernel only on a GPU, where CUDA graphs cannot do without it.
    has_sampler: ClassVar[bool] = False

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @classmethod
    def why_unusable(cls, device: torch.device) -> str | None:
        """在 `device` 上用不了时返回原因，能用返回 None。

        Return why they cannot run on `device`, or None if they can.
        """
        return None

    @classmethod
    def why_unsupported(cls, head_dim: int, dtype: torch.dtype, codes: torch.dtype | None = None) -> str | None:
        """模型的 `head_dim`、`dtype` 或缓存的 `codes` 不受支持时返回原因，支持返回 None；参数同 `AttentionBackend`。

        Return why a model with this `head_dim` and `dtype`, or a cache of these `codes`, is not supported, or None if
        it is; the arguments are those of `AttentionBackend`.
        """
        return None

    @abstractmethod
    def add_rms_norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """残差相加再归一化；朴素实现是 `RMSNorm.add_and_norm`。

        Add the residual, then normalise; the twin is `RMSNorm.add_and_norm`.

        Args:
            x, residual: [T, size]

        Returns:
            [T, size], [T, size]，归一化的结果，和两者之和；the normalised, and the sum
        """

    def pack(self, weight: Weight) -> Any:
        """权重填好之后调用：按核函数喜欢的次序另存一份；不需要就返回 None。

        Called once a weight is filled: a copy in the order that the kernel likes, or None where it needs none.

        Args:
            weight: [out_features, in_features]
        """
        return None

    @abstractmethod
    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None, packed: Any) -> Tensor:
        """线性层；朴素实现是 `Linear.forward` 里的 `F.linear`。

        A linear layer; the twin is the `F.linear` in `Linear.forward`.

        Args:
            x: [T, in_features]
            weight: [out_features, in_features]
            packed: `pack` 为这个权重返回的；what `pack` returned for this weight

        Returns:
            [T, out_features]
        """

    @abstractmethod
    def rotary(self, positions: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
        """角度的 cos 和 sin，按 `qk_norm_rope_store` 要的样子；朴素实现是 `RotaryEmbedding.forward`。

        The cos and sin of the angles in the form that `qk_norm_rope_store` wants; the twin is
        `RotaryEmbedding.forward`.

        Args:
            positions: [T] int64
            inv_freq: [D // 2] float32

        Returns:
            cos, sin: 一个 token 一行，float32；形状只有 `qk_norm_rope_store` 知道；
                one row a token, float32; the shape is for `qk_norm_rope_store`
        """

    @abstractmethod
    def gated_linear(self, x: Tensor, weight: Weight, bias: Tensor | None, packed: Any) -> Tensor:
        """线性层加门控激活；朴素实现是 `LlamaMLP.forward` 里的 `silu_and_mul(self.gate_up_proj(x))`。

        A linear layer and the gated activation; the twin is the `silu_and_mul(self.gate_up_proj(x))` in
        `LlamaMLP.forward`.

        Args:
            x: [T, in_features]
            weight: [2 * size, in_features]，先 gate 后 up；gate before up
            packed: `pack` 为这个权重返回的；what `pack` returned for this weight

        Returns:
            [T, size]
        """

    @abstractmethod
    def qk_norm_rope_store(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, norm_weights: tuple[Tensor, Tensor] | None, eps: float,
        kv_cache: KVCache, slot_mapping: Tensor,
    ) -> Tensor:
        """拆分、归一化（若有）、旋转、写缓存；朴素实现是 `LlamaAttention.forward` 的那几行。

        Split, normalise (if the model does), rotate, store; the twin is those lines of `LlamaAttention.forward`.

        Args:
            qkv: [T, (Hq + 2 * Hkv) * D]
            cos, sin: `rotary` 的返回值；what `rotary` returned
            norm_weights: [D], [D]，q 和 k 的；those of q and k

        Returns:
            q [T, Hq, D]
        """

    def sample(
        self, logits: Tensor, columns: Tensor, counts: Tensor, masks: Tensor, max_logprobs: int,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """从 logits 到 token 的全部步骤；朴素实现是 `Sampler.draw`。

        All steps from logits to tokens; the twin is `Sampler.draw`.

        Args:
            logits: [S, vocab_size]
            columns: [len(SAMPLING_COLUMNS), S] int64
            counts: [2, R, vocab_size] int16，选中的 token 会计数；what is chosen is counted
            masks: [R, ceil(vocab_size / 32)] int32，一个 token 一位，0 是禁用；a bit a token, 0 bans
            max_logprobs: 最多报告最可能的几个；how many of the likeliest a row may report
            out: [S] int64，写到哪里；None 则另分配；where to write; None allocates

        Returns:
            [S] int64, [S, 1 + max_logprobs, 2] float64，token，和 `gather_logprobs` 那样的报告；
                tokens, and reports like those of `gather_logprobs`
        """
        raise NotImplementedError
