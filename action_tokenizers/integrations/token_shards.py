"""A data set encoded into parquet files of tokens: one per input file, and a manifest that makes them whole.

What every engine shares. `write_shard` may run anywhere, in any order and again: a file appears under its name only
when it is complete, by a rename, and one that is there is checked and kept. Until `finish` has written `_manifest.json`
the folder is not a token data set, and `_encoding.json` in it says what is being made: who finds it goes on with the
same or is refused. The bytes depend on the data and the tokenizer, not on the engine.

Columns: `episode_index` (int64), `start` (int64, frame of the chunk's first step), `frames` (int32, recorded steps; the
rest of an episode's last chunk repeats its last action), `tokens` (list<int32>, without pads) and, for relative
actions, `reference` (list<float>). The schema's metadata, key `action_tokenizers`, holds the tokenizer's digest and how
the chunks were cut.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from errno import EDQUOT, EFBIG, ENOSPC
from fnmatch import fnmatchcase
from functools import partial
from itertools import chain
from pathlib import Path
from secrets import token_hex
from typing import Any, Self

import numpy as np
from safetensors.torch import save as save_tensors

from action_tokenizers.artifact import to_json_bytes, to_parts
from action_tokenizers.base import ActionTokenizer
from action_tokenizers.data.chunks import gather, plan_chunks
from action_tokenizers.data.episodes import Episodes
from action_tokenizers.data.shards import BrokenFile, Progress, Shards, Skipped, in_turn
from action_tokenizers.data.streaming import opened, settled_horizon
from action_tokenizers.errors import ActionShapeError, ActionValueError, FormatError
from action_tokenizers.extras import require
from action_tokenizers.folder import STALE, delete_left
from action_tokenizers.warn import warn

__all__ = [
    "MANIFEST",
    "MARK",
    "Encoding",
    "Written",
    "encode_shards",
    "finish",
    "prepare",
    "read_manifest",
    "tokenizer_digest",
    "write_shard",
]

# readers of parquet folders pass over such names
MANIFEST = "_manifest.json"
MARK = "_encoding.json"
TOKENS = "tokens-*.parquet"
LISTED = ("file", "shard", "episodes", "chunks", "frames", "tokens", "size", "sha256")  # in the manifest, of a file
FORMAT, VERSION = "action_tokenizers token shards", 1
BLOCK = 1 << 22  # action values encoded at once: 6,000 chunks of 50 x 14


@dataclass(frozen=True, eq=False)
class Encoding:
    """What is being encoded, and how; `data` is the data's fingerprint, `run` is in the names of temporary files."""

    shards: Shards
    tokenizer: ActionTokenizer
    folder: Path
    key: str
    horizon: int
    stride: int
    digest: str
    data: str
    run: str

    @property
    def settings(self) -> dict[str, Any]:
        """What every file and the manifest say of the whole."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "tokenizer": self.digest,
            "tokenizer_type": self.tokenizer.tokenizer_type,
            "vocab_size": self.tokenizer.vocab_size,
            "pad_id": self.tokenizer.pad_id,
            "horizon": self.horizon,
            "action_dim": self.shards.action_dim,
            "stride": self.stride,
            "key": self.key,
            "source": self.shards.source,
            "data": self.data,
        }

    def here(self) -> Self:
        """Return the same for the machine this runs on, see `Shards.here`."""
        return replace(self, shards=self.shards.here())

    def file(self, number: int) -> Path:
        """Return where the tokens of an input file go."""
        return self.folder / f"tokens-{number:06d}.parquet"


@dataclass(frozen=True)
class Written:
    """What became of one input file.

    Attributes:
        shard: Name of the input file.
        file: Name of the file of tokens; None where no episode begins in the input file, or it was left out.
        episodes: Number of episodes.
        chunks: Number of chunks.
        frames: Recorded steps that the chunks hold.
        tokens: Number of ids.
        size: Bytes of the file of tokens.
        sha256: Of the file of tokens.
        lost: Episodes left out because a file could not be read.
        skipped: Name of the input file that cannot be used: this one, or the one that the last episode goes on in;
            empty where there is none.
        kept: Whether the file was there already, complete.
    """

    shard: str
    file: str | None = None
    episodes: int = 0
    chunks: int = 0
    frames: int = 0
    tokens: int = 0
    size: int = 0
    sha256: str = ""
    lost: int = 0
    skipped: str = ""
    kept: bool = False


def tokenizer_digest(tokenizer: ActionTokenizer) -> str:
    """Return a SHA-256 over config and tensors: of a saved tokenizer the same as before it was saved.

    Raises:
        NotFittedError: Not fitted.
    """
    config, tensors = to_parts(tokenizer)
    return hashlib.sha256(to_json_bytes(config) + save_tensors(tensors)).hexdigest()


def encode_shards(
    tokenizer: ActionTokenizer,
    source: str | os.PathLike[str] | Shards,
    folder: str | os.PathLike[str],
    *,
    horizon: int | None = None,
    stride: int | None = None,
    key: str | None = None,
    progress: Progress | None = None,
    **opening: Any,
) -> dict[str, Any]:
    """Encode a data set into a folder of token files, in one process, and return the manifest.

    Interrupted, or stopped by a full disk, it goes on where it was when called again: files that are there are checked
    and kept. So are those of a complete folder, which counts as incomplete meanwhile. Two at once of the same encoding
    do no harm.

    Args:
        tokenizer: Fitted.
        source: LeRobot or parquet, see `open_shards`; or what that returned.
        folder: New, or of the same encoding.
        horizon: Steps of a chunk, where the tokenizer leaves it open; None: one second of data.
        stride: Frames between the first steps of neighbouring chunks; None: the horizon.
        key: Whose range; needed where several were fitted.
        progress: Called as `progress(stage, done, total)` per file, stages `index` and `encode`.
        opening: Of `open_shards`.

    Raises:
        ActionShapeError: Another horizon, another number of dims or another key than the tokenizer has.
        ActionValueError: A horizon or stride below 1, options for a data set that is open already, or a folder in which
            files count as data.
        FormatError: A file that cannot be used, or a folder of something else.
        OSError: It cannot be written; says what is kept. Or a file that the system does not let be read.
    """
    encoding = prepare(tokenizer, source, folder, horizon, stride, key, progress, **opening)
    numbers = range(len(encoding.shards))
    return finish(encoding, list(in_turn(progress)(partial(write_shard, encoding), numbers, "encode")))


def prepare(
    tokenizer: ActionTokenizer,
    source: str | os.PathLike[str] | Shards,
    folder: str | os.PathLike[str],
    horizon: int | None = None,
    stride: int | None = None,
    key: str | None = None,
    progress: Progress | None = None,
    **opening: Any,
) -> Encoding:
    """Index the data, mark the folder as incomplete, and return what `write_shard` and `finish` need.

    Of several processes one prepares for all; arguments are those of `encode_shards`.
    """
    digest = tokenizer_digest(tokenizer)
    source = opened(source, progress, opening, states=tokenizer.relative is not None)
    wanted = tokenizer.horizon if horizon is None else horizon
    settled = settled_horizon(source, wanted)
    step = settled if stride is None else stride
    if settled < 1 or step < 1:
        raise ActionValueError(f"expected horizon >= 1 and stride >= 1, got {settled} and {step}")
    if tokenizer.horizon not in (None, settled):
        raise ActionShapeError(f"expected horizon {tokenizer.horizon}, as the tokenizer has, got {settled}")
    if tokenizer.action_dim not in (None, source.action_dim):
        raise ActionShapeError(
            f"expected actions of {tokenizer.action_dim} dims, got {source.action_dim} in {source.source}"
        )
    if key is None:
        if len(tokenizer.range_keys) > 1:
            raise ActionShapeError(f"expected key= among {list(tokenizer.range_keys)}, got none")
        key = tokenizer.range_keys[0]
    elif key not in tokenizer.range_keys:
        raise ActionShapeError(f"expected key= among {list(tokenizer.range_keys)}, got {key!r}")
    place = Path(os.path.abspath(folder))
    encoding = Encoding(source, tokenizer, place, key, settled, step, digest, source.fingerprint(), token_hex(4))
    if source.files.takes(encoding.file(0)):
        raise ActionValueError(
            f"expected a folder whose parquet files are not those of the data, got {place} in {source.files.root}: "
            "name one beside it"
        )
    return _marked(encoding)


def write_shard(encoding: Encoding, number: int) -> Written:
    """Encode the episodes that begin in one input file; a file of tokens that is whole and of the same is kept.

    Raises:
        FormatError: The input file cannot be read, unless the data set was opened with `skip_broken`.
        OSError: The file of tokens cannot be written, what was written before stays; or the input file cannot be read
            now, as on a machine out of file handles, which does not make it a broken one.
    """
    target = encoding.file(number)
    found = _kept(encoding, number)
    if found is not None:
        return found
    temporary = target.with_name(f".{target.name}.{encoding.run}-{token_hex(4)}")
    written = None
    try:
        written = _write(encoding, number, temporary)
        if written.chunks:
            os.replace(temporary, target)
        else:
            target.unlink(missing_ok=True)
        return written
    except BrokenFile as error:
        target.unlink(missing_ok=True)
        shard = encoding.shards.name(number)
        warn(encoding.shards.left_out(number, error))
        return Written(shard, lost=len(encoding.shards.own(number)), skipped=shard)
    except _Unread as unread:
        raise unread.error from unread.error.__cause__
    except OSError as error:
        # another encode of the same may have been faster, and have swept up
        if written is not None and target.is_file() and _sha256(target) == written.sha256:
            return written
        found = _kept(encoding, number)
        if found is not None:
            return found
        raise _unwritten(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def finish(encoding: Encoding, written: list[Written]) -> dict[str, Any]:
    """Write the manifest, which makes the folder a token data set, and return it.

    Raises:
        ActionValueError: No file of tokens was written.
        FormatError: A file of tokens of another encoding, or one too many, which somebody put there meanwhile.
        OSError: It cannot be written; says what is kept.
    """
    skipped = {one.shard for one in encoding.shards.skipped} | {one.skipped for one in written if one.skipped}
    if not any(one.chunks for one in written):
        why = f"left out as broken: {', '.join(sorted(skipped))}" if skipped else "there is nothing to encode"
        raise ActionValueError(f"expected chunks in {encoding.shards.source}, got none: {why}")
    expected = {one.file: _said(encoding, one.shard) for one in written if one.file}
    for name in sorted({*expected, *(file.name for file in encoding.folder.glob(TOKENS))}):
        if name not in expected or _saying(encoding.folder / name) != expected[name]:
            wanted, got = (f"{name} of this encoding", "none or another") if name in expected else (f"no {name}", "one")
            raise FormatError(
                f"expected {wanted} in {encoding.folder}, got {got}: something else writes into the folder; encode "
                "again, or into a folder of its own"
            )
    manifest = {
        **encoding.settings,
        "episodes": sum(one.episodes for one in written),
        "chunks": sum(one.chunks for one in written),
        "frames": sum(one.frames for one in written),
        "tokens": sum(one.tokens for one in written),
        "skipped_shards": sorted(skipped),
        "lost_episodes": encoding.shards.table.lost + sum(one.lost for one in written),
        "files": [{name: getattr(one, name) for name in LISTED} for one in written if one.file],
    }
    _sweep(encoding)
    _replace(encoding.folder / MANIFEST, to_json_bytes(manifest))
    (encoding.folder / MARK).unlink(missing_ok=True)
    return manifest


def read_manifest(folder: str | os.PathLike[str], *, verify: bool = False) -> dict[str, Any]:
    """Return the manifest of a token data set whose files are all there, in full length.

    Args:
        folder: Of the token data set.
        verify: Read every file and compare its SHA-256, too.

    Raises:
        FormatError: An incomplete one, one with other files than the manifest says, or none.
    """
    place = Path(folder)
    if (place / MARK).is_file():
        done = len(list(place.glob(TOKENS)))
        raise FormatError(f"expected a complete token data set, got an unfinished one, {done} files: encode again")
    if not (place / MANIFEST).is_file():
        raise FormatError(f"expected {MANIFEST} in {place.name}, got none: it is no token data set")
    manifest = _read(place / MANIFEST)
    files = manifest.get("files")
    whole = isinstance(files, list) and all(isinstance(one, dict) and one.keys() >= set(LISTED) for one in files)
    if (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION) or not whole:
        raise FormatError(f"expected {MANIFEST} of token shards of version {VERSION} in {place.name}, got another")
    for one in manifest["files"]:
        file = place / one["file"]
        size = file.stat().st_size if file.is_file() else None
        if size != one["size"] or (verify and _sha256(file) != one["sha256"]):
            got = "none" if size is None else f"{size} bytes" if size != one["size"] else "other contents"
            raise FormatError(
                f"expected {one['file']} of {one['size']} bytes in {place.name}, as {MANIFEST} says, got {got}: "
                "copy it again, or encode again"
            )
    return manifest


def _marked(encoding: Encoding) -> Encoding:
    """Say in the folder what is being made in it; refuse one in which something else was or is.

    Returns:
        The encoding, of the run that began it.
    """
    mark, manifest = encoding.folder / MARK, encoding.folder / MANIFEST
    encoding.folder.mkdir(parents=True, exist_ok=True)
    _of_the_same(encoding, manifest)
    # looked at before the mark: an encode that begins meanwhile makes that first
    there = [entry.name for entry in sorted(encoding.folder.iterdir()) if not entry.name.startswith(".")]
    known = MARK in there or MANIFEST in there or mark.is_file() or manifest.is_file()
    if there and not known:
        raise FormatError(f"expected a new or empty folder, got {encoding.folder} with {there[0]} and no {MANIFEST}")
    ours = {encoding.file(number).name for number in range(len(encoding.shards))}
    foreign = [name for name in there if fnmatchcase(name, TOKENS) and name not in ours]
    if foreign:
        raise FormatError(f"expected no {foreign[0]} in {encoding.folder}, got one: move it away, it is none of these")
    # the mark before the manifest goes: at no moment does an incomplete folder look complete
    try:
        _create(mark, to_json_bytes({**encoding.settings, "run": encoding.run}))
    except FileExistsError:
        run = _of_the_same(encoding, mark).get("run")
        encoding = encoding if run is None else replace(encoding, run=run)
    else:
        try:
            _of_the_same(encoding, manifest)  # of one that was finished meanwhile
        except FormatError:
            mark.unlink()
            raise
    manifest.unlink(missing_ok=True)
    return encoding


def _of_the_same(encoding: Encoding, file: Path) -> dict[str, Any]:
    """Return what a mark or manifest says, nothing where there is none; refuse that of another encoding."""
    if not file.is_file():
        return {}
    there, wanted = _read(file), json.loads(to_json_bytes(encoding.settings))
    differ = sorted(setting for setting in wanted if there.get(setting) != wanted[setting])
    if differ:
        raise FormatError(
            f"expected a new folder or one of the same encoding, got {encoding.folder} of another "
            f"{', '.join(differ)}: encode into a folder of its own"
        )
    return there


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        found = error
    if not isinstance(found, dict):
        raise FormatError(
            f"expected what is encoded in {file}, got a file that cannot be read ({found}): copy it again, or delete "
            "it and the files of tokens to begin anew"
        )
    return found


def _sweep(encoding: Encoding) -> None:
    """Delete what killed workers of this run left, and what is too old for anybody to write on to it."""
    names = (TOKENS, MARK, MANIFEST)
    for left in chain.from_iterable(encoding.folder.glob(f".{name}.*") for name in names):
        delete_left(left, 0.0 if f".parquet.{encoding.run}-" in left.name else STALE)


def _write(encoding: Encoding, number: int, path: Path) -> Written:
    parquet = require("pyarrow.parquet", "data")
    schema = _schema(encoding, number)
    cut_off: list[Skipped] = []
    episodes = chunks = frames = tokens = 0
    with path.open("wb") as file:
        with parquet.ParquetWriter(file, schema, write_page_checksum=True) as writer:
            for rows in _blocks(encoding, number, cut_off):
                writer.write_table(_table(schema, rows))
                chunks, tokens = chunks + len(rows["start"]), tokens + len(rows["tokens"])
                frames, episodes = frames + int(rows["frames"].sum()), episodes + rows["new_episodes"]
        file.flush()
        os.fsync(file.fileno())
    shard, lost, skipped = encoding.shards.name(number), len(cut_off), ""
    if cut_off:
        warn(encoding.shards.cut_off(number, cut_off[0]))
        skipped = cut_off[0].shard
    if not chunks:
        return Written(shard, lost=lost, skipped=skipped)
    name, size, digest = encoding.file(number).name, path.stat().st_size, _sha256(path)
    return Written(shard, name, episodes, chunks, frames, tokens, size, digest, lost, skipped)


class _Unread(Exception):
    """What the system says of reading, told apart from what it says of writing."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def _pieces(encoding: Encoding, number: int, cut_off: list[Skipped]) -> Iterator[Episodes]:
    try:
        yield from encoding.shards.pieces(number, cut_off)
    except OSError as error:
        raise _Unread(error) from error


def _blocks(encoding: Encoding, number: int, cut_off: list[Skipped]) -> Iterator[dict[str, Any]]:
    """Yield the columns of some thousand chunks at a time; `tokens` are joined, `length` says how many each has."""
    tokenizer = encoding.tokenizer
    step = max(1, BLOCK // (encoding.horizon * encoding.shards.action_dim))
    last = None
    for piece in _pieces(encoding, number, cut_off):
        plan = plan_chunks(piece, encoding.horizon, encoding.stride, pad_tail=True)
        for begin in range(0, len(plan), step):
            found = gather(piece, plan[begin : begin + step], tokenizer.relative)
            ids = tokenizer.encode(found.actions, key=encoding.key, action_is_pad=found.action_is_pad)
            real = tokenizer.pad_mask(ids)
            new = len(np.unique(found.episode)) - (found.episode[0] == last)
            last = found.episode[-1]
            yield {
                "episode_index": found.episode,
                "start": found.start,
                "frames": (~found.padding).sum(axis=1).astype(np.int32),
                "tokens": ids[real].astype(np.int32),
                "length": real.sum(axis=1),
                "reference": found.reference,
                "new_episodes": int(new),
            }


def _schema(encoding: Encoding, number: int) -> Any:
    pa = require("pyarrow", "data")
    fields = [
        ("episode_index", pa.int64()),
        ("start", pa.int64()),
        ("frames", pa.int32()),
        ("tokens", pa.list_(pa.int32())),
    ]
    if encoding.tokenizer.relative is not None:
        fields.append(("reference", pa.list_(pa.float32())))
    return pa.schema(fields, metadata={b"action_tokenizers": _said(encoding, encoding.shards.name(number))})


def _said(encoding: Encoding, shard: str) -> bytes:
    return json.dumps({**encoding.settings, "shard": shard}, sort_keys=True).encode()


def _saying(path: Path) -> bytes | None:
    """Return what a file of tokens says of itself, None where it cannot be read."""
    pa, parquet = require("pyarrow", "data"), require("pyarrow.parquet", "data")
    try:
        said: bytes | None = (parquet.read_schema(path).metadata or {}).get(b"action_tokenizers")
    except (pa.ArrowException, OSError):
        return None
    return said


def _table(schema: Any, rows: dict[str, Any]) -> Any:
    pa = require("pyarrow", "data")
    columns = [rows["episode_index"], rows["start"], rows["frames"], _lists(rows["tokens"], rows["length"])]
    if "reference" in schema.names:
        reference = rows["reference"]
        columns.append(_lists(reference.ravel(), np.full(len(reference), reference.shape[1])))
    return pa.table(columns, schema=schema)


def _lists(values: Any, lengths: Any) -> Any:
    pa = require("pyarrow", "data")
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _kept(encoding: Encoding, number: int) -> Written | None:
    """Return what a finished file holds, None where it is to be written (again).

    That is one, too, which lacks an episode because another file could not be read: it may be readable now.
    """
    pa, parquet = require("pyarrow", "data"), require("pyarrow.parquet", "data")
    path = encoding.file(number)
    if not path.is_file():
        return None
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            said = (file.schema_arrow.metadata or {}).get(b"action_tokenizers")
            if said != _said(encoding, encoding.shards.name(number)):
                return None
            names, chunks, frames, tokens = set(), 0, 0, 0
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                names.update(table.column("episode_index").unique().to_pylist())
                chunks, frames = chunks + table.num_rows, frames + int(table.column("frames").to_numpy().sum())
                tokens += sum(len(lists.flatten()) for lists in table.column("tokens").chunks)
    except (pa.ArrowException, OSError):
        return None
    expected = encoding.shards.chunks(number, encoding.horizon, encoding.stride, pad_tail=True)
    if chunks != expected or len(names) != len(encoding.shards.own(number)):
        return None
    shard, size, digest = encoding.shards.name(number), path.stat().st_size, _sha256(path)
    return Written(shard, path.name, len(names), chunks, frames, tokens, size, digest, kept=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(path: Path, data: bytes) -> None:
    try:
        with _beside(path, data) as temporary:
            os.replace(temporary, path)
    except OSError as error:
        raise _unwritten(path, error) from error


def _create(path: Path, data: bytes) -> None:
    """Write a file of a name that is free, which others find complete.

    Raises:
        FileExistsError: It is not free.
    """
    try:
        with _beside(path, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                raise
            except OSError:  # a file system without links: there others may find it half written
                with path.open("xb") as file:
                    file.write(data)
    except FileExistsError:
        raise
    except OSError as error:
        raise _unwritten(path, error) from error


@contextmanager
def _beside(path: Path, data: bytes) -> Iterator[Path]:
    """Yield a temporary file of `data` in the same folder, safe on the disk before it gets its name."""
    temporary = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _unwritten(path: Path, error: OSError) -> OSError:
    full = error.errno in (ENOSPC, EDQUOT, EFBIG)
    return type(error)(
        error.errno or 0,
        f"could not write {path.name} to {path.parent}: {error.strerror or error}; the folder is incomplete, its "
        f"finished files are kept: {'make room and encode again' if full else 'encode again'}",
    )
