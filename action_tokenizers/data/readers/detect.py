"""Which layout lies here: told by what is in the folder, never by its name."""

from importlib import import_module
from pathlib import Path
from typing import Any

from action_tokenizers.data.readers.recording import Recording, State
from action_tokenizers.data.readers.system import raise_of_the_system
from action_tokenizers.errors import ActionTokenizerError, FormatError

__all__ = ["layout_of", "read"]

LAYOUTS = (
    "LeRobot v2.0, v2.1, v3.0 (meta/info.json)",
    "flat parquet (episodes.parquet or *.parquet)",
    "arrays (.npz, .npy)",
    "HDF5 of robomimic, LIBERO or ALOHA (.hdf5, .h5)",
    "Diffusion Policy zarr (folder or .zarr.zip)",
    "RLDS (features.json and *.tfrecord*)",
)
SUFFIXES = {
    ".parquet": "parquet",
    ".npz": "arrays",
    ".npy": "arrays",
    ".hdf5": "hdf5",
    ".h5": "hdf5",
    ".zip": "zarr",
}


def read(path: Path, *, action: str | None = None, state: State = None, episode: str | None = None) -> Recording:
    """Return the episodes at `path`, whatever its layout; `episode` names a column of flat parquet.

    Raises:
        FormatError: No known layout (lists what is there and what is known), or files that cannot be read,
            whatever the packages below raised over them.
        OSError: The system does not let a file be read: too many open files, no permission and the like.
    """
    try:
        return _read(path, action, state, episode)
    except (FileNotFoundError, PermissionError, ImportError, MemoryError, Warning):
        raise
    except Exception as error:  # what a broken file makes zlib, numpy, h5py, pyarrow and zarr raise has no common base
        raise_of_the_system(error, path.name)
        if isinstance(error, ActionTokenizerError):
            raise
        raise FormatError(
            f"expected a readable data set at {path}, got {type(error).__name__}: {error}; "
            "copy or fetch it again, or write its actions anew"
        ) from error


def _read(path: Path, action: str | None, state: State, episode: str | None) -> Recording:
    layout = layout_of(path)
    module = import_module(f"action_tokenizers.data.readers.{layout}")
    chosen: dict[str, Any] = {"action": action, "state": state}
    if episode is not None:
        if layout != "parquet":
            raise FormatError(
                f"expected no episode column for the layout {layout} of {path.name}, got episode={episode!r}: "
                "only flat parquet has a choice, leave episode= out"
            )
        chosen["episode"] = episode
    recording: Recording = module.read(path, **chosen)
    return recording


def layout_of(path: Path) -> str:
    """Return the layout at `path`, the name of the module that reads it.

    Raises:
        FormatError: No known layout; lists what is there and what is known.
    """
    layout = _of_folder(path) if path.is_dir() else _of_file(path)
    if layout is None:
        raise FormatError(_unknown(path))
    return layout


def _of_file(path: Path) -> str | None:
    if ".tfrecord" in path.name:
        return "rlds"
    return SUFFIXES.get(path.suffix.lower())


def _of_folder(path: Path) -> str | None:
    """Return the layout of a folder; the most telling sign first."""
    if (path / "meta" / "info.json").is_file():
        return "lerobot"
    if (path / "episodes.parquet").is_file():
        return "parquet"
    if any((path / name).exists() for name in (".zgroup", "zarr.json", "meta/episode_ends")):
        return "zarr"
    if (path / "features.json").is_file() or next(path.rglob("*.tfrecord*"), None):
        return "rlds"
    for pattern, layout in (("*.hdf5", "hdf5"), ("*.h5", "hdf5"), ("**/*.parquet", "parquet")):
        if any(file.is_file() for file in path.glob(pattern)):
            return layout
    files = [file for file in path.iterdir() if file.is_file() and _of_file(file)]
    return _of_file(files[0]) if len(files) == 1 else None


def _unknown(path: Path) -> str:
    known = "; ".join(LAYOUTS)
    if path.is_file():
        return f"expected a data set, got the file {path.name}: known layouts are {known}"
    names = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    there = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") or "nothing"
    return f"expected a data set in the folder {path.name}, found {there}: known layouts are {known}"
