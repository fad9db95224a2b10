"""Binning in one pass against its steps: the range, the cells, the ids, and back; equal to the bit."""

import numpy as np
import pytest
import torch

from action_tokenizers.codecs import bin_rows
from action_tokenizers.codecs.affine import from_unit, to_unit
from action_tokenizers.codecs.bin_rows import CellTables, build_cells, decode_bins, encode_bins
from action_tokenizers.codecs.bins import (
    Cells,
    bin_index,
    bin_value,
    gaussian_cells,
    level_cells,
    mu_law_cells,
    quantile_cells,
    uniform_cells,
)

BELOW = np.nextafter(np.float32(1), np.float32(0))
BEYOND = np.finfo(np.float32).max
SKEWED = np.clip(np.random.default_rng(0).normal(0.2, 0.1, 5000), -1, 1).astype(np.float32)

# names of the cells of each dim
DIMS: dict[str, list[Cells]] = {
    "uniform 256": [uniform_cells(256)] * 3,
    "uniform 1": [uniform_cells(1), uniform_cells(2)],
    "uniform, each another number": [uniform_cells(k) for k in (2, 3, 4, 64, 255, 256, 1000)],
    "uniform 100": [uniform_cells(100)],
    "with a gripper and a constant": [uniform_cells(256), level_cells(np.array([-1.0, 1.0])), level_cells(np.zeros(1))],
    "three levels": [level_cells(np.array([-1.0, 0.0, 1.0])), uniform_cells(8)],
    "a level beside the end": [level_cells(np.array([-BELOW, BELOW, 1.0]))],
    "gaussian": [gaussian_cells(256, 0, 0.3), gaussian_cells(16, 0.5, 1e-4)],
    "all in one place": [gaussian_cells(256, 0.1, 1e-7)],
    "mu law": [mu_law_cells(256, 100.0)] * 2,
    "quantile": [quantile_cells(SKEWED, 64), uniform_cells(64)],
}
RANGES = [(-1.0, 1.0), (-0.3, 2.5), (10.0, 10.0), (-1e-3, 4e-3), (1e6, 1e6 + 1)]


def tables_of(dims: list[Cells], shared: bool) -> CellTables:
    k = max(len(centres) for _, centres in dims)
    edges, centres = np.full((len(dims), k - 1), BEYOND, np.float32), np.zeros((len(dims), k), np.float32)
    for j, (borders, values) in enumerate(dims):
        edges[j, : len(borders)] = borders
        centres[j] = values[-1]
        centres[j, : len(values)] = values
    return build_cells(edges, centres, np.array([len(values) for _, values in dims]), shared)


def range_of(d: int) -> tuple[np.ndarray, np.ndarray]:
    ends = np.array([RANGES[j % len(RANGES)] for j in range(d)], np.float32)
    return ends[:, 0].copy(), ends[:, 1].copy()


def probing(tables: CellTables, low: np.ndarray, high: np.ndarray, n: int = 3000) -> np.ndarray:
    """Values at random, on the images of the edges, one float32 beside them, at the ends and far outside."""
    rng = np.random.default_rng(n)
    d = len(low)
    values = (low + rng.uniform(-0.2, 1.2, (n, d)) * (high - low + 1e-6)).astype(np.float32)
    for j in range(d):
        edges = tables.edges[j, : tables.cells[j] - 1].astype(np.float64)
        on = (low[j] + (edges + 1) / 2 * (np.float64(high[j]) - low[j])).astype(np.float32)
        beside = [on, np.nextafter(on, np.float32(-np.inf)), np.nextafter(on, np.float32(np.inf))]
        some = np.concatenate([*beside, low[j : j + 1], high[j : j + 1], np.float32([-BEYOND, BEYOND, 0, -1e-45])])
        values[: len(some), j] = some[:n]
    return values


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", DIMS)
def test_ids_are_those_of_the_steps(name, shared):
    tables = tables_of(DIMS[name], shared)
    low, high = range_of(len(tables.cells))
    actions = probing(tables, low, high)
    ids = np.full(actions.shape, -9, np.int64)
    assert encode_bins(tables, actions, low, high, ids)
    unit = to_unit(torch.from_numpy(actions), torch.from_numpy(low), torch.from_numpy(high))
    steps = bin_index(unit, torch.from_numpy(tables.edges)).numpy() + tables.first
    np.testing.assert_array_equal(ids, steps)
    for few in (0, 1, 2):
        alone = np.empty((few, ids.shape[1]), np.int64)
        assert encode_bins(tables, actions[:few], low, high, alone)
        np.testing.assert_array_equal(alone, ids[:few])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", DIMS)
def test_actions_are_those_of_the_steps(name, shared):
    tables = tables_of(DIMS[name], shared)
    low, high = range_of(len(tables.cells))
    cells = np.random.default_rng(1).integers(0, tables.cells, (5000, len(tables.cells)))
    cells[: tables.cells.max()] = np.minimum(np.arange(tables.cells.max())[:, None], tables.cells - 1)
    values = bin_value(torch.from_numpy(cells), torch.from_numpy(tables.centres))
    steps = from_unit(values, torch.from_numpy(low), torch.from_numpy(high)).numpy()
    for n in (0, 1, 3, len(cells)):  # few ids go through the centres, many through a table
        out = np.empty((n, cells.shape[1]), np.float32)
        assert decode_bins(tables, cells[:n] + tables.first, low, high, out)
        np.testing.assert_array_equal(out, steps[:n])


def test_the_multiplication_serves_where_it_is_right_and_nowhere_else():
    is_regular = {name: tables_of(dims, True).grid.shape[1] == 0 for name, dims in DIMS.items()}
    assert is_regular["uniform 256"]
    assert is_regular["uniform 1"]
    assert is_regular["with a gripper and a constant"]
    assert not is_regular["three levels"]
    assert not is_regular["quantile"]


@pytest.mark.parametrize(("name", "expected"), [("uniform 256", True), ("three levels", True), ("mu law", False)])
def test_a_line_gives_the_actions_only_where_it_gives_all_of_them(name, expected):
    tables = tables_of(DIMS[name], True)
    low, high = range_of(len(tables.cells))
    values, line = np.empty(tables.centres.shape, np.float32), np.empty((len(low), 2))
    assert bin_rows._actions(tables.centres, tables.cells, low, high, values, line) == expected
    on_line = (line[:, :1] + line[:, 1:] * np.arange(values.shape[1])).astype(np.float32)
    exists = np.arange(values.shape[1]) < tables.cells[:, None]
    assert np.array_equal(on_line[exists], values[exists]) == expected


def test_a_line_that_gives_another_zero_is_none():
    tables = build_cells(np.empty((1, 0), np.float32), np.zeros((1, 1), np.float32), np.array([1]), True)
    bounds = np.full(1, -0.0, np.float32)  # a dim that is always -0
    few, many = np.empty((1, 1), np.float32), np.empty((500, 1), np.float32)
    for out in (few, many):
        assert decode_bins(tables, np.zeros(out.shape, np.int64), bounds, bounds, out)
    assert np.signbit(few).all() == np.signbit(many).all()


def test_a_border_at_the_end_of_the_range_is_not_taken_for_regular():
    """Three cells with borders 0 and 1: floor(z) + 1 is right at both, but the kernel takes 1 for the float below."""
    tables = tables_of([(np.array([0.0, 1.0], np.float32), np.array([-1.0, 0.5, 1.0], np.float32))], False)
    assert tables.grid.shape[1]
    ids = np.empty((4, 1), np.int64)
    values = np.array([[-0.5], [0.0], [BELOW], [1.0]], np.float32)
    assert encode_bins(tables, values, np.array([-1], np.float32), np.array([1], np.float32), ids)
    assert ids.ravel().tolist() == [0, 1, 1, 2]


def test_a_cell_border_one_float_off_is_not_taken_for_regular():
    edges, centres = (a.astype(np.float32)[None] for a in uniform_cells(16))
    assert build_cells(edges, centres, np.array([16]), True).grid.shape[1] == 0
    for i in range(15):
        moved = edges.copy()
        moved[0, i] = np.nextafter(moved[0, i], np.float32(1))
        assert build_cells(moved, centres, np.array([16]), True).grid.shape[1] > 0


@pytest.mark.parametrize("name", ["uniform 256", "mu law"])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_says_when_something_is_not_finite(name, odd):
    tables = tables_of(DIMS[name], True)
    low, high = range_of(len(tables.cells))
    for n in (1, 300, 20_000):
        actions = np.zeros((n, len(low)), np.float32)
        out = np.empty(actions.shape, np.int64)
        assert encode_bins(tables, actions, low, high, out)
        actions[n // 2, -1] = odd
        assert not encode_bins(tables, actions, low, high, out)


@pytest.mark.parametrize("n", [1, 4, 20_000])
@pytest.mark.parametrize(
    "name", ["uniform 256", "with a gripper and a constant", "mu law", "uniform, each another number"]
)
def test_refuses_ids_that_may_not_stand_there(name, n):
    tables = tables_of(DIMS[name], False)
    low, high = range_of(len(tables.cells))
    ids = np.tile(tables.first, (n, 1))
    out = np.empty(ids.shape, np.float32)
    assert decode_bins(tables, ids, low, high, out)
    for j, (first, cells) in enumerate(zip(tables.first, tables.cells, strict=True)):
        for wrong in (first - 1, first + cells, -(2**63), 2**63 - 1):
            bad = ids.copy()
            bad[-1, j] = wrong
            assert not decode_bins(tables, bad, low, high, out)


def test_blocks_of_rows_on_several_threads_give_the_same(monkeypatch):
    tables = tables_of(DIMS["gaussian"], False)
    low, high = range_of(len(tables.cells))
    actions = probing(tables, low, high, 5000)
    alone, together = np.empty(actions.shape, np.int64), np.empty(actions.shape, np.int64)
    encode_bins(tables, actions, low, high, alone)
    monkeypatch.setattr(bin_rows, "LEAST", 64)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        encode_bins(tables, actions, low, high, together)
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(alone, together)
