"""LeRobot data sets, v2.0, v2.1 and v3.0, read without lerobot.

Wild info.json files state wrong totals, splits and shapes: here the data files decide, and info.json is
asked only for what they do not hold (rate, names, where the files lie).
"""

import glob
import json
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from action_tokenizers.data.readers.columns import join_tables, numeric_columns, read_columns, side_by_side
from action_tokenizers.data.readers.frames import FrameFiles, described_by, in_order
from action_tokenizers.data.readers.recording import (
    Recording,
    State,
    pick_action,
    pick_state,
    positive,
    split_rows,
)
from action_tokenizers.errors import FormatError

__all__ = ["EPISODE_FILE", "frame_files", "read"]

EPISODE_FILE = re.compile(r"episode_(\d+)\.parquet")


def read(path: Path, *, action: str | None = None, state: State = None) -> Recording:
    """Return the episodes of a LeRobot folder."""
    info = _info(path)
    _, files = _data_files(path, info)
    columns = numeric_columns(files[0])
    where = f"{path.name}/{files[0].relative_to(path).as_posix()}"
    parts = {"action": pick_action(columns, action, where), "state": pick_state(columns, state, where)}
    index: list[str] = [name for name in ("episode_index", "frame_index") if name in columns]
    rows = join_tables([_load(file, parts, index) for file in files], path.name)
    episode = rows.pop("episode_index").astype(np.int64)
    names, split = split_rows(rows, episode, rows.pop("frame_index", None), path.name)
    return Recording(
        split["action"],
        split.get("state"),
        positive(info.get("fps")),
        names,
        _names(info, parts["action"], split["action"][0].shape[1]),
    )


def frame_files(path: Path, *, action: str | None = None, state: State = None) -> FrameFiles:
    """Describe a LeRobot folder, for who reads it file by file."""
    info = _info(path)
    pattern, files = _data_files(path, info)

    def describe(file: Path) -> tuple[list[str], list[str], str | None, str | None, int]:
        columns = numeric_columns(file)
        if "episode_index" not in columns and not EPISODE_FILE.fullmatch(file.name):
            raise _without_episodes(file, columns)
        where = f"{path.name}/{file.relative_to(path).as_posix()}"
        actions, states = pick_action(columns, action, where), pick_state(columns, state, where)
        dim = sum(int(columns[name].strip("()")) for name in actions)
        episode, frame = (name if name in columns else None for name in ("episode_index", "frame_index"))
        return actions, states, episode, frame, dim

    actions, states, episode, frame, dim = described_by(files, describe)
    return FrameFiles(
        path,
        tuple(file.relative_to(path).as_posix() for file in files),
        tuple(actions),
        tuple(states),
        episode,
        frame,
        True,
        positive(info.get("fps")),
        _names(info, actions, dim),
        searched=pattern.replace("**/", "*"),
    )


def _info(path: Path) -> dict[str, Any]:
    try:
        info = json.loads((path / "meta" / "info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"expected JSON in meta/info.json of {path.name}, got {error}") from error
    if not isinstance(info, dict):
        raise FormatError(f"expected an object in meta/info.json of {path.name}, got {type(info).__name__}")
    return info


def _data_files(path: Path, info: dict[str, Any]) -> tuple[str, list[Path]]:
    """Return a pattern and its files: those that match `data_path`, whatever variables its template names."""
    template = info.get("data_path")
    patterns = ["data/**/*.parquet"]
    if isinstance(template, str) and not _leaves(template):
        patterns.insert(0, re.sub(r"\{[^}]*\}", "*", glob.escape(template)))
    for pattern in patterns:
        files = in_order(path.glob(pattern))
        if files:
            return pattern, files
    raise FormatError(
        f"expected parquet files at {template or patterns[0]} in {path.name}, got none: fetch data/ as well"
    )


def _leaves(template: str) -> bool:
    """Tell whether a template names no file inside its data set: never follow a stranger's outside it."""
    place = PurePosixPath(template)
    return place.is_absolute() or ".." in place.parts or not place.parts


def _load(file: Path, parts: dict[str, list[str]], index: list[str]) -> dict[str, NDArray[Any]]:
    """Return actions, states, episode and frame numbers of one file."""
    table = read_columns(file, [*parts["action"], *parts["state"], *index])
    out = side_by_side(table, parts)
    out |= {name: table[name] for name in index}
    numbered = EPISODE_FILE.fullmatch(file.name)
    if numbered and len(np.unique(table.get("episode_index", ()))) <= 1:
        # one episode per file: its name is the episode's, whatever the column says
        out["episode_index"] = np.full(len(out["action"]), int(numbered.group(1)), np.int64)
    if "episode_index" not in out:
        raise _without_episodes(file, table)
    return out


def _without_episodes(file: Path, columns: Iterable[str]) -> FormatError:
    return FormatError(f"expected a column episode_index in {file.name}, got {sorted(columns)}")


def _names(info: dict[str, Any], columns: list[str], dim: int) -> tuple[str, ...] | None:
    """Return the names of the action dims where info.json has as many as there are dims, else None."""
    features = info.get("features")
    features = features if isinstance(features, dict) else {}
    found: list[str] = []
    for column in columns:
        feature = features.get(column)
        found += _flat(feature.get("names") if isinstance(feature, dict) else None)
    return tuple(found) if len(found) == dim else None


def _flat(names: Any) -> list[str]:
    """Return names from a list, a list in a list, or a dict of lists; empty for anything else."""
    if isinstance(names, str):
        return [names]
    if isinstance(names, dict):
        ordered = all(isinstance(place, int) for place in names.values())
        return [str(name) for name in names] if ordered else _flat(list(names.values()))
    if isinstance(names, list):
        return [name for item in names for name in _flat(item)]
    return []
