import numpy as np
import pytest

from action_tokenizers.data import Relative, chunks, smooth_episodes
from action_tokenizers.data.chunks import plan_chunks
from action_tokenizers.data.episodes import Episodes
from action_tokenizers.data.extent import planned_extent


def padded(episodes: Episodes) -> Episodes:
    rng = np.random.default_rng(0)
    return Episodes(episodes.actions, action_is_pad=[rng.random(n) < 0.3 for n in episodes.lengths])


@pytest.mark.parametrize("stride", [1, 5, 30])
@pytest.mark.parametrize("relative", [None, Relative("previous")])
@pytest.mark.parametrize("with_pads", [False, True])
def test_planned_extent_is_that_of_the_cut_chunks(stride, relative, with_pads, monkeypatch):
    monkeypatch.setattr("action_tokenizers.data.extent.BLOCK", 700)  # so that several blocks are needed
    episodes = smooth_episodes(6, length=(15, 90), action_dim=3)
    episodes = padded(episodes) if with_pads else episodes
    cut = chunks(episodes, 20, stride, relative)
    low, high = planned_extent(episodes, plan_chunks(episodes, 20, stride), relative)
    real = np.ones(cut.actions.shape[:2], bool) if cut.action_is_pad is None else ~cut.action_is_pad
    np.testing.assert_array_equal(low, cut.actions[real].min(axis=0))
    np.testing.assert_array_equal(high, cut.actions[real].max(axis=0))


def test_frames_between_windows_far_apart_do_not_count():
    actions = np.zeros((20, 1), np.float32)
    actions[7] = 9  # windows of 5, 10 apart, begin at 0 and 10
    episodes = Episodes([actions])
    assert planned_extent(episodes, plan_chunks(episodes, 5, 10), None)[1] == 0
    assert planned_extent(episodes, plan_chunks(episodes, 5, 5), None)[1] == 9
    # and windows in any order count as they do in order
    assert planned_extent(episodes, plan_chunks(episodes, 5, 5)[[2, 0]], None)[1] == 0
    assert planned_extent(episodes, plan_chunks(episodes, 5, 5)[[1, 0]], None)[1] == 9
