"""The plots of an audit, of a comparison and of a sweep, as SVG that takes its colours from the page it stands in.

matplotlib draws them (the extra `plots`); its colours are placeholders that become CSS variables, so that one drawing
suits a light and a dark page.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from action_tokenizers.diagnostics.compare import Comparison
from action_tokenizers.diagnostics.frontier import Frontier
from action_tokenizers.diagnostics.measure import Measure
from action_tokenizers.diagnostics.report import AuditReport
from action_tokenizers.extras import require

__all__ = ["Plot", "comparison_plots", "draw", "frontier_plots", "plots"]

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
MARKERS = "os^DvPX"  # one more than colours, so that each pair of both is seen once in 42
MOST_BARS = 48
LONG_NAME = 28  # characters
FEW_DECADES = 1e3  # ratio of the ends of a logarithmic axis up to which 2 and 5 are labelled
NOTHING = 1e-6  # an error of float32 rounding, in half ranges


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
                _logarithmic(axes, "x")
                _logarithmic(axes, "y")
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


def comparison_plots(found: Comparison) -> list[Plot]:
    """Return what can be drawn of tokenizers side by side, in reading order.

    Raises:
        MissingExtraError: matplotlib (the extra `plots`) is not installed.
    """
    half = "half ranges"
    drawn = [
        _series(
            "Drift against rate",
            "Lower left is better: less error that adds up along an episode, for fewer bits.",
            {name: ([row["bits"]], [row["drift"]]) for name, row in found.rows.items()},
            ("bits per chunk", f"drift, {half}"),
            logarithmic="xy",
        ),
        _by_dims(found, "Error by dim", "mse_per_dim", lambda v: v**0.5, f"root mean square, {half}"),
        _by_dims(found, "Drift by dim", "drift_per_dim", abs, f"drift, {half}"),
        _bars(
            "What a policy has to predict",
            "Bits per chunk by the ids that could stand there, and by what a model of pairs of ids leaves open: fewer "
            "where ids follow from the one before, more where these episodes are too few to learn the pairs from.",
            list(found.rows),
            {
                "could stand there": [row["bits"] for row in found.rows.values()],
                "left by pairs of ids": [_left(row) for row in found.rows.values()],
            },
            "bits per chunk",
        ),
        _bars(
            "Speed",
            "On this machine, while this was measured: compare within the page only.",
            list(found.rows),
            {
                "encode": [row["encode_per_s"] for row in found.rows.values()],
                "decode": [row["decode_per_s"] for row in found.rows.values()],
            },
            "chunks per second",
        ),
    ]
    jumps = {name: _parts(report, "episode_jump") for name, report in found.audits.items()}
    if any(parts.get("curve") for parts in jumps.values()):
        drawn.append(_far_jumps(jumps))
    return drawn


def _far_jumps(jumps: Mapping[str, Mapping[str, Any]]) -> Plot:
    """Return the worst jumps of each tokenizer over what counts as far for it: units and mean errors may differ."""
    lines = {
        name: (parts["curve"]["eta"], [jump / parts["threshold"] for jump in parts["curve"]["largest"]])
        for name, parts in jumps.items()
        if parts.get("curve")
    }
    return _series(
        "Excess jump against perturbation size",
        "How much farther decoded actions move than the noise that moved them, in the worst episode, over what counts "
        "as far for each tokenizer at noise of 5 %. Relative actions count in half spans of their own. A possible "
        "worst case, no forecast.",
        lines,
        ("size of the noise, half ranges (relative: half spans) per coordinate", "excess jump over far"),
        logarithmic="x",
        after=lambda axes: axes.axhline(1, color=INK, linewidth=1, linestyle="--"),
    )


def _left(row: Mapping[str, Any]) -> float | None:
    known = row["entropy"] is not None and row["tokens"] is not None
    return row["entropy"] * row["tokens"] if known else None


def _by_dims(found: Comparison, title: str, column: str, shown: Callable[[float], float], label: str) -> Plot:
    dims = range(len(found.dims))
    values = {
        name: [math.nan if each is None else shown(each) for each in row[column]] for name, row in found.rows.items()
    }
    lines = {name: (list(dims), [v if v > NOTHING else 0.0 for v in each]) for name, each in values.items()}

    def ticks(axes: Any) -> None:
        if len(dims) <= 12:
            axes.set_xticks(list(dims), [_short(name) for name in found.dims], rotation=30, ha="right")

    caption = "Of absolute actions. What errs by no more than float32 rounding is not drawn: 0 has no logarithm."
    return _series(title, caption, lines, ("dim", label), logarithmic="y", after=ticks)


def _series(
    title: str,
    caption: str,
    lines: Mapping[str, tuple[Sequence[float | None], Sequence[float | None]]],
    labels: tuple[str, str],
    *,
    logarithmic: str,
    after: Callable[[Any], None] | None = None,
) -> Plot:
    """Return one line of dots per name, with the names above; what has no logarithm is left out."""

    def known(value: float | None, axis: str) -> float:
        return value if value is not None and (value > 0 or axis not in logarithmic) else math.nan

    def paint(axes: Any) -> None:
        seen = False
        for (name, (x, y)), colour, marker in zip(lines.items(), SERIES * 99, MARKERS * 99, strict=False):
            points = [known(each, "x") for each in x], [known(each, "y") for each in y]
            seen |= any(math.isfinite(a) and math.isfinite(b) for a, b in zip(*points, strict=True))
            axes.plot(*points, f"{marker}-", markersize=5, linewidth=0.8, color=colour, label=_short(name, LONG_NAME))
        for axis in logarithmic if seen else "":  # of nothing there is no logarithm
            _logarithmic(axes, axis)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.margins(0.08)
        axes.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1), fontsize=8, borderaxespad=0.2)
        if after is not None:
            after(axes)

    extra = 0.17 * math.ceil(len(lines) / 2)  # the legend takes none of the drawing's room
    return draw(title, caption, paint, height=HEIGHT + extra)


def _bars(
    title: str, caption: str, names: Sequence[str], values: Mapping[str, Sequence[float | None]], label: str
) -> Plot:
    """Return bars of `values` by name, the first name on top, on a logarithmic axis."""

    def paint(axes: Any) -> None:
        width = 0.8 / len(values)
        for i, ((key, each), colour) in enumerate(zip(values.items(), SERIES, strict=False)):
            at = [row + (i - (len(values) - 1) / 2) * width for row in range(len(names))]
            axes.barh(at, [math.nan if v is None else v for v in each], width, color=colour, label=key)
        axes.set_yticks(range(len(names)), [_short(name, LONG_NAME) for name in names])
        axes.invert_yaxis()
        if any(v and math.isfinite(v) for each in values.values() for v in each):
            _logarithmic(axes, "x")
        axes.set_xlabel(label)
        axes.legend(ncols=2, loc="lower right", bbox_to_anchor=(1, 1), fontsize=8, borderaxespad=0.2)

    return draw(title, caption, paint, height=max(HEIGHT, 0.36 * len(names) + 1))


def _logarithmic(axes: Any, which: str) -> None:
    """Give an axis a logarithmic scale whose labels do not run into each other: 1, 2, 5, or whole decades only."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    low, high = getattr(axes, f"get_{which}lim")()
    if max(low, high) / min(low, high) < FEW_DECADES:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(NullFormatter())


def draw(title: str, caption: str, paint: Callable[[Any], None], rows: int = 1, *, height: float = HEIGHT) -> Plot:
    """Return a plot that `paint(axes)` makes; `axes` is a list of `rows` where there are several.

    Args:
        title: above it.
        caption: below it.
        paint: draws.
        rows: of axes, one above the other.
        height: in inches, of a single one.
    """
    require("matplotlib", "plots")
    from matplotlib.figure import Figure

    with _style(title), warnings.catch_warnings():
        # text stays text: the page's font has what this one lacks
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=(WIDTH, height if rows == 1 else 1.5 * rows + 0.4), layout="constrained")
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
        unit = "half spans (relative)" if parts.get("of_relative") else "half ranges"
        axes.set_xlabel(f"size of the noise, {unit} per coordinate")
        axes.set_ylabel(f"excess jump, {unit}")
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
