"""Run every claim, and write the tables of the README, results.json and the figures.

    python recipes/theory/run_all.py            # two minutes on two idle cores
    python recipes/theory/run_all.py --smoke    # the short forms: their tables on the screen, no file is touched
    python recipes/theory/run_all.py --tables   # the README again from results.json, figures too

Exits with 1 if a claim misses its tolerance.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:  # a worker imports the scripts by name
    sys.path.insert(0, str(HERE))

import claims  # noqa: E402  (found only then)

README, RESULTS, FIGURES = HERE / "README.md", HERE / "results.json", HERE / "figures"
SCRIPTS = (
    "e1_rates",
    "e2_stability",
    "e3_small_gain",
    "e4_trap",
    "e5_noisy_trap",
    "e6_augmentation",
    "e7_lower_bounds",
    "e8_smoothness",
    "e9_stochastic_expert",
    "e10_estimators",
    "regression",
)
LONGEST_FIRST = ("e4_trap", "regression", "e5_noisy_trap")  # so that no worker is left with a long one at the end
VERSIONS = ("action-tokenizers", "numpy", "scipy", "torch")
BEGIN, END = "<!-- tables -->", "<!-- /tables -->"


def run_one(name: str, smoke: bool) -> tuple[str, claims.Found]:
    """Return what a script finds, with the seconds of a processor that it took."""
    began = time.process_time()
    found = importlib.import_module(name).run(smoke)
    return name, {"seconds": round(time.process_time() - began, 1), **found}


def run_all(smoke: bool, jobs: int = 2) -> dict[str, Any]:
    """Return what all scripts find, in their order."""
    order = sorted(SCRIPTS, key=lambda name: name not in LONGEST_FIRST)
    # fresh processes: torch does not like to be forked; of one thread each, as threads would wait for each other
    with get_context("spawn").Pool(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        found = dict(pool.starmap(run_one, [(name, smoke) for name in order], chunksize=1))
    return {
        "versions": {name: version(name) for name in VERSIONS},
        "scripts": {name: found[name] for name in SCRIPTS},
    }


def figure_of(name: str) -> str:
    """Return the file name of a script's figure: `trap.svg` of `e4_trap`."""
    return name.partition("_")[2] + ".svg" if name[0] == "e" and name[1].isdigit() else f"{name}.svg"


def draw(results: Mapping[str, Any]) -> None:
    """Write the figure of every script."""
    FIGURES.mkdir(exist_ok=True)
    for name, found in results["scripts"].items():
        with claims.style():
            made = importlib.import_module(name).plot(found)
        claims.save(made, FIGURES / figure_of(name))


def tables(results: Mapping[str, Any]) -> str:
    """Return the generated part of the README."""
    rows = [row for found in results["scripts"].values() for row in found["rows"]]
    counts = {
        verdict: sum(row["verdict"] == verdict for row in rows)
        for verdict in (claims.HOLDS, claims.DIFFERS, claims.MISSES)
    }
    seconds = sum(found["seconds"] for found in results["scripts"].values())
    parts = [
        f"{len(rows)} lines: {counts['holds']} hold, {counts['differs']} differ from a reference number for a reason "
        f"that is given, {counts['misses']} miss. {seconds:.0f} seconds of a processor; "
        + ", ".join(f"{name} {number}" for name, number in results["versions"].items())
        + "."
    ]
    for name, found in results["scripts"].items():
        summary = (importlib.import_module(name).__doc__ or "").splitlines()[0]
        parts += [
            f"### {summary}",
            f"[`{name}.py`]({name}.py), {found['seconds']:.0f} s, [figure](figures/{figure_of(name)})",
            claims.table(found),
        ]
    return "\n\n".join(parts)


def written(page: str, results: Mapping[str, Any]) -> str:
    """Return the page with the tables of these results."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables(results)}\n\n{END}{after}"


def compact(results: Mapping[str, Any]) -> str:
    """Return JSON with every list of numbers on one line."""
    text = json.dumps(results, indent=1, ensure_ascii=False)
    return re.sub(r"\[[\s\d.,e+-]+\]", lambda found: re.sub(r"\s+", " ", found.group()), text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="the short forms; writes nothing")
    parser.add_argument("--tables", action="store_true", help="run nothing: README and figures from results.json")
    parser.add_argument("--jobs", type=int, default=2, help="processes, each of one thread's work")
    options = parser.parse_args()
    if options.tables:
        results = json.loads(RESULTS.read_text(encoding="utf-8"))
    else:
        results = run_all(options.smoke, options.jobs)
    missed = [f"{name}: {line}" for name, found in results["scripts"].items() for line in claims.missed(found)]
    if options.smoke:
        print(tables(results))
    else:
        RESULTS.write_text(compact(results), encoding="utf-8")
        README.write_text(written(README.read_text(encoding="utf-8"), results), encoding="utf-8")
        draw(results)
        print(tables(results).splitlines()[0])
    if missed:
        raise SystemExit("\n".join(["missed:", *missed]))


if __name__ == "__main__":
    main()
