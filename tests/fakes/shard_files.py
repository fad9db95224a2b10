"""Parquet data sets cut into files and row groups wherever a test wants, and ways to break one of the files."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from action_tokenizers.data import Episodes, smooth_episodes


def recorded(count: int = 12, action_dim: int = 3, key: str = "default", seed: int = 0) -> Episodes:
    """Episodes of 3 to 40 frames with states, by the folder name that `write_frames` is given."""
    return smooth_episodes(count, length=(3, 40), action_dim=action_dim, seed=seed, key=key, fps=10.0)


def write_frames(
    folder: Path,
    episodes: Episodes,
    cuts: Sequence[int] = (),
    *,
    rows_per_group: int = 7,
    frame: bool = True,
    dtypes: Sequence[str] = ("float32",),
    ids: Sequence[Any] | None = None,
    fps: float | None = 10.0,
) -> Path:
    """Write one row per frame, cut into files at the rows `cuts`; equal cuts leave a file without rows."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    folder.mkdir(parents=True, exist_ok=True)
    actions, states = np.concatenate(episodes.actions), np.concatenate(episodes.states)
    names = np.repeat(np.array(episodes.names if ids is None else ids), episodes.lengths)
    frames = np.concatenate([np.arange(length) for length in episodes.lengths])
    borders = [0, *cuts, len(actions)]
    for number, (begin, end) in enumerate(itertools.pairwise(borders)):
        kind = dtypes[number % len(dtypes)]
        columns = {
            "episode_index": pa.array(names[begin:end].tolist(), pa.string() if ids is not None else pa.int64()),
            "action": lists(actions[begin:end].astype(kind)),
            "observation.state": lists(states[begin:end]),
            "camera": pa.array([b"never read"] * (end - begin), pa.binary()),
        }
        if frame:
            columns["frame_index"] = pa.array(frames[begin:end])
        parquet.write_table(pa.table(columns), folder / f"file-{number:03d}.parquet", row_group_size=rows_per_group)
    if fps is not None:
        (folder / "dataset.json").write_text(json.dumps({"hz": fps}))
    return folder


def lists(matrix: np.ndarray) -> Any:
    """Return a parquet column of lists."""
    import pyarrow as pa

    offsets = np.arange(len(matrix) + 1, dtype=np.int32) * matrix.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(matrix.ravel()))


def truncate(file: Path) -> None:
    """Cut the footer off: the file cannot be opened."""
    file.write_bytes(file.read_bytes()[:-20])


def spoil_value(file: Path, column: str, row: int, dim: int, value: float | str) -> None:
    """Put a number into a column of lists, of one that holds text now if it is text."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    table = parquet.read_table(file)
    rows = table.column(column).to_pylist()
    if isinstance(value, str):
        spoiled = pa.array([[str(number) for number in numbers] for numbers in rows])
    else:
        rows[row][dim] = value
        spoiled = pa.array(rows, pa.list_(pa.float32()))
    parquet.write_table(table.set_column(table.column_names.index(column), column, spoiled), file, row_group_size=7)


def spoil_actions(file: Path) -> None:
    """Overwrite the last page of actions: the file opens, its index reads, its actions do not."""
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(file) as open_file:
        metadata = open_file.metadata
        group = metadata.row_group(metadata.num_row_groups - 1)
        column = next(
            group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema.startswith("action")
        )
        offset, size = column.data_page_offset, column.total_compressed_size
    data = bytearray(file.read_bytes())
    data[offset : offset + min(size, 24)] = b"\xff" * min(size, 24)
    file.write_bytes(bytes(data))
