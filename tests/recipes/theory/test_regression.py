# ruff: noqa: RUF001  (the Greek letters of the theory are meant)
"""Regression cloning blows up without total variation continuity; log-loss on tokens learns as fast."""

import numpy as np
import pytest


def test_smoke(measured, verdicts):
    assert verdicts["misses"] == verdicts["differs"] == 0
    assert measured("unstable loop, Gaussian actions: exponent of the most") == pytest.approx(1, abs=0.05)
    assert measured("unstable loop, no noise: exponent of loss") == pytest.approx(-1, abs=0.1)
    assert measured("deterministic expert, cells 4 σ wide") == pytest.approx(0.0455, abs=1e-4)


def test_the_most_that_is_lost_is_a_total_variation():
    """Of the laws of state and action after two steps, on a grid."""
    import regression as recipe

    system, bias = recipe.SYSTEMS["unstable"], 0.05
    x = np.linspace(-1.5, 1.5, 1201)
    laws = []
    for shift in (0.0, bias):
        state = np.exp(-(((x - shift) / recipe.SPREAD) ** 2) / 2)
        action = np.exp(-(((x[None] - system.slope * x[:, None] - shift) / recipe.SPREAD) ** 2) / 2)
        joint = state[:, None] * action
        laws.append(joint / joint.sum())
    second = recipe.lost_with_noise(system, bias, 2) - recipe.lost_with_noise(system, bias, 1)
    assert second == pytest.approx(np.abs(laws[0] - laws[1]).sum() / 2, rel=1e-3)


def test_log_loss_finds_the_policy_behind_wide_cells():
    import regression as recipe

    random = np.random.default_rng(0)
    x = random.normal(size=20000)
    u = 0.3 * x - 0.1 + recipe.SPREAD * random.standard_normal(x.shape)
    low = np.floor(u / 0.2) * 0.2
    learned = recipe.by_log_loss(x, low, low + 0.2, np.array([0.25, -0.05]))
    assert learned == pytest.approx([0.3, -0.1], abs=0.004)


def test_without_errors_nothing_is_lost():
    import regression as recipe

    for system in recipe.SYSTEMS.values():
        assert recipe.lost_without_noise(system, 0.0, 50) == recipe.lost_with_noise(system, 0.0, 50) == 0
