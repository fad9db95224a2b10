import numpy as np
import pytest

from action_tokenizers.data import Episodes
from action_tokenizers.errors import FormatError


def test_npy_of_one_episode_and_of_many(tmp_path, walks):
    a, b = walks((6, 6), 2)
    np.save(tmp_path / "one.npy", a)
    np.save(tmp_path / "many.npy", np.stack([a, b]))
    np.testing.assert_array_equal(Episodes.load(tmp_path / "one.npy").actions[0], a)
    np.testing.assert_array_equal(Episodes.load(tmp_path / "many.npy").actions[1], b)


@pytest.mark.parametrize("beside", [{"episode_ends": [4, 10]}, {"episode_index": [2] * 4 + [5] * 6}])
def test_npz_of_rows(tmp_path, walks, beside):
    a, s = walks((10,), 2)[0], walks((10,), 3)[0]
    np.savez(tmp_path / "x.npz", action=a, state=s, hz=25, **{name: np.array(v) for name, v in beside.items()})
    read = Episodes.load(tmp_path)
    assert read.lengths == (4, 6)
    assert read.fps == 25
    assert read.names == ((2, 5) if "episode_index" in beside else (0, 1))
    np.testing.assert_array_equal(np.concatenate(read.states), s)


def test_npz_of_unnamed_episodes(tmp_path, walks):
    episodes = walks(range(3, 15), 2)
    np.savez(tmp_path / "x.npz", *episodes)
    assert Episodes.load(tmp_path / "x.npz").lengths == tuple(range(3, 15))


def test_the_only_array_needs_no_name(tmp_path, walks):
    np.savez_compressed(tmp_path / "x.npz", torque=walks((5,), 2)[0])
    assert Episodes.load(tmp_path / "x.npz").frames == 5


def test_object_arrays_are_never_loaded(tmp_path):
    ragged = np.empty(2, object)
    ragged[:] = [np.zeros((2, 1)), np.zeros((3, 1))]
    np.save(tmp_path / "x.npy", ragged, allow_pickle=True)
    np.savez(tmp_path / "x.npz", action=ragged)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(FormatError, match="object arrays are pickles"):
            Episodes.load(tmp_path / name)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_broken_files_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(FormatError, match=f"numeric arrays in {name}"):
        Episodes.load(tmp_path / name)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"action": np.zeros(5), "other": np.zeros(5)}, r"\(t, d\) or \(n, t, d\)"),
        ({"action": np.zeros((5, 2)), "state": np.zeros((4, 2))}, "as many states"),
        ({"action": np.zeros((5, 2)), "episode_ends": np.array([3, 3])}, "rising episode_ends up to 5"),
        ({"action": np.zeros((5, 2)), "episode_ends": np.array([3, 6])}, "rising episode_ends up to 5"),
        ({"action": np.zeros((5, 2)), "episode_ends": np.array([], int)}, "rising episode_ends"),
        ({"action": np.zeros((5, 2)), "episode_index": np.zeros(4, int)}, "one whole episode number per row"),
        ({"a": np.zeros((5, 2)), "b": np.zeros((5, 2))}, r"got a \(5, 2\), b \(5, 2\): name the column with action="),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(FormatError, match=message):
        Episodes.load(tmp_path / "x.npz")


def test_grouped_arrays_are_joined(tmp_path, walks):
    arm, state = walks((8,), 2)[0], walks((8,), 3)[0]
    arrays = {
        "action.arm": arm,
        "action.gripper": arm[:, :1],
        "action.lift": arm[:, 1],
        "obs.image": np.zeros((8, 4, 4)),
    }
    np.savez(tmp_path / "x.npz", **arrays, **{"obs.joints": state, "obs.time": state[:, 0]})
    read = Episodes.load(tmp_path / "x.npz")
    np.testing.assert_array_equal(read.actions[0], np.column_stack([arm, arm]))
    np.testing.assert_array_equal(read.states[0], np.column_stack([state, state[:, 0]]))


def test_grouped_arrays_of_many_episodes_are_joined(tmp_path):
    np.savez(tmp_path / "x.npz", **{"action.arm": np.zeros((3, 5, 2)), "action.grip": np.ones((3, 5))})
    read = Episodes.load(tmp_path / "x.npz")
    assert (read.lengths, read.actions[2][4].tolist()) == ((5, 5, 5), [0, 0, 1])


def test_grouped_arrays_of_different_rows_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", **{"action.arm": np.zeros((5, 2)), "action.gripper": np.ones((4, 1))})
    with pytest.raises(
        FormatError, match=r"as many rows .* x.npz, got action.arm \(5, 2\), action.gripper \(4, 1\): name"
    ):
        Episodes.load(tmp_path / "x.npz")


def test_rows_after_the_last_end_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", action=np.zeros((9, 2)), episode_ends=np.array([3, 7]))
    with pytest.raises(FormatError, match=r"last of episode_ends to equal .* x.npz, got 7 and 9 rows of action: add"):
        Episodes.load(tmp_path / "x.npz")


@pytest.mark.parametrize("rate", [20, [20.0]])
def test_a_rate_beside_unnamed_episodes(tmp_path, walks, rate):
    np.savez(tmp_path / "x.npz", *walks((3, 4), 2), fps=rate, seed=7)
    read = Episodes.load(tmp_path / "x.npz")
    assert (read.lengths, read.fps) == ((3, 4), 20)


def test_a_rate_beside_the_only_array(tmp_path):
    np.savez(tmp_path / "x.npz", torque=np.zeros((5, 2)), hz=10)
    assert Episodes.load(tmp_path / "x.npz").fps == 10
