"""Flat parquet: one row per frame, in one file or several, with an optional dataset.json beside it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from action_tokenizers.data.readers.columns import (
    join_tables,
    numeric_columns,
    read_columns,
    row_count,
    scalar_columns,
    side_by_side,
)
from action_tokenizers.data.readers.frames import FrameFiles, described_by, in_order
from action_tokenizers.data.readers.recording import (
    EPISODE_NAMES,
    MOST_LISTED,
    Recording,
    State,
    pick_action,
    pick_state,
    positive,
    split_rows,
)
from action_tokenizers.errors import FormatError

__all__ = ["frame_files", "numbers", "read"]

FRAME_NAMES = ("frame_index", "step_index")


def read(path: Path, *, action: str | None = None, state: State = None, episode: str | None = None) -> Recording:
    """Return the episodes of a parquet file, or of all parquet files below a folder.

    `episode` names the column that tells the episodes apart; None looks for the common names.
    """
    files = _files(path)
    columns = numeric_columns(files[0])
    where = files[0].name
    parts = {"action": pick_action(columns, action, where), "state": pick_state(columns, state, where)}
    frame = next((name for name in FRAME_NAMES if name in columns), None)
    episode = _episode_column(files[0], episode)
    wanted = list(dict.fromkeys([*parts["action"], *parts["state"], *(name for name in (episode, frame) if name)]))
    tables = []
    for number, file in enumerate(files):
        table = read_columns(file, wanted)
        rows = side_by_side(table, parts)
        # without a column that tells episodes apart, every file is one episode
        rows["episode"] = table[episode] if episode else np.full(len(rows["action"]), number)
        tables.append(rows | ({"frame": table[frame]} if frame else {}))
    joined = join_tables(tables, path.name)
    ids = numbers(joined.pop("episode"))
    names, split = split_rows(joined, ids, joined.pop("frame", None), path.name)
    facts = _facts(path if path.is_dir() else path.parent)
    return Recording(
        split["action"],
        split.get("state"),
        positive(facts.get("hz", facts.get("fps"))),
        names,
        _action_names(facts, split["action"][0].shape[1]),
        "" if episode or len(files) > 1 else _doubt(where, len(ids)),
    )


def frame_files(
    path: Path, *, action: str | None = None, state: State = None, episode: str | None = None
) -> FrameFiles:
    """Describe a parquet file, or all parquet files below a folder, for who reads them file by file."""
    files = _files(path)
    root = path if path.is_dir() else path.parent

    def describe(file: Path) -> tuple[list[str], list[str], str | None, str | None, int]:
        columns = numeric_columns(file)
        actions, states = pick_action(columns, action, file.name), pick_state(columns, state, file.name)
        frame = next((name for name in FRAME_NAMES if name in columns), None)
        dim = sum(int(columns[name].strip("()")) for name in actions)
        return actions, states, _episode_column(file, episode), frame, dim

    actions, states, column, frame, dim = described_by(files, describe)
    facts = _facts(root)
    return FrameFiles(
        root,
        tuple(file.relative_to(root).as_posix() for file in files),
        tuple(actions),
        tuple(states),
        column,
        frame,
        False,
        positive(facts.get("hz", facts.get("fps"))),
        _action_names(facts, dim),
        "" if column or len(files) > 1 else _doubt(files[0].name, row_count(files[0])),
        "*.parquet" if path.is_dir() and not _single(path).is_file() else "",
    )


def _episode_column(file: Path, wanted: str | None) -> str | None:
    """Return the column that tells episodes apart, None where there is none of a common name."""
    there = scalar_columns(file)  # episode ids may be text, which numeric_columns leaves out
    if wanted is None:
        return next((name for name in EPISODE_NAMES if name in there), None)
    if wanted not in there:
        listed = ", ".join(there[:MOST_LISTED]) + ", ..." * (len(there) > MOST_LISTED) or "no such columns"
        raise FormatError(
            f"expected an episode column {wanted!r} of one value per row in {file.name}, got {listed}: "
            "name the column with episode="
        )
    return wanted


def _doubt(where: str, rows: int) -> str:
    return (
        f"no column of {where} tells episodes apart (expected one of {', '.join(EPISODE_NAMES)}), so its {rows} rows "
        "are taken as one episode: name the column with episode= if they are several"
    )


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    single = _single(path)
    return [single] if single.is_file() else in_order(path.rglob("*.parquet"))


def _single(folder: Path) -> Path:
    """Return where the only file of a data set lies, if it has but one."""
    return folder / "episodes.parquet"


def numbers(ids: NDArray[Any]) -> NDArray[np.int64]:
    """Return whole episode numbers as they are; anything else is numbered in order of appearance."""
    if ids.dtype.kind in "iu":
        return ids.astype(np.int64)
    _, first, inverse = np.unique(ids.astype(str), return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def _facts(folder: Path) -> dict[str, Any]:
    file = folder / "dataset.json"
    if not file.is_file():
        return {}
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"expected JSON in {file.name} of {folder.name}, got {error}") from error
    return facts if isinstance(facts, dict) else {}


def _action_names(facts: dict[str, Any], dim: int) -> tuple[str, ...] | None:
    names = facts.get("action_names")
    return tuple(str(name) for name in names) if isinstance(names, list) and len(names) == dim else None
