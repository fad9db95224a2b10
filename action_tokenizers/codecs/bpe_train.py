"""Learn byte-pair merges over integer symbols; pair counts are updated at each merge, never recounted.

Sennrich et al. 2016, on integers: the most frequent adjacent pair becomes a new symbol, leftmost occurrences
first; ties go to the smaller pair. Each position is on the list of the pair it starts, so that a merge visits its
own occurrences and nothing else.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from action_tokenizers.codecs.kernel import kernel

__all__ = ["BARRIER", "train_merges"]

_Array = npt.NDArray[Any]

BARRIER = -1
_DEAD = -2


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
    pairs = np.empty((merges, 2), np.int32)
    counts = np.empty(merges, np.int64)
    done = _train(np.array(symbols, np.int32), first_id, merges, least_count, pairs, counts)
    return pairs[:done], counts[:done]


@kernel
def _slot(keys: _Array, slots: _Array, key: int) -> int:
    """Return the place of `key` in the open-addressing table, or the free place where it belongs."""
    mask = len(keys) - 1
    place = (key * 0x9E3779B97F4A7C1) >> 20 & mask
    while slots[place] >= 0 and keys[place] != key:
        place = (place + 1) & mask
    return place


@kernel
def _grow(keys: _Array, slots: _Array) -> tuple[_Array, _Array]:
    larger = np.empty(2 * len(keys), np.int64)
    larger_slots = np.full(2 * len(keys), -1, np.int32)
    for i in range(len(keys)):
        if slots[i] >= 0:
            place = _slot(larger, larger_slots, keys[i])
            larger[place] = keys[i]
            larger_slots[place] = slots[i]
    return larger, larger_slots


@kernel
def _train(symbol: _Array, first_id: int, merges: int, least_count: int, pairs: _Array, merge_counts: _Array) -> int:
    n = len(symbol)
    width = np.int64(first_id + merges)
    after = np.arange(1, n + 1).astype(np.int32)
    before = np.arange(-1, n - 1).astype(np.int32)
    # the list of a pair: every position that starts it
    list_next = np.full(n, -1, np.int32)
    list_prev = np.full(n, -1, np.int32)
    keys = np.empty(1 << 12, np.int64)
    slots = np.full(1 << 12, -1, np.int32)
    pair = np.empty(1 << 11, np.int64)
    count = np.zeros(1 << 11, np.int64)
    head = np.full(1 << 11, -1, np.int32)
    used: Any = 0
    # events: (position, key) to link; a merge only ever adds pairs that hold the new symbol
    found = np.empty(1024, np.int32)

    for step in range(-1, merges):
        if step < 0:
            touched: Any = n - 1  # the first pass links every pair there is
        else:
            best = -1
            for i in range(used):
                if count[i] >= least_count and (
                    best < 0 or count[i] > count[best] or (count[i] == count[best] and pair[i] < pair[best])
                ):
                    best = i
            if best < 0:
                return step
            left, right = np.int32(pair[best] // width), np.int32(pair[best] % width)
            pairs[step, 0], pairs[step, 1] = left, right
            merge_counts[step] = count[best]
            new = np.int32(first_id + step)
            if count[best] > len(found):
                found = np.empty(2 * count[best], np.int32)
            touched = 0
            p = head[best]
            while p >= 0:
                found[touched] = p
                touched += 1
                p = list_next[p]
            found[:touched].sort()
            head[best] = -1
            count[best] = 0
        for e in range(touched):
            if step < 0:
                first, second = e, -1
                if symbol[e] < 0 or symbol[e + 1] < 0:
                    continue
            else:
                p = found[e]
                q = after[p]
                if symbol[p] != left or q >= n or symbol[q] != right:
                    continue  # an overlapping occurrence took one of the two: leftmost first
                b, r = before[p], after[q]
                for side in range(2):
                    start = b if side == 0 else q
                    stop = p if side == 0 else r
                    if start < 0 or stop >= n or symbol[start] < 0 or symbol[stop] < 0:
                        continue
                    s = slots[_slot(keys, slots, symbol[start] * width + symbol[stop])]
                    if s == best:
                        continue  # its list is already taken down
                    count[s] -= 1
                    if list_prev[start] >= 0:
                        list_next[list_prev[start]] = list_next[start]
                    else:
                        head[s] = list_next[start]
                    if list_next[start] >= 0:
                        list_prev[list_next[start]] = list_prev[start]
                symbol[p] = new
                symbol[q] = _DEAD
                after[p] = r
                if r < n:
                    before[r] = p
                first = b if b >= 0 and symbol[b] >= 0 else -1
                second = p if r < n and symbol[r] >= 0 else -1
            for start in (first, second):
                if start < 0:
                    continue
                key = symbol[start] * width + symbol[after[start]]
                place = _slot(keys, slots, key)
                s = slots[place]
                if s < 0:
                    s = np.int32(used)
                    keys[place] = key
                    slots[place] = s
                    if used == len(pair):
                        pair = np.append(pair, np.empty_like(pair))
                        count = np.append(count, np.zeros_like(count))
                        head = np.append(head, np.full_like(head, -1))
                    pair[s] = key
                    used += 1
                    if 2 * used > len(keys):
                        keys, slots = _grow(keys, slots)
                count[s] += 1
                list_next[start] = head[s]
                list_prev[start] = -1
                if head[s] >= 0:
                    list_prev[head[s]] = start
                head[s] = start
    return merges
