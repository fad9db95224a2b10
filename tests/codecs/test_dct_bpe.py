"""FAST in one pass against its stages one after another; equal to the bit."""

import numpy as np
import pytest
import torch

from action_tokenizers.codecs import dct_bpe
from action_tokenizers.codecs.affine import from_unit, to_unit
from action_tokenizers.codecs.bpe_train import train_merges
from action_tokenizers.codecs.dct import coefficient_bound, dct_round, dct_weights, idct, idct_weights
from action_tokenizers.codecs.dct_bpe import decode_chunks, encode_chunks
from action_tokenizers.codecs.symbols import (
    Tables,
    build_tables,
    choose_alphabet,
    count_values,
    decode_rows,
    encode_rows,
    pack_rows,
    parse_rows,
    to_symbols,
)
from action_tokenizers.data.synthetic import smooth_chunks

SHAPES = [(1, 1), (2, 3), (7, 2), (16, 7), (50, 14), (5, 130)]
SCALE = 10.0


def case(t: int, d: int, room: int = 300) -> tuple[Tables, np.ndarray, np.ndarray, np.ndarray]:
    """Tables learned from chunks of some range, the chunks, and the range; some values lie outside it."""
    unit = smooth_chunks(150, t, d, seed=t * 100 + d)
    rng = np.random.default_rng(t)
    low = rng.uniform(-3, -1, d).astype(np.float32)
    high = (low + rng.uniform(0.5, 4, d)).astype(np.float32)
    high[0] = low[0]  # a constant dim
    actions = (low + (unit * 1.1 + 1) / 2 * (high - low)).astype(np.float32)
    coefficients = np.empty((len(unit), t * d), np.int32)
    bound = coefficient_bound(t, SCALE)
    dct_round(unit, dct_weights(t, SCALE), bound, coefficients)
    alphabet = choose_alphabet(count_values(coefficients, bound), room, 3)
    symbol = build_tables(alphabet, np.empty((0, 2), np.int32)).symbol
    pairs, _ = train_merges(to_symbols(coefficients, symbol, bound), alphabet.size, room - alphabet.size)
    return build_tables(alphabet, pairs), actions, low, high


def encode(tables: Tables, actions: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n, t, d = actions.shape
    joined, lengths = np.empty(2 * n * t * d, np.int32), np.empty(n, np.int64)
    longest, finite = encode_chunks(*tables.coder, actions, low, high, dct_weights(t, SCALE), joined, lengths)
    assert finite
    assert longest == lengths.max(initial=0)
    ids = np.empty((n, longest + 2), np.int64)
    pack_rows(joined, lengths, len(tables.span), ids)
    return ids, lengths


def decode(
    tables: Tables, ids: np.ndarray, t: int, d: int, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, bool]:
    out = np.empty((len(ids), t, d), np.float32)
    weights = idct_weights(t)
    return out, decode_chunks(tables.speller, ids, len(tables.span), weights, SCALE, low, high, out)


@pytest.mark.parametrize(("t", "d"), SHAPES)
def test_ids_are_those_of_the_stages(t, d):
    tables, actions, low, high = case(t, d)
    ids, lengths = encode(tables, actions, low, high)
    unit = to_unit(torch.from_numpy(actions), torch.from_numpy(low), torch.from_numpy(high)).numpy()
    coefficients = np.empty((len(unit), t * d), np.int32)
    dct_round(unit, dct_weights(t, SCALE), tables.bound, coefficients)
    joined, expected = np.empty(2 * coefficients.size, np.int32), np.empty(len(unit), np.int64)
    encode_rows(*tables.coder, coefficients, joined, expected)
    np.testing.assert_array_equal(lengths, expected)
    np.testing.assert_array_equal(ids[ids < len(tables.span)], joined[: expected.sum()])


@pytest.mark.parametrize(("t", "d"), SHAPES)
def test_actions_are_those_of_the_stages(t, d):
    tables, actions, low, high = case(t, d)
    ids, lengths = encode(tables, actions, low, high)
    out, fine = decode(tables, ids, t, d, low, high)
    assert fine
    coefficients, said = np.zeros((len(ids), t * d), np.int32), np.empty(len(ids), np.int64)
    decode_rows(tables, ids, lengths, coefficients, said)
    unit = np.empty(actions.shape, np.float32)
    idct(coefficients, idct_weights(t), SCALE, unit)
    expected = from_unit(torch.from_numpy(unit), torch.from_numpy(low), torch.from_numpy(high)).numpy()
    np.testing.assert_array_equal(out, expected)


def test_the_piece_does_not_matter(monkeypatch):
    tables, actions, low, high = case(16, 7)
    ids, _ = encode(tables, actions, low, high)
    for i in range(0, len(actions), 10):  # pieces of one
        alone, lengths = encode(tables, actions[i : i + 1], low, high)
        assert alone[0, : lengths[0]].tolist() == ids[i, : lengths[0]].tolist()
    assert len(actions) > dct_bpe.PIECE


def test_nothing_at_all():
    tables, actions, low, high = case(7, 2)
    assert encode(tables, actions[:0], low, high)[0].shape == (0, 2)
    assert decode(tables, np.empty((0, 4), np.int64), 7, 2, low, high)[1]


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_says_when_something_is_not_finite(odd):
    tables, actions, low, high = case(16, 7)
    actions[137, 3, 6] = odd
    joined, lengths = np.empty(2 * actions.size, np.int32), np.empty(len(actions), np.int64)
    _, finite = encode_chunks(*tables.coder, actions, low, high, dct_weights(16, SCALE), joined, lengths)
    assert not finite


@pytest.mark.parametrize("room", [60, 300])
@pytest.mark.parametrize("seed", range(5))
def test_refuses_exactly_the_rows_that_the_parser_does(room, seed):
    """True rows, rows with one id replaced, cut or lengthened, and noise."""
    t, d = 8, 3
    tables, actions, low, high = case(t, d, room)
    rng = np.random.default_rng(seed)
    ids, lengths = encode(tables, actions, low, high)
    v = len(tables.span)
    bad = ids.copy()
    rows = np.arange(len(bad))
    bad[rows[::3], rng.integers(0, lengths[::3])] = rng.integers(-2, v + 2, len(rows[::3]))
    bad[rows[1::3], lengths[1::3] - 1] = v
    bad[rows[2::6], lengths[2::6]] = rng.integers(0, v, len(rows[2::6]))
    noise = rng.integers(-1, v + 1, bad.shape)
    noise[0, 0], noise[1, 0] = 2**62, -(2**63)
    some = 0
    for row in np.concatenate([ids, bad, noise]):
        kept, complete = np.empty(1, np.int64), np.empty(1, np.bool_)
        parse_rows(tables, row[None], t * d, kept, complete)
        whole = bool(complete[0] and (row[kept[0] :] == v).all())
        assert decode(tables, row[None], t, d, low, high)[1] == whole
        some += whole
    assert len(ids) <= some < 2 * len(ids)
