"""The cells of published formulas; `tests/tokenizers/test_presets.py` compares them with the formulas themselves."""

import numpy as np
import pytest
import scipy.stats

from action_tokenizers.codecs.preset_bins import SYSTEMS, preset_cells

RANGES = {
    name: [(-1.0, 1.0), (-0.05, 0.13), (20.0, 100.0)] if s.takes_range else [(-1.0, 1.0)] for name, s in SYSTEMS.items()
}
CASES = [(name, k, *pair) for name, pairs in RANGES.items() for pair in pairs for k in (2, 17, 256)]


@pytest.mark.parametrize(("name", "k", "low", "high"), CASES)
def test_an_edge_is_the_first_float32_of_its_id(name, k, low, high):
    edges, values = preset_cells(name, k, low, high)
    assert edges.shape == values.shape == (k,)
    found = edges[edges < np.inf]
    assert len(found) >= k - 1
    target = np.arange(1, len(found) + 1)
    assert (SYSTEMS[name].ids(found, k, low, high) >= target).all()
    assert (SYSTEMS[name].ids(np.nextafter(found, np.float32(-np.inf)), k, low, high) < target).all()
    if len(found) < k:
        assert SYSTEMS[name].ids(np.array([1e30], np.float32), k, low, high) == k - 1


@pytest.mark.parametrize(("name", "k", "low", "high"), CASES)
@pytest.mark.parametrize("corrected", [False, True])
def test_values_ascend_and_lie_in_their_bins_or_on_its_ends(name, k, low, high, corrected):
    edges, values = preset_cells(name, k, low, high, corrected)
    assert (np.diff(values) >= 0).all()
    slack = 1e-6 * (high - low)
    # OpenVLA's last id is hit by 1 alone, and decodes to the bin below
    inner = values[:-1] if name == "openvla" else values
    assert (inner[1:] >= edges[: len(inner) - 1] - slack).all()
    assert (values[:-1] <= edges[:-1] + slack).all()


def test_the_span_is_the_unit_of_values():
    edges, values = preset_cells("octo_gaussian", 64, -1.0, 1.0)
    in_fours, decoded = preset_cells("octo_gaussian", 64, -1.0, 1.0, span=4.0)
    np.testing.assert_array_equal(in_fours * 4, edges)
    np.testing.assert_array_equal(decoded * 4, values)


def test_a_formula_without_top_has_a_first_value_without_bin():
    assert preset_cells("octo_gaussian", 256, -1.0, 1.0)[0][-1] == pytest.approx(
        scipy.stats.norm.ppf(1 - 1e-6), abs=3e-3
    )
    assert preset_cells("octo_uniform", 256, 0.0, 100.0)[0][-1] <= 100
    for name in ("openvla", "rt1", "octo_uniform", "gato", "openpi"):
        assert preset_cells(name, 256, -1.0, 1.0)[0][-1] == np.inf


def test_octo_thresholds_are_those_of_jax():
    """Bit for bit where they are uniform; JAX approximates the normal quantile to a few float32 ulps."""
    jnp = pytest.importorskip("jax.numpy")
    norm = pytest.importorskip("jax.scipy.stats").norm
    for low, high in RANGES["octo_uniform"]:
        thresholds = np.asarray(jnp.linspace(low, high, 257))
        np.testing.assert_array_equal(preset_cells("octo_uniform", 256, low, high)[0][:-1], thresholds[1:-1])
    ours, theirs = preset_cells("octo_gaussian", 256, -1.0, 1.0)[0], norm.ppf(jnp.linspace(1e-6, 1 - 1e-6, 257))[1:]
    assert (np.abs(ours - theirs) <= 4 * np.spacing(np.abs(ours))).all()
