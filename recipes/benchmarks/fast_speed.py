"""How fast FAST is: ours beside the stand-in for the published processor, in one run.

    python recipes/benchmarks/fast_speed.py --json fast_speed.json

5,000 chunks of 50 x 14 from `smooth_chunks` (sums of four sinusoids of up to two periods per chunk, a
gripper step in the last dim); both sides are fitted, at scale 10 and vocabulary 1024, on 2,000 chunks of
another seed. The stand-in has two columns: one call of its BPE per chunk, which is what the original does,
and one call for the whole batch, which `tokenizers` spreads over the cores. Every job is warmed up once,
then all jobs run in a new random order in every repeat; a number is the median. Chunks per second depend on
the machine; the ratios are what counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))

from reference_fast import ReferenceFAST

from action_tokenizers import FASTTokenizer
from action_tokenizers.data.synthetic import smooth_chunks

SCALE = 10
VOCAB_SIZE = 1024
OURS, PER_CHUNK, BATCH = "ours", "stand-in, one call per chunk", "stand-in, one call per batch"

Job = Callable[[], object]


def time_jobs(jobs: Mapping[tuple[str, str], Job], repeats: int, seed: int) -> dict[tuple[str, str], list[float]]:
    """Return the seconds of every repeat of every job; the first, unmeasured call compiles and warms."""
    for job in jobs.values():
        job()
    order, shuffle = list(jobs), random.Random(seed).shuffle
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        shuffle(order)
        for name in order:
            start = time.perf_counter()
            jobs[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def measure(chunks: int, fit_chunks: int, horizon: int, action_dim: int, repeats: int, seed: int) -> dict[str, Any]:
    """Fit both sides, check that they decode what they encoded, time them; return the report."""
    train = smooth_chunks(fit_chunks, horizon, action_dim, seed=seed + 1)
    actions = smooth_chunks(chunks, horizon, action_dim, seed=seed)
    ours = FASTTokenizer(horizon=horizon, range="unit", scale=SCALE, vocab_size=VOCAB_SIZE).fit(train)
    reference = ReferenceFAST.fit(list(train), scale=SCALE, vocab_size=VOCAB_SIZE)

    ids = ours.encode(actions)
    rows = reference.encode(actions)
    if rows != reference.encode_batch(actions):
        raise RuntimeError("the two ways to call the stand-in disagree")
    codes = {
        OURS: _code((ids != ours.pad_id).sum() / chunks, ours.vocab_size, ours.decode(ids), actions),
        "stand-in": _code(
            sum(map(len, rows)) / chunks, len(reference), reference.decode(rows, horizon, action_dim), actions
        ),
    }

    seconds = time_jobs(
        {
            ("encode", OURS): lambda: ours.encode(actions),
            ("encode", PER_CHUNK): lambda: reference.encode(actions),
            ("encode", BATCH): lambda: reference.encode_batch(actions),
            ("decode", OURS): lambda: ours.decode(ids),
            ("decode", PER_CHUNK): lambda: reference.decode(rows, horizon, action_dim),
            ("decode", BATCH): lambda: reference.decode_batch(rows, horizon, action_dim),
        },
        repeats,
        seed,
    )
    rates = {
        operation: {side: chunks / median(seconds[operation, side]) for side in (OURS, PER_CHUNK, BATCH)}
        for operation in ("encode", "decode")
    }
    return {
        "machine": {
            "python": platform.python_version(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "tokenizers_parallelism": os.environ.get("TOKENIZERS_PARALLELISM", "not set: on"),
        },
        "versions": {
            name: version(name) for name in ("action-tokenizers", "numpy", "scipy", "tokenizers", "torch", "numba")
        },
        "settings": {
            "chunks": chunks,
            "fit_chunks": fit_chunks,
            "horizon": horizon,
            "action_dim": action_dim,
            "repeats": repeats,
            "seed": seed,
            "scale": SCALE,
            "vocab_size": VOCAB_SIZE,
        },
        "codes": codes,
        "chunks_per_second": rates,
        "ratio": {
            operation: {side: rate[OURS] / rate[side] for side in (PER_CHUNK, BATCH)}
            for operation, rate in rates.items()
        },
        "seconds": {operation: {side: seconds[operation, side] for side in rate} for operation, rate in rates.items()},
    }


def _code(
    tokens: float, vocab_size: int, decoded: NDArray[np.floating], actions: NDArray[np.floating]
) -> dict[str, float]:
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


def markdown(report: dict[str, Any]) -> str:
    """Return the tables."""
    settings, machine = report["settings"], report["machine"]
    lines = [
        f"FAST, {settings['chunks']} chunks of {settings['horizon']} x {settings['action_dim']}, "
        f"scale {SCALE}, vocabulary {VOCAB_SIZE}, fitted on {settings['fit_chunks']}; "
        f"medians of {settings['repeats']}, order shuffled.",
        "",
        ", ".join(f"{name} {number}" for name, number in report["versions"].items())
        + f"; Python {machine['python']} on {machine['processor']}, {machine['cores']} cores, "
        f"{machine['torch_threads']} torch threads.",
        "",
        f"| chunks/s | {OURS} | {PER_CHUNK} | ratio | {BATCH} | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for operation, rate in report["chunks_per_second"].items():
        ratio = report["ratio"][operation]
        lines.append(
            f"| {operation} | {rate[OURS]:,.0f} | {rate[PER_CHUNK]:,.0f} | {ratio[PER_CHUNK]:.1f} "
            f"| {rate[BATCH]:,.0f} | {ratio[BATCH]:.1f} |"
        )
    lines += ["", "| | tokens | ids | MSE | chunks lost |", "|---|---|---|---|---|"]
    lines += [
        f"| {side} | {code['tokens']:.2f} | {code['vocab_size']} | {code['mse']:.2e} | {code['lost']} |"
        for side, code in report["codes"].items()
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=5_000)
    parser.add_argument("--fit-chunks", type=int, default=2_000)
    parser.add_argument("--horizon", type=int, default=50)
    parser.add_argument("--action-dim", type=int, default=14)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--smoke", action="store_true", help="few small chunks: the run, not the numbers")
    options = parser.parse_args(arguments)
    sizes = (options.chunks, options.fit_chunks, options.horizon, options.action_dim, options.repeats)
    if options.smoke:
        sizes = (64, 200, 10, 3, 2)

    report = measure(*sizes, options.seed)
    print(markdown(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
