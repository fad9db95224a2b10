"""Merges that visit only listed runs against those that write all runs anew."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from action_tokenizers.codecs import bpe_lists
from action_tokenizers.codecs.bpe_lists import AHEAD, BLOCK, ListedRuns
from action_tokenizers.codecs.bpe_pairs import Pairs, longer
from action_tokenizers.codecs.bpe_runs import Runs


def counted(pairs: Pairs) -> dict[int, int]:
    _, rows, count, used, _ = pairs.arrays()
    found = zip(rows[: used[0], 0].tolist(), count[: used[0]].tolist(), strict=True)
    return {key: n for key, n in found if n}


def merge(pairs: Pairs, runs: Runs | ListedRuns, left: int, right: int, new: int) -> None:
    _, rows, _, used, width = pairs.arrays()
    (row,) = np.flatnonzero(rows[: used[0], 0] == left * width + right).tolist()
    pairs.merge(row)
    if isinstance(runs, Runs):
        tally = runs.merge(left, right, new, len(runs))
    else:
        tally = runs.merge(row, left, right, new)
    pairs.sum_up(tally, 0, left, right, new)


def without_room(runs: ListedRuns) -> None:
    used, entries = runs._size.tolist()
    runs._runs, runs._entries = runs._runs[:used].copy(), runs._entries[:entries].copy()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("grow", [False, True], ids=["as made", "without room"])
def test_both_ways_count_the_same_after_every_merge(seed, grow):
    """Any order of merges, also of pairs that are not the most frequent."""
    rng = np.random.default_rng(seed)
    symbols = np.repeat(rng.integers(-1, 4, 150), rng.integers(1, 8, 150)).astype(np.int32)
    width = 40
    runs = Runs(symbols, width)
    pairs, others = Pairs(width, 1), Pairs(width, 1)
    for one in (pairs, others):
        one.add(*runs.count(4))
    listed = ListedRuns(Runs(symbols, width), others, 0)
    for new in range(4, 36):
        known = counted(pairs)
        if not known:
            break
        left, right = divmod(int(rng.choice(sorted(known))), width)
        merge(pairs, runs, left, right, new)
        if grow:
            without_room(listed)
        merge(others, listed, left, right, new)
        assert counted(others) == counted(pairs)
    assert new > 10


@pytest.mark.parametrize("repeats", [(1, 2), (2, 4), (3, 8)])
@pytest.mark.parametrize("other", [3, 700])
def test_what_is_looked_up_at_once_fits_the_room_for_it(repeats, other, monkeypatch):
    """With arrays that have no more room than that, neighbours that all differ, and so a list for each."""
    rng = np.random.default_rng(other)
    neighbours, width = rng.integers(2, other, 4 * AHEAD), other + 20
    symbols = np.stack([np.zeros_like(neighbours), np.ones_like(neighbours), neighbours], 1).ravel()
    symbols = np.repeat(symbols, rng.integers(*repeats, len(symbols))).astype(np.int32)
    pairs, runs = Pairs(width, 1), Runs(symbols, width)
    pairs.add(*runs.count(other))
    listed = ListedRuns(runs, pairs, 0)
    room = bpe_lists._ROOM
    monkeypatch.setattr(bpe_lists, "longer", lambda array, used, _: with_room(array, used))

    def with_room(array: np.ndarray, used: int) -> np.ndarray:
        return longer(array, used, used + room * (1 if array.ndim == 2 else BLOCK))

    for new in range(other, width):
        _, left, right, count = pairs.best()
        if not count:
            break
        used, entries = listed._size.tolist()
        listed._runs, listed._entries = with_room(listed._runs, used), with_room(listed._entries, entries)
        merge(pairs, listed, left, right, new)
        used, entries = listed._size.tolist()
        assert used <= len(listed._runs)
        assert entries <= len(listed._entries)


def test_lists_longer_than_what_is_looked_up_at_once():
    """Thousands of occurrences of each pair, a third of which an earlier merge has taken away."""
    symbols = np.array([1, 2, 3] * 3_000 + [1, 2] * 1_500, np.int32)
    pairs = Pairs(9, 1)
    runs = Runs(symbols, 9)
    pairs.add(*runs.count(4))
    listed = ListedRuns(runs, pairs, 0)
    merge(pairs, listed, 2, 3, 4)
    merge(pairs, listed, 1, 2, 5)
    assert counted(pairs) == {13: 3_000, 37: 2_999, 41: 1, 50: 1_499}


def test_a_retired_symbol_is_in_no_pair():
    pairs = Pairs(9, 1)
    runs = Runs(np.array([1, 1, 2, 3, 3, 2, 1, 2, 3], np.int32), 9)
    pairs.add(*runs.count(4))
    listed = ListedRuns(runs, pairs, 0)
    listed.retire(np.arange(9) == 2)
    assert counted(pairs) == {10: 1, 30: 1}
    merge(pairs, listed, 3, 3, 4)
    assert counted(pairs) == {10: 1}


def test_no_kernel_reaches_beyond_its_arrays(tmp_path):
    """Compiled with checks of every index, which cost time and are off otherwise."""
    tests = ["test_bpe_pairs.py", "test_bpe_runs.py", "test_bpe_lists.py", "test_bpe_train.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not reaches_beyond", *tests],
        cwd=Path(__file__).parent,
        env=os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
