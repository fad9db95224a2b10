"""What the scripts of this folder share: a row of the table, slopes, curves on paper, and the command line.

A script has `run(smoke)`, which returns a dict of plain numbers with its `rows`, and `plot(found)`, which draws it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from action_tokenizers.diagnostics.measure import plain

HOLDS, DIFFERS, MISSES = "holds", "differs", "misses"
DIGITS = 6  # of the numbers that are kept
INK, SOFT = "#1a1a1a", "#767676"
COLOURS = ("#b3261e", "#1f5fa8", "#2e7d32", "#8a5a00", "#6a3d9a", "#4a4a4a")

Found = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        claim: the theorem, such as `Thm 6`.
        shows: what was computed.
        expected: what it should be, in words or as a number.
        measured: what it is.
        tolerance: how far apart the two may be.
        verdict: `holds`; `misses`; or `differs`, from a reference number, for a reason that `note` gives.
        note: what a reader must know.
    """

    claim: str
    shows: str
    expected: str
    measured: float
    tolerance: str
    verdict: str
    note: str = ""


def near(
    claim: str,
    shows: str,
    expected: float,
    measured: float,
    *,
    absolute: float = 0.0,
    percent: float = 0.0,
    note: str = "",
) -> Row:
    """Return a row that holds if the two are as near as a tolerance asks; equal, without one."""
    slack = absolute if absolute else abs(expected) * percent / 100
    shown = f"±{absolute:g}" if absolute else f"±{percent:g} %" if percent else "equal"
    return Row(claim, shows, number(expected), measured, shown, _verdict(abs(measured - expected) <= slack), note)


def at_most(claim: str, shows: str, limit: float, measured: float, *, note: str = "", limit_is: str = "") -> Row:
    """Return a row that holds if the limit is kept; `limit_is` says where the limit is from."""
    said = f"≤ {number(limit)}" + (f" ({limit_is})" if limit_is else "")
    return Row(claim, shows, said, measured, "a bound", _verdict(measured <= limit), note)


def at_least(claim: str, shows: str, limit: float, measured: float, *, note: str = "", limit_is: str = "") -> Row:
    """Return a row that holds if the limit is reached."""
    said = f"≥ {number(limit)}" + (f" ({limit_is})" if limit_is else "")
    return Row(claim, shows, said, measured, "a bound", _verdict(measured >= limit), note)


def between(claim: str, shows: str, low: float, high: float, measured: float, *, note: str = "") -> Row:
    """Return a row that holds in an interval."""
    return Row(
        claim, shows, f"{number(low)} … {number(high)}", measured, "a range", _verdict(low <= measured <= high), note
    )


def differs(
    claim: str, shows: str, reference: float, measured: float, *, known: float, absolute: float, note: str
) -> Row:
    """Return a row about a number that is known not to be the reference; it misses if it is not `known` either."""
    verdict = DIFFERS if abs(measured - known) <= absolute else MISSES
    return Row(claim, shows, number(reference), measured, f"ours {number(known)} ±{absolute:g}", verdict, note)


def _verdict(holds: bool) -> str:
    return HOLDS if holds else MISSES


def number(value: float) -> str:
    """Return a number of four digits, as a table shows it.

    Example:
        >>> number(-0.49983), number(1.0), number(110000.0), number(math.inf)
        ('-.4998', '1', '1.1e5', '∞')
    """
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value and not 1e-4 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    text = f"{value:.4g}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def slope(x: ArrayLike, y: ArrayLike) -> float:
    """Return the exponent of a power law by least squares in logarithms.

    Example:
        >>> round(slope([1, 2, 4], [3, 12, 48]), 6)
        2.0
    """
    return rate(np.log(x), y)


def rate(x: ArrayLike, y: ArrayLike) -> float:
    """Return the growth rate of an exponential: the slope of log y in x."""
    return float(np.polyfit(np.asarray(x, np.float64), np.log(y), 1)[0])


def explained(x: ArrayLike, y: ArrayLike) -> float:
    """Return R² of a straight line."""
    return float(np.corrcoef(np.asarray(x, np.float64), np.asarray(y, np.float64))[0, 1] ** 2)


def results(rows: Sequence[Row], **series: Any) -> Found:
    """Return what `run` returns: rows and whatever else, in plain JSON types, numbers shortened."""
    found: Found = _short(plain({"rows": [asdict(row) for row in rows], **series}))
    return found


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_short(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def missed(found: Mapping[str, Any]) -> list[str]:
    """Return what missed its tolerance, in words."""
    return [
        f"{row['claim']}, {row['shows']}: expected {row['expected']}, measured {number(row['measured'])}"
        for row in found["rows"]
        if row["verdict"] == MISSES
    ]


def table(found: Mapping[str, Any]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| claim | what the script shows | expected | measured | tolerance | verdict |",
        "|---|---|---:|---:|---|---|",
    ]
    for row in found["rows"]:
        verdict = row["verdict"] + (f": {row['note']}" if row["note"] else "")
        cells = (row["claim"], row["shows"], row["expected"], number(row["measured"]), row["tolerance"], verdict)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def figure(columns: int = 1) -> tuple[Any, list[Any]]:
    """Return an empty figure for a light page and its axes side by side."""
    from matplotlib.figure import Figure

    with style():
        made = Figure(figsize=(1.2 + 4.6 * columns, 3.8), layout="constrained")
        axes = made.subplots(1, columns, squeeze=False)[0]
    return made, list(axes)


def label_at_end(axes: Any, x: ArrayLike, y: ArrayLike, text: str, colour: str, *, first: bool = False) -> None:
    """Write the name of a line beside its last (first) point."""
    at = 0 if first else -1
    axes.annotate(
        text,
        (np.asarray(x)[at], np.asarray(y)[at]),
        xytext=(-5 if first else 5, 0),
        textcoords="offset points",
        color=colour,
        va="center",
        ha="right" if first else "left",
    )


def save(made: Any, path: Path) -> None:
    """Write a figure as SVG, equal bytes for equal numbers."""
    with style():
        made.savefig(path, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})


def style() -> AbstractContextManager[None]:
    import matplotlib as mpl

    wanted: Any = {
        "svg.fonttype": "path",  # the same on every page, whatever fonts it has
        "svg.hashsalt": "action_tokenizers",
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "text.color": INK,
        "axes.edgecolor": SOFT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e4e4e4",
        "axes.axisbelow": True,
        "lines.linewidth": 1.6,
        "lines.markersize": 4,
        "legend.frameon": False,
    }
    return mpl.rc_context(wanted)


def main(doc: str | None, run: Callable[[bool], Found], plot: Callable[[Found], Any]) -> None:
    """The command line of a script: print its table, write its numbers and its plot; 1 if a claim is missed."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="the short form that the tests run: seconds")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--plot", type=Path, help="draw them there, as SVG")
    options = parser.parse_args()
    found = run(options.smoke)
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        with style():
            made = plot(found)
        save(made, options.plot)
    if missed(found):
        raise SystemExit("\n".join(["missed:", *missed(found)]))
