import numpy as np
import pytest

from action_tokenizers import ActionShapeError, BinningTokenizer, ChunkSample, Episodes, Relative
from action_tokenizers.diagnostics.scene import Coded, Scene


@pytest.fixture
def episodes():
    rng = np.random.default_rng(0)
    actions = [rng.normal(size=(n, 2)).astype(np.float32) for n in (12, 3, 20)]
    return Episodes(actions, names=(7, 3, 5), fps=10, key="robot")


def scene_of(episodes, most=1000):
    return Scene.of(episodes, 5, np.ones(2), 1, most, seed=0)


def test_chunks_lie_where_the_plan_says(episodes):
    scene = scene_of(episodes)
    assert scene.skipped == 1
    assert len(scene.chunks) == 8 + 16
    for chunk, position, first in zip(scene.chunks, scene.plan.position, scene.plan.first, strict=True):
        np.testing.assert_array_equal(chunk, episodes.actions[position][first : first + 5])
    assert set(scene.episode.tolist()) == {7, 5}


def test_later_chunks_begin_one_step_later_also_after_a_split_in_time(episodes):
    tokenizer = BinningTokenizer(horizon=5).fit(episodes[[0, 2]])
    _, part = episodes[[2]].split(0.6, horizon=5)
    for data in (episodes, part):
        scene = scene_of(data)
        exists, later = scene.later(tokenizer)
        lasts = scene.plan.first + 5 == np.asarray(data.lengths)[scene.plan.position]
        np.testing.assert_array_equal(exists, ~lasts)
        np.testing.assert_array_equal(later.actions[:, :-1], scene.chunks[exists][:, 1:])


def test_coded_chunks_come_back_absolute(episodes):
    sample = ChunkSample().add(episodes[[0, 2]], 5, 1, Relative("previous"))
    tokenizer = BinningTokenizer(bins=4096, range="minmax").fit(sample)
    scene = scene_of(episodes, most=10)
    coded = scene.coded(tokenizer)
    assert np.abs(coded.actions - scene.chunks).max() > 0.5
    _, decoded = coded.quantize(tokenizer, "robot")
    np.testing.assert_allclose(decoded, scene.chunks, atol=0.02)
    np.testing.assert_allclose(coded.clip(tokenizer, "robot"), scene.chunks, atol=1e-5)


def test_padded_steps_hold_the_last_real_one_where_encoding_puts_it():
    actions = np.arange(12, dtype=np.float32).reshape(3, 4, 1)
    is_pad = np.array([[False, True, False, True], [True, True, False, False], [True] * 4])
    coded = Coded(actions, is_pad)
    held = coded.held()
    # what is nothing but padding stays: it has no step to hold
    assert held.actions[..., 0].tolist() == [[0, 0, 2, 2], [6, 6, 6, 7], [8, 9, 10, 11]]
    assert coded.actions[0, 1] == 1  # a copy
    tokenizer = BinningTokenizer(bins=64, range="minmax").fit(actions)
    ids = coded.encode(tokenizer, "default")
    np.testing.assert_array_equal(ids, tokenizer.encode(held.actions))
    np.testing.assert_array_equal(ids, held.encode(tokenizer, "default"))
    whole = Coded(actions, np.zeros_like(is_pad))
    assert whole.held() is whole


def test_the_key_is_the_datas_or_the_only_one(episodes):
    scene = scene_of(episodes)
    long = episodes[[0, 2]]
    assert scene.key_of(BinningTokenizer(horizon=5).fit(long)) == "robot"
    assert scene.key_of(BinningTokenizer(horizon=5).fit(list(long.actions))) == "default"
    others = [Episodes(long.actions, key=key, source=key) for key in ("a", "b")]
    with pytest.raises(ActionShapeError, match=r"'a', 'b'.*'robot'"):
        scene.key_of(BinningTokenizer(horizon=5).fit(others))


def test_no_long_enough_episode_is_refused(episodes):
    with pytest.raises(ActionShapeError, match="of at most 3"):
        scene_of(episodes[[1]])
