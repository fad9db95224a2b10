"""Learning merges with running counts against counting all pairs anew at every merge."""

import runpy
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from action_tokenizers.codecs import bpe_train
from action_tokenizers.codecs.bpe_train import BARRIER, MergeTrainer, train_merges

TESTS = Path(__file__).resolve().parents[1]
reference = SimpleNamespace(**runpy.run_path(str(TESTS / "fakes" / "reference_bpe.py")))


@pytest.fixture(params=[0, 8, 1 << 40], ids=["lists", "both", "runs"])
def _ways(request, monkeypatch):
    """Merges that visit listed runs only, that begin by writing all runs anew, and that do nothing else."""
    monkeypatch.setattr(bpe_train, "RUNS_PER_VISIT", request.param)


pytestmark = pytest.mark.usefixtures("_ways")


def joined(sequences: list[list[int]]) -> np.ndarray:
    return np.array([s for sequence in sequences for s in [*sequence, BARRIER]], np.int32)


def check(sequences: list[list[int]], first_id: int, merges: int, least_count: int = 2) -> int:
    pairs, counts = train_merges(joined(sequences), first_id, merges, least_count=least_count)
    expected_pairs, expected_counts = reference.train(sequences, first_id, merges, least_count)
    assert pairs.tolist() == [list(pair) for pair in expected_pairs]
    assert counts.tolist() == expected_counts
    return len(expected_pairs)


@pytest.mark.parametrize("alphabet", [1, 2, 3, 6, 40])
def test_learns_what_the_reference_learns_from_noise(alphabet):
    rng = np.random.default_rng(alphabet)
    learned = 0
    for _ in range(60):
        sequences = [rng.integers(0, alphabet, rng.integers(0, 50)).tolist() for _ in range(int(rng.integers(1, 12)))]
        learned += check(sequences, alphabet, int(rng.integers(0, 50)), int(rng.integers(1, 5)))
    assert learned > 100


@pytest.mark.parametrize("alphabet", [1, 2, 3])
def test_learns_what_the_reference_learns_from_runs(alphabet):
    """Runs of one symbol: overlapping occurrences, where running counts go wrong first."""
    rng = np.random.default_rng(10 + alphabet)
    for _ in range(60):
        sequences = [
            np.repeat(rng.integers(0, alphabet, 12), rng.integers(1, 12, 12)).tolist()
            for _ in range(int(rng.integers(1, 6)))
        ]
        assert check(sequences, alphabet, 40) > 0


def test_grows_its_tables():
    """More distinct pairs than the first table holds (2048), and lists longer than what is looked up at once."""
    rng = np.random.default_rng(5)
    many = rng.integers(0, 90, 12_000).tolist()
    frequent = [0, 1] * 1500
    assert len(set(pairwise(many))) > 4096
    check([many, frequent], 90, 30)


def test_barriers_inside_a_row_are_never_merged():
    sequences = [[0, 1, 0, 1, BARRIER, 0, 1, 1], [1, BARRIER, BARRIER, 1, 0], [BARRIER], [BARRIER, 0, 1]]
    pairs, counts = train_merges(joined(sequences), 2, 10, least_count=1)
    expected_pairs, expected_counts = reference.train(sequences, 2, 10, 1)
    assert pairs.tolist() == [list(pair) for pair in expected_pairs]
    assert counts.tolist() == expected_counts
    assert (pairs >= 0).all()


def test_random_barriers():
    rng = np.random.default_rng(6)
    for _ in range(40):
        sequences = [rng.integers(-1, 3, rng.integers(1, 40)).tolist() for _ in range(5)]
        check(sequences, 3, 30)


def test_ties_go_to_the_smaller_pair():
    pairs, counts = train_merges(joined([[2, 1], [2, 1], [0, 3], [0, 3], [0, 2], [0, 2]]), 4, 3)
    assert pairs.tolist() == [[0, 2], [0, 3], [2, 1]]
    assert counts.tolist() == [2, 2, 2]


@pytest.mark.parametrize("least_count", [1, 2, 3, 4])
def test_stops_at_pairs_that_are_too_rare(least_count):
    _, counts = train_merges(joined([[0, 1]] * 3 + [[2, 3]] * 2 + [[4, 5]]), 6, 10, least_count=least_count)
    assert counts.tolist() == [c for c in (3, 2, 1) if c >= least_count]


def test_nothing_to_learn():
    for sequences in ([], [[]], [[0]], [[0, 1]]):
        pairs, counts = train_merges(joined(sequences), 2, 5)
        assert pairs.shape == (0, 2)
        assert counts.shape == (0,)
    assert train_merges(joined([[0, 0, 0, 0]]), 1, 0)[0].shape == (0, 2)


def test_leaves_its_input_alone():
    symbols = joined([[0, 0, 0, 0, 1, 0, 0]])
    before = symbols.copy()
    train_merges(symbols, 2, 5)
    np.testing.assert_array_equal(symbols, before)


@pytest.mark.parametrize("seed", range(20))
def test_merges_learned_in_parts_are_those_learned_at_once(seed):
    rng = np.random.default_rng(seed)
    symbols = joined([np.repeat(rng.integers(0, 4, 30), rng.integers(1, 6, 30)).tolist() for _ in range(8)])
    pairs, counts = train_merges(symbols, 4, 30)
    trainer = MergeTrainer(symbols, 4, 30)
    parts = [trainer.learn(m) for m in (1, 0, 7, 22)]
    assert np.concatenate([p for p, _ in parts]).tolist() == pairs.tolist()
    assert np.concatenate([c for _, c in parts]).tolist() == counts.tolist()


@pytest.mark.parametrize("seed", range(30))
def test_a_retired_symbol_is_a_barrier_from_then_on(seed):
    """Rare symbols are retired after some merges without them: as if they had been barriers from the beginning."""
    rng = np.random.default_rng(seed)
    sequences = [np.repeat(rng.integers(0, 4, 40), rng.integers(1, 6, 40)) for _ in range(8)]
    for sequence in sequences:
        sequence[rng.random(len(sequence)) < 0.03] = 4
        sequence[rng.random(len(sequence)) < 0.02] = 5
    sequences[0][:4] = 4  # a run, which has pairs inside
    symbols = joined([sequence.tolist() for sequence in sequences])
    trainer = MergeTrainer(symbols, 6, 40)
    before, counts = trainer.learn(4)
    assert not np.isin(before, [4, 5]).any()
    assert counts[-1] > (symbols >= 4).sum() / 2
    trainer.retire(np.array([4, 5]))
    after, _ = trainer.learn(36, least_count=1)
    without = np.where(symbols >= 4, BARRIER, symbols).astype(np.int32)
    expected, _ = train_merges(without, 6, 40, least_count=1)
    assert np.concatenate([before, after]).tolist() == expected.tolist()


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_the_number_of_parts_does_not_matter(threads, monkeypatch):
    rng = np.random.default_rng(threads)
    sequences = [np.repeat(rng.integers(0, 5, 30), rng.integers(1, 9, 30)).tolist() for _ in range(60)]
    symbols = joined(sequences)
    expected = MergeTrainer(symbols, 5, 80)
    pairs, counts = expected.learn(60)
    monkeypatch.setattr(bpe_train, "PART", 1)
    monkeypatch.setattr(bpe_train, "MANY", 0)  # threads for every merge
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        trainer = MergeTrainer(symbols, 5, 80)
        assert len(trainer._runs) == threads
        some, some_counts = trainer.learn(60)
        for one in (expected, trainer):
            one.retire(np.setdiff1d(np.arange(5), pairs))
        assert trainer.learn(20)[0].tolist() == expected.learn(20)[0].tolist()
    finally:
        torch.set_num_threads(before)
    assert some.tolist() == pairs.tolist()
    assert some_counts.tolist() == counts.tolist()


@pytest.mark.parametrize("seed", range(20))
def test_merges_may_turn_to_lists_at_any_moment(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    symbols = joined([np.repeat(rng.integers(0, 4, 30), rng.integers(1, 6, 30)).tolist() for _ in range(8)])
    monkeypatch.setattr(bpe_train, "RUNS_PER_VISIT", 1 << 40)
    expected, _ = train_merges(symbols, 4, 40, least_count=1)
    trainer, turn = MergeTrainer(symbols, 4, 40), int(rng.integers(40))
    first, _ = trainer.learn(turn, least_count=1)
    assert not trainer._listed
    monkeypatch.setattr(bpe_train, "RUNS_PER_VISIT", 0)
    second, _ = trainer.learn(40 - turn, least_count=1)
    assert trainer._listed
    assert np.concatenate([first, second]).tolist() == expected.tolist()


def test_few_long_runs_are_few_places(monkeypatch):
    """A symbol that stands beside itself 100,000 times, in a single run, is no reason to write all others anew."""
    monkeypatch.setattr(bpe_train, "RUNS_PER_VISIT", 8)
    noise = np.random.default_rng(0).integers(1, 90, 3_000)
    trainer = MergeTrainer(np.concatenate([np.zeros(100_000), noise, [BARRIER]]).astype(np.int32), 90, 30)
    pairs, _ = trainer.learn(3)
    assert pairs.tolist() == [[0, 0], [90, 90], [91, 91]]
    assert trainer._listed


def test_cuts_are_behind_barriers():
    symbols = joined([[0] * n for n in (5, 1, 0, 9, 30, 2)])
    for parts in range(1, 12):
        cuts = bpe_train._cut(symbols, parts)
        assert (cuts[0], cuts[-1]) == (0, len(symbols))
        assert cuts == sorted(set(cuts))
        assert len(cuts) <= parts + 1
        assert all(symbols[cut - 1] == BARRIER for cut in cuts[1:-1])
    assert bpe_train._cut(np.zeros(10, np.int32), 3) == [0, 10]  # nowhere to cut
    assert bpe_train._cut(np.empty(0, np.int32), 1) == [0, 0]
