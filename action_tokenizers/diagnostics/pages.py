"""An audit, a comparison and a sweep as one HTML page each, which needs no network."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from action_tokenizers.diagnostics.catalogue import CATALOGUE
from action_tokenizers.diagnostics.measure import Kind, Measure
from action_tokenizers.diagnostics.report import AuditReport, Condition, Status
from action_tokenizers.diagnostics.tables import (
    LIMITS,
    SWEEP_COLUMNS,
    SWEEP_LEGEND,
    Group,
    budget,
    evidence,
    front_page,
    row_of,
    sweep_rows,
)

if TYPE_CHECKING:
    from action_tokenizers.diagnostics.compare import Comparison
    from action_tokenizers.diagnostics.frontier import Frontier
    from action_tokenizers.diagnostics.plots import Plot

__all__ = ["comparison_html", "html", "sweep_html"]

KINDS = {
    Kind.EXACT: "computed exactly",
    Kind.LOWER: "at least this: found by search",
    Kind.UPPER: "at most this: a bound",
    Kind.UNBIASED: "estimate, unbiased",
    Kind.CONSISTENT: "estimate, right in the limit of many episodes",
    Kind.PROXY: "stands for something it usually goes along with",
}


def html(report: AuditReport) -> str:
    """Return the audit as one HTML page with plots inside; it loads nothing.

    Raises:
        MissingExtraError: matplotlib (the extra `plots`) is not installed.
    """
    from action_tokenizers.diagnostics.plots import plots

    kind = escape(str(report.tokenizer["type"]))
    body = f"""
<header class="{_mood(report)}">
<p class="eyebrow">Audit of a tokenizer: {kind}</p>
<h1>{escape(report.verdict)}</h1>
<p>{escape(report.caption)}</p>
{_notes(report.notes)}
</header>
<main>
<section><h2>At a glance</h2>{"".join(_group(group) for group in front_page(report))}</section>
{_advice(report.advice)}
<section><h2>Conditions</h2><p>How losses grow with the horizon: {escape(report.regime)}</p>
{_conditions(report)}</section>
<section><h2>Plots</h2><div class="plots">{_figures(plots(report))}</div></section>
<section><h2>All numbers</h2><p>Open a row for what it means, what it cannot say, and what to do.</p>
{"".join(_detail(m) for m in report.measures)}</section>
<section><h2>Limits</h2><ul>{"".join(f"<li>{escape(text)}</li>" for text in LIMITS)}</ul>
<h3>Kinds of numbers</h3><dl>{"".join(f"<dt>{k.value.upper()}</dt><dd>{escape(t)}</dd>" for k, t in KINDS.items())}</dl>
</section>
<section><h2>What was audited</h2>{_facts(report)}</section>
</main>"""
    return _page(f"Audit: {kind}", body)


def _figures(drawn: Iterable["Plot"]) -> str:
    return "".join(
        f"<figure><h3>{escape(p.title)}</h3>{p.svg}<figcaption>{escape(p.caption)}</figcaption></figure>" for p in drawn
    )


def _style() -> str:
    return (Path(__file__).parent / "pages.css").read_text(encoding="utf-8")


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_style()}</style>\n</head>\n<body>{body}\n</body>\n</html>\n"
    )


def sweep_html(found: "Frontier") -> str:
    """Return a sweep as one HTML page that loads nothing.

    Raises:
        MissingExtraError: matplotlib (the extra `plots`) is not installed.
    """
    from action_tokenizers.diagnostics.plots import frontier_plots

    rows = [(_named(row[1]), [escape(cell) for cell in (row[0], *row[2:])]) for row in sweep_rows(found)]
    body = f"""
<header class="{_sweep_mood(found)}">
<p class="eyebrow">Sweep of {len(found.points)} tokenizers, budget: {escape(budget(found))}</p>
<h1>Recommended: {_breakable(found.recommended or "none")}</h1><p>{escape(found.why)}</p>{_notes(found.notes)}
</header>
<main>
<section><h2>Rate, distortion and smoothness</h2><div class="plots">{_figures(frontier_plots(found))}</div></section>
<section><h2>All of them</h2>{_table([SWEEP_COLUMNS[1], SWEEP_COLUMNS[0], *SWEEP_COLUMNS[2:]], rows)}
<p>{escape(SWEEP_LEGEND)}</p></section></main>"""
    return _page("Sweep", body)


def comparison_html(found: "Comparison") -> str:
    """Return a comparison as one HTML page that loads nothing.

    Raises:
        MissingExtraError: matplotlib (the extra `plots`) is not installed.
    """
    from action_tokenizers.diagnostics.compare import COLUMNS
    from action_tokenizers.diagnostics.plots import comparison_plots

    names = list(found.rows)
    numbers = [(_explained(c.heading, c.meaning), [escape(cell) for cell in found.cells(c)]) for c in COLUMNS]
    errors = [(_named(dim), [escape(cell) for cell in found.cells_of_dim(j)]) for j, dim in enumerate(found.dims)]
    body = f"""
<header class="plain">
<p class="eyebrow">Comparison of {len(names)} tokenizer{"s" * (len(names) > 1)}</p>
<h1>{_least_drift(found)}</h1>
<p>{escape(found.caption())}</p>{_notes([*_passed_over(found), *found.notes])}
</header>
<main>
{_verdicts(found)}
<section><h2>Plots</h2><div class="plots">{_figures(comparison_plots(found))}</div></section>
<section><h2>All numbers</h2>{_table(["held out", *names], numbers, "numbers")}</section>
<section><h2>Error by dim</h2><p>Mean squared, in half ranges of each dim.</p>
{_table(["dim", *names], errors, "numbers")}</section></main>"""
    return _page("Comparison", body)


def _drifts(found: "Comparison") -> dict[str, float]:
    """Return the drift of each tokenizer that shows one, the least first."""
    known = {name: row["drift"] for name, row in found.rows.items()}
    known = {name: float(drift) for name, drift in known.items() if drift is not None and math.isfinite(drift)}
    return dict(sorted(known.items(), key=lambda each: each[1]))


def _least_drift(found: "Comparison") -> str:
    """Return the headline, as HTML: of those that nothing speaks against."""
    for name, drift in _drifts(found).items():
        if not found.faults(name):
            tokens = found.rows[name]["tokens"]
            cost = "" if tokens is None or math.isnan(tokens) else f" for {tokens:.3g} ids a chunk"
            return f"Least drift: {_breakable(name)}, {drift:.3g} half ranges{cost}"
    return "No tokenizer here can be named the best by drift"


def _passed_over(found: "Comparison") -> Iterator[str]:
    """Yield who drifts less than the one in the headline, and why it is not there."""
    for name, drift in _drifts(found).items():
        faults = found.faults(name)
        if not faults:
            return
        yield f"{name} drifts by {drift:.3g} and is not in the headline: it {' and '.join(faults)}"


def _verdicts(found: "Comparison") -> str:
    """Return what the audits say, where these were asked for: in words, and condition by condition."""
    if not found.audits:
        return ""
    words = [(_named(name), [escape(report.verdict)]) for name, report in found.audits.items()]
    every = list(dict.fromkeys(c.name for report in found.audits.values() for c in report.conditions))
    rows = []
    for name in every:
        of_each = [{c.name: c for c in report.conditions}.get(name) for report in found.audits.values()]
        statement = next(c.statement for c in of_each if c is not None)
        rows.append((_explained(name.replace("_", " "), statement), [_status(c) for c in of_each]))
    return (
        f"<section><h2>Audits</h2>{_table(['tokenizer', 'verdict'], words, 'words')}</section>"
        f"<section><h2>Conditions</h2>{_table(['condition', *found.audits], rows)}</section>"
    )


def _status(condition: Condition | None) -> str:
    if condition is None:
        return ""
    mood = condition.status.value.replace(" ", "-")
    return f'<span class="status {mood}">{condition.status.value}</span>'


def _named(name: str) -> str:
    return f'<th scope="row">{_breakable(name)}</th>'


def _breakable(name: str) -> str:
    """Return a name that may be broken where a person would break it."""
    return re.sub(r"([:,=_/])", r"\1<wbr>", escape(name))


def _explained(heading: str, meaning: str) -> str:
    part = ' class="part"' * heading.startswith(" ")
    return f'<th scope="row"{part}>{escape(heading.strip())}<small>{escape(meaning)}</small></th>'


def _table(heads: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], more: str = "") -> str:
    """Return rows of a name and its cells, all HTML, under plain `heads`; on a narrow page each row is a list."""
    head = "".join(f'<th scope="col">{_breakable(each)}</th>' for each in heads)
    body = "".join(f"<tr>{name}{_cells(heads[1:], cells)}</tr>" for name, cells in rows)
    inside = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="wide"><table class="stack {more}">{inside}</table></div>'


def _cells(heads: Sequence[str], cells: Sequence[str]) -> str:
    return "".join(f'<td data-label="{escape(h)}">{cell}</td>' for h, cell in zip(heads, cells, strict=True))


def _sweep_mood(found: "Frontier") -> str:
    chosen = [p for p in found.points if p.name == found.recommended]
    return "holds" if chosen and chosen[0].alarm is False else "open"


def _mood(report: AuditReport) -> str:
    if report.silent_failure or report.failing:
        return "fails"
    return "open" if any(c.status is Status.NOT_SHOWN for c in report.conditions) else "holds"


def _notes(notes: Iterable[str]) -> str:
    return "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def _group(group: Group) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(r.heading)}<small>{escape(r.meaning)}</small>{_beside(r.beside)}</th>'
        f'<td class="value">{escape(r.value)}<small>{escape(r.interval)}</small></td>'
        f"<td>{escape(r.unit)}<small>{escape(r.kind)}</small></td></tr>"
        for r in group.rows
    )
    return (
        f'<div class="group"><h3>{escape(group.title)} <small>{escape(group.remark)}</small></h3>'
        f"<table>{rows}</table></div>"
    )


def _beside(text: str) -> str:
    return f"<small>Read it against {escape(text)}.</small>" if text else ""


def _advice(advice: Sequence[str]) -> str:
    if not advice:
        return ""
    return f"<section><h2>What to do</h2><ol>{''.join(f'<li>{escape(text)}</li>' for text in advice)}</ol></section>"


def _conditions(report: AuditReport) -> str:
    rows = []
    for c in report.conditions:
        rows.append(
            f"<tr><td>{_status(c)}</td>"
            f'<th scope="row">{escape(c.name.replace("_", " "))}'
            f"<small>{escape(c.statement)} ({escape(c.source)})</small></th><td>{escape(evidence(c))}</td></tr>"
        )
    return f'<table class="conditions">{"".join(rows)}</table>'


def _detail(measure: Measure) -> str:
    row, entry = row_of(measure), CATALOGUE[measure.name]
    interval = f" [{row.interval}]" if row.interval else ""
    sizes = ", ".join(f"{n:,} {what}" for what, n in measure.n.items())
    facts = "; ".join(part for part in (measure.method or "", sizes, f"source: {entry.source}") if part)
    return (
        f"<details><summary><span>{escape(row.heading)}</span><b>{escape(row.value + interval)}</b>"
        f"<i>{escape(row.unit)} · {row.kind}</i></summary><p>{escape(row.meaning)}</p>"
        f"<p><b>It cannot say:</b> {escape(row.caveat)}</p><p><b>To do:</b> {escape(entry.advice)}</p>"
        f"{_parts(row.parts)}<p><small>{escape(facts)}</small></p></details>"
    )


def _parts(text: str) -> str:
    return f"<p><b>Beside it:</b> {escape(text)}</p>" if text else ""


def _facts(report: AuditReport) -> str:
    rows = []
    for title, facts in (("tokenizer", report.tokenizer), ("data", report.data)):
        for name, value in facts.items():
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            rows.append(f'<tr><th scope="row">{title}: {escape(name)}</th><td class="fact">{escape(text)}</td></tr>')
    return f"<table>{''.join(rows)}</table>"
