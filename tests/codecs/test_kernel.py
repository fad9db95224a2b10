import numba
import numpy as np
import pytest

from action_tokenizers.codecs.kernel import kernel, loose_kernel


def double(x):
    return 2 * x


def test_compiles_and_releases_the_gil():
    compiled = kernel(double)
    assert compiled(21) == 42
    assert compiled.targetoptions["nogil"]


def test_without_a_place_for_the_cache_it_compiles_all_the_same(monkeypatch):
    original = numba.njit

    def njit(**options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return original(**options)

    monkeypatch.setattr(numba, "njit", njit)
    assert kernel(double)(21) == 42
    assert loose_kernel(double)(21) == 42


def dot(a, b):
    total = 0.0
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


def test_a_loose_kernel_may_sum_in_any_order_and_knows_infinity():
    a, b = np.random.default_rng(0).normal(size=(2, 1001))
    loose = loose_kernel(dot)
    assert loose(a, b) == pytest.approx(a @ b)
    assert loose(np.array([np.inf, 1.0]), np.array([1.0, 1.0])) == np.inf
    assert loose.targetoptions["nogil"]
    assert "ninf" not in loose.targetoptions["fastmath"]
