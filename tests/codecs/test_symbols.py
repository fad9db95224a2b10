"""The alphabet of FAST: which coefficients get a symbol, and what is spelled with digits."""

import numpy as np
import pytest

from action_tokenizers.codecs.bpe_train import BARRIER, train_merges
from action_tokenizers.codecs.symbols import (
    Alphabet,
    Tables,
    alphabet_size,
    build_tables,
    choose_alphabet,
    count_values,
    decode_rows,
    encode_rows,
    pack_rows,
    parse_rows,
    to_symbols,
)


def some_alphabet(rng: np.random.Generator) -> Alphabet:
    """Any bound and radix, some values with a symbol; 0 always has one."""
    bound = int(rng.integers(0, 60))
    everything = np.arange(-bound, bound + 1, dtype=np.int32)
    if rng.random() < 0.2:
        return Alphabet(everything, bound, 0)
    values = everything[(rng.random(len(everything)) < rng.random()) | (everything == 0)]
    return Alphabet(values, bound, int(rng.integers(1, 2 * bound + 3)))


def some_rows(rng: np.random.Generator, bound: int, n: int = 40, length: int = 24) -> np.ndarray:
    rows = rng.integers(-bound, bound + 1, (n, length)).astype(np.int32)
    rows[rng.random(rows.shape) < rng.random()] = 0
    return rows


def tables_for(alphabet: Alphabet, rows: np.ndarray, merges: int) -> Tables:
    symbol = build_tables(alphabet, np.empty((0, 2), np.int32)).symbol
    pairs, _ = train_merges(to_symbols(rows, symbol, alphabet.bound), alphabet.size, merges)
    return build_tables(alphabet, pairs)


def encode(tables: Tables, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids of each row, filled up with -7, and their numbers."""
    joined, lengths = np.full(2 * rows.size, -9, np.int32), np.empty(len(rows), np.int64)
    count = encode_rows(*tables.coder, rows, joined, lengths)
    assert count == lengths.sum()
    assert (joined[count:] == -9).all()  # nothing behind what was said
    out = np.full((len(rows), 2 * rows.shape[1]), 99, np.int32)
    pack_rows(joined, lengths, -7, out)
    return out, lengths


@pytest.mark.parametrize("seed", range(60))
def test_what_is_encoded_is_decoded(seed):
    rng = np.random.default_rng(seed)
    alphabet = some_alphabet(rng)
    rows = some_rows(rng, alphabet.bound)
    tables = tables_for(alphabet, rows[::2], int(rng.integers(0, 60)))
    ids, lengths = encode(tables, rows)
    assert all((line[k:] == -7).all() for line, k in zip(ids, lengths, strict=True))
    kept, complete = np.empty(len(rows), np.int64), np.empty(len(rows), np.bool_)
    parse_rows(tables, ids.astype(np.int64), rows.shape[1], kept, complete)
    assert complete.all()
    np.testing.assert_array_equal(kept, lengths)
    out = np.full_like(rows, 999)
    said = np.empty(len(rows), np.int64)
    decode_rows(tables, ids.astype(np.int64), kept, out, said)
    np.testing.assert_array_equal(out, rows)
    assert (said == rows.shape[1]).all()
    # ids of a longer row never write beyond a shorter one
    guarded = np.full((len(rows), rows.shape[1] + 8), 999, np.int32)
    decode_rows(tables, ids.astype(np.int64), kept, guarded[:, : rows.shape[1] // 2], said)
    assert (guarded[:, rows.shape[1] // 2 :] == 999).all()
    np.testing.assert_array_equal(guarded[:, : rows.shape[1] // 2], rows[:, : rows.shape[1] // 2])


@pytest.mark.parametrize("seed", range(20))
def test_every_id_spans_a_known_number_of_coefficients(seed):
    rng = np.random.default_rng(seed)
    alphabet = some_alphabet(rng)
    rows = some_rows(rng, alphabet.bound)
    tables = tables_for(alphabet, rows, 50)
    ids, lengths = encode(tables, rows)
    for line, k in zip(ids, lengths, strict=True):
        assert tables.span[line[:k]].sum() == rows.shape[1]
        for m in range(k):
            # a prefix says exactly as many coefficients as its spans add up to, and leaves the others alone
            out = np.full((1, rows.shape[1]), 999, np.int32)
            said = np.empty(1, np.int64)
            decode_rows(tables, line[None].astype(np.int64), np.array([m]), out, said)
            assert (out[0] != 999).sum() == said[0] == tables.span[line[:m]].sum()


def test_ids_come_in_the_order_the_docstring_gives():
    alphabet = Alphabet(np.array([-2, 0, 1], np.int32), 10, 5)
    tables = build_tables(alphabet, np.array([[1, 1]], np.int32))
    assert tables.low - tables.high == 5  # 21 values in digits of 5
    assert (tables.high, tables.low, tables.first_merge, len(tables.span)) == (3, 8, 13, 14)
    rows = np.array([[-2, 0, 0, 1, 10, -10, 3]], np.int32)
    ids, lengths = encode(tables, rows)
    digits = [d for c in (10, -10, 3) for d in (3 + (c + 10) // 5, 8 + (c + 10) % 5)]
    assert ids[0, : lengths[0]].tolist() == [0, 13, 2, *digits]


def test_merges_never_touch_digits():
    rng = np.random.default_rng(1)
    rows = some_rows(rng, 30, 200)
    rows[:, ::3] = 29  # frequent neighbours that are all escaped
    alphabet = Alphabet(np.array([-1, 0, 1, 2], np.int32), 30, 8)
    pairs = tables_for(alphabet, rows, 200).merges
    assert len(pairs.left) > alphabet.size
    joined = np.concatenate([pairs.left[alphabet.size :], pairs.right[alphabet.size :]])
    assert not np.isin(joined, np.arange(4, alphabet.size)).any()


def test_to_symbols_puts_barriers_between_rows_and_at_escapes():
    symbol = np.array([-1, 0, 1, 2, -1], np.int32)  # values -1, 0, 1 of bound 2
    rows = np.array([[-1, 0, 2], [1, -2, 0]], np.int32)
    expected = [0, 1, BARRIER, BARRIER, 2, BARRIER, 1, BARRIER]
    assert to_symbols(rows, symbol, 2).tolist() == expected


def test_count_values():
    rng = np.random.default_rng(2)
    rows = some_rows(rng, 9)
    counts = count_values(rows, 9)
    assert counts.tolist() == [int((rows == c).sum()) for c in range(-9, 10)]


def test_rows_are_spread_and_filled_up():
    out = np.full((4, 3), 99, np.int64)
    pack_rows(np.array([5, 6, 7, 8, 1, -1, -1], np.int32), np.array([3, 0, 1, 1], np.int64), 9, out)
    assert out.tolist() == [[5, 6, 7], [9, 9, 9], [8, 9, 9], [1, 9, 9]]
    pack_rows(np.empty(0, np.int32), np.zeros(4, np.int64), 9, out)
    assert (out == 9).all()


@pytest.mark.parametrize("seed", range(20))
def test_the_size_is_what_the_tables_hold(seed):
    alphabet = some_alphabet(np.random.default_rng(seed))
    tables = build_tables(alphabet, np.empty((0, 2), np.int32))
    assert alphabet.size == alphabet_size(len(alphabet.values), alphabet.bound, alphabet.radix) == len(tables.span)
    assert tables.first_merge == len(tables.value) == alphabet.size


# ---- choosing ---------------------------------------------------------------------------------------------------


def test_rare_large_coefficients_do_not_eat_the_vocabulary():
    """A hundred large values seen once each would take a hundred ids; as digits they take forty."""
    counts = np.zeros(801, np.int64)
    counts[390:411] = 10_000
    counts[::8] += 1  # 101 rare values over the whole reach
    alphabet = choose_alphabet(counts, 512, 2)
    assert alphabet.values.tolist() == list(range(-10, 11))
    assert alphabet.radix > 0
    assert alphabet.size <= 21 + 2 * 30


@pytest.mark.parametrize("seed", range(40))
def test_any_counts_and_room_give_a_sound_alphabet(seed):
    rng = np.random.default_rng(seed)
    bound, least = int(rng.integers(0, 300)), int(rng.integers(1, 20))
    counts = (rng.pareto(1.0, 2 * bound + 1) * rng.integers(0, 2, 2 * bound + 1) * 5).astype(np.int64)
    room = int(rng.integers(2, 400))
    try:
        alphabet = choose_alphabet(counts, room, least)
    except ValueError as error:
        needed = int(str(error).split()[0])
        assert needed > room
        assert choose_alphabet(counts, needed, least).size <= needed  # the number it asks for is enough
        return
    assert alphabet.size <= room
    assert alphabet.bound == bound
    assert 0 in alphabet.values
    assert (np.diff(alphabet.values) > 0).all()
    if alphabet.radix == 0:
        assert len(alphabet.values) == 2 * bound + 1
        return
    # the digits reach every coefficient
    high_digits = alphabet.size - len(alphabet.values) - alphabet.radix
    assert (high_digits - 1) * alphabet.radix < 2 * bound + 1 <= high_digits * alphabet.radix
    chosen = np.isin(np.arange(-bound, bound + 1), alphabet.values)
    nonzero = np.arange(-bound, bound + 1) != 0
    left_out, taken = counts[~chosen & nonzero], counts[chosen & nonzero]
    assert (taken >= least).all()
    if len(taken) and len(left_out):
        assert left_out.max() <= taken.min()  # the most frequent first
    if alphabet.size < room:
        assert (left_out < least).all()  # room was left: nothing frequent is spelled


def test_too_small_a_room_says_how_many_ids_are_needed():
    counts = np.full(101, 50, np.int64)
    with pytest.raises(ValueError, match=r"^\d+ ids$") as caught:
        choose_alphabet(counts, 5, 2)
    needed = int(str(caught.value).split()[0])
    assert choose_alphabet(counts, needed, 2).size <= needed
    with pytest.raises(ValueError, match=f"{needed} ids"):
        choose_alphabet(counts, needed - 1, 2)


def test_all_values_get_symbols_where_they_are_frequent_and_fit():
    alphabet = choose_alphabet(np.full(21, 5, np.int64), 21, 5)
    assert alphabet.radix == 0
    assert alphabet.values.tolist() == list(range(-10, 11))


def test_few_values_are_cheaper_without_digits():
    """Three values: digits would take more ids than they save."""
    alphabet = choose_alphabet(np.array([0, 9, 1], np.int64), 50, 2)
    assert alphabet == Alphabet(alphabet.values, 1, 0)
    assert alphabet.values.tolist() == [-1, 0, 1]


def test_ties_do_not_depend_on_luck():
    counts = np.full(401, 7, np.int64)
    alphabet = choose_alphabet(counts, 60, 2)
    assert alphabet.size <= 60
    # equal counts: the smaller coefficients win
    assert abs(alphabet.values).max() <= len(alphabet.values) // 2 + 1


# ---- parsing ----------------------------------------------------------------------------------------------------


def slow_parse(alphabet: Alphabet, span: list[int], ids: list[int], length: int) -> tuple[int, bool]:
    """The grammar, said once more: symbols and merges as they come, a high digit only before a low one."""
    high, low = len(alphabet.values), alphabet.size - alphabet.radix
    said, kept = 0, 0
    while kept < len(ids) and said < length:
        token = ids[kept]
        waiting = kept > 0 and high <= ids[kept - 1] < low
        if not 0 <= token < len(span):
            break
        if waiting:
            number = (ids[kept - 1] - high) * alphabet.radix + (token - low)
            if not (low <= token < alphabet.size) or number > 2 * alphabet.bound:
                break
            said += 1
        elif high <= token < low:
            pass
        elif low <= token < alphabet.size or said + span[token] > length:
            break
        else:
            said += span[token]
        kept += 1
    return kept, said == length


@pytest.mark.parametrize("seed", range(40))
def test_parses_random_ids_as_the_slow_parser_does(seed):
    rng = np.random.default_rng(seed)
    alphabet = some_alphabet(rng)
    rows = some_rows(rng, alphabet.bound)
    tables = tables_for(alphabet, rows, 30)
    v, length = len(tables.span), 12
    ids, lengths = encode(tables, rows[:, :length].copy())
    ids = ids.astype(np.int64)
    for line, k in zip(ids, lengths, strict=True):
        line[k:] = rng.integers(-2, v + 2, len(line) - k)
    # true beginnings with one id replaced, and pure noise with ids far outside
    ids[::2][np.arange(len(ids[::2])), rng.integers(0, 8, len(ids[::2]))] = rng.integers(-1, v + 1, len(ids[::2]))
    noise = rng.integers(-1, v + 1, (200, 16))
    noise[0, 0], noise[1, 1], noise[2, 0], noise[3, 0] = 2**62, -(2**62), v, -(2**63)
    span = tables.span.tolist()
    for batch in (ids, noise, noise[:, :0]):
        kept, complete = np.empty(len(batch), np.int64), np.empty(len(batch), np.bool_)
        parse_rows(tables, batch, length, kept, complete)
        for line, k, done in zip(batch.tolist(), kept.tolist(), complete.tolist(), strict=True):
            assert (k, done) == slow_parse(alphabet, span, line, length), line


def test_a_number_beyond_the_bound_is_not_a_coefficient():
    """Digits of radix 5 can spell 0..24, coefficients of bound 10 are 0..20."""
    alphabet = Alphabet(np.array([0], np.int32), 10, 5)
    tables = build_tables(alphabet, np.empty((0, 2), np.int32))
    high, low = tables.high + 4, tables.low
    ids = np.array([[high, low], [high, low + 1]], np.int64)
    kept, complete = np.empty(2, np.int64), np.empty(2, np.bool_)
    parse_rows(tables, ids, 1, kept, complete)
    assert kept.tolist() == [2, 1]
    assert complete.tolist() == [True, False]
