"""Runs and their pairs against lists of symbols."""

import runpy
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from action_tokenizers.codecs import bpe_runs
from action_tokenizers.codecs.bpe_pairs import CUT_LEFT, CUT_RIGHT, IN_LEFT, IN_NEW, IN_RIGHT, NEW_LEFT, NEW_RIGHT
from action_tokenizers.codecs.bpe_runs import BARRIER, Runs

TESTS = Path(__file__).resolve().parents[1]
reference = SimpleNamespace(**runpy.run_path(str(TESTS / "fakes" / "reference_bpe.py")))


def symbols_of(runs: Runs) -> list[int]:
    assert len(runs.rows) == len(runs)  # else they would not fit
    symbol, repeats = runs.rows.T
    assert symbol[0] == symbol[-1] == BARRIER
    assert (symbol[2:-1] != symbol[1:-2]).all()
    return np.repeat(symbol, repeats).tolist()[1:-1]


def changed(runs: Runs, left: int, right: int, new: int) -> Counter[tuple[int, int]]:
    """What the tally says of each pair, but for the merged one."""
    tally, found = runs.tally, Counter[tuple[int, int]]()
    for symbol in tally.touched[: tally.sums[4]].tolist():
        row = tally.changes[symbol].tolist()
        found[symbol, left] -= row[CUT_LEFT]
        found[right, symbol] -= row[CUT_RIGHT]
        found[symbol, new] += row[NEW_LEFT]
        found[new, symbol] += row[NEW_RIGHT]
    found[left, left] += int(tally.sums[IN_LEFT])
    found[right, right] += int(tally.sums[IN_RIGHT])
    found[new, new] += int(tally.sums[IN_NEW])
    del found[left, right]
    return Counter({pair: n for pair, n in found.items() if n})


@pytest.mark.parametrize("seed", range(40))
def test_a_merge_is_what_it_is_for_lists_and_tells_what_it_changes(seed):
    rng = np.random.default_rng(seed)
    symbols = np.repeat(rng.integers(-1, 4, 60), rng.integers(1, 7, 60)).astype(np.int32)
    for left in range(4):
        for right in range(4):
            runs = Runs(symbols, 10)
            before = reference.count_pairs([symbols.tolist()])
            runs.merge(left, right, 7, before[left, right])
            expected = reference.merge(symbols.tolist(), (left, right), 7)
            assert symbols_of(runs) == expected
            after = reference.count_pairs([expected])
            after.subtract(before)
            del after[left, right]
            assert changed(runs, left, right, 7) == Counter({pair: n for pair, n in after.items() if n})


def test_a_run_of_the_new_symbol_is_one_run():
    runs = Runs(np.array([1, 2, 1, 2, 1, 2, 2, 1, 2, BARRIER], np.int32), 4)
    runs.merge(1, 2, 3, 4)
    assert runs.rows.tolist() == [[-1, 1], [3, 3], [2, 1], [3, 1], [-1, 1], [-1, 1]]


@pytest.mark.parametrize("seed", range(20))
def test_the_spare_array_has_room(seed):
    """As little as a merge may need: every other run splits, or every second border becomes a run."""
    rng = np.random.default_rng(seed)
    for symbols, left, right in (
        (np.repeat(np.tile([1, 2], 50), rng.integers(1, 6, 100)), 1, 1),
        (np.repeat(np.tile([1, 2], 50), rng.integers(1, 4, 100)), 1, 2),
        (np.tile(np.repeat([1, 2], 3), 50), 1, 1),
        (np.tile(np.repeat([1, 2], 2), 50), 1, 2),
    ):
        runs = Runs(symbols.astype(np.int32), 9)
        count = reference.count_pairs([symbols.tolist()])[left, right]
        runs.merge(left, right, 3, count)
        assert symbols_of(runs) == reference.merge(symbols.tolist(), (left, right), 3)


def test_runs_can_become_more_than_there_were():
    """Every odd run leaves one behind it, so that the spare array must be half as large again."""
    runs = Runs(np.array([1, 1, 1, 2] * 50, np.int32), 4)
    assert len(runs) == 102
    runs.merge(1, 1, 3, 100)
    assert len(runs) == 152
    assert symbols_of(runs) == [3, 1, 2] * 50


@pytest.fixture(params=[0, bpe_runs.MOST_COUNTERS], ids=["sorted", "table"])
def _counters(request, monkeypatch):
    monkeypatch.setattr(bpe_runs, "MOST_COUNTERS", request.param)
    monkeypatch.setattr(bpe_runs, "COUNTERS_PER_RUN", 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.usefixtures("_counters")
def test_counts_pairs(seed):
    rng = np.random.default_rng(seed)
    symbols = np.repeat(rng.integers(-1, 6, 300), rng.integers(1, 5, 300)).astype(np.int32)
    keys, times = Runs(symbols, 20).count(6)
    expected = {a * 20 + b: n for (a, b), n in reference.count_pairs([symbols.tolist()]).items()}
    assert dict(zip(keys.tolist(), times.tolist(), strict=True)) == expected
    assert len(set(keys.tolist())) == len(keys)


@pytest.mark.parametrize("symbols", [[], [BARRIER], [BARRIER] * 3])
@pytest.mark.usefixtures("_counters")
def test_no_pairs_in_nothing(symbols):
    keys, times = Runs(np.array(symbols, np.int32), 5).count(3)
    assert (keys.tolist(), times.tolist()) == ([], [])
