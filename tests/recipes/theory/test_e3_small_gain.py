"""Quantized feedback drifts no farther than its closed loop allows, and grows where that is unstable."""

import math

import numpy as np
import pytest


def test_smoke(smoke, measured, verdicts):
    assert verdicts["misses"] == verdicts["differs"] == 0
    assert measured("a = 0.5, b = 1, K = 0.55 (L g = 1.1): growth") == pytest.approx(math.log(1.05), abs=2e-3)
    assert measured("its growth rate") == pytest.approx(math.log(1.1), abs=1e-3)
    gaps = dict(zip(smoke["horizons"], smoke["gaps"], strict=True))
    assert gaps == pytest.approx({10: 0.0159, 20: 0.0573, 40: 0.443, 80: 20.5}, rel=5e-3)
    columns = {k: [round(s[k], 3) for s in smoke["systems"][:3]] for k in ("L g", "g_cl", "3 g / (1 - L g)")}
    assert columns == {"L g": [0.6, 0.6, 0.9], "g_cl": [1.25, 5, 20], "3 g / (1 - L g)": [15, 15, 60]}


def test_the_library_s_bins_are_the_endless_ones_where_they_end_later():
    import e3_small_gain as recipe

    u = np.random.default_rng(0).normal(0, 3, 2000)
    assert recipe.bins(1 / 256)(u) == pytest.approx(recipe.endless(1 / 256)(u), abs=1e-6)
