"""What adds up along an episode: signed errors that a controller integrates, values held still, borders of chunks.

Of the actions as they are executed, absolute also for tokenizers of relative ones, in units of half the range. Each
measure has a sibling, `drift_of` and so on, that takes recorded actions and errors per episode and returns the bare
number.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from action_tokenizers.data.chunks import ChunkPlan, gather
from action_tokenizers.diagnostics.error import counts, mean_over_episodes, share_of_episodes
from action_tokenizers.diagnostics.measure import Estimator, Kind, Measure
from action_tokenizers.diagnostics.subject import Subject

__all__ = [
    "ESTIMATORS",
    "Executed",
    "border_jump",
    "border_jump_of",
    "drift",
    "drift_leaky",
    "drift_of",
    "executed",
    "gripper_flips",
    "gripper_flips_of",
    "hold_bias",
    "hold_bias_of",
    "two_valued",
]

_Floats = npt.NDArray[np.float64]
_Bools = npt.NDArray[np.bool_]

WINDOW = 16
LEAK = 0.95
LEAST_HOLD = 8
OFTEN = 0.01  # share of a dim's steps from which on a value counts as held often
EXACTLY = 1e-4  # half ranges: what nobody feels, and float32 may lose of a value on its way there and back
MOST_LISTED = 100

REPLAY = "open-loop replay of 44 tokenizers on 9 simulated tasks, 2026"
ESTIMATORS = (
    Estimator(
        name="drift",
        heading="drift",
        unit="half range",
        kinds=(Kind.UNBIASED,),
        meaning="The largest mean error over 16 consecutive steps of an episode: errors that keep their sign.",
        caution="It ranks tokenizers on the same data; no value of it is good or bad on every robot.",
        advice="Prefer the tokenizer with the least; finer cells help, and values that fall on a cell's centre.",
        source=REPLAY,
        function="along.drift",
        test="test_along.py::test_drift_is_the_largest_windowed_mean_error",
    ),
    Estimator(
        name="drift_leaky",
        heading="drift (leaky sum)",
        unit="half range x steps",
        kinds=(Kind.UNBIASED,),
        meaning="The largest sum of the errors of an episode, of which 5 % is forgotten each step.",
        caution="It says the same as the drift in another way; compare on the same data only.",
        advice="As for the drift.",
        source=REPLAY,
        function="along.drift_leaky",
        test="test_along.py::test_leaky_drift_is_the_recursion",
    ),
    Estimator(
        name="hold_bias",
        heading="hold bias",
        unit="half range",
        kinds=(Kind.CONSISTENT,),
        meaning="How far off the worst dim is, on average over a hold, while it holds one value for 8 steps or more.",
        caution="The interval is that of one dim, though the worst was picked on the same data.",
        advice="Give the values listed in `unreproducible` cells of their own; a grip that is a little weak drops "
        "the object.",
        source=REPLAY,
        function="along.hold_bias",
        test="test_along.py::test_hold_bias_looks_only_at_stretches_that_hold_still",
    ),
    Estimator(
        name="gripper_flips",
        heading="gripper flips",
        unit="share of steps",
        kinds=(Kind.CONSISTENT,),
        meaning="How often a dim that is only ever open or shut decodes to the wrong side.",
        caution="A decoded value near the middle counts for the side it is on, whatever the gripper makes of it.",
        advice="Give two-valued dims their two values exactly: bins do so by themselves.",
        source=REPLAY,
        function="along.gripper_flips",
        test="test_along.py::test_gripper_flips_count_decoded_sides",
    ),
    Estimator(
        name="border_jump",
        heading="border jump",
        unit="half range",
        kinds=(Kind.CONSISTENT,),
        meaning="How much more the error changes from one chunk to the next than within chunks.",
        caution="Chunks run one after another here; overlapping ones, blended, have other borders.",
        advice="Where it is large the robot jerks at every new chunk: blend chunks, or code the ends finer.",
        source=REPLAY,
        function="along.border_jump",
        test="test_along.py::test_border_jump_is_the_change_of_error_across_borders",
    ),
)
_ROW = {row.name: row for row in ESTIMATORS}


def drift(subject: Subject, window: int = WINDOW) -> Measure:
    """Return the largest mean error over `window` consecutive steps (W_16), mean over episodes.

    `parts` holds the same of each dim alone, `per_dim`, and the `window`.
    """
    found = [_windowed(error, window) for _, error in executed(subject)]
    parts = {"per_dim": np.mean([dims for _, dims in found], axis=0).tolist(), "window": window}
    norms = np.array([norm for norm, _ in found])
    return mean_over_episodes(_ROW["drift"], norms, counts(subject), parts=parts)


def drift_leaky(subject: Subject, leak: float = LEAK) -> Measure:
    """Return the largest norm of s_h = leak s_(h-1) + e_h along an episode (D_.95), mean over episodes.

    `parts` holds the same of each dim alone, `per_dim`, and the `leak`.
    """
    from scipy.signal import lfilter

    sums = [np.asarray(lfilter([1.0], [1.0, -leak], error, axis=0)) for _, error in executed(subject)]
    parts = {"per_dim": np.mean([np.abs(s).max(0) for s in sums], axis=0).tolist(), "leak": leak}
    norms = np.array([np.linalg.norm(s, axis=1).max() for s in sums])
    return mean_over_episodes(_ROW["drift_leaky"], norms, counts(subject), parts=parts)


def hold_bias(subject: Subject, least: int = LEAST_HOLD) -> Measure:
    """Return the mean |mean error| over stretches that hold a value for `least` steps or more, of the worst dim.

    Returns:
        `parts` holds it `per_dim` (None where a dim never holds still), the `worst_dim`, and `unreproducible`: the
        values that make up 1 % of a dim's steps or more and do not come back on most of them, as raw actions: `dim`,
        `value`, `decoded` (on average), `error` (in half ranges), `share` of the dim's steps, and `kept`, how many of
        these came back. The most frequent 100 are listed; `unreproducible_values` counts all.
    """
    ran = executed(subject)
    totals, holds = _holds(ran, least)
    lost = _unreproducible(ran, subject.unit)
    per_dim = _per_dim(totals, holds)
    parts = {"per_dim": per_dim, "unreproducible": lost[:MOST_LISTED], "unreproducible_values": len(lost)}
    found = {j: bias for j, bias in enumerate(per_dim) if bias is not None}
    if not found:
        note = f"No dim holds a value for {least} steps."
        return _ROW["hold_bias"].measure(None, n=counts(subject), note=note, parts={"worst_dim": None, **parts})
    worst = max(found, key=lambda j: found[j])
    n = {**counts(subject), "holds": int(holds[:, worst].sum())}
    values = _linearised(totals[:, worst], holds[:, worst])
    return mean_over_episodes(_ROW["hold_bias"], values, n, parts={"worst_dim": worst, **parts})


def gripper_flips(subject: Subject) -> Measure:
    """Return the share of steps at which a two-valued dim decodes to the other side.

    `parts` names the two-valued `dims`, and the share of episodes with a flip (`episodes`, Clopper-Pearson).
    """
    ran, n = executed(subject), counts(subject)
    dims = two_valued([e.action for e in ran])
    flips = _flips(ran, dims)
    if flips is None:
        note = "No dim holds exactly two values."
        return _ROW["gripper_flips"].measure(None, n=n, note=note, parts={"dims": []})
    values = _linearised(np.array([f.sum() for f in flips]), np.array([f.size for f in flips]))
    parts = {"dims": dims, "episodes": share_of_episodes(np.array([f.any() for f in flips]))}
    return mean_over_episodes(_ROW["gripper_flips"], values, n, parts=parts)


def border_jump(subject: Subject) -> Measure:
    """Return how much more the error changes across chunk borders than inside chunks, as a mean norm.

    `parts` holds both: `across` and `inside`.
    """
    changes = [_changes(error, subject.horizon) for _, error in executed(subject)]
    across, inside = (np.array([[c[i].sum(), len(c[i])] for c in changes]) for i in (0, 1))
    n = {**counts(subject), "borders": int(across[:, 1].sum())}
    if not across[:, 1].any() or not inside[:, 1].any():
        note = "There is no border between chunks, or chunks have no inside."
        return _ROW["border_jump"].measure(None, n=n, note=note)
    jump, ordinary = (_linearised(*side.T) for side in (across, inside))
    parts = {"across": float(jump.mean()), "inside": float(ordinary.mean())}
    return mean_over_episodes(_ROW["border_jump"], jump - ordinary, n, parts=parts)


def drift_of(errors: Sequence[_Floats], window: int = WINDOW) -> dict[str, Any]:
    """Return the largest mean error over `window` consecutive steps (W_16 in replay studies).

    What a controller integrates is the signed sum of errors: of the numbers known without a simulator it predicts
    open-loop deviation best. Per episode `(t_i, d)` the largest norm over all windows (the whole episode where it is
    shorter), then the mean over episodes; `per_dim` likewise for each dim alone.
    """
    norms, dims = zip(*(_windowed(error, window) for error in errors), strict=True)
    return {"drift": float(np.mean(norms)), "drift_per_dim": np.mean(dims, axis=0).tolist()}


def hold_bias_of(actions: Sequence[_Floats], errors: Sequence[_Floats], least: int = LEAST_HOLD) -> list[float | None]:
    """Return per dim the mean |mean error| over stretches of at least `least` steps that hold one value exactly.

    A grip that is a little too weak all the time drops the object, though no other number is large. None where a
    dim never holds still.
    """
    return _per_dim(*_holds([Executed(*pair) for pair in zip(actions, errors, strict=True)], least))


def two_valued(actions: Sequence[npt.NDArray[Any]]) -> list[int]:
    """Return the dims that hold exactly two values over all episodes `(t_i, d)`."""
    joined = np.concatenate(actions)
    low, high = joined.min(axis=0), joined.max(axis=0)
    both = ((joined == low) | (joined == high)).all(axis=0)
    return np.flatnonzero(both & (low < high)).tolist()


def gripper_flips_of(actions: Sequence[_Floats], errors: Sequence[_Floats], dims: Sequence[int]) -> float | None:
    """Return the fraction of steps at which a two-valued dim decodes to the other side; None without such dims.

    `actions` in units of the range, so the middle of a two-valued dim lies half its span from both values.
    """
    flips = _flips([Executed(*pair) for pair in zip(actions, errors, strict=True)], dims)
    return None if flips is None else float(np.concatenate(flips).mean())


def border_jump_of(errors: Sequence[_Floats], horizon: int) -> float | None:
    """Return how much more the error changes across chunk borders than inside chunks, as a mean norm.

    The recorded motion and the tokenizer's ordinary noise are taken out: what is left is the jerk that cutting into
    chunks adds. None where no episode has a border, or chunks have no inside.
    """
    across, inside = map(np.concatenate, zip(*(_changes(error, horizon) for error in errors), strict=True))
    return float(across.mean() - inside.mean()) if len(across) and len(inside) else None


class Executed(NamedTuple):
    """One episode as executed, in units: what was recorded, and by how much the decoded actions miss it."""

    action: _Floats
    error: _Floats


def executed(subject: Subject) -> list[Executed]:
    """Return the episodes of a subject with absolute actions."""
    if subject.coded.relative is None or subject.coded.reference is None:
        action, error = subject.actions, subject.error
    else:
        plan = ChunkPlan(subject.episode, subject.first, subject.horizon, ())
        recorded = gather(subject.episodes, plan).actions.astype(np.float64)
        decoded = subject.coded.relative.invert(subject.decoded, subject.coded.reference)
        action, error = recorded / subject.unit, (decoded - recorded) / subject.unit
    return [Executed(*pair) for pair in zip(subject.each(action), subject.each(error), strict=True)]


def _windowed(error: _Floats, window: int) -> tuple[float, _Floats]:
    """Return the largest norm of a mean over `window` steps, and the largest of each dim alone, `(d,)`."""
    w = min(window, len(error))
    sums = np.cumsum(np.concatenate([np.zeros((1, error.shape[1])), error]), axis=0)
    means = (sums[w:] - sums[:-w]) / w
    return float(np.linalg.norm(means, axis=1).max()), np.abs(means).max(axis=0)


def _holds(ran: Sequence[Executed], least: int) -> tuple[_Floats, _Floats]:
    """Return per episode and dim the sum of |mean error| over holds of `least` steps, and their number, `(e, d)`."""
    totals, holds = np.zeros((2, len(ran), ran[0].action.shape[1]))
    for i, (action, error) in enumerate(ran):
        sums = np.cumsum(np.concatenate([np.zeros((1, error.shape[1])), error]), axis=0)
        moves = np.diff(action, axis=0) != 0
        for j in range(action.shape[1]):
            ends = np.concatenate([[0], np.flatnonzero(moves[:, j]) + 1, [len(action)]])
            length = np.diff(ends)
            held = length >= least
            totals[i, j] = np.abs(np.diff(sums[ends, j])[held] / length[held]).sum()
            holds[i, j] = held.sum()
    return totals, holds


def _per_dim(totals: _Floats, holds: _Floats) -> list[float | None]:
    return [float(t / n) if n else None for t, n in zip(totals.sum(0), holds.sum(0), strict=True)]


def _unreproducible(ran: Sequence[Executed], unit: _Floats) -> list[dict[str, Any]]:
    """Return the values held often that mostly do not come back, the most frequent first."""
    action, error = (np.concatenate(side) for side in zip(*ran, strict=True))
    lost = []
    for j in range(action.shape[1]):
        values, at, count = np.unique(action[:, j], return_inverse=True, return_counts=True)
        kept = np.bincount(at, np.abs(error[:, j]) <= EXACTLY) / count
        mean = np.bincount(at, error[:, j]) / count
        for i in np.flatnonzero((count >= OFTEN * len(action)) & (kept < 0.5)):
            value = float(values[i] * unit[j])
            row = {"dim": j, "value": value, "decoded": value + float(mean[i] * unit[j]), "error": float(mean[i])}
            lost.append({**row, "share": float(count[i] / len(action)), "kept": float(kept[i])})
    return sorted(lost, key=lambda row: -row["share"])


def _flips(ran: Sequence[Executed], dims: Sequence[int]) -> list[_Bools] | None:
    """Return per episode which of its values in `dims` decode to the other side, `(t_i, len(dims))`."""
    if not dims:
        return None
    actions = [e.action[:, dims] for e in ran]
    middle = (np.min([a.min(0) for a in actions], 0) + np.max([a.max(0) for a in actions], 0)) / 2
    decoded = [e.action[:, dims] + e.error[:, dims] for e in ran]
    return [(a > middle) != (b > middle) for a, b in zip(actions, decoded, strict=True)]


def _changes(error: _Floats, horizon: int) -> tuple[_Floats, _Floats]:
    """Return the norms of the changes of `error (t, d)` across the borders of chunks, and inside chunks."""
    change = np.linalg.norm(np.diff(error, axis=0), axis=1)
    is_border = np.arange(1, len(error)) % horizon == 0
    return change[is_border], change[~is_border]


def _linearised(totals: npt.NDArray[Any], number: npt.NDArray[Any]) -> _Floats:
    """Return per-episode values `(e,)` with the mean totals.sum() / number.sum(), and the spread of that ratio.

    Episodes hold different numbers of what is averaged, none at times: to first order the ratio of the sums varies as
    the mean of these values does (the delta method).
    """
    ratio = totals.sum() / number.sum()
    values: _Floats = ratio + (totals - ratio * number) / number.mean()
    return values
