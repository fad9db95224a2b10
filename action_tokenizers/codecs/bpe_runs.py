"""Sequences as runs (symbol, repeats) in a row: a merge that occurs often writes them all anew.

Most coefficients of a chunk are zeros, and a run of them is halved in one step. Neighbouring runs differ in their
symbols, so a pair (a, a) occurs inside runs and a pair (a, b) at their borders. Occurrences of (a, b) never overlap, so
their order does not matter; those of (a, a) do, inside one run, where leftmost first means that an odd symbol is left
over at its right end.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from action_tokenizers.codecs.bpe_pairs import (
    CUT_LEFT,
    CUT_RIGHT,
    IN_LEFT,
    IN_NEW,
    IN_RIGHT,
    NEW_LEFT,
    NEW_RIGHT,
    TOUCHED,
    Tally,
)
from action_tokenizers.codecs.kernel import kernel

__all__ = ["BARRIER", "Runs"]

_Array = npt.NDArray[Any]

# a table of all pairs may have so many, or that many for each run: sorting their keys takes more memory
MOST_COUNTERS, COUNTERS_PER_RUN = 1 << 22, 4
BARRIER = -1  # the last row of a tally
# columns of a run
SYMBOL, REPEATS = 0, 1


class Runs:
    """The runs of some sequences, between two barriers.

    Args:
        symbols: `(length,)` int32, the sequences joined, each followed by `BARRIER`.
        width: larger than every symbol there will be.

    Attributes:
        tally: what the last merge has changed.
    """

    def __init__(self, symbols: npt.NDArray[np.int32], width: int) -> None:
        # arrays are allocated outside kernels, because numpy asks for huge pages; what is never touched costs nothing
        self._rows = np.empty((_count_runs(symbols) + 2, 2), np.int32)
        self._number = _write_runs(symbols, self._rows)
        self._spare = np.empty((0, 2), np.int32)
        self._width, self.tally = width, Tally(width)

    def __len__(self) -> int:
        return self._number

    @property
    def rows(self) -> npt.NDArray[np.int32]:
        """The runs `(n, 2)`, symbol and repeats; the first and the last are barriers."""
        return self._rows[: self._number]

    def count(self, symbols: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the keys of all pairs of so many symbols, and how often each occurs."""
        if symbols**2 <= max(MOST_COUNTERS, COUNTERS_PER_RUN * len(self)):
            count = _count_pairs(self.rows, symbols)[:-1, :-1]
            left, right = np.nonzero(count)
            return left * self._width + right, count[left, right]
        symbol, repeats = self.rows.T.astype(np.int64)
        inside, border = (symbol >= 0) & (repeats > 1), (symbol[:-1] >= 0) & (symbol[1:] >= 0)
        left, right = symbol[:-1][border], symbol[1:][border]
        keys = np.concatenate([symbol[inside] * (self._width + 1), left * self._width + right])
        times = np.concatenate([repeats[inside] - 1, np.ones(len(left), np.int64)])
        keys, which = np.unique(keys, return_inverse=True)
        return keys, np.bincount(which, times, len(keys)).astype(np.int64)

    def places(self, symbol: int) -> int:
        """Return in how many runs `symbol` stands beside itself."""
        return int(_count_places(self.rows, symbol))

    def merge(self, left: int, right: int, new: int, most: int) -> Tally:
        """Merge every (left, right), at most so many, to `new` and return what that changes."""
        # an occurrence leaves one run more at most, and every other run can be the first of one
        room = self._number + min(most, self._number // 2)
        if len(self._spare) < room:
            self._spare = np.empty((room, 2), np.int32)
        tally = self.tally
        arrays = self.rows, self._spare, tally.changes, tally.touched, tally.sums
        self._number = _halve(*arrays, left, new) if left == right else _join(*arrays, left, right, new)
        self._rows, self._spare = self._spare, self._rows
        return tally


@kernel
def _count_runs(symbols: _Array) -> int:
    n = 0
    for i in range(len(symbols)):
        n += i == 0 or symbols[i] != symbols[i - 1]
    return n


@kernel
def _write_runs(symbols: _Array, runs: _Array) -> int:
    last = 0
    runs[0, SYMBOL], runs[0, REPEATS] = BARRIER, 1
    for i in range(len(symbols)):
        if i > 0 and symbols[i] == symbols[i - 1]:
            runs[last, REPEATS] += 1
        else:
            last += 1
            runs[last, SYMBOL], runs[last, REPEATS] = symbols[i], 1
    last += 1
    runs[last, SYMBOL], runs[last, REPEATS] = BARRIER, 1
    return last + 1


@kernel
def _count_pairs(runs: _Array, symbols: int) -> _Array:
    """Return how often each symbol stands before each; the last row and column are those of barriers."""
    count = np.zeros((symbols + 1, symbols + 1), np.int64)
    for run in range(len(runs) - 1):
        symbol = runs[run, SYMBOL]
        count[symbol, symbol] += runs[run, REPEATS] - 1
        count[symbol, runs[run + 1, SYMBOL]] += 1
    return count


@kernel
def _count_places(runs: _Array, symbol: int) -> int:
    n = 0
    for run in range(len(runs)):
        n += (runs[run, SYMBOL] == symbol) & (runs[run, REPEATS] > 1)
    return n


@kernel
def _halve(runs: _Array, out: _Array, changes: _Array, touched: _Array, sums: _Array, symbol: int, new: int) -> int:
    """Write the runs with those of `symbol` halved, and return their number; an odd symbol comes behind its run."""
    number, before, doubled = 0, BARRIER, 0
    for run in range(len(runs)):
        present, repeats = runs[run, SYMBOL], runs[run, REPEATS]
        if present != symbol or repeats == 1:
            out[number, SYMBOL], out[number, REPEATS] = present, repeats
            number += 1
        else:
            changes[before, CUT_LEFT] += 1
            changes[before, NEW_LEFT] += 1
            out[number, SYMBOL], out[number, REPEATS] = new, repeats // 2
            number += 1
            doubled += repeats // 2 - 1
            if repeats % 2 == 1:
                out[number, SYMBOL], out[number, REPEATS] = symbol, 1
                number += 1
                changes[symbol, NEW_RIGHT] += 1
            else:
                after = runs[run + 1, SYMBOL]
                changes[after, CUT_RIGHT] += 1
                changes[after, NEW_RIGHT] += 1
        before = present
    sums[IN_NEW] = doubled
    _note_touched(changes, touched, sums)
    return number


@kernel
def _join(
    runs: _Array, out: _Array, changes: _Array, touched: _Array, sums: _Array, left: int, right: int, new: int
) -> int:
    """Write the runs with `new` where one of `left` meets one of `right`, and return their number."""
    number, before, run = 0, np.int64(BARRIER), 0
    while run < len(runs):
        present, repeats = np.int64(runs[run, SYMBOL]), runs[run, REPEATS]
        run += 1
        if present != left or runs[run, SYMBOL] != right:
            out[number, SYMBOL], out[number, REPEATS] = present, repeats
            number += 1
            before = present
            continue
        if repeats > 1:
            out[number, SYMBOL], out[number, REPEATS] = left, repeats - 1
            number += 1
            sums[IN_LEFT] -= 1
            before = np.int64(left)
        else:
            changes[before, CUT_LEFT] += 1
        if before == new:  # what was joined just before is one run with it
            out[number - 1, REPEATS] += 1
            sums[IN_NEW] += 1
        else:
            changes[before, NEW_LEFT] += 1
            out[number, SYMBOL], out[number, REPEATS] = new, 1
            number += 1
        repeats, before = runs[run, REPEATS], np.int64(new)
        run += 1
        if repeats > 1:
            out[number, SYMBOL], out[number, REPEATS] = right, repeats - 1
            number += 1
            sums[IN_RIGHT] -= 1
            changes[right, NEW_RIGHT] += 1
            before = np.int64(right)
        else:
            after = runs[run, SYMBOL]
            changes[after, CUT_RIGHT] += 1
            changes[after, NEW_RIGHT] += 1
    _note_touched(changes, touched, sums)
    return number


@kernel
def _note_touched(changes: _Array, touched: _Array, sums: _Array) -> None:
    """List the symbols whose borders have changed, barriers left out."""
    for symbol in range(len(touched)):
        row = changes[symbol]
        if row[CUT_LEFT] | row[CUT_RIGHT] | row[NEW_LEFT] | row[NEW_RIGHT] != 0:
            touched[sums[TOUCHED]] = symbol
            sums[TOUCHED] += 1
