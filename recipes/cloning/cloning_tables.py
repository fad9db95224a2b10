"""Turn the lines of `run_cloning.py` into results.json and the tables of the README.

    python recipes/cloning/cloning_tables.py                # the tables again, from results.json
    python recipes/cloning/cloning_tables.py --rows FOLDER  # results.json too

The score of a start is averaged over seeds; intervals (95 %, bootstrap-t) and differences are over starts, in pairs:
every tokenizer meets the same starts. They say how much the starts matter, not how much three seeds do: the spread over
seeds stands in a column of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from json_lines import read_rows

from action_tokenizers.diagnostics.measure import bootstrap_t, hoeffding

HERE = Path(__file__).resolve().parent
RESULTS, README = HERE / "results.json", HERE / "README.md"
REFERENCE, REGRESSION = "bins256", "regression"
DRAWN, LIKELIEST = "drawn", "likeliest"
LEAST = 0.5  # success on one of Meta-World's tasks; below it the policy is broken

Results = dict[str, Any]


def collect(rows: Sequence[Mapping[str, Any]]) -> Results:
    """Return per task and tokenizer the audit and the scores `(seeds, starts)` of both ways to execute."""
    found: Results = {}
    # a row that was written twice counts once, the last time
    for row in {(row["task"], row["tokenizer"], row["seed"]): row for row in rows}.values():
        entry = found.setdefault(row["task"], {}).setdefault(row["tokenizer"], {"runs": []})
        if row["seed"] is None:
            entry["audit"] = {key: row[key] for key in ("verdict", "silent_failure", "vocab_size", "measures")}
        else:
            entry["runs"].append({key: value for key, value in row.items() if key not in ("task", "tokenizer", "mean")})
    for entries in found.values():
        for entry in entries.values():
            entry["runs"].sort(key=lambda run: run["seed"])
    ran = {task: {name: entry for name, entry in found[task].items() if entry["runs"]} for task in sorted(found)}
    return {task: entries for task, entries in ran.items() if entries}


def scores(entry: Mapping[str, Any], law: str) -> NDArray[np.float64] | None:
    """Return the scores `(seeds, starts)` of one tokenizer; None: it was not executed so."""
    runs = [run[law]["scores"] for run in entry["runs"] if law in run]
    return np.array(runs) if runs else None


def works(results: Results) -> bool:
    """Say whether a policy over ids, not regression, reaches half of the starts on a task other than PushT."""
    best = [
        float(found.mean())
        for task, entries in results.items()
        if task != "pusht"
        for name, entry in entries.items()
        if name != REGRESSION
        for law in (DRAWN, LIKELIEST)
        if (found := scores(entry, law)) is not None
    ]
    return bool(best) and max(best) >= LEAST


def table(results: Results) -> str:
    """Return one table per task."""
    parts = []
    for task, entries in results.items():
        starts = len(next(iter(entries.values()))["runs"][0]["starts"])
        seeds = max(len(entry["runs"]) for entry in entries.values())
        parts.append(f"### {task}: {'coverage' if task == 'pusht' else 'success'}, {starts} starts, {seeds} seeds")
        parts.append(_table_of(entries))
    return "\n\n".join(parts)


def _table_of(entries: Mapping[str, Any]) -> str:
    reference = scores(entries[REFERENCE], DRAWN) if REFERENCE in entries else None
    head = ["tokenizer", "ids / chunk", "training (s)", "drawn", "seeds", f"against {REFERENCE}", "likeliest"]
    lines = [[*head, "drift", "what the audit says"], ["---"] * (len(head) + 2)]
    for name, entry in entries.items():
        drawn, likeliest = scores(entry, DRAWN), scores(entry, LIKELIEST)
        if drawn is None:
            continue
        tokens = entry["runs"][0].get("tokens")
        apart = "-"
        if reference is not None and name != REFERENCE:
            difference = drawn.mean(0) - reference.mean(0)
            apart = interval(difference, signed=True)
        lines.append(
            [
                name,
                "-" if tokens is None else f"{tokens:.1f}",
                f"{np.mean([run['train_s'] for run in entry['runs']]):.0f}",
                interval(drawn.mean(0)),
                " ".join(f"{value:.2f}" for value in drawn.mean(1)),
                apart,
                "-" if likeliest is None else interval(likeliest.mean(0)),
                *_audit_cells(entry.get("audit")),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _audit_cells(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return ["-", "-"]
    # what is not shown without a policy or a simulator is the same for all
    verdict = found["verdict"].split(" Not shown:")[0]
    return [f"{found['measures']['drift_leaky']:.3f}", verdict]


def interval(values: NDArray[np.float64], signed: bool = False) -> str:
    """Return the mean over starts with its interval: Hoeffding's where almost all starts score alike."""
    sign, low = ("+", -1.0) if signed else ("", 0.0)
    mean = float(values.mean())
    ends = bootstrap_t(values.tolist())
    if ends is None or not np.isfinite(ends).all() or ends[0] == ends[1]:
        ends = hoeffding(values.tolist(), low, 1.0)
    low, high = max(ends[0], low), min(ends[1], 1.0)
    return f"{mean:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def write_section(name: str, content: str) -> None:
    """Replace what stands between the two markers of a section of the README."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = README.read_text(encoding="utf-8")
    before, after = text.split(begin)[0], text.split(end)[1]
    README.write_text(f"{before}{begin}\n\n{content}\n\n{end}{after}", encoding="utf-8")


def publish(results: Results) -> None:
    """Write results.json and the tables of the README."""
    RESULTS.write_text(json.dumps(results, separators=(",", ":")) + "\n", encoding="utf-8")
    write_section("results", table(results))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables again; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--rows", type=Path, help="folder of run_cloning.py; without it from results.json")
    options = parser.parse_args(arguments)
    results = collect(read_rows(options.rows)) if options.rows else json.loads(RESULTS.read_text(encoding="utf-8"))
    publish(results)
    return 0 if works(results) else 1


if __name__ == "__main__":
    sys.exit(main())
