"""Ids of a Gaussian policy differ no more than the Gaussians, whatever the cells."""

import numpy as np
import pytest


def test_smoke(smoke, measured, verdicts):
    assert verdicts == {"holds": 8, "differs": 0, "misses": 0}
    assert measured("bins with an edge midway") == pytest.approx(0.1974, abs=5e-5)
    for name in ("bins", "k-means", "trap"):
        assert (np.array(smoke[name]) <= np.array(smoke["bound"]) * (1 + 1e-5)).all()


def test_k_means_cells_are_those_of_the_nearest_codeword():
    import e9_stochastic_expert as recipe

    edges, words = recipe.codebook(4)
    u = np.linspace(-1, 1, 999)
    assert (np.searchsorted(edges, u) == np.abs(u[:, None] - words).argmin(1)).all()
