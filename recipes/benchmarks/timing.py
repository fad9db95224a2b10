"""How the benchmarks measure: jobs in shuffled order, single calls, fresh processes, and the limits of the machine."""

from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from action_tokenizers import __version__

__all__ = ["Job", "fresh_process", "machine", "matmul_limit", "single_calls", "spread", "time_jobs", "versions"]

Job = Callable[[], object]

# distributions whose versions a result depends on
PACKAGES = (
    "numpy",
    "numba",
    "torch",
    "scipy",
    "scikit-learn",
    "tokenizers",
    "torchrl",
    "vector-quantize-pytorch",
)


def time_jobs(
    jobs: Mapping[str, Job], repeats: int, seed: int, clock: Callable[[], float] | None = None, *, warm: bool = True
) -> dict[str, list[float]]:
    """Return the seconds of every repeat of every job, all jobs in a new random order in every repeat.

    The first, unmeasured call of each compiles and warms. With `warm` each is called once more, unmeasured, right
    before it is timed: what counts is then batch after batch, and not what the job before left behind (threads of its
    library that still spin, pages that the system has taken back).
    """
    clock = clock or time.perf_counter
    for job in jobs.values():
        job()
    order, shuffle = list(jobs), random.Random(seed).shuffle
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        shuffle(order)
        for name in order:
            if warm:
                jobs[name]()
            start = clock()
            jobs[name]()
            seconds[name].append(clock() - start)
    return seconds


def single_calls(jobs: Mapping[str, Callable[[int], object]], calls: int, seed: int) -> dict[str, dict[str, float]]:
    """Return p50 and p99 of the microseconds that one call takes, after warm-up.

    A job gets the number of the call, so that it can take another input each time. Jobs alternate in blocks of fifty in
    shuffled order: a process that only ever does one thing has a warmer cache than a robot's.
    """
    block = min(50, calls)
    for job in jobs.values():
        for i in range(block):
            job(i)
    shuffle, taken = random.Random(seed).shuffle, {name: [] for name in jobs}  # type: ignore[var-annotated]
    for first in range(0, calls, block):
        order = list(jobs)
        shuffle(order)
        for name in order:
            job = jobs[name]
            for i in range(first, min(first + block, calls)):
                start = time.perf_counter_ns()
                job(i)
                taken[name].append(time.perf_counter_ns() - start)
    return {name: {f"p{p}": float(np.percentile(times, p)) / 1e3 for p in (50, 99)} for name, times in taken.items()}


def spread(seconds: list[float]) -> dict[str, float]:
    """Return the median of some repeats, and the fastest and slowest."""
    return {"median": median(seconds), "least": min(seconds), "most": max(seconds)}


def fresh_process(script: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run a script in an interpreter of its own; it prints JSON as its last line."""
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(
        command, env={**os.environ, **(environment or {})}, capture_output=True, text=True, timeout=1800, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def matmul_limit(size: int, repeats: int, seed: int) -> float:
    """Return the GFLOP/s of a square float32 matrix product."""
    a, b = torch.randn(2, size, size)
    out = torch.empty(size, size)
    return 2 * size**3 / spread(time_jobs({"": lambda: torch.mm(a, b, out=out)}, repeats, seed)[""])["median"] / 1e9


def machine() -> dict[str, Any]:
    """Return what the numbers were measured on."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "tokenizers_parallelism": os.environ.get("TOKENIZERS_PARALLELISM", "not set: on"),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return the version of every package, or that it is not installed."""
    found = {"action-tokenizers": __version__}  # of the code that runs, installed or not
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
