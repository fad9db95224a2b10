"""The plots of an audit and of a sweep, as SVG that takes its colours from the page it stands in.

matplotlib draws them (the extra `plots`); its colours are placeholders that become CSS variables, so that one drawing
suits a light and a dark page.
"""

import io
import re
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from action_tokenizers.diagnostics.frontier import Frontier
from action_tokenizers.diagnostics.measure import Measure
from action_tokenizers.diagnostics.report import AuditReport
from action_tokenizers.extras import require

__all__ = ["Plot", "draw", "frontier_plots", "plots"]

# placeholder -> the variable of the page's style that takes its place
COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--soft)",
    "#030303": "var(--line)",
    "#040404": "var(--accent)",
    "#050505": "var(--second)",
    "#060606": "var(--third)",
    "#070707": "var(--fourth)",
}
INK, SOFT, LINE, ACCENT, SECOND, THIRD, FOURTH = COLOURS
SERIES = (ACCENT, SECOND, THIRD, FOURTH, INK, SOFT)
WIDTH, HEIGHT = 5.6, 3.3  # inches; the page scales it
MOST_BARS = 48


@dataclass(frozen=True)
class Plot:
    """A drawing with its title, and what to see in it."""

    title: str
    svg: str
    caption: str


def plots(report: AuditReport) -> list[Plot]:
    """Return what can be drawn of this audit, in reading order.

    Raises:
        MissingExtraError: matplotlib (the extra `plots`) is not installed.
    """
    drawn = []
    for plot in (_decoded, _by_dim, _by_position, _maxima, _jumps, _modulus, _usage, _pairs, _replay, _bounds):
        found = plot(report)
        if found is not None:
            drawn.append(found)
    return drawn


def frontier_plots(found: Frontier) -> list[Plot]:
    """Return drift and excess jump of every tokenizer of a sweep against its bits.

    Raises:
        MissingExtraError: matplotlib (the extra `plots`) is not installed.
    """

    def against_bits(value: str, label: str) -> Callable[[Any], None]:
        def paint(axes: Any) -> None:
            families = sorted({p.name.partition(":")[0] for p in found.points})
            for family, colour, marker in zip(families, SERIES * 9, "os^DvP" * 9, strict=False):
                shown = [p for p in found.points if p.name.partition(":")[0] == family and getattr(p, value)]
                values = [getattr(p, value) for p in shown]
                axes.plot([p.bits for p in shown], values, marker, color=colour, label=_short(family))
            edge = [p for p in found.points if p.best and getattr(p, value)]
            if value == "drift":
                axes.plot([p.bits for p in edge], [p.drift for p in edge], color=INK, linewidth=1, label="frontier")
            chosen = [p for p in found.points if p.name == found.recommended and getattr(p, value)]
            axes.plot(
                [p.bits for p in chosen],
                [getattr(p, value) for p in chosen],
                "o",
                markersize=13,
                markerfacecolor="none",
                color=INK,
            )
            if any(getattr(p, value) for p in found.points):  # of nothing there is no logarithm
                axes.set_xscale("log")
                axes.set_yscale("log")
            axes.set_xlabel("bits per chunk")
            axes.set_ylabel(label)
            axes.legend(loc="best", fontsize=8)

        return paint

    return [
        draw(
            "Drift against rate",
            "Lower left is better; the ring is the recommended one.",
            against_bits("drift", "drift, half ranges"),
        ),
        draw(
            "Excess jump against rate",
            "The largest jump found near or between the data: a possible worst case, not a forecast.",
            against_bits("jump", "excess jump, half ranges"),
        ),
    ]


def draw(title: str, caption: str, paint: Callable[[Any], None], rows: int = 1) -> Plot:
    """Return a plot that `paint(axes)` makes; `axes` is a list of `rows` where there are several."""
    require("matplotlib", "plots")
    from matplotlib.figure import Figure

    with _style(title), warnings.catch_warnings():
        # text stays text: the page's font has what this one lacks
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=(WIDTH, HEIGHT if rows == 1 else 1.5 * rows + 0.4), layout="constrained")
        axes = figure.subplots(rows, 1, sharex=rows > 1)
        paint(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Plot(title, _themed(buffer.getvalue(), f"{title}. {caption}"), caption)


def _style(salt: str) -> AbstractContextManager[None]:
    import matplotlib as mpl

    wanted: Any = {
        "svg.fonttype": "none",  # text stays text: it can be read, found and scaled
        "svg.hashsalt": salt,  # ids differ between the drawings of a page and are equal from run to run
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "text.usetex": False,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": SOFT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": LINE,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "legend.frameon": False,
        "axes.formatter.useoffset": False,
    }
    return mpl.rc_context(wanted)


def _themed(svg: str, label: str) -> str:
    """Return the bare `<svg>` element with the page's colours and a name for those who cannot see it."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    # names of groups that nothing refers to, such as figure_1, are the same in every drawing of a page
    named = set(re.findall(r"#([\w.-]+)", body))
    body = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in named else "", body)
    for placeholder, colour in COLOURS.items():
        body = body.replace(placeholder, colour)
    # the height follows the width
    body = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", body, count=1)
    name = label.replace("&", "and").replace('"', "'").replace("<", "").replace(">", "")
    return body.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)


def _parts(report: AuditReport, name: str) -> dict[str, Any]:
    found: Measure | None = report.measure(name)
    return {} if found is None else found.parts


def _names(report: AuditReport) -> list[str]:
    told = report.data.get("action_names")
    return list(told) if told else [str(j) for j in range(report.data["action_dim"])]


def _decoded(report: AuditReport) -> Plot | None:
    if not report.examples:
        return None

    def paint(axes: Any) -> None:
        for axis, example in zip(axes if len(report.examples) > 1 else [axes], report.examples, strict=True):
            axis.plot(example["recorded"], color=SOFT, linewidth=2.2, label="recorded")
            axis.plot(example["decoded"], color=ACCENT, linewidth=1.1, label="decoded")
            axis.set_ylabel(_short(example["dim"]))
        axis.set_xlabel("step of the episode")
        (axes[0] if len(report.examples) > 1 else axes).legend(
            ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0
        )

    episode = report.examples[0]["episode"]
    caption = (
        f"Episode {episode}, the one of median drift; the dims with the most drift, as recorded. A decoded line that "
        "stays on one side of the recorded one is what drift counts."
    )
    return draw("Decoded over recorded actions", caption, paint, len(report.examples))


def _by_dim(report: AuditReport) -> Plot | None:
    size, drift = _parts(report, "error_mean").get("per_dim"), _parts(report, "drift").get("per_dim")
    if not size or not drift:
        return None
    names = _names(report)

    def paint(axes: Any) -> None:
        rows = range(len(names))
        if len(names) <= MOST_BARS:
            axes.bar([r - 0.2 for r in rows], size, 0.4, color=ACCENT, label="mean |error|")
            axes.bar([r + 0.2 for r in rows], drift, 0.4, color=SECOND, label="drift (16 steps)")
        else:
            axes.plot(rows, size, color=ACCENT, label="mean |error|")
            axes.plot(rows, drift, color=SECOND, label="drift (16 steps)")
        if len(names) <= 12:
            axes.set_xticks(list(rows), [_short(name) for name in names], rotation=30, ha="right")
        axes.set_xlabel("dim")
        axes.set_ylabel("half ranges")
        axes.margins(y=0.15)
        axes.legend(ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)

    caption = (
        "Drift is the mean error over the worst 16 steps in a row, signs kept: errors of both signs cancel in it, "
        "errors of one sign do not."
    )
    return draw("Error by dim", caption, paint)


def _by_position(report: AuditReport) -> Plot | None:
    values = _parts(report, "error_mean").get("per_position")
    if not values or len(values) < 2:
        return None

    def paint(axes: Any) -> None:
        axes.plot(range(len(values)), [float("nan") if v is None else v for v in values], color=ACCENT)
        axes.set_ylim(0, 1.1 * max([v for v in values if v is not None], default=0.0) or 1.0)
        axes.set_xlabel("step of the chunk")
        axes.set_ylabel("mean error norm, half ranges")

    return draw(
        "Error by position in the chunk",
        "Codes of whole chunks often err more at the ends of a chunk; bins do not.",
        paint,
    )


def _maxima(report: AuditReport) -> Plot | None:
    maxima = _parts(report, "error_max").get("maxima")
    if not maxima:
        return None
    mean = report.measure("error_mean")

    def paint(axes: Any) -> None:
        axes.plot(range(1, len(maxima) + 1), sorted(maxima), "o", markersize=3.5, color=ACCENT)
        if mean is not None and mean.value is not None:
            axes.axhline(mean.value, color=SECOND, linewidth=1.2, label="mean error")
            axes.legend(loc="upper left")
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("episodes, sorted")
        axes.set_ylabel("largest error, half ranges")

    caption = "The regret pays for the worst step of an episode. Dots far above the others are rare, large errors."
    return draw("Largest error of each episode", caption, paint)


def _jumps(report: AuditReport) -> Plot | None:
    parts = _parts(report, "episode_jump")
    curve = parts.get("curve")
    if not curve:
        return None

    def paint(axes: Any) -> None:
        axes.plot(curve["eta"], curve["median"], "o-", markersize=3, color=ACCENT, label="median episode")
        axes.plot(curve["eta"], curve["largest"], "s-", markersize=3, color=SECOND, label="worst episode")
        axes.axhline(parts["threshold"], color=INK, linewidth=1, linestyle="--", label="counts as far (at 5 %)")
        axes.set_xscale("log")
        axes.set_xlabel("size of the noise, half ranges per coordinate")
        axes.set_ylabel("excess jump, half ranges")
        axes.margins(y=0.12)
        axes.legend(loc="best")

    caption = (
        "How much farther the decoded action moves than the noise that moved it. A possible worst case, no forecast."
    )
    return draw("Excess jump against perturbation size", caption, paint)


def _modulus(report: AuditReport) -> Plot | None:
    parts = _parts(report, "modulus")
    if not parts.get("eta"):
        return None

    def paint(axes: Any) -> None:
        for (name, label), colour in zip(
            (("median", "median"), ("q99", "99 %"), ("largest", "largest seen")), SERIES, strict=False
        ):
            axes.plot(parts["eta"], parts[name], "o-", markersize=3, color=colour, label=label)
        axes.plot(parts["eta"], parts["eta"], color=INK, linewidth=1, linestyle="--", label="as far as the action")
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=1e-3)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("how far the action moves, half ranges")
        axes.set_ylabel("how far the decoded one moves")
        axes.legend(loc="best")

    caption = "To the left, curves level off at about one cell. A largest curve far above the others is a jump nearby."
    return draw("Local modulus", caption, paint)


def _usage(report: AuditReport) -> Plot | None:
    counts = _parts(report, "usage").get("ranked")
    if not counts:
        return None

    def paint(axes: Any) -> None:
        axes.step(counts["rank"], counts["count"], color=ACCENT, where="post")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("ids, most used first")
        axes.set_ylabel("times used")

    dead = _parts(report, "usage").get("dead", 0)
    return draw("Codebook use", f"{dead:,} ids never occur in these episodes.", paint)


def _pairs(report: AuditReport) -> Plot | None:
    curve = _parts(report, "pair_violation").get("curve")
    if not curve:
        return None

    def paint(axes: Any) -> None:
        axes.plot(curve["r"], curve["decoded"], "o-", markersize=3, color=ACCENT, label="decoded")
        axes.plot(curve["r"], curve["recorded"], "s-", markersize=3, color=SOFT, label="recorded")
        axes.set_xlabel("distance of the states")
        axes.set_ylabel("share of pairs with far actions")
        axes.set_ylim(bottom=0)
        axes.legend(loc="best")

    caption = "Where both curves agree, far actions at near states are the demonstrators' own, not the tokenizer's."
    return draw("Far actions at near states", caption, paint)


def _replay(report: AuditReport) -> Plot | None:
    curves = _parts(report, "replay_deviation").get("curve")
    if not curves:
        return None

    def paint(axes: Any) -> None:
        for (name, values), colour in zip(curves.items(), SERIES, strict=False):
            axes.plot(values, color=colour, label=_short(str(name)))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("step")
        axes.set_ylabel("mean deviation")
        axes.legend(loc="best")

    return draw("Deviation in replay", "Measured: decoded actions executed open loop in the simulator.", paint)


def _bounds(report: AuditReport) -> Plot | None:
    shown = [
        (m, m.parts["horizon"], m.parts["curve"])
        for m in report.measures
        if m.name.startswith("bound_") and m.parts.get("curve") and any(m.parts["curve"])
    ]
    if not shown:
        return None

    def paint(axes: Any) -> None:
        for (measure, horizon, curve), colour in zip(shown, SERIES, strict=False):
            axes.plot(horizon, curve, color=colour, label=_heading(measure))
        axes.plot(shown[0][1], shown[0][1], color=INK, linewidth=1, linestyle="--", label="all there is to lose")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("steps")
        axes.set_ylabel("lost reward")
        axes.legend(loc="best", fontsize=8)

    caption = (
        "Worst-case constants: they rank tokenizers on the same data, never a forecast. Some robot suffers the floor."
    )
    return draw("Bounds against horizon", caption, paint)


def _heading(measure: Measure) -> str:
    from action_tokenizers.diagnostics.catalogue import CATALOGUE

    return CATALOGUE[measure.name].heading


def _short(name: str, most: int = 16) -> str:
    """Return a name that fits beside a plot and means nothing to matplotlib: no mathematics, no hidden label."""
    shown = name if len(name) <= most else f"…{name[1 - most :]}"
    return (" " if shown.startswith("_") else "") + shown.replace("$", r"\$")
