"""Which conditions of the theory hold, fail, or are not shown by the measures of an audit.

The theory (Cao & Xie 2026) bounds the regret of log-loss cloning on tokens where the quantization error is small in
the right sense and the tokenized policy is smooth. Here each of its conditions is held against the numbers. One scale
serves all that is about the tokenizer alone: `far`, five times the larger of 5 % of the action range and twice the mean
error, is what counts as a far jump or a large error, so that a coarse tokenizer is not accused of its own cell size.

Of relative actions, which may span a small part of what absolute ones do, that scale is of the span of the relative
ones, dim by dim (`Subject.in_own_units`; `of_relative` in the parts of a measure): in the range of absolute actions no
error or jump of theirs might ever reach it, and every condition would hold of any tokenizer. Two conditions are about
what is executed, and stay in half ranges of absolute actions: the mean error, and the values that are held.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from action_tokenizers.diagnostics.error import far
from action_tokenizers.diagnostics.expert import spread_of
from action_tokenizers.diagnostics.measure import Kind, Measure
from action_tokenizers.diagnostics.report import Condition, Status
from action_tokenizers.diagnostics.smoothness import COARSE, FINE, LEAST_EPISODES, RARE, jump_alarm

__all__ = ["SCALE", "advise", "decide", "silent_failure"]

Measures = Mapping[str, Measure]

SCALE = COARSE  # 5 % of the action range, in half ranges
LOST = 0.1  # share of the recorded score that decoded actions may lose in replay
COMPOUNDS = 4.0  # times as large over the second half of an episode: more than adding up
SMOOTH = 0.05  # probability of a far action between two neighbouring states, or of one too many


def silent_failure(measures: Measures) -> bool | None:
    """Return whether the flag fires; None where the data cannot show it.

    It needs both: the jump alarm at two sizes of perturbation, and an expert whose actions, given the state, spread
    less than the smaller of them, in the same unit. Without the alarm it is off, whatever the expert.
    """
    alarm = jump_alarm(measures["episode_jump"], measures["episode_jump_fine"])
    if not alarm:
        return alarm
    return _near_deterministic(measures)


def _near_deterministic(measures: Measures) -> bool | None:
    spread = spread_of(measures)
    return None if spread is None else spread < FINE


def decide(
    measures: Measures,
    *,
    fingerprints: int | None,
    seen: Mapping[str, int],
    action_dim: int,
    names: Sequence[str] | None = None,
    late: Collection[str] = (),
) -> tuple[Condition, ...]:
    """Return every condition with its status.

    Args:
        measures: by name.
        fingerprints: how many of the fit's chunks are known; None where its provenance tells none.
        seen: those found in the audited episodes: fingerprint -> episode.
        action_dim: d.
        names: of the dims.
        late: stages that a time budget left out.
    """
    decided = _decided(measures, fingerprints, seen, action_dim, names)
    return tuple(_for_time(c) if STAGES.get(c.name) in late and c.needs else c for c in decided)


# the stage of an audit that a condition cannot be decided without
STAGES = {
    "no_silent_failure": "states",  # where the alarm is on
    "smooth_pairs": "states",
    "small_gain": "dynamics",
    "smooth_policy": "policy",
    "stable_dynamics": "replay",
    "replay_outcome": "replay",
}


def _for_time(condition: Condition) -> Condition:
    if condition.name == "no_silent_failure":
        # the alarm was measured, and where it is off or hidden states decide nothing
        return replace(condition, needs="more time") if condition.needs == STATES else condition
    return replace(condition, evidence="not measured: the time budget was spent", needs="more time")


def _decided(
    measures: Measures,
    fingerprints: int | None,
    seen: Mapping[str, int],
    action_dim: int,
    names: Sequence[str] | None,
) -> tuple[Condition, ...]:
    return (
        _held_out(fingerprints, seen),
        _mean_error(measures, action_dim),
        _rare_errors(measures, action_dim),
        _bounded_error(measures, action_dim),
        _values_reproduced(measures, names),
        _smooth_tokenizer(measures, action_dim),
        _no_silent_failure(measures, action_dim),
        _smooth_pairs(measures, action_dim),
        _small_gain(measures),
        _smooth_policy(measures, action_dim),
        _stable(measures),
        _outcome(measures),
    )


def _held_out(fingerprints: int | None, seen: Mapping[str, int]) -> Condition:
    if not fingerprints:
        status, evidence = Status.NOT_SHOWN, "the tokenizer does not tell what it was fitted on"
    elif seen:
        names = sorted(set(seen.values()))
        status = Status.FAILS
        evidence = (
            f"{len(seen)} of {fingerprints} fingerprints of its fit data occur in episodes {_list(names)}: "
            "every error below is too small"
        )
    else:
        status = Status.HOLDS
        evidence = f"none of {fingerprints} fingerprints of its fit data occurs in these episodes"
    return Condition(
        "held_out",
        "The tokenizer was not fitted on the audited episodes.",
        status,
        evidence,
        "sound measurement",
        needs="a tokenizer fitted by this library on chunks that move" if status is Status.NOT_SHOWN else "",
    )


def _mean_error(measures: Measures, action_dim: int) -> Condition:
    found = measures["error_mean"]
    limit = SCALE * action_dim**0.5
    low, high = found.interval or (0.0, float("inf"))
    status = Status.HOLDS if high <= limit else Status.FAILS if low > limit else Status.NOT_SHOWN
    return Condition(
        "mean_error",
        "The mean error on the demonstrations is below 5 % of the range in every dim, taken together.",
        status,
        f"mean error {_told(found)} against {limit:.3g} ({SCALE} x sqrt({action_dim}))",
        "Eq 4",
        ("error_mean",),
        "more held-out episodes" if status is Status.NOT_SHOWN else "",
    )


STATES = "states"


def _own(measure: Measure) -> Mapping[str, Any] | None:
    """Return what a measure tells in half spans of relative actions; None of absolute ones."""
    found: Mapping[str, Any] | None = measure.parts.get("of_relative")
    return found


def _in_units(measure: Measure) -> str:
    """Return the unit to tell beside a number, where it is not the one of errors."""
    return "" if _own(measure) is None else " half spans of the relative actions"


def _is_blind(mean_error: float, action_dim: int) -> bool:
    """Say whether the mean error is so large that nothing inside the range could count as far from anything."""
    return _is_out_of_reach(far(mean_error), action_dim)


def _is_out_of_reach(limit: float, action_dim: int) -> bool:
    """Say whether no two actions inside the range are as far apart as `limit`."""
    return bool(limit >= 2 * math.sqrt(action_dim))


def _alarm_is_blind(measures: Measures, action_dim: int) -> bool:
    """Say whether the alarm could not go off: its error keeps it from counting jumps, of any size or beyond itself."""
    mean, jump = measures["error_mean"].value or 0.0, measures["excess_jump"].value
    own = _own(measures["episode_jump"])
    if own is not None:  # in the unit of the alarm
        mean, jump = own["mean_error"], own["excess_jump"]
    if _is_blind(mean, action_dim):
        return True
    return far(mean) > 5 * SCALE and jump is not None and 3 * mean < jump < far(mean)


BLIND = "a tokenizer of smaller error: of this one nothing could count as far"


def _rare_errors(measures: Measures, action_dim: int) -> Condition:
    found, mean = measures["error_max"], measures["error_mean"].value or 0.0
    own = _own(found)
    share = found.parts["beyond_threshold"]
    if own is not None:
        mean, share = own["mean_error"], own["beyond_threshold"]
    limit = far(mean)
    low, high = share["interval"]
    blind = _is_blind(mean, action_dim) and not low > RARE
    few = share["n"] < LEAST_EPISODES
    status = Status.NOT_SHOWN if few or blind else Status.FAILS if low > RARE else Status.HOLDS
    return Condition(
        "rare_errors",
        "As far as these episodes show, at most 1 % hold a large error: the regret pays for the worst step of an "
        "episode, not for the mean.",
        status,
        f"{share['hits']} of {share['n']} episodes hold an error above {limit:.3g}{_in_units(found)}; "
        f"95 % interval {low:.1%} to {high:.1%}",
        "Thm 1, P(exists h: |q(u_h) - u_h| > d - eps')",
        ("error_max",),
        f"{LEAST_EPISODES} held-out episodes" if few else BLIND if blind else "",
    )


def _bounded_error(measures: Measures, action_dim: int) -> Condition:
    found, mean = measures["error_sup"], measures["error_mean"].value or 0.0
    if found.value is None:
        return Condition(
            "bounded_error",
            EQ3,
            Status.NOT_SHOWN,
            found.caveat,
            "Eq 3",
            ("error_sup",),
            "a family that tells its cells",
        )
    how, value = {Kind.EXACT: "exactly", Kind.UPPER: "at most"}.get(found.kind, SEARCHED), found.value
    domains, own = found.parts.get("domains"), _own(found)
    if own is not None:
        mean, value, domains = own["mean_error"], own["value"], own["domains"]
    limit = far(mean)
    if found.kind is Kind.UPPER and value > limit:
        # what may be as large as a bound need not be: the search beside it decides
        how, value = SEARCHED, max(domain["value"] for domain in (domains or {}).values())
    holds = value <= limit
    blind = holds and _is_blind(mean, action_dim)
    return Condition(
        "bounded_error",
        EQ3,
        Status.NOT_SHOWN if blind else Status.HOLDS if holds else Status.FAILS,
        f"the largest error inside the range is {how} {value:.3g}, {_ratio(value, mean)} the mean, against {limit:.3g}"
        + _in_units(found)
        + ("" if holds else "; a large error far from the data is no fault of its own: see smoothness"),
        "Eq 3",
        ("error_sup", "error_mean"),
        BLIND if blind else "",
        advisory=True,
    )


SEARCHED = "at least, as far as searched,"
EQ3 = (
    "As far as computed, bounded or searched, the error stays in proportion over the whole action range, not only on "
    "the demonstrations."
)


def _values_reproduced(measures: Measures, names: Sequence[str] | None) -> Condition:
    found = measures["hold_bias"]
    lost = [row for row in found.parts.get("unreproducible", ()) if abs(row["error"]) > SCALE]
    if lost:
        worst = max(lost, key=lambda row: abs(row["error"]))
        status, dim = Status.FAILS, worst["dim"] if names is None else names[worst["dim"]]
        evidence = (
            f"dim {dim} holds {worst['value']:.3g} in {worst['share']:.1%} of its steps and gets back "
            f"{worst['decoded']:.3g}"
        )
    elif found.value is None:
        status, evidence = Status.HOLDS, "no dim holds still for 8 steps: there is nothing to reproduce"
    else:
        status = Status.HOLDS if found.value <= SCALE else Status.FAILS
        evidence = f"worst dim's mean error while it holds still: {_told(found)} against {SCALE}"
    return Condition(
        "values_reproduced",
        "Values that a dim holds, such as an open or closed gripper, come back within 5 % of the range.",
        status,
        evidence,
        "replay experiments: a biased grip drops the object",
        ("hold_bias",),
    )


def _smooth_tokenizer(measures: Measures, action_dim: int) -> Condition:
    five, two = measures["episode_jump"], measures["episode_jump_fine"]
    alarm = jump_alarm(five, two)
    blind = alarm is False and _alarm_is_blind(measures, action_dim)
    status = {None: Status.NOT_SHOWN, True: Status.FAILS, False: Status.HOLDS}[None if blind else alarm]
    return Condition(
        "smooth_tokenizer",
        "As far as these episodes show, a small change of an action decodes to a far one in at most 1 % of them.",
        status,
        f"share of episodes with a far jump: {_told(five)} at 5 % and {_told(two)} at 2 % of the range"
        + ("" if alarm else _out_of_reach(five, measures["excess_jump"])),
        "Prop 5; Thm 6",
        ("episode_jump", "episode_jump_fine", "excess_jump"),
        BLIND if blind else f"{LEAST_EPISODES} held-out episodes" if alarm is None else "",
    )


def _out_of_reach(share: Measure, jump: Measure) -> str:
    """Say so where no jump is so far that the alarm could count it, as for the cells of a coarse tokenizer."""
    limit, own = share.parts["threshold"], _own(share)
    value = jump.value if own is None else own["excess_jump"]
    if value is None or value >= limit:
        return ""
    seen = "was found" if jump.kind is Kind.LOWER else "exists"
    apart = ", steps of switches apart" if jump.parts["discrete"]["dims"] else ""
    largest = f"the largest is {value:.3g}{apart}"
    return f"; no jump beyond {limit:.3g}{_in_units(share)}, which would be far, {seen} ({largest})"


def _no_silent_failure(measures: Measures, action_dim: int) -> Condition:
    flag = silent_failure(measures)
    alarm = jump_alarm(measures["episode_jump"], measures["episode_jump_fine"])
    if flag:
        status, needs = Status.FAILS, ""
    elif alarm is None:
        status, needs = Status.NOT_SHOWN, f"{LEAST_EPISODES} held-out episodes"
    elif alarm:
        # a large spread is an upper end: an expert that acts on what the states leave out looks random too
        status, needs = Status.NOT_SHOWN, STATES if flag is None else "states that hold all the expert acts on"
    elif _alarm_is_blind(measures, action_dim):
        status, needs = Status.NOT_SHOWN, BLIND
    else:
        status, needs = Status.HOLDS, ""
    return Condition(
        "no_silent_failure",
        "The tokenizer is smooth, or the expert is random enough for any tokenizer to inherit its smoothness.",
        status,
        f"jump alarm {'not shown' if alarm is None else 'on' if alarm else 'off'}; spread of the expert's action given "
        f"the state: {_told_spread(measures)}, against {FINE:.2g}",
        "Thm 2 and Thm 6",
        ("episode_jump", "episode_jump_fine", "expert_spread"),
        needs,
    )


def _told_spread(measures: Measures) -> str:
    found, spread = measures.get("expert_spread"), spread_of(measures)
    if found is None or spread is None:
        return "not measured"
    if "of_relative" in found.parts:
        return f"at most {spread:.3g} half spans of the relative actions"
    return f"at most {_told(found)}"


def _smooth_pairs(measures: Measures, action_dim: int) -> Condition:
    found = measures.get("excess_violation")
    statement = (
        "As far as these pairs show, of neighbouring states at most 5 % more have far decoded actions than have far "
        "recorded ones."
    )
    if found is None or found.value is None or found.interval is None:
        return _missing("smooth_pairs", statement, "states of two or more episodes", "Def 4 (RTVC)", found)
    low, high = found.interval
    blind = _is_out_of_reach(found.parts["scale"], action_dim)
    holds = high <= SMOOTH and not blind
    status = Status.FAILS if low > SMOOTH else Status.HOLDS if holds else Status.NOT_SHOWN
    recorded = found.parts["nearest"]["recorded"][found.parts["scales"].index(found.parts["scale"])]
    return Condition(
        "smooth_pairs",
        statement,
        status,
        f"far decoded pairs less far recorded pairs, of states as near as neighbours: {_told(found)}; "
        f"{recorded:.1%} of the recorded pairs are far apart themselves",
        "Def 4 (RTVC)",
        ("excess_violation", "pair_violation"),
        "" if status is not Status.NOT_SHOWN else BLIND if blind else "more episodes",
    )


def _small_gain(measures: Measures) -> Condition:
    gain, slope = measures.get("dynamics_gain"), measures.get("expert_lipschitz")
    statement = "L g < 1: the expert's slope times the gain of the dynamics, where the bound grows linearly in H."
    if gain is None or slope is None or gain.value is None or slope.value is None:
        return _missing("small_gain", statement, "states of a demonstrator that varies, or a simulator", "Thm 3", gain)
    ends = [m.interval[1] if m.interval is not None else float("inf") for m in (slope, gain)]
    product = ends[0] * ends[1]
    return Condition(
        "small_gain",
        statement,
        Status.HOLDS if product < 1 else Status.NOT_SHOWN,
        f"L g = {slope.value:.3g} x {gain.value:.3g} = {gain.value * slope.value:.3g} from a linear fit (a proxy), "
        f"at the upper ends of both {product:.3g}"
        + ("" if product < 1 else ": inconclusive, not violated; feedback may still be stable"),
        "Thm 3, Prop 5",
        ("dynamics_gain", "expert_lipschitz"),
        "" if product < 1 else "a simulator",
    )


def _smooth_policy(measures: Measures, action_dim: int) -> Condition:
    found = measures.get("policy_jump")
    statement = "The token policy itself is smooth: neighbours get far actions hardly more often than recorded."
    near = None if found is None else found.parts.get("neighbours")
    if found is None or near is None:
        return _missing("smooth_policy", statement, "a policy, in Python: policy=", "Def 4 (RTVC), Thm 1", found)
    at = found.parts["multiple"].index(found.parts["headline"])
    # the expert's own far actions are not the policy's fault
    share, recorded, interval = near["share"][at], near["recorded"][at], near["excess_interval"][at]
    low, high = interval or (-1.0, 1.0)
    # only where the cost is computed and not bounded can it be shown to be too large
    fails = found.kind is Kind.CONSISTENT and low > SMOOTH
    blind = _is_out_of_reach(found.parts["threshold"][at], action_dim)
    holds = high <= SMOOTH and not blind
    status = Status.HOLDS if holds else Status.FAILS if fails else Status.NOT_SHOWN
    more = BLIND if blind else "more episodes, or a policy whose draws follow its seed"
    bound = "" if found.kind is Kind.CONSISTENT else "at most "
    return Condition(
        "smooth_policy",
        statement,
        status,
        f"probability of a far action between neighbours: {bound}{share:.3g}, of the recorded ones {recorded:.3g}; "
        f"difference in [{low:.3g}, {high:.3g}], against {SMOOTH}",
        "Def 4 (RTVC), Thm 1",
        ("policy_jump", "policy_tv"),
        more if status is Status.NOT_SHOWN else "",
    )


def _stable(measures: Measures) -> Condition:
    found = measures.get("replay_growth")
    statement = "Executed open loop, the deviation from the recorded motion does not grow exponentially."
    worst = None if found is None else found.parts.get("factor", {}).get(found.parts.get("group"))
    if found is None or not worst or worst["interval"] is None:
        return _missing("stable_dynamics", statement, "a simulator, in Python: replay=", "Def 3 (P-IISS)", found)
    low, high = worst["interval"]
    lost = found.n.get("failed", 0)  # those may be the very ones that diverged
    holds = high <= COMPOUNDS and not lost
    status = Status.FAILS if low > COMPOUNDS else Status.HOLDS if holds else Status.NOT_SHOWN
    return Condition(
        "stable_dynamics",
        statement,
        status,
        f"over the second half of an episode the deviation becomes {worst['value']:.3g} times as large "
        f"[{low:.3g}, {high:.3g}]; 1 where errors are forgotten, 2 where they add up, against {COMPOUNDS:g}"
        + (f"; {lost} replays failed" if lost else ""),
        "Def 3 (P-IISS)",
        ("replay_growth", "replay_gain"),
        "a replay that does not fail" if lost else "more episodes" if status is Status.NOT_SHOWN else "",
    )


def _outcome(measures: Measures) -> Condition:
    found = measures.get("replay_score")
    statement = "Decoded actions, executed open loop, reach what the recorded ones reach."
    if found is None or found.value is None or found.interval is None:
        return _missing("replay_outcome", statement, "a simulator that scores, in Python: replay=", "replay", found)
    exact, n, lost = found.parts["exact"]["mean"], found.n["episodes"], found.n.get("failed", 0)
    if exact <= 0:
        evidence = "the recorded actions themselves score 0: the replay does not reproduce the recording"
        needs = "a simulator in which the recorded actions reach what was recorded"
        return Condition("replay_outcome", statement, Status.NOT_SHOWN, evidence, "replay", ("replay_score",), needs)
    limit = LOST * exact
    # an episode in which the simulator gave up is at worst a total loss
    most = (found.value * n + exact * lost) / (n + lost)
    holds = most <= limit and n >= LEAST_EPISODES
    status = Status.FAILS if found.interval[0] > limit else Status.HOLDS if holds else Status.NOT_SHOWN
    return Condition(
        "replay_outcome",
        statement,
        status,
        f"score lost by decoding: {_told(found)} against {limit:.3g}, a tenth of what the recorded actions score, in "
        f"{n} episodes" + (f"; in {lost} more the replay failed" if lost else ""),
        "Thm 7 with a perfect model",
        ("replay_score", "replay_deviation"),
        f"{LEAST_EPISODES} episodes that replay without failing, or more" if status is Status.NOT_SHOWN else "",
    )


def _missing(name: str, statement: str, needs: str, source: str, found: Measure | None) -> Condition:
    evidence = "not measured" if found is None else found.caveat
    return Condition(name, statement, Status.NOT_SHOWN, evidence, source, needs=needs)


def advise(conditions: tuple[Condition, ...]) -> tuple[str, ...]:
    """Return what to do, most urgent first."""
    failing = {condition.name for condition in conditions if condition.status is Status.FAILS}
    return tuple(text for name, text in ADVICE.items() if name in failing)


ADVICE = {
    "held_out": (
        "Keep episodes from the fit and audit on those (the same --test and --seed in fit and audit): every number "
        "here flatters the tokenizer."
    ),
    "no_silent_failure": (
        "Do not deploy on these numbers alone. Replay decoded actions in a simulator, prefer a tokenizer whose excess "
        "jump is of the order of its mean error (uniform bins), or smooth the execution: add noise to the states in "
        "training and in execution."
    ),
    "smooth_tokenizer": (
        "Some actions next to demonstrated ones decode far away. Look at the worst episodes' actions; more data per "
        "code, fewer codes or uniform cells remove such holes."
    ),
    "values_reproduced": (
        "Give the dim that holds still its exact values: bins=2 for a two-valued gripper, or a tokenizer of its own."
    ),
    "rare_errors": (
        "Look at the episodes with the largest errors: a rare motion without a code of its own, or clipping."
    ),
    "bounded_error": (
        "Errors off the data are large. Harmless where the jumps are small; else widen the range or use more codes."
    ),
    "mean_error": "The error is large everywhere: use more codes, smaller steps or shorter chunks.",
    "smooth_pairs": "Similar states get dissimilar actions after decoding: use a finer or smoother tokenizer.",
    "smooth_policy": (
        "The policy chooses far actions in near states: train it longer or on more data, add noise to the states in "
        "training, or use a smoother tokenizer."
    ),
    "stable_dynamics": "The system does not forget errors: shorten the open-loop part, or execute closed loop.",
    "replay_outcome": "Decoded demonstrations fail where recorded ones succeed: lower the drift first.",
}


def _told(measure: Measure) -> str:
    if measure.value is None:
        return "not shown"
    ends = measure.interval
    open_ended = ends is None or not all(map(math.isfinite, ends))
    return f"{measure.value:.3g}" + (
        " (no interval)" if ends is None or open_ended else f" [{ends[0]:.3g}, {ends[1]:.3g}]"
    )


def _ratio(value: float, mean: float) -> str:
    return f"{value / mean:.3g} times" if mean > 0 else "beyond any multiple of"


def _list(names: list[int]) -> str:
    return ", ".join(map(str, names[:8])) + (", ..." if len(names) > 8 else "")
