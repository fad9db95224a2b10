"""Merges that visit only listed runs against those that write all runs anew."""

import numpy as np
import pytest

from action_tokenizers.codecs.bpe_lists import ListedRuns
from action_tokenizers.codecs.bpe_pairs import Pairs
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
