"""torchrun: ranks read their share of the files, and every rank ends up with the same sample or tokenizer.

    torchrun --nproc-per-node 8 my_fit.py          # which calls init_process_group("gloo"), then fit(...)

Rank r of n reads files r, r + n, ...; the parts are merged everywhere (`all_gather_object`), rank 0 fits and the others
are sent the result. Samples, artifacts and token files are those of one process, bit for bit, whatever the number of
ranks. A rank that cannot read a file tells the others, and all raise the same error instead of waiting for it.

Where a rank dies, torchrun (`--max-restarts`) starts all of them anew, and they go on from their `resume` files and
finished token files. Such restarts need `TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1` in the environment: without it gloo
finds the addresses of the dead ranks in the agent's store (torch 2.13), and `init_process_group` fails or hangs.
"""

import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

import torch.distributed as dist

from action_tokenizers import errors
from action_tokenizers.artifact import from_parts, to_parts
from action_tokenizers.base import ActionTokenizer, Progress
from action_tokenizers.data.relative import Relative
from action_tokenizers.data.sample import ChunkSample
from action_tokenizers.data.shards import Shards, in_turn
from action_tokenizers.data.streaming import complete, count_left_out, empty_sample, opened, sample_files
from action_tokenizers.errors import ActionValueError
from action_tokenizers.integrations.token_shards import finish, prepare, write_shard

__all__ = ["encode", "fit", "sample"]

T = TypeVar("T")


def sample(
    source: str | os.PathLike[str] | Shards,
    *,
    k: int = 32768,
    seed: int = 0,
    weights: Mapping[str, float] | None = None,
    horizon: int | None = None,
    stride: int = 1,
    relative: Relative | None = None,
    resume: str | os.PathLike[str] | None = None,
    save_every: float = 60.0,
    group: Any = None,
    progress: Progress | None = None,
    **opening: Any,
) -> ChunkSample:
    """Return on every rank the sample that `sample_shards` returns, bit for bit.

    Args:
        source: See `sample_shards`, as the next six and `save_every`; the same on every rank, and seen by all.
        k: See `source`.
        seed: See `source`.
        weights: See `source`.
        horizon: See `source`.
        stride: See `source`.
        relative: See `source`.
        resume: Folder in which every rank keeps its part so far; of use to as many ranks as wrote it.
        save_every: See `source`.
        group: Process group; None: the default one, or where that is not of gloo a new one that is.
        progress: Called as `progress(stage, done, total)` on each rank, of its own files.
        opening: Of `open_shards`.

    Raises:
        ActionTokenizerError: As `sample_shards`, on all ranks where it happened on one.
        ActionValueError: No process group.
        OSError: Likewise on all ranks: a file that the system does not let be read.
    """
    group = _group(group)
    shards = _opened(source, relative is not None, group, progress, opening)
    return _sample(shards, group, k, seed, weights, horizon, stride, relative, resume, save_every, progress)


def _sample(
    shards: Shards,
    group: Any,
    k: int = 32768,
    seed: int = 0,
    weights: Mapping[str, float] | None = None,
    horizon: int | None = None,
    stride: int = 1,
    relative: Relative | None = None,
    resume: str | os.PathLike[str] | None = None,
    save_every: float = 60.0,
    progress: Progress | None = None,
) -> ChunkSample:
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)

    def mine() -> ChunkSample:
        whole = empty_sample(shards, k, seed, weights, horizon, stride)
        threshold = shards.threshold(whole, stride)
        file = None if resume is None else Path(resume) / f"part-{rank:05d}-of-{ranks:05d}.safetensors"
        numbers = range(rank, len(shards), ranks)
        return sample_files(
            shards, numbers, whole.part(threshold), stride, relative, file, save_every=save_every, progress=progress
        )

    parts = _together(mine, group)
    whole = parts[0].part()
    for part in parts:
        whole.merge(part)
    return complete(count_left_out(whole, shards), shards)


def fit(
    tokenizer: ActionTokenizer,
    source: str | os.PathLike[str] | Shards,
    *,
    test: float | None = None,
    split_seed: int = 0,
    horizon: int | None = None,
    relative: Relative | None = None,
    group: Any = None,
    progress: Progress | None = None,
    **sampling: Any,
) -> ActionTokenizer:
    """Return on every rank the tokenizer that a fit on the sample of one process gives, bit for bit.

    Args:
        tokenizer: What to fit. Rank 0 fits it, the others rebuild it from what rank 0 sends; use what is returned.
        source: See `sample`.
        test: Share of the episodes to keep out, for an audit: those that `Episodes.split` would.
        split_seed: Seed of that split.
        horizon: Steps of a chunk; None takes the parameter of the tokenizer, else one second of data.
        relative: See `sample`.
        group: See `sample`.
        progress: See `sample`.
        sampling: Of `sample`: k, seed, weights, stride, resume, save_every and what `open_shards` takes.
    """
    group = _group(group)
    own = ("k", "seed", "weights", "stride", "resume", "save_every")
    settings = {name: sampling.pop(name) for name in own if name in sampling}
    shards = _opened(source, relative is not None, group, progress, sampling)
    if test is not None:
        shards, _ = shards.split(test, seed=split_seed)
    horizon = tokenizer.asked_horizon if horizon is None else horizon
    found = _sample(shards, group, horizon=horizon, relative=relative, progress=progress, **settings)
    parts = _of_first(lambda: to_parts(tokenizer.fit(found, progress=progress)), group)
    return tokenizer if dist.get_rank(group) == 0 else cast(ActionTokenizer, from_parts(*parts))


def encode(
    tokenizer: ActionTokenizer,
    source: str | os.PathLike[str] | Shards,
    folder: str | os.PathLike[str],
    *,
    horizon: int | None = None,
    stride: int | None = None,
    key: str | None = None,
    group: Any = None,
    progress: Progress | None = None,
    **opening: Any,
) -> dict[str, Any]:
    """Encode a data set into a folder of token files, the same bytes as `encode_shards`; return the manifest.

    Args:
        tokenizer: See `encode_shards`, as the next five; the same on every rank.
        source: See `tokenizer`.
        folder: See `tokenizer`; every rank must see it.
        horizon: See `tokenizer`.
        stride: See `tokenizer`.
        key: See `tokenizer`.
        group: See `sample`.
        progress: Called as `progress(stage, done, total)` on each rank, of its own files.
        opening: Of `open_shards`.

    Raises:
        ActionTokenizerError: As `encode_shards`, on all ranks where it happened on one.
        OSError: Likewise.
    """
    group = _group(group)
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    first = _of_first(lambda: prepare(tokenizer, source, folder, horizon, stride, key, progress, **opening), group)
    encoding = _agreeing(first.here, group)

    def mine() -> list[Any]:
        numbers = range(rank, len(encoding.shards), ranks)
        return list(in_turn(progress)(lambda number: (number, write_shard(encoding, number)), numbers, "encode"))

    parts = _together(mine, group)
    written = [one for _, one in sorted((pair for part in parts for pair in part), key=lambda pair: pair[0])]
    return _of_first(lambda: finish(encoding, written), group)


def _group(group: Any) -> Any:
    """Return a group that can carry objects without a device."""
    if not (dist.is_available() and dist.is_initialized()):
        raise ActionValueError('expected a process group, got none: call torch.distributed.init_process_group("gloo")')
    if group is None and dist.get_backend() != "gloo":
        return _gloo_of(dist.group.WORLD)
    return group


@lru_cache(maxsize=1)
def _gloo_of(world: Any) -> Any:
    """Return a group of gloo of the ranks of the default one, made once: it holds sockets and threads to the end."""
    return dist.new_group(backend="gloo")


def _opened(
    source: str | os.PathLike[str] | Shards, states: bool, group: Any, progress: Progress | None, opening: Any
) -> Shards:
    """Return the data set as rank 0 finds and indexes it: what lies where is then the same for all."""
    return _agreeing(_of_first(lambda: opened(source, progress, opening, states=states), group).here, group)


def _of_first(work: Callable[[], T], group: Any) -> T:
    """Return what `work` gives on rank 0, which alone does it, on every rank."""
    mine = [_agreeing(lambda: work() if dist.get_rank(group) == 0 else None, group)]
    dist.broadcast_object_list(mine, 0 if group is None else dist.get_global_rank(group, 0), group=group)
    return cast(T, mine[0])


def _together(work: Callable[[], T], group: Any) -> list[T]:
    """Return what `work` gives on every rank, on every rank."""
    mine = _agreeing(work, group)
    parts: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(parts, mine, group=group)
    return parts


def _agreeing(work: Callable[[], T], group: Any) -> T:
    """Return what `work` gives on this rank; where it fails on one rank, all raise."""
    failed: Exception | None = None
    try:
        mine = work()
    except Exception as error:  # whatever it is, the others must not wait for a rank that is gone
        failed = error
    told: list[Any] = [None] * dist.get_world_size(group)
    said = None if failed is None else (_kind(failed), str(failed))
    dist.all_gather_object(told, said, group=group)
    if failed is not None:
        try:
            raise failed
        finally:
            del failed  # its traceback holds this frame: a group in a ring of references outlives its destruction
    for rank, one in enumerate(told):
        if one is not None:
            kind = OSError if one[0] == "OSError" else getattr(errors, one[0])
            raise kind(f"rank {rank}: {one[1]}")
    return mine


def _kind(error: Exception) -> str:
    """Return the name under which the other ranks raise an error: no permission, say, is an OSError to them."""
    names = [kind.__name__ for kind in type(error).__mro__]
    return next((name for name in names if hasattr(errors, name) or name == "OSError"), "ActionTokenizerError")
