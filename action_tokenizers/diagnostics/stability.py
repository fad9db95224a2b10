"""What an error of an action does to the state and the score, measured by replay in a simulator.

A tokenizer's error enters the robot as a disturbance of its actions, so what it costs depends on whether the system
forgets disturbances (incremental input-to-state stability; Cao & Xie 2026, Def 3). The decoded actions are executed
open loop from the recorded start, and compared with the exact ones under the same noise (`execution`). Without a
simulator, `dynamics` has a stand-in.

Errors of actions are in half ranges (`Subject`), states in whatever units they come in.
"""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from action_tokenizers.base import Progress
from action_tokenizers.diagnostics.execution import Bench, Outcome, Replay, decoded_episodes
from action_tokenizers.diagnostics.measure import Estimator, Kind, Measure, bootstrap_t, clopper_pearson
from action_tokenizers.diagnostics.subject import Subject

__all__ = [
    "ESTIMATORS",
    "growth_rate",
    "largest_gain",
    "replay_measures",
]

Floats = npt.NDArray[np.float64]

NEGLIGIBLE = 1e-6  # an error of an action below this is rounding of float32
ROUNDING = 1e-12  # likewise of a deviation, as a share of the largest
LARGEST_EXPONENT = 700.0  # of a number
BOOTSTRAP = "bootstrap-t over episodes, 95 %"

REPLAY_DEVIATION = Estimator(
    name="replay_deviation",
    heading="replay (state deviation)",
    unit="state units",
    kinds=(Kind.UNBIASED,),
    meaning=(
        "How far the robot and its objects end up from where the exact actions lead, when the decoded actions are "
        "executed open loop from the recorded start: the largest distance of each episode, averaged over episodes, "
        "of the group of states in which it is largest."
    ),
    caution=(
        "Open loop: nothing looks at the state, so a policy that does may recover, or may do worse. "
        "It never queries the tokenizer away from the recorded actions. Groups are compared as they come: "
        "give them one unit."
    ),
    advice="Lower the drift first (finer codes, error that does not keep its sign); then look at held values.",
    source="Cao & Xie 2026, Def 2, 3 and Thm 7",
    function="stability.replay_measures",
    test="test_stability.py::test_deviation_is_the_mean_of_the_largest_distances",
)
REPLAY_SCORE = Estimator(
    name="replay_score",
    heading="replay (score lost)",
    unit="score",
    kinds=(Kind.UNBIASED,),
    meaning=(
        "How much of the task's score (success, coverage) is lost when decoded actions are executed instead of the "
        "exact ones, open loop from the recorded start; an episode that scores higher counts as no loss."
    ),
    caution="Open loop: it is no success rate of a policy, neither above nor below it.",
    advice="Find what goes wrong in one of the lost episodes: drift of the arm, or a grip that does not hold.",
    source="Cao & Xie 2026, Thm 7",
    function="stability.replay_measures",
    test="test_stability.py::test_score_lost_has_an_exact_interval_where_it_is_a_share",
)
REPLAY_GAIN = Estimator(
    name="replay_gain",
    heading="replay (gain)",
    unit="state units per half range",
    kinds=(Kind.LOWER,),
    meaning=(
        "The largest state deviation seen for each unit of the largest action error before it: "
        "how strongly the system answers to errors of its actions."
    ),
    caution=(
        "The worst of the disturbances that were tried; another one may do more. "
        "Contacts make it depend on the size of the error."
    ),
    advice="Large: smooth errors out over time, or execute shorter chunks so that feedback comes sooner.",
    source="Cao & Xie 2026, Def 3",
    function="stability.replay_measures",
    test="test_stability.py::test_gain_of_a_linear_system_is_found_from_below",
)
REPLAY_GROWTH = Estimator(
    name="replay_growth",
    heading="replay (growth of the deviation)",
    unit="per step",
    kinds=(Kind.UNBIASED,),
    meaning=(
        "How fast the deviation grows over the second half of an episode, as a rate of exponential growth: 0 or less "
        "means that the system forgets old errors, 0.7 that deviations double every step."
    ),
    caution=(
        "It is above 0 also where errors only add up, as in position control. `factor` says how many times larger the "
        "deviation gets over the second half: about 1 where errors are forgotten, 2 where they add up, more where "
        "they feed on themselves."
    ),
    advice="A factor well above 2: the system is unstable open loop, and needs feedback at every step.",
    source="Cao & Xie 2026, Def 3",
    function="stability.replay_measures",
    test="test_stability.py::test_growth_is_the_rate_of_an_unstable_system",
)
ESTIMATORS: tuple[Estimator, ...] = (REPLAY_DEVIATION, REPLAY_SCORE, REPLAY_GAIN, REPLAY_GROWTH)


def replay_measures(
    subject: Subject,
    replay: Replay,
    *,
    baseline: MutableMapping[int, Outcome] | None = None,
    probes: Sequence[float] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Measure]:
    """Execute the exact and the decoded actions of every episode with chunks, and measure how far they part.

    An episode whose replay raises, or returns states that are not finite or too few, is named in the measures with
    a reason, and the others go on.

    Args:
        subject: the tokenizer on held-out episodes.
        replay: executes actions in a simulator, see `Replay`.
        baseline: outcomes of the exact actions by episode name: what is there is not executed again, what is executed
            is added. Give the same dict for several tokenizers on the same episodes.
        probes: sizes, in mean errors of the tokenizer, of two further disturbances per episode, one push at a random
            step and random signs at every step. They count in the gain alone.
        seed: of the probes and the intervals.
        progress: called after each episode.

    Returns:
        `replay_deviation`, `replay_score`, `replay_gain` and `replay_growth`.
    """
    mean = float(subject.average(np.linalg.norm(subject.error, axis=-1)).mean())
    sizes = [size * mean for size in probes] if mean > NEGLIGIBLE else []
    bench = Bench(subject, replay, {} if baseline is None else baseline, sizes, seed)
    for done, (position, recorded, decoded) in enumerate(decoded_episodes(subject), 1):
        bench.replay_episode(position, recorded, decoded)
        if progress is not None:
            progress("replay", done, len(subject.present))
    return [_deviation(bench), _score(bench), _gain(bench), _growth(bench)]


def largest_gain(deviation: Floats, size: Floats) -> float | None:
    """Return the largest state deviation per unit of the largest action error before it.

    Args:
        deviation: `(t + 1,)`, at the start and after each action.
        size: `(t,)` of the action errors.

    Returns:
        None where no action errs.

    Example:
        >>> largest_gain(np.array([0.0, 1.0, 1.5]), np.array([1.0, 0.5]))
        1.5
    """
    so_far = np.maximum.accumulate(size)
    seen = so_far > NEGLIGIBLE
    return float((deviation[1:][seen] / so_far[seen]).max()) if seen.any() else None


def growth_rate(deviation: Floats) -> float | None:
    """Return the slope of log deviation `(t + 1,)` against the step; None for fewer than three deviations above 0.

    Example:
        >>> round(growth_rate(2.0 ** np.arange(10)), 4)
        0.6931
    """
    steps = np.flatnonzero(deviation > ROUNDING * deviation.max(initial=0))
    if len(steps) < 3:
        return None
    return float(np.polyfit(steps, np.log(deviation[steps]), 1)[0])


def _measure(
    bench: Bench,
    row: Estimator,
    value: float | None,
    *,
    interval: tuple[float, float] | None = None,
    method: str = BOOTSTRAP,
    episodes: int | None = None,
    note: str = "",
    **parts: Any,
) -> Measure:
    """Return a measure of the episodes, or of so many of them, that says what was left out."""
    return row.measure(
        value,
        interval=interval,
        method=None if interval is None else method,
        n={
            "episodes": len(bench.runs) if episodes is None else episodes,
            "failed": len({item["episode"] for item in bench.failed}),
        },
        note=f"{_left_out(bench)} {note}".strip(),
        parts={**parts, "episodes": [run.name for run in bench.runs], "failed": bench.failed},
    )


def _left_out(bench: Bench) -> str:
    """Say in words what was left out, and whether the simulator repeats itself."""
    said = []
    if bench.failed:
        first = bench.failed[0]
        said.append(
            f"Replays that failed: {len(bench.failed)}, the first in episode {first['episode']} "
            f"({first['reason']}). They are left out; where decoded actions made the simulator fail, the numbers "
            "are better than the truth."
        )
    if bench.repeat:
        said.append(
            f"The same actions executed twice end {bench.repeat:.3g} apart: the replay does not repeat its noise, "
            "and deviations of that size mean nothing."
        )
    if len(bench.runs) == 1:
        said.append("One episode has no interval.")
    return " ".join(said)


def _worst_group(bench: Bench, row: Estimator, values: Mapping[str, Floats], note: str = "", **parts: Any) -> Measure:
    """Return the mean over episodes of `values (e,)` by group, of the group in which it is largest."""
    means = {group: float(each.mean()) for group, each in values.items()}
    worst = max(means, key=means.__getitem__)
    interval = bootstrap_t(values[worst], seed=bench.seed)
    found = {"group": worst, "per_group": means, **parts}
    return _measure(bench, row, means[worst], interval=interval, episodes=len(values[worst]), note=note, **found)


def _deviation(bench: Bench) -> Measure:
    if not bench.runs:
        return _measure(bench, REPLAY_DEVIATION, None)
    curves = {group: [run.deviation[group] for run in bench.runs] for group in bench.groups}
    largest = {group: np.array([curve.max() for curve in each]) for group, each in curves.items()}
    distances = [run.from_recorded for run in bench.runs if run.from_recorded is not None]
    away = float(np.mean(distances)) if distances else None
    note = ""
    if away is not None and away > largest["state"].mean():
        note = (
            f"The exact replay itself is {away:.3g} from the recorded states, farther than the decoded one from it: "
            "the replay does not reproduce the recording."
        )
    return _worst_group(
        bench,
        REPLAY_DEVIATION,
        largest,
        note,
        per_episode={group: values.tolist() for group, values in largest.items()},
        curve={group: _mean_curve(each) for group, each in curves.items()},
        repeat=bench.repeat,
        exact_from_recorded=away,
    )


def _mean_curve(curves: list[Floats]) -> list[float]:
    """Return the mean over the episodes that last as long, step by step."""
    padded = np.full((len(curves), max(map(len, curves))), np.nan)
    for row, curve in zip(padded, curves, strict=True):
        row[: len(curve)] = curve
    means: list[float] = np.nanmean(padded, axis=0).tolist()
    return means


def _score(bench: Bench) -> Measure:
    scored = [run for run in bench.runs if run.exact is not None and run.decoded is not None]
    if not scored:
        note = "The replay gives no score." if bench.runs else ""
        return _measure(bench, REPLAY_SCORE, None, episodes=0, note=note)
    exact, decoded = np.array([(run.exact, run.decoded) for run in scored], np.float64).T
    loss = np.maximum(0, exact - decoded)
    is_share = bool(np.isin([exact, decoded], (0, 1)).all())

    def interval(values: Floats) -> tuple[float, float] | None:
        return clopper_pearson(int(values.sum()), len(values)) if is_share else bootstrap_t(values, seed=bench.seed)

    note = ""
    if is_share and exact.mean() < 1:
        note = f"The exact actions themselves succeed in {int(exact.sum())} of {len(exact)}."
    return _measure(
        bench,
        REPLAY_SCORE,
        float(loss.mean()),
        interval=interval(loss),
        method="Clopper-Pearson" if is_share else BOOTSTRAP,
        episodes=len(loss),
        note=note,
        exact={"mean": float(exact.mean()), "interval": interval(exact)},
        decoded={"mean": float(decoded.mean()), "interval": interval(decoded)},
        per_episode={"exact": exact.tolist(), "decoded": decoded.tolist(), "loss": loss.tolist()},
        scored=[run.name for run in scored],
    )


def _gain(bench: Bench) -> Measure:
    """The largest over episodes, groups and disturbances; in the parts for each kind of disturbance."""
    largest: dict[str, dict[str, float]] = {}
    for run in bench.runs:
        for label, move in run.moves.items():
            kind = largest.setdefault(label, {})
            for group, deviation in move.deviation.items():
                gain = largest_gain(deviation, move.size)
                if gain is not None:
                    kind[group] = max(gain, kind.get(group, 0.0))
    every = [gain for gains in largest.values() for gain in gains.values()]
    note = ""
    if bench.runs and not every:
        note = "No decoded action differs from the recorded one, so that nothing was tried."
    return _measure(bench, REPLAY_GAIN, max(every, default=None), note=note, per_disturbance=largest)


def _growth(bench: Bench) -> Measure:
    rates: dict[str, Floats] = {}
    factors: dict[str, dict[str, Any]] = {}
    whole: dict[str, float | None] = {}
    for group in bench.groups:
        curves = [run.deviation[group] for run in bench.runs]
        # a deviation starts at 0, and its rise to what the system settles at is no growth
        late = [curve[len(curve) // 2 :] for curve in curves]
        found = [(rate, len(half) - 1) for half in late if (rate := growth_rate(half)) is not None]
        if found:
            rates[group], steps = np.array(found).T
            factors[group] = _factor(rates[group] * steps, bench.seed)
        all_steps = [rate for curve in curves if (rate := growth_rate(curve)) is not None]
        whole[group] = float(np.mean(all_steps)) if all_steps else None
    if not rates:
        note = "No episode deviates at three steps of its second half." if bench.runs else ""
        return _measure(bench, REPLAY_GROWTH, None, note=note)
    return _worst_group(bench, REPLAY_GROWTH, rates, factor=factors, whole=whole)


def _factor(logarithms: Floats, seed: int) -> dict[str, Any]:
    """Return the geometric mean over episodes of how many times larger something got, and its interval."""
    interval = bootstrap_t(logarithms, seed=seed)
    ends = np.array([logarithms.mean(), *(interval or ())])
    value, *around = np.exp(np.minimum(ends, LARGEST_EXPONENT)).tolist()
    return {"value": value, "interval": around or None}
