"""Sequences as a chain of runs, and per pair a list of the runs where it was seen: a rare merge visits only these.

See `bpe_runs` for what runs are. What has changed since a run was listed is noticed when the list is read, so that
nothing is ever taken out of one.
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
    LIST_LEFT,
    LIST_NEW,
    LIST_RIGHT,
    NEW_LEFT,
    NEW_RIGHT,
    NEWEST,
    Pairs,
    Tally,
    known,
    longer,
    touch,
)
from action_tokenizers.codecs.bpe_runs import BARRIER, REPEATS, SYMBOL, Runs
from action_tokenizers.codecs.kernel import inner_kernel, kernel

__all__ = ["ListedRuns"]

_Array = npt.NDArray[Any]
_Int = Any  # int outside a kernel, a machine integer inside

_GONE = -2
# further columns of a run
_BEFORE, _AFTER = 2, 3
# A list lies in blocks of numbers: where the block before ends, or -1 in the first one, and runs.
BLOCK = 8
# how many runs there are, and numbers in all blocks
_RUNS, _ENTRIES = 0, 1

# entries looked up together, and the rows or blocks that what they name may take: an occurrence takes at most four
AHEAD = 256
_ROOM = 4 * AHEAD


class ListedRuns:
    """Runs of one part, linked to their neighbours, and in the lists of `pairs`.

    Args:
        runs: the runs of the part.
        pairs: all pairs in them; of what parts share only this part's lists are written.
        part: number of the part.
    """

    def __init__(self, runs: Runs, pairs: Pairs, part: int) -> None:
        self._pairs, self._part, self._tally = pairs, part, runs.tally
        table, rows, _, used, width = pairs.arrays()
        # a run is at most in two lists, and every list may end in a block with a single entry
        entries = 2 * len(runs)
        blocks = entries // (BLOCK - 1) + min(entries, int(used[0]))
        self._runs = np.empty((len(runs) * 3 // 2 + _ROOM, 4), np.int32)
        self._entries = np.empty(BLOCK * (blocks + _ROOM), np.int32)
        self._size = np.zeros(2, np.int64)
        _list(runs.rows, self._runs, self._entries, self._size, width, table, rows, part)

    def merge(self, row: int, left: int, right: int, new: int) -> Tally:
        """Merge every (left, right), the pair in a row of `pairs`, to `new` and return what that changes."""
        table, rows, _, _, width = self._pairs.arrays()
        tally = self._tally
        while not _visit(
            self._runs,
            self._entries,
            tally.changes,
            tally.touched,
            tally.sums,
            self._size,
            table,
            rows,
            row,
            self._part,
            width,
            left,
            right,
            new,
        ):
            runs, entries = self._size.tolist()
            self._runs = longer(self._runs, runs, runs * 3 // 2 + _ROOM)
            self._entries = longer(self._entries, entries, entries * 3 // 2 + BLOCK * _ROOM)
        return tally

    def retire(self, is_retired: npt.NDArray[np.bool_]) -> None:
        """Turn those symbols into barriers, and count their pairs no more."""
        table, _, count, _, width = self._pairs.arrays()
        _retire(self._runs, self._size, table, count, width, is_retired)


@kernel
def _list(
    source: _Array, runs: _Array, entries: _Array, size: _Array, width: int, table: _Array, pairs: _Array, part: int
) -> None:
    newest, number = NEWEST + part, len(source)
    for run in range(number):
        runs[run, SYMBOL], runs[run, REPEATS] = source[run, SYMBOL], source[run, REPEATS]
        runs[run, _BEFORE], runs[run, _AFTER] = run - 1, run + 1
    runs[number - 1, _AFTER] = -1
    size[_RUNS] = number
    for run in range(1, number - 1):
        a, b, repeats = np.int64(runs[run, SYMBOL]), np.int64(runs[run + 1, SYMBOL]), runs[run, REPEATS]
        if a >= 0 and repeats > 1:
            pair = known(table, a * width + a)
            pairs[pair, newest] = _enlist(entries, size, run, pairs[pair, newest])
        if a >= 0 and b >= 0:
            pair = known(table, a * width + b)
            pairs[pair, newest] = _enlist(entries, size, run, pairs[pair, newest])


@inner_kernel
def _enlist(entries: _Array, size: _Array, run: _Int, last: _Int) -> _Int:
    """Put `run` at the end of a list, and return where it is; `last`: where the one before it is, or -1."""
    place = last + 1
    if place % BLOCK == 0:
        place = size[_ENTRIES] + 1
        entries[size[_ENTRIES]] = last
        size[_ENTRIES] += BLOCK
    entries[place] = run
    return place


@kernel
def _retire(runs: _Array, size: _Array, table: _Array, count: _Array, width: int, retired: _Array) -> None:
    for run in range(size[_RUNS]):
        symbol = np.int64(runs[run, SYMBOL])
        if symbol < 0 or not retired[symbol]:
            continue
        before, after = np.int64(runs[runs[run, _BEFORE], SYMBOL]), np.int64(runs[runs[run, _AFTER], SYMBOL])
        if before >= 0:
            count[known(table, before * width + symbol)] -= 1
        if after >= 0:
            count[known(table, symbol * width + after)] -= 1
        if runs[run, REPEATS] > 1:
            count[known(table, symbol * width + symbol)] -= runs[run, REPEATS] - 1
        runs[run, SYMBOL] = BARRIER


@inner_kernel
def _border_left(
    runs: _Array, entries: _Array, changes: _Array, touched: _Array, sums: _Array, size: _Array, run: _Int
) -> None:
    """Count the border between `run` and a run of the new symbol behind it."""
    symbol = runs[run, SYMBOL]
    if symbol >= 0:
        touch(changes, touched, sums, symbol, NEW_LEFT)
        changes[symbol, LIST_LEFT] = _enlist(entries, size, run, changes[symbol, LIST_LEFT])


@inner_kernel
def _border_right(
    runs: _Array, entries: _Array, changes: _Array, touched: _Array, sums: _Array, size: _Array, run: _Int
) -> None:
    """Count the border behind `run`, which is of the new symbol."""
    symbol = runs[runs[run, _AFTER], SYMBOL]
    if symbol >= 0:
        touch(changes, touched, sums, symbol, NEW_RIGHT)
        changes[symbol, LIST_RIGHT] = _enlist(entries, size, run, changes[symbol, LIST_RIGHT])


@inner_kernel
def _put(runs: _Array, run: _Int, before: _Int, symbol: _Int) -> None:
    """Make `run` one of one symbol, behind the run `before`."""
    after = runs[before, _AFTER]
    runs[run, SYMBOL], runs[run, REPEATS], runs[run, _BEFORE], runs[run, _AFTER] = symbol, 1, before, after
    runs[before, _AFTER], runs[after, _BEFORE] = run, run


@inner_kernel
def _fresh(size: _Array) -> _Int:
    size[_RUNS] += 1
    return np.int32(size[_RUNS] - 1)


@inner_kernel
def _halve(
    runs: _Array, entries: _Array, changes: _Array, touched: _Array, sums: _Array, size: _Array, run: _Int, new: _Int
) -> _Int:
    """Merge the pairs (a, a) inside `run`, from the left; return the run of an odd a at its right end, or `run`."""
    symbol, repeats = runs[run, SYMBOL], runs[run, REPEATS]
    before, follower = runs[run, _BEFORE], runs[runs[run, _AFTER], SYMBOL]
    if runs[before, SYMBOL] >= 0:
        touch(changes, touched, sums, runs[before, SYMBOL], CUT_LEFT)
    runs[run, SYMBOL], runs[run, REPEATS] = new, repeats // 2
    _border_left(runs, entries, changes, touched, sums, size, before)
    if repeats > 3:
        sums[IN_NEW] += repeats // 2 - 1
        sums[LIST_NEW] = _enlist(entries, size, run, sums[LIST_NEW])
    odd = run
    if repeats % 2 == 1:
        odd = _fresh(size)
        _put(runs, odd, run, symbol)
    elif follower >= 0:
        touch(changes, touched, sums, follower, CUT_RIGHT)
    _border_right(runs, entries, changes, touched, sums, size, run)
    return odd


@inner_kernel
def _join(
    runs: _Array, entries: _Array, changes: _Array, touched: _Array, sums: _Array, size: _Array, a: _Int, new: _Int
) -> None:
    """Merge the last symbol of the run `a` with the first of the run behind it."""
    b = runs[a, _AFTER]
    before, after = a, b
    runs[a, REPEATS] -= 1
    runs[b, REPEATS] -= 1
    if runs[a, REPEATS] > 0:
        sums[IN_LEFT] -= 1
    else:
        runs[a, SYMBOL] = _GONE
        before = runs[a, _BEFORE]
        if runs[before, SYMBOL] >= 0:
            touch(changes, touched, sums, runs[before, SYMBOL], CUT_LEFT)
    if runs[b, REPEATS] > 0:
        sums[IN_RIGHT] -= 1
    else:
        runs[b, SYMBOL] = _GONE
        after = runs[b, _AFTER]
        if runs[after, SYMBOL] >= 0:
            touch(changes, touched, sums, runs[after, SYMBOL], CUT_RIGHT)
    runs[before, _AFTER], runs[after, _BEFORE] = after, before
    # what was joined beside it before is one run with it
    if runs[before, SYMBOL] == new:
        run = before
    elif runs[after, SYMBOL] == new:
        run = after
    else:
        # where a run is gone there is room, near its neighbours; an old entry that names it finds another pair there
        run = a if runs[a, REPEATS] == 0 else b if runs[b, REPEATS] == 0 else _fresh(size)
        _put(runs, run, before, new)
        _border_left(runs, entries, changes, touched, sums, size, before)
        _border_right(runs, entries, changes, touched, sums, size, run)
        return
    sums[IN_NEW] += 1
    if runs[run, REPEATS] == 1:
        sums[LIST_NEW] = _enlist(entries, size, run, sums[LIST_NEW])
    runs[run, REPEATS] += 1
    if run == after:
        _border_left(runs, entries, changes, touched, sums, size, before)
    elif runs[after, SYMBOL] != new:
        _border_right(runs, entries, changes, touched, sums, size, run)
    else:
        sums[IN_NEW] += 1
        runs[run, REPEATS] += runs[after, REPEATS]
        runs[after, SYMBOL] = _GONE
        behind = runs[after, _AFTER]
        runs[run, _AFTER], runs[behind, _BEFORE] = behind, run
        symbol = runs[behind, SYMBOL]
        if symbol >= 0:  # the same border as before, but behind another run
            changes[symbol, LIST_RIGHT] = _enlist(entries, size, run, changes[symbol, LIST_RIGHT])


@kernel
def _visit(
    runs: _Array,
    entries: _Array,
    changes: _Array,
    touched: _Array,
    sums: _Array,
    size: _Array,
    table: _Array,
    pairs: _Array,
    best: int,
    part: int,
    width: int,
    left: int,
    right: int,
    new: int,
) -> bool:
    """Merge the occurrences of a pair, and say whether those were all; else the arrays must grow first."""
    newest = NEWEST + part
    found = np.empty(AHEAD, np.int32)
    entry = pairs[best, newest]
    while entry >= 0 and size[_RUNS] + _ROOM <= len(runs) and size[_ENTRIES] + BLOCK * _ROOM <= len(entries):
        # memory is what takes time: many places are asked for at once, before anything depends on what lies there
        number = 0
        while entry >= 0 and number < AHEAD:
            run = entries[entry]
            entry -= 1
            if entry % BLOCK == 0:
                entry = np.int64(entries[entry])
            found[number] = run
            number += left == right or (runs[run, SYMBOL] == left and runs[runs[run, _AFTER], SYMBOL] == right)
        pairs[best, newest] = entry
        for i in range(number):
            run = found[i]
            if runs[run, SYMBOL] != left:
                continue
            if left != right:
                if runs[runs[run, _AFTER], SYMBOL] == right:
                    _join(runs, entries, changes, touched, sums, size, run, new)
            elif runs[run, REPEATS] > 1:
                odd = _halve(runs, entries, changes, touched, sums, size, run, new)
                follower = np.int64(runs[runs[odd, _AFTER], SYMBOL])
                if odd != run and follower >= 0:  # the same border as before, but behind another run
                    pair = known(table, np.int64(left) * width + follower)
                    pairs[pair, newest] = _enlist(entries, size, odd, pairs[pair, newest])
    return bool(entry < 0)
