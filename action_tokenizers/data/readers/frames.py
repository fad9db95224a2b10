"""Parquet data sets of one row per frame, described instead of read: what a stream walks through file by file."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from action_tokenizers.data.readers.columns import row_count
from action_tokenizers.errors import FormatError

__all__ = ["FrameFiles", "described_by", "in_order"]

T = TypeVar("T")


def in_order(paths: Iterable[Path]) -> list[Path]:
    """Return the files among `paths` in the order of their names, in which upper case counts on every system."""
    return sorted((path for path in paths if path.is_file()), key=lambda path: path.parts)


@dataclass(frozen=True)
class FrameFiles:
    """Files of one row per frame, and which of their columns say what.

    Attributes:
        root: The folder of the data set, or of its only file.
        files: Paths below `root`, `/` between their parts, in the order of the recording.
        action: Columns that make up the actions.
        state: Columns that make up the states; none are read where it is empty.
        episode: Column that tells the episodes apart; None: every file is one episode, numbered as below or in order.
        frame: Column of the frame numbers within an episode, None where there is none.
        numbered: Whether a file `episode_7.parquet` that holds one episode holds number 7, whatever its column says.
        fps: Frames per second, None where nothing says so.
        action_names: One name per action dim, or None.
        doubt: What had to be guessed, for a warning; empty where nothing was.
        searched: Pattern of the files below `root` that are taken for data, in which `*` stands for any text, `/` in it
            or not; empty where the files were named.
    """

    root: Path
    files: tuple[str, ...]
    action: tuple[str, ...]
    state: tuple[str, ...]
    episode: str | None
    frame: str | None
    numbered: bool
    fps: float | None
    action_names: tuple[str, ...] | None
    doubt: str = ""
    searched: str = ""

    def takes(self, file: Path) -> bool:
        """Say whether a file, were it there, would be taken for one of the data."""
        place, root = file.resolve(), self.root.resolve()
        return place.is_relative_to(root) and fnmatchcase(place.relative_to(root).as_posix(), self.searched)


def described_by(files: Sequence[Path], describe: Callable[[Path], T]) -> T:
    """Return `describe` of the first file that has rows and can be read; of the first that can be, if none has rows.

    Which of the others are broken comes out when they are indexed.

    Raises:
        FormatError: None can be read; the first one's error.
    """
    errors: list[FormatError] = []
    empty: list[Path] = []
    for file in files:
        try:
            if row_count(file):
                return describe(file)
            empty.append(file)
        except FormatError as error:
            errors.append(error)
    if errors and not empty:
        raise errors[0]
    return describe(empty[0])
