"""Quantization error on held-out actions: its size, its tail, its largest value, and what of it clipping causes.

All in units of half the action range: every dim is scaled so that the data span [-1, 1] (a constant dim stays as it
is), because controllers feel a dim by its range and tokenizers must be compared in one unit. Errors are signed:
`error = quantize(action) - action`; the size of a step's error is Euclidean over its dims.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from action_tokenizers.codecs.dct import dct_matrix
from action_tokenizers.data import Episodes
from action_tokenizers.diagnostics.domains import (
    Cells,
    Frame,
    atoms,
    cells_of,
    climb,
    discrete_dims,
    discrete_note,
    domains,
    quantized,
    size,
)
from action_tokenizers.diagnostics.measure import (
    BOOTSTRAP,
    Estimator,
    Kind,
    Measure,
    bernstein,
    bootstrap_t,
    clopper_pearson,
    share_interval,
)
from action_tokenizers.diagnostics.subject import Subject
from action_tokenizers.tokenizers.fast import FASTTokenizer

__all__ = [
    "ESTIMATORS",
    "clipping",
    "counts",
    "episode_means",
    "error_max",
    "error_mean",
    "error_quantiles",
    "error_split",
    "error_sup",
    "far",
    "half_range",
    "mean_over_episodes",
    "share_of_episodes",
    "unit_of",
]

_Floats = npt.NDArray[np.float64]
_Bools = npt.NDArray[np.bool_]

QUANTILES = (0.5, 0.9, 0.99, 0.999)
# thresholds of the curve P(M > t), in half ranges
THRESHOLDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
FEW_STEPS = 1000
SLACK = 1e-6  # rounding to float32, in half ranges: what a proven bound may be missed by

ESTIMATORS = (
    Estimator(
        name="error_mean",
        heading="error (mean)",
        unit="half range",
        kinds=(Kind.CONSISTENT,),
        meaning="How far a decoded action is from the recorded one, on average over the steps of an episode.",
        caution="It does not see rare large errors, nor errors that add up because they keep their sign.",
        advice="Use finer cells or more codewords, or a range that clips less; `per_dim` says where.",
        source="Cao & Xie 2026, Eq 4",
        function="error.error_mean",
        test="test_error.py::test_the_trap_looks_harmless_by_its_mean_and_quantiles",
    ),
    Estimator(
        name="error_quantiles",
        heading="error (99.9 % of steps below)",
        unit="half range",
        kinds=(Kind.CONSISTENT, Kind.PROXY),
        meaning="The error that 999 of 1000 steps stay below, all episodes together.",
        caution="Steps are not independent, so there is no interval; one bad step per episode stays out of sight.",
        advice="Where it is far above the mean, look at which dims and positions the large errors are in.",
        source="Cao & Xie 2026, Eq 4",
        function="error.error_quantiles",
        test="test_error.py::test_the_trap_looks_harmless_by_its_mean_and_quantiles",
    ),
    Estimator(
        name="error_max",
        heading="error (worst step of an episode)",
        unit="half range",
        kinds=(Kind.UNBIASED,),
        meaning="The largest error of any step of an episode, on average over episodes.",
        caution="Harmless clipping at the ends of the range raises it too.",
        advice="See in `curve` what share of episodes hold an error your robot cannot take.",
        source="Cao & Xie 2026, Thm 1",
        function="error.error_max",
        test="test_error.py::test_episodes_show_what_steps_hide",
    ),
    Estimator(
        name="error_sup",
        heading="error (worst case)",
        unit="half range",
        kinds=(Kind.EXACT, Kind.UPPER, Kind.LOWER),
        meaning="The largest error of any action inside the range, also of actions that no demonstration holds.",
        caution="Large alone it is no fault: the robot may never go where it is. A gripper that is only ever open or "
        "shut counts there alone; `discrete` says how far it errs half way.",
        advice="Compare it with the mean error: where it is many times larger, look at the smoothness numbers.",
        source="Cao & Xie 2026, Eq 3",
        function="error.error_sup",
        test="test_error.py::test_uniform_bins_err_by_half_a_cell_at_most",
    ),
    Estimator(
        name="clipping",
        heading="values outside the range",
        unit="share of values",
        kinds=(Kind.CONSISTENT,),
        meaning="How many held-out values lie beyond what the tokenizer's range can say.",
        caution="It counts values, not how far outside they are; `largest` says that.",
        advice="Fit with range='minmax', or on more episodes, if the clipped motions matter.",
        source="Cao & Xie 2026, Eq 3",
        function="error.clipping",
        test="test_error.py::test_clipping_is_counted_by_values_and_by_episodes",
    ),
)
_ROW = {row.name: row for row in ESTIMATORS}


def unit_of(actions: Sequence[npt.NDArray[Any]]) -> _Floats:
    """Return half the span of each dim over all episodes `(t_i, d)`, `(d,)`; 1 for a constant dim."""
    low = np.min([a.min(axis=0) for a in actions], axis=0).astype(np.float64)
    high = np.max([a.max(axis=0) for a in actions], axis=0).astype(np.float64)
    half = (high - low) / 2
    return np.where(half > 0, half, 1.0)


def half_range(episodes: Episodes) -> _Floats:
    """Return `unit_of` the steps that were recorded, `(d,)`; of all, where every one is padding."""
    real = [a[~m] for a, m in zip(episodes.actions, episodes.padding, strict=True) if not m.all()]
    return unit_of(real or list(episodes.actions))


def error_split(total: _Floats, clipping: _Floats) -> dict[str, Any]:
    """Return the size of the error and what of it the range alone causes.

    Args:
        total: quantize(u) - u, `(n, d)`.
        clipping: clip(u) - u, `(n, d)`, the error of an infinitely fine tokenizer of the same range.

    Returns:
        `mse`, its parts `clip_mse` and `cell_mse` (quantize(u) against clip(u); the parts add up except for a
        cross term that vanishes where clipped values decode to the end of the range), `max`, `mse_per_dim`.
    """
    return {
        "mse": float((total**2).mean()),
        "clip_mse": float((clipping**2).mean()),
        "cell_mse": float(((total - clipping) ** 2).mean()),
        "max": float(np.abs(total).max()),
        "mse_per_dim": (total**2).mean(axis=0).tolist(),
    }


def counts(subject: Subject) -> dict[str, int]:
    """Return the sample sizes of what rests on all of the subject: episodes, chunks and recorded steps."""
    return {"episodes": len(subject.present), "chunks": len(subject), "steps": int(subject.real.sum())}


def mean_over_episodes(
    row: Estimator,
    values: _Floats,
    n: dict[str, int],
    *,
    kind: Kind | None = None,
    note: str = "",
    parts: dict[str, Any] | None = None,
) -> Measure:
    """Return the mean of per-episode `values (e,)` with its interval, as the measure of `row`.

    That of shares is of `share_interval`, every other of `bootstrap_t`.
    """
    mean = float(values.mean())
    # those of a ratio may lie beyond one by one, but their mean does not
    if row.unit.startswith("share") and 0 <= mean <= 1:
        interval, method = share_interval(values)
    else:
        interval = bootstrap_t(values)
        method = None if interval is None else BOOTSTRAP
    if interval is None:
        few = "One episode gives" if len(values) < 2 else "Fewer than five episodes that are all equal give"
        note = f"{few} no interval. {note}"
    return row.measure(mean, kind=kind, interval=interval, method=method, n=n, note=note.strip(), parts=parts)


def episode_means(values: npt.NDArray[Any], counted: _Bools, episode: npt.NDArray[np.int64]) -> _Floats:
    """Return the means of `values (n, k)` where `counted`, per episode that has any; `episode (n,)` ascends."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(episode)) + 1])
    total = np.add.reduceat(np.where(counted, values, 0).sum(1, dtype=np.float64), starts)
    number = np.add.reduceat(counted.sum(1), starts)
    return np.asarray(total[number > 0] / number[number > 0])


def error_mean(subject: Subject) -> Measure:
    """Return the mean step error, with an interval that holds for any law of the episodes as `guaranteed`.

    That interval is of the error against the clipped action, which cannot exceed `bound`, the tokenizer's worst case:
    of the error itself where nothing is clipped. None where the tokenizer takes actions of any size, and in
    `per_position` where no chunk has a recorded step.
    """
    norms = np.linalg.norm(subject.error, axis=-1)
    by_position = zip(norms.sum(0).tolist(), subject.real.sum(0).tolist(), strict=True)
    parts = {
        "mse": float(subject.average(subject.error**2).mean()),
        "per_dim": subject.average(np.abs(subject.error)).mean(0).tolist(),
        "per_position": [total / steps if steps else None for total, steps in by_position],
        "guaranteed": _guaranteed(subject),
    }
    return mean_over_episodes(_ROW["error_mean"], subject.average(norms), counts(subject), parts=parts)


def error_quantiles(subject: Subject) -> Measure:
    """Return the .999 quantile of the step errors of all episodes; `parts` holds the others by name."""
    norms = np.linalg.norm(subject.error[subject.real], axis=-1)
    found = dict(zip(map(str, QUANTILES), np.quantile(norms, QUANTILES).tolist(), strict=True))
    few = len(norms) < FEW_STEPS
    return _ROW["error_quantiles"].measure(
        found["0.999"],
        kind=Kind.PROXY if few else Kind.CONSISTENT,
        n=counts(subject),
        note=f"Of fewer than {FEW_STEPS} steps it is hardly more than the largest error seen." if few else "",
        parts=found,
    )


def error_max(subject: Subject, thresholds: Sequence[float] = THRESHOLDS) -> Measure:
    """Return the mean over episodes of their largest step error.

    Args:
        subject: what to measure.
        thresholds: t of the curve P(M > t), in half ranges.

    Returns:
        `parts` holds the `maxima` of the episodes, in their order, `curve`: per threshold the share of episodes that
        exceed it (see `share_of_episodes`), and `beyond_threshold`: the same at what counts as `far`. `of_relative`, of
        relative actions: that last one in half spans of their own, with the `unit` and the `mean_error` in it.
    """
    maxima = _maxima(subject)
    curve = [{"t": float(t), **share_of_episodes(maxima > t)} for t in thresholds]
    parts: dict[str, Any] = {"maxima": maxima.tolist(), "curve": curve, "beyond_threshold": _beyond(subject)}
    own = subject.in_own_units()
    parts |= own.told_in_own_units(beyond_threshold=_beyond(own))
    return mean_over_episodes(_ROW["error_max"], maxima, counts(subject), parts=parts)


def _maxima(subject: Subject) -> _Floats:
    return subject.largest(np.linalg.norm(subject.error, axis=-1))


def _beyond(subject: Subject) -> dict[str, Any]:
    limit = far(subject.mean_error)
    return {"t": limit, **share_of_episodes(_maxima(subject) > limit)}


def error_sup(subject: Subject, *, budget: int = 768, seed: int = 0) -> Measure:
    """Return the largest error inside the range: computed, bounded, or the largest that a search found.

    EXACT where every value has cells of its own, UPPER for the rounding of FAST, else LOWER. Errors are against the
    clipped action, so that actions beyond the range do not count. Dims that are switches (see `domains.discrete_dims`)
    count at their recorded values, not between them; the bound of FAST is of all actions.

    Args:
        subject: what to measure.
        budget: steps, or chunks, to look at in each domain of the search.
        seed: of the search.

    Returns:
        `parts` holds `ratio`, to the mean error (2 for uniform bins on uniform data), and `clipped`, how far the data
        reach beyond the range. `discrete`: the `dims` that are switches, and, where EXACT, how far they err at most
        `between` their values. EXACT: `per_dim`. UPPER: `chunk`, the bound on the Euclidean norm over a whole chunk.
        UPPER and LOWER: `domains`, the value and ratio found in each of `domains.domains`. `of_relative`, of relative
        actions: the `value` and the `domains` in half spans of their own, with the `unit` and the `mean_error` in it.
    """
    found = _supremum(subject, budget, seed)
    if subject.is_relative:
        own = subject.in_own_units()
        again = _supremum(own, budget, seed)
        found.parts.update(own.told_in_own_units(value=again.value, domains=again.parts.get("domains")))
    return found


def _supremum(subject: Subject, budget: int, seed: int) -> Measure:
    frame, tokenizer, discrete = Frame.of(subject), subject.tokenizer, discrete_dims(subject)
    mean = subject.mean_error
    own = subject.error - frame.clip_error(subject)
    # of a dim that has no range there is nothing to tell
    dims = np.flatnonzero(discrete & (frame.half > 0)).tolist()
    parts: dict[str, Any] = {
        "clipped": float(np.linalg.norm(frame.clip_error(subject), axis=-1).max()),
        "discrete": {"dims": dims},
    }
    cells = cells_of(subject, frame)
    if cells is not None:
        reaches = _reaches(cells, frame)
        parts["discrete"]["between"] = reaches[dims].tolist()
        per_dim = np.where(discrete, np.abs(own).max((0, 1)), reaches)
        value, kind = float(np.linalg.norm(per_dim)), Kind.EXACT
        parts["per_dim"] = per_dim.tolist()
    else:
        found = _searched(subject, frame, discrete, budget, seed)
        value, kind = max(found.values()), Kind.LOWER
        parts["domains"] = {name: {"value": v, "ratio": _ratio(v, mean)} for name, v in found.items()}
        if isinstance(tokenizer, FASTTokenizer):
            value, parts["chunk"] = _rounding_bounds(tokenizer, subject.horizon, frame)
            kind = Kind.UPPER
    return _ROW["error_sup"].measure(
        value,
        kind=kind,
        n=counts(subject),
        note="" if kind is Kind.UPPER else discrete_note(dims),
        parts={"ratio": _ratio(value, mean), **parts},
    )


def clipping(subject: Subject) -> Measure:
    """Return the share of held-out values outside the range.

    `parts` holds it `per_dim`, the share of values that lie outside or exactly `at_the_ends`, the share of episodes
    with a value outside (`episodes`, Clopper-Pearson), the `largest` distance of a step, and what of the error it
    causes (see `error_split`).
    """
    frame, actions = Frame.of(subject), subject.coded.actions
    outside = (actions < frame.low) | (actions > frame.high)
    touching = outside | (actions == frame.low) | (actions == frame.high)
    error = frame.clip_error(subject)
    real = subject.real
    parts = {
        "per_dim": subject.average(outside.astype(np.float64)).mean(0).tolist(),
        "at_the_ends": float(touching[real].mean()),
        "episodes": share_of_episodes(subject.largest(outside.sum(-1, dtype=np.float64)) > 0),
        "largest": float(np.linalg.norm(error, axis=-1).max()),
        "error": error_split(subject.error[real], error[real]),
    }
    note = "" if frame.clips else "This tokenizer takes actions as they are: outside of what it expects, not clipped."
    values = subject.average(outside.mean(-1))
    return mean_over_episodes(_ROW["clipping"], values, counts(subject), note=note, parts=parts)


def share_of_episodes(hits: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Return `hits` of `n` episodes, their `share` and its Clopper-Pearson `interval`, of `hits (e,)`."""
    number = int(hits.sum())
    interval = list(clopper_pearson(number, len(hits)))
    return {"share": number / len(hits), "hits": number, "n": len(hits), "interval": interval}


def far(mean_error: float, eta: float = 0.1) -> float:
    """Return what counts as far, in half ranges: 5 max(eta, 2 mean error), beyond a coarse tokenizer's own cells."""
    return 5 * max(eta, 2 * mean_error)


def _guaranteed(subject: Subject) -> dict[str, float] | None:
    frame, tokenizer = Frame.of(subject), subject.tokenizer
    if not frame.clips:
        return None
    cells = cells_of(subject, frame)
    if cells is not None:
        bound = float(np.linalg.norm(_reaches(cells, frame)))
    elif isinstance(tokenizer, FASTTokenizer):
        bound, _ = _rounding_bounds(tokenizer, subject.horizon, frame)
    else:
        bound = float(np.linalg.norm(2 * frame.half))  # both ends of the range
    means = subject.average(np.linalg.norm(subject.error - frame.clip_error(subject), axis=-1))
    low, high = bernstein(means, 0, bound + SLACK)
    return {"mean": float(means.mean()), "low": low, "high": high, "bound": bound}


def _reaches(cells: Sequence[Cells], frame: Frame) -> _Floats:
    """Return per dim the largest distance of a value inside the range from the centre of its cell, in units."""
    reaches = [np.maximum(abs(c.centres - c.lower), abs(c.upper - c.centres)).max() for c in cells]
    return np.array(reaches) * frame.half


def _rounding_bounds(tokenizer: FASTTokenizer, horizon: int, frame: Frame) -> tuple[float, float]:
    """Return the most by which rounding of coefficients moves a step, and in all a chunk; clamping moves no farther.

    Every coefficient is off by at most half a rounding step, and none is clipped. A step is the worse off the more
    its cosines add up.
    """
    half = 0.5 / float(tokenizer.get_params()["scale"]) * float(np.linalg.norm(frame.half))
    return half * float(np.abs(dct_matrix(horizon)).sum(0).max()), half * math.sqrt(horizon)


def _searched(subject: Subject, frame: Frame, discrete: _Bools, budget: int, seed: int) -> dict[str, float]:
    """Return the largest error found in every domain; none is below that of the data, which all of them hold."""
    data = atoms(subject)
    error = np.linalg.norm(subject.error - frame.clip_error(subject), axis=-1)
    own = error[subject.real] if subject.steps_alone else error.max(1)
    worst = np.argsort(-own)

    def value(actions: _Floats) -> _Floats:
        return size(quantized(subject, actions) - frame.clip(actions) / subject.unit)

    found = {each.name: climb(value, each, worst, len(data), budget, seed) for each in domains(data, discrete)}
    return {name: max(float(own.max()), largest) for name, largest in found.items()}


def _ratio(value: float, mean: float) -> float | None:
    return value / mean if mean > 0 else None
