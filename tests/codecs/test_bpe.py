"""The fast byte-pair encoder against the textbook one, id for id."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from action_tokenizers import Episodes, FASTTokenizer
from action_tokenizers.codecs import bpe
from action_tokenizers.codecs.bpe import Merges, blank_runs, build_merges, encode_run
from action_tokenizers.codecs.bpe_train import train_merges
from action_tokenizers.codecs.dct import dct_round, dct_weights
from action_tokenizers.codecs.symbols import build_tables, choose_alphabet, count_values, encode_rows, to_symbols

TESTS = Path(__file__).resolve().parents[1]
SHARED = TESTS.parents[1] / "shared" / "data"
DEMO = TESTS.parent / "action_tokenizers" / "data" / "demo"
reference = SimpleNamespace(**runpy.run_path(str(TESTS / "fakes" / "reference_bpe.py")))

CHUNKS = 200


def encode(merges: Merges, sequence: np.ndarray) -> list[int]:
    symbols = np.asarray(sequence, np.int32)
    runs, out, dead = np.empty_like(symbols), np.empty_like(symbols), np.empty(len(symbols), np.bool_)
    blank_runs(symbols, merges.blank, runs)
    return out[: encode_run(merges, symbols, runs, 0, len(symbols), out, dead)].tolist()


def random_sequence(rng: np.random.Generator, alphabet: int, length: int) -> np.ndarray:
    """Half noise, half runs: runs are where leftmost-first decides."""
    if rng.random() < 0.5:
        return rng.integers(0, alphabet, length).astype(np.int32)
    values = rng.integers(0, alphabet, length)
    return np.repeat(values, rng.integers(1, 9, length))[:length].astype(np.int32)


@pytest.fixture(params=[True, False], ids=["memo", "no memo"])
def remember(request, monkeypatch) -> bool:
    if not request.param:
        monkeypatch.setattr(bpe, "MOST_REMEMBERED", 0)
    return request.param


@pytest.mark.parametrize("alphabet", [1, 2, 3, 5, 17])
def test_encodes_random_sequences_as_the_reference_does(alphabet, remember):
    rng = np.random.default_rng(alphabet)
    for _ in range(60):
        data = [random_sequence(rng, alphabet, int(rng.integers(1, 60))) for _ in range(int(rng.integers(1, 6)))]
        joined = np.concatenate([np.append(d, -1) for d in data]).astype(np.int32)
        pairs, _ = train_merges(joined, alphabet, int(rng.integers(0, 40)))
        merges = build_merges(alphabet, pairs, blank=int(rng.integers(0, alphabet)))
        assert bool(len(merges.memo)) == remember
        expected_pairs = [tuple(pair) for pair in pairs.tolist()]
        fresh = [random_sequence(rng, alphabet, int(rng.integers(0, 80))) for _ in range(6)]
        for sequence in [*data, *fresh]:
            for _ in range(2):  # the second time the memo answers
                assert encode(merges, sequence) == reference.encode(sequence.tolist(), alphabet, expected_pairs)


def random_pairs(rng: np.random.Generator, alphabet: int) -> list[tuple[int, int]]:
    """A table that no training would give: distinct pairs of earlier ids, nested as often as not."""
    pairs: list[tuple[int, int]] = []
    for rank in range(int(rng.integers(1, 14))):
        left, right = (int(max(rng.integers(0, alphabet + rank, 2))) for _ in "lr")
        if (left, right) in pairs:
            break
        pairs.append((left, right))
    return pairs


def is_reachable(alphabet: int, pairs: list[tuple[int, int]]) -> bool:
    """Whether every id is what its own symbols are encoded to; of learned merges this always holds."""
    merges = build_merges(alphabet, np.array(pairs, np.int32))
    pieces = [merges.symbols[merges.start[i] : merges.start[i + 1]].tolist() for i in range(alphabet + len(pairs))]
    return all(reference.encode(piece, alphabet, pairs) == [i] for i, piece in enumerate(pieces))


@pytest.mark.parametrize("alphabet", [1, 2, 4])
def test_encodes_as_the_reference_does_with_merges_nobody_learned(alphabet, remember):
    rng = np.random.default_rng(100 + alphabet)
    tried = 0
    for _ in range(300):
        pairs = random_pairs(rng, alphabet)
        if not is_reachable(alphabet, pairs):
            continue
        tried += 1
        merges = build_merges(alphabet, np.array(pairs, np.int32), blank=int(rng.integers(0, alphabet)))
        for _ in range(6):
            sequence = random_sequence(rng, alphabet, int(rng.integers(0, 60)))
            assert encode(merges, sequence) == reference.encode(sequence.tolist(), alphabet, pairs)
    assert tried > 50


def test_merges_that_can_never_happen_do_no_harm():
    """Merge (0, 2) never happens: of 0 0 0 the left two join first. A file may hold it all the same, and passes
    the checks of loading; encoding must neither use it nor read or write outside its arrays.

    The kernel runs as plain Python here, where a wrong index is an exception instead of a crash.
    """
    rng = np.random.default_rng(9)
    tables = [(1, [(0, 0), (1, 0), (0, 2)])] + [(a, random_pairs(rng, a)) for a in (1, 2, 3) for _ in range(25)]
    for alphabet, pairs in tables:
        merges = build_merges(alphabet, np.array(pairs, np.int32))
        for sequence in ([0] * 6, *(random_sequence(rng, alphabet, 20).tolist() for _ in range(4))):
            symbols = np.array(sequence, np.int32)
            runs, out, dead = np.empty_like(symbols), np.empty_like(symbols), np.empty(len(symbols), np.bool_)
            blank_runs(symbols, 0, runs)
            count = encode_run.py_func(merges, symbols, runs, 0, len(symbols), out, dead)
            assert out[:count].tolist() == reference.encode(sequence, alphabet, pairs), (alphabet, pairs, sequence)


def test_the_blank_changes_speed_and_nothing_else(remember):
    rng = np.random.default_rng(7)
    data = [random_sequence(rng, 4, 200) for _ in range(20)]
    pairs, _ = train_merges(np.concatenate([np.append(d, -1) for d in data]).astype(np.int32), 4, 60)
    tables = [build_merges(4, pairs, blank=blank) for blank in range(4)]
    for _ in range(200):
        sequence = random_sequence(rng, 4, int(rng.integers(1, 120)))
        encoded = [encode(merges, sequence) for merges in tables]
        assert encoded[0] == encoded[1] == encoded[2] == encoded[3]


def test_encode_run_touches_only_its_span():
    """Runs between escaped values are encoded in place: what stands beside them must neither matter nor change."""
    pairs = np.array([[0, 0], [2, 2], [1, 0]], np.int32)
    merges = build_merges(2, pairs)
    inner = [0, 0, 0, 1, 0, 0]
    alone = encode(merges, np.array(inner))
    symbols = np.array([0, 0, 0, -1, *inner, -1, 0, 0, 0, 0], np.int32)
    runs, dead = np.empty_like(symbols), np.zeros(len(symbols), np.bool_)
    blank_runs(symbols, 0, runs)
    out = np.full(len(symbols), 99, np.int32)
    count = encode_run(merges, symbols, runs, 4, 10, out, dead)
    assert out[:count].tolist() == alone == reference.encode(inner, 2, [tuple(p) for p in pairs.tolist()])


def test_blank_runs_counts_to_the_right():
    symbols = np.array([3, 3, 1, 3, -1, 3, 3, 3], np.int32)
    runs = np.empty_like(symbols)
    blank_runs(symbols, 3, runs)
    assert runs.tolist() == [2, 1, 0, 1, 0, 3, 2, 1]


def test_build_merges_describes_every_id():
    merges = build_merges(3, np.array([[0, 1], [3, 2], [4, 4]], np.int32))
    pieces = [merges.symbols[merges.start[i] : merges.start[i + 1]].tolist() for i in range(6)]
    assert pieces == [[0], [1], [2], [0, 1], [0, 1, 2], [0, 1, 2, 0, 1, 2]]
    assert merges.span.tolist() == [len(piece) for piece in pieces]
    assert merges.shorter.tolist() == [-1, -1, -1, 0, 3, 4]  # the longest id that is a proper prefix


def test_long_chains_and_runs_stay_exact(remember):
    """Doublings of one symbol, and runs around every power of two."""
    pairs = [(0, 0)] + [(i, i) for i in range(2, 8)]
    merges = build_merges(2, np.array(pairs, np.int32))
    for length in [*range(0, 140), 255, 256, 257, 400]:
        for sequence in ([0] * length, [0] * length + [1], [1] + [0] * length + [1, 0]):
            assert encode(merges, np.array(sequence)) == reference.encode(sequence, 2, pairs)


# ---- recorded data ---------------------------------------------------------------------------------------------


def recorded(name: str) -> np.ndarray:
    """Up to `CHUNKS` chunks, spread evenly over a recording."""
    pytest.importorskip("pyarrow")
    if name == "demo":
        source = DEMO
    else:
        source = SHARED / name / "episodes.parquet"
        if not source.is_file():
            pytest.skip("the recorded data sets (../shared/data) are not here")
    episodes = Episodes.load(source, state=False)
    horizon = 12
    starts = [(e, s) for e, n in enumerate(episodes.lengths) for s in range(0, n - horizon + 1, 3)]
    picked = starts[:: max(1, len(starts) // CHUNKS)][:CHUNKS]
    return np.stack([episodes.actions[e][s : s + horizon] for e, s in picked])


@pytest.mark.parametrize(
    ("name", "vocab_size"),
    [
        ("demo", 512),
        ("g1_inspire_bottle", 1024),
        ("adroit_door", 700),
        ("pusht", 256),
        ("crazyflie_100hz", 300),
    ],
)
def test_fast_encodes_recorded_chunks_as_the_reference_does(name, vocab_size, remember):
    """Through FASTTokenizer: DCT, alphabet, escapes, merges; the reference starts from the coefficients."""
    chunks = recorded(name)
    fit_on, held_out = chunks[::2], chunks
    tokenizer = FASTTokenizer(vocab_size=vocab_size).fit(fit_on)
    tables = tokenizer._tables()
    assert bool(len(tables.merges.memo)) == remember
    ids = tokenizer.encode(held_out)
    unit = tokenizer.range.to_unit(torch.from_numpy(held_out)).numpy()
    n, t, d = unit.shape
    coefficients = np.empty((n, t * d), np.int32)
    dct_round(unit, dct_weights(t, 10.0), tables.bound, coefficients)
    base = tokenizer.vocab_size - 1 - len(tokenizer.merges)
    pairs = [tuple(pair) for pair in tokenizer.merges.tolist()]
    escaped = 0
    for row, line in zip(coefficients.tolist(), ids.tolist(), strict=True):
        expected: list[int] = []
        run: list[int] = []
        for c in row:
            symbol = int(tables.symbol[c + tables.bound])
            if symbol >= 0:
                run.append(symbol)
                continue
            escaped += 1
            high, low = divmod(c + tables.bound, tables.radix)
            expected += [*reference.encode(run, base, pairs), tables.high + high, tables.low + low]
            run = []
        expected += reference.encode(run, base, pairs)
        assert line[: len(expected)] == expected
        assert set(line[len(expected) :]) <= {tokenizer.pad_id}
    if tables.radix:
        assert escaped  # else this test says nothing about escapes


@pytest.mark.parametrize("name", ["demo", "pusht", "crazyflie_100hz"])
def test_fast_learns_the_merges_the_reference_learns(name):
    """Trained on the coefficients of recorded chunks, with escaped values as barriers."""
    chunks = recorded(name)[:60]
    tokenizer = FASTTokenizer(vocab_size=400).fit(chunks)
    tables = tokenizer._tables()
    unit = tokenizer.range.to_unit(torch.from_numpy(chunks)).numpy()
    n, t, d = unit.shape
    coefficients = np.empty((n, t * d), np.int32)
    dct_round(unit, dct_weights(t, 10.0), tables.bound, coefficients)
    rows = tables.symbol[coefficients + tables.bound].tolist()
    pairs, _ = reference.train(rows, tables.first_merge, 400 - 1 - tables.first_merge)
    assert tokenizer.merges.tolist() == [list(pair) for pair in pairs]


def test_one_table_serves_every_row():
    """Rows of one call do not leak into each other through the scratch arrays."""
    rng = np.random.default_rng(3)
    coefficients = rng.integers(-4, 5, (64, 30)).astype(np.int32)
    coefficients[rng.random(coefficients.shape) < 0.6] = 0
    alphabet = choose_alphabet(count_values(coefficients, 12), 40, 30)
    symbol = build_tables(alphabet, np.empty((0, 2), np.int32)).symbol
    pairs, _ = train_merges(to_symbols(coefficients, symbol, 12), alphabet.size, 25)
    tables = build_tables(alphabet, pairs)

    def encode_all(rows: np.ndarray) -> list[list[int]]:
        out, lengths = np.empty(2 * rows.size, np.int32), np.empty(len(rows), np.int64)
        count = encode_rows(*tables.coder, rows, out, lengths)
        return [line.tolist() for line in np.split(out[:count], np.cumsum(lengths)[:-1])]

    together = encode_all(coefficients)
    assert together == [encode_all(coefficients[i : i + 1])[0] for i in range(len(coefficients))]
    assert together[::-1] == encode_all(coefficients[::-1].copy())
