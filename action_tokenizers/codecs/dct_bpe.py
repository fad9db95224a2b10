"""FAST, all stages of a chunk after one another while it is in cache: range, DCT, symbols, merges; and back.

Each does what its stage alone does, bit for bit: `affine`, `dct`, `symbols`.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from action_tokenizers.codecs.affine import action_of
from action_tokenizers.codecs.bpe import Merges
from action_tokenizers.codecs.dct import dct_round
from action_tokenizers.codecs.kernel import kernel
from action_tokenizers.codecs.symbols import Speller, encode_rows

__all__ = ["decode_chunks", "encode_chunks"]

_Array = npt.NDArray[Any]

# chunks whose coefficients stay in cache between two stages
PIECE = 128
# the largest finite float32
MOST = np.float32(np.finfo(np.float32).max)


@kernel
def encode_chunks(
    merges: Merges,
    symbol: _Array,
    high_digit: int,
    low_digit: int,
    radix: int,
    actions: _Array,
    low: _Array,
    high: _Array,
    weights: _Array,
    out: _Array,
    lengths: _Array,
) -> tuple[int, bool]:
    """Write the ids of `actions (n, t, d)` one after another to `out`, at most 2 t d per chunk.

    Args:
        merges: with the four that follow, of `Tables`.
        symbol: likewise.
        high_digit: likewise.
        low_digit: likewise.
        radix: likewise.
        actions: float32.
        low: `(d,)` float32, becomes -1.
        high: `(d,)` float32, becomes +1.
        weights: as `dct_weights` gives them.
        out: int32.
        lengths: `(n,)` int64, takes the number of ids of each chunk.

    Returns:
        The ids of the longest chunk, and whether all actions were finite; where not, what was written is worthless.
    """
    n, t, d = actions.shape
    piece = max(1, min(PIECE, n))
    unit, coefficients = np.empty((piece, t, d), np.float32), np.empty((piece, t * d), np.int32)
    middle, scale = np.empty((t, d), np.float64), np.empty((t, d), np.float64)
    for j in range(d):
        half = (np.float64(high[j]) - np.float64(low[j])) / 2
        middle[0, j] = (np.float64(high[j]) + np.float64(low[j])) / 2
        scale[0, j] = 1 / half if half > 0 else 0.0
    # once per value of a chunk, so that all of it is one loop
    for m in range(1, t):
        for j in range(d):
            middle[m, j], scale[m, j] = middle[0, j], scale[0, j]
    flat_middle, flat_scale = middle.ravel(), scale.ravel()
    count, longest, odd = 0, 0, 0
    for start in range(0, n, piece):
        stop = min(start + piece, n)
        for i in range(start, stop):
            source, target = actions[i].ravel(), unit[i - start].ravel()
            for p in range(t * d):
                odd |= not abs(source[p]) <= MOST
                z = (np.float64(source[p]) - flat_middle[p]) * flat_scale[p]
                target[p] = np.float32(min(1.0, max(-1.0, z)))
        part = coefficients[: stop - start]
        dct_round(unit[: stop - start], weights, len(symbol) // 2, part)
        count += encode_rows(merges, symbol, high_digit, low_digit, radix, part, out[count:], lengths[start:stop])
        for i in range(start, stop):
            longest = max(longest, lengths[i])
    return longest, odd == 0


@kernel
def decode_chunks(
    tables: Speller, ids: _Array, pad: int, weights: _Array, scale: float, low: _Array, high: _Array, out: _Array
) -> bool:
    """Fill `out (n, t, d)` float32 with the actions of `ids (n, m)`, and say whether each row is exactly one chunk.

    Where one is not, `out` is not complete.

    Args:
        tables: what the ids stand for.
        ids: int64; a chunk, then nothing but `pad`.
        pad: the id that fills rows up.
        weights: as `idct_weights` gives them.
        scale: levels per unit of a coefficient.
        low: `(d,)` float32.
        high: `(d,)` float32.
        out: takes the actions.
    """
    n, t, d = out.shape
    span, value, nonzero, begin = tables.span, tables.value, tables.nonzero, tables.nonzero_start
    high_digit, low_digit, first_merge, radix = tables.high, tables.low, tables.first_merge, tables.radix
    v, length, width = len(span), t * d, weights.shape[1]
    chunk, actions = np.empty((d, width), np.float64), np.empty((d, width), np.float32)
    for i in range(n):
        chunk[:] = 0.0
        place: Any = 0
        digit: Any = -1
        p = 0
        while p < ids.shape[1] and place < length:
            token = ids[i, p]
            if token < 0 or token >= v or span[token] > length - place:
                return False
            is_low = low_digit <= token < first_merge
            if (digit >= 0) != is_low:
                return False
            if is_low:
                coefficient = digit * radix + value[token] - tables.bound
                if coefficient > tables.bound:
                    return False
                digit = -1
                amplitude, k, j = coefficient / scale, place // d, place % d
                for m in range(width):
                    chunk[j, m] += amplitude * weights[k, m]
            elif high_digit <= token < low_digit:
                digit = np.int64(value[token])
            else:
                for q in range(begin[token], begin[token + 1]):
                    at = place + nonzero[q, 0]
                    amplitude, k = nonzero[q, 1] / scale, at // d
                    j = at - k * d
                    for m in range(width):
                        chunk[j, m] += amplitude * weights[k, m]
            place += span[token]
            p += 1
        if place < length:
            return False
        while p < ids.shape[1]:
            if ids[i, p] != pad:
                return False
            p += 1
        for j in range(d):
            bottom, top = np.float64(low[j]), np.float64(high[j])
            for m in range(width):
                actions[j, m] = action_of(np.float64(np.float32(chunk[j, m])), bottom, top)
        for m in range(t):
            for j in range(d):
                out[i, m, j] = actions[j, m]
    return True
