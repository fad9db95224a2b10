"""Write several files into a folder, all or none."""

import os
import secrets
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

__all__ = ["STALE", "delete_left", "write_folder"]

STALE = 3600.0  # seconds after which nobody writes on to a temporary file


def write_folder(folder: str | os.PathLike[str], files: Mapping[str, bytes], ours: Iterable[str]) -> Path:
    """Make `folder` hold `files`, and of the names `ours` only these; whatever else lies there stays.

    A new folder is written aside and renamed into place. In an existing one every file is replaced by a rename
    and put back if a later one fails; the folder itself is never swapped, since somebody may be working in it.

    Args:
        folder: created if missing, with its parents; a link is followed.
        files: name, or subfolder/name -> content, the one that makes the rest valid last.
        ours: every name that an earlier write may have left.

    Returns:
        The folder's absolute path.

    Raises:
        OSError: it cannot be written; the folder is as it was.
    """
    try:
        return _write_folder(Path(os.path.realpath(folder)), files, ours)
    except OSError as error:
        if ".saving-" not in str(error.filename):
            raise
        # the caller knows the folder, not our file aside
        raise type(error)(error.errno, f"cannot write to {folder}: {error.strerror or error}") from error


def delete_left(temporary: Path, after: float = STALE) -> None:
    """Delete a temporary file that a killed process left, if it was last written to `after` seconds ago or earlier."""
    with suppress(OSError):  # its writer was faster, or has it open on a system that minds
        if time.time() - temporary.stat().st_mtime >= after:
            temporary.unlink()


def _write_folder(target: Path, files: Mapping[str, bytes], ours: Iterable[str]) -> Path:
    names = {*ours, *files}
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"expected a folder to save to, got the file {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    name = f".saving-{secrets.token_hex(8)}"
    aside = (target if target.exists() else target.parent) / name
    try:
        aside.mkdir()
        if not target.exists():
            _write(aside, files)
            os.replace(aside, target)
            return target
        for part in ("new", "old"):
            (aside / part).mkdir()
        _write(aside / "new", files)
        for old in names:
            if (target / old).exists():
                (aside / "old" / old).parent.mkdir(exist_ok=True)
                shutil.copy2(target / old, aside / "old" / old)
        _swap(target, aside, files, names)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)


def _swap(target: Path, aside: Path, files: Mapping[str, bytes], names: set[str]) -> None:
    inside = {(target / name).parent for name in files}
    made = [folder for folder in inside if not folder.exists()]
    try:
        for folder in made:
            folder.mkdir()
        for name in files:
            os.replace(aside / "new" / name, target / name)
        for name in names - set(files):
            (target / name).unlink(missing_ok=True)
    except BaseException:
        for name in names:
            if (aside / "old" / name).exists():
                os.replace(aside / "old" / name, target / name)
            else:
                (target / name).unlink(missing_ok=True)
        for folder in made:
            if folder.exists():
                folder.rmdir()
        raise
