"""A parquet data set of any size, read file by file: what streams and engines share.

Every episode belongs to the file it begins in and is delivered whole, once, by whoever reads that file; which those are
is settled by an index (`index.py`) before any action is read. So files may be read in any order, by any number of
processes, and what they deliver together does not depend on it.
"""

import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from errno import ENOENT
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import numpy as np

from action_tokenizers.data.door import IntArray, as_float32, checked_fps, first_nonfinite
from action_tokenizers.data.episodes import HUB_FILES, Episodes, locate, warn_of_angles
from action_tokenizers.data.index import EpisodeTable, Runs, contents, runs_of, tabulate
from action_tokenizers.data.priority import identity_hash, priorities
from action_tokenizers.data.readers.columns import Table, column_batches, side_by_side
from action_tokenizers.data.readers.detect import layout_of
from action_tokenizers.data.readers.frames import FrameFiles
from action_tokenizers.data.readers.recording import State, split_rows
from action_tokenizers.data.readers.system import raise_of_the_system
from action_tokenizers.data.sample import ChunkSample
from action_tokenizers.errors import (
    ActionShapeError,
    ActionTokenizerError,
    ActionValueError,
    FormatError,
    MissingExtraError,
)
from action_tokenizers.warn import warn

__all__ = ["STREAMED", "BrokenFile", "Progress", "Shards", "Skipped", "open_shards"]

Progress = Callable[[str, int, int], None]
Each = Callable[[Callable[[int], Any], Sequence[int], str], Iterable[Any]]  # function, items, stage -> results

STREAMED = ("lerobot", "parquet")  # layouts of one row per frame
SLACK = 1 + 1e-12  # on a threshold of priorities: the logarithms of two machines may differ in the last place
MOST_TOLD = 8  # broken files whose reasons are told in one warning
FRAMES = 1 << 16  # of one piece: some megabytes, whatever the size of a file


class _ChangedError(FormatError):
    """A file that is another one than was indexed, or gone: the index is out of date, the file may be fine."""


class BrokenFile(Exception):
    """A file of a data set opened with `skip_broken` that cannot be used; whoever reads such files leaves it out."""


@dataclass(frozen=True)
class Skipped:
    """A file that was left out because it could not be used, and why."""

    shard: str
    reason: str


@dataclass(frozen=True, eq=False, repr=False)
class Shards:
    """The files of one data set and the table of its episodes; opened by `open_shards`.

    Attributes:
        files: What lies where.
        table: Every episode.
        source: Data set id or folder name, as in `Episodes`.
        key: Name of the range of these actions.
        fps: Frames per second, or None.
        skip_broken: Whether files that cannot be used are left out instead of refused.
        hub: Repository and commit, where the files are a copy of one.
    """

    files: FrameFiles
    table: EpisodeTable
    source: str
    key: str = "default"
    fps: float | None = None
    skip_broken: bool = False
    hub: tuple[str, str] | None = None

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.files.files)

    def __repr__(self) -> str:
        """Return the facts."""
        return (
            f"Shards({len(self)} files, {self.episodes} episodes, {self.frames} frames, action_dim={self.action_dim}, "
            f"fps={self.fps}, key={self.key!r}, source={self.source!r})"
        )

    @property
    def action_dim(self) -> int:
        """Number of action dims d."""
        return self.table.dims[0]

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return int(self.table.kept.sum())

    @property
    def frames(self) -> int:
        """Frames of all episodes together."""
        return int(self.table.length[self.table.kept].sum())

    @property
    def horizon(self) -> int | None:
        """One second of data, at most the median episode, as `default_horizon`; None where fps is unknown."""
        if self.fps is None:
            return None
        return max(1, min(round(self.fps), int(np.median(self.table.lengths))))

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """The files that the index found broken."""
        return tuple(Skipped(self.name(n), why) for n, why in sorted(self.table.broken.items()))

    def name(self, number: int) -> str:
        """Return the name of a file, the same on every machine."""
        return f"{self.source}/{self.files.files[number]}"

    def left_out(self, number: int, error: BrokenFile) -> str:
        """Return what to tell of a file that is left out because it is broken."""
        return f"{self.name(number)} left out, episodes lost with it: {len(self.own(number))}: {error}"

    def cut_off(self, number: int, other: Skipped) -> str:
        """Return what to tell of the last episode of a file, which is left out because the file `other` is broken."""
        name = self.table.name[self.own(number)[-1]]
        return (
            f"1 episode of {self.name(number)} left out: {name} goes on in {other.shard}, which cannot be used: "
            f"{other.reason}"
        )

    def chunks(self, number: int, horizon: int, stride: int = 1, *, pad_tail: bool = False) -> int:
        """Return how many chunks the episodes that begin in a file have."""
        lengths = self.table.length[self.own(number)]
        return int(_chunks_of(lengths, horizon, stride, pad_tail).sum())

    def split(self, test: float = 0.2, *, seed: int = 0) -> tuple[Self, Self]:
        """Return (train, test) that share no episode: the very episodes that `Episodes.split` picks.

        Raises:
            ActionShapeError: A single episode, which only `Episodes.split` can split, in time.
        """
        if not 0 < test < 1:
            raise ActionValueError(f"expected a test share between 0 and 1, got {test}")
        names = self.table.names
        if len(names) == 1:
            raise ActionShapeError("expected several episodes to split, got one: load it whole, with Episodes.load")
        count = min(max(1, round(test * len(names))), len(names) - 1)
        order = np.random.default_rng(seed).permutation(len(names))
        return self.only(names[order[count:]]), self.only(names[order[:count]])

    def draw(self, most: int, *, seed: int = 0) -> Self:
        """Return at most `most` of the episodes, those of smallest hash: the same ones on every machine."""
        names = self.table.names
        if most < 1:
            raise ActionValueError(f"expected at least one episode to draw, got {most}")
        hashes = identity_hash(self.key, self.source, names, np.zeros_like(names), seed)
        return self.only(names[np.argsort(hashes, kind="stable")[:most]])

    def only(self, names: IntArray) -> Self:
        """Return the data set with no other episodes than those of these names."""
        return replace(self, table=self.table.keep(names))

    def threshold(self, sample: ChunkSample, stride: int = 1) -> float:
        """Return the priority that no chunk of this data set in the full `sample` exceeds.

        Priorities are made of names and places alone, so the table knows which chunks the sample will hold before any
        is read: a worker that knows the threshold hands over its part of the final sample instead of a full one. It is
        infinite where there are fewer chunks than the sample holds, or some may turn out to be missing; else larger by
        `SLACK` than the greatest priority in the sample.
        """
        k, horizon = sample.k, sample.horizon or 1
        weight = None if sample.weights is None else sample.weights.get(self.key)
        if self.skip_broken:
            return float("inf")
        best = np.empty(0)
        for number in range(len(self)):
            at = self.own(number)
            counts = _chunks_of(self.table.length[at], horizon, stride)
            episode = np.repeat(self.table.name[at], counts)
            start = (np.arange(len(episode)) - np.repeat(np.cumsum(counts) - counts, counts)) * stride
            best = np.concatenate([best, priorities(self.key, self.source, episode, start, sample.seed, weight)])
            if len(best) > 4 * k:
                best = np.partition(best, k - 1)[:k]
        return float(np.partition(best, k - 1)[k - 1]) * SLACK if len(best) >= k else float("inf")

    def read(self, number: int, cut_off: list[Skipped] | None = None) -> Iterator[Episodes]:
        """Yield the kept episodes that begin in a file, whole, in pieces of some 65,000 frames.

        Args:
            number: Of the file.
            cut_off: Takes another file that cannot be read, where the last episode goes on in it and is left out;
                without it that is an error.

        Raises:
            FormatError: The file cannot be read or has rows of another width; names it. Or it changed since it was
                indexed, which also with `skip_broken` makes no broken file of it.
            ActionValueError: NaN or inf; names file, episode, frame and dim.
            OSError: The system does not let it be read: too many open files, no permission, a lost connection.
        """
        at = self.own(number)
        if not len(at):
            return
        row, length = self.table.row[at], self.table.length[at]
        beyond = row[-1] + length[-1] > self.table.rows[number]
        with closing(_Cursor(self, number)) as cursor:
            # the one that needs another file comes by itself: where that file is broken, only it is lost
            for some in _pieces(length[: len(at) - 1] if beyond else length):
                yield self._episodes(self._rows(cursor, at[some]), at[some], number)
            if not beyond:
                return
            try:
                rows = self._rows(cursor, at[-1:])
            except (MissingExtraError, _ChangedError):
                raise
            except ActionTokenizerError as error:
                if cut_off is None or cursor.number == number:
                    raise
                other = self.name(cursor.number)
                cut_off.append(Skipped(other, str(error).removeprefix(f"{other}: ")))
                return
            yield self._episodes(rows, at[-1:], number)

    def pieces(self, number: int, cut_off: list[Skipped]) -> Iterator[Episodes]:
        """Yield what `read` does; under `skip_broken` a file that cannot be used is told apart from any other mistake.

        Args:
            number: Of the file.
            cut_off: Takes, under `skip_broken`, a broken file that cuts off the last episode.

        Raises:
            BrokenFile: Under `skip_broken`, where `read` raises an ActionTokenizerError.
        """
        try:
            yield from self.read(number, cut_off if self.skip_broken else None)
        except (MissingExtraError, _ChangedError):
            raise
        except ActionTokenizerError as error:
            if not self.skip_broken:
                raise
            raise BrokenFile(str(error)) from error

    def read_whole(self, number: int) -> tuple[list[Episodes], str]:
        """Return the pieces of a file, or under `skip_broken` none of them where it is broken; and what is left out."""
        cut_off: list[Skipped] = []
        try:
            pieces = list(self.pieces(number, cut_off))
        except BrokenFile as error:
            return [], self.left_out(number, error)
        return pieces, self.cut_off(number, cut_off[0]) if cut_off else ""

    def load(self) -> Episodes:
        """Return all kept episodes, in the order of their names: for a data set that fits the memory.

        Warns of angles that wrap, as `Episodes.load`, and under `skip_broken` of every file and episode that is left
        out.

        Raises:
            FormatError: A file that cannot be used; under `skip_broken` only if no episode is left.
            ActionValueError: NaN or inf, see `read`.
        """
        pieces: list[Episodes] = []
        losses: list[str] = []
        for number in range(len(self)):
            some, loss = self.read_whole(number)
            pieces += some
            if loss:
                losses.append(loss)
                warn(loss)
        if not pieces:
            why = f": {'; '.join(losses[:MOST_TOLD])}" if losses else ""
            raise FormatError(f"expected episodes that can be read in {self.source}, got none{why}")
        whole = self.join(pieces)
        warn_of_angles(whole, self.source)
        return whole

    def join(self, pieces: Sequence[Episodes]) -> Episodes:
        """Return the episodes of several pieces as one, in the order of their names."""
        names = [name for piece in pieces for name in piece.names]
        order = np.argsort(names, kind="stable")
        actions = [actions for piece in pieces for actions in piece.actions]
        states = [states for piece in pieces for states in piece.states or ()]
        return replace(
            pieces[0],
            actions=[actions[i] for i in order],
            states=[states[i] for i in order] if states else None,
            names=tuple(names[i] for i in order),
            offsets=(),
        )

    def here(self) -> Self:
        """Return the data set as this machine has it: a copy of the Hub is fetched where a file is missing.

        Raises:
            FileNotFoundError: A file that is not on this machine, which does not make it a broken one.
            HubError: The Hub did not serve the data set.
        """
        files = _at_hand(self.files, self.hub, self.files.files)
        return self if files is self.files else replace(self, files=files)

    def fingerprint(self) -> str:
        """Return a digest of what would be read: files, columns, episodes, contents as far as `contents_of` goes."""
        facts = [
            self.source,
            self.key,
            self.fps,
            self.files.files,
            self.files.action,
            self.files.state,
            self.table.sizes.tolist(),
            self.table.rows.tolist(),
            self.table.contents,
        ]
        state = blake2b(json.dumps(facts).encode(), digest_size=16)
        for column in (self.table.name, self.table.file, self.table.row, self.table.length, self.table.kept):
            state.update(column.tobytes())
        return state.hexdigest()

    def own(self, number: int) -> IntArray:
        """Return which episodes of the table are kept and begin in a file, as places in the table."""
        begin, end = np.searchsorted(self.table.file, [number, number + 1])  # it is in the order of the files
        return np.arange(begin, end, dtype=np.int64)[self.table.kept[begin:end]]

    def _rows(self, cursor: "_Cursor", at: IntArray) -> Table:
        """Return the rows of the episodes `at` of the table, which lie ahead of the cursor."""
        begin, length = self.table.row[at], self.table.length[at]
        gaps = np.flatnonzero(begin[1:] != begin[:-1] + length[:-1]) + 1  # what was left out lies there
        tables = []
        for some in np.split(np.arange(len(at)), gaps):
            cursor.skip_to(int(begin[some[0]]))
            tables.append(cursor.take(int(length[some].sum())))
        return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}

    def _episodes(self, rows: Table, at: IntArray, number: int) -> Episodes:
        """Return the episodes `at` of the table, which these rows are and which begin in a file."""
        ids = np.repeat(self.table.name[at], self.table.length[at])
        with _told(self.name(number)):
            names, split = split_rows(rows, ids, rows.pop("frame", None), self.source)
            return Episodes(
                split["action"],
                states=split.get("state"),
                fps=self.fps,
                key=self.key,
                names=names,
                action_names=self.files.action_names,
                source=self.source,
            )


def open_shards(
    source: str | os.PathLike[str],
    *,
    action: str | None = None,
    state: State = None,
    episode: str | None = None,
    key: str | None = None,
    fps: float | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    skip_broken: bool = False,
    progress: Progress | None = None,
    each: Each | None = None,
) -> Shards:
    """Find the files of a LeRobot or flat parquet data set and index their episodes; no action is read yet.

    Args:
        source: A folder, a parquet file, or a Hub data set `owner/name`, of which only `meta/` and `data/` are fetched.
        action: As in `Episodes.load`, and so are the next six.
        state: See `action`.
        episode: See `action`.
        key: See `action`.
        fps: See `action`.
        revision: See `action`.
        token: See `action`.
        skip_broken: Leave out files that cannot be read or have other dims than the first, with every episode that
            begins in one or may be cut off by one, instead of refusing the data set. A UserWarning names them.
        progress: Called as `progress("index", done, total)` per file.
        each: How to index the files, for engines that do it in parallel.

    Raises:
        FormatError: Another layout, or a file that cannot be used (named).
        ActionValueError: An empty key, or an fps that is no rate.
        OSError: The system does not let a file be read, which says nothing about the file; so also with `skip_broken`.
        HubError: The Hub did not serve the data set.
    """
    if key == "":
        raise ActionValueError("expected a key of at least one character, got an empty one")
    fps = None if fps is None else checked_fps(fps)
    path, name = locate(source, revision, token)
    layout = layout_of(path)
    if layout not in STREAMED:
        raise FormatError(
            f"expected a LeRobot or parquet data set to read file by file, got the layout {layout} in {name}: "
            "Episodes.load reads it as a whole"
        )
    try:
        files = _described(path, layout, action, state, episode)
    except FormatError as error:
        raise_of_the_system(error, name)
        raise
    if files.doubt:
        warn(files.doubt)

    hub = (name, path.name) if path != Path(source) else None

    def look(number: int) -> Runs | str:
        at_hand = _at_hand(files, hub, files.files[number : number + 1])  # it may run on another machine
        try:
            with _told(files.files[number]):
                return runs_of(at_hand, number)
        except MissingExtraError:
            raise
        except ActionTokenizerError as error:
            return str(error).removeprefix(f"{files.files[number]}: ")  # told by whoever tells the reason

    table = tabulate(files, list((each or in_turn(progress))(look, range(len(files.files)), "index")))
    shards = Shards(
        files,
        table,
        name,
        "default" if key is None else key,
        files.fps if fps is None else fps,
        skip_broken,
        hub,
    )
    if table.broken and not skip_broken:
        first = shards.skipped[0]
        raise FormatError(
            f"expected {len(shards)} usable files in {name}, got {len(table.broken)} broken ones, the first of them "
            f"{first.shard}: {first.reason}; repair it, or leave such files out with skip_broken=True"
        )
    if not shards.episodes:
        first = shards.skipped[0]
        raise FormatError(
            f"expected whole episodes in {name}, got none outside of its broken files: {first.shard}: {first.reason}"
        )
    if table.broken:
        reasons = "; ".join(f"{one.shard}: {one.reason}" for one in shards.skipped[:MOST_TOLD])
        reasons += f"; and {len(table.broken) - MOST_TOLD} more, see `skipped`" * (len(table.broken) > MOST_TOLD)
        warn(
            f"{len(table.broken)} of {len(shards)} files of {name} left out as broken, and {table.lost} episodes that "
            f"they may cut off: {reasons}"
        )
    return shards


def in_turn(progress: Progress | None) -> Each:
    """Return how one process does things: one after the other."""

    def each(function: Callable[[int], Any], items: Sequence[int], stage: str) -> Iterator[Any]:
        for done, item in enumerate(items, 1):
            yield function(item)
            if progress is not None:
                progress(stage, done, len(items))

    return each


class _Cursor:
    """A place in the rows of a file and of those after it, read a batch at a time."""

    def __init__(self, shards: Shards, number: int) -> None:
        self.number = self._began_in = number
        self._shards = shards
        self._row = 0  # of the file it began in, counted on over its end
        self._left: Table | None = None
        self._batches = self._walk()

    def close(self) -> None:
        """Close the file: waiting for the collector, a data set of many files runs out of handles."""
        self._batches.close()

    def skip_to(self, row: int) -> None:
        """Move to a row ahead."""
        while self._row < row:
            self._row += len(self._next(row - self._row)["action"])

    def take(self, rows: int) -> Table:
        """Return the next rows: `action`, `state` and `frame`, as far as there are such columns."""
        parts = []
        while rows:
            parts.append(self._checked(self._next(rows)))
            self._row += len(parts[-1]["action"])
            rows -= len(parts[-1]["action"])
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _checked(self, rows: Table) -> Table:
        """Return rows that begin at the cursor with actions and states as float32; names the place of NaN and inf.

        Here, because here it is known which file they come from: an episode may lie in several.
        """
        table, begun = self._shards.table, self._began_in
        with _told(self._shards.name(self.number)):
            for part in ("action", "state"):
                if part not in rows:
                    continue
                rows[part] = as_float32(rows[part], f"{part}s")
                place = first_nonfinite(rows[part])
                if place is not None:
                    begin, end = np.searchsorted(table.file, [begun, begun + 1])
                    row = self._row + place[0]
                    at = begin + np.searchsorted(table.row[begin:end], row, side="right") - 1
                    frame = rows["frame"][place[0]] if "frame" in rows else row - table.row[at]
                    raise ActionValueError(
                        f"expected finite {part}s (within float32), got {rows[part][place]} at {part} of episode "
                        f"{table.name[at]}, frame {frame}, dim {place[1]}: repair or drop that episode"
                    )
        return rows

    def _refuse_changed(self, number: int) -> None:
        try:
            found = contents(self._shards.files, number)
        except FileNotFoundError:
            found = ""
        except (MissingExtraError, MemoryError):
            raise
        except Exception as error:  # what could be read when it was indexed cannot now: somebody writes to it
            raise_of_the_system(error, self._shards.name(number))
            found = "damage"
        if found != self._shards.table.contents[number]:
            raise _ChangedError(
                f"expected what it held when it was indexed, got {'something else' if found else 'no such file'}: open "
                "the data set anew, when nobody writes to it"
            )

    def _next(self, most: int) -> Table:
        if self._left is None:
            self._left = next(self._batches, None)
        if self._left is None:
            raise FormatError(
                f"expected more rows in {self._shards.name(self.number)} than it has: did it change meanwhile?"
            )
        have = len(self._left["action"])
        part = {name: column[:most] for name, column in self._left.items()}
        self._left = {name: column[most:] for name, column in self._left.items()} if have > most else None
        return part

    def _walk(self) -> Generator[Table, None, None]:
        files = self._shards.files
        columns = [*files.action, *files.state, *([files.frame] if files.frame else [])]
        wanted = dict(zip(("action", "state"), self._shards.table.dims, strict=True))
        for number in range(self.number, len(self._shards)):
            self.number = number
            if not self._shards.table.rows[number]:
                continue
            with _told(self._shards.name(number)):
                self._refuse_changed(number)
                for batch in column_batches(files.root / files.files[number], list(dict.fromkeys(columns)), FRAMES):
                    table = side_by_side(batch, {"action": files.action, "state": files.state})
                    for part, values in table.items():
                        if values.shape[1] != wanted[part]:
                            raise FormatError(f"expected {part}s of {wanted[part]} dims, got {values.shape[1]}")
                    yield table | ({"frame": batch[files.frame]} if files.frame else {})


def _at_hand(files: FrameFiles, hub: tuple[str, str] | None, wanted: Sequence[str]) -> FrameFiles:
    """Return the files as this machine has them, none of `wanted` missing, see `Shards.here`."""
    gone = _missing(files.root, wanted)
    if gone and hub is not None:
        files = replace(files, root=_fetched(*hub))
        gone = _missing(files.root, wanted)
    if gone:
        raise FileNotFoundError(ENOENT, f"no {gone} on this machine: every machine must see all files", str(files.root))
    return files


def _missing(root: Path, wanted: Sequence[str]) -> str | None:
    return next((name for name in wanted if not (root / name).exists()), None)


@lru_cache(maxsize=8)  # the Hub is asked once, not for every file
def _fetched(repository: str, commit: str) -> Path:
    from action_tokenizers.download import fetch

    return fetch(repository, HUB_FILES, revision=commit)


def _described(path: Path, layout: str, action: str | None, state: State, episode: str | None) -> FrameFiles:
    from action_tokenizers.data.readers import lerobot, parquet

    if layout == "parquet":
        return parquet.frame_files(path, action=action, state=state, episode=episode)
    if episode is not None:
        raise FormatError(
            f"expected no episode column for the layout lerobot of {path.name}, got episode={episode!r}: "
            "only flat parquet has a choice, leave episode= out"
        )
    return lerobot.frame_files(path, action=action, state=state)


def _chunks_of(lengths: IntArray, horizon: int, stride: int, pad_tail: bool = False) -> IntArray:
    starts = lengths if pad_tail else np.maximum(lengths - horizon + 1, 0)
    return -(-starts // stride)


def _pieces(lengths: IntArray) -> Iterator[slice]:
    """Yield slices of episodes of at least `FRAMES` frames together, the last one of what is left."""
    begin, frames = 0, 0
    for i, length in enumerate(lengths.tolist()):
        frames += length
        if frames >= FRAMES:
            yield slice(begin, i + 1)
            begin, frames = i + 1, 0
    if begin < len(lengths):
        yield slice(begin, len(lengths))


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Name the file in whatever the packages below raise over a broken one: that has no common base."""
    try:
        yield
    except (ImportError, MemoryError, GeneratorExit, Warning):
        raise
    except Exception as error:
        raise_of_the_system(error, name)
        if isinstance(error, ActionTokenizerError):
            raise type(error)(f"{name}: {error}") from error
        raise FormatError(f"{name}: expected a readable parquet file, got {type(error).__name__}: {error}") from error
