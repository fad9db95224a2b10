"""Rank every number of the audit by how it goes along with replay, and write the tables of the README.

    python recipes/replay/replay_tables.py                # README.md and outcomes.md again, from results.json
    python recipes/replay/replay_tables.py --rows FOLDER  # results.json too, from the JSON lines of run_replays.py
    python recipes/replay/replay_tables.py --rows FOLDER --confirm   # confirmation.json, from those of its --confirm

A rank correlation (Spearman) is taken across the tokenizers inside a task, and averaged over tasks: numbers of two
robots are not comparable, their order on one robot is. `deviation` is the state deviation in replay, `loss` the success
or coverage lost; both come from the audit's own replay.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from json_lines import read_rows

from action_tokenizers.diagnostics.measure import bootstrap_t

HERE = Path(__file__).resolve().parent
RESULTS, README, OUTCOMES = HERE / "results.json", HERE / "README.md", HERE / "outcomes.md"
CONFIRMATION = HERE / "confirmation.json"

DEVIATION, LOSS = "replay_deviation", "replay_score"
DRIFT, WINDOWED, MSE, MEAN_ERROR = "drift_leaky", "drift", "error_mean: mse", "error_mean"
RANKED = (DRIFT, WINDOWED, MSE, MEAN_ERROR)
# single numbers that measures hold beside their value
PARTS = {
    "error_mean": ("mse",),
    "error_quantiles": ("0.5", "0.99"),
    "excess_jump": ("over_twice_mean",),
    "flips": ("jump_given_flip",),
    "usage": ("perplexity",),
    "probe_nll": ("nats_per_step",),
}
CONVENTIONAL = ("conventional",)
LISTED = (*CONVENTIONAL, "probe")
EVERY = (*LISTED, "extra")
ALARMS = ("episode_jump", "episode_jump_fine")
TRAPS = ("trap0.4%", "trap0.1%")
RARE = 0.01  # share of episodes from which on a far jump is alarming
LEAST = 0.9  # rank correlation of drift and deviation in every task
LEAST_TOKENIZERS = 6
DIGITS = 5
VERSIONS = ("action-tokenizers", "metaworld", "mujoco", "gym-pusht", "pymunk", "numpy", "torch")

Results = dict[str, Any]
Correlation = dict[str, float]


def collect(rows: Sequence[Mapping[str, Any]]) -> Results:
    """Return all numbers by task and measure, as lists in the order of the tokenizers."""
    exact = {row["task"]: row["exact"] for row in rows if "exact" in row}
    measured = [row for row in rows if "measures" in row]
    names = list(dict.fromkeys(row["tokenizer"] for row in measured))
    by_place = {(row["task"], row["tokenizer"]): row for row in measured}
    results: Results = {
        "versions": _versions(),
        "seconds": round(sum(sum(row["seconds"].values()) for row in measured)),
        "tokenizers": names,
        "groups": [next(row["group"] for row in measured if row["tokenizer"] == name) for name in names],
        "tasks": {},
    }
    for task in exact:
        found = [by_place.get((task, name)) for name in names]
        numbers = [{} if row is None else _numbers(row) for row in found]
        keys = list(dict.fromkeys(key for each in numbers for key in each))
        results["tasks"][task] = {
            "exact": {key: _short(value) for key, value in exact[task].items()},
            "measures": {key: [_short(each.get(key)) for each in numbers] for key in keys},
            "intervals": {key: [_interval(row, key) for row in found] for key in (DEVIATION, LOSS, *ALARMS)},
            "silent_failure": [row and row["silent_failure"] for row in found],
        }
    return results


def _numbers(row: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the measures of a row and, as `measure: part`, some of their parts."""
    found: dict[str, float | None] = {}
    for name, measure in row["measures"].items():
        found[name] = measure["value"]
        found |= {f"{name}: {part}": measure["parts"].get(part) for part in PARTS.get(name, ())}
    return found


def _interval(row: Mapping[str, Any] | None, name: str) -> list[float | None] | None:
    interval = row and row["measures"].get(name, {}).get("interval")
    return [_short(end) for end in interval] if interval else None


def _short(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}")


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def spearman(a: Sequence[float | None], b: Sequence[float | None]) -> float | None:
    """Return the rank correlation, ties sharing their rank; None for a constant, or fewer than six pairs.

    Example:
        >>> spearman([1, 2, 3, 4, 5, 6], [1, 4, 9, 16, 25, 36])
        1.0
    """
    from scipy.stats import rankdata

    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    if len(pairs) < LEAST_TOKENIZERS:
        return None
    x, y = (rankdata(side) - (len(pairs) + 1) / 2 for side in zip(*pairs, strict=True))
    size = math.sqrt(float(x @ x) * float(y @ y))
    return round(float(x @ y) / size, 12) if size > 0 else None


def correlations(results: Results, measure: str, outcome: str, groups: Sequence[str] = LISTED) -> Correlation:
    """Return the rank correlation of a measure with an outcome in every task that has one."""
    kept = [i for i, group in enumerate(results["groups"]) if group in groups]
    found = {}
    for task, numbers in results["tasks"].items():
        both = [numbers["measures"].get(name) for name in (measure, outcome)]
        if all(both):
            value = spearman(*([side[i] for i in kept] for side in both))
            if value is not None:
                found[task] = value
    return found


def detection(results: Results, measure: str) -> Correlation:
    """Return per task how often a planted trap stands above another tokenizer (the area under the curve)."""
    kept = [(i, name in TRAPS) for i, name in enumerate(results["tokenizers"]) if results["groups"][i] in LISTED]
    found = {}
    for task, numbers in results["tasks"].items():
        given = numbers["measures"].get(measure)
        values = [(given[i], trap) for i, trap in kept if given[i] is not None] if given else []
        planted, others = ([v for v, trap in values if trap is wanted] for wanted in (True, False))
        if planted and len(others) >= LEAST_TOKENIZERS and len({v for v, _ in values}) > 1:
            found[task] = float(np.mean([(p > o) + (p == o) / 2 for p in planted for o in others]))
    return found


def measures(results: Results) -> list[str]:
    """Return the names of all numbers apart from the outcomes."""
    names = dict.fromkeys(key for numbers in results["tasks"].values() for key in numbers["measures"])
    return [name for name in names if name not in (DEVIATION, LOSS)]


def mean(found: Correlation) -> float | None:
    return float(np.mean(list(found.values()))) if found else None


def holds(results: Results) -> bool:
    """Say whether drift (D_.95) ranks the state deviation at .90 in every task, and better than MSE on average."""
    drift, mse = (correlations(results, name, DEVIATION) for name in (DRIFT, MSE))
    complete = set(drift) == set(mse) == set(results["tasks"])
    return complete and min(drift.values()) >= LEAST and np.mean(list(drift.values())) > np.mean(list(mse.values()))


def summary(results: Results) -> str:
    """Return the criterion in a few lines."""
    lines = []
    for name in RANKED:
        found = correlations(results, name, DEVIATION)
        if found:
            lines.append(f"{name}: {mean(found):.3f} with state deviation, worst task {min(found.values()):.3f}")
    verdict = "holds" if holds(results) else "does not hold"
    return "\n".join([*lines, f"{DRIFT} >= {LEAST} in each task and above MSE on average: {verdict}"])


def readme(results: Results) -> str:
    """Return the tables of the README."""
    counts = ", ".join(f"{results['groups'].count(group)} {group}" for group in EVERY)
    failing = {task for task, numbers in results["tasks"].items() if not any(numbers["measures"][LOSS])}
    parts = [
        f"{len(results['tasks'])} tasks, {len(results['tokenizers'])} tokenizers ({counts}); "
        f"{results['seconds'] / 60:.0f} minutes of one core. "
        + ", ".join(f"{name} {number}" for name, number in results["versions"].items())
        + ".",
        "### Recorded actions, replayed",
        _exact_table(results),
        "### Drift against size, task by task",
        _task_table(results),
        "The lead of drift over size, mean over tasks with a bootstrap-t interval:",
        _differences(results),
        "### Every measure of the audit",
        "Mean over tasks, the worst task (least correlation) in brackets. "
        + (f"Nothing is ever lost on {', '.join(sorted(failing))}: no correlation with loss there. " if failing else "")
        + "`-`: constant, or given for fewer than six tokenizers. The last column says how well a number tells the two "
        "planted traps from all others: 1 always larger, .5 chance.",
        _measure_table(results),
        "### The smoothness alarm",
        _alarm_table(results),
    ]
    return "\n\n".join(parts)


def confirmation(results: Results) -> str:
    """Return the tables of the repetition from other starts."""
    exact = [numbers["exact"] for numbers in results["tasks"].values()]
    return "\n\n".join(
        [
            f"{len(results['tasks'])} tasks, {len(results['tokenizers'])} tokenizers; recorded actions miss the "
            f"recorded states by {max(e['median_state_error'] for e in exact):.0e} (median, largest of all tasks).",
            _task_table(results),
            _differences(results),
        ]
    )


def outcomes(results: Results) -> str:
    """Return what came of every tokenizer on every task."""
    return "\n\n".join(
        [
            "# What came of decoded actions",
            "Written by `replay_tables.py`. Executed open loop from the recorded start, beside the exact actions; in "
            "brackets the 95 % interval over episodes (Clopper-Pearson for success, else bootstrap-t). In italics: "
            "unconventional.",
            "## Success lost (share of episodes), or coverage lost (pusht)",
            _outcome_table(results, LOSS, 2),
            "## State deviation: the largest of an episode, averaged; metres, or widths of the field (pusht)",
            _outcome_table(results, DEVIATION, 4),
        ]
    )


def _exact_table(results: Results) -> str:
    rows = []
    for task, numbers in results["tasks"].items():
        e = numbers["exact"]
        cells = [f"{e['fit_episodes']:.0f}", f"{e['episodes']:.0f}", f"{e['mean_length']:.0f}"]
        cells += [f"{e['score']:.3f}", f"{e['median_state_error']:.1g}", f"{e['largest_state_error']:.1g}"]
        rows.append([task, *cells])
    head = ["task", "fitted on", "held out", "steps", "success / coverage", "median state error", "largest"]
    return _table(head, rows)


def _task_table(results: Results) -> str:
    head = ["Spearman with state deviation"]
    rows = [[task] for task in results["tasks"]] + [["mean"]]
    for groups in (LISTED, CONVENTIONAL):
        for name in RANKED:
            found = correlations(results, name, DEVIATION, groups)
            head.append(f"{_short_name(name)}{', conventional' if groups == CONVENTIONAL else ''}")
            for row, value in zip(rows, [*map(found.get, results["tasks"]), mean(found)], strict=True):
                row.append(_number(value))
    return _table(head, rows)


def _differences(results: Results) -> str:
    lines = []
    for groups, who in (
        (LISTED, "conventional and probes"),
        (CONVENTIONAL, "conventional"),
        (EVERY, "with the extras"),
    ):
        drift = correlations(results, DRIFT, DEVIATION, groups)
        cells = [who, _number(mean(drift)), _number(min(drift.values()))] if drift else [who, "-", "-"]
        for name in (MSE, MEAN_ERROR):
            other = correlations(results, name, DEVIATION, groups)
            apart = [drift[task] - other[task] for task in drift if task in other]
            cells.append(_lead(apart))
        lines.append(cells)
    head = ["tokenizers", f"{DRIFT}, mean", "worst task", "lead over mse", "lead over error_mean"]
    return _table(head, lines)


def _lead(apart: Sequence[float]) -> str:
    """Return a mean over tasks with its interval."""
    interval = bootstrap_t(apart) if len(apart) > 2 else None
    if interval is None:
        return "-"
    return f"{np.mean(apart):+.3f} [{interval[0]:+.3f}, {interval[1]:+.3f}]"


def _measure_table(results: Results) -> str:
    rows = []
    for name in [DEVIATION, *measures(results)]:
        cells = []
        for groups in (LISTED, CONVENTIONAL):
            for outcome in (DEVIATION, LOSS):
                found = correlations(results, name, outcome, groups)
                own = name == outcome
                worst = f" ({_number(min(found.values()))})" if len(found) > 1 else ""
                cells.append("-" if own or not found else _number(mean(found)) + worst)
        if any(cell != "-" for cell in cells):
            rows.append([f"`{_short_name(name)}`", *cells, _number(mean(detection(results, name)))])
    rows.sort(key=lambda row: -_sortable(row[1]))
    head = ["measure", "deviation", "loss", "deviation, conventional", "loss, conventional", "traps (AUC)"]
    return _table(head, rows)


def _sortable(cell: str) -> float:
    return float(cell.split(" ")[0]) if cell != "-" else 2.0


def _alarm_table(results: Results) -> str:
    rows = []
    for i, name in enumerate(results["tokenizers"]):
        alarmed = {task: numbers for task, numbers in results["tasks"].items() if _is_alarmed(numbers, i)}
        if alarmed:
            shares = [_mean_of(results, key, i) for key in ALARMS]
            flagged = sum(numbers["silent_failure"][i] is True for numbers in results["tasks"].values())
            lost = ", ".join(f"{task} ({_number(n['measures'][LOSS][i])})" for task, n in alarmed.items())
            rows.append([_styled(results, i, name), *map(_number, shares), f"{flagged}", lost])
    if not rows:
        return "It rings for no tokenizer."
    head = ["tokenizer", "episodes that jump, 5 %", "2 %", "silent-failure flags", "alarm on (loss in replay)"]
    return (
        "Rings where more than 1 % of the episodes hold a far jump, at perturbations of 5 % and of 2 % of the range, "
        "by the lower ends of their intervals. Shares are means over tasks. The silent-failure flag asks for an expert "
        "that is nearly deterministic besides.\n\n" + _table(head, rows)
    )


def _is_alarmed(numbers: Mapping[str, Any], i: int) -> bool:
    intervals = [numbers["intervals"][name][i] for name in ALARMS]
    return all(interval is not None and interval[0] > RARE for interval in intervals)


def _mean_of(results: Results, measure: str, i: int) -> float | None:
    values = [numbers["measures"].get(measure, [None] * (i + 1))[i] for numbers in results["tasks"].values()]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _outcome_table(results: Results, name: str, digits: int) -> str:
    rows = []
    for i, tokenizer in enumerate(results["tokenizers"]):
        cells = []
        for numbers in results["tasks"].values():
            value, interval = numbers["measures"][name][i], numbers["intervals"][name][i]
            ends = " [{}]".format(", ".join(_number(end, digits) for end in interval)) if interval else ""
            cells.append("-" if value is None else _number(value, digits) + ends)
        rows.append([_styled(results, i, tokenizer), *cells])
    return _table(["tokenizer", *results["tasks"]], rows)


def _styled(results: Results, i: int, name: str) -> str:
    return name if results["groups"][i] in CONVENTIONAL else f"*{name}*"


def _short_name(name: str) -> str:
    return {MSE: "mse"}.get(name, name)


def _number(value: float | None, digits: int = 2) -> str:
    if value is None:
        return "-"
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        return text.removeprefix("-")
    return text.replace("0.", ".", 1) if abs(float(text)) < 1 else text


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def publish(results: Results) -> None:
    """Write results.json, outcomes.md and the tables of the README."""
    RESULTS.write_text(json.dumps(results, separators=(",", ":")) + "\n", encoding="utf-8")
    OUTCOMES.write_text(outcomes(results) + "\n", encoding="utf-8")
    _write_section("results", readme(results))


def publish_confirmation(results: Results) -> None:
    """Write confirmation.json and its tables in the README."""
    CONFIRMATION.write_text(json.dumps(results, separators=(",", ":")) + "\n", encoding="utf-8")
    _write_section("confirmation", confirmation(results))


def _write_section(name: str, content: str) -> None:
    """Replace what stands between the two markers of a section of the README."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = README.read_text(encoding="utf-8")
    before, after = text.split(begin)[0], text.split(end)[1]
    README.write_text(f"{before}{begin}\n\n{content}\n\n{end}{after}", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables again; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--rows", type=Path, help="folder of run_replays.py; without it from results.json")
    parser.add_argument("--confirm", action="store_true", help="the repetition instead of the study")
    options = parser.parse_args(arguments)
    stored, write = (CONFIRMATION, publish_confirmation) if options.confirm else (RESULTS, publish)
    results = collect(read_rows(options.rows)) if options.rows else json.loads(stored.read_text(encoding="utf-8"))
    write(results)
    print(summary(results))
    return 0 if holds(results) else 1


if __name__ == "__main__":
    sys.exit(main())
