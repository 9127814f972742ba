"""The Triton engine's values, on a device or by Triton's interpreter.

Triton decides when a kernel is defined whether it will be interpreted, so that without a device
these tests need a process with TRITON_INTERPRET=1; test_triton_compiles.py starts one.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton")

from hsplugin import potential
from hsplugin.potential import log_mean_potential, reference, triton

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
if DEVICE == "cpu" and not INTERPRETED:
    pytest.skip(
        "needs a CUDA device or TRITON_INTERPRET=1, which test_values_by_the_interpreter sets",
        allow_module_level=True,
    )
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# How far a float32 sum of rounded products may be from exact, and the rounding of the weights in
# the gradient: see the table in the engine's docstring. The interpreter cuts bfloat16 off.
WEIGHT_ROUNDOFF = {
    "tf32x3": 2.0**-20,
    "tf32": 2.0**-11,
    "bf16": 2.0**-7 if INTERPRETED else 2.0**-8,
    "fp16": 2.0**-11,
}


def features(n: int, d: int, dtype: torch.dtype, seed: int = 0, spread: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return (spread * torch.nn.functional.normalize(x, dim=1)).to(dtype)


def check(rows, columns, t, own_offset):
    """Hold value and pull to the definition, by tolerances derived from the rounding."""
    device_rows = rows.to(DEVICE)
    device_columns = device_rows if columns is rows else columns.to(DEVICE)
    arguments = (device_rows, device_columns, t)
    assert triton.available(device_rows)
    log_sum, pull = triton.accumulate(*arguments, own_offset=own_offset, need_gradient=True)
    alone, none = triton.accumulate(*arguments, own_offset=own_offset, need_gradient=False)

    assert none is None
    assert log_sum.dtype == alone.dtype == torch.float64 and log_sum.shape == alone.shape == ()
    assert pull.dtype == torch.float32 and pull.shape == rows.shape
    precision = triton.precision(rows.dtype)
    if precision == "tf32":  # the potential is that of the rounded features
        centre = columns.mean(0)
        itself = columns is rows
        columns = rounded_to_tf32(columns - centre)
        rows = columns if itself else rounded_to_tf32(rows - centre)
    expected, expected_pull = reference.accumulate(
        rows.double(), columns.double(), t, own_offset=own_offset, need_gradient=True
    )
    # An exponent is a difference of terms of this size, each rounded in float32 over d products.
    radius = max(rows.double().norm(dim=1).max().item(), columns.double().norm(dim=1).max().item())
    error = 2.0**-24 * (32 + rows.shape[1] ** 0.5) * t * radius**2 + 2.0**-22
    assert abs(log_sum.item() - expected.item()) <= error
    assert abs(alone.item() - expected.item()) <= error
    # Weights wrong by a share of themselves; the widest pull of a row is that of its own weights.
    r, c = rows.double(), columns.double()
    w = (-t * torch.cdist(r, c).square() - expected).exp()
    if own_offset is not None:
        w.diagonal(own_offset).zero_()
    reach = (w * torch.cdist(r, c)).sum(1).max().item() + 2.0**-24 * w.sum(1).max().item() * radius
    allowed = (WEIGHT_ROUNDOFF[precision] + 4 * error) * 2 * reach
    pull_error = (pull.cpu().double() - expected_pull).abs().max().item()
    assert pull_error <= allowed


def rounded_to_tf32(x):
    """To 10 bits after the leading one, ties to even."""
    mantissa, exponent = torch.frexp(x.double())
    return torch.ldexp((mantissa * 2**11).round(), exponent - 11)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [2, 100, 200, 257])
@pytest.mark.parametrize("n", [2, 200])
def test_self_set(n, d, dtype):
    x = features(n, d, dtype)
    check(x, x, 2.0, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [5, 257])
@pytest.mark.parametrize(("n", "m", "own_offset"), [(70, 300, 0), (70, 300, 131), (1, 130, 129)])
def test_rows_among_the_columns_of_all_ranks(n, m, own_offset, d, dtype):
    columns = features(m, d, dtype)
    check(columns[own_offset : own_offset + n].contiguous(), columns, 2.0, own_offset)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [5, 257])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (130, 3), (3, 400)])
def test_rows_against_a_queue(n, m, d, dtype):
    check(features(n, d, dtype), features(m, d, dtype, seed=1), 2.0, None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("own_offset", [0, None])
def test_d_of_2048(own_offset, dtype):
    x = features(40, 2048, dtype)
    check(x, x if own_offset == 0 else features(20, 2048, dtype, seed=1), 2.0, own_offset)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("t", [0.01, 50.0, 1000.0])
@pytest.mark.parametrize("d", [8, 300])
def test_weights_that_underflow_are_shifted(d, t, dtype):
    x = features(70, d, dtype)
    check(x, x, t, 0)
    check(features(20, d, dtype, seed=1), x, t, None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_far_below_every_float_still_have_a_logarithm(dtype):
    x = torch.tensor([[100.0, 0.0], [0.0, 100.0], [-100.0, 0.0]]).to(dtype)
    check(x, x, 2.0, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("own_offset", [0, 140])
def test_panels_meet_without_gap_or_overlap(own_offset, dtype, monkeypatch):
    monkeypatch.setattr(triton, "PANEL", 128)
    columns = features(300, 257, dtype)
    check(columns if own_offset == 0 else columns[140:300].contiguous(), columns, 2.0, own_offset)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [20, 60, 100])
@pytest.mark.parametrize("capability", [8, 9])
def test_tiles_of_every_device(capability, d, dtype, monkeypatch):
    monkeypatch.setattr(triton, "_capability", lambda device: capability)
    x = features(150, d, dtype)
    check(x, x, 2.0, 0)


@pytest.mark.parametrize("n", [1, 100, 128, 200])
def test_norms_of_blocks_of_rows_meet_without_gap_or_overlap(n, monkeypatch):
    monkeypatch.setattr(triton, "NORM_SIZE", 32 * 64)
    x = features(n, 20, torch.float32)
    check(x, features(70, 20, torch.float32, seed=1), 2.0, None)


@pytest.mark.parametrize("walk", [32, 80, 10**6])
@pytest.mark.parametrize("split_rows", [1, 10**6])
@pytest.mark.parametrize("n", [380, 500])
def test_splits_meet_without_gap_or_overlap(n, split_rows, walk, monkeypatch):
    monkeypatch.setattr(triton, "SPLIT_ROWS", split_rows)
    monkeypatch.setattr(triton, "LONGEST_WALK", walk)
    x = features(n, 6, torch.float32)
    check(x, x, 2.0, 0)
    check(features(200, 6, torch.float32, seed=1), x, 2.0, None)


@pytest.mark.parametrize("d", [16, 200])
def test_tf32_where_torch_permits_it(d):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        x = features(150, d, torch.float32)
        check(x, x, 2.0, 0)
        check(features(20, d, torch.float32, seed=1), x, 2.0, None)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("spread", [1e-3, 1e-2])
def test_float32_features_far_from_the_origin_lose_nothing(spread):
    x = features(150, 24, torch.float64, spread=spread) + 7
    x = x.float()
    check_centred = x.double() - x.double().mean(0)
    on_device = x.to(DEVICE)
    log_sum, _ = triton.accumulate(on_device, on_device, 1000.0, own_offset=0, need_gradient=True)
    expected, _ = reference.accumulate(
        check_centred, check_centred, 1000.0, own_offset=0, need_gradient=False
    )
    radius = check_centred.norm(dim=1).max().item()
    # Centring itself rounds to the float32 spacing of the features about 7.
    error = 1000.0 * (2.0**-18 * radius**2 + radius * 2.0**-22) + 2.0**-20
    assert abs(log_sum.item() - expected.item()) <= error


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [24, 130])
def test_rounded_weights_do_not_make_a_collapsed_row_pull_at_itself(d, dtype):
    nearby = features(1, d, torch.float64) + features(130, d, torch.float64, seed=1, spread=0.01)
    x = nearby.to(dtype)
    check(x, x, 2.0, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), -float("inf")])
@pytest.mark.parametrize("where", ["x", "queue"])
@pytest.mark.parametrize("d", [3, 257])
def test_nan_and_infinity_come_out_as_nan(d, where, bad, dtype):
    x, queue = features(5, d, dtype), features(4, d, dtype, seed=1)
    (x if where == "x" else queue)[2, 1] = bad
    for options in [{}, {"include_self": True}] if where == "x" else [{}, {"intra_batch": False}]:
        queued = {"queue": queue.to(DEVICE)} if where == "queue" else {}
        leaf = x.to(DEVICE).requires_grad_()
        value = log_mean_potential(leaf, 2.0, backend="triton", **options, **queued)
        value.backward()
        assert value.isnan()
        assert leaf.grad.isnan().all()


@pytest.mark.parametrize("sign", [0, -(2**31)])
def test_nan_of_a_device_survives_rounding_to_tf32(sign):
    x = features(5, 3, torch.float32)
    x.view(torch.int32)[2, 1] = 0x7FFFFFFF + sign  # what CUDA's arithmetic makes of 0 / 0
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        value = log_mean_potential(x.to(DEVICE), 2.0, backend="triton")
    finally:
        torch.set_float32_matmul_precision(before)
    assert value.isnan()


def test_strided_and_expanded_views():
    base = features(24, 6, torch.float32).to(DEVICE)
    for view in (base[::2], base.T, base[:, 1::2], base[:1].expand(5, 6)):
        value = log_mean_potential(view, 2.0, backend="triton")
        expected = log_mean_potential(view.double(), 2.0, backend="reference")
        assert value.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.skipif(not INTERPRETED, reason="takes memory that only a host lends untouched")
def test_features_of_more_numbers_than_32_bits_count():
    n, d, block = 2**20 + 256, 2048, 128
    x = features(block, d, torch.float16)
    pairs = object.__new__(triton._Pairs)  # what it prepares would touch all rows
    pairs.precision, pairs.width = "fp16", d
    pairs.columns = torch.empty(n, d, dtype=x.dtype)
    pairs.columns[-block:] = x
    bias, weights = torch.empty(n), torch.empty(block, block)
    bias[-block:] = -x.double().square().sum(1)
    pull, sums = torch.empty(n, d), torch.empty(n, dtype=torch.float64)
    pull[-block:], sums[-block:] = 0, 0
    last = n - block
    blocks = triton.exponent_blocks("fp16", d)
    triton.kernels.weights_kernel[(1, 1)](
        pairs.columns,
        pairs.columns,
        bias,
        bias,
        weights,
        torch.zeros(1, dtype=torch.float64),
        0,
        2.0,
        d,
        last,
        last,
        1,
        block,
        BLOCK=blocks.m,
        BLOCK_D=blocks.d,
        OWN=True,
        PRECISION="fp16",
        **blocks.options(),
    )
    pairs._apply_weights(weights, pull, sums, last, last, block, block, mirrored=False)
    # To base two, t = 1 over the logarithm of e.
    w = (-torch.cdist(x.double(), x.double()).square()).exp2().fill_diagonal_(0)
    torch.testing.assert_close(sums[last:], w.sum(1), rtol=2**-10, atol=0)
    torch.testing.assert_close(pull[last:].double(), w @ x.double(), rtol=2**-10, atol=2**-10)


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation of torch returns."""

    nbytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.nbytes = max(self.nbytes, tensor.nbytes)
        return result


@pytest.mark.parametrize(("d", "width"), [(3, 32), (65, 128)])  # fused, panels
@pytest.mark.parametrize("need_gradient", [True, False])
def test_no_tensor_grows_with_the_square_of_n(need_gradient, d, width, monkeypatch):
    monkeypatch.setattr(triton, "PANEL", 128)
    monkeypatch.setattr(triton, "SPLIT_ROWS", 128)
    n, padded = 600, 640
    x = features(n, d, torch.float32).to(DEVICE)
    with LargestTensor() as largest:
        triton.accumulate(x, x, 2.0, own_offset=0, need_gradient=need_gradient)
    assert n * d * 4 <= largest.nbytes <= padded * width * 4 < n * n * 4


def test_two_runs_agree_to_the_bit():
    x = features(150, 20, torch.float32).to(DEVICE)
    first = triton.accumulate(x, x, 2.0, own_offset=0, need_gradient=True)
    second = triton.accumulate(x, x, 2.0, own_offset=0, need_gradient=True)
    assert first[0].item() == second[0].item()
    assert torch.equal(first[1], second[1])


def test_float64_is_left_to_the_tiles():
    x = features(5, 3, torch.float64).to(DEVICE)
    assert not triton.available(x)
    with pytest.raises(ValueError, match=r"backend='triton' cannot take torch.float64"):
        log_mean_potential(x, 2.0, backend="triton")
    assert log_mean_potential(x, 2.0, backend="auto").isfinite()


on_device = pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device")


@on_device
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "d"), [(20_000, 2), (20_001, 128), (9_000, 256), (9_001, 2048)])
def test_large_sets_on_a_device(n, d, dtype):
    x = features(n, d, dtype)
    check_against_tiles(x, 2.0)


def check_against_tiles(x, t):
    """Hold value and gradient to the tiled engine's in float64, the definition being too large."""
    leaf = x.to(DEVICE).requires_grad_()
    value = log_mean_potential(leaf, t, backend="triton")
    value.backward()
    exact_leaf = x.double().to(DEVICE).requires_grad_()
    exact = log_mean_potential(exact_leaf, t, backend="tiled")
    exact.backward()
    assert value.item() == pytest.approx(exact.item(), abs=2e-6)
    error = (leaf.grad.double() - exact_leaf.grad).norm() / exact_leaf.grad.norm()
    assert error < {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}[x.dtype]


@on_device
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [128, 2048])
@pytest.mark.parametrize("need_gradient", [True, False])
def test_memory_on_a_device_is_linear_in_n(need_gradient, d, dtype):
    n = 65_536 if d == 128 else 16_384
    x = features(1024, d, dtype).repeat(n // 1024, 1).to(DEVICE)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = triton.accumulate(x, x, 2.0, own_offset=0, need_gradient=need_gradient)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    assert (result[1] is not None) == need_gradient
    # The padded copy, norms in the making, numbers a row; two of the pull in float32, a panel.
    allowed = x.nbytes + 2**22 * 8 + 200 * n + 2**22
    assert peak <= allowed + need_gradient * (2 * n * d * 4 + 4096**2 * 4)


@on_device
def test_auto_takes_this_engine_on_a_device_and_never_waits_for_it():
    x = features(500, 64, torch.float32).to(DEVICE).requires_grad_()
    assert potential._engine("auto", x) is triton
    log_mean_potential(x, 2.0).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        log_mean_potential(x, 2.0).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_device
def test_compiles_into_one_graph_on_a_device():
    x = features(500, 64, torch.float32).to(DEVICE)
    compiled = torch.compile(lambda z: log_mean_potential(z * 1.0, 2.0), fullgraph=True)
    assert compiled(x).item() == pytest.approx(log_mean_potential(x, 2.0).item(), abs=1e-6)
