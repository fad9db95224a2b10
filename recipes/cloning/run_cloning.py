"""What does a policy lose by its tokenizer? Log-loss cloning through five of them, beside regression, closed loop.

    pip install "action-tokenizers[data,sim]"
    python recipes/cloning/run_cloning.py --data PUSHT --jobs 2 --publish   # PUSHT: the folder of its demonstrations
    python recipes/cloning/run_cloning.py --tasks reach-v3    # some tasks only; what is in --out is not run again
    python recipes/cloning/run_cloning.py --smoke             # a made-up reach: needs no simulator, seconds

Every policy is the same transformer, trained alike; only the ids differ. It is executed from starts that nobody
demonstrated, the same for all, drawing ids as it learned them and, a second time, taking the likeliest each time. One
line of JSON per task, tokenizer and seed goes to `--out`; `cloning_tables.py` turns them into tables.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import cloning_tables
from cloning_tasks import MADE_UP, Task, made_up, tasks
from json_lines import append

from action_tokenizers import ActionTokenizer, BinningTokenizer, FASTTokenizer, KMeansTokenizer, ResidualVQTokenizer
from action_tokenizers.cloning.planning import Planner, Plans
from action_tokenizers.cloning.regression import regress
from action_tokenizers.cloning.rollout import Simulator, rollout
from action_tokenizers.cloning.training import clone, states_and_chunks
from action_tokenizers.diagnostics.audit import audit

SEEDS = 3
STEPS = 1000  # of the optimiser
SMOKE_STEPS = 250
AUDITED = ("drift_leaky", "drift", "error_mean", "tokens", "probe_nll")


def tokenizers(task: Task, smoke: bool = False) -> dict[str, ActionTokenizer]:
    """Return what to clone through, unfitted."""
    given: Mapping[str, Any] = {"horizon": task.horizon, "range": task.range}
    known: dict[str, ActionTokenizer] = {
        "bins256": BinningTokenizer(bins=256, **given),
        "fast512": FASTTokenizer(vocab_size=512, **given),
        "kmeans_chunk512": KMeansTokenizer(codebook_size=512, scope="chunk", **given),
        "rvq4x128": ResidualVQTokenizer(levels=4, codebook_size=128, **given),
        "rvq1x16": ResidualVQTokenizer(levels=1, codebook_size=16, **given),
    }
    return {name: known[name] for name in ("fast512", "rvq4x128")} if smoke else known


def run_task(name: str, prepare: Callable[[], Task], smoke: bool, seeds: int, out: Path) -> None:
    """Append what is missing of one task."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", ".*shorter than the horizon")
    file = out / f"{name.replace(' ', '-')}.jsonl"
    task = prepare()
    settings = [SMOKE_STEPS if smoke else STEPS, len(task.fit), task.steps, task.horizon, task.execute]
    rows = [row for row in cloning_tables.read_rows(out) if row["task"] == name]
    if any(row["settings"] != settings for row in rows):
        raise SystemExit(f"expected rows of the settings {settings} in {out}, got others; give another --out")
    done = {(row["tokenizer"], row["seed"]) for row in rows}
    simulators = [task.simulator() for _ in task.starts]
    for codec, unfitted in {**tokenizers(task, smoke), cloning_tables.REGRESSION: None}.items():
        missing = [seed for seed in (None, *range(seeds)) if (codec, seed) not in done]
        if unfitted is None:
            missing = [seed for seed in missing if seed is not None]
        if not missing:
            continue
        fitted = None if unfitted is None else unfitted.fit(task.fit)
        for seed in missing:
            row = audited(task, fitted) if seed is None else executed(task, fitted, seed, simulators, smoke)
            append(file, {"task": name, "tokenizer": codec, "seed": seed, "settings": settings, **row})
            print(
                name, codec, seed, {key: row[key] for key in ("verdict", "mean", "train_s") if key in row}, flush=True
            )


def audited(task: Task, tokenizer: ActionTokenizer) -> dict[str, Any]:
    """Return what the audit says of a tokenizer, once for all seeds."""
    report = audit(tokenizer, task.held_out, unit=task.unit)
    measures = {measure.name: measure.value for measure in report.measures}
    return {
        "verdict": report.verdict,
        "silent_failure": report.silent_failure,
        "vocab_size": tokenizer.vocab_size,
        "measures": {name: measures.get(name) for name in AUDITED},
    }


def executed(
    task: Task, tokenizer: ActionTokenizer | None, seed: int, simulators: Sequence[Simulator], smoke: bool
) -> dict[str, Any]:
    """Train one policy and return what comes of it."""
    start = time.process_time()
    steps = SMOKE_STEPS if smoke else STEPS
    if tokenizer is None:
        regression = regress(task.fit, task.horizon, steps=steps, seed=seed, execute=task.execute)
        trained = time.process_time() - start
        laws: dict[str, Plans] = {cloning_tables.DRAWN: regression}
        facts: dict[str, Any] = {"parameters": sum(p.numel() for p in regression.network.parameters())}
    else:
        policy = clone(tokenizer, task.fit, steps=steps, seed=seed)
        trained = time.process_time() - start
        laws = {
            law: Planner(policy.at(temperature), execute=task.execute)
            for law, temperature in ((cloning_tables.DRAWN, 1.0), (cloning_tables.LIKELIEST, 0.0))
        }
        _, cut = states_and_chunks(task.held_out, task.horizon, tokenizer.relative)
        ids = tokenizer.encode(cut.actions, action_is_pad=cut.padding)
        facts = {
            "parameters": sum(p.numel() for p in policy.network.parameters()),
            "tokens": float(tokenizer.pad_mask(ids).sum(-1).mean()),
        }
    row: dict[str, Any] = {**facts, "train_s": trained, "starts": list(task.starts)}
    for law, planner in laws.items():
        start = time.process_time()
        done = rollout(planner, iter(simulators).__next__, task.starts, steps=task.steps, seed=seed)
        row[law] = {
            "scores": [round(float(score), 5) for score in done.scores],
            "stopped": sum(reason is not None for reason in done.stopped),
            "looks": float(done.looks.mean()),
            "s": time.process_time() - start,
        }
    return {**row, "mean": {law: sum(row[law]["scores"]) / len(task.starts) for law in laws}}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--data", type=Path, help="folder of the PushT demonstrations; without it PushT is left out")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these, such as reach-v3 or pusht")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="policies per tokenizer")
    parser.add_argument("--out", type=Path, help="folder of JSON lines (default: cloned; a temporary one for --smoke)")
    parser.add_argument("--jobs", type=int, default=1, help="tasks at once, a core each")
    parser.add_argument("--smoke", action="store_true", help="two tokenizers on a made-up task, one seed")
    parser.add_argument("--publish", action="store_true", help="rewrite the tables of README.md, and results.json")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, print the table; return the exit code: 0 where some policy reaches half of Meta-World."""
    options = parse(arguments)
    known = {MADE_UP: made_up} if options.smoke else tasks(options.data)
    asked = options.tasks or list(known)
    if unknown := sorted(set(asked) - set(known)):
        raise SystemExit(f"expected tasks among {list(known)} (pusht: with --data), got {unknown}")
    out = options.out or Path(tempfile.mkdtemp(prefix="cloned-") if options.smoke else "cloned")
    out.mkdir(parents=True, exist_ok=True)
    seeds = 1 if options.smoke else options.seeds
    jobs = [partial(run_task, name, known[name], options.smoke, seeds, out) for name in asked]
    if options.jobs == 1:
        for job in jobs:
            job()
    else:
        with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
            for future in [pool.submit(job) for job in jobs]:
                future.result()
    results = cloning_tables.collect(cloning_tables.read_rows(out))
    print(cloning_tables.table(results))
    if options.publish:
        cloning_tables.publish(results)
    return 0 if cloning_tables.works(results) else 1


if __name__ == "__main__":
    sys.exit(main())
