"""A data set of any size as a stream of Episodes, and as a sample that can be interrupted."""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from action_tokenizers.data.episodes import Episodes, warn_of_angles
from action_tokenizers.data.readers.detect import layout_of
from action_tokenizers.data.relative import Relative
from action_tokenizers.data.sample import ChunkSample
from action_tokenizers.data.sample_file import progress_of, write
from action_tokenizers.data.shards import STREAMED, BrokenFile, Each, Progress, Shards, Skipped, open_shards
from action_tokenizers.errors import ActionShapeError, ActionValueError, FormatError
from action_tokenizers.warn import warn

__all__ = [
    "complete",
    "count_left_out",
    "empty_sample",
    "is_large",
    "opened",
    "sample_files",
    "sample_shard",
    "sample_shards",
    "settled_horizon",
    "stream",
]

SAVED_EVERY = 60.0  # seconds; a full sample of 50 x 14 is 92 MB
LOOKED_AT = 4096  # chunks of a sample in which wrapped angles are looked for
LARGE = 1 << 28  # bytes of parquet from which on a data set is better read file by file


def stream(
    source: str | os.PathLike[str] | Shards,
    *,
    progress: Progress | None = None,
    **opening: Any,
) -> Iterator[Episodes]:
    """Yield the episodes of a data set in pieces, in bounded memory: `ChunkSample.of(stream(...))`, `fit(stream(...))`.

    Together the pieces hold every episode once and whole, also one that lies in several row groups or files; a sample
    of them equals a sample of `Episodes.load` of the same horizon, bit for bit. Say that horizon: without it
    `ChunkSample.of` and `fit` take one second of data, at most the median episode of the first piece alone, where for
    `Episodes.load` and `sample_shards` it is the median of all. What lies in memory is a piece of some 65,000 frames
    (or one longer episode), the columns of one row group, and some 40 bytes per episode.

    Args:
        source: LeRobot or parquet, see `open_shards`; or what that returned.
        progress: Called as `progress(stage, done, total)` per file, stages `index` and `read`.
        opening: Of `open_shards`: action, state (False saves reading them), episode, key, fps, revision, token,
            skip_broken. With skip_broken every file is read twice, so that none is delivered in part; of every file and
            episode that is left out a UserWarning tells.

    Raises:
        ActionValueError: Options of `open_shards` for what it already opened.
        FormatError: A file that cannot be used; names it.
    """
    shards = opened(source, progress, opening)
    for number in range(len(shards)):
        usable, loss = _usable(shards, number) if shards.skip_broken else (True, "")
        if loss:
            warn(loss)
        if usable:
            yield from shards.read(number, [] if shards.skip_broken else None)
        if progress is not None:
            progress("read", number + 1, len(shards))


def sample_shards(
    source: str | os.PathLike[str] | Shards,
    *,
    k: int = 32768,
    seed: int = 0,
    weights: Mapping[str, float] | None = None,
    horizon: int | None = None,
    stride: int = 1,
    relative: Relative | None = None,
    resume: str | os.PathLike[str] | None = None,
    save_every: float = SAVED_EVERY,
    progress: Progress | None = None,
    **opening: Any,
) -> ChunkSample:
    """Return a sample of a data set that is read file by file; what was done survives an interruption.

    The sample is that of `ChunkSample(k, seed, horizon=horizon).add(Episodes.load(source), ...)`, however often it was
    interrupted, and equal samples are equal bytes.

    Args:
        source: See `stream`.
        k: Most chunks to hold.
        seed: Seed of the hash.
        weights: Per key weights, for a sample that is merged with those of other data sets.
        horizon: Steps of a chunk; None takes one second of data, at most the median episode.
        stride: Frames between the first steps of neighbouring chunks.
        relative: Turns the actions relative.
        resume: File that holds the sample so far and the files it is of: written every `save_every` seconds, and
            continued where it exists. It can be loaded as a sample at any time, and is in the end the one returned.
        save_every: Seconds between two writes of `resume`; 0 after each file.
        progress: Called as `progress(stage, done, total)` per file, stages `index` and `sample`.
        opening: Of `open_shards`; states are only read where `relative` needs them.

    Raises:
        ActionShapeError: No horizon to be had, or every episode is shorter than it.
        ActionValueError: A stride below 1, no weight for the key of the data, or options of `open_shards` for what it
            already opened.
        FormatError: A file that cannot be used, too little left without those that cannot, or a `resume` file that is
            broken or of other data or settings.
        OSError: The system does not let a file be read, or `resume` be written.
    """
    shards = opened(source, progress, opening, states=relative is not None)
    sample = empty_sample(shards, k, seed, weights, horizon, stride)
    sample_files(
        shards,
        range(len(shards)),
        sample,
        stride,
        relative,
        resume,
        save_every=save_every,
        progress=progress,
        whole=True,
    )
    return complete(sample, shards)


def empty_sample(
    shards: Shards, k: int, seed: int, weights: Mapping[str, float] | None, horizon: int | None, stride: int
) -> ChunkSample:
    """Return an empty sample for a data set; what is wrong with the settings is told before a file is read.

    Raises:
        ActionShapeError: No horizon to be had.
        ActionValueError: A setting outside its domain, or no weight for the key of the data.
    """
    if stride < 1:
        raise ActionValueError(f"expected stride >= 1, got {stride}")
    if weights is not None and shards.key not in weights:
        raise ActionValueError(
            f"expected a weight for every key, got none for {shards.key!r} of {shards.source} in {dict(weights)}"
        )
    return ChunkSample(k, seed, weights, settled_horizon(shards, horizon))


def sample_files(
    shards: Shards,
    numbers: Sequence[int],
    sample: ChunkSample,
    stride: int = 1,
    relative: Relative | None = None,
    resume: str | os.PathLike[str] | None = None,
    *,
    save_every: float = SAVED_EVERY,
    progress: Progress | None = None,
    whole: bool = False,
) -> ChunkSample:
    """Add the episodes that begin in some of the files to an empty `sample`, and return it; see `sample_shards`.

    With `whole` it counts what the index left out, too: a sample that is no part to be merged with others.
    """
    plan: dict[str, Any] = {}
    if resume is not None:  # a fingerprint goes over the whole table, and every worker comes by here
        plan = {
            "data": shards.fingerprint(),
            "skip_broken": shards.skip_broken,
            "files": blake2b(json.dumps(list(numbers)).encode(), digest_size=8).hexdigest(),
            "horizon": sample.horizon,
            "stride": stride,
            "relative": None if relative is None else relative.to_json(),
            "k": sample.k,
            "seed": sample.seed,
            "weights": sample.weights,
            "whole": whole,
        }
    done: list[int] = []
    if resume is not None and Path(resume).exists():
        found, done = _resumed(resume, plan)
        sample.merge(found)
    elif whole:  # first of all, so that every file that is written has it, and whoever goes on from one has it once
        count_left_out(sample, shards)
    saved = time.monotonic()
    for number in sorted(set(numbers) - set(done)):
        sample.merge(sample_shard(shards, number, sample.part(), stride, relative))
        done.append(number)
        if resume is not None and (time.monotonic() - saved >= save_every or len(done) == len(numbers)):
            write(sample, resume, {"plan": plan, "done": sorted(done)})
            saved = time.monotonic()
        if progress is not None:
            progress("sample", len(done), len(numbers))
    return sample


def sample_shard(
    shards: Shards, number: int, part: ChunkSample, stride: int = 1, relative: Relative | None = None
) -> ChunkSample:
    """Add the episodes that begin in one file to `part`, all or none, and return it.

    A file that cannot be read is an error, or under `skip_broken` leaves the part empty but for its name. So that its
    reason is known too, a UserWarning tells of it.
    """
    empty = part.part()
    cut_off: list[Skipped] = []
    try:
        for piece in shards.pieces(number, cut_off):
            part.add(piece, part.horizon, stride, relative)
    except BrokenFile as error:
        warn(shards.left_out(number, error))
        empty.skipped_shards = (shards.name(number),)
        empty.lost_episodes = len(shards.own(number))
        return empty
    if cut_off:
        warn(shards.cut_off(number, cut_off[0]))
        # it may begin no episode of its own, and so have no other reader that names it
        part.skipped_shards = (cut_off[0].shard,)
        part.lost_episodes += 1
    return part


def count_left_out(sample: ChunkSample, shards: Shards) -> ChunkSample:
    """Count in `sample` the files and episodes that the index left out, and return it."""
    if shards.table.broken:
        index = sample.part()
        index.skipped_shards = tuple(skipped.shard for skipped in shards.skipped)
        index.lost_episodes = shards.table.lost
        sample.merge(index)
    return sample


def complete(sample: ChunkSample, shards: Shards) -> ChunkSample:
    """Return the sample of all files; warns of angles that wrap.

    Raises:
        ActionShapeError: Every episode is shorter than the horizon.
        FormatError: So is every one that is left without the broken files, if there is any.
    """
    if len(sample) == 0 and sample.skipped_shards:
        raise FormatError(
            f"expected an episode of at least horizon {sample.horizon} steps in {shards.source}, got {sample.skipped} "
            f"shorter ones and {len(sample.skipped_shards)} files that cannot be used: {_first_loss(shards)}; repair "
            "them, or give a smaller horizon= if there are shorter ones"
        )
    if len(sample) == 0:
        raise ActionShapeError(
            f"expected an episode of at least horizon {sample.horizon} steps in {shards.source}, got "
            f"{sample.skipped} episodes, the longest of {sample.longest_skipped}: give a smaller horizon="
        )
    _warn_of_angles(sample)
    return sample


def is_large(path: Path) -> bool:
    """Say whether a local data set can be streamed and is worth it: parquet files of 256 MiB or more together."""
    if layout_of(path) not in STREAMED:
        return False
    files = [path] if path.is_file() else path.rglob("*.parquet")
    return sum(file.stat().st_size for file in files if file.is_file()) >= LARGE


def opened(
    source: str | os.PathLike[str] | Shards,
    progress: Progress | None,
    opening: Mapping[str, Any],
    *,
    states: bool = True,
    each: Each | None = None,
) -> Shards:
    """Return the data set, opened with `opening`.

    Args:
        source: See `stream`.
        progress: See `stream`.
        opening: See `stream`.
        states: Whether they are needed: where not, and `opening` does not ask for them, they are not read.
        each: Of `open_shards`.

    Raises:
        ActionValueError: Options for a data set that is already open.
    """
    if not isinstance(source, Shards):
        usual = {} if states else {"state": False}
        return open_shards(source, progress=progress, each=each, **(usual | dict(opening)))
    if opening:
        raise ActionValueError(
            f"expected no {', '.join(sorted(opening))} for a data set that is already open: give them to open_shards"
        )
    return source


def settled_horizon(shards: Shards, horizon: int | None) -> int:
    """Return `horizon`, or one second of data.

    Raises:
        ActionShapeError: Neither.
    """
    settled = shards.horizon if horizon is None else horizon
    if settled is None:
        raise ActionShapeError(f"expected a horizon, because {shards.source} does not say its fps: give horizon=")
    return settled


def _warn_of_angles(sample: ChunkSample) -> None:
    """Warn of dims that jump by about one turn, as `Episodes.load` does, from the chunks of the sample."""
    if sample.relative is not None or sample.actions.shape[1] < 2:
        return
    warn_of_angles(Episodes(list(sample.actions[:LOOKED_AT])), ", ".join(sample.sources))


def _usable(shards: Shards, number: int) -> tuple[bool, str]:
    """Return whether a file can be read, and what is lost if not all of it is delivered."""
    cut_off: list[Skipped] = []
    try:
        for _ in shards.pieces(number, cut_off):
            pass
    except BrokenFile as error:
        return False, shards.left_out(number, error)
    return True, shards.cut_off(number, cut_off[0]) if cut_off else ""


def _first_loss(shards: Shards) -> str:
    if shards.skipped:
        return f"{shards.skipped[0].shard} left out: {shards.skipped[0].reason}"
    return next(filter(None, (_usable(shards, number)[1] for number in range(len(shards)))), "")


def _resumed(path: str | os.PathLike[str], plan: dict[str, Any]) -> tuple[ChunkSample, list[int]]:
    progress = progress_of(path)
    other = progress.get("plan")
    other = other if isinstance(other, dict) else {}
    # whoever met a broken file may leave it out from there on, but nothing that was left out comes in again
    may_differ = {"skip_broken"} if plan["skip_broken"] else set()
    differ = sorted(name for name in plan if other.get(name) != plan[name] and name not in may_differ)
    if differ:
        told = ", ".join(f"{name} {other.get(name)!r} instead of {plan[name]!r}" for name in differ)
        raise FormatError(
            f"expected the sample of this data and these settings in {Path(path).absolute()}, got {told}: "
            "delete it to begin anew, or give another path"
        )
    done: Iterable[Any] = progress.get("done", ())
    return ChunkSample.load(path), [int(number) for number in done]
