"""`frontier`: sweep families and parameters over rate, distortion and smoothness, and recommend for a budget."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from action_tokenizers.base import ActionTokenizer, Progress
from action_tokenizers.data import Episodes
from action_tokenizers.diagnostics.audit import audit
from action_tokenizers.diagnostics.fitting import common_horizon, fit_all
from action_tokenizers.diagnostics.measure import plain
from action_tokenizers.diagnostics.report import AuditReport, Status
from action_tokenizers.errors import ActionValueError
from action_tokenizers.registry import tokenizer_class

__all__ = ["SWEEP", "Frontier", "Point", "frontier"]

# what a sweep tries where nothing is asked for: each family from coarse to fine
SWEEP: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("binning", {"bins": bins}) for bins in (8, 16, 32, 64, 256)),
    *(("binning", {"bins": bins, "strategy": "quantile"}) for bins in (32, 256)),
    *(("kmeans", {"codebook_size": size}) for size in (64, 256, 1024)),
    *(("kmeans", {"codebook_size": size, "scope": "chunk"}) for size in (256, 1024)),
    *(
        ("residual_vq", {"levels": levels, "codebook_size": size})
        for levels, size in ((2, 64), (4, 64), (4, 256), (8, 256))
    ),
    *(("fast", {"scale": scale}) for scale in (2, 5, 10, 20, 50)),
)


@dataclass(frozen=True)
class Point:
    """One tokenizer of a sweep.

    Attributes:
        name: such as `binning:bins=16`.
        tokens: ids per chunk, mean.
        bits: per chunk.
        drift: largest mean error over 16 steps, half ranges.
        error: mean error, half ranges.
        jump: largest excess jump found, half ranges.
        alarm: whether the smoothness alarm is on; None where there are too few episodes.
        fails: names of the conditions that fail.
        best: whether no other has both fewer bits and less drift.
        report: its audit.
    """

    name: str
    tokens: float
    bits: float
    drift: float
    error: float
    jump: float | None
    alarm: bool | None
    fails: tuple[str, ...]
    best: bool
    report: AuditReport = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the numbers, without the audit."""
        told = {name: value for name, value in vars(self).items() if name != "report"}
        plainly: dict[str, Any] = plain(told)
        return plainly


@dataclass(frozen=True)
class Frontier:
    """What a sweep found.

    Attributes:
        points: every tokenizer that could be fitted, by bits.
        budget: what was asked for.
        recommended: name of the point to use within the budget; None where none fits it.
        why: in words.
        data: what it was measured on.
        notes: what a reader must know, such as tokenizers that could not be fitted.
        tokenizers: the fitted ones, by name.
    """

    points: tuple[Point, ...]
    budget: dict[str, float]
    recommended: str | None
    why: str
    data: dict[str, Any]
    notes: tuple[str, ...] = ()
    tokenizers: Mapping[str, ActionTokenizer] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "budget": self.budget,
            "recommended": self.recommended,
            "why": self.why,
            "data": plain(self.data),
            "points": [point.to_json() for point in self.points],
            "notes": list(self.notes),
        }

    def to_json_text(self) -> str:
        """Return `to_json` as text."""
        return json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n"


def frontier(
    episodes: Episodes,
    tokenizers: Mapping[str, ActionTokenizer] | None = None,
    *,
    horizon: int | None = None,
    tokens: float | None = None,
    bits: float | None = None,
    test: float = 0.2,
    stride: int = 1,
    seed: int = 0,
    allow_single_episode: bool = False,
    progress: Progress | None = None,
) -> Frontier:
    """Fit tokenizers on one part of the episodes, measure them on the other, and recommend one.

    Recommended is, of those within the budget whose smoothness alarm is not on and that reproduce held values, the one
    of least drift; of those within 5 % of it, the one of fewest tokens. Drift is what ranked execution best where it
    was measured; how learnable the ids are it does not say: audit the recommended one and its neighbours.

    Args:
        episodes: demonstrations.
        tokenizers: name -> tokenizer, not fitted; None: `SWEEP`.
        horizon: steps per chunk; None: one second.
        tokens: most ids per chunk, on average.
        bits: most bits per chunk.
        test: share of the episodes to hold out.
        stride: between the starts of chunks in the fit.
        seed: of the split and of all draws.
        allow_single_episode: as in `compare`.
        progress: called as `progress(stage, done, total)`.

    Raises:
        ActionValueError: no tokenizer that can be fitted on these data, or a budget that is not above 0.
    """
    budget = {name: value for name, value in (("tokens", tokens), ("bits", bits)) if value is not None}
    for name, value in budget.items():
        if not value > 0:
            raise ActionValueError(f"expected a budget of {name} above 0, got {value}")
    wanted = _sweep(horizon) if tokenizers is None else tokenizers
    steps = common_horizon(wanted, episodes)
    found = fit_all(
        wanted,
        episodes,
        steps,
        test=test,
        stride=stride,
        seed=seed,
        allow_single_episode=allow_single_episode,
        skip_unfit=True,
        progress=progress,
    )
    reports: dict[str, AuditReport] = {}
    for done, (name, tokenizer) in enumerate(found.tokenizers.items()):
        if progress is not None:
            progress("measure", done, len(found.tokenizers))
        reports[name] = audit(tokenizer, found.held_out, seed=seed, horizon=steps, states=False, stages=SWEPT)
    points = _points(reports)
    chosen, why = _recommend(points, budget)
    first = next(iter(reports.values()))
    return Frontier(points, budget, chosen, why, first.data, (*found.notes, *first.notes), found.tokenizers)


SWEPT = ("error", "smoothness", "codebook")
NEAR = 1.05  # of the least drift: as good


def _sweep(horizon: int | None) -> dict[str, ActionTokenizer]:
    found = {}
    for kind, params in SWEEP:
        name = f"{kind}:{','.join(f'{key}={value}' for key, value in params.items())}"
        found[name] = tokenizer_class(kind)(horizon=horizon, **params)
    return found


def _points(reports: Mapping[str, AuditReport]) -> tuple[Point, ...]:
    rows = {name: (_value(r, "bits"), _value(r, "drift")) for name, r in reports.items()}
    points = []
    for name, report in reports.items():
        bits, drift = rows[name]
        beaten = any(b <= bits and e <= drift and (b, e) != (bits, drift) for b, e in rows.values())
        alarm = report.condition("smooth_tokenizer").status
        jump = report.measure("excess_jump")
        points.append(
            Point(
                name,
                _value(report, "tokens"),
                bits,
                drift,
                _value(report, "error_mean"),
                None if jump is None else jump.value,
                None if alarm is Status.NOT_SHOWN else alarm is Status.FAILS,
                tuple(c.name for c in report.failing),
                not beaten,
                report,
            )
        )
    return tuple(sorted(points, key=lambda p: (p.bits, p.name)))


def _value(report: AuditReport, name: str) -> float:
    found = report.measure(name)
    return float("nan") if found is None or found.value is None else found.value


def _recommend(points: tuple[Point, ...], budget: Mapping[str, float]) -> tuple[str | None, str]:
    within = [p for p in points if all(getattr(p, name) <= most for name, most in budget.items())]
    said = " and ".join(f"{most:g} {name}" for name, most in budget.items()) or "no budget stated"
    if not within:
        least = {name: min(getattr(p, name) for p in points) for name in budget}
        return None, f"None is within {said}: the least here is " + ", ".join(f"{v:.3g} {k}" for k, v in least.items())
    sound = [p for p in within if not p.alarm and "values_reproduced" not in p.fails]
    if not sound:
        return None, f"Of {len(within)} within {said}, all raise the smoothness alarm or lose held values."
    unshown = sum(p.alarm is None for p in sound)
    doubt = f" For {unshown} of them the alarm is not shown: it takes 10 held-out episodes, and cells finer than jumps."
    least_drift = min(p.drift for p in sound)
    near = [p for p in sound if p.drift <= NEAR * least_drift]
    best = min(near, key=lambda p: (p.tokens, p.bits, p.name))
    return best.name, (
        f"Of {len(within)} ({said}), {len(sound)} raise no alarm and reproduce held values; of these it has the least "
        f"drift ({best.drift:.3g} half ranges), or nearly, for {best.tokens:.3g} tokens.{doubt if unshown else ''}"
    )
