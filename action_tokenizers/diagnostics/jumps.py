"""How far decoded actions jump when actions move a little: the excess jump and the modulus of a tokenizer.

All numbers are in units of half the range of each dim, so that the range of an action is 2; norms are Euclidean over
the dims of a step, and of a chunk the largest over its steps. A tokenizer that codes every step alone is judged step by
step, any other chunk by chunk. The excess jump of a pair is how much farther its decoded actions lie apart than the
actions themselves; its supremum J_q decides how smooth a deterministic expert's tokenized policy is (Cao & Xie 2026,
arXiv:2603.20538, Prop 5, with J_q for 2 ε_q). None of this forecasts what execution does: it is a worst case.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from action_tokenizers.diagnostics.domains import Frame, discrete_dims, discrete_note, quantized, size
from action_tokenizers.diagnostics.measure import Estimator, Kind, Measure
from action_tokenizers.diagnostics.subject import Subject

__all__ = ["COARSE", "ESTIMATORS", "excess_jump", "modulus", "nearest", "scalar_excess_jump"]

Floats = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

COARSE = 0.1  # 5 % of the range
MODULUS_ETAS = (0.001, 0.003, 0.01, 0.03, COARSE, 0.3, 1.0)
VALUES = 1 << 20  # numbers in one sample of points, and distances at once: bounds the memory
DRAWS = 2  # directions per point and length
SIZES = (0.004, 0.02, 0.1, 0.5)  # of noise to search with
STOPS, LAGS = 17, (1, 2, 4, 8, 16)  # points on a line, and how many apart they are compared
KEPT, HALVINGS = 64, 12  # pairs of each kind to bisect, and how often

EXCESS_JUMP = Estimator(
    name="excess_jump",
    heading="largest excess jump",
    unit="half range",
    kinds=(Kind.EXACT, Kind.LOWER, Kind.UPPER),
    meaning="The most by which two decoded actions can lie farther apart than the actions they stand for.",
    caution="A worst case over all actions, likely or not; it ranks no tokenizers by how they execute.",
    advice="Far above twice the mean error, some small change of an action is answered by a large one: see which "
    "perturbation finds it. Uniform bins and FAST jump by about one cell. The step of a switch, such as a gripper, "
    "is in `discrete` and no fault.",
    source="Cao & Xie 2026, Prop 5 and Eq 3",
    function="jumps.excess_jump",
    test="test_jumps.py::test_excess_jump_of_bins_is_a_cell_in_every_dim",
)
MODULUS = Estimator(
    name="modulus",
    heading="jump after a small move",
    unit="half range",
    kinds=(Kind.CONSISTENT,),
    meaning="How far the decoded action moves, 99 % of the time at most, when an action moves by 5 % of the range in "
    "a random direction.",
    caution="Random directions leave the way that recorded motion goes; the largest of each curve is a lower bound.",
    advice="As the move shrinks, the jump should shrink to about one cell; where it stays far above twice the mean "
    "error, use more codewords or another family.",
    source="Cao & Xie 2026, Prop 5",
    function="jumps.modulus",
    test="test_jumps.py::test_modulus_of_fine_bins_is_the_move_and_of_coarse_ones_a_cell",
)
ESTIMATORS: tuple[Estimator, ...] = (EXCESS_JUMP, MODULUS)


def scalar_excess_jump(edges: Floats, centres: Floats, low: float = -1.0, high: float = 1.0) -> float:
    """Return the exact excess jump of a step function on `low..high`.

    Between two points x <= y the excess |q(y) - q(x)| - (y - x) is largest where x is the right end of what comes
    before and y the left end of what comes after, so that one-sided limits at the edges decide: it is the largest rise
    of q - id, or fall of q + id, along the line.

    Args:
        edges: `(k - 1,)` ascending.
        centres: `(k,)` what each cell decodes to, in any order.
        low: where the domain begins.
        high: where it ends.

    Example:
        >>> scalar_excess_jump(np.array([-0.5, 0.0, 0.5]), np.array([-0.75, -0.25, 0.25, 0.75]))
        0.5
    """
    inside = (edges > low) & (edges <= high)  # a value on an edge belongs to the cell above
    first = int(np.searchsorted(edges, low, side="right"))
    borders = np.asarray(edges[inside], np.float64)
    values = np.asarray(centres[first : first + len(borders) + 1], np.float64)
    # every cell from both of its ends
    x = np.concatenate([[low], np.repeat(borders, 2), [high]])
    q = np.repeat(values, 2)
    rise, fall = q - x, q + x
    up = (rise - np.minimum.accumulate(rise)).max()
    down = (np.maximum.accumulate(fall) - fall).max()
    return float(max(up, down))


def excess_jump(subject: Subject, *, sup: float | None = None, seed: int = 0) -> Measure:
    """Return J_q: exact where every value is quantized alone, else the largest that a search found.

    Of the actions there can be: dims that are switches (see `domains.discrete_dims`) keep to their recorded values.

    Args:
        subject: what to look at.
        sup: a claimed or known largest error of single actions (Eq 3); J_q above twice that disproves it.
        seed: of the search.

    Returns:
        EXACT with `per_dim`; UPPER where several dims jump most between actions that lie apart, so that they may not do
        it together (`attained` is what they surely do). Or LOWER with `pairs`: the largest excess between recorded
        actions and moved ones (`noise` of several sizes; the same for all steps of a chunk: `offset`), the nearest
        actions of other episodes (`neighbour`), points on lines between recorded actions (`hull`), and after
        `bisection` of the largest of these. `discrete`: the `dims` that are switches and, unless LOWER, by how much
        each of them jumps `between` its values. `least_sup`, J_q / 2, is the smallest largest error that goes with it;
        `over_twice_mean` and `over_twice_sup` are ratios; `disproves_sup` says whether the claim is refuted.
    """
    frame, discrete = Frame.of(subject), discrete_dims(subject)
    # of a dim that has no range there is nothing to tell
    dims = np.flatnonzero(discrete & (frame.half > 0)).tolist()
    note = discrete_note(dims)
    known = _known(subject, frame, discrete)
    if known is not None:
        # sqrt(sum J_d^2) bounds them all; at borders, where no distance is spent, every dim can jump at once
        value = float(np.linalg.norm(known.per_dim))
        attained = max(float(np.linalg.norm(known.borders)), float(known.per_dim.max()))
        exact = value <= attained * (1 + 1e-3)
        inside = "" if frame.clips else "Inside the range that it expects: it clips nothing."
        note = f"{note} {_span_note(subject)}".strip()
        return EXCESS_JUMP.measure(
            value,
            kind=Kind.EXACT if exact else Kind.UPPER,
            note=f"{inside} {note}".strip(),
            parts={
                "per_dim": known.per_dim.tolist(),
                "discrete": {"dims": dims, "between": known.whole[dims].tolist()},
                "attained": value if exact else attained,
                **_against(value if exact else attained, subject, sup),
            },
        )
    points = _Points.of(subject, discrete, np.random.default_rng(seed))
    found, n = _search(points, np.random.default_rng([seed, 1]))
    value = max(found.values())
    return EXCESS_JUMP.measure(
        value,
        kind=Kind.LOWER,
        n={"episodes": len(np.unique(points.episode)), "pairs": n},
        note=f"Found by a search: the truth may be larger. {note} {_span_note(subject)}".strip(),
        parts={"pairs": found, "discrete": {"dims": dims}, **_against(value, subject, sup)},
    )


def modulus(subject: Subject, *, seed: int = 0) -> Measure:
    """Return how far decoded actions move when actions move by a given length in random directions.

    Returns:
        The 99 % quantile at a move of 0.1; in parts the curves over moves of .001 to 1 (`eta`): `median`, `q99` and
        `largest` with directions drawn for every step, under `offset` the same with one direction for all steps of a
        chunk (only where chunks are coded as a whole), and `std`, the spread of each dim of the recorded actions, to
        read the moves by.
    """
    rng = np.random.default_rng(seed)
    points = _Points.of(subject, np.zeros(subject.unit.shape, np.bool_), rng)
    steps = points.values.shape[1]
    parts: dict[str, Any] = {"eta": list(MODULUS_ETAS), **_curve(points, steps, rng)}
    if steps > 1:
        parts["offset"] = _curve(points, 1, rng)
    parts["std"] = subject.actions[subject.real].std(0).tolist()
    return MODULUS.measure(
        parts["q99"][MODULUS_ETAS.index(COARSE)],
        n={"episodes": len(np.unique(points.episode)), "draws": len(points.values) * DRAWS},
        note=_span_note(subject),
        parts=parts,
    )


def _span_note(subject: Subject) -> str:
    """Say of relative actions how much they span of the range in whose units they are measured."""
    share = (subject.in_own_units().unit / subject.unit)[subject.relative_dims]
    if not len(share):
        return ""
    low, high = f"{share.min():.0%}", f"{share.max():.0%}"
    spanned = low if low == high else f"{low} to {high}, dim by dim"
    return (
        "In half ranges of absolute actions, as errors are; of that range, the relative actions that it codes span "
        f"{spanned}."
    )


def nearest(points: Doubles, episode: Ints, others: Doubles, of: Ints) -> Ints:
    """Return for `points (n, k)` the nearest of `others (m, k)` from another episode, `(n,)`."""
    near = np.empty(len(points), np.int64)
    rows = max(1, VALUES // len(others))
    references = others.astype(np.float32)
    squares = (references**2).sum(1)
    for start in range(0, len(points), rows):
        block = slice(start, start + rows)
        # up to a constant per point; float32 will do to choose
        distance = squares - 2 * (points[block].astype(np.float32) @ references.T)
        distance[episode[block, None] == of] = np.inf
        near[block] = distance.argmin(1)
    return near


@dataclass(frozen=True)
class _Points:
    """Recorded actions to search from: steps `(m, 1, d)` where steps are coded alone, else chunks `(m, t, d)`."""

    subject: Subject
    discrete: Bools
    values: Doubles
    episode: Ints

    @classmethod
    def of(cls, subject: Subject, discrete: Bools, rng: np.random.Generator) -> "_Points":
        t, d = subject.actions.shape[1:]
        if subject.steps_alone:
            chunk, step = np.nonzero(subject.real)
            at = rng.choice(len(chunk), min(len(chunk), 4096, max(64, VALUES // d)), replace=False)
            return cls(subject, discrete, subject.actions[chunk[at], step[at]][:, None], subject.episode[chunk[at]])
        rows = subject.sample(min(1024, max(64, VALUES // (t * d))), rng)
        return cls(subject, discrete, subject.actions[rows], subject.episode[rows])

    def quantize(self, values: Doubles) -> Doubles:
        """Return decoded `values (k, p, d)`."""
        return quantized(self.subject, values * self.subject.unit)

    def between(self, a: Doubles, b: Doubles, share: Doubles) -> Doubles:
        """Return what lies between `a` and `b (..., p, d)`, switches as in `a`."""
        return np.where(self.discrete, a, a * (1 - share) + b * share)


def _curve(points: _Points, steps: int, rng: np.random.Generator) -> dict[str, list[float]]:
    """Return quantiles of the jump against the length of the move; `steps` 1: all steps move alike."""
    m, _, d = points.values.shape
    base = points.quantize(points.values)
    way = rng.standard_normal((DRAWS, m, steps, d)) * points.subject.moving
    way /= np.maximum(np.linalg.norm(way, axis=-1, keepdims=True), np.finfo(float).tiny)
    curve: dict[str, list[float]] = {"median": [], "q99": [], "largest": []}
    for eta in MODULUS_ETAS:
        jump = np.stack([size(points.quantize(points.values + eta * w) - base) for w in way])
        median, q99 = np.quantile(jump, [0.5, 0.99])
        for name, value in zip(curve, (median, q99, jump.max()), strict=True):
            curve[name].append(float(value))
    return curve


def _search(points: _Points, rng: np.random.Generator) -> tuple[dict[str, float], int]:
    """Return the largest excess jump found among pairs of each kind, and the number of pairs."""
    found: dict[str, float] = {}
    best: list[tuple[Doubles, Doubles]] = []
    n = 0
    for kind, a, b, qa, qb in _pairs(points, rng):
        excess = size(qb - qa) - size(b - a)
        found[kind] = max(found.get(kind, 0.0), float(excess.max()))
        top = np.argsort(excess)[-KEPT:]
        best.append((a[top], b[top]))
        n += len(excess)
    found["bisection"] = _bisect(points, *(np.concatenate(side) for side in zip(*best, strict=True)))
    return found, n


def _pairs(points: _Points, rng: np.random.Generator) -> Iterator[tuple[str, Doubles, Doubles, Doubles, Doubles]]:
    """Yield pairs of actions `(k, p, d)` of one kind with their decoded actions."""
    x, episode = points.values, points.episode
    m, p, d = x.shape
    q = points.quantize(x)
    for eta in SIZES:
        for kind, steps in (("noise", p), ("offset", 1))[: 1 + (p > 1)]:
            moved = x + np.where(points.discrete, 0.0, rng.uniform(-eta, eta, (m, steps, d)))
            yield kind, x, moved, q, points.quantize(moved)
    if len(np.unique(episode)) > 1:
        few = rng.choice(m, min(m, 2048), replace=False)
        flat = x.reshape(m, -1)
        near = few[nearest(flat, episode, flat[few], episode[few])]
        yield "neighbour", x, x[near], q, q[near]
    ends = rng.integers(0, m, (2, max(4, m // STOPS)))
    lines = points.between(x[ends[0], None], x[ends[1], None], np.linspace(0, 1, STOPS)[:, None, None])
    decoded = points.quantize(lines.reshape(-1, p, d)).reshape(lines.shape)
    for lag in LAGS:
        a, b, qa, qb = (v.reshape(-1, p, d) for side in (lines, decoded) for v in (side[:, :-lag], side[:, lag:]))
        yield "hull", a, b, qa, qb


def _bisect(points: _Points, a: Doubles, b: Doubles) -> float:
    """Return the largest excess jump met while halving the way from `a` to `b (k, p, d)` towards the larger jump.

    The excess of a whole is at most that of its halves together, and a border is a jump that needs no way at all.
    """
    qa, qb = points.quantize(a), points.quantize(b)
    largest = 0.0
    for _ in range(HALVINGS):
        c = points.between(a, b, np.array(0.5))
        qc = points.quantize(c)
        left, right = size(qc - qa) - size(c - a), size(qb - qc) - size(b - c)
        largest = max(largest, float(left.max()), float(right.max()))
        first = (left >= right)[:, None, None]
        a, b, qa, qb = np.where(first, a, c), np.where(first, c, b), np.where(first, qa, qc), np.where(first, qc, qb)
    return largest


class _Known(NamedTuple):
    """The excess jumps of scalar cells, each `(d,)`.

    Attributes:
        whole: inside the range. Beyond it actions are clipped, and clipping takes nothing closer together than it was.
        per_dim: the same, of switches between their recorded values.
        borders: the largest jump at a border, where no distance is spent; 0 of switches.
    """

    whole: Doubles
    per_dim: Doubles
    borders: Doubles


def _known(subject: Subject, frame: Frame, discrete: Bools) -> _Known | None:
    cells = subject.tokenizer.scalar_cells()
    if cells is None:
        return None
    whole, borders = np.zeros((2, len(frame.half)))
    for j, (edges, centres) in enumerate(zip(cells.edges, cells.centres, strict=True)):
        e, c = (values.double().cpu().numpy() for values in (edges, centres))
        inside = (e > frame.first[j]) & (e <= frame.last[j])
        whole[j] = scalar_excess_jump(e, c, frame.first[j], frame.last[j]) * frame.half[j]
        borders[j] = np.abs(np.diff(c)[inside]).max(initial=0.0) * frame.half[j]
    recorded, decoded = subject.actions[subject.real], subject.decoded[subject.real] / subject.unit
    per_dim = [_between(recorded[:, j], decoded[:, j]) if discrete[j] else whole[j] for j in range(len(whole))]
    return _Known(whole, np.array(per_dim), np.where(discrete, 0.0, borders))


def _between(recorded: Doubles, decoded: Doubles) -> float:
    """Return the largest excess jump between the values of a switch, `(n,)`."""
    levels, at = np.unique(recorded, return_index=True)
    far, near = (np.abs(values[:, None] - values) for values in (decoded[at], levels))
    return float((far - near).max())  # a value and itself: 0


def _against(value: float, subject: Subject, sup: float | None) -> dict[str, Any]:
    mean = subject.mean_error
    return {
        "least_sup": value / 2,
        "over_twice_mean": value / (2 * mean) if mean > 0 else None,
        "over_twice_sup": value / (2 * sup) if sup else None,
        # a thousandth for float32
        "disproves_sup": None if sup is None else value > 2 * sup * (1 + 1e-3),
    }
