"""The excess jump is exact: equal to brute force, and known where it can be said in a line."""

import numpy as np
import pytest

from action_tokenizers import BinningTokenizer
from action_tokenizers.data.synthetic import smooth_chunks
from action_tokenizers.diagnostics.smoothness import scalar_excess_jump


def brute_force(edges, centres, low=-1.0, high=1.0):
    """The largest excess over all pairs of a grid that holds both sides of every edge."""
    near = np.concatenate([edges - 1e-9, edges, edges + 1e-9])
    x = np.concatenate([np.linspace(low, high, 801), near[(near >= low) & (near <= high)]])
    q = centres[np.searchsorted(edges, x, side="right")]
    return (np.abs(q[:, None] - q) - np.abs(x[:, None] - x)).max()


@pytest.mark.parametrize("k", [1, 2, 3, 5, 9])
def test_equals_brute_force_on_random_step_functions(k):
    rng = np.random.default_rng(k)
    for _ in range(20):
        edges, centres = np.sort(rng.uniform(-1, 1, k - 1)), rng.uniform(-2, 2, k)
        assert scalar_excess_jump(edges, centres) == pytest.approx(brute_force(edges, centres), abs=1e-8)


def test_a_smaller_domain_sees_fewer_jumps():
    edges, centres = np.array([-0.5, 0.0, 0.5]), np.array([-0.75, -0.25, 0.25, 3.0])
    for low, high in ((-1, 1), (-1, 0.4), (0.1, 0.4), (-0.5, 0.5)):
        found = scalar_excess_jump(edges, centres, low, high)
        assert found == pytest.approx(brute_force(edges, centres, low, high), abs=1e-8)
    assert scalar_excess_jump(edges, centres, 0.1, 0.4) == 0


@pytest.mark.parametrize("bins", [4, 16, 256])
def test_of_uniform_bins_is_a_cell(bins):
    cells = BinningTokenizer(bins=bins).fit(smooth_chunks(200, 5, 2)).scalar_cells()
    moving, gripper = (
        scalar_excess_jump(edges.numpy(), centres.numpy())
        for edges, centres in zip(cells.edges, cells.centres, strict=True)
    )
    assert moving == pytest.approx(2 / bins, abs=1e-6)
    assert gripper == pytest.approx(2)  # two values, -1 and 1: between them there is one border to jump across
