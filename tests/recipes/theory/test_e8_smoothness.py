"""Bins never jump beyond 3 ε between states within ε; the trap jumps at every distance."""

import pytest


def test_smoke(smoke, measured, verdicts):
    assert verdicts["misses"] == 0
    assert verdicts["differs"] == 1
    assert measured("arctan, bins of width ε") == 0
    assert measured("the same, bins of width 4 ε") > 0.05
    assert min(smoke["trap_jump"]) > 0.947
    flips = {name: found["flips"] for name, found in smoke["families"].items()}
    assert flips == pytest.approx({"bins": 0.21, "k-means": 0.30, "quantile": 0.39}, abs=0.015)


def test_pairs_are_counted_as_by_brute_force():
    import e8_smoothness as recipe
    import numpy as np

    from action_tokenizers.diagnostics.known import binning_control

    tokenizer, epsilon = binning_control(0.5, 1), 1 / 8
    x = np.arange(-1, 1, epsilon / 4)
    q = tokenizer.quantize(np.arctan(x)[:, None, None])[:, 0, 0]
    i, j = np.triu_indices(len(x), 1)
    near = np.abs(x[i] - x[j]) <= epsilon + 1e-9
    assert recipe.violations(tokenizer, epsilon, 4) == ((np.abs(q[i] - q[j]) > 0.375)[near].sum(), near.sum())
