"""The alphabet of FAST: integer coefficients as base symbols, rare ones as two escape digits.

Ids, in this order: one base symbol per frequent coefficient value (ascending), the high digits, the low digits,
then the merges. A coefficient c that has no symbol of its own is written as two ids, high = (c + bound) // radix
and low = (c + bound) % radix; merges never touch digits, so every id spans a known number of coefficients.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from action_tokenizers.codecs.bpe import Merges, blank_runs, build_merges, encode_run
from action_tokenizers.codecs.bpe_train import BARRIER
from action_tokenizers.codecs.kernel import kernel

__all__ = [
    "Alphabet",
    "Speller",
    "Tables",
    "alphabet_size",
    "build_tables",
    "choose_alphabet",
    "count_values",
    "decode_rows",
    "encode_rows",
    "pack_rows",
    "parse_rows",
    "to_symbols",
]

_Array = npt.NDArray[Any]


class Alphabet(NamedTuple):
    """Which coefficients have a symbol. `bound` is the largest |coefficient| a chunk can have."""

    values: npt.NDArray[np.int32]  # (m,) ascending
    bound: int
    radix: int  # 0: every coefficient has a symbol

    @property
    def size(self) -> int:
        """Ids before the first merge."""
        return alphabet_size(len(self.values), self.bound, self.radix)


def alphabet_size(values: int, bound: int, radix: int) -> int:
    """Return the number of base symbols and digits of an alphabet with `values` coefficients of their own."""
    return values + _high_digits(bound, radix) + radix


def _high_digits(bound: int, radix: int) -> int:
    return -(-(2 * bound + 1) // radix) if radix else 0


class Speller(NamedTuple):
    """What decoding needs of `Tables`: to hand a kernel all of them takes as long as a chunk."""

    value: npt.NDArray[np.int32]
    span: npt.NDArray[np.int64]
    nonzero: npt.NDArray[np.int32]
    nonzero_start: npt.NDArray[np.int64]
    high: int
    low: int
    first_merge: int
    bound: int
    radix: int


class Tables(NamedTuple):
    """An alphabet and its merges as arrays for the kernels."""

    merges: Merges
    value: npt.NDArray[np.int32]  # (size,) coefficient of a base symbol, digit of a digit
    symbol: npt.NDArray[np.int32]  # (2 bound + 1,) base symbol of coefficient c - bound; -1: escaped
    span: npt.NDArray[np.int64]  # (v,) coefficients an id stands for; a high digit stands for none yet
    nonzero: npt.NDArray[np.int32]  # (z, 2) place within its id, and value, of every coefficient that is not zero
    nonzero_start: npt.NDArray[np.int64]  # (v + 1,) where an id's lie; digits have none
    high: int  # ids of the first high digit,
    low: int  # the first low digit
    first_merge: int  # and the first merge
    bound: int
    radix: int

    @property
    def coder(self) -> tuple[Merges, npt.NDArray[np.int32], int, int, int]:
        """What `encode_rows` takes first."""
        return self.merges, self.symbol, self.high, self.low, self.radix

    @property
    def speller(self) -> Speller:
        """The part that decoding needs."""
        return Speller(self.value, self.span, self.nonzero, self.nonzero_start, *self[-5:])


@kernel
def count_values(coefficients: _Array, bound: int) -> _Array:
    """Return how often each of `coefficients (n, l)` -bound..bound occurs, `(2 bound + 1,)` int64."""
    counts = np.zeros(2 * bound + 1, np.int64)
    for i in range(coefficients.shape[0]):
        for j in range(coefficients.shape[1]):
            counts[coefficients[i, j] + bound] += 1
    return counts


def choose_alphabet(counts: npt.NDArray[np.int64], room: int, least_count: int) -> Alphabet:
    """Give a symbol to 0 and to every value seen at least `least_count` times, the most frequent first.

    Args:
        counts: as `count_values` returns them.
        room: most ids the alphabet may take.
        least_count: below it a value is spelled with two digits.

    Raises:
        ValueError: not even 0 and the digits fit; the message says how many ids they need.
    """
    bound = len(counts) // 2
    if len(counts) <= room and bool((counts >= least_count).all()):
        return Alphabet(np.arange(-bound, bound + 1, dtype=np.int32), bound, 0)
    radix = math.isqrt(len(counts) - 1) + 1
    digits = _high_digits(bound, radix) + radix
    if room < min(1 + digits, len(counts)):
        raise ValueError(f"{min(1 + digits, len(counts))} ids")
    if room < 1 + digits or len(counts) <= 1 + digits:
        return Alphabet(np.arange(-bound, bound + 1, dtype=np.int32), bound, 0)
    # ties go to the smaller coefficient, so that equal data give equal alphabets
    order = np.lexsort((np.abs(np.arange(len(counts)) - bound), -counts))
    frequent = [i for i in order[: room - digits] if counts[i] >= least_count and i != bound]
    values = np.sort(np.array([bound, *frequent[: room - digits - 1]], np.int32) - np.int32(bound))
    return Alphabet(values, bound, radix)


def build_tables(alphabet: Alphabet, pairs: npt.NDArray[np.int32]) -> Tables:
    """Prepare an alphabet and its merges `(m, 2)` for the kernels."""
    m, high_digits = len(alphabet.values), _high_digits(alphabet.bound, alphabet.radix)
    merges = build_merges(alphabet.size, pairs, blank=int(np.searchsorted(alphabet.values, 0)))
    symbol = np.full(2 * alphabet.bound + 1, -1, np.int32)
    symbol[alphabet.values + alphabet.bound] = np.arange(m)
    span = merges.span.astype(np.int64)
    span[m : m + high_digits] = 0
    value = np.concatenate([alphabet.values, np.arange(high_digits), np.arange(alphabet.radix)]).astype(np.int32)
    nonzero, nonzero_start = _nonzero(alphabet, merges)
    first_digit, low, first_merge = m, m + high_digits, alphabet.size
    return Tables(
        merges,
        value,
        symbol,
        span,
        nonzero,
        nonzero_start,
        first_digit,
        low,
        first_merge,
        alphabet.bound,
        alphabet.radix,
    )


def _nonzero(alphabet: Alphabet, merges: Merges) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    owner = np.repeat(np.arange(len(merges.span)), merges.span)
    place = np.arange(len(merges.symbols)) - merges.start[owner]
    is_base = merges.symbols < len(alphabet.values)
    value = np.where(is_base, alphabet.values[np.where(is_base, merges.symbols, 0)], 0)
    kept = value != 0
    start = np.concatenate([[0], np.cumsum(np.bincount(owner[kept], minlength=len(merges.span)))])
    return np.stack([place[kept], value[kept]], 1).astype(np.int32), start.astype(np.int64)


@kernel
def to_symbols(coefficients: _Array, symbol: _Array, bound: int) -> _Array:
    """Return the rows of `coefficients (n, l)` as base symbols, joined; escaped values and row ends are barriers."""
    n, length = coefficients.shape
    out = np.empty(n * (length + 1), np.int32)
    for i in range(n):
        for j in range(length):
            out[i * (length + 1) + j] = symbol[coefficients[i, j] + bound]
        out[i * (length + 1) + length] = BARRIER
    return out


@kernel
def encode_rows(
    merges: Merges, symbol: _Array, high: int, low: int, radix: int, coefficients: _Array, out: _Array, lengths: _Array
) -> int:
    """Write the ids of the rows of `coefficients (n, l)` one after another to `out`, at most 2 l per row.

    The other arguments are those of `Tables`. Fills `lengths (n,)` and returns how many ids were written.
    """
    n, length = coefficients.shape
    bound = len(symbol) // 2
    symbols = np.empty(length, np.int32)
    runs = np.empty(length, np.int32)
    dead = np.empty(length, np.bool_)
    count = 0
    for i in range(n):
        for j in range(length):
            symbols[j] = symbol[coefficients[i, j] + bound]
        blank_runs(symbols, merges.blank, runs)
        first = count
        start = 0
        while start < length:
            stop = start
            while stop < length and symbols[stop] >= 0:
                stop += 1
            count += encode_run(merges, symbols, runs, start, stop, out[count:], dead)
            if stop < length:
                shifted = coefficients[i, stop] + bound
                out[count] = high + shifted // radix
                out[count + 1] = low + shifted % radix
                count += 2
            start = stop + 1
        lengths[i] = count - first
    return count


@kernel
def pack_rows(ids: _Array, lengths: _Array, pad: int, out: _Array) -> None:
    """Spread `ids`, rows of `lengths (n,)` joined, over the rows of `out (n, >= longest)`, filled up with `pad`."""
    place = 0
    for i in range(len(lengths)):
        for p in range(lengths[i]):
            out[i, p] = ids[place + p]
        for p in range(lengths[i], out.shape[1]):
            out[i, p] = pad
        place += lengths[i]


@kernel
def parse_rows(tables: Tables, ids: _Array, length: int, kept: _Array, complete: _Array) -> None:
    """Count the leading ids of each row that can begin `length` coefficients; see `ActionTokenizer._parse`."""
    span, value = tables.span, tables.value
    high, low, first_merge, radix = tables.high, tables.low, tables.first_merge, tables.radix
    v = len(span)
    for i in range(ids.shape[0]):
        left = length
        digit = -1  # a high digit that waits for its low one
        count = 0
        while count < ids.shape[1] and left > 0:
            token = ids[i, count]
            if token < 0 or token >= v:
                break
            is_low = low <= token < first_merge
            if (digit >= 0) != is_low:
                break
            if is_low:
                if digit * radix + value[token] > 2 * tables.bound:
                    break
                digit = -1
            elif high <= token < low:
                digit = value[token]
            if span[token] > left:
                break
            left -= span[token]
            count += 1
        kept[i] = count
        complete[i] = left == 0


@kernel
def decode_rows(tables: Tables, ids: _Array, kept: _Array, out: _Array, said: _Array) -> None:
    """Write the coefficients of the first `kept (n,)` ids of each row to `out (n, l)` int32; the rest stays.

    `said (n,)` becomes their number. What would not fit a row is left out.
    """
    length = out.shape[1]
    value, symbols, begin = tables.value, tables.merges.symbols, tables.merges.start
    high, low, first_merge, radix = tables.high, tables.low, tables.first_merge, tables.radix
    for i in range(ids.shape[0]):
        position = 0
        digit = 0
        for p in range(kept[i]):
            token = ids[i, p]
            if high <= token < low:
                digit = value[token]
            elif low <= token < first_merge:
                if position < length:
                    out[i, position] = digit * radix + value[token] - tables.bound
                    position += 1
            else:
                for s in range(begin[token], min(begin[token + 1], begin[token] + length - position)):
                    out[i, position] = value[symbols[s]]
                    position += 1
        said[i] = position
