import numpy as np
import pytest

from action_tokenizers.data import Episodes, Relative, chunks, smooth_episodes, windows
from action_tokenizers.data.chunks import by_episode, gather, plan_chunks
from action_tokenizers.errors import ActionShapeError, ActionValueError


def counted(*lengths: int, **fields) -> Episodes:
    """Episode i, frame j holds the value 100 i + j."""
    return Episodes.from_arrays([np.arange(n)[:, None] + 100 * i for i, n in enumerate(lengths)], **fields)


def test_windows_are_views():
    array = np.arange(12).reshape(6, 2)
    view = windows(array, 3, 2)
    assert np.shares_memory(view, array)
    np.testing.assert_array_equal(view, [array[0:3], array[2:5]])
    assert windows(array, 7).shape == (0, 7, 2)


def test_chunks_never_cross_an_episode():
    cut = chunks(counted(4, 2, 5, names=(7, 8, 9), key="arm", source="set"), 3)
    assert cut.actions[..., 0].tolist() == [[0, 1, 2], [1, 2, 3], [200, 201, 202], [201, 202, 203], [202, 203, 204]]
    assert cut.episode.tolist() == [7, 7, 9, 9, 9]
    assert cut.start.tolist() == [0, 1, 0, 1, 2]
    assert cut.skipped == (8,)
    assert (len(cut), cut.key, cut.source, cut.action_is_pad, cut.reference) == (5, "arm", "set", None, None)
    assert cut.actions.dtype == np.float32


def test_stride():
    assert chunks(counted(8), 3, stride=2).start.tolist() == [0, 2, 4]


def test_starts_count_from_the_recorded_frame():
    _, test = counted(30).split(0.3, horizon=3)
    cut = chunks(test, 3)
    np.testing.assert_array_equal(cut.start, cut.actions[:, 0, 0])


def test_pad_tail_repeats_the_last_action_and_marks_it():
    cut = chunks(counted(3, 1), 2, pad_tail=True)
    assert cut.actions[..., 0].tolist() == [[0, 1], [1, 2], [2, 2], [100, 100]]
    assert cut.action_is_pad.tolist() == [[False, False], [False, False], [False, True], [False, True]]
    assert cut.skipped == ()


def test_recorded_pads_travel_along_and_chunks_of_pads_are_left_out():
    pad = [np.array([False, False, False, True, True, True])]
    cut = chunks(counted(6, action_is_pad=pad), 2)
    assert cut.start.tolist() == [0, 1, 2]
    assert cut.action_is_pad.tolist() == [[False, False], [False, False], [False, True]]
    both = chunks(counted(6, action_is_pad=pad), 4, pad_tail=True)
    assert both.start.tolist() == [0, 1, 2]
    assert both.action_is_pad[-1].tolist() == [False, True, True, True]


def test_every_episode_too_short_says_what_to_do():
    with pytest.raises(ActionShapeError, match="horizon 9 steps, the longest of 2 has 5"):
        chunks(counted(4, 5), 9)


@pytest.mark.parametrize(("horizon", "stride"), [(0, 1), (1, 0)])
def test_horizon_and_stride_are_positive(horizon, stride):
    with pytest.raises(ActionValueError, match="horizon >= 1"):
        chunks(counted(4), horizon, stride)


def test_a_plan_in_any_order_gathers_the_same_chunks():
    episodes = counted(9, 4, 7)
    plan = plan_chunks(episodes, 3)
    order = np.random.default_rng(0).permutation(len(plan))
    np.testing.assert_array_equal(gather(episodes, plan[order]).actions, gather(episodes, plan).actions[order])
    assert list(by_episode(plan[:0])) == []


def test_relative_to_the_state_at_the_start():
    episodes = counted(5, states=[np.full((5, 3), 10) + np.arange(5)[:, None]])
    cut = chunks(episodes, 2, relative=Relative("state"))
    assert cut.reference[:, 0].tolist() == [10, 11, 12, 13]
    assert cut.actions[..., 0].tolist() == [[-10, -9]] * 4


@pytest.mark.parametrize(("states", "first"), [(None, 0), ([np.full((4, 1), 7.0)], 7)])
def test_relative_to_the_previous_action(states, first):
    cut = chunks(counted(4, states=states), 2, relative=Relative("previous"))
    assert cut.reference[:, 0].tolist() == [first, 0, 1]
    assert cut.actions[..., 0].tolist() == [[-first, 1], [1, 1], [1, 1]]


def test_a_state_narrower_than_the_actions_is_no_previous_action():
    narrow = Episodes.from_arrays([np.ones((3, 2))], states=[np.full((3, 1), 9.0)])
    cut = chunks(narrow, 2, relative=Relative("previous"))
    np.testing.assert_array_equal(cut.actions, np.zeros((2, 2, 2)))


def test_references_invert_what_chunks_made_relative():
    episodes = smooth_episodes(5)
    modes = ("state", "previous", None, "state", "previous", "state", None)
    relative = Relative(modes)
    made = chunks(episodes, 10, relative=relative)
    assert not made.reference[:, 2].any()
    np.testing.assert_allclose(relative.invert(made.actions, made.reference), chunks(episodes, 10).actions, atol=1e-6)


@pytest.mark.parametrize("states", [None, [np.zeros((4, 1))]])
def test_state_mode_needs_states_of_enough_dims(states):
    episodes = Episodes.from_arrays([np.zeros((4, 2))], states=states)
    with pytest.raises(ActionShapeError, match="states of at least 2 dims"):
        chunks(episodes, 2, relative=Relative("state"))


@pytest.mark.parametrize(
    ("lengths", "horizon", "stride", "pad_tail", "left_out"),
    [
        ((4, 2, 5), 3, 1, False, 2),
        ((4, 2, 5), 3, 1, True, 0),
        ((8, 9), 3, 2, False, 1),
        ((10,), 2, 4, False, 4),
        ((10,), 2, 4, True, 4),
        ((10, 1), 10, 1, False, 1),
    ],
)
def test_frames_left_out(lengths, horizon, stride, pad_tail, left_out):
    episodes = counted(*lengths)
    cut = chunks(episodes, horizon, stride, pad_tail=pad_tail)
    assert cut.frames_left_out == left_out == episodes.frames - len(np.unique(cut.actions))


def test_pads_are_no_frames_left_out():
    cut = chunks(counted(6, action_is_pad=[[0, 0, 0, 0, 1, 1]]), 2, 2)
    assert (len(cut), cut.frames_left_out) == (2, 0)
