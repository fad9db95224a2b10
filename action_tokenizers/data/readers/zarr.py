"""Diffusion Policy's replay buffer: `data/action`, `data/state`, `meta/episode_ends`; folder or zip."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from action_tokenizers.data.readers.arrays import cut_at_ends
from action_tokenizers.data.readers.recording import (
    Recording,
    State,
    concatenated,
    pick_action,
    pick_state,
    positive,
)
from action_tokenizers.errors import FormatError
from action_tokenizers.extras import require

__all__ = ["read"]

ENDS = "meta/episode_ends"


def read(path: Path, *, action: str | None = None, state: State = None) -> Recording:
    """Return the episodes of a replay buffer."""
    if path.is_dir() and not (path / "meta").is_dir():
        path = next((file for file in sorted(path.iterdir()) if file.suffix.lower() == ".zip"), path)
    zarr = require("zarr", "data")
    try:
        if path.is_dir():
            return _buffer(zarr.open_group(str(path), mode="r"), action, state, path.name)
        prefix = _prefix(path)
        store = zarr.storage.ZipStore(str(path), mode="r")
        try:
            return _buffer(zarr.open_group(store=store, path=prefix, mode="r"), action, state, path.name)
        finally:
            store.close()
    except FormatError:
        raise
    except (OSError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise FormatError(
            f"expected a zarr replay buffer with {ENDS} at {path.name}, got {error!r}: copy it again"
        ) from error


def _prefix(path: Path) -> str:
    """Return where in the zip the buffer lies: at its root, or in the folder that was packed."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            folder, mark, _ = name.partition(ENDS + "/")
            if mark:
                return folder.rstrip("/")
    raise FormatError(f"expected a zarr replay buffer with {ENDS} in {path.name}, got a zip without it")


def _buffer(root: Any, action: str | None, state: State, where: str) -> Recording:
    data = root["data"]
    known = sorted(data.arrays(), key=lambda item: str(item[0]))  # stores list in any order
    shapes = {str(name): tuple(array.shape) for name, array in known if _is_column(array)}
    columns = {"action": pick_action(shapes, action, where), "state": pick_state(shapes, state, where)}
    arrays = {
        what: concatenated({name: np.asarray(data[name]) for name in names}, where)
        for what, names in columns.items()
        if names
    }
    split = cut_at_ends(arrays, np.asarray(root[ENDS]), where)
    return Recording(split["action"], split.get("state"), positive(root.attrs.get("fps")))


def _is_column(array: Any) -> bool:
    return array.ndim in (1, 2) and array.dtype.kind in "fiub"
