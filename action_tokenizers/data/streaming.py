"""A data set of any size as a stream of Episodes, and as a sample that can be interrupted."""

import json
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from action_tokenizers.data.episodes import Episodes, angle_jumps
from action_tokenizers.data.readers.detect import layout_of
from action_tokenizers.data.relative import Relative
from action_tokenizers.data.sample import ChunkSample
from action_tokenizers.data.sample_file import progress_of, write
from action_tokenizers.data.shards import STREAMED, Progress, Shards, open_shards
from action_tokenizers.errors import ActionShapeError, ActionTokenizerError, FormatError

__all__ = ["complete", "is_large", "sample_files", "sample_shard", "sample_shards", "settled_horizon", "stream"]

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
    of them equals a sample of `Episodes.load`, bit for bit. What lies in memory is a piece of some 65,000 frames (or
    one longer episode), the columns of one row group, and some 40 bytes per episode.

    Args:
        source: LeRobot or parquet, see `open_shards`; or what that returned.
        progress: Called as `progress(stage, done, total)` per file, stages `index` and `read`.
        opening: Of `open_shards`: action, state (False saves reading them), episode, key, fps, revision, token,
            skip_broken. With skip_broken every file is read twice, so that none is delivered in part.

    Raises:
        FormatError: A file that cannot be used; names it.
    """
    shards = source if isinstance(source, Shards) else open_shards(source, progress=progress, **opening)
    for number in range(len(shards)):
        if not shards.skip_broken or _readable(shards, number):
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
            continued where it exists. It can be loaded as a sample at any time.
        save_every: Seconds between two writes of `resume`; 0 after each file.
        progress: Called as `progress(stage, done, total)` per file, stages `index` and `sample`.
        opening: Of `open_shards`; states are only read where `relative` needs them.

    Raises:
        ActionShapeError: No horizon to be had, or every episode is shorter than it.
        FormatError: A file that cannot be used, or a `resume` file of other data or settings.
    """
    if not isinstance(source, Shards):
        source = open_shards(source, progress=progress, **({"state": None if relative else False} | opening))
    settled = settled_horizon(source, horizon)
    sample = ChunkSample(k, seed, weights, settled)
    numbers = range(len(source))
    return complete(
        sample_files(source, numbers, sample, stride, relative, resume, save_every=save_every, progress=progress),
        source,
    )


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
) -> ChunkSample:
    """Add the episodes that begin in some of the files to an empty `sample`, and return it; see `sample_shards`."""
    plan = {
        "data": shards.fingerprint(),
        "files": blake2b(json.dumps(list(numbers)).encode(), digest_size=8).hexdigest(),
        "horizon": sample.horizon,
        "stride": stride,
        "relative": None if relative is None else relative.to_json(),
        "k": sample.k,
        "seed": sample.seed,
        "weights": sample.weights,
    }
    done: list[int] = []
    if resume is not None and Path(resume).exists():
        found, done = _resumed(resume, plan)
        sample.merge(found)
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

    A file that cannot be read is an error, or under `skip_broken` leaves the part empty but for its name.
    """
    empty = part.part()
    cut_off: list[int] | None = [] if shards.skip_broken else None
    try:
        for piece in shards.read(number, cut_off):
            part.add(piece, part.horizon, stride, relative)
    except ActionTokenizerError:
        if not shards.skip_broken:
            raise
        part = empty
        part.skipped_shards = (shards.name(number),)
        part.lost_episodes = len(shards.own(number))
        return part
    part.lost_episodes += len(cut_off or ())
    return part


def complete(sample: ChunkSample, shards: Shards) -> ChunkSample:
    """Return the sample of all files with what the index left out counted in; warns of angles that wrap.

    Raises:
        ActionShapeError: Every episode is shorter than the horizon.
    """
    if shards.table.broken:
        index = sample.part()
        index.skipped_shards = tuple(skipped.shard for skipped in shards.skipped)
        index.lost_episodes = shards.table.lost
        sample.merge(index)
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
    return sum(file.stat().st_size for file in files) >= LARGE


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
    jumps = angle_jumps(Episodes(list(sample.actions[:LOOKED_AT])))
    if jumps:
        warnings.warn(
            f"action dims {jumps} of {', '.join(sample.sources)!r} jump by about 2*pi between frames, as wrapped "
            'angles do: fit on Relative("state", angles=...) or unwrap them (np.unwrap) first',
            UserWarning,
            stacklevel=3,
        )


def _readable(shards: Shards, number: int) -> bool:
    try:
        for _ in shards.read(number, []):
            pass
    except ActionTokenizerError as error:
        warnings.warn(f"{shards.name(number)} is left out: {error}", UserWarning, stacklevel=3)
        return False
    return True


def _resumed(path: str | os.PathLike[str], plan: dict[str, Any]) -> tuple[ChunkSample, list[int]]:
    progress = progress_of(path)
    other = progress.get("plan")
    other = other if isinstance(other, dict) else {}
    differ = sorted(name for name in plan if other.get(name) != plan[name])
    if differ:
        told = ", ".join(f"{name} {other.get(name)!r} instead of {plan[name]!r}" for name in differ)
        raise FormatError(
            f"expected the sample of this data and these settings in {Path(path).name}, got {told}: "
            "delete it to begin anew, or give another path"
        )
    done: Iterable[Any] = progress.get("done", ())
    return ChunkSample.load(path), [int(number) for number in done]
