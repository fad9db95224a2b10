"""Learn byte-pair merges over integer symbols; pair counts are updated at each merge, never recounted.

Sennrich et al. 2016, on integers: the most frequent adjacent pair becomes a new symbol, leftmost occurrences
first; ties go to the smaller pair.

The sequence is kept compressed, as a chain of runs (symbol, repeats): most coefficients of a chunk are zeros, and a
run of them is halved in one step. Neighbouring runs differ in their symbols, so a pair (a, a) occurs inside runs and
a pair (a, b) at their borders. Every pair has a list of the runs where it was seen; what has changed there since is
noticed when the list is read, so that nothing is ever taken out of one. Occurrences of (a, b) never overlap, so their
order does not matter; those of (a, a) do, inside one run, where leftmost first means that an odd symbol is left over
at its right end.

A long sequence is cut at barriers into as many parts as there are threads. Each part has its own runs and lists; a
merge visits the occurrences of all parts at once, and what changed in them is summed up afterwards. Sums do not depend
on the cut, so neither do the merges.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from action_tokenizers.codecs.kernel import inner_kernel, kernel
from action_tokenizers.codecs.threads import over_rows

__all__ = ["BARRIER", "MergeTrainer", "train_merges"]

_Array = npt.NDArray[Any]
_Int = Any  # int outside a kernel, a machine integer inside

BARRIER = -1
_GONE = -2
# columns of a run
_SYMBOL, _REPEATS, _BEFORE, _AFTER = 0, 1, 2, 3
# columns of a pair; from the second on, per part, the newest entry of its list
_KEY, _NEWEST = 0, 1
# columns of the open-addressing table that finds a pair by its key
_PAIR = 1
# columns of an entry of a list
_RUN, _OLDER = 0, 1
# how many of each a part has, and of touched rows of its tally
_RUNS, _ENTRIES, _TOUCHED = 0, 1, 2
# What one merge (left, right) -> new changes is summed up per symbol s that stands beside an occurrence, so that the
# table is asked once per symbol: borders (s, left) and (right, s) that vanish, (s, new) and (new, s) that appear, and
# the newest entries of the lists of these.
_CUT_LEFT, _CUT_RIGHT, _NEW_LEFT, _NEW_RIGHT, _LIST_LEFT, _LIST_RIGHT = 0, 1, 2, 3, 4, 5
_LINE = 8  # columns: a row fills a cache line
# likewise the pairs inside runs of left, right and new, and the list of (new, new)
_IN_LEFT, _IN_RIGHT, _IN_NEW, _LIST_NEW = 0, 1, 2, 3

# entries looked up together, and the rows that what they name may take: an occurrence leaves at most four more
AHEAD = 256
_ROOM = 4 * AHEAD
# symbols that are worth a part, and occurrences that are worth waking threads
PART, MANY = 1 << 20, 1 << 10


def train_merges(
    symbols: npt.NDArray[np.int32], first_id: int, merges: int, *, least_count: int = 2
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Learn up to `merges` merges.

    Args:
        symbols: `(length,)` int32, the sequences joined, each followed by `BARRIER`; a barrier is never merged.
        first_id: id of the first merged symbol; larger than every symbol.
        merges: most merges to learn.
        least_count: a pair seen less often is not merged.

    Returns:
        pairs `(m, 2)` int32, the ids that merge `i` joins into `first_id + i`, and their counts `(m,)` int64.

    Example:
        >>> train_merges(np.array([0, 0, 1, 0, 0, 1, -1], np.int32), 2, 2)[0].tolist()
        [[0, 0], [2, 1]]
    """
    return MergeTrainer(symbols, first_id, merges).learn(merges, least_count=least_count)


class MergeTrainer:
    """Sequences from which merges are learned, and what has become of them so far.

    Args:
        symbols: see `train_merges`.
        first_id: likewise.
        most: merges that will ever be asked for.
    """

    def __init__(self, symbols: npt.NDArray[np.int32], first_id: int, most: int) -> None:
        self._first_id = first_id
        self._width = first_id + most
        self._learned = 0
        borders = _cut(symbols, max(1, min(torch.get_num_threads(), len(symbols) // PART)))
        self._parts = [_Part(symbols[i:j], self._width) for i, j in pairwise(borders)]
        self._used = np.zeros(1, np.int64)
        self._table, self._pairs, self._count = _no_pairs(len(self._parts))

        found: dict[int, tuple[_Array, _Array]] = {}

        def begin(first: int, stop: int) -> None:
            for number in range(first, stop):
                found[number] = self._parts[number].begin()

        over_rows(begin, len(self._parts), least=1)
        for number in range(len(self._parts)):
            self._table, self._pairs, self._count = _take_in(*self._shared(), number, *found.pop(number))

    def learn(self, merges: int, *, least_count: int = 2) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Learn up to `merges` further merges and return them and their counts, see `train_merges`."""
        pairs, counts = np.empty((merges, 2), np.int32), np.empty(merges, np.int64)
        for done in range(merges):
            best = _best(self._pairs, self._count, self._used[0])
            if best < 0 or self._count[best] < max(1, least_count):
                return pairs[:done], counts[:done]
            left, right = divmod(int(self._pairs[best, _KEY]), self._width)
            pairs[done], counts[done] = (left, right), self._count[best]
            self._merge(best, left, right, int(counts[done]))
        return pairs, counts

    def retire(self, symbols: npt.NDArray[np.integer]) -> None:
        """Turn base symbols that no merge holds into barriers."""
        is_retired = np.zeros(self._width, np.bool_)
        is_retired[symbols] = True
        for part in self._parts:
            _retire(part.runs, part.size, self._table, self._pairs, self._count, self._width, is_retired)

    def _shared(self) -> tuple[_Array, _Array, _Array, _Array, int]:
        return self._table, self._pairs, self._count, self._used, self._width

    def _merge(self, best: int, left: int, right: int, count: int) -> None:
        new = self._first_id + self._learned
        self._learned += 1
        # new pairs are those of the new symbol
        while self._used[0] + 2 * self._width + 4 > len(self._pairs):
            self._table, self._pairs, self._count = _more_pairs(self._table, self._pairs, self._count)
        self._count[best] = 0

        def visit(first: int, stop: int) -> None:
            for number in range(first, stop):
                part = self._parts[number]
                while not _visit(*part.arrays(), self._table, self._pairs, best, number, self._width, left, right, new):
                    part.grow()

        if count > MANY:
            over_rows(visit, len(self._parts), least=1)
        else:
            visit(0, len(self._parts))
        for number, part in enumerate(self._parts):
            _sum_up(*self._shared(), part.size, part.tally, part.touched, part.inside, number, left, right, new)


class _Part:
    """Some of the sequences: their runs, the lists that name them, and what the present merge changes."""

    def __init__(self, symbols: npt.NDArray[np.int32], width: int) -> None:
        self.symbols, self.width = np.ascontiguousarray(symbols, np.int32), width
        # allocated here, because numpy asks for huge pages; what is never touched costs nothing
        rows = _count_runs(self.symbols) + 2
        self.runs = np.empty((rows * 3 // 2, 4), np.int32)
        self.entries = np.empty((6 * rows, 2), np.int32)
        self.size = np.zeros(3, np.int64)
        self.tally = np.zeros((width, _LINE), np.int64)
        self.tally[:, _LIST_LEFT:] = -1
        self.touched = np.empty(width, np.int64)
        self.inside = np.array([0, 0, 0, -1])

    def begin(self) -> tuple[_Array, _Array]:
        """Write the runs, and return the pairs in them and how often each occurs; parts can do so at once."""
        found = _begin(self.symbols, self.runs, self.entries, self.size, self.width, *_no_pairs(1))
        del self.symbols
        return found

    def grow(self) -> None:
        """Make room for the next `AHEAD` occurrences at least."""
        self.runs = _longer(self.runs, self.size[_RUNS])
        self.entries = _longer(self.entries, self.size[_ENTRIES])

    def arrays(self) -> tuple[_Array, _Array, _Array, _Array, _Array, _Array]:
        return self.runs, self.entries, self.tally, self.touched, self.inside, self.size


def _cut(symbols: npt.NDArray[np.int32], parts: int) -> list[int]:
    """Return where to cut `symbols` into at most so many parts of about equal length, each time behind a barrier."""
    wanted = [len(symbols) * i // parts for i in range(1, parts)]
    behind = np.flatnonzero(symbols == BARRIER) + 1 if wanted else np.empty(0, np.int64)
    found = [int(behind[np.searchsorted(behind, place)]) for place in wanted if len(behind) and place <= behind[-1]]
    return [0, *sorted({place for place in found if 0 < place < len(symbols)}), len(symbols)]


@kernel
def _count_runs(symbols: _Array) -> int:
    n = 0
    for i in range(len(symbols)):
        n += i == 0 or symbols[i] != symbols[i - 1]
    return n


@kernel
def _write_runs(symbols: _Array, runs: _Array) -> int:
    """Write the chain of runs, with a barrier at either end, and return their number."""
    last = 0
    runs[0, _SYMBOL], runs[0, _REPEATS], runs[0, _BEFORE], runs[0, _AFTER] = BARRIER, 1, -1, 1
    for i in range(len(symbols)):
        if i > 0 and symbols[i] == symbols[i - 1]:
            runs[last, _REPEATS] += 1
        else:
            last += 1
            runs[last, _SYMBOL], runs[last, _REPEATS] = symbols[i], 1
            runs[last, _BEFORE], runs[last, _AFTER] = last - 1, last + 1
    last += 1
    runs[last, _SYMBOL], runs[last, _REPEATS], runs[last, _BEFORE], runs[last, _AFTER] = BARRIER, 1, last - 1, -1
    return last + 1


@kernel
def _place(table: _Array, key: _Int) -> _Int:
    """Return the row of `key` in the table, or the free row where it belongs."""
    mask = len(table) - 1
    place = (key * 0x9E3779B97F4A7C1) >> 20 & mask
    while table[place, _KEY] >= 0 and table[place, _KEY] != key:
        place = (place + 1) & mask
    return place


@kernel
def _larger(table: _Array) -> _Array:
    larger = np.full((2 * len(table), 2), -1, np.int64)
    for i in range(len(table)):
        if table[i, _KEY] >= 0:
            larger[_place(larger, table[i, _KEY])] = table[i]
    return larger


def _longer(array: npt.NDArray[np.int32], used: int) -> npt.NDArray[np.int32]:
    """Return `array` with half as many rows again as are `used`, and room for one more block of occurrences."""
    longer = np.empty((used + used // 2 + _ROOM, array.shape[1]), array.dtype)
    longer[:used] = array[:used]
    return longer


@kernel
def _find(table: _Array, pairs: _Array, count: _Array, used: _Array, key: _Int) -> _Int:
    """Return the row of a pair, a new one where it was never seen; the arrays have room for it."""
    place = _place(table, key)
    if table[place, _KEY] < 0:
        table[place, _KEY], table[place, _PAIR] = key, used[0]
        pairs[used[0], _KEY] = key
        pairs[used[0], _NEWEST:] = -1
        count[used[0]] = 0
        used[0] += 1
    return table[place, _PAIR]


@inner_kernel
def _enlist(entries: _Array, size: _Array, run: _Int, older: _Int) -> _Int:
    """Return a new entry for `run`, before the entry `older`."""
    entry = size[_ENTRIES]
    entries[entry, _RUN], entries[entry, _OLDER] = run, older
    size[_ENTRIES] += 1
    return entry


def _no_pairs(parts: int) -> tuple[_Array, _Array, _Array]:
    """Return a table, pairs and their counts with nothing in them."""
    return np.full((1 << 12, 2), -1, np.int64), np.empty((1 << 11, 1 + parts), np.int64), np.empty(1 << 11, np.int64)


@kernel
def _begin(
    symbols: _Array,
    runs: _Array,
    entries: _Array,
    size: _Array,
    width: int,
    table: _Array,
    pairs: _Array,
    count: _Array,
) -> tuple[_Array, _Array]:
    """Write the runs of `symbols` and count their pairs; return these and their counts."""
    number = _write_runs(symbols, runs)
    size[_RUNS] = number
    used = np.zeros(1, np.int64)
    for run in range(1, number - 1):
        if used[0] + 2 > len(pairs):
            table, pairs, count = _more_pairs(table, pairs, count)
        a, b, repeats = np.int64(runs[run, _SYMBOL]), np.int64(runs[run + 1, _SYMBOL]), runs[run, _REPEATS]
        if a >= 0 and repeats > 1:
            pair = _find(table, pairs, count, used, a * width + a)
            count[pair] += repeats - 1
            pairs[pair, _NEWEST] = _enlist(entries, size, run, pairs[pair, _NEWEST])
        if a >= 0 and b >= 0:
            pair = _find(table, pairs, count, used, a * width + b)
            count[pair] += 1
            pairs[pair, _NEWEST] = _enlist(entries, size, run, pairs[pair, _NEWEST])
    return pairs[: used[0]], count[: used[0]]


@kernel
def _take_in(
    table: _Array,
    pairs: _Array,
    count: _Array,
    used: _Array,
    width: int,
    part: int,
    found: _Array,
    times: _Array,
) -> tuple[_Array, _Array, _Array]:
    """Add the pairs `found` in a part and how many `times` to those of all; return the table, the pairs, the counts."""
    for i in range(len(found)):
        if used[0] + 1 > len(pairs):
            table, pairs, count = _more_pairs(table, pairs, count)
        pair = _find(table, pairs, count, used, found[i, _KEY])
        count[pair] += times[i]
        pairs[pair, _NEWEST + part] = found[i, _NEWEST]
    return table, pairs, count


@kernel
def _more_pairs(table: _Array, pairs: _Array, count: _Array) -> tuple[_Array, _Array, _Array]:
    """Double the room for pairs; the table is never more than half full."""
    return _larger(table), np.concatenate((pairs, np.empty_like(pairs))), np.concatenate((count, np.empty_like(count)))


@kernel
def _retire(
    runs: _Array, size: _Array, table: _Array, pairs: _Array, count: _Array, width: int, retired: _Array
) -> None:
    for run in range(size[_RUNS]):
        symbol = np.int64(runs[run, _SYMBOL])
        if symbol < 0 or not retired[symbol]:
            continue
        before, after = np.int64(runs[runs[run, _BEFORE], _SYMBOL]), np.int64(runs[runs[run, _AFTER], _SYMBOL])
        if before >= 0:
            count[_known(table, before * width + symbol)] -= 1
        if after >= 0:
            count[_known(table, symbol * width + after)] -= 1
        if runs[run, _REPEATS] > 1:
            count[_known(table, symbol * width + symbol)] -= runs[run, _REPEATS] - 1
        runs[run, _SYMBOL] = BARRIER


@inner_kernel
def _known(table: _Array, key: _Int) -> _Int:
    """Return the row of a pair that was seen before."""
    return table[_place(table, key), _PAIR]


@inner_kernel
def _touch(tally: _Array, touched: _Array, size: _Array, symbol: _Int, column: _Int) -> None:
    """Count a border with `symbol` in a column of the tally."""
    row = tally[symbol]
    if row[_CUT_LEFT] | row[_CUT_RIGHT] | row[_NEW_LEFT] | row[_NEW_RIGHT] == 0:
        touched[size[_TOUCHED]] = symbol
        size[_TOUCHED] += 1
    row[column] += 1


@inner_kernel
def _border_left(runs: _Array, entries: _Array, tally: _Array, touched: _Array, size: _Array, run: _Int) -> None:
    """Count the border between `run` and a run of the new symbol behind it."""
    symbol = runs[run, _SYMBOL]
    if symbol >= 0:
        _touch(tally, touched, size, symbol, _NEW_LEFT)
        tally[symbol, _LIST_LEFT] = _enlist(entries, size, run, tally[symbol, _LIST_LEFT])


@inner_kernel
def _border_right(runs: _Array, entries: _Array, tally: _Array, touched: _Array, size: _Array, run: _Int) -> None:
    """Count the border behind `run`, which is of the new symbol."""
    symbol = runs[runs[run, _AFTER], _SYMBOL]
    if symbol >= 0:
        _touch(tally, touched, size, symbol, _NEW_RIGHT)
        tally[symbol, _LIST_RIGHT] = _enlist(entries, size, run, tally[symbol, _LIST_RIGHT])


@inner_kernel
def _put(runs: _Array, run: _Int, before: _Int, symbol: _Int) -> None:
    """Make `run` one of one symbol, behind the run `before`."""
    after = runs[before, _AFTER]
    runs[run, _SYMBOL], runs[run, _REPEATS], runs[run, _BEFORE], runs[run, _AFTER] = symbol, 1, before, after
    runs[before, _AFTER], runs[after, _BEFORE] = run, run


@inner_kernel
def _fresh(size: _Array) -> _Int:
    size[_RUNS] += 1
    return np.int32(size[_RUNS] - 1)


@inner_kernel
def _halve(
    runs: _Array, entries: _Array, tally: _Array, touched: _Array, inside: _Array, size: _Array, run: _Int, new: _Int
) -> _Int:
    """Merge the pairs (a, a) inside `run`, from the left; return the run of an odd a at its right end, or `run`."""
    symbol, repeats = runs[run, _SYMBOL], runs[run, _REPEATS]
    before, follower = runs[run, _BEFORE], runs[runs[run, _AFTER], _SYMBOL]
    if runs[before, _SYMBOL] >= 0:
        _touch(tally, touched, size, runs[before, _SYMBOL], _CUT_LEFT)
    runs[run, _SYMBOL], runs[run, _REPEATS] = new, repeats // 2
    _border_left(runs, entries, tally, touched, size, before)
    if repeats > 3:
        inside[_IN_NEW] += repeats // 2 - 1
        inside[_LIST_NEW] = _enlist(entries, size, run, inside[_LIST_NEW])
    odd = run
    if repeats % 2 == 1:
        odd = _fresh(size)
        _put(runs, odd, run, symbol)
    elif follower >= 0:
        _touch(tally, touched, size, follower, _CUT_RIGHT)
    _border_right(runs, entries, tally, touched, size, run)
    return odd


@inner_kernel
def _join(
    runs: _Array, entries: _Array, tally: _Array, touched: _Array, inside: _Array, size: _Array, a: _Int, new: _Int
) -> None:
    """Merge the last symbol of the run `a` with the first of the run behind it."""
    b = runs[a, _AFTER]
    before, after = a, b
    runs[a, _REPEATS] -= 1
    runs[b, _REPEATS] -= 1
    if runs[a, _REPEATS] > 0:
        inside[_IN_LEFT] -= 1
    else:
        runs[a, _SYMBOL] = _GONE
        before = runs[a, _BEFORE]
        if runs[before, _SYMBOL] >= 0:
            _touch(tally, touched, size, runs[before, _SYMBOL], _CUT_LEFT)
    if runs[b, _REPEATS] > 0:
        inside[_IN_RIGHT] -= 1
    else:
        runs[b, _SYMBOL] = _GONE
        after = runs[b, _AFTER]
        if runs[after, _SYMBOL] >= 0:
            _touch(tally, touched, size, runs[after, _SYMBOL], _CUT_RIGHT)
    runs[before, _AFTER], runs[after, _BEFORE] = after, before
    # what was joined beside it before is one run with it
    if runs[before, _SYMBOL] == new:
        run = before
    elif runs[after, _SYMBOL] == new:
        run = after
    else:
        # where a run is gone there is room, near its neighbours; an old entry that names it finds another pair there
        run = a if runs[a, _REPEATS] == 0 else b if runs[b, _REPEATS] == 0 else _fresh(size)
        _put(runs, run, before, new)
        _border_left(runs, entries, tally, touched, size, before)
        _border_right(runs, entries, tally, touched, size, run)
        return
    inside[_IN_NEW] += 1
    if runs[run, _REPEATS] == 1:
        inside[_LIST_NEW] = _enlist(entries, size, run, inside[_LIST_NEW])
    runs[run, _REPEATS] += 1
    if run == after:
        _border_left(runs, entries, tally, touched, size, before)
    elif runs[after, _SYMBOL] != new:
        _border_right(runs, entries, tally, touched, size, run)
    else:
        inside[_IN_NEW] += 1
        runs[run, _REPEATS] += runs[after, _REPEATS]
        runs[after, _SYMBOL] = _GONE
        behind = runs[after, _AFTER]
        runs[run, _AFTER], runs[behind, _BEFORE] = behind, run
        symbol = runs[behind, _SYMBOL]
        if symbol >= 0:  # the same border as before, but behind another run
            tally[symbol, _LIST_RIGHT] = _enlist(entries, size, run, tally[symbol, _LIST_RIGHT])


@kernel
def _visit(
    runs: _Array,
    entries: _Array,
    tally: _Array,
    touched: _Array,
    inside: _Array,
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
    """Merge the occurrences of a pair in one part, and say whether those were all; else the part must grow first.

    Of what parts share it writes only this part's lists.
    """
    newest = _NEWEST + part
    found = np.empty(AHEAD, np.int32)
    entry = pairs[best, newest]
    while entry >= 0 and size[_RUNS] + _ROOM <= len(runs) and size[_ENTRIES] + _ROOM <= len(entries):
        # memory is what takes time: many places are asked for at once, before anything depends on what lies there
        number = 0
        while entry >= 0 and number < AHEAD:
            run, entry = entries[entry, _RUN], np.int64(entries[entry, _OLDER])
            found[number] = run
            number += left == right or (runs[run, _SYMBOL] == left and runs[runs[run, _AFTER], _SYMBOL] == right)
        pairs[best, newest] = entry
        for i in range(number):
            run = found[i]
            if runs[run, _SYMBOL] != left:
                continue
            if left != right:
                if runs[runs[run, _AFTER], _SYMBOL] == right:
                    _join(runs, entries, tally, touched, inside, size, run, new)
            elif runs[run, _REPEATS] > 1:
                odd = _halve(runs, entries, tally, touched, inside, size, run, new)
                follower = np.int64(runs[runs[odd, _AFTER], _SYMBOL])
                if odd != run and follower >= 0:  # the same border as before, but behind another run
                    pair = _known(table, np.int64(left) * width + follower)
                    pairs[pair, newest] = _enlist(entries, size, odd, pairs[pair, newest])
    return bool(entry < 0)


@kernel
def _sum_up(
    table: _Array,
    pairs: _Array,
    count: _Array,
    used: _Array,
    width: int,
    size: _Array,
    tally: _Array,
    touched: _Array,
    inside: _Array,
    part: int,
    left: int,
    right: int,
    new: int,
) -> None:
    """Add what one merge has changed in a part to the counts and lists of all pairs, and clear it."""
    newest = _NEWEST + part
    for i in range(size[_TOUCHED]):
        symbol = touched[i]
        row = tally[symbol]
        if row[_CUT_LEFT] > 0:
            count[_find(table, pairs, count, used, symbol * width + left)] -= row[_CUT_LEFT]
        if row[_CUT_RIGHT] > 0:
            count[_find(table, pairs, count, used, right * width + symbol)] -= row[_CUT_RIGHT]
        if row[_NEW_LEFT] > 0:
            pair = _find(table, pairs, count, used, symbol * width + new)
            count[pair] += row[_NEW_LEFT]
            pairs[pair, newest] = row[_LIST_LEFT]
        if row[_NEW_RIGHT] > 0:
            pair = _find(table, pairs, count, used, new * width + symbol)
            count[pair] += row[_NEW_RIGHT]
            pairs[pair, newest] = row[_LIST_RIGHT]
        row[:_LIST_LEFT] = 0
        row[_LIST_LEFT:] = -1
    size[_TOUCHED] = 0
    if inside[_IN_LEFT] != 0:
        count[_find(table, pairs, count, used, left * width + left)] += inside[_IN_LEFT]
    if inside[_IN_RIGHT] != 0:
        count[_find(table, pairs, count, used, right * width + right)] += inside[_IN_RIGHT]
    if inside[_IN_NEW] != 0:
        pair = _find(table, pairs, count, used, new * width + new)
        count[pair] += inside[_IN_NEW]
        pairs[pair, newest] = inside[_LIST_NEW]
    inside[:_LIST_NEW] = 0
    inside[_LIST_NEW] = -1


@kernel
def _best(pairs: _Array, count: _Array, used: int) -> int:
    """Return the most frequent pair, of equals the smaller; -1: there is none."""
    most = np.int64(0)
    for i in range(used):  # a loop the compiler makes vector instructions of
        most = max(most, count[i])
    best = -1
    for i in range(used):
        if count[i] == most and (best < 0 or pairs[i, _KEY] < pairs[best, _KEY]):
            best = i
    return best
