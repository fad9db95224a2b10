import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from action_tokenizers.codecs import kernel as module
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


INNER = """
from kernels.kernel import kernel

@kernel
def inner(x):
    return x + {}
"""
OUTER = """
from kernels.inner import inner
from kernels.kernel import kernel

@kernel
def outer(x):
    return 2 * inner(x)
"""
CALL = "from kernels.outer import outer; print(outer(1), sum(outer.stats.cache_hits.values()))"


def call(folder, **environment):
    run = [sys.executable, "-c", CALL]
    done = subprocess.run(
        run, cwd=folder, env={**os.environ, **environment}, check=True, capture_output=True, text=True, timeout=120
    )
    return tuple(map(int, done.stdout.split()))


@pytest.mark.parametrize("elsewhere", [False, True], ids=["beside the source", "in a cache folder"])
def test_an_edit_of_another_file_makes_the_kernels_that_hold_it_anew(tmp_path, elsewhere):
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "kernel.py").write_text(Path(module.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    (package / "inner.py").write_text(INNER.format(1), encoding="utf-8")
    (package / "outer.py").write_text(OUTER, encoding="utf-8")
    place = {"NUMBA_CACHE_DIR": str(tmp_path / "cache") if elsewhere else ""}
    assert call(tmp_path, **place) == (4, 0)
    assert call(tmp_path, **place) == (4, 1)
    (package / "inner.py").write_text(INNER.format(100), encoding="utf-8")
    assert call(tmp_path, **place) == (202, 0)
    assert call(tmp_path, **place) == (202, 1)
