"""Where the episodes of many files lie: one pass over the column that tells them apart, before any action is read.

With the table at hand everything that is hard about a stream is settled beforehand and the same for every worker: which
file an episode begins in (that file's reader delivers it, over the file's end where it goes on), how many frames and
chunks there are, one second of data, which episodes a split holds out, and which are cut short by a broken file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from action_tokenizers.data.door import IntArray
from action_tokenizers.data.readers.columns import column_batches, row_count, side_by_side
from action_tokenizers.data.readers.frames import FrameFiles
from action_tokenizers.data.readers.lerobot import EPISODE_FILE
from action_tokenizers.data.readers.parquet import numbers
from action_tokenizers.errors import FormatError
from action_tokenizers.extras import require

__all__ = ["EpisodeTable", "Runs", "contents", "contents_of", "runs_of", "tabulate"]

BATCH = 1 << 20  # rows of an index column read at once
BLOCK, BLOCKS = 1 << 16, 32  # what a digest reads of the columns of a file: all of up to 2 MiB, else as much in blocks
FOOTER = 8  # bytes behind the footer of a parquet file: its length and the name of the format


@dataclass(frozen=True, eq=False)
class Runs:
    """What one file holds: runs of rows of one episode, in the file's order.

    Attributes:
        ids: `(r,)` what the episode column says of each run.
        lengths: `(r,)` rows of each run.
        dims: Number of action and of state dims; None where there are no rows.
        first_frame: Frame number of the first row, None where none is recorded.
        alone: Whether the file is an episode by itself, which neither begins before it nor goes on behind it.
        size: Bytes of the file.
        contents: Digest of what the file holds, see `contents_of`.
    """

    ids: NDArray[Any]
    lengths: IntArray
    dims: tuple[int, int] | None
    first_frame: int | None
    alone: bool
    size: int
    contents: str

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.lengths.sum())


@dataclass(frozen=True, eq=False)
class EpisodeTable:
    """Every episode of a data set, in the order of its files.

    Attributes:
        name: `(e,)` the recorded number, different for each.
        file: `(e,)` the number of the file it begins in.
        row: `(e,)` the row of that file it begins at.
        length: `(e,)` its frames, which may run on into the next files that have rows.
        kept: `(e,)` False for those that were held out.
        rows: `(f,)` rows of each file, 0 for a broken one.
        sizes: `(f,)` bytes of each file, 0 for a broken one.
        contents: Digest of what each file holds, empty for a broken one.
        broken: Number of a file -> why it cannot be used.
        lost: Episodes left out because they stand next to a broken file, into which they may go on; one that stands on
            both sides of it counts once.
        dims: Number of action and of state dims.
    """

    name: IntArray
    file: IntArray
    row: IntArray
    length: IntArray
    kept: NDArray[np.bool_]
    rows: IntArray
    sizes: IntArray
    contents: tuple[str, ...]
    broken: dict[int, str]
    lost: int
    dims: tuple[int, int]

    def keep(self, names: IntArray) -> Self:
        """Return the table with only the episodes of these names kept."""
        return replace(self, kept=self.kept & np.isin(self.name, names))

    @property
    def lengths(self) -> IntArray:
        """Frames of the kept episodes, in the order of their names, which is the order of `Episodes.load`."""
        order = np.argsort(self.name[self.kept], kind="stable")
        return self.length[self.kept][order]

    @property
    def names(self) -> IntArray:
        """Names of the kept episodes, ascending."""
        return np.sort(self.name[self.kept])


def runs_of(files: FrameFiles, number: int) -> Runs:
    """Return the runs of one file, without decoding an action beyond its first row.

    Raises:
        FormatError: The file is broken or lacks a column; names it.
    """
    path = files.root / files.files[number]
    rows, size = row_count(path), path.stat().st_size
    if rows == 0:
        none = np.zeros(0, np.int64)
        return Runs(none, none, None, None, False, size, contents_of(path, ()))
    columns, held = [*files.action, *files.state, *([files.frame] if files.frame else [])], contents(files, number)
    first = next(column_batches(path, columns, 1))
    parts = side_by_side(first, {"action": files.action, "state": files.state})
    dims = (parts["action"].shape[1], parts["state"].shape[1] if files.state else 0)
    frame = int(first[files.frame][0]) if files.frame else None
    named = EPISODE_FILE.fullmatch(path.name) if files.numbered else None
    if files.episode is None:
        alone = np.array([int(named.group(1)) if named else number])
        return Runs(alone, np.array([rows]), dims, frame, True, size, held)
    ids, lengths = _runs(path, files.episode)
    if named and len(np.unique(ids)) == 1:
        return Runs(np.array([int(named.group(1))]), np.array([rows]), dims, frame, True, size, held)
    if files.numbered:
        ids = ids.astype(np.int64)
    return Runs(ids, lengths, dims, frame, False, size, held)


def contents(files: FrameFiles, number: int) -> str:
    """Return the digest of what one file, which has rows, holds in the columns that are read, see `contents_of`."""
    further = [name for name in (files.frame, files.episode) if name]
    return contents_of(files.root / files.files[number], [*files.action, *files.state, *further])


def contents_of(path: Path, columns: Sequence[str]) -> str:
    """Return a digest of a file by what it holds in some columns: a copy has the same one on every machine.

    It is over the footer (of every column the places and sizes and, where the writer keeps them, the statistics) and
    the stored bytes of the columns: all of them up to 2 MiB, of more 32 blocks of 64 KiB in even distances, the first
    and the last included. So every change of columns of up to 2 MiB is noticed. Of more, what changes one of those
    blocks, the number of rows, the stored size of a column or an extreme of one of its row groups is; what leaves all
    of these may not be, as one other value that is stored without compression, also in a file written anew.
    """
    state = blake2b(digest_size=16)
    with path.open("rb") as file:
        end = file.seek(0, 2)
        file.seek(max(end - FOOTER, 0))
        tail = file.read(FOOTER)
        file.seek(max(end - FOOTER - int.from_bytes(tail[:4], "little"), 0))
        state.update(file.read())
        for begin, length in _sampled(_stored(path, columns)):
            file.seek(begin)
            state.update(file.read(length))
    return state.hexdigest()


def _stored(path: Path, columns: Sequence[str]) -> list[tuple[int, int]]:
    """Return place and length of the stored bytes of some columns, in the order of the footer."""
    places = []
    metadata = require("pyarrow.parquet", "data").read_metadata(path)
    # a column of lists is stored under its name and what follows; the same in every row group
    schema, begins = metadata.schema, tuple(f"{name}." for name in columns)
    wanted = [at for at in range(metadata.num_columns) if f"{schema.column(at).path}.".startswith(begins)]
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for at in wanted:
            column = group.column(at)
            first = column.dictionary_page_offset or column.data_page_offset
            places.append((max(min(first, column.data_page_offset), 0), max(column.total_compressed_size, 0)))
    return places


def _sampled(places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return all of the places, or of more than `BLOCKS` blocks that many, evenly spaced as if they were one."""
    ends = np.cumsum([length for _, length in places])
    if not len(ends) or ends[-1] <= BLOCK * BLOCKS:
        return list(places)
    some = []
    for begin in np.linspace(0, ends[-1] - BLOCK, BLOCKS).astype(np.int64).tolist():
        at, left = int(np.searchsorted(ends, begin, side="right")), BLOCK
        while left:
            rest = int(ends[at]) - begin
            some.append((places[at][0] + places[at][1] - rest, min(left, rest)))
            begin, left, at = begin + min(left, rest), left - min(left, rest), at + 1
    return some


def tabulate(files: FrameFiles, found: Sequence[Runs | str]) -> EpisodeTable:
    """Put the runs of all files together; a text instead of runs says why that file is broken.

    Raises:
        FormatError: No file can be read, or an episode comes back after others: such rows are no stream.
    """
    found = _of_one_shape(files, found)
    blocks: list[_Block] = []
    cut_off = False  # files that cannot be read lie between the last block and the next
    for number, runs in enumerate(found):
        if isinstance(runs, str):
            cut_off = True
        elif runs.rows:
            blocks.append(_Block.of(number, runs))
            _join(blocks, files, cut_off)
            cut_off = False
    broken = {number: runs for number, runs in enumerate(found) if isinstance(runs, str)}
    if not blocks:
        why = f": {next(iter(broken.values()))}" if broken else ""
        raise FormatError(f"expected rows in {files.root.name}, got none in {len(found)} files{why}")
    if cut_off and not blocks[-1].alone:
        blocks[-1].lost[-1] = True
    names = numbers(np.concatenate([block.ids for block in blocks]))
    fine = ~np.concatenate([block.lost for block in blocks])
    owner = np.repeat([block.number for block in blocks], [len(block.ids) for block in blocks])
    _refuse_returning(files, names[fine], owner[fine])
    return EpisodeTable(
        names[fine],
        owner[fine].astype(np.int64),
        np.concatenate([block.row for block in blocks])[fine],
        np.concatenate([block.length for block in blocks])[fine],
        np.ones(int(fine.sum()), np.bool_),
        np.array([0 if isinstance(runs, str) else runs.rows for runs in found], np.int64),
        np.array([0 if isinstance(runs, str) else runs.size for runs in found], np.int64),
        tuple("" if isinstance(runs, str) else runs.contents for runs in found),
        broken,
        len(np.unique(names[~fine])),
        next(runs.dims for runs in found if not isinstance(runs, str) and runs.dims is not None),
    )


@dataclass(eq=False)
class _Block:
    """The episodes that begin in one file."""

    number: int
    ids: NDArray[Any]
    row: IntArray
    length: IntArray
    lost: NDArray[np.bool_]
    first_frame: int | None
    alone: bool

    @staticmethod
    def of(number: int, runs: Runs) -> "_Block":
        row = np.cumsum(runs.lengths) - runs.lengths
        lost = np.zeros(len(runs.ids), np.bool_)
        return _Block(number, runs.ids, row, runs.lengths.copy(), lost, runs.first_frame, runs.alone)


def _join(blocks: list[_Block], files: FrameFiles, cut_off: bool) -> None:
    """Give an episode that goes on in the newest block to the block it began in, or say that it is cut off."""
    new = blocks[-1]
    before = blocks[-2] if len(blocks) > 1 else None
    if cut_off:
        if before is not None and not before.alone:
            before.lost[-1] = True
        # frames count from 0: only then it is known that nothing of the episode lies in the broken file
        if not new.alone and new.first_frame != 0:
            new.lost[0] = True
    elif before is not None and not before.alone and not new.alone and before.ids[-1] == new.ids[0]:
        before.length[-1] += new.length[0]
        if len(new.ids) == 1:
            # a file within one long episode begins none; what follows it must find the episode that goes on
            blocks.pop()
        else:
            new.ids, new.row, new.length, new.lost = new.ids[1:], new.row[1:], new.length[1:], new.lost[1:]


def _of_one_shape(files: FrameFiles, found: Sequence[Runs | str]) -> list[Runs | str]:
    """Return the runs with those of other dims than the first file's turned into what is wrong with them."""
    out = list(found)
    first, wanted = 0, None
    for number, runs in enumerate(found):
        if isinstance(runs, str) or runs.dims is None:
            continue
        if wanted is None:
            first, wanted = number, runs.dims
        for what, mine, got in zip(("action", "state"), wanted, runs.dims, strict=True):
            if mine != got:
                out[number] = (
                    f"expected {what}s of {mine} dims as in {files.files[first]}, got {got} in {files.files[number]}: "
                    "robots of other dims are a data set of their own"
                )
                break
    return out


def _refuse_returning(files: FrameFiles, names: IntArray, owner: NDArray[Any]) -> None:
    order = np.argsort(names, kind="stable")
    again = np.flatnonzero(np.diff(names[order]) == 0)
    if not len(again):
        return
    first, second = order[again[0]], order[again[0] + 1]
    raise FormatError(
        f"expected the frames of each episode one after the other in {files.root.name}, got episode {names[first]} in "
        f"{files.files[owner[first]]} and again in {files.files[owner[second]]}: Episodes.load reads such files as a "
        "whole, or write them in the order of their episodes"
    )


def _runs(path: Path, column: str) -> tuple[NDArray[Any], IntArray]:
    """Return value and length of each run of equal rows."""
    ids: list[NDArray[Any]] = []
    lengths: list[IntArray] = []
    for batch in column_batches(path, [column], BATCH):
        values = batch[column]
        begin = np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]) + 1])
        length = np.diff(np.concatenate([begin, [len(values)]]))
        value = values[begin]
        if ids and ids[-1][-1] == value[0]:
            lengths[-1][-1] += length[0]
            value, length = value[1:], length[1:]
        if len(value):
            ids.append(value)
            lengths.append(length)
    return np.concatenate(ids), np.concatenate(lengths)
