import json

import numpy as np
import pytest

from action_tokenizers.data import Episodes, open_shards
from action_tokenizers.data.readers.recording import EPISODE_NAMES
from action_tokenizers.errors import FormatError


@pytest.mark.parametrize(
    ("folder", "episodes", "frames", "dim", "fps"),
    [
        ("adroit_door", 25, 6729, 28, 100.0),
        ("crazyflie_100hz", 59, 62596, 4, 100.0),
        ("aloha_sim_mini", 4, 1700, 14, 50.0),
        ("umi_cup_mini", 1, 399, 7, 10.0),
        ("donkeycar_tub", 1, 1000, 2, 20.0),
        ("bridge_mini", 25, 250, 7, 5.0),
    ],
)
def test_recorded_sets(shared_data, folder, episodes, frames, dim, fps):
    read = Episodes.load(shared_data / folder)
    assert (len(read), read.frames, read.action_dim, read.fps) == (episodes, frames, dim, fps)
    assert read.source == folder
    facts = json.loads((shared_data / folder / "dataset.json").read_text())
    largest = np.max([actions.max(axis=0) for actions in read.actions], axis=0)
    np.testing.assert_allclose(largest, facts["action_max"], atol=1e-4, rtol=1e-4)
    assert read.action_names == (tuple(facts["action_names"]) if "action_names" in facts else None)


def test_rows_are_ordered_by_episode_and_frame(write_parquet, tmp_path, walks):
    actions = np.concatenate(walks((5, 7), 2))
    columns = {
        "episode_index": np.repeat([4, 9], (5, 7)),
        "frame_index": np.concatenate([np.arange(5), np.arange(7)]),
        "action": actions,
    }
    order = np.random.default_rng(0).permutation(12)
    path = write_parquet(tmp_path / "x.parquet", {name: column[order] for name, column in columns.items()})
    read = Episodes.load(path)
    assert read.names == (4, 9)
    np.testing.assert_array_equal(np.concatenate(read.actions), actions)


@pytest.mark.parametrize("column", EPISODE_NAMES)
def test_episode_columns_of_every_name(write_parquet, tmp_path, column):
    path = write_parquet(tmp_path / "x.parquet", {column: [3, 3, 5], "actions": np.zeros((3, 2))})
    assert Episodes.load(path).names == (3, 5)


@pytest.mark.parametrize("column", ["demo_id", "trajectory", "rollout", "ep"])
def test_the_usual_names_of_episode_columns(write_parquet, tmp_path, column):
    path = write_parquet(tmp_path / "x.parquet", {column: [3, 3, 5], "action": np.zeros((3, 2))})
    assert Episodes.load(path).lengths == (2, 1)


def test_a_column_named_by_the_caller_tells_episodes_apart(write_parquet, tmp_path):
    columns = {"take": [3, 3, 5], "episode_index": [0, 0, 0], "action": np.zeros((3, 2))}
    path = write_parquet(tmp_path / "x.parquet", columns)
    assert Episodes.load(path, episode="take").names == (3, 5)
    for wrong in ("shot", "action"):
        with pytest.raises(
            FormatError, match=rf"episode column '{wrong}' .* got take, episode_index: name .* episode="
        ):
            Episodes.load(path, episode=wrong)


def test_one_file_in_which_nothing_tells_episodes_apart_is_doubted(write_parquet, tmp_path):
    path = write_parquet(tmp_path / "x.parquet", {"take": [3, 3, 5], "action": np.zeros((3, 2))})
    with pytest.warns(UserWarning, match=r"no column of x.parquet .* 3 rows are taken as one episode: .* episode="):
        assert Episodes.load(path).lengths == (3,)
    assert Episodes.load(path, episode="take").lengths == (2, 1)


def test_lists_do_not_name_episodes(write_parquet, tmp_path):
    columns = {"trajectory": np.zeros((3, 2)), "traj_id": [1, 1, 2], "action": np.zeros((3, 2))}
    assert Episodes.load(write_parquet(tmp_path / "x.parquet", columns)).names == (1, 2)


def test_episodes_named_by_text_are_numbered_as_they_appear(write_parquet, tmp_path):
    ids = np.array(["run b", "run b", "run a"], object)
    path = write_parquet(tmp_path / "x.parquet", {"episode_id": ids, "action": np.arange(3.0)})
    read = Episodes.load(path)
    assert read.names == (0, 1)
    assert [actions.ravel().tolist() for actions in read.actions] == [[0, 1], [2]]


def test_several_files_with_and_without_episode_numbers(write_parquet, tmp_path, walks):
    a, b = walks((4, 6), 2)
    for name, actions in (("one", a), ("two", b)):
        write_parquet(tmp_path / "files" / f"{name}.parquet", {"action": actions})
    read = Episodes.load(tmp_path / "files")
    np.testing.assert_array_equal(read.actions[1], b)
    for number, (name, actions) in enumerate((("one", a), ("two", b))):
        columns = {"action": actions, "episode_index": np.full(len(actions), 7 - number)}
        write_parquet(tmp_path / "numbered" / "deep" / f"{name}.parquet", columns)
    numbered = Episodes.load(tmp_path / "numbered")
    assert numbered.names == (6, 7)
    np.testing.assert_array_equal(numbered.actions[0], b)


@pytest.mark.parametrize(("facts", "fps"), [({"fps": 12}, 12.0), ({"hz": 0}, None), ([], None)])
def test_facts_beside_the_file(write_parquet, tmp_path, facts, fps):
    path = write_parquet(tmp_path / "x.parquet", {"action": np.zeros((3, 2)), "episode_index": [0, 0, 0]})
    (tmp_path / "dataset.json").write_text(json.dumps(facts))
    assert Episodes.load(path).fps == fps
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(FormatError, match=r"JSON in dataset.json"):
        Episodes.load(path)


def test_no_action_column_lists_what_is_there(write_parquet, tmp_path):
    columns = {"torque": np.zeros((3, 4)), "ep": np.array(["a", "a", "a"], object)}
    path = write_parquet(tmp_path / "x.parquet", columns)
    with pytest.raises(FormatError, match=r"an action column .* in x.parquet, got torque \(4\): name .* action="):
        Episodes.load(path)
    assert Episodes.load(path, action="torque").action_dim == 4


def test_a_long_list_of_columns_is_cut(write_parquet, tmp_path):
    path = write_parquet(tmp_path / "x.parquet", {f"c{i}": np.zeros(2) for i in range(100)})
    with pytest.raises(FormatError, match=r"c23 \(1\), \.\.\.: name"):
        Episodes.load(path)


def test_no_rows(write_parquet, tmp_path):
    path = write_parquet(tmp_path / "x.parquet", {"action": np.zeros((0, 2)), "episode_index": np.zeros(0, int)})
    with pytest.raises(FormatError, match="expected rows"):
        Episodes.load(path)


def test_folders_named_like_files_are_passed_over(write_parquet, tmp_path, walks):
    actions = walks((5,), 2)[0]
    (tmp_path / "set" / "a.parquet").mkdir(parents=True)
    with pytest.raises(FormatError, match="known layouts"):
        Episodes.load(tmp_path / "set")
    write_parquet(tmp_path / "set" / "b.parquet", {"action": actions, "episode_index": np.zeros(5, int)})
    assert Episodes.load(tmp_path / "set").lengths == (5,)
    assert open_shards(tmp_path / "set").files.files == ("b.parquet",)
