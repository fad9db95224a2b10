"""What it takes to fit on a million chunks on disk, and what fitting on a sample of them costs.

    python recipes/benchmarks/fit_scale.py --folder /tmp/scale        # writes fit_scale.json and scale.md beside itself

Writes 1,000,000 chunks of 50 x 14 from `smooth_chunks` (sums of four sinusoids, a gripper step in the last dim) as
parquet, 100 files, 3 GB; every chunk is an episode of its own, which is the hardest case for a reader. Then, each in
a process of its own and one after the other:

* FAST is fitted from the stream of all files, on samples of 3,000 to 100,000 chunks;
* FAST is fitted on 300,000 of the chunks without sampling;
* all of them code 20,000 held-out chunks of another seed: tokens per chunk and mean squared error;
* the fit on 30,000 is repeated on 10,000 and 100,000 chunks, to see how cost grows;
* where Ray is installed, the sample is taken once more by two workers, and must be the same.

Seconds depend on the machine, which others may be using. Peak memory is the kernel's high-water mark of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from action_tokenizers import ActionTokenizer, ChunkSample, FASTTokenizer, __version__
from action_tokenizers.data import open_shards, sample_shards, smooth_chunks, stream

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "fit_scale.json", HERE / "scale.md"
FULL = {
    "chunks": 1_000_000,
    "shards": 100,
    "whole": 300_000,
    "samples": [3_000, 10_000, 30_000, 100_000],
    "sample": 30_000,
    "growth": [10_000, 100_000, 1_000_000],
    "held_out": 20_000,
    "horizon": 50,
    "action_dim": 14,
}
SMOKE = {
    "chunks": 400,
    "shards": 4,
    "whole": 200,
    "samples": [50, 100],
    "sample": 100,
    "growth": [100, 400],
    "held_out": 60,
    "horizon": 10,
    "action_dim": 3,
}
HELD_OUT_SEED = 1 << 20
TABLE, PEAK = 33, 90  # bytes of an episode in the index (four int64 and a bool), and the most while it is put together
PRIORITY_SECONDS = 3.2e-8  # of a chunk; measured apart from the results, on the same kind of machine


def write_shards(folder: Path, settings: dict[str, Any]) -> None:
    """Write the chunks as LeRobot-like parquet: one row per frame, one episode per chunk."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    t, d = settings["horizon"], settings["action_dim"]
    per_shard = settings["chunks"] // settings["shards"]
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(settings["shards"]):
        file = folder / f"chunks-{shard:05d}.parquet"
        if file.exists():
            continue
        chunks = smooth_chunks(per_shard, t, d, seed=shard)
        names = np.arange(shard * per_shard, (shard + 1) * per_shard)
        columns = {
            "episode_index": np.repeat(names, t),
            "frame_index": np.tile(np.arange(t), per_shard),
            "action": pa.FixedSizeListArray.from_arrays(pa.array(chunks.ravel()), d),
        }
        partial = file.with_suffix(".partial")
        parquet.write_table(pa.table(columns), partial, row_group_size=1 << 17)
        partial.replace(file)


def first_files(folder: Path, chunks: int, settings: dict[str, Any]) -> Path:
    """Return a folder of links to as many files as hold that many chunks."""
    count = chunks * settings["shards"] // settings["chunks"]
    if count == settings["shards"]:
        return folder
    part = folder.with_name(f"{folder.name}-{chunks}")
    part.mkdir(exist_ok=True)
    for file in sorted(folder.glob("*.parquet"))[:count]:
        if not (part / file.name).exists():
            os.link(file, part / file.name)
    return part


def fit_sampled(data: Path, k: int, horizon: int, out: Path) -> dict[str, Any]:
    """Fit from the stream on a sample of k; return seconds, memory and the sample's digest."""
    marks = [time.perf_counter()]
    shards = open_shards(data, state=False)
    marks.append(time.perf_counter())
    sample = sample_shards(shards, k=k, horizon=horizon)
    marks.append(time.perf_counter())
    tokenizer = FASTTokenizer(horizon=horizon).fit(sample)
    marks.append(time.perf_counter())
    tokenizer.save_pretrained(out)
    index, sampled, fitted = np.diff(marks).tolist()
    return {
        "chunks": sum(sample.count.values()),
        "sample": len(sample),
        "index_seconds": index,
        "sample_seconds": sampled,
        "fit_seconds": fitted,
        "seconds": marks[-1] - marks[0],
        "peak_bytes": peak_memory(),
        "digest": sample.digest(),
    }


def fit_whole(data: Path, chunks: int, horizon: int, out: Path) -> dict[str, Any]:
    """Fit on every chunk; return seconds and memory."""
    begin = time.perf_counter()
    sample = ChunkSample.of(stream(data, state=False), horizon=horizon, k=chunks)
    tokenizer = FASTTokenizer(horizon=horizon).fit(sample)
    seconds = time.perf_counter() - begin
    tokenizer.save_pretrained(out)
    return {"chunks": len(sample), "seconds": seconds, "peak_bytes": peak_memory()}


def sample_with_ray(data: Path, k: int, horizon: int) -> dict[str, Any]:
    """Take the sample with two workers of Ray; return seconds and its digest."""
    import ray

    from action_tokenizers.integrations.ray import sample

    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    begin = time.perf_counter()
    found = sample(data, k=k, horizon=horizon)
    seconds = time.perf_counter() - begin
    ray.shutdown()
    return {"workers": 2, "seconds": seconds, "digest": found.digest()}


def held_out(folder: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Return tokens per chunk and mean squared error on chunks that no fit has seen."""
    tokenizer = ActionTokenizer.from_pretrained(folder)
    chunks = smooth_chunks(settings["held_out"], settings["horizon"], settings["action_dim"], seed=HELD_OUT_SEED)
    ids = tokenizer.encode(chunks)
    error = tokenizer.decode(ids).astype(np.float64) - chunks
    return {"tokens": float(tokenizer.pad_mask(ids).sum(1).mean()), "mse": float(np.square(error).mean())}


def peak_memory() -> int:
    """Return the high-water mark of this process's memory; unlike getrusage it does not count the parent's."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Write the data, fit in processes of their own, compare; return the report."""
    data = folder / "chunks"
    begin = time.perf_counter()
    write_shards(data, settings)
    written = time.perf_counter() - begin
    horizon = settings["horizon"]
    warm = first_files(data, settings["growth"][0], settings)
    alone("sampled", warm, settings["samples"][0], horizon, folder / "warm")  # kernels are compiled and cached here

    sampled = {}
    for k in settings["samples"]:
        sampled[k] = alone("sampled", data, k, horizon, folder / f"sampled-{k}")
    part = first_files(data, settings["whole"], settings)
    whole = alone("whole", part, settings["whole"], horizon, folder / "whole")
    growth = []
    for chunks in settings["growth"]:
        part = first_files(data, chunks, settings)
        known = sampled.get(settings["sample"]) if chunks == settings["chunks"] else None
        growth.append(known or alone("sampled", part, settings["sample"], horizon, folder / f"growth-{chunks}"))
    codes = {"whole": held_out(folder / "whole", settings)}
    codes |= {str(k): held_out(folder / f"sampled-{k}", settings) for k in settings["samples"]}
    return {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {
            "action-tokenizers": __version__,
            **{name: _version(name) for name in ("numpy", "torch", "pyarrow", "numba", "ray")},
        },
        "settings": settings,
        "data": {
            "bytes": sum(file.stat().st_size for file in data.glob("*.parquet")),
            "write_seconds": written,
        },
        "sampled": {str(k): found for k, found in sampled.items()},
        "whole": whole,
        "growth": growth,
        "held_out": codes,
        "ray": alone("ray", data, settings["sample"], horizon, folder) if _version("ray") else None,
    }


def alone(what: str, data: Path, k: int, horizon: int, out: Path) -> dict[str, Any]:
    """Run one measurement in a new process."""
    command = [sys.executable, __file__, "--only", what, str(data), str(k), str(horizon), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def page(report: dict[str, Any]) -> str:
    """Return the page on how cost grows, from the numbers alone."""
    settings, whole, codes = report["settings"], report["whole"], report["held_out"]
    shape = f"{settings['horizon']} x {settings['action_dim']}"
    largest = report["growth"][-1]
    machine = report["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items() if number)
    lines = [
        "# Fitting on data of any size",
        "",
        "Made by `python recipes/benchmarks/fit_scale.py` from `fit_scale.json`; do not edit.",
        "",
        f"{settings['chunks']:,} chunks of {shape} from `smooth_chunks`, {report['data']['bytes'] / 1e9:.2f} GB of "
        f"parquet in {settings['shards']} files, every chunk an episode of its own. {machine['cores']} cores "
        f"({machine['processor']}), which other work may have shared; Python {machine['python']}, {versions}.",
        "",
        "## What sampling costs",
        "",
        f"FAST fitted from the stream on samples, against FAST fitted on {whole['chunks']:,} of the chunks without "
        f"sampling; {settings['held_out']:,} held-out chunks of another seed.",
        "",
        "| fitted on | tokens | against all | MSE | against all | seconds | peak GB |",
        "|---|---|---|---|---|---|---|",
    ]
    base = codes["whole"]
    for k, found in report["sampled"].items():
        code = codes[k]
        lines.append(
            f"| {found['sample']:,} of {found['chunks']:,} | {code['tokens']:.3f} "
            f"| {_percent(code['tokens'], base['tokens'])} | {code['mse']:.4e} | {_percent(code['mse'], base['mse'])} "
            f"| {found['seconds']:.1f} | {found['peak_bytes'] / 1e9:.2f} |"
        )
    lines += [
        f"| all of {whole['chunks']:,} | {base['tokens']:.3f} | | {base['mse']:.4e} | | {whole['seconds']:.1f} "
        f"| {whole['peak_bytes'] / 1e9:.2f} |",
        "",
        "## How cost grows",
        "",
        f"One process, a sample of at most {settings['sample']:,}; of fewer chunks it holds all. The index reads the "
        "episode numbers, sampling reads every action once (for exact minima and maxima), the fit sees the sample "
        "only.",
        "",
        "| chunks | held | index s | sample s | fit s | total s | peak GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for found in report["growth"]:
        lines.append(
            f"| {found['chunks']:,} | {found['sample']:,} | {found['index_seconds']:.2f} "
            f"| {found['sample_seconds']:.2f} | {found['fit_seconds']:.2f} | {found['seconds']:.1f} "
            f"| {found['peak_bytes'] / 1e9:.2f} |"
        )
    lines += ["", fits(report)]
    if report["ray"]:
        same = report["ray"]["digest"] == largest["digest"]
        lines += [
            "",
            f"Ray, {report['ray']['workers']} workers, index and sample of the same {largest['chunks']:,} chunks: "
            f"{report['ray']['seconds']:.1f} s; the sample is {'the same, bit for bit' if same else 'NOT THE SAME'}.",
        ]
    return "\n".join([*lines, "", *plan(report)]) + "\n"


def fits(report: dict[str, Any]) -> str:
    """Return what was measured of the fit: its seconds beside the chunks that it saw."""
    told = ", ".join(
        f"{one['fit_seconds']:.1f} s on {one['sample']:,} chunks of {one['chunks']:,}" for one in report["growth"]
    )
    return (
        f"The fit alone took {told}, each measured once. Where two fits saw equally many chunks these were other ones, "
        "and other work may have shared the machine: what of the difference is due to either was not measured."
    )


def plan(report: dict[str, Any]) -> list[str]:
    """Return what larger data would take: on paper, at the rates of the largest run."""
    largest, data = report["growth"][-1], report["data"]["bytes"]
    chunks, sample = largest["chunks"], largest["sample"]
    chunk_bytes = 4 * report["settings"]["horizon"] * report["settings"]["action_dim"]
    held = sample * chunk_bytes
    lines = [
        "## On paper: to a billion",
        "",
        "Not measured: the rates of the largest run above, carried on. Index and sampling are linear in the data and "
        "are shared by the cores of a cluster, as far as its storage keeps up. The fit is on one machine, on a sample "
        f"of {sample:,} whatever the data; it took {largest['fit_seconds']:.1f} s there. Workers hand over no more "
        f"than the final sample together, {held / 1e6:.0f} MB, since the index tells which chunks will be in it.",
        "",
        "What one process does for all and no worker can take off it:",
        "",
        f"- The table of the episodes takes {TABLE} bytes an episode numbered by integers, and up to {PEAK} while the "
        "index is put together (the runs of the files beside it, and a sort), several times that where text names "
        "them; splits and draws sort it again.",
        "- `Shards`, with that table, is on every machine: Ray sends it once to each, torchrun once to every rank, so "
        "a machine of eight ranks holds eight.",
        "- Which chunks will be in the sample is found by hashing the place of every chunk, one file after the other, "
        f"before the first worker begins; on torchrun every rank does so. At {PRIORITY_SECONDS * 1e9:.0f} ns a chunk, "
        "measured apart, it is the column `hash`.",
        "",
        "Sixty-four cores are a sixty-fourth of the time of one, as if they shared nothing: a cluster was not measured"
        + (
            f", and two workers of Ray took {report['ray']['seconds']:.1f} s here, on cores they share with what feeds "
            f"them, where one process took {largest['index_seconds'] + largest['sample_seconds']:.1f} s."
            if report["ray"]
            else "."
        ),
        "",
        "| chunks | parquet | index, 1 core | hash | sampling, 1 core | sampling, 64 cores | storage must give | table "
        "| its peak |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for power in (7, 8, 9):
        factor = 10**power / chunks
        size, seconds = factor * data, factor * largest["sample_seconds"]
        index = factor * largest["index_seconds"]
        lines.append(
            f"| 10^{power} | {size / 1e9:,.0f} GB | {_time(index)} | {_time(10**power * PRIORITY_SECONDS)} "
            f"| {_time(seconds)} | {_time(seconds / 64)} | {size / (seconds / 64) / 1e9:.1f} GB/s "
            f"| {TABLE * 10**power / 1e9:.2g} GB | {PEAK * 10**power / 1e9:.2g} GB |"
        )
    return [*lines, "", "Chunks that overlap, as windows of longer episodes do, cost less: frames are read once."]


def _percent(value: float, base: float) -> str:
    return f"{100 * (value / base - 1):+.2f} %"


def _time(seconds: float) -> str:
    return (
        f"{seconds / 3600:.1f} h"
        if seconds >= 3600
        else f"{seconds / 60:.1f} min"
        if seconds >= 60
        else f"{seconds:.0f} s"
        if seconds >= 1
        else f"{seconds:.1f} s"
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, print; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the data go and stay (a temporary folder, which goes)")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--smoke", action="store_true", help="a few small chunks: the run, not the numbers")
    parser.add_argument("--rewrite", action="store_true", help="only write the page again, from the results")
    parser.add_argument("--only", nargs=5, metavar=("WHAT", "DATA", "K", "HORIZON", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.only:
        what, data, k, horizon, out = options.only
        if what == "ray":
            found = sample_with_ray(Path(data), int(k), int(horizon))
        else:
            work = {"sampled": fit_sampled, "whole": fit_whole}[what]
            found = work(Path(data), int(k), int(horizon), Path(out))
        print(json.dumps(found))
        return 0
    if not options.rewrite:
        settings = SMOKE if options.smoke else FULL
        with tempfile.TemporaryDirectory() as temporary:
            report = measure(options.folder or Path(temporary), settings)
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    report = json.loads(options.json.read_text())
    options.page.write_text(page(report))
    print(page(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
