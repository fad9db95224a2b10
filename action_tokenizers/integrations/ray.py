"""Ray: sample, fit, encode and audit data sets of many files on one machine or a cluster.

Tasks of Ray Core, not datasets of Ray Data: `ray.data.read_parquet` cuts files into blocks that know no episodes, while
the unit here is a file with the head of the next one, as far as an episode goes on in it; what comes back is one sample
(a merge, not rows); and what is written are files with their own commit. Ray Data reads those: `ray.data.read_parquet(
folder)` on what `encode` wrote.

Nothing depends on the number of workers: samples, artifacts and token files are those of one process, bit for bit. A
task whose worker dies runs again, on the same file; since a file's part is delivered whole or not at all, nothing is
lost or counted twice.

On a cluster the data set and the folder of tokens lie on storage that every machine sees under the same path; of a Hub
data set every machine fetches its own copy, with its own login.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from action_tokenizers.base import ActionTokenizer, Progress
from action_tokenizers.data.relative import Relative
from action_tokenizers.data.sample import ChunkSample
from action_tokenizers.data.shards import Shards
from action_tokenizers.data.streaming import complete, count_left_out, empty_sample, opened, sample_files
from action_tokenizers.diagnostics.audit import audit as audit_of
from action_tokenizers.diagnostics.report import AuditReport
from action_tokenizers.errors import ActionValueError, FormatError
from action_tokenizers.extras import require
from action_tokenizers.integrations.token_shards import Encoding, Written, finish, prepare, write_shard
from action_tokenizers.warn import warn

__all__ = ["audit", "encode", "fit", "sample"]

T = TypeVar("T")
R = TypeVar("R")

RETRIES = 3
UNDER_WAY, HELD = 2, 4  # tasks per core: begun, and begun or finished before their turn
PARTS_PER_CORE = 4  # groups of files per core: uneven ones even out, and a lost worker loses little


def sample(
    source: str | os.PathLike[str] | Shards,
    *,
    k: int = 32768,
    seed: int = 0,
    weights: Mapping[str, float] | None = None,
    horizon: int | None = None,
    stride: int = 1,
    relative: Relative | None = None,
    retries: int = RETRIES,
    progress: Progress | None = None,
    **opening: Any,
) -> ChunkSample:
    """Return the sample that `sample_shards` returns, bit for bit, read by all workers of the cluster.

    The index says which chunks will be in the sample before any is read, so every worker hands over its part of the
    final k, not k of its own. (Not so under `skip_broken`, where chunks may turn out to be missing.)

    Args:
        source: See `sample_shards`, as the next six.
        k: See `source`.
        seed: See `source`.
        weights: See `source`.
        horizon: See `source`.
        stride: See `source`.
        relative: See `source`.
        retries: How often a task is run again after its worker died; -1: until it works.
        progress: Called as `progress(stage, done, total)`, stages `index` and `sample`.
        opening: Of `open_shards`.

    Raises:
        ActionTokenizerError: As `sample_shards`.
        ray.exceptions.RayError: A worker died more often than `retries` allows.
    """
    shards = _opened(source, relative is not None, retries, progress, opening)
    whole = empty_sample(shards, k, seed, weights, horizon, stride)
    threshold = shards.threshold(whole, stride)
    groups = _groups(shards, _cores() * PARTS_PER_CORE)
    work = partial(_sample_files, empty=whole.part(threshold), stride=stride, relative=relative)
    for part in _spread(work, groups, shards, "sample", retries, progress, in_order=False):
        whole.merge(part)
    return complete(count_left_out(whole, shards), shards)


def fit(
    tokenizer: ActionTokenizer,
    source: str | os.PathLike[str] | Shards,
    *,
    test: float | None = None,
    split_seed: int = 0,
    retries: int = RETRIES,
    progress: Progress | None = None,
    **sampling: Any,
) -> ActionTokenizer:
    """Fit a tokenizer on a data set and return it: what a fit on the sample of one process gives, bit for bit.

    Args:
        tokenizer: Its parameter `horizon`, where given, is that of the chunks.
        source: See `sample`.
        test: Share of the episodes to keep out, for an audit: those that `Episodes.split` would.
        split_seed: Seed of that split.
        retries: See `sample`.
        progress: See `sample`; stages of the fit follow.
        sampling: Of `sample`: k, seed, weights, horizon, stride, relative and what `open_shards` takes.
    """
    settings = {name: sampling.pop(name) for name in ("k", "seed", "weights", "stride") if name in sampling}
    horizon, relative = sampling.pop("horizon", None), sampling.pop("relative", None)
    shards = _opened(source, relative is not None, retries, progress, sampling)
    if test is not None:
        shards, _ = shards.split(test, seed=split_seed)
    horizon = tokenizer.asked_horizon if horizon is None else horizon
    found = sample(shards, horizon=horizon, relative=relative, retries=retries, progress=progress, **settings)
    return tokenizer.fit(found, progress=progress)


def encode(
    tokenizer: ActionTokenizer,
    source: str | os.PathLike[str] | Shards,
    folder: str | os.PathLike[str],
    *,
    horizon: int | None = None,
    stride: int | None = None,
    key: str | None = None,
    retries: int = RETRIES,
    progress: Progress | None = None,
    **opening: Any,
) -> dict[str, Any]:
    """Encode a data set into a folder of token files, the same bytes as `encode_shards`, and return the manifest.

    Args:
        tokenizer: See `encode_shards`, as the next five.
        source: See `tokenizer`.
        folder: See `tokenizer`; every machine must see it.
        horizon: See `tokenizer`.
        stride: See `tokenizer`.
        key: See `tokenizer`.
        retries: See `sample`.
        progress: Called as `progress(stage, done, total)`, stages `index` and `encode`.
        opening: Of `open_shards`.

    Raises:
        ActionTokenizerError: As `encode_shards`.
        OSError: A full disk: what was finished is kept, and the folder stays marked as incomplete.
        ray.exceptions.RayError: A worker died more often than `retries` allows; as after a full disk.
    """
    shards = _opened(source, tokenizer.relative is not None, retries, progress, opening)
    encoding = prepare(tokenizer, shards, folder, horizon, stride, key)
    numbers = list(range(len(shards)))
    return finish(encoding, list(_spread(_write_file, numbers, encoding, "encode", retries, progress)))


def audit(
    tokenizers: ActionTokenizer | Mapping[str, ActionTokenizer],
    source: str | os.PathLike[str] | Shards,
    *,
    episodes: int = 256,
    test: float | None = None,
    seed: int = 0,
    split_seed: int = 0,
    retries: int = RETRIES,
    progress: Progress | None = None,
    opening: Mapping[str, Any] | None = None,
    **settings: Any,
) -> dict[str, AuditReport]:
    """Audit tokenizers, each on a worker of its own, on episodes drawn from a data set of any size.

    An audit looks at whole episodes in memory. Of more than `episodes` held-out ones those of smallest hash are taken,
    the same on every machine: the reports are those of `diagnostics.audit.audit` on `shards.draw(episodes).load()`.

    Args:
        tokenizers: Name -> fitted tokenizer; a single one is named by its type.
        source: See `sample`. States are read where there are any.
        episodes: Most episodes to audit on.
        test: Audit only the share that `fit(test=)` kept out.
        seed: Of the draw and the audit.
        split_seed: Seed of the split: that of `fit`, or episodes that it learned from are audited.
        retries: See `sample`.
        progress: Called as `progress(stage, done, total)`, stages `index`, `read` and `audit`.
        opening: Of `open_shards`. With skip_broken, drawn episodes that cannot be read are left out, and a UserWarning
            tells how many.
        settings: Of `diagnostics.audit.audit`: horizon, unit, budget, states=False.

    Raises:
        FormatError: A file that cannot be used; with skip_broken only if none of the drawn episodes can be read.
    """
    named = {tokenizers.tokenizer_type: tokenizers} if isinstance(tokenizers, ActionTokenizer) else dict(tokenizers)
    if not named:
        raise ActionValueError("expected at least one tokenizer to audit, got none")
    shards = _opened(source, True, retries, progress, dict(opening or {}))
    if test is not None:
        _, shards = shards.split(test, seed=split_seed)
    shards = shards.draw(episodes, seed=seed)
    holding = [number for number in range(len(shards)) if len(shards.own(number))]
    read = _spread(_read_file, holding, shards, "read", retries, progress)
    found = list(read)
    lost = [told for _, told in found if told]
    pieces = [piece for some, _ in found for piece in some]
    if not pieces:
        raise FormatError(f"expected drawn episodes that can be read in {shards.source}, got none: {'; '.join(lost)}")
    held_out = shards.join(pieces)
    if lost:
        warn(
            f"audited on {len(held_out)} of {shards.episodes} drawn episodes of {shards.source}, the others cannot be "
            f"read: {'; '.join(lost)}"
        )
    work = partial(_audit_one, seed=seed, settings=settings)
    reports = _spread(work, list(named.values()), held_out, "audit", retries, progress)
    return dict(zip(named, reports, strict=True))


def _opened(
    source: str | os.PathLike[str] | Shards,
    states: bool,
    retries: int,
    progress: Progress | None,
    opening: dict[str, Any],
) -> Shards:
    def each(function: Callable[[int], Any], items: Sequence[int], stage: str) -> Iterator[Any]:
        size = max(1, len(items) // (_cores() * PARTS_PER_CORE))
        blocks = [items[begin : begin + size] for begin in range(0, len(items), size)]
        for found in _spread(_index_files, blocks, function, stage, retries, progress):
            yield from found

    return opened(source, None, opening, states=states, each=each)


def _spread(
    work: Callable[[T, Any], R],
    items: Sequence[T],
    shared: Any,
    stage: str,
    retries: int,
    progress: Progress | None,
    *,
    in_order: bool = True,
) -> Iterator[R]:
    """Yield `work(item, shared)` of every item, in their order or as they come; some more tasks than cores at a time.

    `shared` travels once per machine. What a task raises is raised here, and what it warns of is told here; a task
    whose worker died is run again. In order, results that came before their turn wait here, no more of them than of
    those tasks: one that takes long holds the others up instead of filling the memory.
    """
    ray = require("ray", "ray")
    exceptions = require("ray.exceptions", "ray")
    cores = _cores()
    task = ray.remote(num_cpus=1, max_retries=retries)(_run)
    everywhere, call = ray.put(shared), ray.put(work)
    waiting: list[tuple[int, T]] = list(enumerate(items))[::-1]
    finished: dict[int, R] = {}
    running: dict[Any, int] = {}
    given = 0
    try:
        while given < len(items):
            while waiting and len(running) < UNDER_WAY * cores and len(running) + len(finished) < HELD * cores:
                place, item = waiting.pop()
                running[task.remote(call, item, everywhere)] = place
            # the next in turn is among them: it was begun before all that are finished
            ready, _ = ray.wait(list(running), num_returns=1)
            for reference in ready:
                finished[running.pop(reference)], told = ray.get(reference)
                for text, category in told:
                    warn(text, category)
                if progress is not None:
                    progress(stage, len(items) - len(waiting) - len(running), len(items))
            while finished and (given in finished or not in_order):
                yield finished.pop(given if in_order else next(iter(finished)))
                given += 1
    except exceptions.RayTaskError as error:
        raise error.cause from error
    finally:
        for reference in running:
            ray.cancel(reference)


def _run(work: Callable[[T, Any], R], item: T, shared: Any) -> tuple[R, list[tuple[str, type[Warning]]]]:
    """Return what `work` gives and the warnings it gave, which nobody would see on a worker."""
    with warnings.catch_warnings(record=True) as given:
        found = work(item, shared)
    # a class of some package may take other arguments than a text
    plain = [one.category if one.category.__module__ == "builtins" else UserWarning for one in given]
    return found, [(str(one.message), category) for one, category in zip(given, plain, strict=True)]


def _cores() -> int:
    """Return the cores of the cluster; without one, Ray starts on this machine."""
    ray = require("ray", "ray")
    if not ray.is_initialized():
        ray.init(include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _groups(shards: Shards, count: int) -> list[list[int]]:
    """Return the numbers of the files in about `count` groups of neighbours of about as many rows."""
    rows = shards.table.rows.tolist()
    most = max(1, sum(rows) // count)
    groups: list[list[int]] = [[]]
    held = 0
    for number, size in enumerate(rows):
        if groups[-1] and held + size > most:
            groups.append([])
            held = 0
        groups[-1].append(number)
        held += size
    return groups


def _index_files(numbers: Sequence[int], look: Callable[[int], Any]) -> list[Any]:
    return [look(number) for number in numbers]


def _sample_files(
    numbers: Sequence[int], shards: Shards, *, empty: ChunkSample, stride: int, relative: Relative | None
) -> ChunkSample:
    return sample_files(shards.here(), numbers, empty.part(), stride, relative)


def _write_file(number: int, encoding: Encoding) -> Written:
    return write_shard(encoding.here(), number)


def _read_file(number: int, shards: Shards) -> tuple[list[Any], str]:
    return shards.here().read_whole(number)


def _audit_one(tokenizer: ActionTokenizer, episodes: Any, *, seed: int, settings: Mapping[str, Any]) -> AuditReport:
    return audit_of(tokenizer, episodes, seed=seed, **settings)
