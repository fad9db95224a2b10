"""Byte-level BPE over coefficients written as text: encoding, and reading ids as a UTF-8 automaton.

An id stands for some bytes, and may begin or end inside a character. So the state between two ids is what has been
read of an unfinished character. An id *fits* a state when its bytes go on with valid UTF-8, every character is a
coefficient a chunk can have, no more characters come than the chunk has room for, and a character it leaves
unfinished can still be finished.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from action_tokenizers.codecs.bpe import Merges, blank_runs, build_merges, encode_run
from action_tokenizers.codecs.byte_text import (
    MOST_CHARACTER,
    character_classes,
    spell_token,
    split_words,
    token_bytes,
)
from action_tokenizers.codecs.kernel import kernel

__all__ = [
    "ByteTables",
    "Reader",
    "allowed_rows",
    "build_byte_tables",
    "choices_rows",
    "decode_rows",
    "encode_rows",
    "locate_rows",
    "parse_rows",
]

_Array = npt.NDArray[Any]
_Int = Any  # int outside a kernel, a machine integer inside
_REFUSED = -1


class Reader(NamedTuple):
    """What the `v` ids of a vocabulary, without a pad, say."""

    data: npt.NDArray[np.uint8]  # bytes of all ids, joined
    start: npt.NDArray[np.int64]  # (v + 1,)
    text: npt.NDArray[np.int32]  # characters of the ids that are whole characters, joined
    begin: npt.NDArray[np.int64]  # (v + 1,)
    least: npt.NDArray[np.int32]  # (v,) the smallest character of such an id
    most: npt.NDArray[np.int32]  # (v,)
    last: npt.NDArray[np.int32]  # (65,) how many of the bytes 0x80..0x80 + i - 1 are ids


class ByteTables(NamedTuple):
    """A byte-level vocabulary as arrays for the kernels."""

    reader: Reader
    byte_id: npt.NDArray[np.int32]  # (256,) id of each byte; -1: not in the vocabulary
    merges: Merges | None  # None where the merges are not in the order that fast encoding needs
    to_id: npt.NDArray[np.int32]  # (v,) published id of an id of `merges`
    pair_keys: npt.NDArray[np.int64]  # (m,) ascending, left * v + right
    pair_rank: npt.NDArray[np.int32]  # (m,)
    product: npt.NDArray[np.int32]  # (m,) by rank
    spelling: npt.NDArray[np.int32]  # (MOST_CHARACTER + 1, 3) ids, of `merges` or published, each character begins as
    classes: npt.NDArray[np.uint8]

    def begins_inside(self) -> bool:
        """Say whether an id begins with bytes that continue a character and are not ids themselves.

        Then no local rule tells which characters can be finished.
        """
        data, start = self.reader.data, self.reader.start
        first = data[start[:-1]]
        second = data[np.minimum(start[:-1] + 1, start[1:] - 1)]
        is_inside = first & 0xC0 == 0x80
        missing = self.byte_id < 0
        return bool((is_inside & (missing[first] | (second & 0xC0 == 0x80) & missing[second])).any())


def build_byte_tables(tokens: list[str], merges: npt.NDArray[np.int32]) -> ByteTables:
    """Prepare a vocabulary.

    Args:
        tokens: entry of each id.
        merges: `(m, 3)` left, right, product, by rank; products may repeat.
    """
    v = len(tokens)
    spelled = [token_bytes(token) for token in tokens]
    byte_id = np.full(256, -1, np.int32)
    for i, token in enumerate(tokens):
        # not the raw characters: they decode to a byte, but encoding never writes them
        if len(spelled[i]) == 1 and spell_token(spelled[i]) == token:
            byte_id[spelled[i][0]] = i
    keys = merges[:, 0].astype(np.int64) * v + merges[:, 1]
    order = np.argsort(keys, kind="stable").astype(np.int32)
    spelling = _spelling(byte_id)
    fast, to_id = None, np.arange(v, dtype=np.int32)
    ranked = _ranked(v, merges)
    if ranked is not None:
        base, to_id = ranked
        to_fast = np.empty(v + 1, np.int32)
        to_fast[to_id] = np.arange(v, dtype=np.int32)
        to_fast[-1] = -1
        spelling = to_fast[spelling]
        pairs = to_fast[merges[:, :2]]
        blank = -1
        # The first merge happens before all others, so its product may be spelled at once. It is, after any training
        # on robot actions, the character of the zero coefficient, or two of them: runs of it are walked in one step.
        if len(pairs):
            character = spelled[merges[0, 2]].decode(errors="replace")
            if pairs[0, 0] == pairs[0, 1]:
                blank = int(pairs[0, 0])
            elif len(character) == 1 and 0x80 <= ord(character) < 0x800:
                blank = base
                spelling[ord(character)] = base, -1, -1
                base, pairs = base + 1, pairs[1:]
        fast = build_merges(base, pairs, blank=blank)
    product = merges[:, 2].astype(np.int32)
    reader = _build_reader(spelled, byte_id)
    return ByteTables(reader, byte_id, fast, to_id, keys[order], order, product, spelling, character_classes())


def _build_reader(spelled: list[bytes], byte_id: npt.NDArray[np.int32]) -> Reader:
    text = [_characters(data) for data in spelled]
    last = np.concatenate([[0], np.cumsum(byte_id[0x80:0xC0] >= 0)]).astype(np.int32)
    return Reader(
        np.frombuffer(b"".join(spelled), np.uint8),
        _borders([len(data) for data in spelled]),
        np.array([character for characters in text for character in characters], np.int32),
        _borders([len(characters) for characters in text]),
        np.array([min(characters, default=0) for characters in text], np.int32),
        np.array([max(characters, default=0) for characters in text], np.int32),
        last,
    )


def _characters(data: bytes) -> list[int]:
    try:
        return [ord(character) for character in data.decode()]
    except UnicodeDecodeError:
        return []


def _borders(lengths: list[int]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _ranked(v: int, merges: npt.NDArray[np.int32]) -> tuple[int, npt.NDArray[np.int32]] | None:
    """Return how many ids no merge makes, and the ids with those first and then the products by rank.

    None unless every merge makes an id of its own out of earlier ones, as training leaves them.
    """
    product = merges[:, 2]
    if len(np.unique(product)) < len(product):
        return None
    base = np.setdiff1d(np.arange(v, dtype=np.int32), product)
    to_id = np.concatenate([base, product]).astype(np.int32)
    place = np.empty(v, np.int64)
    place[to_id] = np.arange(v)
    is_earlier = place[merges[:, :2]] < place[product][:, None]
    return (len(base), to_id) if bool(is_earlier.all()) else None


def _spelling(byte_id: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Return the ids of the bytes of every character, -1 behind them; nothing but -1 where one is missing."""
    c = np.arange(MOST_CHARACTER + 1)[:, None]
    one = np.concatenate([c, np.full((len(c), 2), -1)], 1)
    two = np.concatenate([0xC0 | c >> 6 & 0x1F, 0x80 | c & 0x3F, np.full_like(c, -1)], 1)
    three = np.concatenate([0xE0 | c >> 12, 0x80 | c >> 6 & 0x3F, 0x80 | c & 0x3F], 1)
    data = np.where(c < 0x80, one, np.where(c < 0x800, two, three))
    ids = np.where(data >= 0, byte_id[data], -1)
    ids[((data >= 0) & (ids < 0)).any(1)] = -1
    return ids.astype(np.int32)


@kernel
def _spell(characters: _Array, start: _Int, stop: _Int, spelling: _Array, word: _Array) -> int:
    """Write the symbols of a word to `word` and return their number, -1 where one cannot be spelled."""
    n = 0
    for p in range(start, stop):
        symbol = spelling[characters[p], 0]
        if symbol < 0:
            return _REFUSED
        for q in range(3):
            symbol = spelling[characters[p], q]
            if symbol < 0:
                break
            word[n] = symbol
            n += 1
    return n


@kernel
def _encode_fast(
    merges: Merges, to_id: _Array, spelling: _Array, classes: _Array, characters: _Array, out: _Array, lengths: _Array
) -> int:
    n, length = characters.shape
    ends = np.empty(length, np.int64)
    word, runs, dead = np.empty(3 * length, np.int32), np.empty(3 * length, np.int32), np.empty(3 * length, np.bool_)
    blank = merges.blank
    count = 0
    for i in range(n):
        first, begin = count, np.int64(0)
        for w in range(split_words(characters[i], classes, ends)):
            size = _spell(characters[i], begin, ends[w], spelling, word)
            if size < 0:
                count = first
                break
            blank_runs(word[:size], blank, runs)
            count += encode_run(merges, word, runs, 0, size, out[count:], dead)
            begin = ends[w]
        for p in range(first, count):
            out[p] = to_id[out[p]]
        lengths[i] = count - first if count > first else _REFUSED
    return count


@kernel
def _rank_of(keys: _Array, ranks: _Array, key: _Int) -> int:
    place = np.searchsorted(keys, key)
    if place < len(keys) and keys[place] == key:
        return int(ranks[place])
    return len(keys)


@kernel
def _merge_by_rank(keys: _Array, ranks: _Array, product: _Array, v: int, word: _Array, pending: _Array, n: int) -> int:
    """Merge the first `n` ids of `word` in place: always the earliest rule, and of it the leftmost pair.

    Returns how many remain. The definition, quadratic in the word; `pending` is scratch for the rank of each pair.
    """
    for p in range(n - 1):
        pending[p] = _rank_of(keys, ranks, np.int64(word[p]) * v + word[p + 1])
    while True:
        best, where = len(keys), -1
        for p in range(n - 1):
            if pending[p] < best:
                best, where = pending[p], p
        if where < 0:
            return n
        word[where] = product[best]
        n -= 1
        for p in range(where + 1, n):
            word[p] = word[p + 1]
            pending[p - 1] = pending[p]
        for p in range(max(0, where - 1), min(where + 1, n - 1)):
            pending[p] = _rank_of(keys, ranks, np.int64(word[p]) * v + word[p + 1])


@kernel
def _encode_slow(
    keys: _Array,
    ranks: _Array,
    product: _Array,
    v: int,
    spelling: _Array,
    classes: _Array,
    characters: _Array,
    out: _Array,
    lengths: _Array,
) -> int:
    n, length = characters.shape
    ends = np.empty(length, np.int64)
    word, pending = np.empty(3 * length, np.int32), np.empty(3 * length, np.int64)
    count = 0
    for i in range(n):
        first, begin = count, np.int64(0)
        for w in range(split_words(characters[i], classes, ends)):
            size = _spell(characters[i], begin, ends[w], spelling, word)
            if size < 0:
                count = first
                break
            size = _merge_by_rank(keys, ranks, product, v, word, pending, size)
            out[count : count + size] = word[:size]
            count += size
            begin = ends[w]
        lengths[i] = count - first if count > first else _REFUSED
    return count


def encode_rows(tables: ByteTables, characters: _Array, out: _Array, lengths: _Array) -> int:
    """Write the ids of the rows of `characters (n, l)` one after another to `out`, at most one per byte of UTF-8.

    Fills `lengths (n,)`, -1 where a byte is not in the vocabulary, and returns how many ids were written.
    """
    t = tables
    if t.merges is not None:
        return int(_encode_fast(t.merges, t.to_id, t.spelling, t.classes, characters, out, lengths))
    v = len(t.to_id)
    return int(_encode_slow(t.pair_keys, t.pair_rank, t.product, v, t.spelling, t.classes, characters, out, lengths))


@kernel
def _last_exists(last: _Array, value: _Int, low: _Int, high: _Int) -> bool:
    """Say whether the last byte of a character, of which `value` is read, can make it one in low..high."""
    first, stop = max(value << 6, low), min(value << 6 | 0x3F, high)
    return bool(first <= stop and last[(stop & 0x3F) + 1] > last[first & 0x3F])


@kernel
def _finishable(last: _Array, need: _Int, value: _Int, low: _Int, high: _Int) -> bool:
    """Say whether a character of which `value` is read and `need` bytes are missing can become one in low..high."""
    if need == 1:
        return bool(_last_exists(last, value, low, high))
    # below 0x20 it would fit two bytes, and must not be written in three
    for byte in range(0x20 if value == 0 else 0, 0x40):
        if last[byte + 1] > last[byte] and _last_exists(last, value << 6 | byte, low, high):
            return True
    return False


@kernel
def _step(
    data: _Array,
    start: _Int,
    stop: _Int,
    need: _Int,
    value: _Int,
    left: _Int,
    last: _Array,
    low: _Int,
    high: _Int,
    out: _Array,
    place: _Int,
) -> tuple[Any, Any, Any]:
    """Read the bytes of one id; return (need, value, characters completed), the last -1 where the id does not fit.

    Completed characters go to `out` from `place` on, as far as it reaches.
    """
    refused = np.int64(0), np.int64(0), np.int64(_REFUSED)
    done = np.int64(0)
    for p in range(start, stop):
        byte = np.int64(data[p])
        if need == 0:
            if done == left:
                return refused
            if byte < 0x80:
                value = byte
            elif 0xC2 <= byte < 0xE0:
                need, value = np.int64(1), byte & 0x1F
            elif 0xE0 <= byte < 0xF0:
                need, value = np.int64(2), byte & 0x0F
            else:
                return refused
        else:
            value = value << 6 | byte & 0x3F
            if byte & 0xC0 != 0x80 or (need == 2 and value < 0x20):
                return refused
            need -= 1
        if need == 0:
            if value < low or value > high:
                return refused
            if place + done < len(out):
                out[place + done] = value
            done += 1
            value = np.int64(0)
    if need > 0 and not _finishable(last, need, value, low, high):
        return refused
    return need, value, done


@kernel
def parse_rows(reader: Reader, ids: _Array, length: int, low: int, high: int, kept: _Array, complete: _Array) -> None:
    """Count the leading ids of each row that can begin `length` characters in low..high."""
    data, start, begin, least, most, last = (
        reader.data,
        reader.start,
        reader.begin,
        reader.least,
        reader.most,
        reader.last,
    )
    v = len(start) - 1
    nothing = np.empty(0, np.int32)
    for i in range(ids.shape[0]):
        need, value, left = np.int64(0), np.int64(0), np.int64(length)
        count = 0
        while count < ids.shape[1] and left > 0:
            token = ids[i, count]
            if token < 0 or token >= v:
                break
            done = begin[token + 1] - begin[token]
            if need == 0 and done > 0:
                if done > left or least[token] < low or most[token] > high:
                    break
            else:
                after, rest, done = _step(
                    data, start[token], start[token + 1], need, value, left, last, low, high, nothing, 0
                )
                if done < 0:
                    break
                need, value = after, rest
            left -= done
            count += 1
        kept[i] = count
        complete[i] = left == 0


@kernel
def decode_rows(reader: Reader, ids: _Array, kept: _Array, low: int, high: int, out: _Array, said: _Array) -> None:
    """Write the characters of the first `kept (n,)` ids of each row to `out (n, l)`; `said (n,)` is their number.

    The ids are such as `parse_rows` counts.
    """
    data, start, text, begin, last = reader.data, reader.start, reader.text, reader.begin, reader.last
    for i in range(ids.shape[0]):
        row = out[i]
        need, value, place = np.int64(0), np.int64(0), np.int64(0)
        for p in range(kept[i]):
            token = ids[i, p]
            done = begin[token + 1] - begin[token]
            if need == 0 and done > 0:
                for q in range(min(done, len(row) - place)):
                    row[place + q] = text[begin[token] + q]
            else:
                left = len(row) - place
                need, value, done = _step(
                    data, start[token], start[token + 1], need, value, left, last, low, high, row, place
                )
            place += done
        said[i] = place


@kernel
def _count_fitting(
    reader: Reader, need: _Int, value: _Int, left: _Int, low: _Int, high: _Int, nothing: _Array, mask: _Array
) -> int:
    """Return how many ids fit a state; set `mask` there, as far as it reaches."""
    data, start, begin, least, most, last = (
        reader.data,
        reader.start,
        reader.begin,
        reader.least,
        reader.most,
        reader.last,
    )
    count = 0
    for token in range(len(start) - 1):
        done = begin[token + 1] - begin[token]
        if need == 0 and done > 0:
            fits = done <= left and least[token] >= low and most[token] <= high
        else:
            _, _, done = _step(data, start[token], start[token + 1], need, value, left, last, low, high, nothing, 0)
            fits = done >= 0
        count += fits
        if token < len(mask):
            mask[token] = fits
    return count


@kernel
def allowed_rows(reader: Reader, ids: _Array, length: int, low: int, high: int, mask: _Array) -> None:
    """Set `mask (n, >= v)` where an id fits after the valid, incomplete prefix `ids (n, m)`."""
    data, start, last = reader.data, reader.start, reader.last
    nothing = np.empty(0, np.int32)
    for i in range(ids.shape[0]):
        need, value, left = np.int64(0), np.int64(0), np.int64(length)
        for p in range(ids.shape[1]):
            token = ids[i, p]
            need, value, done = _step(
                data, start[token], start[token + 1], need, value, left, last, low, high, nothing, 0
            )
            left -= done
        _count_fitting(reader, need, value, left, low, high, nothing, mask[i])


@kernel
def choices_rows(reader: Reader, ids: _Array, kept: _Array, length: int, low: int, high: int, counts: _Array) -> None:
    """Write how many ids fit at each of the first `kept (n,)` positions of `ids (n, m)` to `counts`."""
    data, start, last = reader.data, reader.start, reader.last
    nothing, no_mask = np.empty(0, np.int32), np.empty(0, np.bool_)
    at_border = np.full(length + 1, -1, np.int64)  # by room left, between two characters
    for i in range(ids.shape[0]):
        need, value, left = np.int64(0), np.int64(0), np.int64(length)
        for p in range(kept[i]):
            if need > 0:
                counts[i, p] = _count_fitting(reader, need, value, left, low, high, nothing, no_mask)
            else:
                if at_border[left] < 0:
                    at_border[left] = _count_fitting(reader, need, value, left, low, high, nothing, no_mask)
                counts[i, p] = at_border[left]
            token = ids[i, p]
            need, value, done = _step(
                data, start[token], start[token + 1], need, value, left, last, low, high, nothing, 0
            )
            left -= done


@kernel
def locate_rows(
    reader: Reader, ids: _Array, kept: _Array, length: int, low: int, high: int, first: _Array, span: _Array
) -> None:
    """Write, for the first `kept (n,)` ids of each row, the character an id begins in and how many it is part of."""
    data, start, last = reader.data, reader.start, reader.last
    nothing = np.empty(0, np.int32)
    for i in range(ids.shape[0]):
        need, value, place = np.int64(0), np.int64(0), np.int64(0)
        for p in range(kept[i]):
            token = ids[i, p]
            need, value, done = _step(
                data, start[token], start[token + 1], need, value, length - place, last, low, high, nothing, 0
            )
            first[i, p] = place
            span[i, p] = done + (need > 0)
            place += done
