"""The FP16 matmul: bit-equal to the stated order of operations on every path, its counters exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from halves import bits, counts, product
from hypothesis import given, settings
from hypothesis import strategies as st

from amplint.verify.kernels import emulate, ops

mm, narrow, statistics = (getattr(torch.ops.amplint, name) for name in ("mm", "narrow", "statistics"))


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """The kernel, built if need be (seconds); a machine without a compiler has nothing to test."""
    how = ops.load("cpu")
    if "no C++ compiler" in how:
        pytest.skip(how)
    assert how.startswith("C++"), how


def paths() -> list[str]:
    return torch.ops.amplint._cpu_paths().split("; ")


def halves(draw, *shape: int) -> torch.Tensor:
    """A matrix, or some, as a user's code may hand it over: values small or large, with holes; any strides."""
    rows, columns = shape[-2:]
    layout = draw(st.sampled_from(["plain", "transposed", "every other", "one row", "padded"]))
    whole = {
        "plain": shape,
        "transposed": (*shape[:-2], columns, rows),
        "every other": (*shape[:-2], 2 * rows, 3 * columns),
        "one row": (*shape[:-2], 1, columns),
        "padded": (*shape[:-2], rows, columns + 5),
    }[layout]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = 2.0 ** draw(st.sampled_from([-24, -14, -12, -7, 0, 5, 8, 15]))
    values = torch.randn(whole, generator=generator) * scale
    if special := draw(st.sampled_from([0.0, 0.0, 0.3, float("inf"), float("nan"), -65504.0])):
        values[torch.rand(whole, generator=generator) < 0.02] = special
    values[torch.rand(whole, generator=generator) < draw(st.sampled_from([0.0, 0.5]))] = 0
    found = values.half()
    return {
        "plain": lambda: found,
        "transposed": lambda: found.transpose(-1, -2),
        "every other": lambda: found[..., ::2, ::3],
        "one row": lambda: found.expand(shape),
        "padded": lambda: found[..., :columns],
    }[layout]()


SIZES = st.integers(0, 8) | st.integers(9, 70)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), m=SIZES, k=SIZES, n=SIZES, batch=st.sampled_from([(), (), (1,), (3,)]), chunk=st.integers(0, 20))
def test_every_path_gives_the_reference_bit_for_bit(data, m, k, n, batch, chunk):
    a, b = halves(data.draw, *batch, m, k), halves(data.draw, *batch, k, n)
    accumulate = data.draw(st.sampled_from(["float32", "float16"]))
    exact, expected = product(a, b, (chunk or 16) if accumulate == "float16" else 0)
    for path in paths():
        out, counted = torch.ops.amplint._mm_path(a, b, accumulate, chunk, path, True)
        assert out.shape == expected.shape and out.is_contiguous()
        assert bits(out) == bits(expected), path
        assert ops.Counts.of(counted) == counts(exact, expected), path
        assert bits(torch.ops.amplint._mm_path(a, b, accumulate, chunk, path, False)[0]) == bits(expected)


@pytest.mark.parametrize(("m", "k", "n"), [(300, 700, 40), (17, 2200, 2100), (5, 9000, 600)])
@pytest.mark.parametrize("threads", [1, 2])
def test_blocks_and_threads_change_nothing(m, k, n, threads):
    a, b = torch.randn(m, k).half(), torch.randn(n, k).half().t()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out, counted = mm(a, b)
        many = mm(a[None].expand(4, -1, -1), b[None].expand(4, -1, -1))[0] if n < 100 else out[None]
    finally:
        torch.set_num_threads(before)
    exact, expected = product(a, b)
    assert bits(out) == bits(expected)
    assert ops.Counts.of(counted) == counts(exact, expected)
    assert all(bits(one) == bits(expected) for one in many)


@pytest.mark.parametrize("k", [1, 37, 1000])
def test_near_float64(k):
    """Half's rounding, and that of a sum of k terms: |error| <= 2^-11 |x| + 2^-25 + k 2^-24 sum |a||b|."""
    a, b = torch.randn(30, k).half(), torch.randn(k, 41).half()
    out, _ = mm(a, b)
    exact = a.double() @ b.double()
    bound = exact.abs() * 2**-11 + 2**-25 + k * 2**-24 * (a.double().abs() @ b.double().abs())
    assert ((out.double() - exact).abs() <= bound * 1.001).all()


A_ROW = [
    # row of a, column of b, accumulation, what comes out, and which counter says so
    ([300.0], [300.0], "float32", float("inf"), "inf"),
    ([65504.0], [1.0], "float32", 65504.0, ""),
    ([1e-4], [1e-4], "float32", 0.0, "flushed"),
    ([2**-12], [2**-13], "float32", 0.0, "flushed"),  # 2^-25: halfway to the smallest subnormal, to even
    ([2**-12 + 2**-22], [2**-13], "float32", 2**-24, "subnormal"),
    ([2**-14 - 2**-24], [1.0], "float32", 2**-14 - 2**-24, "subnormal"),
    ([2**-7], [2**-7], "float32", 2**-14, ""),
    ([0.0], [5.0], "float32", 0.0, ""),
    ([float("inf")], [0.0], "float32", float("nan"), "nan"),
    ([16.0] * 4096, [1.0] * 4096, "float32", float("inf"), "inf"),
    ([16.0] * 4095, [1.0] * 4095, "float32", float("inf"), "inf"),  # 65520, halfway to 65536
    ([16.0] * 4094, [1.0] * 4094, "float32", 65504.0, ""),
    ([16.0] * 4094 + [-16.0] * 4094, [300.0] * 8188, "float32", 0.0, ""),
    ([16.0] * 4094 + [-16.0] * 4094, [300.0] * 8188, "float16", float("inf"), "inf"),  # at half way
    ([1.0] * 4096, [1.0] * 4096, "float32", 4096.0, ""),
    ([1.0] * 4097, [1.0] * 4097, "float16", 4096.0, ""),  # 16 at a time is exact to the last 1
]


@pytest.mark.parametrize(("row", "column", "accumulate", "expected", "counter"), A_ROW)
@pytest.mark.parametrize("kernel", ["compiled", "emulated"])
def test_what_half_cannot_hold(kernel, row, column, accumulate, expected, counter):
    a, b = torch.tensor([row]).half(), torch.tensor(column)[:, None].half()
    out, counted = (mm if kernel == "compiled" else emulate.mm)(a, b, accumulate)
    found = ops.Counts.of(counted)
    assert bits(out) == bits(torch.tensor(expected).half())
    assert {name for name in ("inf", "nan", "flushed", "subnormal") if getattr(found, name)} == {counter} - {""}


def test_half_sums_of_one_at_a_time_stop_at_2048():
    ones = torch.ones(1, 4096).half()
    assert [mm(ones, ones.t(), "float16", chunk)[0].item() for chunk in (1, 2, 4096)] == [2048, 4096, 4096]


@pytest.mark.parametrize("accumulate", ["float32", "float16"])
def test_the_emulation_is_the_same_where_the_order_does_not_matter(accumulate):
    """Small integers: every sum is exact, in FP32 and in half."""
    a, b = torch.randint(-3, 4, (3, 20, 50)).half(), torch.randint(-3, 4, (3, 50, 31)).half()
    for one, other in zip(mm(a, b, accumulate), emulate.mm(a, b, accumulate), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (2, 0, 0)])
def test_the_empty_are_zero_and_count_their_elements(shape):
    m, k, n = shape
    for kernel in (mm, emulate.mm):
        out, counted = kernel(torch.ones(m, k).half(), torch.ones(k, n).half(), "float16")
        assert torch.equal(out, torch.zeros(m, n).half())
        assert ops.Counts.of(counted) == ops.Counts(elements=m * n)


@pytest.mark.parametrize(
    ("a", "b", "options", "why"),
    [
        (torch.ones(2, 3), torch.ones(3, 2), {}, "float16"),
        (torch.ones(2, 3).half(), torch.ones(2, 3).half(), {}, "do not go together"),
        (torch.ones(2).half(), torch.ones(2).half(), {}, "two matrices"),
        (torch.ones(1, 2, 3).half(), torch.ones(2, 3, 2).half(), {}, "do not go together"),
        (torch.ones(2, 3).half(), torch.ones(3, 2).half(), {"accumulate": "bfloat16"}, "accumulate"),
        (torch.ones(2, 3).half(), torch.ones(3, 2).half(), {"chunk": -1}, "chunk"),
    ],
)
def test_what_it_does_not_take(a, b, options, why):
    for kernel in (mm, emulate.mm):
        with pytest.raises((RuntimeError, ValueError), match=why):
            kernel(a, b, **options)


# -- values that are there already ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_of_all_values_that_there_are(dtype):
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    found = ops.Counts.of(statistics(values))
    fraction = {torch.float16: 10, torch.bfloat16: 7}[dtype]
    both = 2 * (2**fraction - 1)
    assert found == ops.Counts(2, both, 0, both, 2**16, float("inf"))
    assert found == ops.Counts.of(emulate.statistics(values))
    finite = values[values.isfinite()].view(-1, 2)[:, ::2]
    assert ops.Counts.of(statistics(finite)) == ops.Counts.of(emulate.statistics(finite))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(0, 700), dtype=st.sampled_from(["float16", "bfloat16"]))
def test_narrow_rounds_as_torch_does_and_counts_it(seed, n, dtype):
    """Any bits, and values at the edges of what half holds."""
    generator = torch.Generator().manual_seed(seed)
    edges = [
        65519.99,
        65520,
        -65520,
        2**-24,
        2**-25,
        2**-25 * 1.0000001,
        2**-14,
        2**-14 - 2**-25,
        0,
        -0.0,
        1e-45,
        3.4e38,
    ]
    any_bits = torch.randint(-(2**31), 2**31, (n,), generator=generator).to(torch.int32).view(torch.float32)
    x = torch.cat([any_bits, torch.randn(n, generator=generator) * 1e-6, torch.tensor(edges)])
    out, counted = narrow(x, dtype)
    expected, known = emulate.narrow(x, dtype)
    assert out.dtype == expected.dtype
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.nan_to_num(0).view(torch.int16), expected.nan_to_num(0).view(torch.int16))
    assert ops.Counts.of(counted) == ops.Counts.of(known)
    if dtype == "float16":
        with np.errstate(all="ignore"):
            assert ops.Counts.of(counted) == counts(x.numpy(), x.numpy().astype(np.float16))


def test_counts_add_up():
    x = torch.tensor([[1e-8, 90000.0], [3.0, 1e-6]])
    whole = ops.Counts.of(narrow(x)[1])
    assert whole == ops.Counts(1, 0, 1, 1, 4, 90000.0)
    assert sum((ops.Counts.of(narrow(row)[1]) for row in x), ops.Counts()) == whole
