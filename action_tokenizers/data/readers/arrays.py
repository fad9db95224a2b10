"""Plain numpy files: one episode, many of one length, or rows with episode ends or numbers beside them."""

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from action_tokenizers.data.readers.recording import (
    EPISODE_NAMES,
    Recording,
    State,
    concatenated,
    pick_action,
    pick_state,
    positive,
    split_rows,
)
from action_tokenizers.errors import FormatError

__all__ = ["cut_at_ends", "read"]

NUMBERED = re.compile(r"arr_\d+")
RATES = ("fps", "hz")


def read(path: Path, *, action: str | None = None, state: State = None) -> Recording:
    """Return the episodes of a `.npy` or `.npz` file, or of the only one in a folder.

    Actions `(t, d)` are one episode, or many where `episode_ends` or `episode_index` says so; `(n, t, d)`
    are n episodes; the unnamed arrays of `np.savez(path, *episodes)` are one episode each.
    """
    if path.is_dir():
        path = next(file for file in sorted(path.iterdir()) if file.suffix.lower() in (".npy", ".npz"))
    arrays = _load(path)
    rate = next((positive(arrays[name]) for name in RATES if name in arrays), None)
    shapes = {
        name: array.shape
        for name, array in arrays.items()
        if array.dtype.kind in "fiub" and array.ndim and name not in RATES
    }
    if (
        action is None
        and shapes
        and all(NUMBERED.fullmatch(name) and len(shape) == 2 for name, shape in shapes.items())
    ):
        return Recording([arrays[name] for name in shapes], fps=rate)
    if action is None and len(shapes) == 1:
        action = next(iter(shapes))
    chosen = {"action": _joined(arrays, pick_action(shapes, action, path.name), path.name)}
    # images have more axes than actions: never a part of the state
    fitting = {name: shape for name, shape in shapes.items() if len(shape) <= max(2, chosen["action"].ndim)}
    states = pick_state(fitting, state, path.name)
    if states:
        chosen["state"] = _joined(arrays, states, path.name)
    names, split = _episodes(chosen, arrays, path.name)
    return Recording(split["action"], split.get("state"), rate, names)


def _load(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file:  # opened here: np.load leaves a broken file open
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"action": loaded}
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FormatError(
            f"expected plain numeric arrays in {path.name}, got {error}: object arrays are pickles, never "
            "loaded; np.savez(path, *episodes) holds episodes of any length"
        ) from error


def _joined(arrays: dict[str, NDArray[Any]], names: list[str], where: str) -> NDArray[Any]:
    if len(names) == 1:
        return arrays[names[0]]
    return concatenated({name: arrays[name] for name in names}, where)


def _episodes(
    chosen: dict[str, NDArray[Any]], arrays: dict[str, NDArray[Any]], where: str
) -> tuple[tuple[int, ...], dict[str, list[NDArray[Any]]]]:
    axes = chosen["action"].ndim
    rows = len(chosen["action"]) if axes else 0
    if axes not in (2, 3) or any(len(array) != rows for array in chosen.values() if array.ndim):
        shapes = {name: array.shape for name, array in chosen.items()}
        raise FormatError(f"expected actions (t, d) or (n, t, d) and as many states in {where}, got {shapes}")
    if axes == 3:
        return (), {name: list(array) for name, array in chosen.items()}
    if "episode_ends" in arrays:
        return (), cut_at_ends(chosen, arrays["episode_ends"], where)
    found = (arrays[name] for name in EPISODE_NAMES if name in arrays)
    index = next((array.ravel() for array in found if array.ndim and array.size == len(array)), None)
    if index is None:
        return (), {name: [array] for name, array in chosen.items()}
    if index.shape != (rows,) or index.dtype.kind not in "iu":
        raise FormatError(f"expected one whole episode number per row in {where}, got {index.shape}")
    return split_rows(chosen, index.astype(np.int64), arrays.get("frame_index"), where)


def cut_at_ends(columns: dict[str, NDArray[Any]], ends: NDArray[Any], where: str) -> dict[str, list[NDArray[Any]]]:
    """Return one array per episode; `ends` holds the row after the last of each."""
    stops = np.asarray(ends).ravel().astype(np.int64)
    rows = min(len(column) for column in columns.values())
    if len(stops) == 0 or stops[0] < 1 or (np.diff(stops) < 1).any() or stops[-1] > rows:
        raise FormatError(f"expected rising episode_ends up to {rows} rows in {where}, got {stops[:8].tolist()}")
    if any(len(column) != stops[-1] for column in columns.values()):
        lengths = ", ".join(f"{len(column)} rows of {name}" for name, column in columns.items())
        raise FormatError(
            f"expected the last of episode_ends to equal the number of rows in {where}, got {stops[-1]} and "
            f"{lengths}: add the missing end, or drop the rows that belong to no episode"
        )
    starts = np.concatenate([[0], stops[:-1]])
    return {name: [column[a:b] for a, b in zip(starts, stops, strict=True)] for name, column in columns.items()}
