"""How fast tokens change: known answers of plug-in total variation and of kernel smoothing."""

import math

import numpy as np
import pytest

from action_tokenizers.diagnostics.kernels import (
    kernel_distributions,
    kernel_slope,
    neighbour_tv,
    plugin_bias,
    plugin_tv,
)
from tests.fakes.experts import fine, look, uniform_line


class TestPlugIn:
    """64 tokens, the same random law twice: all of the plug-in total variation is chance."""

    @pytest.mark.parametrize(
        ("m", "measured", "formula"),
        [(50, 0.487, 0.563), (200, 0.270, 0.281), (1000, 0.125, 0.126), (5000, 0.057, 0.056)],
    )
    def test_bias_under_one_law(self, m, measured, formula):
        rng = np.random.default_rng(0)
        laws = rng.dirichlet(np.ones(64), 100)
        found = [plugin_tv(*rng.multinomial(m, law, 2), seed=i, shuffles=20) for i, law in enumerate(laws)]
        assert np.mean([f.plugin for f in found]) == pytest.approx(measured, abs=0.02)
        assert np.mean([plugin_bias(law, m) for law in laws]) == pytest.approx(formula, abs=0.005)
        assert np.mean([f.excess for f in found]) == pytest.approx(0, abs=0.015)

    def test_formula_for_equally_likely_tokens(self):
        assert plugin_bias(np.full(64, 1 / 64), 200) == pytest.approx(math.sqrt(63 / (math.pi * 200)))

    def test_different_laws_keep_their_difference(self):
        found = plugin_tv([500, 500, 0, 0], [0, 0, 500, 500])
        assert found.plugin == 1
        assert found.excess > 0.95

    def test_samples_of_different_size(self):
        assert plugin_tv([3, 1], [1, 1]).plugin == pytest.approx(0.25)


def test_kernel_slope_of_a_discontinuous_expert_is_the_ceiling():
    """Whatever jumps, a kernel makes smooth: slopes .399 / sigma for sigma = .05, .1 and .2."""
    places = uniform_line(lambda rng, x: np.sign(x), episodes=100)
    std = places.scale[0]
    found = kernel_slope(places, sigmas=[s / std for s in (0.05, 0.1, 0.2)])
    assert np.array(found.parts["slope"]) / std == pytest.approx([7.82, 3.92, 1.98], rel=0.05)
    assert np.array(found.parts["ceiling"]) / std == pytest.approx([7.979, 3.989, 1.995], abs=1e-3)
    assert found.parts["ratio"] == pytest.approx([1, 1, 1], abs=0.08)
    assert found.value == found.parts["slope"][1]
    assert found.parts["tokens"] == 2


def test_kernel_slope_of_an_expert_that_does_not_look_is_0():
    found = kernel_slope(uniform_line(lambda rng, x: np.full_like(x, 0.5)))
    assert found.value == pytest.approx(0, abs=1e-9)
    assert found.parts["ratio"][1] == pytest.approx(0, abs=1e-9)


def test_kernel_slope_of_a_token_for_every_place_is_all_kernel():
    coarse = uniform_line(lambda rng, x: x)
    actions = coarse.subject.episodes.actions
    alone = kernel_slope(look(fine(actions), actions, coarse.recorded)).parts
    together = kernel_slope(coarse, sigmas=alone["sigma"]).parts["share"]
    assert 0.95 < min(alone["share"]) <= max(alone["share"]) <= 1
    assert max(together) < min(alone["share"])


def test_kernel_distributions_are_those_of_a_smoothed_step():
    x = np.linspace(-2, 2, 8001)[:, None]
    tokens = (x[:, 0] > 0).astype(np.int64)
    queries = np.array([[-0.3], [-1e-3], [1e-3], [0.3]])
    p = kernel_distributions(x, tokens, queries, 0.1)
    assert p.sum(1) == pytest.approx(1)
    assert p[:, 1] == pytest.approx([0.5 * (1 + math.erf(q / 0.1 / math.sqrt(2))) for q in queries[:, 0]], abs=2e-3)
    assert (p[2, 1] - p[1, 1]) / 2e-3 == pytest.approx(3.989, rel=1e-3)


def test_neighbour_tv_takes_chance_away():
    levels = np.linspace(-0.95, 0.95, 40)
    blind = neighbour_tv(uniform_line(lambda rng, x: rng.choice(levels, x.shape), episodes=60))
    assert blind.parts["draws"] == 29
    assert blind.parts["chance"] > 0.5
    assert blind.value == pytest.approx(0, abs=0.02)
    # a staircase of wide steps: neighbours mostly agree, across a border they do not
    stairs = neighbour_tv(uniform_line(lambda rng, x: np.sign(np.sin(10 * np.pi * x)) / 2, episodes=60))
    assert stairs.value > 0.03
    assert stairs.parts["chance"] < 0.15
