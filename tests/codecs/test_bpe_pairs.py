"""The table of pairs against a dictionary."""

from collections import Counter

import numpy as np
import pytest

from action_tokenizers.codecs.bpe_pairs import (
    CUT_LEFT,
    CUT_RIGHT,
    IN_LEFT,
    IN_NEW,
    IN_RIGHT,
    NEW_LEFT,
    NEW_RIGHT,
    Pairs,
    Tally,
    touch,
)


def counted(pairs: Pairs) -> dict[int, int]:
    _, rows, count, used, _ = pairs.arrays()
    return dict(zip(rows[: used[0], 0].tolist(), count[: used[0]].tolist(), strict=True))


@pytest.mark.parametrize("parts", [1, 3])
def test_counts_what_a_dictionary_counts_while_it_grows(parts):
    """More pairs than there is room for at first (2048), and keys that lie close together."""
    rng = np.random.default_rng(parts)
    pairs, expected = Pairs(1 << 20, parts), Counter[int]()
    for most in (30, 5_000, 1 << 40, 60_000):
        keys, times = np.unique(rng.integers(0, most, 4_000), return_counts=True)
        pairs.add(keys, times)
        expected.update(dict(zip(keys.tolist(), times.tolist(), strict=True)))
        assert counted(pairs) == expected
    assert len(expected) > 8192
    rows = pairs.arrays()[1]
    assert (rows[: len(expected), 1:] == -1).all()  # no lists yet


def test_there_is_room_for_all_pairs_of_a_new_symbol():
    """One merge may bring it beside every symbol, on either side; the table that finds pairs stays half empty."""
    width = 5_000
    pairs, tally = Pairs(width, 1), Tally(width)
    pairs.add(np.array([1]), np.array([9]))
    row, *_ = pairs.best()
    pairs.merge(row)
    for symbol in range(width):
        touch(tally.changes, tally.touched, tally.sums, symbol, NEW_LEFT)
        touch(tally.changes, tally.touched, tally.sums, symbol, NEW_RIGHT)
    pairs.sum_up(tally, 0, 0, 1, width - 1)
    table, rows, count, used, _ = pairs.arrays()
    assert used[0] == 2 * width  # with itself once, and the merged one
    assert used[0] <= min(len(rows), len(count), len(table) // 2)


def test_the_best_is_the_most_frequent_and_of_equals_the_smaller():
    pairs = Pairs(10, 1)
    assert pairs.best() == (-1, -1, -1, 0)
    pairs.add(np.array([73, 35, 21, 36, 99]), np.array([4, 7, 1, 7, 6]))
    row, left, right, count = pairs.best()
    assert (left, right, count) == (3, 5, 7)
    pairs.merge(row)
    assert pairs.best()[1:] == (3, 6, 7)
    pairs.add(np.array([21]), np.array([6]))
    assert pairs.best()[1:] == (2, 1, 7)


def test_a_tally_is_summed_up_once():
    """Borders of symbol 1 with (4, 5) -> 6 and pairs inside runs; a symbol is listed when it is first touched."""
    pairs, tally = Pairs(10, 1), Tally(10)
    pairs.add(np.array([14, 51, 44, 55]), np.array([9, 9, 9, 9]))
    arrays = tally.changes, tally.touched, tally.sums
    for column in (CUT_LEFT, CUT_LEFT, NEW_LEFT, CUT_RIGHT, NEW_RIGHT, NEW_RIGHT, NEW_RIGHT):
        touch(*arrays, 1, column)
    tally.sums[[IN_LEFT, IN_RIGHT, IN_NEW]] = -1, -2, 3
    pairs.sum_up(tally, 0, 4, 5, 6)
    expected = {14: 7, 51: 8, 16: 1, 61: 3, 44: 8, 55: 7, 66: 3}
    assert counted(pairs) == expected
    pairs.sum_up(tally, 0, 4, 5, 6)
    assert counted(pairs) == expected
