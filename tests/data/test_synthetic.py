import numpy as np
import pytest

from action_tokenizers.data import smooth_chunks, smooth_episodes


def test_chunks_are_smooth_and_within_range():
    chunks = smooth_chunks(500, 50, 7)
    assert chunks.shape == (500, 50, 7)
    assert chunks.dtype == np.float32
    assert np.abs(chunks).max() <= 1
    # the fastest sinusoid (2 periods per chunk) of amplitude 1 moves 4 pi / 50 per step
    assert np.abs(np.diff(chunks[..., :-1], axis=1)).max() < 4 * np.pi / 50
    assert chunks[..., :-1].std() > 0.2


def test_the_gripper_switches_at_most_once():
    gripper = smooth_chunks(500, 50, 3)[..., -1]
    assert set(np.unique(gripper)) == {-1, 1}
    switches = (np.diff(gripper, axis=1) != 0).sum(axis=1)
    assert set(switches) == {0, 1}
    assert 0.4 < (gripper > 0).mean() < 0.6
    assert len(np.unique(smooth_chunks(3, 50, 3, gripper=False)[..., -1])) > 100


def test_seeds():
    np.testing.assert_array_equal(smooth_chunks(3, 9, 2, seed=5), smooth_chunks(3, 9, 2, seed=5))
    assert (smooth_chunks(3, 9, 2, seed=5) != smooth_chunks(3, 9, 2, seed=6)).any()


@pytest.mark.parametrize("gripper", [True, False])
def test_episodes(gripper):
    episodes = smooth_episodes(30, length=(10, 20), action_dim=4, fps=10, gripper=gripper, key="made up")
    assert len(episodes) == 30
    assert set(episodes.lengths) <= set(range(10, 21))
    assert len(set(episodes.lengths)) > 5
    assert (episodes.action_dim, episodes.fps, episodes.key, episodes.source) == (4, 10, "made up", "smooth_episodes")
    late = np.concatenate([s[1:] - a[:-1] for s, a in zip(episodes.states, episodes.actions, strict=True)])
    assert 0.005 < late.std() < 0.02
