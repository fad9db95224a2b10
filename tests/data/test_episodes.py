import dataclasses
import errno
import shutil
import warnings

import numpy as np
import pytest

from action_tokenizers.data import Episodes, angle_jumps, default_horizon
from action_tokenizers.errors import ActionShapeError, ActionValueError, FormatError


def ramps(*lengths: int, dim: int = 2, **fields) -> Episodes:
    arrays = [np.arange(n * dim, dtype=np.float32).reshape(n, dim) + 1000 * i for i, n in enumerate(lengths)]
    return Episodes.from_arrays(arrays, **fields)


def test_facts():
    episodes = ramps(5, 7, fps=10, key="arm", names=(3, 8), source="set", action_names=("x", "y"))
    assert (len(episodes), episodes.action_dim, episodes.frames) == (2, 2, 12)
    assert episodes.lengths == (5, 7)
    assert episodes.names == (3, 8)
    assert episodes.independent
    assert "2 episodes, 12 frames" in repr(episodes)
    assert len(repr(episodes)) < 200


def test_one_array_of_three_axes_is_n_episodes():
    assert Episodes.from_arrays(np.zeros((4, 9, 2))).lengths == (9, 9, 9, 9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
def test_the_door_names_the_place_of_a_bad_value(bad):
    actions = [np.zeros((4, 3)), np.zeros((4, 3))]
    actions[1][2, 0] = bad
    with pytest.raises(ActionValueError, match="episode 7, frame 2, dim 0"):
        Episodes.from_arrays(actions, names=(1, 7))


def test_a_bad_state_is_refused_as_well():
    with pytest.raises(ActionValueError, match="state of episode 0, frame 1, dim 0"):
        Episodes.from_arrays([np.zeros((2, 1))], states=[np.array([[0.0], [np.nan]])])


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"actions": []}, ActionValueError, "at least one episode"),
        ({"actions": [np.zeros((0, 2))]}, ActionShapeError, r"shape \(0, 2\) in episode 0"),
        ({"actions": [np.zeros((3, 0))]}, ActionShapeError, "d >= 1"),
        ({"actions": [np.zeros(3)]}, ActionShapeError, r"\(t, d\)"),
        ({"actions": [np.zeros((3, 2)), np.zeros((3, 1))]}, ActionShapeError, "of 2 dims"),
        ({"states": [np.zeros((2, 2))]}, ActionShapeError, "states of the same lengths"),
        ({"action_is_pad": [np.zeros(2, bool)]}, ActionShapeError, "action_is_pad of the same lengths"),
        ({"fps": 0}, ActionValueError, "fps > 0"),
        ({"fps": np.nan}, ActionValueError, "fps > 0"),
        ({"key": ""}, ActionValueError, "key"),
        ({"names": (1, 2)}, ActionValueError, "1 different episode names"),
        ({"action_names": ("x",)}, ActionShapeError, "2 action_names"),
        ({"offsets": (1, 2)}, ActionShapeError, "1 offsets"),
    ],
)
def test_unusable_fields_are_refused(fields, error, message):
    with pytest.raises(error, match=message):
        Episodes(**{"actions": [np.zeros((3, 2), np.float32)], **fields})


def test_repeated_names_are_refused():
    with pytest.raises(ActionValueError, match="different episode names"):
        ramps(3, 3, names=(1, 1))


def test_selection_keeps_everything_together():
    pad = [np.zeros(n, bool) for n in (3, 4, 5)]
    episodes = ramps(3, 4, 5, states=[np.ones((n, 1)) * n for n in (3, 4, 5)], names=(7, 8, 9), action_is_pad=pad)
    picked = episodes[[2, 0]]
    assert picked.names == (9, 7)
    assert [len(state) for state in picked.states] == [5, 3]
    assert [len(mask) for mask in picked.action_is_pad] == [5, 3]
    assert episodes[1].names == episodes[1:2].names == episodes[np.array([False, True, False])].names == (8,)
    assert episodes[-1].names == (9,)
    assert [one.names for one in episodes] == [(7,), (8,), (9,)]


def test_an_empty_selection_is_refused():
    with pytest.raises(ActionValueError, match="empty selection"):
        ramps(3)[[]]
    with pytest.raises(IndexError):
        ramps(3)[1]


@pytest.mark.parametrize(("share", "held_out"), [(0.01, 1), (0.2, 2), (0.5, 5), (0.99, 9)])
def test_split_keeps_episodes_whole(share, held_out):
    train, test = ramps(*[5] * 10).split(share, seed=1)
    assert len(test) == held_out
    assert sorted(train.names + test.names) == list(range(10))
    assert train.independent
    assert test.independent


def test_split_is_reproducible_and_depends_on_the_seed():
    episodes = ramps(*[5] * 20)
    assert episodes.split(seed=3)[1].names == episodes.split(seed=3)[1].names
    assert episodes.split(seed=3)[1].names != episodes.split(seed=4)[1].names


def test_one_episode_is_split_in_time_with_a_gap():
    train, test = ramps(100, states=[np.zeros((100, 1))]).split(0.2, horizon=10)
    assert (train.frames, test.frames) == (72, 18)
    assert (train.offsets, test.offsets) == ((0,), (82,))
    assert test.actions[0][0, 0] - train.actions[0][-1, 0] == 2 * 11
    assert len(test.states[0]) == 18
    assert not train.independent
    assert not test.independent


def test_one_episode_needs_a_horizon_and_room_for_three():
    with pytest.raises(ActionValueError, match="horizon="):
        ramps(100).split()
    with pytest.raises(ActionShapeError, match="3 horizons"):
        ramps(20).split(horizon=7)
    assert [part.frames for part in ramps(21).split(0.9, horizon=7)] == [7, 7]


def test_split_refuses_shares_that_are_none():
    with pytest.raises(ActionValueError, match="between 0 and 1"):
        ramps(5, 5).split(1.0)


@pytest.mark.parametrize(("fps", "horizon"), [(None, None), (10, 10), (29.97, 30), (1000, 40), (0.2, 1)])
def test_default_horizon_is_a_second_within_the_median(fps, horizon):
    assert default_horizon(ramps(20, 40, 60, fps=fps)) == horizon


def test_wrapped_angles_are_found():
    turning = np.linspace(0, 20, 200)
    wrapped = (turning + np.pi) % (2 * np.pi) - np.pi
    positive = turning % (2 * np.pi)
    gripper = np.where(np.arange(200) % 50 < 25, 3.0, -3.0)
    pixels = np.arange(200) * 6.28
    columns = np.stack([turning, wrapped, gripper, positive, pixels], axis=1)
    assert angle_jumps(Episodes.from_arrays([columns])) == [1, 3]


def test_recorded_sets_raise_no_false_alarm(shared_data):
    for folder in ("pusht", "adroit_door", "crazyflie_100hz", "gr1_picknplace", "aloha_sim_mini"):
        assert angle_jumps(Episodes.load(shared_data / folder)) == []


def test_load_warns_about_wrapped_angles(tmp_path):
    angle = (np.linspace(0, 20, 200) % (2 * np.pi))[:, None]
    np.save(tmp_path / "turns.npy", angle)
    with pytest.warns(UserWarning, match=r"dims \[0\] of 'turns.npy' jump by about 2\*pi"):
        Episodes.load(tmp_path / "turns.npy")


def test_load_gives_what_was_asked(tmp_path):
    np.savez(tmp_path / "two.npz", action=np.zeros((5, 2)), other=np.ones((5, 2)), state=np.ones((5, 3)), fps=5)
    plain = Episodes.load(tmp_path / "two.npz")
    assert (plain.key, plain.fps, plain.source, plain.states[0].shape) == ("default", 5.0, "two.npz", (5, 3))
    asked = Episodes.load(tmp_path / "two.npz", action="other", state=False, key="b", fps=7)
    assert (asked.key, asked.fps, asked.states, asked.actions[0].max()) == ("b", 7.0, None, 1.0)


def test_the_source_is_a_name_and_not_a_place(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    np.save(tmp_path / "set" / "a.npy", np.zeros((5, 2)))
    shutil.copytree(tmp_path / "set", tmp_path / "elsewhere" / "set")
    monkeypatch.chdir(tmp_path / "set")
    sources = {Episodes.load(at).source for at in (tmp_path / "set", ".", "../elsewhere/set", "../elsewhere/set/")}
    assert sources == {"set"}


def test_a_path_that_is_none_is_refused(tmp_path):
    for path in (tmp_path / "none", str(tmp_path / "none"), "no such thing", "a/b/c"):
        with pytest.raises(FormatError, match="no such path"):
            Episodes.load(path)


def test_nan_in_a_file_is_refused_with_its_place(tmp_path):
    actions = np.zeros((2, 5, 2))
    actions[1, 3, 1] = np.nan
    np.save(tmp_path / "bad.npy", actions)
    with (
        warnings.catch_warnings(),
        pytest.raises(ActionValueError, match="action of episode 1, frame 3, dim 1"),
    ):
        Episodes.load(tmp_path / "bad.npy")


@pytest.mark.parametrize("mask", [np.zeros((5, 2)), np.zeros((5, 1), bool), np.bool_(True)])
def test_a_pad_mask_has_one_bool_per_frame(mask):
    with pytest.raises(ActionShapeError, match=r"action_is_pad \(5,\), one bool per frame, got shape .* episode 3"):
        Episodes.from_arrays([np.zeros((5, 2))], names=(3,), action_is_pad=[np.asarray(mask, bool)])


def test_a_pad_mask_of_other_numbers_is_refused():
    with pytest.raises(ActionValueError, match="action_is_pad of bools, got dtype float64"):
        Episodes.from_arrays([np.zeros((5, 2))], action_is_pad=[np.full(5, 0.5)])
    assert Episodes.from_arrays([np.zeros((2, 2))], action_is_pad=[[0, 1]]).action_is_pad[0].tolist() == [False, True]


def test_padding_is_the_mask_or_nothing():
    actions = [np.zeros((3, 2)), np.zeros((2, 2))]
    assert [mask.tolist() for mask in Episodes(actions).padding] == [[False] * 3, [False] * 2]
    padded = Episodes(actions, action_is_pad=[[0, 0, 1], [0, 1]])
    assert [mask.tolist() for mask in padded.padding] == [[False, False, True], [False, True]]
    assert [mask.dtype for mask in padded.padding] == [np.bool_] * 2
    with pytest.raises(AttributeError):
        padded.padding = None


def test_replace_keeps_all_but_what_it_names():
    mine = Episodes.from_arrays(
        [np.zeros((5, 2)), np.ones((4, 2))],
        states=[np.zeros((5, 3)), np.ones((4, 3))],
        fps=5,
        names=(4, 2),
        action_names=("a", "b"),
        source="set",
        independent=False,
        action_is_pad=[[0] * 5, [1] * 4],
        offsets=(7, 0),
    )
    other = dataclasses.replace(mine, key="left")
    assert (mine.key, other.key) == ("default", "left")
    for field in dataclasses.fields(Episodes):
        if field.name not in ("key", "actions", "states", "action_is_pad"):
            assert getattr(other, field.name) == getattr(mine, field.name)
    for what in ("actions", "states", "action_is_pad"):
        for got, wanted in zip(getattr(other, what), getattr(mine, what), strict=True):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ECONNABORTED])
@pytest.mark.parametrize("wrapped", [False, True], ids=["as it came", "taken for a broken file"])
def test_what_the_system_says_is_no_fault_of_the_file(tmp_path, monkeypatch, number, wrapped):
    def refused(*_, **__):
        error = OSError(number, "says the system")
        if wrapped:
            raise FormatError("broken") from error
        raise error

    np.save(tmp_path / "x.npy", np.zeros((2, 5, 2)))
    monkeypatch.setattr("action_tokenizers.data.readers.arrays.read", refused)
    with pytest.raises(OSError, match=r"x\.npy: says the system") as told:
        Episodes.load(tmp_path / "x.npy")
    assert told.value.errno == number


def test_too_many_open_files(tmp_path):
    resource = pytest.importorskip("resource", reason="limits open files as Unix does")
    np.save(tmp_path / "x.npy", np.zeros((2, 5, 2)))
    Episodes.load(tmp_path / "x.npy")  # imports what opens files
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match=r"x\.npy: [Tt]oo many open files") as told:
            Episodes.load(tmp_path / "x.npy")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert told.value.errno == errno.EMFILE
