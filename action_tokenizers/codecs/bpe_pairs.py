"""Pairs of neighbouring symbols: how often each occurs, and what a merge changes of that."""

from typing import Any

import numpy as np
import numpy.typing as npt

from action_tokenizers.codecs.kernel import inner_kernel, kernel

__all__ = ["Pairs", "Tally", "known", "longer", "touch"]

_Array = npt.NDArray[Any]
_Int = Any  # int outside a kernel, a machine integer inside

# columns of a pair; from the second on, per part, where the newest entry of its list is (see `bpe_lists`)
KEY, NEWEST = 0, 1
# columns of the open-addressing table that finds a pair by its key
_PAIR = 1
# What one merge (left, right) -> new changes is summed up per symbol s that stands beside an occurrence, so that the
# table is asked once per symbol: borders (s, left) and (right, s) that vanish, (s, new) and (new, s) that appear, and
# where the newest entries of the lists of these are.
CUT_LEFT, CUT_RIGHT, NEW_LEFT, NEW_RIGHT, LIST_LEFT, LIST_RIGHT = 0, 1, 2, 3, 4, 5
_LINE = 8  # columns: a row fills a cache line
# likewise the pairs inside runs of left, right and new, the list of (new, new), and how many symbols are touched
IN_LEFT, IN_RIGHT, IN_NEW, LIST_NEW, TOUCHED = 0, 1, 2, 3, 4


class Pairs:
    """All pairs that were seen in any part, and how often each occurs in all of them.

    Args:
        width: larger than every symbol there will be; a pair's key is `left * width + right`.
        parts: number of parts.
    """

    def __init__(self, width: int, parts: int) -> None:
        self.width = width
        self._table = np.full((1 << 12, 2), -1, np.int64)
        self._rows, self._count = np.empty((1 << 11, 1 + parts), np.int64), np.empty(1 << 11, np.int64)
        self._used = np.zeros(1, np.int64)

    def arrays(self) -> tuple[_Array, _Array, _Array, _Array, int]:
        """Return the table, the pairs, their counts, how many they are, and the width, for kernels."""
        return self._table, self._rows, self._count, self._used, self.width

    def add(self, keys: npt.NDArray[np.int64], times: npt.NDArray[np.int64]) -> None:
        """Count each of the pairs `keys (n,)` so many `times (n,)` more."""
        self._make_room(len(keys))
        _add(*self.arrays(), keys, times)

    def best(self) -> tuple[int, int, int, int]:
        """Return row, left and right symbol and count of the most frequent pair, of equals the smaller.

        The count is 0 where there is none.
        """
        count = self._count[: self._used[0]]
        if not len(count):
            return -1, -1, -1, 0
        first = int(count.argmax())
        equal = first + np.flatnonzero(count[first:] == count[first])
        row = int(equal[self._rows[equal, KEY].argmin()])
        return row, *divmod(int(self._rows[row, KEY]), self.width), int(count[row])

    def merge(self, row: int) -> None:
        """Forget the occurrences of a pair, and make room for those pairs that merging it may bring."""
        self._count[row] = 0
        self._make_room(2 * self.width + 4)

    def sum_up(self, tally: "Tally", part: int, left: int, right: int, new: int) -> None:
        """Add what the merge has changed in a part, and clear the tally."""
        _sum_up(*self.arrays(), tally.changes, tally.touched, tally.sums, part, left, right, new)

    def _make_room(self, more: int) -> None:
        used, rows = int(self._used[0]), len(self._rows)
        if used + more <= rows:
            return
        while used + more > rows:
            rows *= 2
        self._table = _longer_table(self._table, 2 * rows)  # never more than half full
        self._rows, self._count = longer(self._rows, used, rows), longer(self._count, used, rows)


class Tally:
    """What the present merge changes in one part."""

    def __init__(self, width: int) -> None:
        self.changes = np.zeros((width + 1, _LINE), np.int64)  # the last row is that of barriers, symbol -1
        self.changes[:, LIST_LEFT:] = -1
        self.touched = np.empty(width, np.int64)
        self.sums = np.array([0, 0, 0, -1, 0])


def longer(array: _Array, used: int, rows: int) -> _Array:
    """Return an array of so many rows that begins with those of `array` that are used."""
    more = np.empty((rows, *array.shape[1:]), array.dtype)
    more[:used] = array[:used]
    return more


@kernel
def _place(table: _Array, key: _Int) -> _Int:
    """Return the row of `key` in the table, or the free row where it belongs."""
    mask = len(table) - 1
    place = (key * 0x9E3779B97F4A7C1) >> 20 & mask
    while table[place, KEY] >= 0 and table[place, KEY] != key:
        place = (place + 1) & mask
    return place


@kernel
def _longer_table(table: _Array, rows: int) -> _Array:
    more = np.full((rows, 2), -1, np.int64)
    for i in range(len(table)):
        if table[i, KEY] >= 0:
            more[_place(more, table[i, KEY])] = table[i]
    return more


@kernel
def _find(table: _Array, rows: _Array, count: _Array, used: _Array, key: _Int) -> _Int:
    """Return the row of a pair, a new one where it was never seen; the arrays have room for it."""
    place = _place(table, key)
    if table[place, KEY] < 0:
        table[place, KEY], table[place, _PAIR] = key, used[0]
        rows[used[0], KEY] = key
        rows[used[0], NEWEST:] = -1
        count[used[0]] = 0
        used[0] += 1
    return table[place, _PAIR]


@inner_kernel
def known(table: _Array, key: _Int) -> _Int:
    """Return the row of a pair that was seen before."""
    return table[_place(table, key), _PAIR]


@kernel
def _add(table: _Array, rows: _Array, count: _Array, used: _Array, width: int, keys: _Array, times: _Array) -> None:
    for i in range(len(keys)):
        count[_find(table, rows, count, used, keys[i])] += times[i]


@inner_kernel
def touch(changes: _Array, touched: _Array, sums: _Array, symbol: _Int, column: _Int) -> None:
    """Count a border with `symbol` in a column of the tally."""
    if (
        changes[symbol, CUT_LEFT] | changes[symbol, CUT_RIGHT] | changes[symbol, NEW_LEFT] | changes[symbol, NEW_RIGHT]
    ) == 0:
        touched[sums[TOUCHED]] = symbol
        sums[TOUCHED] += 1
    changes[symbol, column] += 1


@kernel
def _sum_up(
    table: _Array,
    rows: _Array,
    count: _Array,
    used: _Array,
    width: int,
    changes: _Array,
    touched: _Array,
    sums: _Array,
    part: int,
    left: int,
    right: int,
    new: int,
) -> None:
    newest = NEWEST + part
    for i in range(sums[TOUCHED]):
        symbol = touched[i]
        row = changes[symbol]
        if row[CUT_LEFT] > 0:
            count[_find(table, rows, count, used, symbol * width + left)] -= row[CUT_LEFT]
        if row[CUT_RIGHT] > 0:
            count[_find(table, rows, count, used, right * width + symbol)] -= row[CUT_RIGHT]
        if row[NEW_LEFT] > 0:
            pair = _find(table, rows, count, used, symbol * width + new)
            count[pair] += row[NEW_LEFT]
            rows[pair, newest] = row[LIST_LEFT]
        if row[NEW_RIGHT] > 0:
            pair = _find(table, rows, count, used, new * width + symbol)
            count[pair] += row[NEW_RIGHT]
            rows[pair, newest] = row[LIST_RIGHT]
        row[:LIST_LEFT] = 0
        row[LIST_LEFT:] = -1
    sums[TOUCHED] = 0
    if sums[IN_LEFT] != 0:
        count[_find(table, rows, count, used, left * width + left)] += sums[IN_LEFT]
    if sums[IN_RIGHT] != 0:
        count[_find(table, rows, count, used, right * width + right)] += sums[IN_RIGHT]
    if sums[IN_NEW] != 0:
        pair = _find(table, rows, count, used, new * width + new)
        count[pair] += sums[IN_NEW]
        rows[pair, newest] = sums[LIST_NEW]
    sums[:LIST_NEW] = 0
    sums[LIST_NEW] = -1
