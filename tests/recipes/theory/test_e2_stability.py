# ruff: noqa: RUF001  (the Greek letters of the theory are meant)
"""Errors add up to a gain, or double every step."""

import math

import numpy as np
import pytest


def test_smoke(measured, verdicts):
    assert verdicts == {"holds": 7, "differs": 0, "misses": 0}
    assert measured("α = 1/2: exponent") == pytest.approx(1.069, abs=1e-3)
    assert measured("α = 2: growth rate of the deviation") == pytest.approx(math.log(2), abs=1e-3)


def test_a_lasting_error_of_half_a_cell():
    import e2_stability as recipe

    assert recipe.deviations(0.5, 0.25, 3) == pytest.approx(0.125 * np.array([0, 1, 1.5, 1.75]))
