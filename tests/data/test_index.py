import numpy as np
import pytest

from action_tokenizers.data.index import BLOCK, BLOCKS, _sampled, contents_of, runs_of, tabulate
from action_tokenizers.data.readers.frames import FrameFiles
from action_tokenizers.data.readers.parquet import frame_files
from action_tokenizers.errors import FormatError
from tests.fakes.shard_files import recorded, truncate, write_frames

pytest.importorskip("pyarrow")


def files_of(root) -> FrameFiles:
    return frame_files(root)


def index(root):
    files = files_of(root)
    found = []
    for number in range(len(files.files)):
        try:
            found.append(runs_of(files, number))
        except FormatError as error:
            found.append(str(error))
    return tabulate(files, found)


def cuts_of(rng, rows: int) -> list[int]:
    return sorted(rng.integers(0, rows + 1, rng.integers(0, 9)).tolist())


@pytest.mark.parametrize("seed", range(12))
def test_every_episode_is_in_the_table_once_wherever_files_are_cut(tmp_path, seed):
    episodes, rng = recorded(seed=seed), np.random.default_rng(seed)
    cuts = cuts_of(rng, episodes.frames)
    table = index(write_frames(tmp_path, episodes, cuts))
    np.testing.assert_array_equal(table.name, episodes.names)
    np.testing.assert_array_equal(table.length, episodes.lengths)
    np.testing.assert_array_equal(table.lengths, episodes.lengths)
    # where it begins, counted over all files, is where it was written
    first = np.cumsum(table.rows) - table.rows
    np.testing.assert_array_equal(first[table.file] + table.row, np.cumsum(episodes.lengths) - episodes.lengths)
    assert (table.lost, table.broken, table.dims) == (0, {}, (3, 3))
    assert table.rows.sum() == episodes.frames


def test_a_file_within_one_long_episode_begins_none(tmp_path):
    episodes = recorded(1)
    length = episodes.lengths[0]
    table = index(write_frames(tmp_path, episodes, range(3, length, 3)))
    assert table.length.tolist() == [length]
    assert table.file.tolist() == [0]


def test_text_names_are_numbered_in_the_order_of_appearance_as_a_whole_reading_does(tmp_path):
    from action_tokenizers.data import Episodes

    episodes = recorded(5)
    root = write_frames(tmp_path, episodes, [10, 40], ids=["e", "c", "d", "a", "b"])
    assert index(root).name.tolist() == list(Episodes.load(root).names) == [0, 1, 2, 3, 4]


def test_an_episode_that_comes_back_is_refused(tmp_path):
    episodes = recorded(3)
    a, b, c = episodes.lengths
    root = write_frames(tmp_path, episodes, [a, a + b], ids=["x", "y", "x"])
    with pytest.raises(FormatError, match=r"got episode 0 in file-000\.parquet and again in file-002\.parquet"):
        index(root)
    del c


@pytest.mark.parametrize(("frame", "lost", "kept"), [(True, 2, 2), (False, 2, 2)])
def test_what_a_broken_file_may_cut_off_is_left_out(tmp_path, frame, lost, kept):
    """Episode 1 goes on in the broken file, episode 3 comes out of it; 2 is within it, 0 and 4 are whole."""
    episodes = recorded(5, seed=3)
    ends = np.cumsum(episodes.lengths)
    root = write_frames(tmp_path, episodes, [ends[1] - 1, ends[3] - 1], frame=frame)
    truncate(root / "file-001.parquet")
    table = index(root)
    assert table.name.tolist() == [0, 4]
    assert (table.lost, len(table.name), list(table.broken)) == (lost, kept, [1])
    assert "file-001.parquet" in table.broken[1]


def test_a_file_that_begins_with_frame_0_has_lost_nothing(tmp_path):
    episodes = recorded(5, seed=3)
    ends = np.cumsum(episodes.lengths)
    for frame, names in ((True, [0, 3, 4]), (False, [0, 4])):
        root = write_frames(tmp_path / str(frame), episodes, [ends[1] - 1, ends[2]], frame=frame)
        truncate(root / "file-001.parquet")
        assert index(root).name.tolist() == names


def test_broken_files_at_either_end(tmp_path):
    episodes = recorded(5, seed=3)
    ends = np.cumsum(episodes.lengths)
    root = write_frames(tmp_path, episodes, [ends[0] + 1, ends[3]])
    truncate(root / "file-000.parquet")
    truncate(root / "file-002.parquet")
    table = index(root)
    assert table.name.tolist() == [2]  # 1 began in the first, 3 may go on in the last
    assert table.lost == 2


def test_another_action_dim_makes_a_file_a_broken_one(tmp_path):
    root = write_frames(tmp_path, recorded(4), [recorded(4).frames])
    write_frames(tmp_path / "other", recorded(2, action_dim=4))
    (tmp_path / "other" / "file-000.parquet").replace(root / "file-001.parquet")
    (tmp_path / "other" / "dataset.json").unlink()
    table = index(root)
    expected = r"expected actions of 3 dims as in file-000.parquet, got 4 in file-001.parquet"
    assert table.broken[1].startswith(expected)


def test_no_rows_at_all(tmp_path):
    root = write_frames(tmp_path, recorded(2), [0])
    (root / "file-001.parquet").unlink()
    with pytest.raises(FormatError, match=r"expected rows in .*, got none in 1 files"):
        index(root)


def test_a_lerobot_file_of_one_episode_is_named_by_its_file(tmp_path):
    episodes = recorded(3)
    a, b, _ = episodes.lengths
    root = write_frames(tmp_path, episodes, [a, a + b], ids=["0", "0", "0"])
    files = []
    for number, file in enumerate(sorted(root.glob("*.parquet"))):
        files.append(file.rename(root / f"episode_{number + 5:06d}.parquet").name)
    described = FrameFiles(root, tuple(files), ("action",), (), "episode_index", None, True, None, None)
    table = tabulate(described, [runs_of(described, number) for number in range(3)])
    assert table.name.tolist() == [5, 6, 7]
    assert table.dims == (3, 0)


def test_keeping_some(tmp_path):
    table = index(write_frames(tmp_path, recorded(6))).keep(np.array([4, 1]))
    assert table.names.tolist() == [1, 4]
    assert table.lengths.tolist() == [recorded(6).lengths[i] for i in (1, 4)]


@pytest.mark.parametrize("frame", [True, False])
def test_an_episode_on_both_sides_of_a_broken_file_is_lost_once(tmp_path, frame):
    episodes = recorded(3, seed=3)
    a, b, _ = episodes.lengths
    root = write_frames(tmp_path, episodes, [a + 1, a + b - 1], frame=frame)
    truncate(root / "file-001.parquet")
    table = index(root)
    assert table.name.tolist() == [0, 2]
    assert table.lost == 1


def test_contents_are_those_of_the_columns_asked_for(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    values = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
    columns = {"action": list(values), "state": list(values), "other": list(values)}

    def digest(name: str, statistics: bool = False, **changed) -> str:
        table = pa.table(columns | changed)
        settings = {"write_statistics": statistics, "compression": "none", "use_dictionary": False}
        parquet.write_table(table, tmp_path / name, row_group_size=300, **settings)
        return contents_of(tmp_path / name, ["action", "state"])

    other = values.copy()
    other[500, 2] += 1
    assert digest("a") == digest("b")
    assert digest("a", other=list(other)) == digest("b")  # not read, and without statistics nobody knows
    assert digest("a", other=list(other * 100), statistics=True) != digest("b", statistics=True)
    assert len({digest("a"), digest("b", action=list(other)), digest("c", state=list(other))}) == 3
    assert (tmp_path / "a").stat().st_size == (tmp_path / "b").stat().st_size


def test_a_sample_of_the_stored_bytes_is_all_of_few_and_evenly_spaced_of_many():
    few = [(4, BLOCK), (3 * BLOCK, BLOCK * (BLOCKS - 1))]
    assert _sampled(few) == few
    assert _sampled([]) == []
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 40_000, 400).tolist()
    begins = (np.cumsum([0, *lengths[:-1]]) + 10 * np.arange(400)).tolist()  # 10 bytes of others between them
    places = list(zip(begins, lengths, strict=True))
    stored = np.concatenate([np.arange(begin, begin + length) for begin, length in places])
    got = np.concatenate([np.arange(begin, begin + length) for begin, length in _sampled(places)])
    firsts = np.linspace(0, len(stored) - BLOCK, BLOCKS).astype(int)
    np.testing.assert_array_equal(got, np.concatenate([stored[first : first + BLOCK] for first in firsts]))


def test_of_a_large_file_only_what_is_said_to_be_is_noticed(tmp_path, monkeypatch):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("action_tokenizers.data.index.BLOCK", 64)
    values = np.random.default_rng(0).normal(size=4000)
    middle = np.argsort(np.abs(values))[:1000]  # no extremes

    def digest(**changed: float) -> str:
        others = values.copy()
        for at, value in changed.items():
            others[int(at[1:])] = value
        plain = {"compression": "none", "use_dictionary": False}
        parquet.write_table(pa.table({"action": others}), tmp_path / "x.parquet", **plain)
        return contents_of(tmp_path / "x.parquet", ["action"])

    noticed = [digest(**{f"_{at}": 0.0}) != digest() for at in middle[::50]]
    assert 0 < sum(noticed) < len(noticed)
    assert digest(**{f"_{middle[1]}": 99.0}) != digest()  # an extreme
