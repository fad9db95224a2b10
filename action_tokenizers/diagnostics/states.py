"""What pairs of recorded states and actions say about the tokenized policy, without any policy.

A policy is smooth (Cao & Xie 2026, Def 4) where near states have near decoded actions, up to a scale and a
probability. Demonstrations show it only at pairs of `Places`, states of different episodes. Nothing here is a
certificate for states nobody recorded. How far is far counts in half ranges, of relative actions in half spans of
these (`Subject.in_own_units`): in the range of absolute ones none of them might be far from any other.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from action_tokenizers.diagnostics.expert import Models, expert_lipschitz, expert_spread
from action_tokenizers.diagnostics.kernels import kernel_slope, neighbour_tv
from action_tokenizers.diagnostics.measure import Estimator, Kind, Measure, bootstrap_t, clopper_pearson
from action_tokenizers.diagnostics.places import SAME, Pairs, Places, norm
from action_tokenizers.diagnostics.subject import Subject

__all__ = ["ESTIMATORS", "pair_violation", "state_measures", "tv_lower"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

FACTORS = (3, 5, 10)  # scales of jumps, times the mean error
LEAST_ERROR = 0.02  # half ranges: a mean error near 0 must not turn every jump into a violation
ANCHORS = 100
MOST_CENTRES = 1000
LEAST_VISITS = 5
MOST_VISITS = 64  # of a set that the search compares: bounds its cost, whatever the number of episodes
VISITING = (0.5, 0.9)
CLIPPED = 0.975  # level of each of two intervals that hold together at LEVEL

PAIRS_CAUTION = (
    "States that look alike may differ in what was not recorded (images, contact): then equal states have different "
    "actions, and the tokenizer is not to blame. An average over recorded pairs, not a bound for all states."
)

EXCESS = Estimator(
    "excess_violation",
    "jumps between neighbouring states that the tokenizer adds",
    "share of pairs",
    (Kind.PROXY,),
    "In nearest recorded states of different episodes: how much more often the decoded actions lie far apart than the "
    "recorded ones.",
    PAIRS_CAUTION,
    "Well above 0: the tokenizer tears neighbouring actions apart; use finer or more regular cells.",
    "Cao & Xie 2026, Def 4 and Prop 5",
    "states.pair_violation",
    "test_states.py::test_trap_jumps_across_its_border_at_every_spacing",
)
VIOLATION = Estimator(
    "pair_violation",
    "jumps between neighbouring states",
    "share of pairs",
    (Kind.UPPER, Kind.PROXY),
    "In nearest recorded states of different episodes: how often the decoded actions lie far apart. For a "
    "deterministic expert it is the average of the cost that defines smoothness; for a random one it is larger.",
    PAIRS_CAUTION,
    "Compare with the recorded actions: what they show as well is the expert's own choice, not the tokenizer's fault.",
    "Cao & Xie 2026, Def 4",
    "states.pair_violation",
    "test_states.py::test_width_eps_bins_have_no_violation_and_wide_ones_have_many",
)
LOWER = Estimator(
    "tv_lower",
    "jump between neighbouring states that is certain",
    "probability",
    (Kind.LOWER,),
    "A part of the tokenized expert's actions in one small set of states that certainly has no counterpart nearby in a "
    "neighbouring set: no way of pairing the two keeps all jumps small.",
    "It is the lower end of an interval, which holds 95 % of the time: what was seen is more (`difference`). Only one "
    "pair of sets, found on half of the episodes, is tested on the other half; it counts the expert's own jumps too. "
    "Zero proves nothing.",
    "Compare `difference` with `recorded`, that of the recorded actions; where only the decoded ones jump, use finer "
    "cells.",
    "Strassen 1965; Cao & Xie 2026, Def 4",
    "states.tv_lower",
    "test_states.py::test_tv_lower_certifies_the_trap",
)
ESTIMATORS: tuple[Estimator, ...] = (EXCESS, VIOLATION, LOWER)


def state_measures(subject: Subject, states: Sequence[npt.NDArray[Any]], seed: int = 0) -> list[Measure]:
    """Return every measure that needs no more than recorded states and actions: of the expert, of pairs, of tokens.

    Args:
        subject: the tokenizer on the episodes.
        states: `(t_i, ds)` per episode of `subject.episodes`, in any scale.
        seed: of everything drawn.
    """
    places = Places.of(subject, states, seed)
    models = Models(places)
    return [
        expert_spread(models),
        expert_lipschitz(models),
        *pair_violation(places),
        kernel_slope(places),
        neighbour_tv(places),
        tv_lower(places),
    ]


def pair_violation(
    places: Places, *, scales: Sequence[float] | None = None, phase: float | None = None
) -> tuple[Measure, Measure]:
    """Return how often actions of neighbouring states lie far apart: what the tokenizer adds, and in all.

    Args:
        places: of the tokenized policy.
        scales: how far is far, in half ranges (relative actions: half spans); the middle one is the headline. None: 3,
            5 and 10 times the mean error, taken as at least 0.02.
        phase: compare only steps whose share of their episode gone by differs by at most this.

    Returns:
        `excess_violation` P(|q(u) - q(u')| > scale) - P(|u - u'| > scale) at the nearest neighbour of another episode,
        and `pair_violation`, its first term. `parts` of the first: `nearest` per scale, with `beyond`, the share whose
        decoded jump exceeds the recorded one by the scale; the `episodes` that have such a pair; the `largest` jumps (a
        lower bound of the largest there are). Of the second: `curve` by distance of the states. Of either, for relative
        actions, `of_relative`: their unit, and the mean error in it.
    """
    places = places.in_own_units()
    pairs = None if places.fault else Pairs.of(places, phase)
    if pairs is None or not pairs.nearest.any():
        note = places.fault or "No two episodes have steps of a similar phase."
        return EXCESS.measure(None, n=places.n, note=note), VIOLATION.measure(None, n=places.n, note=note)
    scales = _scales(places) if scales is None else list(scales)
    middle = len(scales) // 2
    jumps = {"recorded": pairs.jumps(places.actions), "decoded": pairs.jumps(places.decoded)}
    grown = jumps["decoded"] - jumps["recorded"]
    far = {name: values[:, None] > scales for name, values in jumps.items()}  # (p, scales)
    beyond, added = grown[:, None] > scales, far["decoded"].astype(np.float64) - far["recorded"]
    near = pairs.nearest
    shares = {**far, "excess": added, "beyond": beyond}
    distance = float(np.median(pairs.distance[near]))
    parts = {
        "scales": scales,
        "scale": scales[middle],
        "distance": distance,
        "nearest": {name: values[near].mean(0).tolist() for name, values in shares.items()},
    }
    hits = len(np.unique(places.episode[pairs.i[near & beyond[:, middle]]]))
    of_excess = {
        "mean_error": places.mean_error,
        "largest": {
            "kind": Kind.LOWER.value,
            **{name: float(values.max()) for name, values in {**jumps, "excess": grown}.items()},
        },
        "episodes": {
            "share": hits / places.episodes,
            "interval": list(clopper_pearson(hits, places.episodes)),
            "hits": hits,
        },
    }
    curve = _curve(places, pairs, jumps, far, middle)
    unit = _unit(places)
    note = f"Far apart is {scales[middle]:.3g} {unit} or more, neighbours are {distance:.3g} apart (median)."
    parts |= places.subject.told_in_own_units()
    return (
        _over_nearest(EXCESS, added[:, middle], -1.0, places, pairs, note, {**parts, **of_excess}),
        _over_nearest(VIOLATION, far["decoded"][:, middle], 0.0, places, pairs, note, {**parts, "curve": curve}),
    )


def _unit(places: Places) -> str:
    return "half spans of the relative actions" if places.subject.is_relative else "half ranges"


def _scales(places: Places) -> list[float]:
    return [factor * max(places.mean_error, LEAST_ERROR) for factor in FACTORS]


def _curve(
    places: Places, pairs: Pairs, jumps: dict[str, Floats], far: dict[str, Bools], middle: int
) -> dict[str, Any]:
    """Return means by distance `r` of the states: jumps, flips, shares that are far at the headline and every scale."""
    classes = pairs.classes()
    lines: dict[str, Floats | Bools] = {
        "r": pairs.distance,
        **{f"{name}_jump": values for name, values in jumps.items()},
        "flips": places.tokens[pairs.i] != places.tokens[pairs.j],
        **{name: values[:, middle] for name, values in far.items()},
    }
    return {
        "pairs": [int(c.sum()) for c in classes],
        **{name: [float(values[c].mean()) for c in classes] for name, values in lines.items()},
        "by_scale": {name: [values[c].mean(0).tolist() for c in classes] for name, values in far.items()},
    }


def _over_nearest(
    row: Estimator,
    values: Floats | Bools,
    least: float,
    places: Places,
    pairs: Pairs,
    note: str,
    parts: dict[str, Any],
) -> Measure:
    """Return the mean of `values (p,)`, within `least..1`, over nearest pairs, each of which is of two episodes."""
    near = values[pairs.nearest].astype(np.float64)
    sides = [places.episode[side[pairs.nearest]] for side in (pairs.i, pairs.j)]
    interval, method = _interval(near, sides, places.episodes, places.seed)
    if interval is not None:
        interval = (max(least, interval[0]), min(1.0, interval[1]))
    n = {**places.n, "pairs": len(values)}
    return row.measure(float(near.mean()), interval=interval, method=method, n=n, note=note, parts=parts)


def _interval(
    values: Floats, sides: list[Ints], episodes: int, seed: int
) -> tuple[tuple[float, float] | None, str | None]:
    """Return the interval of the mean of `values (p,)` over pairs of episodes, `sides`, and how it was made."""
    if (values == values[0]).all():
        # what no episode showed is no more frequent than an episode that shows it
        miss, value = clopper_pearson(0, episodes)[1], float(values[0])
        return (value - miss, value + miss), "Clopper-Pearson over episodes: all pairs agree"
    count = np.bincount(np.concatenate(sides), minlength=episodes)
    if (count == len(values)).any():
        return None, None  # without that episode nothing is left
    total = np.bincount(np.concatenate(sides), np.tile(values, 2), episodes)
    left = (values.sum() - total) / (len(values) - count)
    found = bootstrap_t(episodes * values.mean() - (episodes - 1) * left, seed=seed)
    return found, None if found is None else "bootstrap-t over jackknife values of episodes"


def tv_lower(places: Places, *, scale: float | None = None) -> Measure:
    """Return what P(A) - Q(A^scale) surely is, for sets of states and actions chosen on other episodes; LOWER.

    By Strassen's theorem every coupling of the decoded actions P in one set of states and Q in a neighbouring set puts
    at least this much probability on jumps beyond `scale`, so that a policy smooth at that scale has a modulus of at
    least this at the distance of the sets. An episode counts once per set, with its first visit.

    Args:
        places: of the tokenized policy, to search.
        scale: half ranges (relative actions: half spans); None: 5 times the mean error, taken as at least 0.02.

    Returns:
        The lower end of the guaranteed interval of the difference, on the episodes that were not searched, at least 0;
        `parts`: the `difference` seen there, `inside` less `beside`, which chance alone can make positive; `recorded`,
        the same of the recorded actions, at least 0; `distance` (no two states of the sets are farther apart) and
        `scale`.
    """
    least, places = 4 * LEAST_VISITS, places.in_own_units()
    if places.fault or places.episodes < least:
        note = places.fault or f"Needs {least} episodes, got {places.episodes}: half to search, half to test."
        return LOWER.measure(None, n=places.n, note=note)
    scale = _scales(places)[1] if scale is None else scale
    random = np.random.default_rng(places.seed)
    searched = np.zeros(places.episodes, bool)
    searched[random.permutation(places.episodes)[: places.episodes // 2]] = True
    found = _search(places, searched, scale, random)
    if found is None:
        return LOWER.measure(None, n=places.n, note="No small set of states is visited by enough episodes.")
    sets, members = found
    # the first visits among all steps: which steps were sampled depends on how long an episode went on
    whole = places.whole
    visits = sets.visits(whole, ~np.isin(whole.members, places.members[searched]))
    p, q = (len(rows) for rows in visits)
    if min(p, q) == 0:
        return LOWER.measure(None, n=places.n, note="No other episode visits the sets of states that were found.")
    inside, beside = _hits(whole.decoded, visits, members, scale)
    recorded = _hits(whole.actions, visits, members, scale)
    low_p, high_p = clopper_pearson(inside, p, CLIPPED)
    low_q, high_q = clopper_pearson(beside, q, CLIPPED)
    certain = max(0.0, low_p - high_q)
    return LOWER.measure(
        certain,
        interval=(certain, max(0.0, high_p - low_q)),
        method="Clopper-Pearson of both probabilities, together",
        n={**places.n, "visits": p, "other_visits": q},
        note=f"Of jumps beyond {scale:.3g} {_unit(places)}, between states at most {2 * sets.radius:.3g} apart.",
        parts={
            "distance": 2 * sets.radius,
            "scale": scale,
            "difference": inside / p - beside / q,
            "inside": inside / p,
            "beside": beside / q,
            "recorded": max(0.0, recorded[0] / p - recorded[1] / q),
        },
    )


class _Sets(NamedTuple):
    """Two neighbouring sets of states: the halves of a ball.

    Attributes:
        centre: `(ds,)`.
        direction: `(ds,)` from the first half, to which the centre belongs, to the other.
        radius: of the ball.
    """

    centre: Floats
    direction: Floats
    radius: float

    def visits(self, places: Places, chosen: Bools) -> tuple[Ints, Ints]:
        """Return for either set the place of the first visit of each of the `chosen (e,)` episodes."""
        rows = np.flatnonzero(chosen[places.episode])
        way = places.states[rows] - self.centre
        inside, beyond = np.linalg.norm(way, axis=1) <= self.radius, way @ self.direction > 0
        first = [
            rows[side][np.unique(places.episode[rows[side]], return_index=True)[1]]
            for side in (inside & ~beyond, inside & beyond)
        ]
        return first[0], first[1]


def _search(places: Places, searched: Bools, scale: float, random: np.random.Generator) -> tuple[_Sets, Floats] | None:
    """Return the two sets of states, and the centres of the set of actions, that differ most in `searched` episodes."""
    from scipy.spatial.distance import cdist

    own = np.flatnonzero(searched[places.episode])
    centres = random.permutation(own)[:MOST_CENTRES]
    distance = cdist(places.states[centres], places.states[own])
    starts = np.flatnonzero(np.diff(places.episode[own], prepend=-1))
    # of a ball of this radius half, or most, of the episodes come by
    radii = np.quantile(np.minimum.reduceat(distance, starts, axis=1), VISITING, axis=1)
    best, found = 0.0, None
    for c in _torn(places, searched, centres, radii[0], scale):
        jumps = norm(places.decoded[own] - places.decoded[centres[c]]) > scale
        for radius in radii[:, c].tolist():
            around = (distance[c] <= radius) & (distance[c] > SAME)
            # a way to where the actions are others, if there is one
            ways = around & jumps if (around & jumps).any() else around
            for other in random.permutation(own[ways])[:2].tolist():
                sets = _Sets(places.states[centres[c]], places.states[other] - places.states[centres[c]], radius)
                one, two = sets.visits(places, searched)
                if min(len(one), len(two)) < LEAST_VISITS:
                    continue
                one, two = (_some(rows, random) for rows in (one, two))
                gain, members = _differing(places.decoded[one], places.decoded[two], scale)
                # less what chance may have given, and the less the farther apart: 1 is any two states
                chance = 0.5 * (len(one) ** -0.5 + len(two) ** -0.5)
                worth = gain - chance - radius / (2 * len(places.scale)) ** 0.5
                if found is None or worth > best:
                    best, found = worth, (sets, members)
    return found


def _torn(places: Places, searched: Bools, centres: Ints, radii: Floats, scale: float) -> list[int]:
    """Return which of `centres` to look at: where neighbours disagree most, then where they are closest."""
    near = places.nearest[0][centres][:, : places.reach]
    jumps = np.stack([norm(places.decoded[centres] - places.decoded[near[:, r]]) for r in range(near.shape[1])], 1)
    heard = searched[places.episode[near]]
    share = ((jumps > scale) & heard).sum(1) / np.maximum(heard.sum(1), 1)
    order = np.lexsort((radii, -np.round(np.minimum(share, 1 - share), 1)))
    return [int(c) for c in order[radii[order] > SAME][:ANCHORS]]


def _some(rows: Ints, random: np.random.Generator) -> Ints:
    """Return at most `MOST_VISITS` of the rows, ascending."""
    return rows if len(rows) <= MOST_VISITS else np.sort(random.choice(rows, MOST_VISITS, replace=False))


def _differing(p: Floats, q: Floats, scale: float) -> tuple[float, Floats]:
    """Return P(A) - Q(A^scale) on samples `(m, t, d)`, and the actions around which A is, at least one.

    A is all actions within half a scale of some centres: of the best alone, then of those that add to it.
    """
    in_p, in_q = _apart(p, p) <= scale / 2, _apart(p, q) <= 1.5 * scale
    alone = in_p.mean(1) - in_q.mean(1)
    order = np.argsort(-alone, kind="stable")
    kept, gain = [int(order[0])], float(alone[order[0]])
    all_p, all_q = in_p[order[0]], in_q[order[0]]
    for candidate in order[1:][alone[order[1:]] > 0].tolist():
        with_p, with_q = all_p | in_p[candidate], all_q | in_q[candidate]
        value = float(with_p.mean() - with_q.mean())
        if value > gain:
            kept, gain, all_p, all_q = [*kept, candidate], value, with_p, with_q
    return gain, p[kept]


def _apart(p: Floats, q: Floats) -> Floats:
    """Return the `norm` of the difference of each of `p (m, t, d)` and each of `q (n, t, d)`, `(m, n)`."""
    from scipy.spatial.distance import cdist

    largest = np.zeros((len(p), len(q)))
    # step by step: the differences of all steps at once are t d times as much memory
    for h in range(p.shape[1]):
        np.maximum(largest, cdist(p[:, h], q[:, h], "sqeuclidean"), out=largest)
    return np.sqrt(largest, out=largest)


def _hits(values: Floats, visits: tuple[Ints, Ints], members: Floats, scale: float) -> list[int]:
    """Return how many of the first visits are in A, and how many of the second ones within `scale` of A."""
    return [
        int((_apart(values[rows], members).min(1) <= reach).sum())
        for rows, reach in zip(visits, (scale / 2, 1.5 * scale), strict=True)
    ]
