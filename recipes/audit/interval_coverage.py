"""How often the audit's 95 % intervals cover what they are intervals of, and how wide they are.

    python recipes/audit/interval_coverage.py             # 1,000 repetitions per row, half a minute; prints the table
    python recipes/audit/interval_coverage.py --write     # and puts it into action_tokenizers/diagnostics/README.md
    python recipes/audit/interval_coverage.py --smoke     # 100 repetitions

A repetition draws per-episode values from a known law, makes the interval, and asks whether the true mean is inside.
Beside the mean width stands the oracle's: mean +- 1.96 of the true standard error, which nobody knows in practice.
Intervals marked guaranteed hold for any law within their bounds; bootstrap-t is approximate, and the rows of heavy
tails show what that costs.
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from action_tokenizers.diagnostics.measure import bernstein, bootstrap_t, clopper_pearson, hoeffding

REPETITIONS = 1000
PAGE = Path(__file__).resolve().parents[2] / "action_tokenizers" / "diagnostics" / "README.md"
BEGIN, END = "<!-- coverage -->", "<!-- /coverage -->"


@dataclass(frozen=True)
class Law:
    """What per-episode values are drawn from, with its true mean and standard deviation."""

    name: str
    draw: Callable[[np.random.Generator, int], np.ndarray]
    mean: float
    std: float


NORMAL = Law("normal", lambda r, n: r.normal(size=n), 0.0, 1.0)
EXPONENTIAL = Law("exponential", lambda r, n: r.exponential(size=n), 1.0, 1.0)
LOGNORMAL = Law(
    "log-normal, sigma 1.5",
    lambda r, n: r.lognormal(0, 1.5, n),
    math.exp(1.125),
    math.sqrt((math.exp(2.25) - 1) * math.exp(2.25)),
)
PARETO = Law("Pareto, tail 2.5", lambda r, n: r.pareto(2.5, n), 1 / 1.5, math.sqrt(2.5 / (1.5**2 * 0.5)))
BETA = Law("beta(2, 8)", lambda r, n: r.beta(2, 8, n), 0.2, math.sqrt(16 / (100 * 11)))
UNIFORM = Law("uniform", lambda r, n: r.random(n), 0.5, math.sqrt(1 / 12))
RARE = Law("hit in 2 % of episodes", lambda r, n: (r.random(n) < 0.02).astype(float), 0.02, math.sqrt(0.02 * 0.98))
OFTEN = Law("hit in 40 % of episodes", lambda r, n: (r.random(n) < 0.4).astype(float), 0.4, math.sqrt(0.24))

Interval = Callable[[np.ndarray, int], "tuple[float, float] | None"]
METHODS: dict[str, tuple[Interval, bool, tuple[Law, ...]]] = {
    "Clopper-Pearson": (lambda x, _: clopper_pearson(int(x.sum()), len(x)), True, (RARE, OFTEN)),
    "Hoeffding": (lambda x, _: hoeffding(x, 0, 1), True, (BETA, UNIFORM, OFTEN)),
    "empirical Bernstein": (lambda x, _: bernstein(x, 0, 1), True, (BETA, UNIFORM, OFTEN)),
    "bootstrap-t": (lambda x, seed: bootstrap_t(x, seed=seed), False, (NORMAL, EXPONENTIAL, LOGNORMAL, PARETO)),
}
SIZES = (10, 20, 50, 100)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    method: str
    guaranteed: bool
    law: str
    episodes: int
    coverage: float
    width: float
    oracle_width: float


def measure(repetitions: int = REPETITIONS) -> list[Row]:
    """Return a row per method, law and number of episodes."""
    rows = []
    for method, (interval, guaranteed, laws) in METHODS.items():
        for law in laws:
            for n in SIZES:
                # a seed that is the same on every machine and differs from row to row
                random = np.random.default_rng(zlib.crc32(f"{method}{law.name}{n}".encode()))
                hits, widths = 0, []
                for repetition in range(repetitions):
                    found = interval(law.draw(random, n), repetition)
                    low, high = found if found is not None else (-math.inf, math.inf)
                    hits += low <= law.mean <= high
                    widths.append(high - low)
                # a tail of equal draws leaves an end open now and then: the median is the width one sees
                width = float(np.median(widths)) if np.isinf(widths).any() else float(np.mean(widths))
                oracle = 2 * 1.959964 * law.std / math.sqrt(n)
                rows.append(Row(method, guaranteed, law.name, n, hits / repetitions, width, oracle))
    return rows


def table(rows: list[Row]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| interval | | law of the episodes | episodes | covers | width / oracle's |",
        "|---|---|---|---:|---:|---:|",
    ]
    for r in rows:
        kind = "guaranteed" if r.guaranteed else "approximate"
        lines.append(
            f"| {r.method} | {kind} | {r.law} | {r.episodes} | {r.coverage:.1%} | {r.width / r.oracle_width:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="100 repetitions")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    options = parser.parse_args()
    rows = measure(100 if options.smoke else REPETITIONS)
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    if options.write:
        text = PAGE.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
