import itertools
import pickle

import numpy as np
import pytest

from action_tokenizers.data import ChunkSample, Episodes, Relative, chunks, smooth_episodes
from action_tokenizers.errors import ActionShapeError, ActionValueError

WEIGHTS = {"a": 1.0, "b": 2.5}


def two_sets() -> list[Episodes]:
    a = smooth_episodes(12, length=(3, 40), action_dim=2, seed=1, key="a")
    b = smooth_episodes(9, length=(3, 60), action_dim=2, seed=2, key="b")
    return [a, b]


def shards(seed: int) -> list[Episodes]:
    """The same episodes, in random pieces and order."""
    rng = np.random.default_rng(seed)
    pieces = []
    for episodes in two_sets():
        order = rng.permutation(len(episodes))
        borders = np.sort(rng.choice(np.arange(1, len(episodes)), rng.integers(0, 5), replace=False))
        pieces += [episodes[part] for part in np.split(order, borders)]
    return [pieces[i] for i in rng.permutation(len(pieces))]


def single_pass(k: int, weights, seed: int = 0) -> ChunkSample:
    sample = ChunkSample(k, seed, weights, horizon=8)
    for episodes in two_sets():
        sample.add(episodes)
    return sample


def merged(parts: list[ChunkSample], rng: np.random.Generator) -> ChunkSample:
    """Merge in a random tree."""
    parts = list(parts)
    while len(parts) > 1:
        i, j = rng.choice(len(parts), 2, replace=False)
        parts[i].merge(parts[j])
        del parts[j]
    return parts[0]


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("k", [1, 7, 100, 10_000])
@pytest.mark.parametrize("seed", range(6))
def test_neither_order_nor_sharding_nor_merge_tree_matters(seed, k, weights):
    whole = single_pass(k, weights)
    pieces = shards(seed)
    streamed = ChunkSample(k, weights=weights, horizon=8)
    for piece in pieces:
        streamed.add(piece)
    tree = merged(
        [ChunkSample(k, weights=weights, horizon=8).add(piece) for piece in pieces], np.random.default_rng(seed)
    )
    assert streamed.digest() == tree.digest() == whole.digest()
    np.testing.assert_array_equal(tree.actions, whole.actions)


def test_a_sample_of_everything_holds_every_chunk_and_its_place():
    sample = single_pass(10_000, None)
    cut = [chunks(episodes, 8) for episodes in two_sets()]
    assert len(sample) == sum(map(len, cut))
    assert sample.count == {"a": len(cut[0]), "b": len(cut[1])}
    assert sample.skipped == sum(len(one.skipped) for one in cut) > 0
    assert (sample.horizon, sample.action_dim, sample.fps, sample.sources) == (8, 2, 20.0, ("smooth_episodes",))
    by_place = {
        (one.key, episode, start): actions
        for one in cut
        for episode, start, actions in zip(one.episode, one.start, one.actions, strict=True)
    }
    keys = np.array(sample.key_names)[sample.key_index]
    for key, episode, start, actions in zip(keys, sample.episode, sample.start, sample.actions, strict=True):
        np.testing.assert_array_equal(actions, by_place[key, episode, start])


def test_extents_are_exact_however_small_the_sample():
    sample = single_pass(3, None)
    for episodes in two_sets():
        cut = chunks(episodes, 8).actions
        np.testing.assert_array_equal(sample.minimum[episodes.key], cut.min(axis=(0, 1)))
        np.testing.assert_array_equal(sample.maximum[episodes.key], cut.max(axis=(0, 1)))
    assert len(sample) == 3


def test_other_seeds_keep_other_chunks():
    assert single_pass(50, None).digest() != single_pass(50, None, seed=1).digest()


def test_weights_are_odds_per_chunk():
    episodes = Episodes.from_arrays(np.random.default_rng(0).normal(size=(50, 107, 1)))
    sample = ChunkSample(1000, weights={"heavy": 4.0, "light": 1.0}, horizon=8)
    for key in ("heavy", "light"):
        sample.add(Episodes(episodes.actions, key=key))
    heavy = int((sample.key_index == 0).sum())
    assert sample.key_names == ("heavy", "light")
    assert 3.2 < heavy / (1000 - heavy) < 4.8


def test_memory_stays_bounded(monkeypatch):
    sample = ChunkSample(100, horizon=8)
    held = []
    for seed in range(20):
        sample.add(smooth_episodes(20, action_dim=2, seed=seed, key=str(seed)))
        held.append(sum(map(len, sample._reservoir._parts)))
    assert max(held) <= 150


def test_the_same_chunk_twice_is_held_once_and_counted_twice():
    episodes = two_sets()[0]
    once, twice = ChunkSample(horizon=8).add(episodes), ChunkSample(horizon=8).add(episodes).add(episodes)
    np.testing.assert_array_equal(once.actions, twice.actions)
    assert twice.count["a"] == 2 * once.count["a"]


def test_two_data_sets_of_one_key_and_source_are_noticed():
    sample = ChunkSample(horizon=8).add(smooth_episodes(3, seed=0))
    with pytest.raises(ActionValueError, match="give each data set its own key= or source="):
        len(sample.add(smooth_episodes(3, seed=1)))


def test_sources_keep_data_sets_of_one_key_apart():
    parts = [Episodes(smooth_episodes(3, seed=seed).actions, source=f"set {seed}") for seed in (1, 0)]
    sample = ChunkSample.of(parts, horizon=8)
    assert len(sample) == sample.count["default"]
    assert sample.sources == ("set 0", "set 1")


def test_the_parts_of_one_episode_split_in_time_do_not_collide():
    train, test = smooth_episodes(1, length=(200, 200)).split(horizon=10)
    assert len(ChunkSample.of([train, test], horizon=10)) == train.frames + test.frames - 18


def test_relative_chunks():
    episodes = smooth_episodes(4, action_dim=3, gripper=False)
    relative = Relative("previous")
    sample = ChunkSample(horizon=8).add(episodes, relative=relative)
    cut = chunks(episodes, 8, relative=relative)
    order = np.lexsort((sample.start, sample.episode))
    np.testing.assert_array_equal(sample.actions[order], cut.actions)
    np.testing.assert_array_equal(sample.maximum["default"], cut.actions.max(axis=(0, 1)))
    with pytest.raises(ActionValueError, match="relative="):
        sample.add(episodes)


def test_pads_travel_along_and_do_not_count_in_the_extent():
    actions = np.array([[[1.0], [9.0]], [[2.0], [3.0]], [[8.0], [8.0]]])
    pad = np.array([[False, True], [False, False], [True, True]])
    sample = ChunkSample().add_chunks(actions, key="x", episode=[0, 1, 2], start=[0, 0, 0], action_is_pad=pad)
    assert sample.action_is_pad[sample.episode == 0].tolist() == [[False, True]]
    assert (sample.minimum["x"], sample.maximum["x"]) == (1, 3)
    assert sample.count == {"x": 2}
    assert ChunkSample().add_chunks(actions, episode=range(3), start=range(3)).action_is_pad is None


def test_pads_of_episodes_reach_the_sample():
    mask = [np.arange(20) >= 15]
    sample = ChunkSample(horizon=8).add(Episodes([np.arange(20.0)[:, None]], action_is_pad=mask))
    assert sample.maximum["default"] == 14
    np.testing.assert_array_equal(sample.action_is_pad, sample.actions[..., 0] >= 15)


def test_episodes_too_short_are_counted_and_none_at_all_is_an_empty_sample():
    sample = ChunkSample(horizon=50).add(smooth_episodes(3, length=(10, 20)))
    assert (len(sample), sample.skipped, sample.count, sample.actions.shape) == (0, 3, {}, (0, 50, 7))
    assert sample.digest() == ChunkSample(horizon=50).merge(sample).digest()


def test_the_horizon_defaults_to_one_second():
    assert ChunkSample().add(smooth_episodes(3, fps=15.0)).horizon == 15
    with pytest.raises(ActionShapeError, match="give horizon="):
        ChunkSample().add(Episodes.from_arrays([np.zeros((50, 1))]))


def test_other_shapes_are_refused():
    sample = ChunkSample().add(smooth_episodes(3), horizon=8)
    with pytest.raises(ActionShapeError, match="horizon 8 as in this sample, got 9"):
        sample.add(smooth_episodes(3), horizon=9)
    with pytest.raises(ActionShapeError, match="action_dim 7 as in this sample, got 6"):
        sample.add(smooth_episodes(3, action_dim=6))
    with pytest.raises(ActionShapeError, match="horizon"):
        sample.merge(ChunkSample(horizon=9))


@pytest.mark.parametrize(
    ("other", "message"),
    [(ChunkSample(k=5), "same k"), (ChunkSample(seed=5), "same k"), (ChunkSample(weights=WEIGHTS), "same k")],
)
def test_merging_needs_equal_rules(other, message):
    with pytest.raises(ActionValueError, match=message):
        ChunkSample().merge(other)


def test_unusable_parameters_are_refused():
    with pytest.raises(ActionValueError, match="k >= 1"):
        ChunkSample(0)
    with pytest.raises(ActionValueError, match="horizon >= 1"):
        ChunkSample(horizon=0)
    with pytest.raises(ActionValueError, match="weights > 0"):
        ChunkSample(weights={"a": 0.0})
    with pytest.raises(ActionValueError, match="weight for every key, got none for 'c'"):
        ChunkSample(weights=WEIGHTS).add(smooth_episodes(2, key="c"))


def test_mixed_rates_have_no_fps():
    sample = ChunkSample(horizon=8).add(smooth_episodes(2, fps=10, key="a")).add(smooth_episodes(2, fps=20, key="b"))
    assert sample.fps is None


def test_samples_travel_between_processes():
    sample = single_pass(20, WEIGHTS)
    assert pickle.loads(pickle.dumps(sample)).digest() == sample.digest()
    assert "20 of" in repr(sample)


def test_keys_without_a_chunk_in_the_sample_are_told():
    rare, common = (smooth_episodes(n, action_dim=2, key=key) for n, key in ((1, "a"), (9, "b")))
    few = ChunkSample(k=4, weights={"a": 1e-9, "b": 1.0}, horizon=8).add(rare).add(common)
    assert (few.key_names, few.unsampled_keys) == (("a", "b"), ("a",))
    assert ChunkSample(k=10**6, horizon=8).add(common).add(rare).unsampled_keys == ()
    assert ChunkSample().unsampled_keys == ()


@pytest.mark.parametrize("k", [5, 60, 10_000])
def test_parts_hold_only_what_may_still_win_and_merge_to_the_whole(k):
    whole, pieces = single_pass(k, WEIGHTS), shards(0)
    running = ChunkSample(k, weights=WEIGHTS, horizon=8)
    for piece in pieces:
        running.merge(running.part().add(piece))
        len(running)  # settles it, and with it the threshold of the next part
    assert running.digest() == whole.digest()
    worst = float(whole._rows.priority[-1])
    parts = [ChunkSample(k, weights=WEIGHTS, horizon=8).part(worst).add(piece) for piece in pieces]
    assert sum(map(len, parts)) == len(whole)  # together they hold the sample and nothing else
    assert merged(parts, np.random.default_rng(0)).digest() == whole.digest()


def test_what_was_left_out_adds_up_when_samples_are_merged():
    a, b = ChunkSample(horizon=8).add(two_sets()[0]), ChunkSample(horizon=8)
    a.skipped_shards, a.lost_episodes = ("s/2", "s/3"), 4
    b.skipped_shards, b.lost_episodes = ("s/1", "s/2"), 1
    a.merge(b)
    assert (a.skipped_shards, a.lost_episodes) == (("s/1", "s/2", "s/3"), 5)


def test_zeros_of_both_signs_are_one_extreme_in_whatever_order_they_come():
    actions = [np.ones((9, 1), np.float32) * sign for sign in (1, 1, 1, -1, -1, -1)]
    for episode, zero in zip(actions, (0.0, -0.0, 0.0, -0.0, 0.0, -0.0), strict=True):
        episode[4:7] = zero  # the smallest of the first three, the largest of the others
    for some in (range(3), range(3, 6)):
        digests, bits = set(), set()
        for order in itertools.permutations(some):
            parts = [ChunkSample(horizon=4).add(Episodes([actions[i]], names=(i,))) for i in order]
            streamed = ChunkSample(horizon=4)
            for i in order:
                streamed.add(Episodes([actions[i]], names=(i,)))
            left = parts[0].merge(parts[1]).merge(parts[2])
            digests |= {streamed.digest(), left.digest()}
            bits |= {values["default"].tobytes() for values in (left.minimum, left.maximum)}
            bits |= {values["default"].tobytes() for values in (streamed.minimum, streamed.maximum)}
        whole = ChunkSample(horizon=4).add(Episodes([actions[i] for i in some], names=tuple(some)))
        assert digests == {whole.digest()}
        assert np.float32(-0.0).tobytes() not in bits
