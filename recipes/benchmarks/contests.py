"""What is measured: our tokenizers and their peers on the same chunks, as jobs that `run_speed.py` times.

A contest is a set of jobs over the same data, one per side and operation. A peer that is not installed has none.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))

from reference_fast import ReferenceFAST
from timing import Job

from action_tokenizers import (
    BinningTokenizer,
    ChunkSample,
    Episodes,
    FASTTokenizer,
    KMeansTokenizer,
    ResidualVQTokenizer,
)
from action_tokenizers.codecs.bin_rows import decode_bins, encode_bins
from action_tokenizers.data.synthetic import smooth_chunks
from action_tokenizers.tokenizers.published_fast import PublishedFASTTokenizer

SCALE, VOCAB_SIZE = 10, 1024
HELD_OUT = 1_000  # chunks on which fits are compared
OURS, PER_CHUNK, BATCH = "ours", "stand-in, one call per chunk", "stand-in, one call per batch"
UNIFORM, TAIL = "torchrl Uniform", "torchrl VocabTail"
RESIDUAL, SKLEARN = "vector-quantize-pytorch ResidualVQ", "scikit-learn KMeans"
BINS = "256 uniform bins"
PREALLOCATED = "ours, kernel into a preallocated buffer"
COPY, COPY_FRESH = "copy_ into a preallocated buffer", "clone into a fresh buffer"
MODULES = {UNIFORM: "torchrl.data.vla", TAIL: "torchrl.data.vla", RESIDUAL: "vector_quantize_pytorch"}

Floats = NDArray[np.floating]


@dataclass
class Contest:
    """Jobs over the same data.

    Attributes:
        name: what the data are.
        items: chunks that one job handles.
        jobs: by operation, then by side.
        notes: what a side made of the data, and whatever else a reader of the speeds must know.
        bytes_each: by operation, then by side, bytes that an item costs at least, where memory is the limit.
        warm: whether a job runs once more, unmeasured, right before it is timed.
    """

    name: str
    items: int
    jobs: dict[str, dict[str, Job]]
    notes: dict[str, Any] = field(default_factory=dict)
    bytes_each: dict[str, dict[str, int]] = field(default_factory=dict)
    warm: bool = True


def peer(side: str) -> Any | None:
    """Return the module of a peer; None where it is not installed."""
    try:
        return importlib.import_module(MODULES[side])
    except ModuleNotFoundError:
        return None


def fast(name: str, actions: Floats, ours: FASTTokenizer, reference: ReferenceFAST) -> Contest:
    """FAST against the stand-in; `actions` are in [-1, 1] already."""
    _, t, d = actions.shape
    ids, rows, notes = _codes(ours, reference, actions)
    if rows != reference.encode_batch(actions):
        raise RuntimeError("expected the two ways to call the stand-in to agree, got different ids")
    jobs: dict[str, dict[str, Job]] = {
        "encode": {
            OURS: lambda: ours.encode(actions),
            PER_CHUNK: lambda: reference.encode(actions),
            BATCH: lambda: reference.encode_batch(actions),
        },
        "decode": {
            OURS: lambda: ours.decode(ids),
            PER_CHUNK: lambda: reference.decode(rows, t, d),
            BATCH: lambda: reference.decode_batch(rows, t, d),
        },
    }
    return Contest(name, len(actions), jobs, notes)


def _codes(
    ours: FASTTokenizer, reference: ReferenceFAST, actions: Floats
) -> tuple[NDArray[np.int64], list[list[int]], dict[str, Any]]:
    """Return the ids of both sides and what they made of the chunks."""
    _, t, d = actions.shape
    ids, rows = ours.encode(actions), reference.encode(actions)
    return (
        ids,
        rows,
        {
            OURS: code((ids != ours.pad_id).sum() / len(ids), ours.vocab_size, ours.decode(ids), actions),
            "stand-in": code(sum(map(len, rows)) / len(rows), len(reference), reference.decode(rows, t, d), actions),
        },
    )


def smooth_fast(
    chunks: int, fit_chunks: int, horizon: int, action_dim: int, seed: int, vocab_size: int = VOCAB_SIZE
) -> Contest:
    """FAST on the generator, both sides fitted on chunks of another seed."""
    train = smooth_chunks(fit_chunks, horizon, action_dim, seed=seed + 1)
    ours = FASTTokenizer(horizon=horizon, range="unit", scale=SCALE, vocab_size=vocab_size).fit(train)
    reference = ReferenceFAST.fit(list(train), scale=SCALE, vocab_size=vocab_size)
    actions = smooth_chunks(chunks, horizon, action_dim, seed=seed)
    return fast(f"FAST, smooth {horizon} x {action_dim}", actions, ours, reference)


def recorded_fast(folder: Path, horizon: int) -> Contest:
    """FAST on all chunks of recorded demonstrations, fitted on these, normalised by q01 and q99 and clipped."""
    sample = ChunkSample.of(Episodes.load(folder), horizon=horizon)
    fitted = FASTTokenizer(horizon=horizon, scale=SCALE, vocab_size=VOCAB_SIZE).fit(sample)
    unit = fitted._fitted_range().to_unit(torch.as_tensor(sample.actions)).numpy()
    ours = FASTTokenizer(horizon=horizon, range="unit", scale=SCALE, vocab_size=VOCAB_SIZE).fit(unit)
    reference = ReferenceFAST.fit(list(unit), scale=SCALE, vocab_size=VOCAB_SIZE)
    return fast(f"FAST, {folder.name} {horizon} x {unit.shape[2]}", unit, ours, reference)


def published(folder: Path, chunks: int, horizon: int, action_dim: int, seed: int) -> Contest:
    """The published FAST+ folder, read by us and by the stand-in; the ids must be the same."""
    ours, reference = PublishedFASTTokenizer.from_published(folder), ReferenceFAST.from_folder(folder)
    actions = smooth_chunks(chunks, horizon, action_dim, seed=seed)
    ids, rows = ours.encode(actions), reference.encode(actions)
    same = all(row[mask].tolist() == other for row, mask, other in zip(ids, ours.pad_mask(ids), rows, strict=True))
    jobs: dict[str, dict[str, Job]] = {
        "encode": {
            OURS: lambda: ours.encode(actions),
            PER_CHUNK: lambda: reference.encode(actions),
            BATCH: lambda: reference.encode_batch(actions),
        },
        "decode": {
            OURS: lambda: ours.decode(ids, horizon=horizon, action_dim=action_dim),
            PER_CHUNK: lambda: reference.decode(rows, horizon, action_dim),
            BATCH: lambda: reference.decode_batch(rows, horizon, action_dim),
        },
    }
    return Contest(f"published FAST+, smooth {horizon} x {action_dim}", chunks, jobs, {"identical ids": same})


def fast_fit(chunks: int, horizon: int, action_dim: int, seed: int) -> Contest:
    """Fitting FAST on the same chunks; the notes say what the fits make of others, which they have not seen."""
    train = smooth_chunks(chunks, horizon, action_dim, seed=seed + 2)
    ours = FASTTokenizer(horizon=horizon, range="unit", scale=SCALE, vocab_size=VOCAB_SIZE)
    held_out = smooth_chunks(min(chunks, HELD_OUT), horizon, action_dim, seed=seed + 3)
    reference = ReferenceFAST.fit(train, scale=SCALE, vocab_size=VOCAB_SIZE)
    *_, notes = _codes(ours.fit(train), reference, held_out)
    jobs: dict[str, dict[str, Job]] = {
        "fit": {
            OURS: lambda: ours.fit(train),
            PER_CHUNK: lambda: ReferenceFAST.fit(train, scale=SCALE, vocab_size=VOCAB_SIZE),
        }
    }
    return Contest(f"FAST fit, smooth {horizon} x {action_dim}", chunks, jobs, notes, warm=False)


def binning(chunks: int, horizon: int, action_dim: int, seed: int) -> Contest:
    """256 uniform bins on uniform noise, tensors in and out, against torchrl and against copying memory."""
    generator = torch.Generator().manual_seed(seed)
    actions = torch.rand(chunks, horizon, action_dim, generator=generator) * 2 - 1
    ours = BinningTokenizer(horizon=horizon, range="unit", bins=256).fit(actions[: min(chunks, 1000)])
    ids = ours.encode(actions)
    low, high = ours._fitted_range().bounds()
    rows = actions.numpy().reshape(-1, action_dim)
    ids_out, out = np.zeros(rows.shape, np.int64), np.zeros(rows.shape, np.float32)
    flat_ids, tables = ids.numpy().reshape(rows.shape), ours._tables()
    jobs: dict[str, dict[str, Job]] = {
        "encode": {
            OURS: lambda: ours.encode(actions),
            PREALLOCATED: lambda: encode_bins(tables, rows, low, high, ids_out) and ids_out,
        },
        "decode": {
            OURS: lambda: ours.decode(ids),
            PREALLOCATED: lambda: decode_bins(tables, flat_ids, low, high, out) and out,
        },
    }
    notes: dict[str, Any] = {}
    module = peer(UNIFORM)
    if module is not None:
        uniform = module.UniformActionTokenizer(256, low=torch.full((action_dim,), -1.0), high=torch.ones(action_dim))
        tail = module.VocabTailActionTokenizer(256)
        for side, other in ((UNIFORM, uniform), (TAIL, tail)):
            other_ids = other.encode(actions)
            jobs["encode"][side] = lambda other=other: other.encode(actions)
            jobs["decode"][side] = lambda other=other, other_ids=other_ids: other.decode(other_ids)
        notes["ids equal to torchrl Uniform's"] = float(
            (uniform.encode(actions) == ids.view(actions.shape)).float().mean()
        )
    each = (actions.nbytes + ids.nbytes) // chunks  # of every side: float32 and int64
    bytes_each = {operation: dict.fromkeys(sides, each) for operation, sides in jobs.items()}
    name = f"256 uniform bins, {chunks:,} chunks of noise {horizon} x {action_dim}"
    return Contest(name, chunks, jobs, notes, bytes_each)


def copying(megabytes: int, device: str = "cpu") -> Contest:
    """The limit of the machine: reading and writing memory, and nothing else."""
    source = torch.ones(megabytes << 18, device=device)
    target = torch.zeros_like(source)
    jobs: dict[str, Job] = {
        COPY: _waiting(lambda: target.copy_(source), device),
        COPY_FRESH: _waiting(lambda: source.clone(), device),
    }
    bytes_each = {"copy": dict.fromkeys(jobs, 2 * source.nbytes)}
    return Contest(f"copying {megabytes} MB", 1, {"copy": jobs}, {}, bytes_each)


def residual_vq(
    chunks: int, fit_chunks: int, horizon: int, action_dim: int, levels: int, size: int, seed: int
) -> Contest:
    """Residual VQ on whole chunks, both sides fitted on the same chunks of another seed."""
    train = torch.from_numpy(smooth_chunks(fit_chunks, horizon, action_dim, seed=seed + 1))
    actions = torch.from_numpy(smooth_chunks(chunks, horizon, action_dim, seed=seed))
    ours = ResidualVQTokenizer(horizon=horizon, range="unit", levels=levels, codebook_size=size).fit(train)
    ids = ours.encode(actions)
    jobs: dict[str, dict[str, Job]] = {
        "encode": {OURS: lambda: ours.encode(actions)},
        "decode": {OURS: lambda: ours.decode(ids)},
        "encode and decode": {OURS: lambda: ours.decode(ours.encode(actions))},
    }
    notes: dict[str, Any] = {OURS: {"mse": float(((ours.decode(ids) - actions) ** 2).mean())}}
    module = peer(RESIDUAL)
    if module is not None:
        other = _trained(module, train.flatten(1), levels, size, seed)
        flat = actions.flatten(1)

        def encode() -> Any:
            with torch.no_grad():
                return other(flat)

        quantized, codes, _ = encode()
        # it has no encoding alone: what it returns beside the indices, ours takes another call for
        jobs["encode"][RESIDUAL] = jobs["encode and decode"][RESIDUAL] = encode
        jobs["decode"][RESIDUAL] = lambda: other.get_output_from_indices(codes)
        # clamped as ours are, which lie in the range
        notes[RESIDUAL] = {"mse": float(((quantized.clamp(-1, 1) - flat) ** 2).mean())}
        notes[f"{RESIDUAL}: encode"] = "is its forward, which also builds the quantized output"
    return Contest(f"residual VQ {levels} x {size}, smooth {horizon} x {action_dim}", chunks, jobs, notes)


def _trained(module: Any, train: torch.Tensor, levels: int, size: int, seed: int) -> Any:
    """Return the peer after its own k-means start on all data and twenty passes of its moving averages."""
    torch.manual_seed(seed)
    other = module.ResidualVQ(
        dim=train.shape[1], num_quantizers=levels, codebook_size=size, kmeans_init=True, kmeans_iters=50
    )
    other.train()
    with torch.no_grad():
        for _ in range(20):
            other(train[torch.randperm(len(train))])
    return other.eval()


def kmeans(chunks: int, fit_chunks: int, horizon: int, action_dim: int, size: int, scope: str, seed: int) -> Contest:
    """Nearest codeword against scikit-learn's prediction with the same codebook."""
    from sklearn.cluster import KMeans

    train = smooth_chunks(fit_chunks, horizon, action_dim, seed=seed + 1)
    actions = smooth_chunks(chunks, horizon, action_dim, seed=seed)
    ours = KMeansTokenizer(horizon=horizon, range="unit", codebook_size=size, scope=scope).fit(train)
    codebook = ours.get_buffer("codebook_0").numpy()
    vectors = np.ascontiguousarray(actions.reshape(-1, codebook.shape[1]))
    other = KMeans(len(codebook), init=codebook, n_init=1, max_iter=1).fit(codebook)
    other.cluster_centers_ = codebook.copy()
    ids = ours.encode(actions)
    jobs: dict[str, dict[str, Job]] = {
        "encode": {OURS: lambda: ours.encode(actions), SKLEARN: lambda: other.predict(vectors)},
        "decode": {OURS: lambda: ours.decode(ids)},
    }
    notes = {"equal ids": float((other.predict(vectors) == ids.ravel()).mean())}
    return Contest(f"k-means {size} per {scope}, smooth {horizon} x {action_dim}", chunks, jobs, notes)


def single_chunks(
    horizon: int, action_dim: int, fit_chunks: int, calls: int, seed: int
) -> dict[str, Callable[[int], Any]]:
    """Return jobs of one chunk a call, another one each time; names are operation, family and side."""
    train = smooth_chunks(fit_chunks, horizon, action_dim, seed=seed + 1)
    chunks = smooth_chunks(min(calls, 200), horizon, action_dim, seed=seed)
    ones = [chunks[i : i + 1] for i in range(len(chunks))]
    tensors = [torch.from_numpy(one) for one in ones]
    families: list[tuple[str, Any]] = [
        ("FAST", FASTTokenizer(horizon=horizon, range="unit", scale=SCALE, vocab_size=VOCAB_SIZE)),
        ("binning", BinningTokenizer(horizon=horizon, range="unit")),
        ("k-means", KMeansTokenizer(horizon=horizon, range="unit", codebook_size=64)),
        ("residual VQ", ResidualVQTokenizer(horizon=horizon, range="unit", codebook_size=64)),
    ]
    jobs: dict[str, Callable[[int], Any]] = {}
    for name, tokenizer in families:
        tokenizer.fit(train)
        ids = [tokenizer.encode(one) for one in ones]
        jobs[f"encode | {name} | {OURS}"] = lambda i, tokenizer=tokenizer: tokenizer.encode(ones[i % len(ones)])
        jobs[f"decode | {name} | {OURS}"] = lambda i, tokenizer=tokenizer, ids=ids: tokenizer.decode(ids[i % len(ids)])
    reference = ReferenceFAST.fit(list(train), scale=SCALE, vocab_size=VOCAB_SIZE)
    rows = [reference.encode(one) for one in ones]
    jobs[f"encode | FAST | {PER_CHUNK}"] = lambda i: reference.encode(ones[i % len(ones)])
    jobs[f"decode | FAST | {PER_CHUNK}"] = lambda i: reference.decode(rows[i % len(rows)], horizon, action_dim)
    module = peer(UNIFORM)
    if module is not None:
        for side, other in (
            (UNIFORM, module.UniformActionTokenizer(256, low=-torch.ones(action_dim), high=torch.ones(action_dim))),
            (TAIL, module.VocabTailActionTokenizer(256)),
        ):
            found = [other.encode(one) for one in tensors]
            jobs[f"encode | binning | {side}"] = lambda i, other=other: other.encode(tensors[i % len(tensors)])
            jobs[f"decode | binning | {side}"] = lambda i, other=other, found=found: other.decode(found[i % len(found)])
    return jobs


def accelerator(chunks: int, horizon: int, action_dim: int, fit_chunks: int, seed: int, device: str) -> Contest:
    """Encode and decode of the families that run on any device, on tensors that stay there."""
    train = torch.from_numpy(smooth_chunks(fit_chunks, horizon, action_dim, seed=seed + 1))
    actions = torch.from_numpy(smooth_chunks(chunks, horizon, action_dim, seed=seed)).to(device)
    jobs: dict[str, dict[str, Job]] = {"encode": {}, "decode": {}}
    bytes_each: dict[str, dict[str, int]] = {"encode": {}, "decode": {}}
    for name, tokenizer in (
        (BINS, BinningTokenizer(horizon=horizon, range="unit")),
        ("k-means 256 per step", KMeansTokenizer(horizon=horizon, range="unit")),
        ("residual VQ 8 x 256", ResidualVQTokenizer(horizon=horizon, range="unit", levels=8)),
    ):
        tokenizer.fit(train).to(device)
        ids = tokenizer.encode(actions)
        jobs["encode"][name] = _waiting(lambda tokenizer=tokenizer: tokenizer.encode(actions), device)
        jobs["decode"][name] = _waiting(lambda tokenizer=tokenizer, ids=ids: tokenizer.decode(ids), device)
        for operation in jobs:
            bytes_each[operation][name] = (actions.nbytes + ids.nbytes) // chunks
    return Contest("on the accelerator", chunks, jobs, {}, bytes_each)


def _waiting(job: Job, device: str) -> Job:
    """Return a job that ends when the work on the device is done, not when it is handed over."""
    if device == "cpu":
        return job

    def run() -> Any:
        done = job()
        torch.cuda.synchronize()
        return done

    return run


def code(tokens: float, vocab_size: int, decoded: Floats, actions: Floats) -> dict[str, float]:
    """What a side made of the chunks: a speed means nothing without it.

    A chunk whose error is above what rounding alone can cause is lost (see `compare_with_reference_fast.py`);
    the error is that of the others.
    """
    errors = np.square(decoded.astype(np.float64) - actions).mean(axis=(1, 2))
    intact = errors <= 1.001 * 0.25 / SCALE**2
    return {
        "tokens": float(tokens),
        "vocab_size": vocab_size,
        "lost": int((~intact).sum()),
        "mse": float(errors[intact].mean()),
    }
