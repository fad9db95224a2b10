import json

import numpy as np
import pytest

from action_tokenizers.data import Episodes
from action_tokenizers.errors import ActionShapeError, FormatError

h5py = pytest.importorskip("h5py")


@pytest.fixture
def robomimic(tmp_path, walks):
    def write(states: str | None = "robot_states", numbers=range(12)):
        with h5py.File(tmp_path / "demos.hdf5", "w") as file:
            data = file.create_group("data")
            data.attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": 20}})
            for number, actions in zip(numbers, walks(range(5, 5 + len(numbers)), 7), strict=True):
                demo = data.create_group(f"demo_{number}")
                demo["actions"] = actions.astype(np.float64)
                demo["states"] = np.zeros((len(actions), 99))
                demo["obs/agentview_rgb"] = np.zeros((len(actions), 4, 4, 3), np.uint8)
                demo["obs/ee_pos"] = actions[:, :3]
                demo["obs/gripper"] = actions[:, 6]
                if states:
                    demo[states] = actions[:, :4]
        return tmp_path / "demos.hdf5"

    return write


@pytest.fixture
def aloha(tmp_path, walks):
    folder = tmp_path / "aloha"
    folder.mkdir()
    for number, actions in zip((0, 2, 10), walks((6, 7, 8), 14), strict=True):
        with h5py.File(folder / f"episode_{number}.hdf5", "w") as file:
            file["action"] = actions
            file["observations/qpos"] = actions - 1
            file["observations/images/top"] = np.zeros((len(actions), 4, 4, 3), np.uint8)
            file.attrs["fps"] = np.int64(50)
    return folder


def test_demos_come_in_the_order_of_their_numbers(robomimic, walks):
    read = Episodes.load(robomimic())
    assert read.names == tuple(range(12))
    assert read.lengths == tuple(range(5, 17))
    assert read.fps == 20
    np.testing.assert_array_equal(read.actions[11], walks(range(5, 17), 7)[11])
    np.testing.assert_array_equal(read.states[3], read.actions[3][:, :4])


def test_the_simulators_own_state_is_never_taken_unasked(robomimic):
    path = robomimic(states=None)
    assert Episodes.load(path).states is None
    assert Episodes.load(path, state="states").states[0].shape[1] == 99
    assert Episodes.load(path, state="obs").states[0].shape[1] == 4
    assert Episodes.load(path, state="obs/ee_pos", action="obs/gripper").action_dim == 1


def test_demos_may_be_numbered_with_gaps(robomimic):
    assert Episodes.load(robomimic(numbers=(3, 40, 7))).names == (3, 7, 40)


def test_one_file_per_episode(aloha, walks):
    read = Episodes.load(aloha)
    assert read.names == (0, 2, 10)
    assert read.fps == 50
    for mine, theirs in zip(read.actions, walks((6, 7, 8), 14), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(read.states[1], read.actions[1] - 1)
    assert Episodes.load(aloha / "episode_2.hdf5").names == (2,)


def test_a_missing_column_lists_shapes(robomimic):
    with pytest.raises(FormatError, match=r"'torque' in demos.hdf5/data/demo_0, got actions \(5, 7\), obs/ee_pos"):
        Episodes.load(robomimic(), action="torque")


@pytest.mark.parametrize("keep", [0, 100, 3000])
def test_a_truncated_file_is_named(aloha, keep):
    file = aloha / "episode_2.hdf5"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(FormatError, match=r"whole HDF5 file at episode_2.hdf5"):
        Episodes.load(aloha)


def test_a_stray_dataset_beside_the_demos_is_no_demo(robomimic):
    path = robomimic()
    with h5py.File(path, "a") as file:
        file["data/note"] = np.zeros((3, 7))
    assert Episodes.load(path).names == tuple(range(12))


def test_a_link_to_nothing_is_named(robomimic):
    path = robomimic()
    with h5py.File(path, "a") as file:
        file["data/demo_99"] = h5py.SoftLink("/nowhere")
    with pytest.raises(FormatError, match=r"whole HDF5 file at demos.hdf5"):
        Episodes.load(path)


def test_an_empty_demo_is_named(robomimic):
    path = robomimic()
    with h5py.File(path, "a") as file:
        file["data/demo_99/actions"] = np.zeros((0, 7))
    with pytest.raises(ActionShapeError, match=r"got shape \(0, 7\) in episode 99"):
        Episodes.load(path, state=False)


def test_columns_of_different_rows_are_refused(tmp_path):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["actions/a"], file["actions/b"] = np.zeros((5, 2)), np.zeros((4, 1))
    with pytest.raises(FormatError, match=r"as many rows .* got actions/a \(5, 2\), actions/b \(4, 1\): name"):
        Episodes.load(tmp_path / "x.hdf5")
