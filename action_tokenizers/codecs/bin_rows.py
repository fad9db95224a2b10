"""Binning in one pass over memory: range, clip, cell and id at once, and back; to the bit what the steps alone give.

Where the cells of every dim are equally wide, and a power of two, a multiplication finds the cell. That it does so for
every float32 is checked at the edges when the tables are built: the product is monotone, so it is right everywhere if
each edge, and the float32 just below it, fall where they belong. Other cells are looked up in a grid, which leaves a
binary search among the few edges of one grid cell. For many ids the actions of all cells are computed first; where they
lie on a line to the last bit, as those of equally wide cells mostly do, it takes their place.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from action_tokenizers.codecs.affine import action_of
from action_tokenizers.codecs.kernel import kernel
from action_tokenizers.codecs.threads import all_rows

__all__ = ["CellTables", "build_cells", "decode_bins", "encode_bins"]

_Array = npt.NDArray[Any]

# grid cells per bin, where cells are not equally wide
FINENESS = 4
# values in a row of the inner loop: several steps of a few dims, so that it fills vector instructions
ROW = 256
LEAST = 1 << 14
# ids per cell from which on it is worth to compute the actions of all cells first
MANY = 4
# the largest finite float32
MOST = np.float32(np.finfo(np.float32).max)
# the float32 below 1: where no edge is 1 it lies in the same cell as 1
BELOW = np.nextafter(np.float32(1), np.float32(0))


class CellTables(NamedTuple):
    """The cells of d dims as arrays for the kernels."""

    edges: npt.NDArray[np.float32]  # (d, k) ascending, range units; filled up with more than 1
    centres: npt.NDArray[np.float32]  # (d, k)
    cells: npt.NDArray[np.int64]  # (d,) how many a dim has
    first: npt.NDArray[np.int64]  # (d,) id of its first cell
    grid: npt.NDArray[np.int32]  # (d, g + 1) edges before each of g grid cells; (d, 0): a multiplication does
    rounds: int  # of the binary search within one grid cell


def build_cells(
    edges: npt.NDArray[np.float32], centres: npt.NDArray[np.float32], cells: npt.NDArray[np.int64], shared: bool
) -> CellTables:
    """Prepare cells for the kernels.

    Args:
        edges: `(d, k - 1)`, rows filled up with a number above 1.
        centres: `(d, k)`.
        cells: `(d,)` cells of each dim.
        shared: whether id i means cell i in every dim, or each dim has ids of its own.
    """
    first = np.zeros_like(cells) if shared else np.cumsum(cells) - cells
    is_regular = all(_is_regular(row[: k - 1], int(k)) for row, k in zip(edges, cells, strict=True))
    size = 0 if is_regular else FINENESS * int(cells.max())
    grid = np.zeros((len(cells), size + 1 if size else 0), np.int32)
    if size:
        for row, borders, k in zip(grid, edges, cells, strict=True):
            inside = borders[: k - 1].astype(np.float64).clip(-1, 1)
            place = np.minimum(size - 1, ((inside + 1) * (size / 2)).astype(np.int64))
            row[1:] = np.searchsorted(place, np.arange(size), side="right")
    rounds = int(np.diff(grid).max()).bit_length() if size else 0
    padded = np.concatenate([edges, np.full((len(edges), 1), MOST)], 1)
    return CellTables(padded, np.ascontiguousarray(centres), cells, first, grid, rounds)


def _is_regular(edges: npt.NDArray[np.float32], k: int) -> bool:
    """Say whether floor(z h) + h, in float32, is the cell of every float32 z in [-1, 1); h is k / 2, or 0 for k = 1."""
    below = np.nextafter(edges, np.float32(-np.inf))
    if (edges > BELOW).any():  # what is above such an edge is 1, which the kernel takes for the number below
        return False
    return all(
        np.array_equal(np.floor(z * np.float32(k // 2)) + k // 2, cell)
        for z, cell in ((edges, np.arange(1, k)), (below, np.arange(k - 1)))
    )


def encode_bins(
    tables: CellTables, actions: _Array, low: npt.NDArray[np.float32], high: npt.NDArray[np.float32], out: _Array
) -> bool:
    """Fill `out (n, d)` int64 with the ids of `actions (n, d)` float32, and say whether all of them are finite.

    Args:
        tables: cells in range units.
        actions: where some are not finite, the ids are worthless.
        low: `(d,)` becomes -1.
        high: `(d,)` becomes +1.
        out: takes the ids.
    """
    edges, cells, first, grid, rounds = tables.edges, tables.cells, tables.first, tables.grid, tables.rounds

    def encode(i: int, j: int) -> bool:
        if grid.shape[1]:
            return _encode_any(actions[i:j], low, high, edges, first, grid, rounds, out[i:j])
        return _encode_regular(actions[i:j], low, high, cells, first, out[i:j])

    return all_rows(encode, len(actions), least=max(1, LEAST // len(cells)))


def decode_bins(
    tables: CellTables, ids: _Array, low: npt.NDArray[np.float32], high: npt.NDArray[np.float32], out: _Array
) -> bool:
    """Fill `out (n, d)` float32 with the actions of `ids (n, d)` int64, and say whether every id may stand there.

    Where one may not, `out` is worthless.
    """
    centres, cells, first = tables.centres, tables.cells, tables.first
    are_many = ids.size > MANY * centres.size
    values, line = np.empty(centres.shape if are_many else (0, 0), np.float32), np.empty((len(cells), 2))
    lie_on_line = are_many and _actions(centres, cells, low, high, values, line)

    def decode(i: int, j: int) -> bool:
        if lie_on_line:
            return _decode_line(ids[i:j], cells, first, line, out[i:j])
        if are_many:
            return _look_up(ids[i:j], cells, first, values, out[i:j])
        return _decode_each(ids[i:j], low, high, cells, first, centres, out[i:j])

    return all_rows(decode, len(ids), least=max(1, LEAST // len(cells)))


@kernel
def _encode_regular(actions: _Array, low: _Array, high: _Array, cells: _Array, first: _Array, out: _Array) -> bool:
    n, d = actions.shape
    steps = max(1, min(n, ROW // d))
    middle, scale = np.empty(steps * d, np.float64), np.empty(steps * d, np.float64)
    factor, begin = np.empty(steps * d, np.float32), np.empty(steps * d, np.int32)
    for p in range(steps * d):
        j = p % d
        half = (np.float64(high[j]) - np.float64(low[j])) / 2
        middle[p] = (np.float64(high[j]) + np.float64(low[j])) / 2
        scale[p] = 1 / half if half > 0 else 0.0
        factor[p], begin[p] = cells[j] // 2, first[j] + cells[j] // 2
    source, target = actions.ravel(), out.ravel()
    odd = 0
    for start in range(0, n * d, steps * d):
        values, ids = source[start : start + steps * d], target[start : start + steps * d]
        for p in range(len(values)):
            x = values[p]
            odd |= not abs(x) <= MOST
            z = np.float32((np.float64(x) - middle[p]) * scale[p])
            z = z if z > np.float32(-1) else np.float32(-1)  # of NaN too
            z = z if z < BELOW else BELOW
            ids[p] = begin[p] + np.int32(np.floor(z * factor[p]))
    return odd == 0


@kernel
def _encode_any(
    actions: _Array,
    low: _Array,
    high: _Array,
    edges: _Array,
    first: _Array,
    grid: _Array,
    rounds: int,
    out: _Array,
) -> bool:
    n, d = actions.shape
    size, k = grid.shape[1] - 1, edges.shape[1]
    half_size = size / 2
    steps = max(1, min(n, ROW // d))
    middle, scale = np.empty(steps * d, np.float64), np.empty(steps * d, np.float64)
    grid_row, edge_row, begin = (
        np.empty(steps * d, np.int64),
        np.empty(steps * d, np.int64),
        np.empty(steps * d, np.int64),
    )
    for p in range(steps * d):
        j = p % d
        half = (np.float64(high[j]) - np.float64(low[j])) / 2
        middle[p] = (np.float64(high[j]) + np.float64(low[j])) / 2
        scale[p] = 1 / half if half > 0 else 0.0
        grid_row[p], edge_row[p], begin[p] = j * (size + 1), j * k, first[j] - j * k
    value, place = np.empty(steps * d, np.float32), np.empty(steps * d, np.int64)
    source, target, all_edges, counts = actions.ravel(), out.ravel(), edges.ravel(), grid.ravel()
    odd, one = 0, np.uint64(1)  # unsigned, because a signed index is looked at for being negative
    for start in range(0, n * d, steps * d):
        values, ids = source[start : start + steps * d], target[start : start + steps * d]
        for p in range(len(values)):
            x = values[p]
            odd |= not abs(x) <= MOST
            z = (np.float64(x) - middle[p]) * scale[p]
            z = z if z > -1.0 else -1.0  # of NaN too
            value[p] = np.float32(z if z < 1.0 else 1.0)
            place[p] = grid_row[p] + min(size - 1, np.int64((np.float64(value[p]) + 1.0) * half_size))
        for p in range(len(values)):
            # edges of earlier grid cells are below the value, those of later ones above it
            cell = np.uint64(place[p])
            bottom, top = np.uint64(edge_row[p] + counts[cell]), np.uint64(edge_row[p] + counts[cell + one])
            for _ in range(rounds):  # always as many: a guess which way it goes would be wrong half the time
                centre = (bottom + top) >> one
                is_above = value[p] >= all_edges[centre]
                bottom = centre + one if is_above else bottom
                top = top if is_above else centre
            ids[p] = begin[p] + np.int64(bottom)
    return odd == 0


@kernel
def _actions(centres: _Array, cells: _Array, low: _Array, high: _Array, values: _Array, line: _Array) -> bool:
    """Write the action of every cell, as `affine.from_unit` computes it, and say whether all are a + b cell.

    `line (d, 2)` takes a and b.
    """
    is_line = True
    for j in range(centres.shape[0]):
        bottom, top = np.float64(low[j]), np.float64(high[j])
        half = (top - bottom) / 2
        for c in range(centres.shape[1]):
            values[j, c] = action_of(np.float64(centres[j, c]), bottom, top)
        last = cells[j] - 1
        begin, end = np.float64(centres[j, 0]), np.float64(centres[j, last])
        line[j, 0] = bottom + (begin + 1) * half
        line[j, 1] = (end - begin) / max(1, last) * half
        for c in range(cells[j]):
            on_line = np.float32(line[j, 0] + line[j, 1] * np.float64(c))
            is_line &= on_line == values[j, c] and math.copysign(1.0, on_line) == math.copysign(1.0, values[j, c])
    return is_line


@kernel
def _decode_line(ids: _Array, cells: _Array, first: _Array, line: _Array, out: _Array) -> bool:
    n, d = ids.shape
    steps = max(1, min(n, ROW // d))
    start, slope = np.empty(steps * d, np.float64), np.empty(steps * d, np.float64)
    begin, size = np.empty(steps * d, np.int64), np.empty(steps * d, np.uint64)
    for p in range(steps * d):
        j = p % d
        start[p], slope[p], begin[p], size[p] = line[j, 0], line[j, 1], first[j], cells[j]
    source, target = ids.ravel(), out.ravel()
    odd = 0
    for place in range(0, n * d, steps * d):
        row, actions = source[place : place + steps * d], target[place : place + steps * d]
        for p in range(len(row)):
            cell = row[p] - begin[p]
            odd |= np.uint64(cell) >= size[p]  # also where it is below 0
            actions[p] = np.float32(start[p] + slope[p] * np.float64(cell))
    return odd == 0


@kernel
def _look_up(ids: _Array, cells: _Array, first: _Array, values: _Array, out: _Array) -> bool:
    n, d = ids.shape
    k = values.shape[1]
    table = values.ravel()
    fine = True
    for i in range(n):
        for j in range(d):
            cell = ids[i, j] - first[j]
            inside = (cell >= 0) & (cell < cells[j])
            fine &= inside
            out[i, j] = table[np.uint64(j * k + (cell if inside else 0))]
    return fine


@kernel
def _decode_each(
    ids: _Array, low: _Array, high: _Array, cells: _Array, first: _Array, centres: _Array, out: _Array
) -> bool:
    for i in range(ids.shape[0]):
        for j in range(ids.shape[1]):
            cell = ids[i, j] - first[j]
            if cell < 0 or cell >= cells[j]:
                return False
            out[i, j] = action_of(np.float64(centres[j, cell]), np.float64(low[j]), np.float64(high[j]))
    return True
