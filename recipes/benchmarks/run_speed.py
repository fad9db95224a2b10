"""One command measures us beside our peers, in one run on one machine.

    python recipes/benchmarks/run_speed.py --data DATA --pretrained FOLDER    # 25 minutes
    python recipes/benchmarks/run_speed.py --smoke --out OUT                  # not the numbers

Peers beyond the test requirements: `pip install --no-deps torchrl==0.14.1 "tensordict>=0.14.3,<0.15" pyvers==0.2.3
hoptorch cloudpickle vector-quantize-pytorch==1.32.0 einx frozendict loguru torch-einops-utils` (without dependencies,
because they would replace torch). A peer that is not installed, and data that are not given, are shown as such.

Writes speed.json, speed.png and, between markers, the tables of README.md; `--tables` makes them of speed.json again.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import contests
from contests import (
    BATCH,
    BINS,
    COPY,
    MODULES,
    OURS,
    PER_CHUNK,
    PREALLOCATED,
    RESIDUAL,
    TAIL,
    UNIFORM,
    Contest,
)
from timing import fresh_process, machine, matmul_limit, single_calls, spread, time_jobs, versions

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- speed: begin -->", "<!-- speed: end -->"
ADROIT, PUBLISHED = "adroit_door", "physical-intelligence-fast"

FULL: dict[str, Any] = {
    "chunks": 5_000,
    "fit_chunks": 2_000,
    "horizon": 50,
    "action_dim": 14,
    "fast_fit_chunks": 30_000,
    "binning_chunks": 50_000,
    "copy_mb": 1_024,
    "matmul": 2_048,
    "levels": 8,
    "codebook_size": 256,
    "vq_fit_chunks": 20_000,
    "vq_horizon": 20,
    "vq_action_dim": 7,
    "repeats": 7,
    "fit_repeats": 5,
    "calls": 2_000,
    "memory_chunks": 30_000,
    "fresh": ("ours", "stand-in"),
    "empty_cache": True,
    "scaling": {
        "chunks": (1, 8, 64, 512, 4_096, 32_768),
        "horizon": (10, 25, 50, 100, 200),
        "action_dim": (1, 7, 14, 28, 56),
        "vocab_size": (512, 1_024, 2_048, 4_096),
    },
    "accelerator_chunks": 200_000,
}
SMOKE: dict[str, Any] = {
    **FULL,
    "chunks": 40,
    "fit_chunks": 120,
    "horizon": 10,
    "action_dim": 3,
    "fast_fit_chunks": 100,
    "binning_chunks": 50,
    "copy_mb": 1,
    "matmul": 64,
    "levels": 2,
    "codebook_size": 8,
    "vq_fit_chunks": 100,
    "vq_horizon": 5,
    "vq_action_dim": 2,
    "repeats": 2,
    "fit_repeats": 1,
    "calls": 4,
    "memory_chunks": 20,
    "fresh": ("ours",),
    "empty_cache": False,
    "scaling": {"chunks": (1, 16), "vocab_size": (200, 300)},
    "accelerator_chunks": 50,
}
# what the issue asks for: contest, operation, side, and how many times faster we must be
TARGETS = (
    ("FAST, smooth", "encode", PER_CHUNK, 40),
    ("FAST, smooth", "decode", PER_CHUNK, 15),
    ("FAST, adroit_door", "encode", PER_CHUNK, 20),
    ("published FAST+", "encode", PER_CHUNK, 20),
    ("FAST fit", "fit", PER_CHUNK, 5),
    ("256 uniform bins", "encode", UNIFORM, 3),
    ("256 uniform bins", "decode", UNIFORM, 3),
    ("residual VQ", "encode", RESIDUAL, 2),
)
LATENCY_TARGET, BANDWIDTH_TARGET = 5, 0.5


def run(contest: Contest, repeats: int, seed: int) -> dict[str, Any]:
    """Time all jobs of a contest, operations mixed, and return what JSON takes."""
    jobs = {f"{operation}\n{side}": job for operation, sides in contest.jobs.items() for side, job in sides.items()}
    seconds = time_jobs(jobs, repeats, seed, warm=contest.warm)
    found: dict[str, Any] = {"name": contest.name, "items": contest.items, "notes": contest.notes, "operations": {}}
    for name, times in seconds.items():
        operation, side = name.split("\n")
        row = {"seconds": times, "per_second": contest.items / spread(times)["median"]}
        if side in contest.bytes_each.get(operation, {}):
            row["gb_per_second"] = contest.bytes_each[operation][side] * row["per_second"] / 1e9
        found["operations"].setdefault(operation, {})[side] = row
    return found


def measure(settings: dict[str, Any], data: Path | None, pretrained: Path | None, seed: int) -> dict[str, Any]:
    """Return all results; what could not be measured is listed under `missing`."""
    t, d, repeats = settings["horizon"], settings["action_dim"], settings["repeats"]
    base = {name: settings[name] for name in ("chunks", "fit_chunks", "horizon", "action_dim")}
    vq = {"horizon": settings["vq_horizon"], "action_dim": settings["vq_action_dim"]}
    missing = {side: "not installed" for side in MODULES if contests.peer(side) is None}
    found: list[dict[str, Any]] = []

    def add(make: Any, times: int = repeats) -> None:
        found.append(run(make(), times, seed))
        gc.collect()

    add(lambda: contests.smooth_fast(**base, seed=seed))
    if data is not None and (data / ADROIT).is_dir():
        add(lambda: contests.recorded_fast(data / ADROIT, 50))
    else:
        missing[f"FAST, {ADROIT}"] = "data not given"
    if pretrained is not None and (pretrained / PUBLISHED).is_dir():
        add(lambda: contests.published(pretrained / PUBLISHED, settings["chunks"], t, d, seed))
    else:
        missing["published FAST+"] = "folder not given"
    add(lambda: contests.fast_fit(settings["fast_fit_chunks"], t, d, seed), settings["fit_repeats"])
    # beyond the caches, which is what the targets are about, and within them
    add(lambda: contests.binning(settings["binning_chunks"], t, d, seed))
    add(lambda: contests.binning(settings["chunks"], t, d, seed))
    add(lambda: contests.copying(settings["copy_mb"]))
    size = settings["codebook_size"]
    add(
        lambda: contests.residual_vq(
            settings["chunks"], settings["vq_fit_chunks"], **vq, levels=settings["levels"], size=size, seed=seed
        )
    )
    for scope in ("step", "chunk"):
        add(
            lambda scope=scope: contests.kmeans(
                settings["chunks"], settings["vq_fit_chunks"], **vq, size=size, scope=scope, seed=seed
            )
        )
    accelerator = None
    if torch.cuda.is_available():
        accelerator = on_accelerator(settings, seed)
    else:
        missing["accelerator"] = "none here"
    return {
        "settings": {**settings, "seed": seed},
        "machine": machine(),
        "versions": versions(),
        "missing": missing,
        "contests": found,
        "matmul_gflops": matmul_limit(settings["matmul"], repeats, seed),
        "latency_us": single_calls(
            contests.single_chunks(t, d, settings["fit_chunks"], settings["calls"], seed), settings["calls"], seed
        ),
        "first_call_ms": first_calls(settings),
        "memory_mb": peak_memory(settings),
        "scaling": scaling(settings, base, seed),
        "cores": cores(settings, base, seed),
        "accelerator": accelerator,
    }


def first_calls(settings: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return what the first call in a fresh process takes; ours with its kernels on disk, and with an empty cache."""
    script, shape = HERE / "fresh_process.py", (str(settings["horizon"]), str(settings["action_dim"]))
    found = {}
    with tempfile.TemporaryDirectory() as empty:
        cache = {"NUMBA_CACHE_DIR": empty} if settings["empty_cache"] else {}
        if cache:
            found["ours, empty cache"] = fresh_process(script, "first_call", "ours", *shape, environment=cache)
        for side in settings["fresh"]:
            name = "ours, kernels from the cache" if side == "ours" else side
            found[name] = fresh_process(script, "first_call", side, *shape, environment=cache)
    return found


def peak_memory(settings: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the peak of a process per operation and side, and what the operation added to it."""
    shape = [str(settings[name]) for name in ("memory_chunks", "horizon", "action_dim")]
    return {
        f"{operation} | {side}": fresh_process(HERE / "fresh_process.py", "memory", side, operation, *shape)
        for operation in ("encode", "decode", "fit")
        for side in settings["fresh"]
    }


def scaling(settings: dict[str, Any], base: dict[str, int], seed: int) -> dict[str, dict[str, Any]]:
    """Return chunks per second of FAST as one of batch, horizon, dims and vocabulary varies."""
    found: dict[str, dict[str, Any]] = {}
    for name, values in settings["scaling"].items():
        found[name] = {}
        for value in values:
            contest = contests.smooth_fast(**{**base, name: value}, seed=seed)
            for sides in contest.jobs.values():
                del sides[BATCH]
            if name == "chunks" and value < 512:  # too short a job to time by itself
                contest = _repeated(contest, 512 // value)
            found[name][str(value)] = run(contest, settings["repeats"], seed)["operations"]
    return found


def _repeated(contest: Contest, times: int) -> Contest:
    def again(job: Any) -> Any:
        return lambda: [job() for _ in range(times)]

    jobs = {op: {side: again(job) for side, job in sides.items()} for op, sides in contest.jobs.items()}
    return Contest(contest.name, contest.items * times, jobs, contest.notes)


def cores(settings: dict[str, Any], base: dict[str, int], seed: int) -> dict[str, Any]:
    """Return chunks per second of our FAST and binning on one to all cores."""
    before, found = torch.get_num_threads(), {}
    fast = contests.smooth_fast(**base, seed=seed)
    bins = contests.binning(settings["binning_chunks"], settings["horizon"], settings["action_dim"], seed)
    try:
        for threads in sorted({1, 2, *(2**i for i in range(2, 9)), before}):
            if threads > before:
                continue
            torch.set_num_threads(threads)
            found[str(threads)] = {
                contest.name: run(
                    Contest(contest.name, contest.items, {op: {OURS: jobs[OURS]} for op, jobs in contest.jobs.items()}),
                    settings["repeats"],
                    seed,
                )["operations"]
                for contest in (fast, bins)
            }
    finally:
        torch.set_num_threads(before)
    return found


def on_accelerator(settings: dict[str, Any], seed: int, device: str = "cuda") -> dict[str, Any]:
    """Return the table of the accelerator: what runs there, and how fast it copies."""
    t, d, chunks = settings["horizon"], settings["action_dim"], settings["accelerator_chunks"]
    families = contests.accelerator(chunks, t, d, settings["fit_chunks"], seed, device)
    found = run(families, settings["repeats"], seed)
    copied = run(contests.copying(settings["copy_mb"], device), settings["repeats"], seed)
    return {**found, "operations": {**found["operations"], **copied["operations"]}}


def ratio(report: dict[str, Any], contest: str, operation: str, side: str) -> float | None:
    """Return how many times faster we are; None where it was not measured."""
    sides = _operations(report, contest).get(operation, {})
    return float(sides[OURS]["per_second"] / sides[side]["per_second"]) if side in sides else None


def verdicts(report: dict[str, Any]) -> list[tuple[str, str, str, bool | None]]:
    """Return what was asked for, what was measured, and whether it is met; None: not measured."""
    rows: list[tuple[str, str, str, bool | None]] = []
    for contest, operation, side, least in TARGETS:
        times = ratio(report, contest, operation, side)
        asked = f"{contest}: {operation}, times faster than {side}"
        rows.append(
            (
                asked,
                f"≥ {least}",
                _missing(report, contest, side) if times is None else f"{times:.1f}",
                None if times is None else times >= least,
            )
        )
    latency = report["latency_us"]
    for operation in ("encode", "decode"):
        ours, theirs = (latency[f"{operation} | FAST | {side}"]["p50"] for side in (OURS, PER_CHUNK))
        rows.append(
            (
                f"FAST, one chunk a call: {operation} (p50)",
                f"≥ {LATENCY_TARGET}" if operation == "encode" else "",
                f"{theirs / ours:.1f}",
                theirs / ours >= LATENCY_TARGET if operation == "encode" else None,
            )
        )
    bandwidth = _operations(report, "copying")["copy"][COPY]["gb_per_second"]
    for operation, sides in _operations(report, "256 uniform bins").items():
        for side, asked in ((PREALLOCATED, BANDWIDTH_TARGET), (OURS, None)):
            share = sides[side]["gb_per_second"] / bandwidth
            rows.append(
                (
                    f"256 uniform bins: {operation}, {side}, share of copy bandwidth",
                    f"≥ {asked}" if asked else "",
                    f"{share:.2f}",
                    share >= asked if asked else None,
                )
            )
    errors = next(c["notes"] for c in report["contests"] if c["name"].startswith("residual VQ"))
    if RESIDUAL in errors:
        less = errors[OURS]["mse"] <= errors[RESIDUAL]["mse"]
        rows.append(
            (
                "residual VQ: error at most the peer's",
                "≤",
                f"{errors[OURS]['mse']:.2e}, {errors[RESIDUAL]['mse']:.2e}",
                less,
            )
        )
    for found in report["contests"]:
        if "identical ids" in found["notes"]:
            rows.append(
                (
                    "published FAST+: the stand-in's ids",
                    "all",
                    "all" if found["notes"]["identical ids"] else "not all",
                    found["notes"]["identical ids"],
                )
            )
    return rows


def _missing(report: dict[str, Any], contest: str, side: str) -> str:
    return str(report["missing"].get(side) or report["missing"].get(contest) or "not measured")


def _operations(report: dict[str, Any], contest: str) -> dict[str, Any]:
    """Return those of a contest, of several sizes the largest; nothing where there is none."""
    sizes = [found for found in report["contests"] if found["name"].startswith(contest)]
    largest: dict[str, Any] = max(sizes, key=lambda found: found["items"], default={"operations": {}})
    operations: dict[str, Any] = largest["operations"]
    return operations


def markdown(report: dict[str, Any]) -> str:
    """Return all tables."""
    settings, where = report["settings"], report["machine"]
    lines = [
        f"{where['processor']}, {where['cores']} cores, {where['torch_threads']} torch threads, "
        + f"Python {where['python']}; "
        + ", ".join(f"{name} {number}" for name, number in report["versions"].items())
        + f". Medians of {settings['repeats']} (fits: {settings['fit_repeats']}), order shuffled, one process. Speeds "
        "depend on the machine; ratios are what counts.",
        "",
        *_table(
            ("asked for", "", "measured", ""),
            [(a, b, c, {True: "met", False: "**missed**", None: ""}[ok]) for a, b, c, ok in verdicts(report)],
        ),
        "",
        "### Throughput",
        "",
    ]
    rows = []
    for found in report["contests"]:
        for operation, sides in found["operations"].items():
            first = sides.get(OURS) or sides[COPY]
            for side, row in sides.items():
                compared = "" if row is first else f"{first['per_second'] / row['per_second']:.1f}"
                gb = f"{row['gb_per_second']:.1f}" if "gb_per_second" in row else ""
                speed = "" if found["name"].startswith("copying") else f"{row['per_second']:,.0f}"
                rows.append((found["name"], operation, side, speed, compared, gb))
        for side in _absent(report, found["name"]):
            rows.append((found["name"], "", side, report["missing"][side], "", ""))
    rows += [(name, "", "", why, "", "") for name, why in report["missing"].items() if name not in MODULES]
    lines += _table(("data", "operation", "side", "chunks/s", "ours is times faster", "GB/s"), rows)
    lines += ["", f"Matrix product, float32: {report['matmul_gflops']:.0f} GFLOP/s. " + _notes(report), ""]
    lines += ["### One chunk a call, after warm-up (microseconds)", ""]
    lines += _table(
        ("operation", "family", "side", "p50", "p99"),
        [(*name.split(" | "), f"{v['p50']:.0f}", f"{v['p99']:.0f}") for name, v in report["latency_us"].items()],
    )
    lines += ["", "### First calls in a fresh process (milliseconds)", ""]
    steps = ("import", "fit", "first encode", "first decode", "second encode", "second decode")
    lines += _table(
        ("side", *steps), [(side, *(f"{v[s]:,.2f}" for s in steps)) for side, v in report["first_call_ms"].items()]
    )
    lines += ["", f"### Peak memory, {settings['memory_chunks']:,} chunks (MB)", ""]
    lines += _table(
        ("operation", "side", "process", "of it the operation"),
        [
            (*name.split(" | "), f"{v['peak']:.0f}", f"{v['peak'] - v['before']:.0f}")
            for name, v in report["memory_mb"].items()
        ],
    )
    for name, values in report["scaling"].items():
        lines += ["", f"### FAST as {_SPOKEN[name]} grows (chunks/s)", ""]
        lines += _table(
            (_SPOKEN[name], "encode", "ours is times faster", "decode", "ours is times faster"),
            [(value, *_pair(sides["encode"]), *_pair(sides["decode"])) for value, sides in values.items()],
        )
    lines += ["", "### Cores (chunks/s)", ""]
    names = list(next(iter(report["cores"].values())))
    lines += _table(
        ("threads", *(f"{name}: {op}" for name in names for op in ("encode", "decode"))),
        [
            (threads, *(f"{found[name][op][OURS]['per_second']:,.0f}" for name in names for op in ("encode", "decode")))
            for threads, found in report["cores"].items()
        ],
    )
    if report["accelerator"]:
        lines += ["", f"### {where['accelerator']}, tensors that stay there", ""]
        lines += _accelerator_table(report["accelerator"]["operations"], settings["copy_mb"])
    return "\n".join(lines)


def _accelerator_table(operations: dict[str, Any], megabytes: int) -> list[str]:
    """Return the lines; only where memory is the limit is a share of its bandwidth a measure of anything."""
    bandwidth, rows = operations["copy"][COPY]["gb_per_second"], []
    for operation, sides in operations.items():
        for name, row in sides.items():
            is_copy = operation == "copy"
            share = f"{row['gb_per_second'] / bandwidth:.2f}" if name == BINS else ""
            rows.append(
                (
                    f"copy of {megabytes} MB" if is_copy else operation,
                    name,
                    "" if is_copy else f"{row['per_second']:,.0f}",
                    f"{row['gb_per_second']:.0f}",
                    share,
                )
            )
    return _table(("operation", "family", "chunks/s", "GB/s", "share of its copy bandwidth"), rows)


_SPOKEN = {"chunks": "batch", "horizon": "horizon", "action_dim": "dims", "vocab_size": "vocabulary"}


def _absent(report: dict[str, Any], contest: str) -> list[str]:
    sides = {"256 uniform bins": (UNIFORM, TAIL), "residual VQ": (RESIDUAL,)}
    return [
        s for name, all_sides in sides.items() if contest.startswith(name) for s in all_sides if s in report["missing"]
    ]


def _notes(report: dict[str, Any]) -> str:
    said = []
    for found in report["contests"]:
        for side, note in found["notes"].items():
            what = ", ".join(f"{k} {v:.4g}" for k, v in note.items()) if isinstance(note, dict) else f"{note}"
            said.append(f"{found['name']}: {side} {what}")
    return "; ".join(said) + "."


def _pair(sides: dict[str, Any]) -> tuple[str, str]:
    return f"{sides[OURS]['per_second']:,.0f}", f"{sides[OURS]['per_second'] / sides[PER_CHUNK]['per_second']:.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def plot(report: dict[str, Any]) -> Any:
    """Return a figure: how many times faster than each peer, and chunks per second as the batch grows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    bars, lines = figure.subplots(1, 2)
    named = [
        (f"{found['name']}: {operation}\nagainst {side}", sides[OURS]["per_second"] / row["per_second"])
        for found in report["contests"]
        for operation, sides in found["operations"].items()
        for side, row in sides.items()
        if OURS in sides and side not in (OURS, PREALLOCATED, BATCH)
    ]
    bars.barh([name for name, _ in named], [times for _, times in named], color="#4c72b0")
    bars.axvline(1, color="black", linewidth=0.8)
    bars.set_xscale("log")
    bars.invert_yaxis()
    bars.tick_params(axis="y", labelsize=6)
    bars.set_xlabel("times faster")
    batch = report["scaling"]["chunks"]
    for operation, style in (("encode", "-"), ("decode", "--")):
        for side, colour in ((OURS, "#4c72b0"), (PER_CHUNK, "#c44e52")):
            speeds = [sides[operation][side]["per_second"] for sides in batch.values()]
            lines.plot([int(b) for b in batch], speeds, style, color=colour, marker="o", label=f"{operation}, {side}")
    lines.set_xscale("log")
    lines.set_yscale("log")
    lines.set_xlabel("chunks in a call")
    lines.set_ylabel("FAST, chunks per second")
    lines.legend(fontsize=7)
    return figure


def write(report: dict[str, Any], out: Path) -> None:
    """Write JSON, plot and, into README.md between the markers, the tables."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "speed.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    plot(report).savefig(out / "speed.png", dpi=120, metadata={"Software": None})
    page = out / "README.md"
    text = page.read_text(encoding="utf-8") if page.is_file() else (HERE / "README.md").read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n{markdown(report)}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help=f"folder that holds the recorded data set {ADROIT}")
    parser.add_argument("--pretrained", type=Path, help=f"folder that holds the published {PUBLISHED}")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for speed.json, speed.png and README.md")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="few small chunks: the run, not the numbers")
    parser.add_argument("--tables", action="store_true", help="measure nothing: write the page from speed.json")
    options = parser.parse_args(arguments)
    if options.smoke and options.out == HERE:
        parser.error("expected --out with --smoke, whose numbers must not replace the published ones")
    if options.tables:
        report = json.loads((options.out / "speed.json").read_text(encoding="utf-8"))
    else:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        report = measure(SMOKE if options.smoke else FULL, options.data, options.pretrained, options.seed)
    write(report, options.out)
    print(markdown(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
