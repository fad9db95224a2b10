"""Whether all is finite, against numpy."""

import numpy as np
import pytest
import torch

from action_tokenizers.codecs.finite import all_finite

LARGEST, SMALLEST = np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal


@pytest.mark.parametrize("size", [0, 1, 7, 64, 1000, 100_003])
def test_ordinary_numbers_are_finite(size):
    values = np.random.default_rng(size).normal(0, 1e3, size).astype(np.float32)
    values[: min(size, 6)] = [LARGEST, -LARGEST, SMALLEST, -SMALLEST, 0.0, -0.0][:size]
    assert all_finite(torch.from_numpy(values))


@pytest.mark.parametrize("odd", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [1, 33, 100_003])
def test_one_odd_number_anywhere_is_found(size, odd):
    rng = np.random.default_rng(size)
    for place in {0, size // 2, size - 1, *rng.integers(0, size, 5).tolist()}:
        values = rng.normal(size=size).astype(np.float32)
        values[place] = odd
        assert not all_finite(torch.from_numpy(values))


def test_any_shape_and_order_in_memory():
    values = torch.zeros(40, 30, 3)
    values[7, 11, 2] = torch.inf
    assert not all_finite(values.transpose(0, 2))
    assert all_finite(values.transpose(0, 2)[:2])
