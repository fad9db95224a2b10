"""How much the actions of a fitted token policy change where its state changes a little.

A tokenized policy that clones well need not deploy well: what carries errors on is how far its law at a state is from
its law at a state nearby. TVC measures that by total variation of the ids, RTVC (Cao & Xie 2026, arXiv:2603.20538,
Def 4) by how often decoded actions must differ by more than a threshold (`coupling`). Both numbers belong to policy and
tokenizer together: compare tokenizers under one policy class and budget. The units are those of `probe`.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from action_tokenizers.diagnostics.coupling import logit_certificate
from action_tokenizers.diagnostics.measure import (
    LEVEL,
    Estimator,
    Kind,
    Measure,
    bootstrap_t,
    hoeffding,
    share_interval,
)
from action_tokenizers.diagnostics.policy import TokenPolicy, drawn
from action_tokenizers.diagnostics.probe import MULTIPLES, SIGMAS, Compared, Probe
from action_tokenizers.diagnostics.subject import Subject

__all__ = [
    "ESTIMATORS",
    "policy_certificate",
    "policy_jump",
    "policy_measures",
    "policy_tv",
    "smoothed_execution",
    "statistical_bound",
    "statistical_term",
]

Floats = npt.NDArray[np.float64]

SMOOTHING = 0.1  # of the perturbations, the one whose price is the headline of smoothed execution
HEADLINE = 1  # of the thresholds of a jump
STEEPEST = 1 / math.sqrt(2 * math.pi)  # slope of the total variation of two unit Gaussians in their distance
LINEAR = 0.5  # total variation up to which a modulus is taken for a line: it ends at 1
STILL = "Not shown: the states do not vary, so that none is near another."
ONE_EPISODE = "Fewer than two episodes: no interval."
ALL_EQUAL = "Fewer than five episodes that are all equal: no interval."
ALL_CUT_OFF = "Not shown: every chunk is cut off, and of those nobody said what their last ids should be."
UNCHECKED = "The normalisation could not be checked: no drawn ids repeat, and the policy shows no logits."
METHOD = "bootstrap-t over episodes; Clopper-Pearson where probabilities all agree"

ESTIMATORS: tuple[Estimator, ...] = (
    Estimator(
        name="policy_tv",
        heading="policy change",
        unit="probability",
        kinds=(Kind.CONSISTENT,),
        meaning=(
            "How far the policy's choice of ids moves when its state moves a little: 0 is the same law, 1 is nothing "
            "in common. The number is the mean at the smallest perturbation; the curve shows the larger ones."
        ),
        caution=(
            "An id of nearly the same action counts in full, and an average says nothing of the worst state; each "
            "`max` is what one pair surely has. Distances are in standard deviations of the states."
        ),
        advice=(
            "Where it is large although decoded actions barely jump, the codebook is finer than needed. Else add "
            "noise to the states in training, or take more data near these states."
        ),
        source="Cao & Xie 2026, Def 4 with threshold 0 (total variation continuity); Block et al. 2023",
        function="variation.policy_tv",
        test="test_variation.py::test_gaussian_policy_over_bins",
    ),
    Estimator(
        name="policy_jump",
        heading="policy jump",
        unit="probability",
        kinds=(Kind.UPPER, Kind.CONSISTENT),
        meaning=(
            "How often the executed action must jump, by more than five mean errors of the tokenizer (taken as at "
            "least 0.02), when the state moves a little. Other thresholds and perturbations are in the curve."
        ),
        caution=(
            "An upper bound where ids are drawn: a cleverer pairing of the draws may show fewer jumps. It is an "
            "average, not the worst state."
        ),
        advice=(
            "Compare with the excess jump of the tokenizer: if that is small, the policy itself is rough here (more "
            "data, smoothing); if it is large, take bins or a finer codebook."
        ),
        source="Cao & Xie 2026, Def 4 (relaxed total variation continuity); Strassen 1965",
        function="variation.policy_jump",
        test="test_variation.py::test_deterministic_policy_over_bins_never_jumps",
    ),
    Estimator(
        name="policy_certificate",
        heading="policy change, guaranteed by logits",
        unit="probability",
        kinds=(Kind.UPPER,),
        meaning="The most that the policy's law can have moved, from how far its logits moved, summed over a chunk.",
        caution="Usually much larger than the truth, above all for chunks of many ids; 1 says nothing.",
        advice="If it is small, trust it. If it is 1, look at the estimated change instead.",
        source="TV(softmax z, softmax z') <= tanh(span(z - z') / 4), chain rule over the ids",
        function="variation.policy_certificate",
        test="test_variation.py::test_certificate_is_above_the_total_variation",
    ),
    Estimator(
        name="smoothed_execution",
        heading="price of smoothing",
        unit="half range",
        kinds=(Kind.UPPER,),
        meaning=(
            "How far executed actions move if the policy sees the state with noise of 0.1 standard deviations. The "
            "curve sets this price beside the smoothness that the noise guarantees (kappa_1 = 0.399 / sigma)."
        ),
        caution=(
            "Of a policy that draws, an upper bound: both draws have the same seed, and a policy that does not share "
            "random numbers between states pays for its own scatter too. The guarantee holds for dims that vary."
        ),
        advice="Choose the largest noise whose price the task can bear, in training and in execution.",
        source="Cao & Xie 2026, Prop 18; Block et al. 2023, Lemma 3.1",
        function="variation.smoothed_execution",
        test="test_variation.py::test_price_of_smoothing",
    ),
    Estimator(
        name="statistical_term",
        heading="leaves the expert's ids",
        unit="probability",
        kinds=(Kind.UNBIASED,),
        meaning=(
            "How probably the policy picks other ids than the expert somewhere in an episode, while in the expert's "
            "states."
        ),
        caution=(
            "Close to 1 for every policy over long episodes: compare the values per chunk and step. It is the total "
            "variation only if the expert's ids are a function of the state; last chunks that are cut off are left "
            "out."
        ),
        advice="Train longer, take more data, or choose ids that are easier to predict.",
        source="Cao & Xie 2026, Lemma 13",
        function="variation.statistical_term",
        test="test_variation.py::test_statistical_term_of_a_known_policy",
    ),
    Estimator(
        name="statistical_bound",
        heading="leaves the expert's ids, at most",
        unit="probability",
        kinds=(Kind.UPPER,),
        meaning="The most that the policy's episodes can differ in law from the expert's, whose ids may be random.",
        caution="The randomness of the expert counts against the policy, so it is loose; 1 says nothing.",
        advice="Compare tokenizers by the values per chunk at the same horizon.",
        source="Cao & Xie 2026, App. A; Pinsker, Bretagnolle and Huber 1979",
        function="variation.statistical_bound",
        test="test_variation.py::test_statistical_term_of_a_known_policy",
    ),
)
_ROWS = {row.name: row for row in ESTIMATORS}


def policy_measures(
    subject: Subject,
    states_per_chunk: Any,
    policy: TokenPolicy,
    seed: int = 0,
    *,
    pairs: int = 128,
    draws: int = 32,
) -> list[Measure]:
    """Return every measure of a policy, one per row of `ESTIMATORS`.

    Args:
        subject: the tokenizer of the policy on held-out episodes.
        states_per_chunk: `(n, ds)` what the policy sees at the first step of each chunk; dims of any scale.
        policy: over the ids of that tokenizer.
        seed: of the pairs and draws.
        pairs: at how many chunks it is asked about states nearby.
        draws: rows of ids for each of these states. The policy draws about 7 * pairs * draws rows in all, and says
            the probability of 20 * pairs * draws: lower both for a slow one.

    Raises:
        ActionShapeError: not one state per chunk, or answers of another shape.
        ActionValueError: the policy raised, or its answers are no ids or no log-probabilities; names the state row.
    """
    probe = Probe.of(subject, states_per_chunk, policy, seed, pairs=pairs, draws=draws)
    measures: tuple[Callable[[Probe], Measure], ...] = (
        policy_tv,
        policy_jump,
        policy_certificate,
        smoothed_execution,
        statistical_term,
        statistical_bound,
    )
    return [measure(probe) for measure in measures]


def policy_tv(probe: Probe) -> Measure:
    """Return the modulus curve of the policy: how far its laws at two states are apart, by their distance."""
    if not probe.scale.any():
        return _not_shown("policy_tv", probe, STILL)
    parts = _columns([_tv_point(probe, found) for found in probe.compared])
    headline = parts["mean"][0], parts["interval"][0]
    parts |= {"exact": probe.policy.enumerable, **_slopes(probe)}
    if probe.compared_neighbours is not None:
        parts["neighbours"] = _tv_point(probe, probe.compared_neighbours)
    note = "" if probe.policy.enumerable else "Quantiles over pairs contain the scatter of the draws."
    return _measure("policy_tv", probe, *headline, parts, note)


def _tv_point(probe: Probe, found: Compared) -> dict[str, Any]:
    means = probe.per_episode(found.tv)
    return {
        "sigma": found.pairs.sigma,
        "distance": float(found.pairs.distance.mean()),
        "mean": float(means.mean()),
        "interval": share_interval(means, seed=probe.seed)[0],
        "q95": float(np.quantile(found.tv, 0.95)),
        "max": probe.largest_tv(found),
    }


def _slopes(probe: Probe) -> dict[str, Any]:
    """Return the line through 0 that fits total variation against distance where it is far from 1, and the steepest.

    The fit is per episode, least squares over its pairs, so that it has an interval. Total variation bends down long
    before it ends at 1, which makes the fit low: a bound wants the steepest.
    """
    rings = probe.compared
    means = [float(probe.per_episode(found.tv).mean()) for found in rings]
    used = [i for i, mean in enumerate(means) if mean <= LINEAR] or [0]
    r = np.stack([rings[i].pairs.distance for i in used])
    tv = np.stack([rings[i].tv for i in used])
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = probe.per_episode((r * tv).sum(0)) / probe.per_episode((r * r).sum(0))
        steepest = np.array(means) / [found.pairs.distance.mean() for found in rings]
    slope, steepest = slope[np.isfinite(slope)], steepest[np.isfinite(steepest)]
    return {
        "kappa_1": _mean(slope),
        "kappa_1_interval": bootstrap_t(slope, seed=probe.seed),
        "kappa_1_steepest": float(steepest.max()) if len(steepest) else None,
        "kappa_1_sigmas": [SIGMAS[i] for i in used],
    }


def policy_jump(probe: Probe) -> Measure:
    """Return how often the decoded actions at two nearby states must differ by more than a threshold (RTVC).

    The threshold counts in half ranges, of relative actions in half spans of these (`of_relative`: the unit, and the
    mean error in it). `parts["neighbours"]` has it for the nearest recorded states of other episodes, per threshold,
    beside the share of `recorded` actions that are as far apart, and the `excess` of the first over the second with its
    interval.
    """
    if not probe.scale.any():
        return _not_shown("policy_jump", probe, STILL)
    parts = _columns([_jump_point(probe, found) for found in probe.compared])
    headline = parts["share"][0][HEADLINE], parts["interval"][0][HEADLINE]
    parts |= {"multiple": list(MULTIPLES), "threshold": probe.thresholds, "headline": MULTIPLES[HEADLINE]}
    parts |= probe.own_units.told_in_own_units()
    parts["decodable"] = [found.decodable for found in probe.compared]
    if probe.compared_neighbours is not None and probe.recorded_far is not None:
        near = probe.compared_neighbours
        parts["neighbours"] = _jump_point(probe, near) | _excess(probe, near, probe.recorded_far)
    note = "Undecodable ids count as a jump." if min(parts["decodable"]) < 1 else ""
    if probe.subject.is_relative:
        note = f"Jumps in half spans of the relative actions that are coded. {note}".strip()
    kind = Kind.CONSISTENT if probe.policy.enumerable else Kind.UPPER
    return _measure("policy_jump", probe, *headline, parts, note, kind=kind)


def _jump_point(probe: Probe, found: Compared) -> dict[str, Any]:
    """Return the jump by the better coupling, per threshold; every coupling is a bound, so the least is one."""
    best: dict[str, list[Any]] = {"share": [], "interval": [], "coupling": []}
    for k in range(len(MULTIPLES)):
        means = {name: probe.per_episode(costs[k]) for name, costs in found.jump.items()}
        _, name = min((float(each.mean()), name) for name, each in means.items())
        best["share"].append(float(means[name].mean()))
        best["interval"].append(_least(list(means.values()), probe.seed))
        best["coupling"].append(name)
    return {"sigma": found.pairs.sigma, "distance": float(found.pairs.distance.mean()), **best}


def _excess(probe: Probe, found: Compared, far: Floats) -> dict[str, Any]:
    """Return how often recorded actions are far apart, `far (k, b)`, and how much more often the policy's must be."""
    recorded = [probe.per_episode(each) for each in far]
    beyond = [[probe.per_episode(costs[k]) - recorded[k] for costs in found.jump.values()] for k in range(len(far))]
    return {
        "recorded": [float(each.mean()) for each in recorded],
        "excess": [min(float(each.mean()) for each in bounds) for bounds in beyond],
        "excess_interval": [_least(bounds, probe.seed, -1.0) for bounds in beyond],
    }


def _least(bounds: list[Floats], seed: int, low: float = 0.0) -> tuple[float, float] | None:
    """Return an interval of the least of the means of several per-episode bounds in `low..1`, whichever it is."""
    level = 1 - (1 - LEVEL) / len(bounds)  # each has its share of the error
    ends = [share_interval(each, low, seed=seed, level=level)[0] for each in bounds]
    if all(each is None for each in ends):
        return None
    known = [(low, 1.0) if each is None else each for each in ends]
    return min(each[0] for each in known), min(each[1] for each in known)


def policy_certificate(probe: Probe) -> Measure:
    """Return what the logits guarantee of the total variation of whole chunks: the sum over the ids of a chunk."""
    if not probe.policy.shows_logits:
        return _not_shown("policy_certificate", probe, "Not shown: the policy has no logits(states, prefix).")
    if not probe.scale.any():
        return _not_shown("policy_certificate", probe, STILL)
    # TV <= sum over ids of E TV(id | ids before), so that the mean is capped, not what it is the mean of
    means = [probe.per_episode(bound) for bound in _certificates(probe)]
    intervals = [_of_sums(each, probe.seed) for each in means]
    distance = [float(pairs.distance.mean()) for pairs in probe.rings]
    sums = [float(each.mean()) for each in means]
    parts = {
        "sigma": list(SIGMAS),
        "distance": distance,
        "mean": [min(1.0, each) for each in sums],
        "sum": sums,
        "interval": intervals,
        "kappa_1": [each / r if r else None for each, r in zip(sums, distance, strict=True)],
    }
    return _measure("policy_certificate", probe, min(1.0, sums[0]), intervals[0], parts, n=probe.n | {"draws": 1})


def _of_sums(values: Floats, seed: int) -> tuple[float, float] | None:
    """Return the interval of a bound of a probability: it may be larger than 1, which then is one as well."""
    if values.max() <= 1:
        return share_interval(values, seed=seed)[0]
    found = bootstrap_t(values, seed=seed)
    return None if found is None else (min(max(found[0], 0.0), 1.0), min(max(found[1], 0.0), 1.0))


def _certificates(probe: Probe) -> list[Floats]:
    """Return per ring the certificate of each pair `(b,)`, along one drawn chunk and its end, where that is drawn."""
    ids, counted = drawn(probe.policy, probe.here, probe.own[:: probe.draws])
    totals = [np.zeros(len(ids)) for _ in probe.rings]
    for j in range(ids.shape[1]):
        counts = counted[:, j]
        if not counts.any():
            break
        prefix = ids[counts, :j]
        z = probe.policy.logits(probe.here[counts], prefix)
        for total, pairs in zip(totals, probe.rings, strict=True):
            total[counts] += logit_certificate(z, probe.policy.logits(pairs.others[counts], prefix))
    return totals


def smoothed_execution(probe: Probe) -> Measure:
    """Return what noise on the state costs: how far the decoded actions move when the policy sees x + sigma xi."""
    if not probe.scale.any():
        return _not_shown("smoothed_execution", probe, STILL)
    moved = [_known(probe.per_episode(found.moved)) for found in probe.compared]
    at = SIGMAS.index(SMOOTHING)
    parts: dict[str, Any] = {
        "sigma": list(SIGMAS),
        "price": [_mean(each) for each in moved],
        "interval": [bootstrap_t(each, seed=probe.seed) for each in moved],
        "kappa_1": [STEEPEST / sigma for sigma in SIGMAS],
        "error_to_recorded": [_mean(_known(probe.per_episode(found.error))) for found in probe.compared],
        "error_to_recorded_without": _mean(_known(probe.per_episode(probe.error_here))),
        "decodable": [found.decodable for found in probe.compared],
    }
    note = "Draws that do not decode are left out." if min(parts["decodable"]) < 1 else ""
    n = probe.n | {"episodes": len(moved[at])}
    return _measure("smoothed_execution", probe, parts["price"][at], parts["interval"][at], parts, note, n=n)


def statistical_term(probe: Probe) -> Measure:
    """Return how probably the policy leaves the recorded ids somewhere in an episode of the expert.

    1 - the mean over episodes of exp(-NLL), the total variation of the two laws of trajectories where the expert's
    ids are a function of the state.
    """
    row = _ROWS["statistical_term"]
    if not len(probe.whole):
        return row.measure(None, n={"episodes": 0, "chunks": 0}, note=ALL_CUT_OFF)
    parts = _likelihood(probe)
    nll = np.array(parts["nll_per_episode"])
    agree = np.exp(-nll)
    low, high = hoeffding(agree, 0.0, 1.0)
    note = "" if probe.is_normalised else UNCHECKED
    if parts["impossible_chunks"]:
        note = f"The policy gives probability 0 to {parts['impossible_chunks']} recorded chunks. {note}".strip()
    return row.measure(
        1 - float(agree.mean()),
        interval=(1 - high, 1 - low),
        method="Hoeffding over episodes",
        n={"episodes": len(nll), "chunks": len(probe.whole)},
        note=note,
        parts=parts,
    )


def statistical_bound(probe: Probe) -> Measure:
    """Return a bound of the same total variation that also holds for an expert who acts at random.

    The negative log-likelihood is the divergence KL plus the entropy of the expert's ids, so KL <= NLL; then Pinsker
    and Bretagnolle-Huber: TV <= min(sqrt(KL / 2), sqrt(1 - exp(-KL))).
    """
    row = _ROWS["statistical_bound"]
    if not len(probe.whole):
        return row.measure(None, n={"episodes": 0, "chunks": 0}, note=ALL_CUT_OFF)
    parts = _likelihood(probe)
    nll = np.array(parts["nll_per_episode"])
    finite = bool(np.isfinite(nll).all())
    ends = bootstrap_t(nll, seed=probe.seed) if finite else None
    note = "" if finite else "The policy gives probability 0 to a recorded chunk, so that nothing is guaranteed."
    if finite and ends is None:
        note = _without_interval(len(nll))
    if not probe.is_normalised:
        note = f"{note} {UNCHECKED}".strip()
    return row.measure(
        _most_tv(float(nll.mean())),
        interval=None if ends is None else (_most_tv(ends[0]), _most_tv(ends[1])),
        method=None if ends is None else "bootstrap-t over episodes of the NLL",
        n={"episodes": len(nll), "chunks": len(probe.whole)},
        note=note,
        parts={key: parts[key] for key in ("nll_per_chunk", "nll_per_step")}
        | {
            "tv_per_chunk": _most_tv(parts["nll_per_chunk"]),
            "tv_per_step": _most_tv(parts["nll_per_step"]),
        },
    )


def _most_tv(kl: float) -> float:
    kl = max(kl, 0.0)
    return min(math.sqrt(kl / 2), math.sqrt(-math.expm1(-kl)))


def _likelihood(probe: Probe) -> dict[str, Any]:
    """Return the NLL in nats, per episode and per chunk, step and id of it, and what it says of each."""
    subject, nll = probe.subject, probe.nll
    which = np.unique(subject.episode[probe.whole], return_inverse=True)[1]
    chunks = np.bincount(which)
    total = np.bincount(which, nll)
    steps, ids = chunks * subject.horizon, np.bincount(which, subject.lengths[probe.whole])
    return {
        "nll_per_episode": total.tolist(),
        "nll_per_chunk": float((total / chunks).mean()),
        "nll_per_step": float((total / steps).mean()),
        "nll_per_id": float((total / ids).mean()),
        "tv_per_chunk": 1 - float((np.bincount(which, np.exp(-nll)) / chunks).mean()),
        "tv_per_step": 1 - float(np.exp(-total / steps).mean()),
        "chunks_per_episode": float(chunks.mean()),
        "impossible_chunks": int(np.isinf(nll).sum()),
    }


def _measure(
    name: str,
    probe: Probe,
    value: float | None,
    interval: tuple[float, float] | None,
    parts: dict[str, Any],
    note: str = "",
    *,
    kind: Kind | None = None,
    n: dict[str, int] | None = None,
) -> Measure:
    """Return a mean over the episodes that were asked."""
    n = n or probe.n
    if interval is None and value is not None:
        note = f"{note} {_without_interval(n['episodes'])}".strip()
    return _ROWS[name].measure(
        value,
        kind=kind,
        interval=interval,
        method=None if interval is None else METHOD,
        n=n,
        note=note,
        parts=parts,
    )


def _not_shown(name: str, probe: Probe, note: str) -> Measure:
    return _ROWS[name].measure(None, n=probe.n, note=note)


def _columns(points: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: [point[key] for point in points] for key in points[0]}


def _known(values: Floats) -> Floats:
    return values[~np.isnan(values)]


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None


def _without_interval(episodes: int) -> str:
    return ONE_EPISODE if episodes < 2 else ALL_EQUAL
