"""A sample as one safetensors file: tensors, and a JSON header in the file's metadata."""

import glob
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from action_tokenizers.data.door import FloatArray, refuse_nonfinite
from action_tokenizers.data.readers.system import raise_of_the_system
from action_tokenizers.data.relative import Relative
from action_tokenizers.errors import FormatError
from action_tokenizers.folder import delete_left

if TYPE_CHECKING:
    from action_tokenizers.data.sample import ChunkSample

__all__ = ["digest", "progress_of", "read", "write"]

VERSION = 1
Tensors = dict[str, NDArray[Any]]


def digest(sample: "ChunkSample") -> str:
    """Return a hex blake2b over everything `write` would write."""
    header, tensors = _contents(sample)
    state = blake2b(header.encode(), digest_size=16)
    for name in sorted(tensors):
        little = tensors[name].astype(tensors[name].dtype.newbyteorder("<"), copy=False)
        state.update(f"{name} {little.dtype.str} {little.shape}".encode())
        state.update(np.ascontiguousarray(little).data)
    return state.hexdigest()


def write(sample: "ChunkSample", path: str | os.PathLike[str], progress: Mapping[str, Any] | None = None) -> None:
    """Write the file beside its place and move it there: readers see all of it or none.

    `progress` is kept beside the sample, in the same file, for `progress_of`.

    Raises:
        OSError: It cannot be written, because the disk is full and the like; names the file, of which an older version
            stays as it is.
    """
    from safetensors.numpy import save

    header, tensors = _contents(sample)
    target = Path(path).absolute()
    metadata = {"sample": header}
    if progress is not None:
        metadata["progress"] = json.dumps(progress, sort_keys=True)
    data = save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, metadata)
    temporary = target.with_name(f".{target.name}.{token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # or a power cut leaves the new name without the new bytes
        os.replace(temporary, target)
    except OSError as error:
        raise OSError(
            error.errno,
            f"expected to write a sample to {target}, got {error.strerror}: make room there or give another path, "
            "and call again; what was written there before is as it was",
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _sweep(target: Path) -> None:
    """Delete what killed writers of `target` left, where it is too old for anybody to write on to it."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 8}"):
        delete_left(left)


def read(path: str | os.PathLike[str]) -> "ChunkSample":
    """Return the sample of the file; FormatError for anything but a whole sample of this version."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get("sample", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"expected a chunk sample at {Path(path).name}, got {error}") from error
    version = header.get("version") if isinstance(header, dict) else f"none in a {type(header).__name__}"
    if version != VERSION:
        raise FormatError(
            f"expected a chunk sample of version {VERSION} at {Path(path).name}, got version {version}: "
            "sample the data again"
        )
    try:
        return _restored(header, tensors)
    except MemoryError:
        raise
    except Exception as error:  # a header may hold any JSON: what that raises has no common base
        raise FormatError(f"broken chunk sample {Path(path).name}: {error!r}: sample the data again") from error


def progress_of(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what `write` was given as `progress`.

    Raises:
        FormatError: The file has none, or is cut short or empty.
        OSError: The system does not let it be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            progress = json.loads((file.metadata() or {}).get("progress", "null"))
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise_of_the_system(error, str(path))
        raise FormatError(
            f"expected an unfinished chunk sample at {Path(path).absolute()}, got {error}: delete it to begin anew"
        ) from error
    if not isinstance(progress, dict):
        raise FormatError(
            f"expected an unfinished chunk sample at {Path(path).absolute()}, got a file without progress: "
            "give another path to resume from, or delete it to begin anew"
        )
    return progress


def _contents(sample: "ChunkSample") -> tuple[str, Tensors]:
    rows, groups = sample._rows, sample._reservoir.groups
    header: dict[str, Any] = {
        "version": VERSION,
        "k": sample.k,
        "seed": sample.seed,
        "weights": sample.weights,
        "horizon": sample.horizon,
        "action_dim": sample.action_dim,
        "relative": None if sample.relative is None else sample.relative.to_json(),
        "groups": groups,
        "count": sample.count,
        "skipped": sample.skipped,
        "longest_skipped": sample.longest_skipped,
        "fps": sorted(sample._fps, key=lambda fps: (fps is not None, fps)),
    }
    if sample.skipped_shards or sample.lost_episodes:  # only where there are any: other samples keep their bytes
        header |= {"skipped_shards": sample.skipped_shards, "lost_episodes": sample.lost_episodes}
    shape = (len(sample.count), sample.action_dim or 0)
    tensors = {
        "actions": rows.actions,
        "action_is_pad": rows.pad,
        "group": rows.group,
        "episode": rows.episode,
        "start": rows.start,
        "minimum": np.array(list(sample.minimum.values()), np.float32).reshape(shape),
        "maximum": np.array(list(sample.maximum.values()), np.float32).reshape(shape),
    }
    return json.dumps(header, sort_keys=True), tensors


def _restored(header: dict[str, Any], tensors: Tensors) -> "ChunkSample":
    from action_tokenizers.data.sample import ChunkSample

    sample = ChunkSample(header["k"], header["seed"], header["weights"], header["horizon"])
    sample.action_dim = header["action_dim"]
    sample.relative = None if header["relative"] is None else Relative.from_json(header["relative"])
    sample.skipped, sample.longest_skipped = header["skipped"], header["longest_skipped"]
    sample.skipped_shards = tuple(map(str, header.get("skipped_shards", ())))
    sample.lost_episodes = int(header.get("lost_episodes", 0))
    sample._fps = set(header["fps"])
    for i, (key, count) in enumerate(sorted(header["count"].items())):
        sample._note(key, count, (tensors["minimum"][i], tensors["maximum"][i]))
    groups = [(str(key), str(source)) for key, source in header["groups"]]
    _check(tensors, (len(tensors["actions"]), sample.horizon or 0, sample.action_dim or 0), len(groups))
    for number, group in enumerate(groups):
        at = np.flatnonzero(tensors["group"] == number)
        chunks, pad = tensors["actions"][at], tensors["action_is_pad"][at]
        sample._offer(group, tensors["episode"][at], tensors["start"][at], partial(_pick, chunks, pad))
    return sample


def _pick(chunks: FloatArray, pad: NDArray[np.bool_], rows: NDArray[np.int64]) -> tuple[FloatArray, NDArray[np.bool_]]:
    return chunks[rows], pad[rows]


def _check(tensors: Tensors, shape: tuple[int, int, int], groups: int) -> None:
    wanted = {"actions": (shape, "float32"), "action_is_pad": (shape[:2], "bool")}
    wanted |= dict.fromkeys(("group", "episode", "start"), (shape[:1], "int64"))
    for name, (size, dtype) in wanted.items():
        got = tensors[name]
        if got.shape != size or got.dtype != dtype:
            raise FormatError(f"expected {name} {size} {dtype}, got {got.shape} {got.dtype}")
    if not np.isin(tensors["group"], np.arange(groups)).all():
        raise FormatError(f"expected groups 0..{groups - 1}, got others")
    refuse_nonfinite(tensors["actions"], ("chunk", "step", "dim"))
