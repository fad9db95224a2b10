"""The map to [-1, 1] and back: exact to one float32 ulp of the range, whatever the range."""

import numpy as np
import pytest
import torch

from action_tokenizers.codecs.affine import from_unit, to_unit

MOST = float(np.finfo(np.float32).max)
RANGES = [
    (-1.0, 1.0),
    (0.0, 1.0),
    (-3.1, 0.7),
    (1000.0, 1000.001),
    (-1e-6, 1e-6),
    (12.0, 511.0),
    (0.0, 65280.0),
    (-1e30, 1e30),
    (-MOST, MOST),
    (0.0, MOST),
    (1e-40, 3e-40),  # subnormal
    (-1e-38, 1.0),
    (1e6, 1e6 + 0.0625),
]


def one(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float32)


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_the_round_trip_errs_by_one_ulp_of_the_range_at_most(low, high):
    a, b = one(low), one(high)
    lower, upper = a.double().item(), b.double().item()
    share = np.random.default_rng(0).uniform(0, 1, (4000, 1))
    x = torch.from_numpy((lower + share * upper - share * lower).astype(np.float32)).clamp(a, b)
    x[:2, 0] = torch.cat([a, b])
    z = to_unit(x, a, b)
    assert z.dtype == torch.float32
    assert bool((z.abs() <= 1).all())
    back = from_unit(z, a, b)
    reach = np.float32(max(abs(lower), abs(upper)))
    # one ulp of z, scaled to the range, and the rounding of the result itself
    ulp = max((upper - lower) / 2 * 2.0**-24, float(reach) * 2.0**-23)
    assert float((back.double() - x.double()).abs().max()) <= ulp


@pytest.mark.parametrize(("low", "high"), [*RANGES, (1e-3, 1e7), (0.1, 1e12), (-1e12, -0.1)])
def test_the_ends_come_back_exactly(low, high):
    """Grippers live on the ends: both values must survive, and nothing decoded may leave the range."""
    a, b = one(low), one(high)
    ends = torch.stack([a, b])
    assert to_unit(ends, a, b).tolist() == [[-1.0], [1.0]]
    assert from_unit(torch.tensor([[-1.0], [1.0]]), a, b).tolist() == ends.tolist()


@pytest.mark.parametrize(("low", "high"), [*RANGES, (1e-3, 1e7), (0.1, 1e12), (-1e12, -0.1)])
def test_what_comes_back_is_inside_the_range(low, high):
    a, b = one(low), one(high)
    z = torch.from_numpy(np.random.default_rng(1).uniform(-1.3, 1.3, (3000, 1)).astype(np.float32))
    z[:3, 0] = torch.tensor([-1.0, 1.0, float(np.nextafter(np.float32(-1), np.float32(0)))])
    x = from_unit(z, a, b)
    assert float(x.min()) >= a.item()
    assert float(x.max()) <= b.item()
    order = z[:, 0].argsort()
    assert bool((x[order, 0].diff() >= 0).all())  # and in order


@pytest.mark.parametrize("value", [0.0, -0.25, 1e30, 1e-42, 255.0])
def test_a_constant_dim_becomes_zero_and_comes_back(value):
    a = one(value)
    x = torch.tensor([[value], [value + 1], [-1e30]], dtype=torch.float32)
    assert to_unit(x, a, a).tolist() == [[0.0], [0.0], [0.0]]
    assert from_unit(torch.tensor([[0.0], [1.0], [-1.0], [0.3]]), a, a).tolist() == [[a.item()]] * 4


def test_clips():
    low, high = torch.tensor([0.0, -2.0]), torch.tensor([4.0, 2.0])
    x = torch.tensor([[-1.0, -9.0], [5.0, MOST], [2.0, 1.0]])
    assert to_unit(x, low, high).tolist() == [[-1.0, -1.0], [1.0, 1.0], [0.0, 0.5]]
    z = torch.tensor([[-7.0, 1.5], [1.0000001, -MOST]])
    assert from_unit(z, low, high).tolist() == [[0.0, 2.0], [4.0, -2.0]]


@pytest.mark.parametrize("lead", [(), (1,), (6,), (2, 3), (0,), (5000,), (3, 0)])
def test_keeps_the_leading_dims(lead):
    rng = np.random.default_rng(2)
    low, high = torch.tensor([-1.0, 0.0, 5.0]), torch.tensor([1.0, 3.0, 5.0])
    x = torch.from_numpy(rng.uniform(-2, 6, (*lead, 3)).astype(np.float32))
    z = to_unit(x, low, high)
    assert z.shape == x.shape
    expected = np.clip((x.numpy().astype(np.float64) - [0, 1.5, 5]) * [1, 1 / 1.5, 0], -1, 1).astype(np.float32)
    np.testing.assert_allclose(z.numpy(), expected, atol=1e-7)
    np.testing.assert_allclose(
        from_unit(z, low, high).numpy(), np.clip(x.numpy(), low.numpy(), high.numpy()), atol=1e-6
    )


def test_inputs_may_lie_strangely_in_memory_and_stay_as_they_were():
    rng = np.random.default_rng(3)
    x = torch.from_numpy(rng.uniform(-1, 1, (3, 40, 5)).astype(np.float32)).transpose(0, 2)[1:, ::2]
    before = x.clone()
    low, high = torch.full((3,), -0.5), torch.full((3,), 0.25)
    torch.testing.assert_close(to_unit(x, low, high), to_unit(x.contiguous(), low, high), rtol=0, atol=0)
    torch.testing.assert_close(from_unit(x, low, high), from_unit(x.contiguous(), low, high), rtol=0, atol=0)
    torch.testing.assert_close(x, before, rtol=0, atol=0)


def test_many_rows_on_many_threads_give_what_few_rows_give():
    x = torch.from_numpy(np.random.default_rng(4).uniform(-3, 3, (30_000, 2)).astype(np.float32))
    low, high = torch.tensor([-1.0, -0.3]), torch.tensor([2.0, 0.9])
    parts = torch.cat([to_unit(part, low, high) for part in x.split(777)])
    torch.testing.assert_close(to_unit(x, low, high), parts, rtol=0, atol=0)
