import numpy as np
import pytest

from action_tokenizers.data.priority import identity_hash, priorities

STARTS = np.arange(20000)
EPISODES = STARTS // 100


def test_the_hash_is_a_promise():
    """Digests of fitted artifacts depend on these very numbers: they must never change."""
    words = identity_hash("default", "pusht", np.array([0, 0, 7]), np.array([0, 1, -3]), 0)
    assert words.tolist() == [7178295831275480643, 697095568542638064, 15683332330686094701]


@pytest.mark.parametrize("other", [("b", "s", 0), ("a", "t", 0), ("a", "s", 1), ("as", "", 0)])
def test_key_source_and_seed_each_give_other_hashes(other):
    mine = identity_hash("a", "s", EPISODES, STARTS, 0)
    theirs = identity_hash(other[0], other[1], EPISODES, STARTS, other[2])
    assert len(np.intersect1d(mine, theirs)) == 0
    assert len(np.unique(mine)) == len(mine)


def test_priorities_are_uniform_and_unrelated_to_the_start():
    values = priorities("a", "s", EPISODES, STARTS, 0, None)
    assert ((values >= 0) & (values < 1)).all()
    share = np.histogram(values, bins=20, range=(0, 1))[0] / len(values)
    assert np.abs(share - 0.05).max() < 0.007
    assert abs(np.corrcoef(values, STARTS)[0, 1]) < 0.03


def test_equal_weights_change_nothing_in_the_order():
    plain = priorities("a", "s", EPISODES, STARTS, 0, None)
    weighted = priorities("a", "s", EPISODES, STARTS, 0, 2.0)
    np.testing.assert_array_equal(np.argsort(plain, kind="stable"), np.argsort(weighted, kind="stable"))


def test_weights_are_odds():
    heavy = priorities("a", "s", EPISODES, STARTS, 0, 3.0)
    light = priorities("b", "s", EPISODES, STARTS, 0, 1.0)
    first = np.sort(np.concatenate([heavy, light]))[1000]
    ratio = (heavy < first).sum() / (light < first).sum()
    assert 2.6 < ratio < 3.5
