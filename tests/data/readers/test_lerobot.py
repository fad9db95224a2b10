import json

import numpy as np
import pytest

from action_tokenizers.data import Episodes
from action_tokenizers.data.shards import open_shards
from action_tokenizers.errors import FormatError

V2 = {
    "codebase_version": "v2.1",
    "fps": 20,
    "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
}
V3 = {
    "codebase_version": "v3.0",
    "fps": 20,
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}


def rows(episode: int, actions, first: int = 0, **columns):
    count = len(actions)
    return {
        "action": actions,
        "episode_index": np.full(count, episode),
        "frame_index": np.arange(first, first + count),
        **columns,
    }


def stacked(*tables):
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


@pytest.mark.parametrize("folder", ["g1_inspire_bottle", "pusht"])
def test_v21_and_v30_equal_the_flat_file(shared_data, equal_episodes, folder):
    flat = Episodes.load(shared_data / folder)
    read = Episodes.load(shared_data / folder / "original")
    # the v3.0 state of pusht is the agent alone, the flat one the agent and the block
    equal_episodes(read, flat, states=folder != "pusht")
    assert read.fps == flat.fps
    assert read.names == tuple(range(len(flat)))


def test_v30_states_are_the_first_dims_of_the_flat_ones(shared_data):
    flat, read = (Episodes.load(shared_data / "pusht" / name) for name in ("episodes.parquet", "original"))
    for mine, theirs in zip(read.states, flat.states, strict=True):
        np.testing.assert_allclose(mine, theirs[:, :2], atol=1e-3)
    assert read.action_names == ("motor_0", "motor_1")


def test_v20_with_float64_and_wrong_splits(shared_data, equal_episodes):
    read = Episodes.load(shared_data / "gr1_picknplace" / "original")
    equal_episodes(read, Episodes.load(shared_data / "gr1_picknplace"))
    assert read.action_dim == 44
    assert read.actions[0].dtype == np.float32


def test_names_nested_one_deeper(shared_data):
    read = Episodes.load(shared_data / "g1_inspire_bottle" / "original")
    assert read.action_names[0] == "kLeftShoulderPitch"
    assert len(read.action_names) == 26


def test_wrong_totals_and_missing_files_are_tolerated(write_lerobot, walks):
    a, b = walks((5, 8), 3)
    info = {**V2, "total_episodes": 100, "splits": {"train": "0:100"}, "features": {"action": {"shape": [30]}}}
    root = write_lerobot(
        info,
        {
            "data/chunk-000/episode_000002.parquet": rows(2, a),
            "data/chunk-000/episode_000007.parquet": rows(7, b),
        },
    )
    read = Episodes.load(root)
    assert read.names == (2, 7)
    assert (read.source, read.fps, read.states) == ("robot_set", 20.0, None)
    np.testing.assert_array_equal(read.actions[1], b)


def test_one_file_per_episode_goes_by_the_file_name(write_lerobot, walks):
    """Folders put together from several recordings keep episode_index 0 in every file."""
    a, b = walks((5, 8), 3)
    files = {f"data/chunk-000/episode_{i:06d}.parquet": rows(0, x) for i, x in enumerate((a, b))}
    read = Episodes.load(
        write_lerobot({**V2, "data_path": "data/chunk-{chunk_index:03d}/episode_{episode_index:06d}.parquet"}, files)
    )
    assert read.names == (0, 1)
    assert read.lengths == (5, 8)


@pytest.mark.parametrize("fixed", [False, True])
def test_v3_episodes_over_several_files_and_out_of_order(write_lerobot, walks, fixed):
    a, b, c = walks((6, 9, 4), 2)
    shuffled = {name: column[::-1] for name, column in rows(5, c).items()}
    root = write_lerobot(
        V3,
        {
            "data/chunk-000/file-000.parquet": stacked(rows(1, a), rows(3, b[:4])),
            "data/chunk-000/file-001.parquet": stacked(rows(3, b[4:], first=4), shuffled),
            "data/chunk-001/file-000.parquet": {name: column[:0] for name, column in rows(9, a).items()},
        },
        fixed,
    )
    read = Episodes.load(root)
    assert read.names == (1, 3, 5)
    for mine, theirs in zip(read.actions, (a, b, c), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_frame_that_is_there_twice_is_refused(write_lerobot, walks):
    (a,) = walks((6,), 2)
    files = {f"data/chunk-000/file-00{i}.parquet": rows(1, a) for i in range(2)}
    with pytest.raises(FormatError, match="frame 0 of episode 1 twice"):
        Episodes.load(write_lerobot(V3, files))


def test_actions_and_state_without_their_usual_names(write_lerobot, walks):
    a, s = walks((6,), 2)[0], walks((6,), 5)[0]
    table = {("actions" if name == "action" else name): column for name, column in rows(0, a, state=s).items()}
    read = Episodes.load(write_lerobot(V3, {"data/chunk-000/file-000.parquet": table}))
    np.testing.assert_array_equal(read.actions[0], a)
    np.testing.assert_array_equal(read.states[0], s)


def test_split_columns_are_joined_in_schema_order(write_lerobot, walks):
    (a,) = walks((6,), 5)
    table = {
        "action.right_arm.abs_qpos": a[:, :2],
        "action.left_arm.abs_qpos": a[:, 2:4],
        "action.gripper": a[:, 4],
        "episode_index": np.zeros(6, int),
    }
    names = {
        "action.right_arm.abs_qpos": ["r0", "r1"],
        "action.left_arm.abs_qpos": ["l0", "l1"],
        "action.gripper": ["g"],
    }
    info = {**V3, "features": {column: {"names": value} for column, value in names.items()}}
    root = write_lerobot(info, {"data/chunk-000/file-000.parquet": table})
    read = Episodes.load(root)
    np.testing.assert_array_equal(read.actions[0], a)
    assert read.action_names == ("r0", "r1", "l0", "l1", "g")
    left = Episodes.load(root, action="action.left_arm")
    np.testing.assert_array_equal(left.actions[0], a[:, 2:4])


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["x", "y"], ("x", "y")),
        ([["x", "y"]], ("x", "y")),
        ({"motors": ["x", "y"]}, ("x", "y")),
        ({"x": 0, "y": 1}, ("x", "y")),
        (None, None),
        (["x", "y", "z"], None),
        (7, None),
    ],
)
def test_action_names_in_all_their_forms(write_lerobot, walks, names, wanted):
    info = {**V3, "features": {"action": {"names": names}}}
    root = write_lerobot(info, {"data/chunk-000/file-000.parquet": rows(0, walks((4,), 2)[0])})
    assert Episodes.load(root).action_names == wanted


@pytest.mark.parametrize("info", [{}, {"fps": None}, {"fps": 0, "features": []}, {"data_path": "other/{x}.parquet"}])
def test_an_info_that_says_little_is_enough(write_lerobot, walks, info):
    root = write_lerobot(info, {"data/chunk-000/file-000.parquet": rows(0, walks((4,), 2)[0])})
    assert Episodes.load(root).fps is None


def test_a_template_is_no_pattern(write_lerobot, walks):
    mine, other = walks((4, 6), 2)
    files = {"data/[ab]/file-000.parquet": rows(0, mine), "data/a/file-000.parquet": rows(1, other)}
    read = Episodes.load(write_lerobot({"data_path": "data/[ab]/file-{file_index:03d}.parquet"}, files))
    assert read.lengths == (4,)


@pytest.mark.parametrize("template", ["/etc/{x}.parquet", "../other/{x}.parquet"])
def test_a_template_never_leads_outside(write_lerobot, write_parquet, walks, tmp_path, template):
    write_parquet(tmp_path / "other" / "x.parquet", rows(0, walks((4,), 2)[0]))
    with pytest.raises(FormatError, match="expected parquet files"):
        Episodes.load(write_lerobot({**V3, "data_path": template}, {}))


def test_no_data_files_say_what_to_fetch(write_lerobot):
    with pytest.raises(FormatError, match=r"data/chunk-\{chunk_index.* in robot_set, got none: fetch data/"):
        Episodes.load(write_lerobot(V3, {}))


def test_a_missing_column_lists_those_there_are(write_lerobot, walks):
    root = write_lerobot(V3, {"data/chunk-000/file-000.parquet": rows(0, walks((4,), 3)[0])})
    with pytest.raises(FormatError, match=r"'torque'.*got action \(3\), episode_index \(1\).*with action="):
        Episodes.load(root, action="torque")
    with pytest.raises(FormatError, match=r"state column 'pose'.*with state="):
        Episodes.load(root, state="pose")


def test_files_of_different_columns_or_widths_are_refused(write_lerobot, walks):
    narrow, wide = walks((4,), 2)[0], walks((4,), 3)[0]
    other = {"actions": narrow, "episode_index": np.ones(4, int), "frame_index": np.arange(4)}
    path = "data/chunk-000/file-00{}.parquet"
    root = write_lerobot(V3, {path.format(0): rows(0, narrow), path.format(1): rows(1, wide)})
    with pytest.raises(FormatError, match="action of one width in all files"):
        Episodes.load(root)
    (root / path.format(1)).unlink()
    pytest.importorskip("pyarrow")
    del other["frame_index"]
    _overwrite(root / path.format(1), other)
    with pytest.raises(FormatError, match=r"file-001.parquet"):
        Episodes.load(root)


def _overwrite(path, columns):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    lists = {name: list(column) if column.ndim == 2 else column for name, column in columns.items()}
    parquet.write_table(pa.table(lists), path)


def test_without_episode_numbers_there_are_no_episodes(write_lerobot, walks):
    table = {"action": walks((4,), 2)[0]}
    root = write_lerobot(V3, {"data/chunk-000/file-000.parquet": table})
    for read in (Episodes.load, open_shards):
        with pytest.raises(FormatError, match="column episode_index"):
            read(root)


def test_the_names_of_the_files_may_number_the_episodes_alone(write_lerobot, walks):
    a, b = walks((5, 8), 3)
    files = {f"data/chunk-000/episode_{i:06d}.parquet": {"action": x} for i, x in ((4, a), (9, b))}
    root = write_lerobot(V2, files)
    for read in (Episodes.load(root), open_shards(root).load()):
        assert read.names == (4, 9)
        np.testing.assert_array_equal(read.actions[1], b)


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_broken_info_is_refused(write_lerobot, text):
    root = write_lerobot(V3, {})
    (root / "meta" / "info.json").write_text(text)
    with pytest.raises(FormatError, match=r"meta/info.json of robot_set"):
        Episodes.load(root)


def test_a_truncated_file_is_named(write_lerobot, walks):
    root = write_lerobot(V3, {f"data/chunk-000/file-00{i}.parquet": rows(i, walks((400,), 2)[0]) for i in range(2)})
    file = root / "data/chunk-000/file-001.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FormatError, match=r"whole parquet file at file-001.parquet"):
        Episodes.load(root)


def test_info_may_hold_any_json(write_lerobot, walks):
    info = json.loads('{"features": {"action": {"names": {"axes": {"x": 0, "y": 1}}}}, "fps": "30"}')
    root = write_lerobot(info, {"data/chunk-000/file-000.parquet": rows(0, walks((4,), 2)[0])})
    read = Episodes.load(root)
    assert (read.action_names, read.fps) == (("x", "y"), 30.0)


def test_a_data_path_that_names_no_file_is_not_followed(write_lerobot):
    root = write_lerobot({**V3, "data_path": "."}, {"data/chunk-000/file-000.parquet": rows(3, np.zeros((4, 2)))})
    assert Episodes.load(root).names == (3,)


def test_episode_numbers_in_lists_are_refused(write_lerobot):
    columns = {**rows(3, np.zeros((4, 2))), "episode_index": np.zeros((4, 2), int)}
    root = write_lerobot(V3, {"data/chunk-000/file-000.parquet": columns})
    with pytest.raises(FormatError, match=r"readable data set at .*robot_set, got \w+Error: .*; copy or fetch it"):
        Episodes.load(root)
