"""Byte-pair encoding of integer sequences, exactly as if merges were applied one rank after another.

Encoding does not replay the merges. Two adjacent pieces are *compatible* when no merge would cross their border,
and the encoding of a sequence is its only cut into pieces in which all neighbours are compatible. So the longest
piece that fits is tried first, with a step back where it leads nowhere: nearly linear in the symbols (the idea is
that of the backtracking encoder in github/rust-gems). One symbol, the blank, fills long runs: the trie of the
pieces walks such a run in one step.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from action_tokenizers.codecs.kernel import kernel

__all__ = ["Merges", "blank_runs", "build_merges", "encode_run"]

_Array = npt.NDArray[Any]
_Int = Any  # int outside a kernel, a machine integer inside

# compatibility of every pair of ids is remembered for vocabularies up to this size (two bits a pair: it stays in cache)
MOST_REMEMBERED = 4096
# the first step into the trie, where nodes have most children, is a table for up to this many base symbols
MOST_TABLED = 1024
_HASH = 0x9E3779B97F4A7C1
_UNKNOWN, _FITS, _CLASHES = 0, 1, 2
_UNREAD = -2
_CHILDREN, _BLANKS, _ID, _SPAN = 0, 1, 2, 3


class Merges(NamedTuple):
    """What encoding needs, as arrays a kernel can take. `v` ids: base symbols first, then merges by rank."""

    left: npt.NDArray[np.int32]  # (v,) the id a merge joins on the left; -1 for a base symbol
    right: npt.NDArray[np.int32]  # (v,)
    span: npt.NDArray[np.int32]  # (v,) base symbols in an id
    start: npt.NDArray[np.int64]  # (v + 1,) where an id's base symbols lie in `symbols`
    symbols: npt.NDArray[np.int32]
    shorter: npt.NDArray[np.int32]  # (v,) the longest id that is a proper prefix of an id; -1: none
    pair_keys: npt.NDArray[np.int64]  # open addressing: left * v + right -> id
    pair_ids: npt.NDArray[np.int32]
    blank: int
    root: npt.NDArray[np.int32]  # (base,) trie node of each symbol at the start of a piece
    second: npt.NDArray[np.int32]  # (base, base) node of each pair of symbols, -1: none; or empty
    # trie nodes in depth-first order, the blank's child first: where the children begin in `step`, how many blanks can
    # follow (they are the nodes right after it), the longest id on the way there, and its span
    nodes: npt.NDArray[np.int32]  # (n, 4)
    step: npt.NDArray[np.int32]  # (s, 2): at the children's begin + symbol, whose child is there and which node it is
    memo: npt.NDArray[np.uint8]  # (v * v / 4,) two bits a pair, or empty


def build_merges(base: int, pairs: npt.NDArray[np.int32], blank: int = 0) -> Merges:
    """Prepare `pairs (m, 2)` for encoding; merge `i` has id `base + i` and may join only earlier ids."""
    v = base + len(pairs)
    left, right = np.full(v, -1, np.int32), np.full(v, -1, np.int32)
    left[base:], right[base:] = pairs[:, 0], pairs[:, 1]
    span = np.ones(v, np.int32)
    for i, (a, b) in enumerate(pairs.tolist(), base):
        span[i] = span[a] + span[b]
    start = np.concatenate([[0], np.cumsum(span, dtype=np.int64)])
    symbols = np.empty(start[-1], np.int32)
    _expand(left, right, start, symbols)
    capacity = 1 << max(4, int(4 * len(pairs)).bit_length())
    pair_keys, pair_ids = np.full(capacity, -1, np.int64), np.full(capacity, -1, np.int32)
    _hash_pairs(left, right, pair_keys, pair_ids)
    reachable = _reachable(left, right, pair_keys, pair_ids)
    root, node_symbol, node_id, child, sibling, blanks, shorter = _trie(base, start, symbols, blank, reachable)
    second = np.full((base, base) if base <= MOST_TABLED else (0, 0), -1, np.int32)
    _fill_second(root, child, sibling, node_symbol, second)
    offset, step = _displace(base, child, sibling, node_symbol)
    nodes = np.stack([offset, blanks, node_id, np.where(node_id >= 0, span[node_id], 0)], 1).astype(np.int32)
    memo = np.zeros((v * v + 3) // 4 if v <= MOST_REMEMBERED else 0, np.uint8)
    return Merges(
        left,
        right,
        span,
        start,
        symbols,
        shorter,
        pair_keys,
        pair_ids,
        blank,
        root,
        second,
        nodes,
        step,
        memo,
    )


@kernel
def _expand(left: _Array, right: _Array, start: _Array, symbols: _Array) -> None:
    for i in range(len(left)):
        if left[i] < 0:
            symbols[start[i]] = i
            continue
        place = start[i]
        for part in (left[i], right[i]):
            for p in range(start[part], start[part + 1]):
                symbols[place] = symbols[p]
                place += 1


@kernel
def _place(keys: _Array, key: _Int) -> _Int:
    mask = len(keys) - 1
    place = (key * _HASH) >> 20 & mask
    while keys[place] >= 0 and keys[place] != key:
        place = (place + 1) & mask
    return place


@kernel
def _hash_pairs(left: _Array, right: _Array, keys: _Array, ids: _Array) -> None:
    v = len(left)
    for i in range(v):
        if left[i] >= 0:
            key = np.int64(left[i]) * v + right[i]
            place = _place(keys, key)
            keys[place] = key
            ids[place] = i


@kernel
def _clashes(left: _Array, right: _Array, keys: _Array, ids: _Array, x: _Int, y: _Int, before: _Int) -> bool:
    """Say whether a merge of a rank below `before` crosses the border of the adjacent pieces `x`, `y`.

    Runs the merges of both pieces backwards along the border. A crossing merge of rank m happens when both its
    parts exist and are not yet used: before the left one's own next merge, and not after the right one's (in a
    tie of equal rules the leftmost occurrence wins).
    """
    v = np.int64(len(left))
    used_left, used_right = np.int64(before), np.int64(before)
    while True:
        key = x * v + y
        place = _place(keys, key)
        if keys[place] == key:
            rank = ids[place]
            if rank < used_left and rank <= used_right:
                return True
        x_base, y_base = left[x] < 0, left[y] < 0
        if x_base and y_base:
            return False
        if y_base or (not x_base and x > y):
            used_left, x = x, np.int64(right[x])
        else:
            used_right, y = y, np.int64(left[y])


@kernel
def _reachable(left: _Array, right: _Array, keys: _Array, ids: _Array) -> _Array:
    """Say which ids encoding can ever give: those whose own symbols come out as that id.

    All learned ones can; a foreign merge list may hold others, and they must not be tried.
    """
    found = np.ones(len(left), np.bool_)
    for i in range(len(left)):
        a, b = np.int64(left[i]), np.int64(right[i])
        if a >= 0:
            found[i] = found[a] and found[b] and not _clashes(left, right, keys, ids, a, b, i)
    return found


@kernel
def _fill_second(root: _Array, child: _Array, sibling: _Array, node_symbol: _Array, second: _Array) -> None:
    for symbol in range(len(second)):
        node = child[root[symbol]]
        while node >= 0:
            second[symbol, node_symbol[node]] = node
            node = sibling[node]


@kernel
def _displace(base: int, child: _Array, sibling: _Array, node_symbol: _Array) -> tuple[_Array, _Array]:
    """Lay the children of all nodes into one table so that a step is one look: first fit, nodes as they come."""
    offset = np.zeros(len(child), np.int32)
    step = np.full((len(child) + 2 * base, 2), -1, np.int32)
    free = 0  # before it everything is taken
    for node in range(len(child)):
        first = child[node]
        if first < 0:
            continue
        least, most = node_symbol[first], node_symbol[first]
        after = sibling[first]
        while after >= 0:
            least, most = min(least, node_symbol[after]), max(most, node_symbol[after])
            after = sibling[after]
        while step[free, 0] >= 0:
            free += 1
        place = max(0, free - least)
        while True:
            if place + most >= len(step):
                longer = np.full((2 * len(step) + most, 2), -1, np.int32)
                longer[: len(step)] = step
                step = longer
            after = first
            while after >= 0 and step[place + node_symbol[after], 0] < 0:
                after = sibling[after]
            if after < 0:
                break
            place += 1
        offset[node] = place
        after = first
        while after >= 0:
            step[place + node_symbol[after], 0], step[place + node_symbol[after], 1] = node, after
            after = sibling[after]
    ends = len(step)
    while ends > 0 and step[ends - 1, 0] < 0:
        ends -= 1
    # any symbol may be asked of any node
    padded = np.full((max(ends, offset.max() + base if len(offset) else 0) + 1, 2), -1, np.int32)
    padded[:ends] = step[:ends]
    return offset, padded


@kernel
def _step(child: _Array, sibling: _Array, node_symbol: _Array, node: int, symbol: int) -> int:
    node = child[node]
    while node >= 0 and node_symbol[node] != symbol:
        node = sibling[node]
    return node


@kernel
def _trie(
    base: int, start: _Array, symbols: _Array, blank: int, reachable: _Array
) -> tuple[_Array, _Array, _Array, _Array, _Array, _Array, _Array]:
    v, most = len(start) - 1, len(symbols)
    child, sibling = np.full(most, -1, np.int32), np.full(most, -1, np.int32)
    symbol, piece = np.empty(most, np.int32), np.full(most, -1, np.int32)
    symbol[:base] = np.arange(base)
    nodes = base
    for i in range(v):
        if not reachable[i]:
            continue
        node = symbols[start[i]]
        for p in range(start[i] + 1, start[i + 1]):
            after = _step(child, sibling, symbol, node, symbols[p])
            if after < 0:
                after = nodes
                nodes += 1
                symbol[after] = symbols[p]
                first = child[node]
                if first < 0 or symbols[p] == blank:
                    sibling[after] = first
                    child[node] = after
                else:  # behind the others: early merges are frequent ones and are met first
                    while sibling[first] >= 0:
                        first = sibling[first]
                    sibling[first] = after
            node = after
        piece[node] = i
    # renumber depth first, so that a run of blanks is a run of nodes
    order, number = np.empty(nodes, np.int32), np.empty(nodes, np.int32)
    stack = np.empty(nodes + 1, np.int32)
    longest, shorter = np.full(nodes, -1, np.int32), np.full(v, -1, np.int32)
    done = 0
    for s in range(base):
        stack[0] = s
        top = 1
        while top > 0:
            top -= 1
            node = stack[top]
            number[node] = done
            order[done] = node
            done += 1
            if sibling[node] >= 0:
                stack[top] = sibling[node]
                top += 1
            if child[node] >= 0:
                stack[top] = child[node]
                top += 1
    new_child, new_sibling = np.full(nodes, -1, np.int32), np.full(nodes, -1, np.int32)
    new_symbol, blanks = np.empty(nodes, np.int32), np.zeros(nodes, np.int32)
    for n in range(nodes):
        old = order[n]
        new_symbol[n] = symbol[old]
        if piece[old] >= 0:
            shorter[piece[old]] = longest[n]
            longest[n] = piece[old]
        if sibling[old] >= 0:
            new_sibling[n] = number[sibling[old]]
        if child[old] >= 0:
            new_child[n] = number[child[old]]
            below = child[old]
            while below >= 0:
                longest[number[below]] = longest[n]
                below = sibling[below]
    for n in range(nodes - 1, -1, -1):
        if new_child[n] >= 0 and new_symbol[new_child[n]] == blank:
            blanks[n] = blanks[new_child[n]] + 1
    return number[:base].copy(), new_symbol, longest, new_child, new_sibling, blanks, shorter


@kernel
def blank_runs(symbols: _Array, blank: int, runs: _Array) -> None:
    """Write to `runs` how many blanks stand at each position and right of it."""
    run = 0
    for p in range(len(symbols) - 1, -1, -1):
        run = run + 1 if symbols[p] == blank else 0
        runs[p] = run


@kernel
def encode_run(merges: Merges, symbols: _Array, runs: _Array, start: int, stop: int, out: _Array, dead: _Array) -> int:
    """Write the ids of `symbols[start:stop]` to `out` and return their number.

    `runs` as `blank_runs` gives them, none reaching over `stop`. `dead` is scratch as long as `symbols`: positions
    from which no cut reaches the end. One function on purpose: handing `merges` to helpers would count references
    to its arrays at every step, which costs more than the step.
    """
    nodes, step, span, shorter = merges.nodes, merges.step, merges.span, merges.shorter
    memo, root, second = merges.memo, merges.root, merges.second
    left, right, keys, ids = merges.left, merges.right, merges.pair_keys, merges.pair_ids
    v = np.int64(len(span))
    dead[start:stop] = False
    count = 0
    piece: Any = np.int64(_UNREAD)
    length: Any = np.int64(0)
    position: Any = np.int64(start)
    while position < stop:
        if piece == _UNREAD:  # the longest id whose symbols stand here
            node = np.int64(root[symbols[position]])
            p = position + 1
            reach = stop
            if p < stop and len(second) > 0:
                after = second[symbols[position], symbols[p]]
                if after >= 0:
                    node = np.int64(after)
                    p += 1
                else:
                    reach = p
            while p < reach:
                skip = min(runs[p], nodes[node, _BLANKS])
                if skip > 0:
                    node += skip
                    p += skip
                    continue
                place = nodes[node, _CHILDREN] + symbols[p]
                if step[place, 0] != node:
                    break
                node = np.int64(step[place, 1])
                p += 1
            piece = np.int64(nodes[node, _ID])
            length = np.int64(nodes[node, _SPAN])
        while piece >= 0:  # the longest of its prefixes that goes with the piece before
            end = position + length
            if end == stop or not dead[end]:
                if count == 0:
                    break
                before = np.int64(out[count - 1])
                place, shift = (before * v + piece) >> 2, ((before * v + piece) & 3) << 1
                known = (memo[place] >> shift) & 3 if len(memo) > 0 else _UNKNOWN
                if known == _UNKNOWN:
                    known = _CLASHES if _clashes(left, right, keys, ids, before, piece, v) else _FITS
                    if len(memo) > 0:  # threads may race here; the worst is that one forgets what another learned
                        memo[place] = np.uint8(memo[place] | (known << shift))
                if known == _FITS:
                    break
            piece = np.int64(shorter[piece])
            length = np.int64(span[piece])
        if piece >= 0:
            out[count] = piece
            count += 1
            position += length
            piece = np.int64(_UNREAD)
        else:
            dead[position] = True
            count -= 1
            position -= span[out[count]]
            piece = np.int64(shorter[out[count]])
            length = np.int64(span[piece])
    return count
