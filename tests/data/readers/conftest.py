import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from action_tokenizers.data import Episodes


@pytest.fixture
def equal_episodes() -> Callable[..., None]:
    """Assert that two recordings hold the same actions (and states) in the same order."""

    def check(got: Episodes, wanted: Episodes, states: bool = True) -> None:
        assert got.lengths == wanted.lengths
        for mine, theirs in zip(got.actions, wanted.actions, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        if states:
            for mine, theirs in zip(got.states, wanted.states, strict=True):
                np.testing.assert_array_equal(mine, theirs)

    return check


@pytest.fixture
def write_parquet() -> Callable[..., Path]:
    """Write columns to a parquet file: matrices become lists, of a fixed size where asked."""
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def column(values: Any, fixed: bool) -> Any:
        array = np.asarray(values)
        if array.ndim < 2:
            return pa.array(array if array.dtype != object else list(values))
        flat = pa.array(array.ravel())
        if fixed:
            return pa.FixedSizeListArray.from_arrays(flat, array.shape[1])
        return pa.ListArray.from_arrays(np.arange(len(array) + 1, dtype=np.int32) * array.shape[1], flat)

    def write(path: Path, columns: Mapping[str, Any], fixed: bool = False, rows_per_group: int = 7) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.table({name: column(values, fixed) for name, values in columns.items()})
        parquet.write_table(table, path, row_group_size=rows_per_group)
        return path

    return write


@pytest.fixture
def write_lerobot(tmp_path: Path, write_parquet: Callable[..., Path]) -> Callable[..., Path]:
    """Write a small LeRobot folder: one mapping of columns per data file."""

    def write(info: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]], fixed: bool = False) -> Path:
        root = tmp_path / "robot_set"
        (root / "meta").mkdir(parents=True)
        (root / "meta" / "info.json").write_text(json.dumps(info))
        for name, columns in files.items():
            write_parquet(root / name, columns, fixed)
        return root

    return write


@pytest.fixture
def walks() -> Callable[..., list[np.ndarray]]:
    """Random walks `(t_i, d)`, float32."""

    def make(lengths: Sequence[int], dim: int, seed: int = 0) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        return [rng.normal(size=(n, dim)).cumsum(axis=0).astype(np.float32) for n in lengths]

    return make
