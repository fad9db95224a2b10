"""What recorded states and actions say about the expert alone: how far its actions scatter, how steep it is.

Both come from simple models that predict an action from the states and actions of other episodes.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from action_tokenizers.diagnostics.measure import LEVEL, Estimator, Kind, Measure, bootstrap_t
from action_tokenizers.diagnostics.places import FEW_NEIGHBOURS, SAME, Pairs, Places, blocks

__all__ = ["ESTIMATORS", "Models", "expert_lipschitz", "expert_spread", "spread_of"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# local fits: ridge over the mean variance per direction
FITS = {"local": 0.01, "local_drawn": 0.1, "local_near_linear": 1.0}
FOLDS = 10
RESAMPLES = 500
STEEP = 0.95  # which quantile of the slopes

SPREAD = Estimator(
    "expert_spread",
    "spread of the expert's actions in one state",
    "half range",
    (Kind.UPPER,),
    "How far actions scatter, per coordinate, that were recorded in the same state: the smallest prediction error of a "
    "few simple models on episodes they have not seen.",
    "Too large where states were recorded sparsely or hide something: small proves a nearly deterministic expert, "
    "large proves nothing.",
    "Of a nearly deterministic expert, trust no tokenizer with large jumps: prefer uniform bins, or record with noise.",
    "Cao & Xie 2026, Thm 2, Thm 3 and Thm 6",
    "expert.expert_spread",
    "test_expert.py::test_spread_of_a_gaussian_expert_is_its_sigma",
)
LIPSCHITZ = Estimator(
    "expert_lipschitz",
    "steepness of the expert",
    "half range per standard deviation of the states",
    (Kind.PROXY,),
    "How fast the expert's action changes with the state: the 95 % quantile of the slopes of local linear fits.",
    "Scatter of the actions inflates it, the more the closer the states; what no neighbouring episode shows is "
    "missing.",
    "A steep expert needs finer cells for the same smoothness: compare with the spacing of the tokenizer's cells.",
    "Cao & Xie 2026, Prop 5",
    "expert.expert_lipschitz",
    "test_expert.py::test_lipschitz_of_a_linear_expert",
)
ESTIMATORS: tuple[Estimator, ...] = (SPREAD, LIPSCHITZ)


class _Fit(NamedTuple):
    """Linear fits to the neighbours of some places.

    Attributes:
        centre: `(b, 1, ds)` mean state of the neighbours.
        level: `(b, 1, d)` mean action.
        slope: `(b, ds, d)`.
        size: `(b,)` mean square distance of the neighbours from their centre.
    """

    centre: Floats
    level: Floats
    slope: Floats
    size: Floats


class Models:
    """Simple models of the expert's single steps, each made from other episodes than it is asked about.

    Attributes:
        places: the steps (of relative actions: the first of each chunk).
        actions: `(n, d)` theirs, in units.
    """

    def __init__(self, places: Places) -> None:
        self.places = places.steps
        self.actions: Floats = self.places.actions[:, 0]

    @cached_property
    def predicted(self) -> dict[str, Floats]:
        """What each model says of the actions, `(n, d)`; `nearest` is one of them."""
        index = self.places.nearest[0]
        few = index[:, : min(FEW_NEIGHBOURS, self.places.reach)]
        found = {
            "nearest": self.actions[index[:, 0]],
            "neighbours": self.actions[few].mean(1),
            "linear": np.einsum("ns,nsd->nd", self._x, self._lines[self._fold]),
            **{name: self._local(ridge) for name, ridge in FITS.items()},
        }
        # no action lies outside the range of actions, whatever a line says
        return {name: values.clip(self.actions.min(0), self.actions.max(0)) for name, values in found.items()}

    @cached_property
    def squares(self) -> dict[str, Floats]:
        """The mean square error of each model per episode, `(e, d)`."""
        return {name: self.places.per_episode((self.actions - p) ** 2) for name, p in self.predicted.items()}

    @cached_property
    def slopes(self) -> Floats:
        """Largest slopes of the local fits that predict best, standardised and raw, `(2, n)`; NaN: all the same."""
        best = min(FITS, key=lambda name: float(self.squares[name].mean()))
        slopes = np.empty((2, len(self.places)))
        for rows, fit in self._fits(FITS[best]):
            for j, slope in enumerate((fit.slope, fit.slope / self.places.scale[:, None])):
                slopes[j, rows] = np.where(fit.size > SAME**2, _largest_slope(slope), np.nan)
        return slopes

    @cached_property
    def _x(self) -> Floats:
        states = self.places.states
        return np.concatenate([states - states.mean(0), np.ones((len(states), 1))], 1)

    @cached_property
    def _fold(self) -> Ints:
        """`(n,)` whole episodes are folded."""
        return self.places.episode % min(FOLDS, self.places.episodes)

    @cached_property
    def _lines(self) -> Floats:
        """One linear fit per fold to all other folds, `(f, ds + 1, d)`, the level last."""
        own = [self._fold == f for f in range(self._fold.max() + 1)]
        gram = np.stack([self._x[o].T @ self._x[o] for o in own])
        right = np.stack([self._x[o].T @ self.actions[o] for o in own])
        ridge = 1e-4 * np.eye(gram.shape[1])
        ridge[-1, -1] = 0  # the level is free
        others = np.array([(~o).sum() for o in own])[:, None, None]
        return np.linalg.solve(gram.sum(0) - gram + others * ridge, right.sum(0) - right)

    def _local(self, ridge: float) -> Floats:
        """Return what the local fits predict, `(n, d)`."""
        predicted = np.empty_like(self.actions)
        for rows, fit in self._fits(ridge):
            predicted[rows] = (fit.level + (self.places.states[rows, None] - fit.centre) @ fit.slope)[:, 0]
        return predicted

    def _fits(self, ridge: float) -> Iterator[tuple[slice, _Fit]]:
        """Yield in blocks linear fits to the neighbours of each place, drawn towards the one linear fit."""
        index, k, states = self.places.nearest[0], self.places.reach, self.places.states
        common = self._lines[:, :-1]
        for rows in blocks(len(states), k * (k + states.shape[1] + self.actions.shape[1]) + common[0].size):
            near, start = index[rows, :k], common[self._fold[rows]]
            x, u = states[near], self.actions[near]
            centre, level = x.mean(1, keepdims=True), u.mean(1, keepdims=True)
            x = x - centre
            gram = x @ x.transpose(0, 2, 1)
            size = np.trace(gram, axis1=1, axis2=2)
            added = np.where(size > 0, ridge * size / min(k, x.shape[2]), 1.0)
            # in the space of the k neighbours: as many unknowns whatever the number of state dims
            weights = np.linalg.solve(gram + added[:, None, None] * np.eye(k), u - level - x @ start)
            yield rows, _Fit(centre, level, start + x.transpose(0, 2, 1) @ weights, size / k)


def expert_spread(models: Models) -> Measure:
    """Return the standard deviation of the action given the state, per coordinate; UPPER.

    The errors of local linear fits, of means of neighbours, of one linear fit, and of the nearest neighbour (over
    sqrt 2), each made from other episodes only, are all at least the conditional standard deviation in expectation; the
    smallest is reported.

    Args:
        models: of the recorded actions.

    Returns:
        The root mean square over the dims that move; `parts`: `models`, `per_dim` (None: never moves), `model` that
        won, median `distance` to the nearest neighbour; `of_relative`: the same in half spans of relative actions, the
        unit of the smoothness alarm, where the tokenizer codes such, of the model that wins there.
    """
    places = models.places
    if places.fault:
        return SPREAD.measure(None, n=places.n, note=places.fault)
    moving = np.ptp(models.actions, axis=0) > 0
    if not moving.any():
        return SPREAD.measure(0.0, n=places.n, note="The recorded actions never change.")
    # the nearest one scatters as much as what it predicts
    squares = {name: values / 2 if name == "nearest" else values for name, values in models.squares.items()}
    roots = {name: float(np.sqrt(values[:, moving].mean())) for name, values in squares.items()}
    best = min(roots, key=lambda name: roots[name])
    per_dim = np.sqrt(squares[best].mean(0))
    interval = bootstrap_t(squares[best][:, moving].mean(1), seed=places.seed)
    return SPREAD.measure(
        roots[best],
        interval=None if interval is None else (max(0.0, interval[0]) ** 0.5, max(0.0, interval[1]) ** 0.5),
        method="bootstrap-t over episodes, of the mean square",
        n=places.n,
        parts={
            "models": roots,
            "model": best,
            "per_dim": [float(v) if m else None for v, m in zip(per_dim, moving, strict=True)],
            "distance": float(np.median(places.nearest[1][:, 0])),
            **_of_relative(places, squares, moving),
        },
    )


def _of_relative(places: Places, squares: dict[str, Floats], moving: Bools) -> dict[str, float]:
    """Return the least root of the mean of `squares`, each `(e, d)`, in the units of what is coded if these are others.

    Another model may win there: dims that span little of the range count for more.
    """
    if not places.subject.is_relative:
        return {}
    wider = (places.subject.unit / places.subject.in_own_units().unit)[moving]
    return {"of_relative": min(float(np.sqrt((s[:, moving] * wider**2).mean())) for s in squares.values())}


def spread_of(measures: Mapping[str, Measure]) -> float | None:
    """Return how far the expert's actions scatter, in the unit of the smoothness alarm; None where not measured."""
    found = measures.get("expert_spread")
    spread: float | None = None if found is None else found.parts.get("of_relative", found.value)
    return spread


def expert_lipschitz(models: Models) -> Measure:
    """Return how many half ranges the action moves per standard deviation of the state; PROXY.

    Args:
        models: of the recorded actions.

    Returns:
        The 95 % quantile of the largest slopes of local linear fits; `parts`: `raw` (the same per unit of the states as
        recorded) with its `raw_interval`, `quantiles` of the slopes, `scale` (median radius of a fit), and `pairs`,
        quantiles of |du| / |dx| of pairs by distance.
    """
    places = models.places
    if places.fault:
        return LIPSCHITZ.measure(None, n=places.n, note=places.fault)
    slope, raw = models.slopes
    known = np.isfinite(slope)
    if not known.any():
        return LIPSCHITZ.measure(None, n=places.n, note="No state has a neighbour that differs from it.")
    value, interval = _steepest(slope[known], places.episode[known], places.seed)
    raw_value, raw_interval = _steepest(raw[known], places.episode[known], places.seed)
    pairs = Pairs.of(places)
    pairs = pairs.only(pairs.distance > SAME)
    ratio, classes = pairs.jumps(places.actions) / pairs.distance, pairs.classes()
    return LIPSCHITZ.measure(
        value,
        interval=interval,
        method="percentile bootstrap over episodes",
        n=places.n,
        parts={
            "raw": raw_value,
            "raw_interval": list(raw_interval),
            "quantiles": {str(q): float(np.quantile(slope[known], q)) for q in (0.5, 0.9, 0.95, 0.99)},
            "scale": float(np.median(places.nearest[1][:, places.reach - 1])),
            "pairs": {
                "distance": [float(pairs.distance[c].mean()) for c in classes],
                **{f"q{q:g}": [float(np.quantile(ratio[c], q / 100)) for c in classes] for q in (50, 95)},
                "max": [float(ratio[c].max()) for c in classes],
            },
        },
    )


def _steepest(slopes: Floats, episode: Ints, seed: int) -> tuple[float, tuple[float, float]]:
    """Return the upper quantile of `slopes (n,)` and its interval, drawing whole episodes anew."""
    order = np.argsort(slopes)
    _, members = np.unique(episode, return_inverse=True)
    count = int(members.max()) + 1
    random = np.random.default_rng(seed)
    times = random.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    below = times[:, members[order]].cumsum(1)
    drawn = slopes[order][(below >= STEEP * below[:, -1:]).argmax(1)]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(np.quantile(slopes, STEEP, method="inverted_cdf")), (float(low), float(high))


def _largest_slope(slopes: Floats) -> Floats:
    """Return the largest singular value of each `(b, ds, d)`."""
    flat = slopes if slopes.shape[1] >= slopes.shape[2] else slopes.transpose(0, 2, 1)
    largest = np.linalg.eigvalsh(flat.transpose(0, 2, 1) @ flat)[:, -1]
    return np.asarray(np.sqrt(np.maximum(largest, 0.0)))
