"""采样核函数与朴素写法逐行相同：过滤、惩罚、禁用、并列的各种组合。

The sampling kernel equals the plain form row by row: filters, penalties, bans, ties, in all combinations.
"""

from collections.abc import Iterator

import pytest
import torch
from sampling_helpers import edited_plainly, is_close_call, named_columns, sample_plainly
from torch import Tensor

from backends.kernels import SAMPLING_COLUMNS, FusedKernels

pytestmark = pytest.mark.usefixtures("one_thread")
MAX_LOGPROBS = 20


def devices() -> Iterator[object]:
    """没有 GPU 时用解释器；有 GPU 时在 GPU 上。

    The interpreter without a GPU, else the GPU.
    """
    if torch.cuda.is_available():
        yield pytest.param("cuda", marks=pytest.mark.gpu)
    else:
        yield "cpu"


@pytest.fixture(params=list(devices()))
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def triton_kernels(device: str) -> FusedKernels:
    pytest.importorskip("triton")
    from backends.triton import TritonKernels

    return TritonKernels(torch.device(device))


def random_logits(rows: int, vocab: int, generator: torch.Generator) -> Tensor:
    """各种样子的分数：尖的、平的、大量并列的、全部相等的、有 -inf 的。

    Scores of many shapes: peaked, flat, with many ties, all equal, with -inf.
    """

    device = generator.device

    def pick(values: list[float]) -> Tensor:
        where = torch.randint(len(values), (rows, 1), generator=generator, device=device)
        return torch.tensor(values, device=device)[where]

    logits = torch.randn(rows, vocab, generator=generator, device=device) * pick([0.0, 1.0, 1.0, 3.0, 10.0])
    step = pick([0.0, 0.0, 0.5, 4.0])
    logits = torch.where(step > 0, (logits / step.clamp(min=0.1)).round() * step, logits)
    gone = torch.rand(rows, vocab, generator=generator, device=device) < pick([0.0, 0.0, 0.3, 0.999])
    gone[:, 0] = False
    return logits.masked_fill(gone, float("-inf"))


def random_columns(rows: int, vocab: int, places: int, generator: torch.Generator) -> Tensor:
    """各列随机的参数；每行的 `places` 都不同，或者没有。

    Random parameters in each column; every row has a place of its own or none.
    """

    def pick(*values: float) -> Tensor:
        chosen = torch.tensor(values, dtype=torch.float64)[torch.randint(len(values), (rows,), generator=generator)]
        return chosen.view(torch.int64)

    def whole(*values: int) -> Tensor:
        return torch.tensor(values)[torch.randint(len(values), (rows,), generator=generator)]

    own = torch.randperm(places, generator=generator)[:rows]
    column = {
        "seeds": torch.randint(2**62, (rows,), generator=generator),
        "output_indices": torch.randint(1000, (rows,), generator=generator),
        "places": torch.where(whole(0, 1) > 0, own, -1),
        "masked": whole(0, 1),
        "top_ks": whole(0, 0, 1, 2, 17, 50, 200, vocab - 1, vocab, 2 * vocab),
        "reports": whole(0, 0, 1, 2, 6, 21),
        "temperatures": pick(0.0, 0.1, 0.6, 0.8, 1.0, 2.0),
        "top_ps": pick(1.0, 1.0, 0.95, 0.5, 0.1, 1e-6, 1e-46),
        "min_ps": pick(0.0, 0.0, 0.05, 0.3, 1.0),
        "repetition": pick(1.0, 1.1, 2.0, 0.7),
        "frequency": pick(0.0, 0.5, -1.0),
        "presence": pick(0.0, 0.4, -2.0),
    }
    return torch.stack([column[name] for name in SAMPLING_COLUMNS])


def compare(kernels: FusedKernels, device: str, dtype: torch.dtype, vocab: int, rows: int, seed: int) -> int:
    """一批随机的行，两种算法各算一遍；返回有几行选得不同（都只差在舍入）。

    A batch of random rows both ways; returns how many rows differ, all by rounding only.
    """
    generator, there = torch.Generator().manual_seed(seed), torch.Generator(device).manual_seed(seed)
    logits = random_logits(rows, vocab, there).to(dtype)
    columns = random_columns(rows, vocab, rows + 3, generator).to(device)
    counts = torch.randint(-30, 5, (2, rows + 3, vocab), generator=there, device=device).clamp(min=0).to(torch.int16)
    words = (rows + 3, (vocab + 31) // 32)
    masks = torch.randint(-(2**31), 2**31, words, generator=there, device=device).to(torch.int32)
    # 有一格已经到顶，选中它也不能再加。
    # One cell is full already, and to choose it must not add to it.
    counts[1, :, 0] = 32767
    before, plain_counts = counts.clone(), counts.clone()
    fast, fast_reports = kernels.sample(logits, columns, counts, masks, MAX_LOGPROBS)
    plain, plain_reports = sample_plainly(logits, columns, plain_counts, masks, MAX_LOGPROBS)
    column = named_columns(columns)
    scores, different = edited_plainly(logits, column, before, masks), (fast != plain).nonzero().squeeze(1).tolist()
    for row in different:
        parameters = {name: values[row].item() for name, values in column.items()}
        chosen = int(fast[row]), int(plain[row])
        where = f"vocabulary {vocab}, seed {seed}, row {row}: {chosen}, {parameters}"
        print(where)
        assert is_close_call(scores[row], parameters, chosen), where
    # 选得相同的行，计数和报告也要相同。
    # Where the choice is the same, so are counts and reports.
    places = column["places"][different]
    untouched = torch.ones(rows + 3, dtype=torch.bool, device=device).index_fill_(0, places[places >= 0], False)
    assert torch.equal(counts[:, untouched], plain_counts[:, untouched])
    same = (fast == plain) & (plain >= 0) & (column["reports"] > 0)
    wanted = column["reports"][same][:, None] > torch.arange(fast_reports.shape[1], device=device)
    mine, theirs, raw = fast_reports[same], plain_reports[same], logits[same].float()
    pairs = [part[..., 0].masked_fill(~wanted, 0.0) for part in (mine, theirs)]
    torch.testing.assert_close(*pairs, rtol=0, atol=5e-5)
    # 名次是比它高的有几个加 1；朴素写法在舍入过的对数概率上数，相邻的分数可能并成一个，所以在分数上数。
    # A rank is how many are higher plus 1; the plain form counts rounded log-probabilities, where neighbouring scores
    # may have become one, so count scores here.
    higher = (raw > raw.gather(1, plain[same][:, None])).sum(1)
    assert torch.equal(mine[:, 0, 1].long(), higher + 1)
    # 并列的次序 `topk` 不管，核函数是 id 小的在前。
    # `topk` leaves the order of ties open, and the kernel takes lower ids first.
    order = raw.sort(dim=1, descending=True, stable=True).indices[:, : wanted.shape[1] - 1]
    assert torch.equal(mine[:, 1:, 1].masked_fill(~wanted[:, 1:], 0.0).long(), order * wanted[:, 1:])
    return len(different)


@pytest.mark.parametrize("vocab", [23, 2064, 5003])
def test_kernel_equals_the_plain_form(triton_kernels: FusedKernels, device: str, vocab: int) -> None:
    different = sum(compare(triton_kernels, device, torch.float32, vocab, 17, seed) for seed in range(4))
    assert different <= 1


@pytest.mark.gpu
@pytest.mark.parametrize(("vocab", "batches"), [(2064, 70), (32000, 60), (128256, 45), (151936, 25)])
def test_50000_rows_on_the_gpu(triton_kernels: FusedKernels, vocab: int, batches: int) -> None:
    different = 0
    for seed in range(batches):
        dtype = (torch.bfloat16, torch.float32)[seed % 2]
        different += compare(triton_kernels, "cuda", dtype, vocab, 250, seed)
    print(f"{vocab}: {250 * batches} rows, {different} differ by rounding")
    assert different <= 2


def test_spoilt_rows_have_no_token_and_count_nothing(triton_kernels: FusedKernels, device: str) -> None:
    # 第 0 行有 NaN，第 1 行有 +inf，第 2 行全是 -inf，第 3 行是好的。
    # Row 0 holds NaN, row 1 +inf, row 2 nothing but -inf, and row 3 is sound.
    for temperature, top_k, top_p in ((0.0, 0, 1.0), (1.0, 0, 1.0), (1.0, 5, 0.5)):
        logits = torch.randn(4, 5003, generator=torch.Generator().manual_seed(0)).to(device)
        logits[0, 4500], logits[1, 17], logits[2] = float("nan"), float("inf"), float("-inf")
        columns = random_columns(4, 5003, 4, torch.Generator().manual_seed(1)).to(device)
        floats = columns[6:].view(torch.float64)
        columns[2], columns[3], columns[4], columns[5] = torch.arange(4), 0, top_k, 3
        floats[0], floats[1], floats[2] = temperature, top_p, 0.0
        counts = torch.zeros(2, 4, 5003, dtype=torch.int16, device=device)
        masks = torch.full((4, 157), -1, dtype=torch.int32, device=device)
        tokens, _ = triton_kernels.sample(logits, columns, counts, masks, MAX_LOGPROBS)
        assert tokens[:3].tolist() == [-1] * 3 and 0 <= tokens[3] < 5003
        assert counts[1].sum(1).tolist() == [0, 0, 0, 1]


def test_draws_follow_the_distribution(triton_kernels: FusedKernels, device: str) -> None:
    # 4 个 token，抽许多次：频率与 softmax 的差不超过 4 个标准差。
    # 4 tokens and many draws: frequencies lie within 4 standard deviations of softmax.
    count = 2000 if device == "cuda" else 200
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]], device=device).repeat(count, 1)
    columns = random_columns(count, 4, count, torch.Generator().manual_seed(0))
    floats = columns[6:].view(torch.float64)
    columns[0], columns[2:6], floats[0], floats[1], floats[2] = torch.arange(count), 0, 1.0, 1.0, 0.0
    columns[2] = -1
    counts, masks = torch.zeros(2, 1, 4, dtype=torch.int16), torch.zeros(1, 1, dtype=torch.int32)
    tokens, _ = triton_kernels.sample(logits, columns.to(device), counts.to(device), masks.to(device), MAX_LOGPROBS)
    drawn = torch.bincount(tokens, minlength=4).cpu() / count
    assert (drawn - logits[0].softmax(-1).cpu()).abs().max() < 4 * (0.25 / count) ** 0.5


def test_no_rows(triton_kernels: FusedKernels, device: str) -> None:
    columns = torch.empty(len(SAMPLING_COLUMNS), 0, dtype=torch.int64, device=device)
    counts, masks = torch.zeros(2, 1, 100, dtype=torch.int16), torch.zeros(1, 4, dtype=torch.int32)
    logits = torch.empty(0, 100, device=device)
    tokens, reports = triton_kernels.sample(logits, columns, counts.to(device), masks.to(device), MAX_LOGPROBS)
    assert tokens.shape == (0,) and reports.shape == (0, 21, 2)
