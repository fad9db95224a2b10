"""Where cells begin and end, and which one a value is in."""

from pathlib import Path

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

import action_tokenizers
from action_tokenizers import Episodes
from action_tokenizers.codecs.bins import (
    bin_index,
    bin_value,
    gaussian_cells,
    level_cells,
    mu_law_cells,
    quantile_cells,
    uniform_cells,
)


def edges_of(*rows: np.ndarray) -> torch.Tensor:
    width = max(len(row) for row in rows)
    out = np.full((len(rows), width), np.inf, np.float32)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(out)


# ---- which cell -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 7, 1500, 5000])
def test_the_index_is_numpys_digitize(rows):
    """Values on the edges, one float32 beside them, far outside, and at random; several dims of several widths."""
    rng = np.random.default_rng(rows)
    dims = [np.sort(rng.uniform(-1, 1, k)).astype(np.float32) for k in (1, 3, 31, 255)]
    edges = edges_of(*dims)
    values = rng.uniform(-1.2, 1.2, (rows, 4)).astype(np.float32)
    for j, row in enumerate(dims):
        beside = np.concatenate([row, np.nextafter(row, np.float32(-9)), np.nextafter(row, np.float32(9)), [-9, 9]])
        count = min(rows, len(beside))
        values[:count, j] = rng.permutation(beside.astype(np.float32))[:count]
    index = bin_index(torch.from_numpy(values), edges)
    assert index.dtype == torch.int64
    for j, row in enumerate(dims):
        np.testing.assert_array_equal(index[:, j].numpy(), np.digitize(values[:, j], row))


def test_a_value_on_an_edge_belongs_to_the_cell_above():
    values = torch.tensor([[-0.5], [0.0], [0.5], [-0.0]])
    assert bin_index(values, torch.tensor([[-0.5, 0.0, 0.5]]))[:, 0].tolist() == [1, 2, 3, 2]


def test_equal_edges_leave_the_cell_between_them_empty():
    assert bin_index(torch.tensor([[-1.0], [0.0], [1.0]]), torch.tensor([[0.0, 0.0]]))[:, 0].tolist() == [0, 2, 2]


def test_filled_up_edges_are_never_reached():
    values = torch.tensor([[1.0, 1.0], [torch.finfo(torch.float32).max, -1.0]])
    assert bin_index(values, edges_of(np.array([0.0]), np.array([-0.5, 0.0, 0.5]))).tolist() == [[1, 3], [1, 0]]


def test_no_edges_and_no_rows():
    assert bin_index(torch.ones(3, 2), torch.empty(2, 0)).tolist() == [[0, 0]] * 3
    assert bin_index(torch.empty(0, 2), torch.zeros(2, 1)).shape == (0, 2)


def test_values_that_lie_strangely_in_memory():
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.uniform(-1, 1, (3, 2000)).astype(np.float32)).T
    edges = torch.linspace(-0.9, 0.9, 9).repeat(3, 1)
    torch.testing.assert_close(bin_index(values, edges), bin_index(values.contiguous(), edges))


def test_bin_value_looks_each_dim_up_in_its_own_row():
    centres = torch.tensor([[0.0, 1.0, 2.0], [10.0, 11.0, 12.0]])
    assert bin_value(torch.tensor([[0, 2], [1, 1]]), centres).tolist() == [[0.0, 12.0], [1.0, 11.0]]


# ---- cells ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3, 7, 256])
def test_uniform_cells(k):
    edges, centres = uniform_cells(k)
    borders = np.concatenate([[-1], edges, [1]])
    np.testing.assert_allclose(np.diff(borders), 2 / k, atol=1e-15)
    np.testing.assert_allclose(centres, -1 + (2 * np.arange(k) + 1) / k, atol=1e-15)


@pytest.mark.parametrize("mu", [0.5, 100.0, 255.0])
@pytest.mark.parametrize("k", [2, 9, 256])
def test_mu_law_cells_are_uniform_after_the_companding(k, mu):
    edges, centres = mu_law_cells(k, mu)
    flat_edges, flat_centres = uniform_cells(k)

    def compand(x):
        return np.sign(x) * np.log(1 + mu * np.abs(x)) / np.log(1 + mu)

    np.testing.assert_allclose(compand(edges), flat_edges, atol=1e-12)
    np.testing.assert_allclose(compand(centres), flat_centres, atol=1e-12)
    widths = np.diff(np.concatenate([[-1], edges, [1]]))
    assert widths[len(widths) // 2] <= widths[0]  # narrow near 0
    np.testing.assert_allclose(edges, -edges[::-1], atol=1e-15)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.3), (0.2, 1.0), (-0.9, 0.05), (0.0, 30.0), (0.999, 1e-4)])
@pytest.mark.parametrize("k", [2, 5, 64])
def test_gaussian_cells_are_equal_in_mass_and_decode_to_conditional_means(k, mean, std):
    edges, centres = gaussian_cells(k, mean, std)
    law = scipy.stats.norm(mean, std)
    every = law.ppf(np.arange(1, k) / k)
    np.testing.assert_allclose(edges, every[(every > -1) & (every < 1)], rtol=1e-9, atol=1e-12)
    borders = np.concatenate([[-1], edges, [1]])
    assert len(centres) == len(edges) + 1
    assert (centres >= -1).all()
    assert (centres <= 1).all()
    for low, high, centre in zip(borders[:-1], borders[1:], centres, strict=True):
        mass = law.cdf(high) - law.cdf(low)
        if mass < 1e-9:
            continue
        # what lies in the cell and carries mass
        a, b = max(low, mean - 12 * std), min(high, mean + 12 * std)
        first, _ = scipy.integrate.quad(lambda x: x * law.pdf(x), a, b, epsabs=1e-13)
        assert centre == pytest.approx(first / mass, abs=1e-6 * std + 1e-9)
        assert low <= centre <= high


def test_gaussian_cells_far_from_the_range_still_have_a_centre_inside():
    for mean, std in [(0.0, 1e-9), (-1.0, 1e-3), (1.0, 1e-7), (0.5, 1e3)]:
        edges, centres = gaussian_cells(16, mean, std)
        borders = np.concatenate([[-1], edges, [1]])
        assert np.isfinite(centres).all()
        assert (borders[:-1] <= centres).all()
        assert (centres <= borders[1:]).all()


def test_quantile_cells_hold_equal_mass_and_decode_to_the_mean():
    rng = np.random.default_rng(0)
    values = np.clip(rng.normal(0, 0.3, 20_000), -1, 1).astype(np.float32)
    edges, centres = quantile_cells(values, 32)
    cell = np.digitize(values, edges)
    count = np.bincount(cell, minlength=32)
    assert len(centres) == 32
    assert count.min() > 0.4 * 20_000 / 32
    assert count.max() < 1.9 * 20_000 / 32
    np.testing.assert_allclose(centres, [values[cell == i].mean(dtype=np.float64) for i in range(32)], atol=1e-9)
    assert (np.diff(centres) > 0).all()


@pytest.mark.parametrize("seed", range(10))
def test_quantile_cells_beside_mass_points(seed):
    """A third at 0, a third at 1, the rest spread: both points keep cells of their own, no cell is empty."""
    rng = np.random.default_rng(seed)
    values = np.concatenate([np.zeros(3000), np.ones(3000), rng.uniform(-1, 1, 3000)]).astype(np.float32)
    edges, centres = quantile_cells(rng.permutation(values), 16)
    assert len(centres) <= 16
    assert (np.diff(edges) > 0).all()
    cell = np.digitize(values, edges)
    assert (np.bincount(cell, minlength=len(centres)) > 0).all()
    for point in (0.0, 1.0):
        home = values[np.digitize(point, edges) == cell]
        assert (home == point).mean() > 0.6
    assert abs(centres[np.digitize(1.0, edges)] - 1) < 0.06
    low, high = np.digitize(0.0, edges), np.digitize(1.0, edges)
    assert low != high


@pytest.mark.parametrize("k", [32, 256])
def test_motion_that_decays_to_zero_takes_no_cells_among_denormal_numbers(k):
    """In a range symmetric about 0, normalised values may be as small as 1e-45, which are 0 where denormals are."""
    decaying = (0.9 ** np.arange(980)).astype(np.float32)
    values = np.concatenate([decaying, -decaying])
    tiny = np.finfo(np.float32).tiny
    assert 0 < np.abs(values).min() < 1e-44
    assert (np.abs(exactly_distinct(values, k)) < tiny).sum() >= k / 8  # were every distinct value its own
    edges, centres = quantile_cells(values, k)
    assert len(centres) == k
    denormal = np.digitize(values[np.abs(values) < tiny / 4], edges)
    assert (denormal == denormal[0]).all()
    assert (np.abs(centres) >= tiny).sum() >= k - 3  # what 0 does not need goes to the others


def test_so_few_values_that_each_is_a_level_are_not_denormal_either():
    values = np.repeat(np.array([-1e-40, 0, 1e-40, 0.5], np.float32), 3)
    assert quantile_cells(values, 4)[1].tolist() == [0, 0.5]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("k", [4, 8, 64])
def test_no_edge_is_denormal(sign, k):
    """Half way between 0 and the least normal number is one, which hardware without them takes for 0."""
    tiny = np.finfo(np.float32).tiny
    steps = tiny * np.arange(1, 41, dtype=np.float32)
    values = sign * np.concatenate([np.zeros(40, np.float32), steps, steps])
    edges, centres = quantile_cells(values, k)
    stored = edges.astype(np.float32)
    assert ((stored == 0) | (np.abs(stored) >= tiny)).all()
    assert (np.diff(stored) > 0).all()
    index = np.searchsorted(stored, values, side="right")
    assert (np.bincount(index, minlength=len(centres)) > 0).all()
    for value in np.unique(values):
        assert len(set(index[values == value])) == 1


def test_values_around_the_least_normal_numbers_are_levels_of_their_own():
    tiny = np.finfo(np.float32).tiny
    values = np.array([-tiny, 0, tiny, 1], np.float32)
    edges, centres = quantile_cells(values, 4)
    assert edges.tolist() == [0, tiny, 0.5]
    assert centres[np.searchsorted(edges, values, side="right")].tolist() == values.tolist()


def exactly_distinct(values, k):
    """The codewords of `quantile_cells` where every distinct value is one of its own."""
    quantiles = np.quantile(values, (np.arange(k) + 0.5) / k, method="nearest")
    found, times = np.unique(quantiles, return_counts=True)
    atoms = found[times > 1]
    rest = values[~np.isin(values, atoms)]
    if not len(atoms) or not len(rest):
        return found
    return np.unique(np.concatenate([atoms, exactly_distinct(rest, k - len(atoms))]))


ORDINARY = {
    "normal": lambda rng: rng.normal(0, 0.3, 5000).clip(-1, 1),
    "uniform": lambda rng: rng.uniform(-1, 1, 5000),
    "at the ends": lambda rng: np.concatenate([rng.uniform(0.9999, 1, 3000), -rng.uniform(0.9999, 1, 3000)]),
    "at rest": lambda rng: np.where(rng.random(5000) < 0.9, 0, rng.uniform(-1, 1, 5000)),
    "rounded": lambda rng: rng.normal(0, 0.3, 5000).round(3).clip(-1, 1),
}


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize("k", [2, 16, 256])
def test_quantile_cells_of_ordinary_data_are_those_of_distinct_values_to_the_bit(name, k):
    for seed in range(5):
        values = ORDINARY[name](np.random.default_rng(seed)).astype(np.float32)
        codewords = exactly_distinct(values, k).astype(np.float64)
        edges, _ = quantile_cells(values, k)
        assert edges.tolist() == ((codewords[:-1] + codewords[1:]) / 2).tolist()


def test_quantile_cells_of_recorded_data_are_those_of_distinct_values_to_the_bit():
    recorded = np.concatenate(Episodes.load(Path(action_tokenizers.__file__).parent / "data" / "demo").actions)
    middle, half = (recorded.max(0) + recorded.min(0)) / 2, np.ptp(recorded, axis=0) / 2
    normalised = ((recorded - middle) / np.where(half > 0, half, 1)).T
    moving = [values for values in normalised if len(np.unique(values)) > 64]
    assert moving
    for values in moving:
        codewords = exactly_distinct(values, 64).astype(np.float64)
        assert quantile_cells(values, 64)[0].tolist() == ((codewords[:-1] + codewords[1:]) / 2).tolist()


@pytest.mark.parametrize("k", [3, 5, 9])
def test_few_distinct_values_are_levels(k):
    values = np.repeat(np.array([-1.0, 0.25, 0.5], np.float32), [5, 1, 100])
    edges, centres = quantile_cells(values, k)
    assert centres.tolist() == [-1.0, 0.25, 0.5]
    np.testing.assert_array_equal(centres[np.digitize(values, edges)], values)


def test_level_cells_keep_every_level():
    levels = np.array([-1.0, -0.999, 0.0, 1.0])
    edges, centres = level_cells(levels)
    np.testing.assert_array_equal(centres[np.digitize(levels, edges)], levels)
    edges, centres = level_cells(np.array([0.5]))
    assert edges.shape == (0,)
    assert centres.tolist() == [0.5]


def test_levels_stay_themselves_when_edges_become_float32():
    """Edges are stored in float32: the middle of two neighbours must not fall on the lower one."""
    first = np.float32(0.3)
    values = [first]
    for _ in range(5):
        values.append(np.nextafter(values[-1], np.float32(1)))
    levels = np.array(values, np.float64)
    edges, centres = level_cells(levels)
    index = bin_index(
        torch.tensor(levels, dtype=torch.float32)[:, None], torch.tensor(edges, dtype=torch.float32)[None]
    )
    assert index[:, 0].tolist() == list(range(len(levels)))
    assert centres.tolist() == levels.tolist()


def test_a_rare_opening_keeps_its_own_cells():
    """A gripper at rest in 98.5 % of the frames: the rest must not be merged with it."""
    rng = np.random.default_rng(0)
    values = np.zeros(4000, np.float32)
    values[:60] = rng.uniform(0.8, 1, 60)
    edges, centres = quantile_cells(values, 16)
    assert len(centres) == 16
    decoded = centres[np.searchsorted(edges, values, side="right")]
    assert (decoded[60:] == 0).all()
    assert np.abs(decoded[:60] - values[:60]).max() < 0.03
    values[:60] = 1
    values[0] = 0.4  # one frame in between
    values[1:4] = (0.5, 0.6, 0.7)
    edges, centres = quantile_cells(values, 4)
    decoded = centres[np.searchsorted(edges, values, side="right")]
    assert (decoded[60:] == 0).all()
    assert np.abs(decoded[4:60] - 1).max() < 0.02
