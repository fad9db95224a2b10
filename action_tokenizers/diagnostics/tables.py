"""An audit and a sweep as rows of text: for a terminal, and as Markdown."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from action_tokenizers.diagnostics.catalogue import CATALOGUE
from action_tokenizers.diagnostics.measure import Measure
from action_tokenizers.diagnostics.report import FRONT_PAGE, AuditReport, Condition

if TYPE_CHECKING:
    from action_tokenizers.diagnostics.frontier import Frontier

__all__ = [
    "LIMITS",
    "SWEEP_COLUMNS",
    "SWEEP_LEGEND",
    "Group",
    "Row",
    "budget",
    "evidence",
    "front_page",
    "markdown",
    "number",
    "row_of",
    "sweep_markdown",
    "sweep_rows",
]

LIMITS = (
    "The theory assumes a fully observed state, actions chosen step by step, and a policy class that holds the "
    "tokenized expert. Chunks, images, history and autoregressive ids are outside of it: read a chunk as one action "
    "of a slower process.",
    "Whether the quadratic bound is tight is open. Bounds rank tokenizers on the same data; they forecast nothing.",
    "Recorded actions replayed open loop never ask the tokenizer about other actions, so replay cannot reward "
    "smoothness; and no smoothness number has predicted execution. The alarm is about what could happen.",
    "Episodes are the unit: every interval is over episodes, and covers 95 % only for episodes drawn like these.",
)


@dataclass(frozen=True)
class Row:
    """A number as it is printed."""

    name: str
    heading: str
    value: str
    interval: str
    unit: str
    kind: str
    meaning: str
    caveat: str
    beside: str  # what to read the number against
    parts: str  # further numbers of the same measure


@dataclass(frozen=True)
class Group:
    """Numbers of the first page that belong together, and what to make of them."""

    title: str
    remark: str
    rows: tuple[Row, ...]


def number(value: float | None, unit: str) -> str:
    """Return a number as a person reads it: shares as percent, the rest with three digits.

    Example:
        >>> number(0.0123, "share of episodes"), number(0.0123, "half range"), number(None, "bits")
        ('1.23 %', '0.0123', 'not shown')
    """
    if value is None or math.isnan(value):
        return "not shown"
    if math.isinf(value):
        return "unbounded" if value > 0 else "-unbounded"
    if unit.startswith("share"):
        percent = 100 * value
        return f"{percent:.3g} %"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"  # what three digits would round to 1e+03


def row_of(measure: Measure) -> Row:
    """Return a measure as it is printed."""
    entry = CATALOGUE[measure.name]
    shown = ""
    if measure.interval is not None and measure.value is not None:
        low, high = (number(end, measure.unit) for end in measure.interval)
        shown = f"{low.removesuffix(' %') if high.endswith('%') else low} to {high}"
    return Row(
        measure.name,
        entry.heading,
        number(measure.value, measure.unit),
        shown,
        measure.unit,
        measure.kind.value.upper(),
        entry.meaning,
        measure.caveat,
        "; ".join(f"{words} {number(measure.parts[name], measure.unit)}" for name, words in _against(measure)),
        "; ".join(_scalars(measure.parts)),
    )


# what a number is to be read against, of its own parts
AGAINST = {
    "probe_nll": {"unigram_nats": "looking at nothing:"},
    "probe_error": {"repeat_last": "repeating the last action:", "mean_action": "the mean action:"},
}


def _against(measure: Measure) -> list[tuple[str, str]]:
    return [(n, w) for n, w in AGAINST.get(measure.name, {}).items() if measure.parts.get(n) is not None]


def _scalars(parts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the single numbers and words among the parts of a measure; lists and curves are for plots and JSON."""
    for name, value in parts.items():
        if isinstance(value, bool | int | str) or value is None:
            yield f"{name.replace('_', ' ')}: {value}"
        elif isinstance(value, float):
            yield f"{name.replace('_', ' ')}: {number(value, '')}"


def evidence(condition: Condition) -> str:
    """Return the evidence of a condition, and what it needs where it is not shown, as sentences."""
    needs = f" Needs: {condition.needs}." if condition.needs else ""
    return f"{condition.evidence.rstrip('.')}.{needs}"


def front_page(report: AuditReport) -> tuple[Group, ...]:
    """Return the groups of the first page, in order; measures that were not taken are left out."""
    groups = []
    for title, remark, names in FRONT_PAGE:
        rows = tuple(row_of(m) for m in map(report.measure, names) if m is not None)
        groups.append(Group(title, remark, rows))
    return tuple(group for group in groups if group.rows)


def markdown(report: AuditReport) -> str:
    """Return the audit as Markdown."""
    lines = [f"# Audit: {report.tokenizer['type']}", "", f"**{report.verdict}**", "", report.caption, ""]
    lines += [*(f"Note: {note}\n" for note in report.notes), f"How losses grow with the horizon: {report.regime}", ""]
    if report.advice:
        lines += ["## What to do", "", *(f"{i}. {text}" for i, text in enumerate(report.advice, 1)), ""]
    lines += ["## At a glance", "", "| | value | 95 % interval | unit | kind |", "|---|---:|---|---|---|"]
    for group in front_page(report):
        lines.append(f"| **{group.title}** ({group.remark}) | | | | |")
        lines += [_markdown_row(row) for row in group.rows]
    lines += ["", "## Conditions", "", "| condition | | evidence |", "|---|---|---|"]
    for c in report.conditions:
        statement = f"**{c.name.replace('_', ' ')}**: {c.statement} ({c.source})"
        lines.append(f"| {_cell(statement)} | {c.status.value} | {_cell(evidence(c))} |")
    lines += ["", "## All numbers", "", "| | value | 95 % interval | unit | kind |", "|---|---:|---|---|---|"]
    lines += [_markdown_row(row_of(m)) for m in report.measures]
    lines += ["", "## What they mean", ""]
    for m in report.measures:
        row = row_of(m)
        parts = f" ({row.parts})" if row.parts else ""
        lines.append(f"- **{row.heading}**: {row.meaning} *{row.caveat}* {CATALOGUE[m.name].advice}{parts}")
    lines += ["", "## Limits", "", *(f"- {text}" for text in LIMITS), ""]
    return "\n".join(lines)


def _markdown_row(row: Row) -> str:
    beside = f" ({row.beside})" if row.beside else ""
    return f"| {_cell(row.heading + beside)} | {row.value} | {row.interval} | {row.unit} | {row.kind} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def sweep_rows(found: "Frontier") -> list[list[str]]:
    """Return the cells of a sweep under `SWEEP_COLUMNS`, by bits."""
    alarms = {None: "not shown", True: "on", False: "off"}
    return [
        [
            "recommended" if p.name == found.recommended else "frontier" if p.best else "",
            p.name,
            f"{p.tokens:.1f}",
            f"{p.bits:.0f}",
            f"{p.drift:.4f}",
            f"{p.error:.4f}",
            "not shown" if p.jump is None else f"{p.jump:.3f}",
            alarms[p.alarm],
            ", ".join(name.replace("_", " ") for name in p.fails),
        ]
        for p in found.points
    ]


SWEEP_COLUMNS = ("", "tokenizer", "tokens", "bits", "drift", "mean error", "excess jump", "alarm", "fails")


def budget(found: "Frontier") -> str:
    """Return the budget of a sweep in words."""
    return " and ".join(f"at most {most:g} {name}" for name, most in found.budget.items()) or "none stated"


def sweep_markdown(found: "Frontier") -> str:
    """Return a sweep as Markdown."""
    table = ["| " + " | ".join(SWEEP_COLUMNS) + " |", "|---|---|" + "---:|" * 5 + "---|---|"]
    table += ["| " + " | ".join(map(_cell, row)) + " |" for row in sweep_rows(found)]
    notes = [f"Note: {note}\n" for note in found.notes]
    title = [
        "# Sweep",
        "",
        f"**Recommended: {found.recommended or 'none'}**",
        "",
        found.why,
        "",
        f"Budget: {budget(found)}.",
    ]
    return "\n".join([*title, "", *notes, *table, "", SWEEP_LEGEND, ""])


SWEEP_LEGEND = (
    "Per chunk, held out; drift is the largest mean error over 16 consecutive steps, in half ranges. On the frontier "
    "is what no other beats in both bits and drift. The alarm is a possible worst case, not a forecast."
)
