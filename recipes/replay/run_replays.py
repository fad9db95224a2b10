"""Which numbers of the audit predict what happens when decoded actions are executed? Eight Meta-World tasks and PushT.

    pip install "action-tokenizers[data,sim]"
    python recipes/replay/run_replays.py --data PUSHT --publish  # the folder of the PushT demonstrations, 5-D states
    python recipes/replay/run_replays.py --tasks push-v3   # some tasks only; what is in --out already is not run again
    python recipes/replay/run_replays.py --data PUSHT --confirm --publish  # again, on other demonstrations
    python recipes/replay/run_replays.py --smoke           # a made-up linear robot: needs no simulator, a minute

Every tokenizer is fitted on one set of demonstrations and audited on another, from other starts. The audit replays the
decoded actions open loop from the recorded starts, and beside what comes of it stand all its other numbers. One line
of JSON per task and tokenizer goes to `--out`; then `replay_tables.py` ranks the numbers, and writes them down.

Meta-World: the scripted expert with N(0, .05²) on its executed xyz actions; fits on starts 0-24 with noise seeds 0-3,
audits on starts 25-49 with the first seed that succeeds; actions as they are. PushT: 206 human demonstrations, shuffled
by `default_rng(0).permutation(206)`; the first 40 are audited, the rest fitted on; actions by minimum and maximum.

`--confirm` asks whether the published criterion was luck: the same tokenizers, fitted on starts 25-49 and audited on
starts 0-24 with noise seeds 10-13, four more tasks, and the next 40 demonstrations of PushT. The starts of the old
tasks and PushT's demonstrations were fitted on before, but never audited; the four tasks are new.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import replay_tables
from json_lines import append
from linear_robot import record_linear
from replay_tokenizers import Entry, tokenizers

from action_tokenizers import Episodes
from action_tokenizers.diagnostics.audit import audit
from action_tokenizers.diagnostics.error import unit_of
from action_tokenizers.diagnostics.execution import Outcome, Replay

META_WORLD = (
    *("peg-insert-side-v3", "assembly-v3", "pick-place-v3", "door-open-v3"),
    *("push-v3", "drawer-open-v3", "hammer-v3", "stick-push-v3"),
)
NEW_META_WORLD = ("basketball-v3", "bin-picking-v3", "coffee-pull-v3", "shelf-place-v3")
PUSHT = "pusht"
# range and unit of Meta-World's actions: errors count as the controller receives them
AS_RECEIVED = ("unit", np.ones(4))
# what is kept of the parts of a measure: enough to see an outcome again
REPLAYED = ("replay_deviation", "replay_score")

Places = Callable[[NDArray[np.float32]], Mapping[str, NDArray[Any]]]


@dataclass(frozen=True)
class Split:
    """Which demonstrations are fitted on, and which audited.

    Attributes:
        tasks: of Meta-World.
        fit_starts, held_out_starts, noise_seeds: of Meta-World's expert.
        pusht_held_out: places in the shuffled demonstrations; the rest are fitted on.
    """

    tasks: tuple[str, ...]
    fit_starts: range
    held_out_starts: range
    noise_seeds: range
    pusht_held_out: slice


PUBLISHED = Split(META_WORLD, range(25), range(25, 50), range(4), slice(0, 40))
CONFIRMING = Split((*META_WORLD, *NEW_META_WORLD), range(25, 50), range(25), range(10, 14), slice(40, 80))


@dataclass
class Task:
    """What to fit on, what to audit on, and the simulator.

    Attributes:
        name: of the task.
        fit: demonstrations.
        held_out: demonstrations from other starts.
        replay: executes actions from the start of an episode of `held_out`.
        places: of recorded states, as the outcome of a replay names them.
        range: what the tokenizers map to [-1, 1], see `ActionTokenizer`.
        unit: `(d,)` of the audit.
    """

    name: str
    fit: Episodes
    held_out: Episodes
    replay: Replay
    places: Places
    range: str
    unit: NDArray[np.float64]

    def __post_init__(self) -> None:
        self.replay = Remembered(self.replay, self.held_out)

    def exact(self) -> dict[str, Any]:
        """Replay the recorded actions: what a tokenizer without error would score."""
        outcomes = [self.replay(*pair) for pair in zip(self.held_out.names, self.held_out.actions, strict=True)]
        errors = [
            max(_farthest(outcome.states[group], places) for group, places in self.places(states).items())
            for outcome, states in zip(outcomes, self.held_out.states or (), strict=True)
        ]
        return {
            "score": float(np.mean([outcome.score for outcome in outcomes])),
            "median_state_error": float(np.median(errors)),
            "largest_state_error": max(errors),
            "episodes": len(self.held_out),
            "fit_episodes": len(self.fit),
            "mean_length": self.held_out.frames / len(self.held_out),
        }


def _farthest(replayed: NDArray[np.float64], recorded: NDArray[np.float32]) -> float:
    """Return the largest difference, as the recording holds it: before every action, in float32."""
    return float(np.abs(replayed[:-1].astype(np.float32) - recorded).max())


class Remembered:
    """A replay that executes recorded actions once: every tokenizer is compared with the same."""

    def __init__(self, replay: Replay, episodes: Episodes) -> None:
        self.replay = replay
        self.recorded = dict(zip(episodes.names, episodes.actions, strict=True))
        self.exact: dict[int, Outcome] = {}

    def __call__(self, name: int, actions: NDArray[np.float32]) -> Outcome:
        """Execute `actions (t, d)` in the episode `name`, or remember what came of them."""
        if not np.array_equal(actions, self.recorded[name]):
            return self.replay(name, actions)
        if name not in self.exact:
            self.exact[name] = self.replay(name, actions)
        return self.exact[name]


def meta_world(task: str, split: Split) -> Task:
    from action_tokenizers.integrations.simulators import MetaWorldReplay, record

    fit = record(task, split.fit_starts, split.noise_seeds)
    held_out = record(task, split.held_out_starts, split.noise_seeds, one_per_start=True)
    return Task(
        task,
        fit.episodes,
        held_out.episodes,
        MetaWorldReplay(task, held_out.starts),
        lambda states: {"hand": states[:, :3], "object": states[:, 4:7]},
        *AS_RECEIVED,
    )


def pusht(folder: Path, split: Split) -> Task:
    from action_tokenizers.integrations.simulators import PushTReplay

    episodes = Episodes.load(folder)
    order = np.random.default_rng(0).permutation(len(episodes))
    held_out = episodes[order[split.pusht_held_out]]
    fit = episodes[np.delete(order, split.pusht_held_out)]
    return Task(
        PUSHT,
        fit,
        held_out,
        PushTReplay(held_out),
        lambda states: {"agent": states[:, :2] / 512, "block": states[:, 2:4] / 512},
        "minmax",
        unit_of(list(fit.actions)),
    )


def linear(seed: int) -> Task:
    held_out, replay = record_linear(12, seed=2 * seed + 1)
    return Task(
        "linear robot",
        record_linear(24, seed=2 * seed)[0],
        held_out,
        replay,
        lambda states: {"hand": states[:, :3], "object": states[:, 3:]},
        *AS_RECEIVED,
    )


def tasks(options: argparse.Namespace) -> dict[str, Callable[[], Task]]:
    """Return how to prepare each task that is asked for."""
    if options.smoke:
        return {"linear robot": partial(linear, 0)}
    split = CONFIRMING if options.confirm else PUBLISHED
    known: dict[str, Callable[[], Task]] = {task: partial(meta_world, task, split) for task in split.tasks}
    if options.data is not None:
        known[PUSHT] = partial(pusht, options.data, split)
    asked = options.tasks or list(known)
    if unknown := sorted(set(asked) - set(known)):
        raise SystemExit(f"expected tasks among {list(known)} (pusht: with --data), got {unknown}")
    return {task: known[task] for task in asked}


def run(options: argparse.Namespace, out: Path) -> None:
    """Append what is not in the folder `out` yet, a task after another or several at once."""
    out.mkdir(parents=True, exist_ok=True)
    jobs = [partial(run_task, name, prepare, options.smoke, out) for name, prepare in tasks(options).items()]
    if options.jobs == 1:
        for job in jobs:
            job()
        return
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(job) for job in jobs]:
            future.result()


def run_task(name: str, prepare: Callable[[], Task], smoke: bool, out: Path) -> None:
    """Append the rows of one task that are missing in its file."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", ".*shorter than the horizon")
    file = out / f"{name.replace(' ', '-')}.jsonl"
    done = [row.get("tokenizer") for row in replay_tables.read_rows(out) if row["task"] == name]
    missing = [tokenizer for tokenizer in tokenizers("unit", smoke) if tokenizer not in done]
    if not missing and None in done:
        return
    task = timed(prepare)
    entries = tokenizers(task.result.range, smoke)
    if None not in done:
        append(file, {"task": name, "exact": task.result.exact(), "seconds": task.seconds})
    for tokenizer in missing:
        row = measure(task.result, tokenizer, entries[tokenizer])
        append(file, row)
        told = {each: row["measures"][each]["value"] for each in (replay_tables.DRIFT, *REPLAYED)}
        print(f"{name:20} {tokenizer:20} {told} {sum(row['seconds'].values()):.1f} s", flush=True)


def measure(task: Task, name: str, entry: Entry) -> dict[str, Any]:
    """Fit one tokenizer, audit it with replay, and return the row."""
    fitted = timed(lambda: entry.make().fit(task.fit))
    report = timed(lambda: audit(fitted.result, task.held_out, unit=task.unit, replay=task.replay))
    return {
        "task": task.name,
        "tokenizer": name,
        "group": entry.group,
        "horizon": fitted.result.horizon,
        "vocab_size": fitted.result.vocab_size,
        "silent_failure": report.result.silent_failure,
        "measures": {measure.name: kept(measure.to_json()) for measure in report.result.measures},
        "seconds": {"fit": fitted.seconds, "audit": report.seconds},
    }


def kept(measure: dict[str, Any]) -> dict[str, Any]:
    """Return value, interval, kind and sample sizes, and the parts that are single numbers."""
    row = {key: measure[key] for key in ("value", "interval", "kind", "n")}
    parts = measure["parts"]
    row["parts"] = {key: value for key, value in parts.items() if isinstance(value, int | float)}
    if measure["name"] in REPLAYED:
        row["parts"] |= {key: parts[key] for key in ("per_group", "decoded", "failed") if key in parts}
    return row


@dataclass
class Timed:
    """A result, and the processor seconds it took."""

    result: Any
    seconds: float


def timed(call: Callable[[], Any]) -> Timed:
    start = time.process_time()
    result = call()
    return Timed(result, time.process_time() - start)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--data", type=Path, help="the folder of the PushT demonstrations; without it they are left out"
    )
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these, such as push-v3 or pusht")
    parser.add_argument(
        "--out", type=Path, help="folder of JSON lines (default: replays or confirmation; a temporary one for --smoke)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="tasks at once, a core each")
    parser.add_argument("--smoke", action="store_true", help="nine tokenizers on a made-up linear robot")
    parser.add_argument("--confirm", action="store_true", help="other starts, other noise, four more tasks")
    parser.add_argument(
        "--publish", action="store_true", help="rewrite README.md, outcomes.md and results.json (or confirmation.json)"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, print the tables; return the exit code."""
    options = parse(arguments)
    fallback = Path(tempfile.mkdtemp(prefix="replays-")) if options.smoke else Path()
    out = options.out or fallback / ("confirmation" if options.confirm else "replays")
    run(options, out)
    results = replay_tables.collect(replay_tables.read_rows(out))
    print(replay_tables.summary(results))
    if options.publish:
        (replay_tables.publish_confirmation if options.confirm else replay_tables.publish)(results)
    return 0 if replay_tables.holds(results) else 1


if __name__ == "__main__":
    sys.exit(main())
