"""How far errors of actions move the state, by a linear rule fitted to recorded states.

The stand-in for a replay (`stability`) where there is no simulator, and only where the demonstrations can tell what
actions do apart from what the demonstrator does. With it, the gains of linear systems (Cao & Xie 2026, section 3).

States count in standard deviations, actions in half ranges (`Subject`).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from action_tokenizers.diagnostics.measure import Estimator, Kind, Measure
from action_tokenizers.diagnostics.subject import Subject

__all__ = [
    "ESTIMATORS",
    "Dynamics",
    "dynamics_measures",
    "fit_dynamics",
    "impulse_gain",
    "scalar_gain",
    "spectral_radius",
]

Floats = npt.NDArray[np.float64]

NEGLIGIBLE = 1e-6  # a spread below this share of the values is rounding of float32
ROUNDING = 1e-12  # likewise of float64
RIDGE = 1e-6  # of standardised columns: enough for exact copies, too little to be seen elsewhere
# Given the state the demonstrator must vary by 2 % of the range in every direction, or what actions do cannot be told
# apart from what states do: a curve of the dynamics would pass for an effect of actions. In half ranges.
LEAST_FREEDOM = 0.04
STEPS_PER_COLUMN = 5
NEIGHBOURS, QUERIES, POOL = 5, 1000, 4000
SUMMED = 512  # impulse responses summed one by one before the rest is taken to be geometric
BLOCK = 64
RESAMPLES = 100
SPANS = (16, 64, 256)

DYNAMICS_GAIN = Estimator(
    name="dynamics_gain",
    heading="gain of the dynamics (fitted)",
    unit="standard deviations of the state per half range",
    kinds=(Kind.PROXY,),
    meaning=(
        "How far the state moves at most when every action is off by one half range, if the recorded states moved "
        "by a linear rule (the sum of all responses to one push)."
    ),
    caution="A linear model of what was recorded: contacts, delays and what the state does not hold are not in it.",
    advice="Measure it by replay in a simulator where there is one.",
    source="Cao & Xie 2026, Def 3 (C / (1 - eta)); linear least squares",
    function="dynamics.dynamics_measures",
    test="test_dynamics.py::test_with_noise_in_the_actions_everything_is_found",
)
CLOSED_LOOP_GAIN = Estimator(
    name="closed_loop_gain",
    heading="gain under feedback (fitted)",
    unit="standard deviations of the state per half range",
    kinds=(Kind.PROXY,),
    meaning=(
        "The same with a policy in the loop that reacts to the state as the demonstrator does on average: "
        "how far the state moves at most when every executed action is off by one half range."
    ),
    caution=(
        "A linear model of dynamics and demonstrator. It speaks of a policy as smooth as that linear rule: "
        "a tokenizer that jumps between close actions breaks it."
    ),
    advice="Multiply it with the largest error: that is how far off the robot can be if the tokenizer is smooth.",
    source="Cao & Xie 2026, section 3 (A + BK); linear least squares",
    function="dynamics.dynamics_measures",
    test="test_dynamics.py::test_with_noise_in_the_actions_everything_is_found",
)

ESTIMATORS: tuple[Estimator, ...] = (DYNAMICS_GAIN, CLOSED_LOOP_GAIN)


@dataclass(frozen=True)
class Dynamics:
    """A linear rule x' = A x + B u + c of states in standard deviations and actions in half ranges.

    Attributes:
        A: `(k, k)`.
        B: `(k, d)`; what a dim does that never moved is not known, and 0 here.
        K: `(d, k)` how the demonstrator's actions go with the state, u = K x + c.
        closed: `(k, k)` how the next state goes with the state alone, A + B K: known also where A and B are not.
        centre: `(k,)` mean of the states.
        scale: `(k,)` standard deviation of the states; 1 where they never move.
        moving: `(d,)` which action dims ever move.
        spread: `(d,)` variance of each action dim that the state does not explain, in half ranges squared.
        freedom: how much the actions vary in one state, in the direction in which they do least: a standard deviation
            in half ranges, 0 for a demonstrator that is a function of the state.
        condition: condition number of states and actions together, which grows as they become functions of each
            other.
        unexplained: `(k,)` share of the variance of the next state that the rule leaves open.
        steps: number of steps it was fitted on.
    """

    A: Floats
    B: Floats
    K: Floats
    closed: Floats
    centre: Floats
    scale: Floats
    moving: npt.NDArray[np.bool_]
    spread: Floats
    freedom: float
    condition: float
    unexplained: Floats
    steps: int

    @property
    def refusal(self) -> str:
        """Why A and B cannot be told from the data, in words; empty where they can."""
        needed = STEPS_PER_COLUMN * (sum(self.B.shape) + 1)
        if self.steps < needed:
            return (
                f"{self.steps} steps are too few for {len(self.A)} states and {len(self.moving)} actions: at least "
                f"{needed}."
            )
        if not self.moving.any():
            return "No action ever moves, so that what actions do cannot be seen."
        if self.freedom < LEAST_FREEDOM:
            return (
                "The demonstrator's actions are almost a function of the state, or of each other (in the direction of "
                f"the least they vary by {self.freedom:.2g} half ranges of their own, and it takes {LEAST_FREEDOM}): "
                "what actions do cannot be told apart from what states do. Record with noise on the actions, or use a "
                "simulator."
            )
        return ""

    @property
    def gain(self) -> float:
        """`impulse_gain` of A and B; means nothing where there is a `refusal`."""
        return impulse_gain(self.A, self.B)

    @property
    def closed_gain(self) -> float:
        """`impulse_gain` of A + BK and B; means nothing where there is a `refusal`."""
        return impulse_gain(self.closed, self.B)


def fit_dynamics(states: Sequence[npt.NDArray[Any]], actions: Sequence[npt.NDArray[Any]], seed: int = 0) -> Dynamics:
    """Fit a linear rule by ridge regression on standardised states.

    Args:
        states: `(t_i, k)` per episode, each before the action of its step.
        actions: `(t_i, d)` per episode, in half ranges.
        seed: of the sample on which it is seen whether actions are a curved function of the state.
    """
    return _Regression.of(states, actions, seed).solve()


def impulse_gain(A: npt.ArrayLike, B: npt.ArrayLike, steps: int | None = None) -> float:
    """Return the sum of |A^j B| over all j, in spectral norms: the largest state per unit of a lasting action error.

    Args:
        A: `(k, k)`.
        B: `(k, d)`.
        steps: only the first so many terms: the largest state after that many steps.

    Returns:
        inf where A does not forget (an eigenvalue of modulus 1 or more), unless `steps` ends the sum.

    Example:
        >>> impulse_gain([[0.5]], [[1.0]]), impulse_gain([[2.0]], [[1.0]]), impulse_gain([[2.0]], [[1.0]], steps=4)
        (2.0, inf, 15.0)
    """
    a, response = np.atleast_2d(np.asarray(A, np.float64)), np.atleast_2d(np.asarray(B, np.float64))
    radius = spectral_radius(a)
    if steps is None and radius >= 1:
        return math.inf if response.any() else 0.0
    total, left = 0.0, SUMMED if steps is None else steps
    while left > 0:
        block = []
        with np.errstate(over="ignore", invalid="ignore"):
            for _ in range(min(left, BLOCK)):
                block.append(response)
                response = a @ response
        stacked = np.stack(block)
        if not np.isfinite(stacked).all():
            return math.inf
        sizes = np.linalg.svd(stacked, compute_uv=False)[:, 0]
        total, left = total + float(sizes.sum()), left - len(block)
        if sizes[-1] <= ROUNDING * total:
            left = 0
    return total if steps is not None else total + float(sizes[-1]) * radius / (1 - radius)


def spectral_radius(A: npt.ArrayLike) -> float:
    """Return the largest modulus of an eigenvalue of A `(k, k)`: below 1, the system forgets."""
    return float(np.abs(np.linalg.eigvals(np.atleast_2d(np.asarray(A, np.float64)))).max())


def scalar_gain(a: float, b: float) -> float:
    """Return `impulse_gain` of x' = a x + b u, |b| / (1 - |a|); inf where |a| >= 1.

    Example:
        >>> scalar_gain(0.5, 1.0)
        2.0
    """
    return abs(b) / (1 - abs(a)) if abs(a) < 1 else math.inf


def dynamics_measures(subject: Subject, states: Sequence[npt.NDArray[Any]], *, seed: int = 0) -> list[Measure]:
    """Return the gain of linear dynamics fitted to recorded states, open loop and under the demonstrator's feedback.

    Args:
        subject: the tokenizer on held-out episodes, of which only actions and units are used.
        states: `(t_i, k)` per episode of `subject.episodes`, each before the action of its step.
        seed: of the intervals.

    Returns:
        `dynamics_gain` and `closed_loop_gain`; without a value where the data cannot show what actions do.
    """
    pads = subject.episodes.padding
    # what follows the first step that was not recorded is no motion of the robot
    ends = [int(np.argmax(pad)) if pad.any() else len(pad) for pad in pads]
    moved = [a[:end] / subject.unit for a, end in zip(subject.episodes.actions, ends, strict=True)]
    regression = _Regression.of([x[:end] for x, end in zip(states, ends, strict=True)], moved, seed)
    fitted = regression.solve()
    n = {"episodes": int((regression.counts > 0).sum()), "steps": fitted.steps}
    parts = _describe(fitted)
    if fitted.refusal:
        padded = sum(end < len(pad) for end, pad in zip(ends, pads, strict=True))
        ended = f"An episode counts up to its first padded step: {padded} of {len(pads)} have one." if padded else ""
        note = f"{fitted.refusal} {ended}".strip()
        return [row.measure(None, n=n, note=note, parts=parts) for row in (DYNAMICS_GAIN, CLOSED_LOOP_GAIN)]
    drawn = list(regression.resampled(seed))
    made = []
    for row, matrix, gain, gains in (
        (DYNAMICS_GAIN, fitted.A, fitted.gain, [one.gain for one in drawn]),
        (CLOSED_LOOP_GAIN, fitted.closed, fitted.closed_gain, [one.closed_gain for one in drawn]),
    ):
        within = {str(span): impulse_gain(matrix, fitted.B, span) for span in SPANS}
        made.append(
            row.measure(
                gain,
                interval=_percentiles(gains),
                method="percentile bootstrap over episodes, 95 %" if gains else None,
                n=n,
                note=_note(fitted, matrix, gain, len(gains)),
                parts={**parts, "within": within},
            )
        )
    return made


def _note(fitted: Dynamics, matrix: Floats, gain: float, resamples: int) -> str:
    said = []
    still = np.flatnonzero(~fitted.moving).tolist()
    if still:
        said.append(f"Action dims {still} never move: what they do is not in it.")
    if not resamples:
        said.append("One episode has no interval.")
    if math.isinf(gain):
        said.append(
            f"The fitted system does not forget (largest eigenvalue {spectral_radius(matrix):.4f}): errors add up for "
            f"as long as an episode lasts, within {SPANS[0]} steps to {impulse_gain(matrix, fitted.B, SPANS[0]):.3g}."
        )
    return " ".join(said)


def _describe(fitted: Dynamics) -> dict[str, Any]:
    return {
        "freedom": fitted.freedom,
        "condition": fitted.condition,
        "conditional_variance": fitted.spread.tolist(),
        "unexplained": fitted.unexplained.tolist(),
        "demonstrator_slope": float(np.linalg.norm(fitted.K, 2)),
        "open_loop_radius": None if fitted.refusal else spectral_radius(fitted.A),
        "closed_loop_radius": spectral_radius(fitted.closed),
        "state_scale": fitted.scale.tolist(),
    }


def _percentiles(values: list[float]) -> tuple[float, float] | None:
    if not values:
        return None
    low, high = np.quantile(values, [0.025, 0.975], method="inverted_cdf")  # no mixing with infinity
    return float(low), float(high)


@dataclass(frozen=True)
class _Regression:
    """Sums of products of (1, states, actions; next states) per episode, from which any resample can be solved.

    Attributes:
        grams: `(e, p, p)` with p = 1 + k + d, all standardised.
        targets: `(e, p, k)` products with the next states.
        squares: `(e, k)` of the next states, around their mean.
        counts: `(e,)` steps.
        centre: `(k,)`.
        scale: `(k,)`.
        spread: `(d,)` standard deviation of the actions; 1 where they never move.
        moving: `(d,)`.
        curved: `(d, d)` covariance of the actions given the state, by neighbours; None for a single episode.
    """

    grams: Floats
    targets: Floats
    squares: Floats
    counts: Floats
    centre: Floats
    scale: Floats
    spread: Floats
    moving: npt.NDArray[np.bool_]
    curved: Floats | None

    @classmethod
    def of(cls, states: Sequence[npt.NDArray[Any]], actions: Sequence[npt.NDArray[Any]], seed: int) -> "_Regression":
        kept = [i for i, x in enumerate(states) if len(x) > 1] or [0]
        xs = [np.asarray(states[i], np.float64) for i in kept]
        us = [np.asarray(actions[i], np.float64)[:-1] for i in kept]
        centre, scale, _ = _standard(np.concatenate(xs))
        middle, spread, moving = _standard(np.concatenate(us))
        zs = [(x - centre) / scale for x in xs]
        vs = [(u - middle) / spread * moving for u in us]
        rows = [np.concatenate([np.ones((len(v), 1)), z[:-1], v], 1) for z, v in zip(zs, vs, strict=True)]
        return cls(
            grams=np.stack([row.T @ row for row in rows]),
            targets=np.stack([row.T @ z[1:] for row, z in zip(rows, zs, strict=True)]),
            squares=np.stack([(z[1:] ** 2).sum(0) for z in zs]),
            counts=np.array([len(row) for row in rows], np.float64),
            centre=centre,
            scale=scale,
            spread=spread,
            moving=moving,
            curved=_neighbour_covariance([z[:-1] for z in zs], vs, seed),
        )

    def solve(self, weights: Floats | None = None) -> Dynamics:
        """Fit the rule to the episodes, each taken `weights (e,)` times."""
        weights = np.ones(len(self.counts)) if weights is None else weights
        gram, target = np.tensordot(weights, self.grams, 1), np.tensordot(weights, self.targets, 1)
        steps = float(weights @ self.counts)
        count, k = max(steps, 1.0), len(self.scale)
        rule = _ridge(gram, target, count)
        habit = _ridge(gram[: k + 1, : k + 1], np.concatenate([gram[: k + 1, k + 1 :], target[: k + 1]], 1), count)
        K, closed = habit[1:, : len(self.spread)].T, habit[1:, len(self.spread) :].T
        own = (gram[k + 1 :, k + 1 :] - gram[k + 1 :, : k + 1] @ habit[:, : len(self.spread)]) / count
        residual = np.einsum("pk,pk->k", rule, 2 * target - gram @ rule)
        total = np.maximum(weights @ self.squares, np.finfo(np.float64).tiny)
        return Dynamics(
            A=rule[1 : k + 1].T,
            B=rule[k + 1 :].T / self.spread,
            K=K * self.spread[:, None],
            closed=closed,
            centre=self.centre,
            scale=self.scale,
            moving=self.moving,
            spread=np.maximum(np.diag(own), 0) * self.spread**2,
            freedom=self._freedom(own),
            condition=_condition(gram, count),
            unexplained=np.clip(1 - residual / total, 0, 1),
            steps=int(steps),
        )

    def resampled(self, seed: int) -> Iterator[Dynamics]:
        """Yield fits to episodes drawn with replacement; none of a single episode."""
        random, count = np.random.default_rng(seed), len(self.counts)
        for _ in range(RESAMPLES if count > 1 else 0):
            yield self.solve(np.bincount(random.integers(0, count, count), minlength=count).astype(np.float64))

    def _freedom(self, own: Floats) -> float:
        """Return the least spread of the moving actions given the state, by a line or by neighbours, in half ranges."""
        if not self.moving.any():
            return 0.0
        scale = np.outer(self.spread, self.spread)
        each = [(one * scale)[np.ix_(self.moving, self.moving)] for one in (own, self.curved) if one is not None]
        return math.sqrt(max(0.0, min(float(np.linalg.eigvalsh(one)[0]) for one in each)))


def _standard(values: Floats) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """Return mean and standard deviation of `values (n, k)`, 1 where it is rounding, and where it is not.

    Of no values at all nothing moves.
    """
    if not len(values):
        return np.zeros(values.shape[1]), np.ones(values.shape[1]), np.zeros(values.shape[1], np.bool_)
    mean, spread = values.mean(0), values.std(0)
    moving = spread > NEGLIGIBLE * np.maximum(np.abs(values).max(0), np.finfo(np.float32).tiny)
    return mean, np.where(moving, spread, 1.0), moving


def _ridge(gram: Floats, target: Floats, count: float) -> Floats:
    """Return the coefficients `(p, k)`; the first column of the features is the constant, and not shrunk."""
    penalty = np.full(len(gram), RIDGE * count)
    penalty[0] = 0 if gram[0, 0] else 1
    return np.asarray(np.linalg.solve(gram + np.diag(penalty), target))


def _condition(gram: Floats, count: float) -> float:
    """Return the condition number of the columns that move, without the constant."""
    mean = gram[0, 1:] / count
    covariance = gram[1:, 1:] / count - np.outer(mean, mean)
    moving = np.diag(covariance) > RIDGE
    if not moving.any():
        return 1.0
    values = np.linalg.eigvalsh(covariance[np.ix_(moving, moving)])
    return math.sqrt(values[-1] / values[0]) if values[0] > ROUNDING * values[-1] else math.inf


def _neighbour_covariance(states: list[Floats], actions: list[Floats], seed: int) -> Floats | None:
    """Return the covariance of actions given the state from neighbours in other episodes, `(d, d)`.

    A demonstrator may be a curved function of the state, which a line takes for noise. Neighbours are never quite at
    the same state, so this is too large, and the smaller of the two is the better one.
    """
    episode = np.repeat(np.arange(len(states)), [len(x) for x in states])
    if len(np.unique(episode)) < 2 or len(episode) < 10 * NEIGHBOURS:
        return None
    drawn = np.random.default_rng(seed).permutation(len(episode))[:POOL]
    x, u, owner = np.concatenate(states)[drawn], np.concatenate(actions)[drawn], episode[drawn]
    query = slice(0, min(QUERIES, len(drawn)))
    squared = (x[query] ** 2).sum(1)[:, None] - 2 * x[query] @ x.T + (x**2).sum(1)
    squared[owner[query][:, None] == owner] = np.inf
    nearest = np.argpartition(squared, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
    usable = np.isfinite(np.take_along_axis(squared, nearest, 1)).all(1)
    if usable.sum() < 10 * NEIGHBOURS:
        return None
    difference = (u[query] - u[nearest].mean(1))[usable]
    # a point and the mean of its neighbours both vary
    return np.asarray(difference.T @ difference / len(difference) * NEIGHBOURS / (NEIGHBOURS + 1))
