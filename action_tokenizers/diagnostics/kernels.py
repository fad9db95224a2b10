"""How fast the distribution of tokens changes from one recorded state to its neighbours, in total variation.

Every place shows one draw of its distribution, so that draws of places around it must do: weighted with a kernel, which
is smooth by itself, or counted, which differ by chance. Both are told beside the number.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from action_tokenizers.diagnostics.measure import Estimator, Kind, Measure
from action_tokenizers.diagnostics.places import FEW_NEIGHBOURS, NEIGHBOURS, SAME, Places, blocks

__all__ = [
    "ESTIMATORS",
    "PlugIn",
    "kernel_distributions",
    "kernel_slope",
    "neighbour_tv",
    "plugin_bias",
    "plugin_tv",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LEAST_SIGMA = 0.01
LEAST_DRAWS = 5  # around a place, of those who say what its distribution is
ANCHORS = 100
KERNEL_PAIRS = 500
SHUFFLES = 50

KERNEL = Estimator(
    "kernel_slope",
    "slope of smoothed token distributions",
    "total variation per standard deviation of the states",
    (Kind.PROXY,),
    "How fast the distribution of tokens, averaged over states around a point, changes as the point moves.",
    "Averaging over a width of sigma makes any policy look smooth, with a slope of at most about 0.4 / sigma: a slope "
    "near that ceiling says nothing about the policy, and where every step has a token of its own it always is there "
    "(or beyond, where states are uneven).",
    "Read the ratio to the ceiling: well below 1 at every sigma is good news, near 1 is no news.",
    "Block et al. 2023 (arXiv:2307.14619), Lemma 3.1",
    "kernels.kernel_slope",
    "test_kernels.py::test_kernel_slope_of_a_discontinuous_expert_is_the_ceiling",
)
NEIGHBOUR = Estimator(
    "neighbour_tv",
    "difference of the tokens of two neighbouring states",
    "total variation",
    (Kind.PROXY,),
    "How different the tokens are that other episodes use near one state and near a neighbour of it, beyond what "
    "equally many draws from one law would differ.",
    "One draw per episode and a small sample: with many different tokens the chance level is near 1 and hides "
    "everything.",
    "Look at the chance level beside it; with a large one record more episodes or use tv_lower.",
    "Cao & Xie 2026, total variation continuity",
    "kernels.neighbour_tv",
    "test_kernels.py::test_neighbour_tv_takes_chance_away",
)
ESTIMATORS: tuple[Estimator, ...] = (KERNEL, NEIGHBOUR)


def kernel_slope(places: Places, *, sigmas: Sequence[float] | None = None) -> Measure:
    """Return the largest slope of kernel-smoothed token distributions, beside the ceiling no policy exceeds; PROXY.

    Args:
        places: of the tokenized policy.
        sigmas: widths in standard deviations of the states, the middle one is the headline; None: 1, 2 and 4 times
            the median distance to the 8th neighbour.

    Returns:
        The headline; `parts`: per width `sigma`, `slope`, `q95`, `mean`, `ceiling`, `ratio` of slope and ceiling,
        `share` (mean slope over what it were if every place had a token of its own, at most 1) and `pairs`; and the
        number of `tokens` seen.
    """
    if places.fault:
        return KERNEL.measure(None, n=places.n, note=places.fault)
    index, distance = places.nearest
    eighth = distance[:, min(FEW_NEIGHBOURS, places.reach) - 1]
    spacing = max(LEAST_SIGMA, float(np.median(eighth)))
    i = np.random.default_rng(places.seed).permutation(len(places))[:KERNEL_PAIRS]
    # the nearest that is not in the very same state
    rank = (distance[i] > SAME).argmax(1)
    j, gap = index[i, rank], distance[i, rank]
    apart = (gap > SAME) & np.isfinite(gap)
    if not apart.any():
        return KERNEL.measure(None, n=places.n, note="No state has a neighbour that differs from it.")
    i, j, gap = i[apart], j[apart], gap[apart]
    widths = [spacing * factor for factor in (1, 2, 4)] if sigmas is None else sigmas
    rows = [_slopes(places, i, j, gap, sigma) for sigma in widths]
    middle = rows[len(rows) // 2]
    tokens = int(places.tokens.max()) + 1
    return KERNEL.measure(
        middle["slope"],
        n={**places.n, "pairs": len(i)},
        note=f"The ceiling is {middle['ceiling']:.3g}. {tokens} different tokens in {len(places)} places.",
        parts={**{name: [row[name] for row in rows] for name in middle}, "tokens": tokens},
    )


def _slopes(places: Places, i: Ints, j: Ints, gap: Floats, sigma: float) -> dict[str, Any]:
    """Return the slopes between places i and j at one width; episodes of either are left out."""
    found = []
    for rows in blocks(len(i), 4 * len(places)):
        sides = (i[rows], j[rows])
        other = np.all([places.episode != places.episode[side, None] for side in sides], axis=0)
        weights = [_weights(places.states, places.states[side], sigma) * other for side in sides]
        # a place with next to nobody around it has no distribution
        heard = np.all([w.sum(1) ** 2 > LEAST_DRAWS * (w**2).sum(1) for w in weights], axis=0)
        p, q = (w[heard] / w[heard].sum(1, keepdims=True) for w in weights)
        by_token = _total_variation(_by_token(p, places.tokens), _by_token(q, places.tokens))
        found.append(np.stack([by_token, _total_variation(p, q)]) / gap[rows][heard])
    slope, own = np.concatenate(found, axis=1)
    ceiling = 1 / (np.sqrt(2 * np.pi) * sigma)
    known = len(slope) > 0
    return {
        "sigma": float(sigma),
        "slope": float(slope.max()) if known else None,
        "q95": float(np.quantile(slope, 0.95)) if known else None,
        "mean": float(slope.mean()) if known else None,
        "ceiling": float(ceiling),
        "ratio": float(slope.max() / ceiling) if known else None,
        "share": float(slope.sum() / own.sum()) if own.sum() > 0 else None,
        "pairs": len(slope),
    }


def neighbour_tv(places: Places) -> Measure:
    """Return the plug-in total variation of the tokens near two neighbouring states, less that of chance; PROXY.

    Every episode speaks once and for one of the two states only, so that under equal laws the two samples could be
    exchanged.

    Args:
        places: of the tokenized policy.

    Returns:
        The mean over pairs; `parts`: `plugin`, `chance`, `draws` per state and median `distance` of the two.
    """
    if places.fault:
        return NEIGHBOUR.measure(None, n=places.n, note=places.fault)
    draws = min((places.episodes - 2) // 2, NEIGHBOURS)
    if draws < LEAST_DRAWS:
        note = f"Needs {2 * LEAST_DRAWS + 2} episodes, got {places.episodes}."
        return NEIGHBOUR.measure(None, n=places.n, note=note)
    random = np.random.default_rng(places.seed)
    index, distance = places.nearest
    anchors = random.permutation(len(places))[:ANCHORS]
    rank = places.reach - 1  # not nearer to each other than those who come by are to either
    found = []
    for anchor in anchors.tolist():
        pair = [anchor, int(index[anchor, rank])]
        speaking = random.permutation(np.setdiff1d(np.arange(places.episodes), places.episode[pair]))
        halves = np.array_split(speaking, 2)
        tokens = [_closest(places, centre, half)[:draws] for centre, half in zip(pair, halves, strict=True)]
        _, both = np.unique(np.concatenate(tokens), return_inverse=True)
        counts = [np.bincount(part, minlength=both.max() + 1) for part in np.split(both, [len(tokens[0])])]
        found.append(plugin_tv(*counts, seed=places.seed))
    plugin, chance = np.mean(found, 0)
    return NEIGHBOUR.measure(
        plugin - chance,
        n={**places.n, "pairs": len(found)},
        note=f"The chance level is {chance:.2f} with {draws} draws per state.",
        parts={
            "plugin": float(plugin),
            "chance": float(chance),
            "draws": draws,
            "distance": float(np.median(distance[anchors, rank])),
        },
    )


class PlugIn(NamedTuple):
    """A total variation between two samples.

    Attributes:
        plugin: of the two histograms; too large by chance.
        chance: what it is on average when the samples are mixed and dealt anew.
    """

    plugin: float
    chance: float

    @property
    def excess(self) -> float:
        """What is beyond chance."""
        return self.plugin - self.chance


def plugin_tv(p: npt.ArrayLike, q: npt.ArrayLike, *, seed: int = 0, shuffles: int = SHUFFLES) -> PlugIn:
    """Return the total variation of two histograms of counts `(k,)`, and its level under chance.

    Example:
        >>> plugin_tv([5, 5, 0], [0, 5, 5]).plugin
        0.5
    """
    left, right = (np.asarray(counts, np.int64) for counts in (p, q))
    random = np.random.default_rng(seed)
    both = left + right
    dealt = random.multivariate_hypergeometric(both, int(left.sum()), size=shuffles)
    chance = _total_variation(dealt / left.sum(), (both - dealt) / right.sum()).mean()
    return PlugIn(float(_total_variation(left / left.sum(), right / right.sum())), float(chance))


def plugin_bias(p: npt.ArrayLike, m: int) -> float:
    """Return about what the plug-in total variation of two samples of `m` draws from one law `p (k,)` is.

    The mean of |N(0, 2 p (1 - p) / m)| / 2, summed: sum sqrt(p (1 - p) / (pi m)).
    """
    law = np.asarray(p, np.float64)
    return float(np.sqrt(law * (1 - law) / (np.pi * m)).sum())


def kernel_distributions(states: Floats, tokens: Ints, queries: Floats, sigma: float) -> Floats:
    """Return the token distributions around `queries (m, ds)`, `(m, k)`, smoothed with a Gaussian of width sigma.

    Args:
        states: `(n, ds)`.
        tokens: `(n,)` in 0..k-1.
        queries: where.
        sigma: in the units of the states.
    """
    weights = _weights(states, queries, sigma)
    return _by_token(weights / weights.sum(1, keepdims=True), tokens)


def _closest(places: Places, centre: int, episodes: Ints) -> Ints:
    """Return the token that each of `episodes` used nearest to a place, nearest first."""
    rows = np.flatnonzero(np.isin(places.episode, episodes))
    distance = np.linalg.norm(places.states[rows] - places.states[centre], axis=1)
    order = np.argsort(distance, kind="stable")
    _, first = np.unique(places.episode[rows][order], return_index=True)
    return places.tokens[rows[order[np.sort(first)]]]


def _total_variation(p: Floats, q: Floats) -> Floats:
    half: Floats = np.abs(p - q).sum(-1) / 2
    return half


def _weights(states: Floats, queries: Floats, sigma: float) -> Floats:
    from scipy.spatial.distance import cdist

    weights: Floats = np.exp(-cdist(queries, states, "sqeuclidean") / (2 * sigma**2))
    return weights


def _by_token(weights: Floats, tokens: Ints) -> Floats:
    """Return the sums of `weights (m, n)` over equal `tokens (n,)`, `(m, k)`."""
    order = np.argsort(tokens, kind="stable")
    starts = np.unique(tokens[order], return_index=True)[1]
    sums: Floats = np.add.reduceat(weights[:, order], starts, axis=1)
    return sums
