import numpy as np
import pytest

from action_tokenizers.data.rows import Reservoir, Rows, best
from action_tokenizers.errors import ActionValueError

GROUP = ("a", "s")


def rows(starts, priority, contents=None) -> Rows:
    starts = np.asarray(starts, np.int64)
    actions = np.asarray(starts if contents is None else contents, np.float32)[:, None, None]
    zeros = np.zeros_like(starts)
    return Rows(actions, np.zeros((len(starts), 1), bool), zeros, zeros, starts, np.asarray(priority, float))


def test_best_sorts_by_priority_and_breaks_ties_by_identity():
    kept = best(rows([5, 4, 3, 2], [0.5, 0.1, 0.5, 0.9]), 3, [GROUP])
    assert kept.start.tolist() == [4, 3, 5]
    assert kept.actions.ravel().tolist() == [4, 3, 5]


def test_ties_of_different_groups_are_in_the_order_of_their_names():
    tied = rows([1, 1], [0.5, 0.5])
    for table in ([0, 1], [1, 0]):
        both = Rows(tied.actions, tied.pad, np.array(table), tied.episode, tied.start, tied.priority)
        assert best(both, 2, [GROUP, ("b", "s")]).group.tolist() == [0, 1]


def test_best_keeps_each_identity_once():
    assert best(rows([1, 1, 2], [0.1, 0.1, 0.2]), 2, [GROUP]).start.tolist() == [1, 2]


def test_one_identity_of_two_contents_names_its_place():
    with pytest.raises(ActionValueError, match="start 1 of episode 0, key 'a', source 's'"):
        best(rows([1, 1], [0.1, 0.1], [1, 2]), 2, [GROUP])


def test_a_reservoir_fetches_only_what_may_win():
    reservoir, fetched = Reservoir(10), []

    def fetch(which):
        fetched.extend(which)
        return np.zeros((len(which), 1, 1), np.float32), np.zeros((len(which), 1), bool)

    priority = np.random.default_rng(0).permutation(2000) / 2000
    for begin in range(0, 2000, 100):
        starts = np.arange(begin, begin + 100)
        reservoir.offer(GROUP, np.zeros_like(starts), starts, priority[starts], fetch)
    assert len(fetched) < 150
    assert reservoir.rows().start.tolist() == np.argsort(priority)[:10].tolist()


def test_repeats_within_one_offer_do_not_crowd_out_others():
    reservoir = Reservoir(2)
    starts = np.array([1, 1, 1, 2, 3])
    contents = starts.astype(np.float32)[:, None, None]
    pad = np.zeros((5, 1), bool)
    reservoir.offer(GROUP, np.zeros_like(starts), starts, starts / 10, lambda at: (contents[at], pad[at]))
    assert reservoir.rows().start.tolist() == [1, 2]


def test_nothing_offered_is_no_rows():
    assert Reservoir(3).rows() is None
    assert len(Rows.none(4, 2)) == 0


def test_rows_are_settled_once_until_something_comes():
    reservoir = Reservoir(5)

    def offer(group, start):
        contents = np.zeros((1, 1, 1), np.float32), np.zeros((1, 1), bool)
        reservoir.offer(group, np.array([0]), np.array([start]), np.array([start / 10]), lambda _: contents)

    offer(("b", ""), 1)
    first = reservoir.rows()
    assert reservoir.rows() is first
    offer(("a", ""), 2)
    assert [reservoir.groups[group] for group in reservoir.rows().group] == [("b", ""), ("a", "")]
    assert reservoir.groups == (("a", ""), ("b", ""))


def test_a_reservoir_that_knows_the_threshold_holds_no_more_than_the_winners():
    priority = np.random.default_rng(0).permutation(2000) / 2000
    starts = np.arange(2000)
    free, bound = Reservoir(10), Reservoir(10)
    bound.shut_out(priority[np.argsort(priority)[9]])
    bound.shut_out(1.0)  # a wider one takes nothing back
    for reservoir in (free, bound):
        reservoir.offer(
            GROUP, np.zeros_like(starts), starts, priority, lambda at: (np.zeros((len(at), 1, 1)), at[:, None] < 0)
        )
    half = Reservoir(10)
    half.shut_out(bound.threshold)
    half.offer(
        GROUP,
        starts[:1000] * 0,
        starts[:1000],
        priority[:1000],
        lambda at: (np.zeros((len(at), 1, 1)), at[:, None] < 0),
    )
    assert len(half.rows()) == int((np.argsort(priority)[:10] < 1000).sum()) < 10
    assert bound.rows().start.tolist() == free.rows().start.tolist()
    assert bound.threshold == free.threshold
