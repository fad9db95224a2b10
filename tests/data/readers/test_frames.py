import pytest

from action_tokenizers.cli import DEMO_DATA
from action_tokenizers.data.readers import lerobot
from action_tokenizers.data.readers import parquet as flat
from action_tokenizers.data.readers.frames import described_by
from action_tokenizers.errors import FormatError
from tests.fakes.shard_files import recorded, truncate, write_frames

pytest.importorskip("pyarrow")


def test_a_flat_folder_is_described_as_it_is_read(tmp_path):
    root = write_frames(tmp_path / "set", recorded(), [50, 50, 90])
    found, whole = flat.frame_files(root), flat.read(root)
    assert found.files == tuple(f"file-{i:03d}.parquet" for i in range(4))
    assert (found.action, found.state) == (("action",), ("observation.state",))
    assert (found.episode, found.frame, found.numbered) == ("episode_index", "frame_index", False)
    assert (found.fps, found.doubt) == (whole.fps, "") == (10.0, "")


def test_a_lerobot_folder_is_described_as_it_is_read():
    found, whole = lerobot.frame_files(DEMO_DATA), lerobot.read(DEMO_DATA)
    assert found.files == ("data/chunk-000/file-000.parquet",)
    assert (found.fps, found.action_names) == (whole.fps, whole.action_names)
    assert found.numbered
    assert found.frame == "frame_index"


def test_states_are_left_out_where_nobody_wants_them(tmp_path):
    assert flat.frame_files(write_frames(tmp_path, recorded()), state=False).state == ()


def test_one_file_that_tells_no_episodes_apart_is_doubted(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"action": [[1.0], [2.0]]}), tmp_path / "x.parquet")
    assert "tells episodes apart" in flat.frame_files(tmp_path / "x.parquet").doubt


def test_the_first_file_with_rows_that_can_be_read_describes_them_all(tmp_path):
    root = write_frames(tmp_path, recorded(), [0, 60, 120])  # the first has no rows
    truncate(root / "file-001.parquet")
    files = sorted(root.glob("*.parquet"))
    assert described_by(files, lambda file: file.name) == "file-002.parquet"


def test_without_rows_an_empty_file_describes_and_without_that_the_first_error_is_told(tmp_path):
    root = write_frames(tmp_path, recorded(), [0])
    truncate(root / "file-001.parquet")
    files = sorted(root.glob("*.parquet"))
    assert described_by(files, lambda file: file.name) == "file-000.parquet"
    truncate(files[0])
    with pytest.raises(FormatError, match=r"whole parquet file at file-000\.parquet"):
        described_by(files, lambda file: file.name)
