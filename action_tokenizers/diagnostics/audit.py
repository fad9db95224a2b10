"""`audit`: is this tokenizer safe to clone with? Measures the paper's conditions on held-out episodes."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from action_tokenizers.base import ActionTokenizer, Progress
from action_tokenizers.data import Episodes, default_horizon
from action_tokenizers.data.fingerprint import recognised
from action_tokenizers.diagnostics import (
    along,
    bounds,
    codebook,
    conditions,
    error,
    fragility,
    geometry,
    jumps,
    learnability,
    smoothness,
)
from action_tokenizers.diagnostics.dynamics import dynamics_measures
from action_tokenizers.diagnostics.execution import Replay
from action_tokenizers.diagnostics.measure import Measure
from action_tokenizers.diagnostics.policy import TokenPolicy, array_of
from action_tokenizers.diagnostics.report import AuditReport
from action_tokenizers.diagnostics.stability import replay_measures
from action_tokenizers.diagnostics.states import state_measures
from action_tokenizers.diagnostics.subject import Subject
from action_tokenizers.diagnostics.variation import policy_measures
from action_tokenizers.doors import hold_last
from action_tokenizers.errors import ActionShapeError, ActionValueError, NotFittedError
from action_tokenizers.ranges import OpenRange

__all__ = ["STAGES", "audit"]

STAGES = ("policy", "error", "smoothness", "codebook", "states", "dynamics", "replay", "learnability", "bounds")
ALWAYS = ("error", "smoothness", "bounds")  # the conditions rest on the first two; bounds cost nothing
DIMS_SHOWN, STEPS_SHOWN = 3, 400

States = Sequence[npt.NDArray[np.floating]]


@dataclass(frozen=True)
class Stage:
    """Some measures that are taken together; `takes` is called with those taken before."""

    name: str
    takes: Callable[[Mapping[str, Measure]], Iterable[Measure]]


def audit(
    tokenizer: ActionTokenizer,
    episodes: Episodes,
    *,
    states: States | Literal[False] | None = None,
    policy: TokenPolicy | None = None,
    replay: Replay | None = None,
    seed: int = 0,
    horizon: int | None = None,
    unit: npt.NDArray[np.floating] | None = None,
    budget: float | None = None,
    stages: Collection[str] | None = None,
    progress: Progress | None = None,
) -> AuditReport:
    """Measure what decides whether a policy can be cloned on this tokenizer's ids, and say what holds.

    Nothing is guessed: what the inputs cannot show is "not shown", with the input that would decide it.

    Args:
        tokenizer: fitted, on other episodes than these.
        episodes: held-out demonstrations. Their padded steps count nowhere.
        states: what the policy would see, one `(t_i, ds)` array per episode; None takes the states of the episodes,
            where they have some; False leaves them out. With states, every condition that needs neither a simulator
            nor a policy is decided.
        policy: a token policy to hold to the conditions, see `TokenPolicy`; needs states.
        replay: executes actions open loop, see `Replay`.
        seed: of every draw: equal seeds give equal reports.
        horizon: steps per chunk, where the tokenizer leaves it open; None: one second.
        unit: `(d,)` half the range of each dim, in raw actions; None: half its span in these episodes. Give the
            controller's own where it has one: ones, for actions that are normalised to [-1, 1].
        budget: seconds after which no further stage begins; what was left out is noted, and is not shown. The report
            then depends on how fast the machine is.
        stages: which of `STAGES` to take, `error` and `smoothness` always among them; None: all that the inputs allow.
        progress: called as `progress(stage, done, total)`.

    Raises:
        NotFittedError: a tokenizer that is not fitted.
        ActionShapeError: no horizon to be had, episodes all shorter than it, states of other lengths, another
            action_dim than fitted, or a key the tokenizer does not know.
        ActionValueError: states that are not finite numbers, a horizon or unit that is not above 0, a policy without
            states, a policy that breaks its protocol, or no such stage.
    """
    if not tokenizer.is_fitted:
        raise NotFittedError("expected a fitted tokenizer to audit, got one that is not; call fit(data) first")
    if not isinstance(episodes, Episodes):
        raise ActionValueError(
            f"expected Episodes to audit on, got {type(episodes).__name__}; Episodes(arrays) makes them"
        )
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise ActionValueError(f"expected seed a whole number of at least 0, got {seed!r}")
    if budget is not None and not budget >= 0:
        raise ActionValueError(f"expected a budget of at least 0 seconds, got {budget!r}")
    wanted = _wanted(stages)
    seen = _states(states, episodes)
    if policy is not None and seen is None:
        raise ActionValueError("expected states beside a policy, which is asked what it does in them; got none")
    steps = _horizon(tokenizer, episodes, horizon)
    scale = error.half_range(episodes) if unit is None else _unit(unit, episodes.action_dim)
    subject = Subject.of(tokenizer, episodes, steps, scale)
    planned = [s for s in _stages(subject, seen, policy, replay, seed, progress) if s.name in wanted]
    taken, late = _run(planned, budget, progress)
    notes = _notes(subject)
    if late:
        notes.append(f"left out, because the time budget of {budget:g} s was spent: {', '.join(late)}")
    notes += _unlearnt(taken)
    known = [str(word) for word in tokenizer.provenance.get("fingerprints") or ()]
    found = conditions.decide(
        taken,
        fingerprints=len(known),
        seen=recognised(known, episodes, tokenizer.provenance.get("steps") or steps, tokenizer.relative),
        action_dim=episodes.action_dim,
        names=episodes.action_names,
        late=late,
    )
    if found[0].status == "fails":
        notes.insert(0, f"NOT HELD OUT: {found[0].evidence}")
    flag = conditions.silent_failure(taken)
    return AuditReport(
        tokenizer=_facts(tokenizer),
        data=_data(subject, seed),
        measures=tuple(taken.values()),
        conditions=found,
        silent_failure=flag,
        regime=bounds.regime(bounds.Given.of(taken)),
        advice=conditions.advise(found),
        notes=tuple(notes),
        examples=_examples(subject, taken),
    )


def _stages(
    subject: Subject,
    seen: States | None,
    policy: TokenPolicy | None,
    replay: Replay | None,
    seed: int,
    progress: Progress | None,
) -> list[Stage]:
    """Return what can be measured with these inputs; what decides conditions first, what takes long last."""
    stages = [
        Stage("error", lambda _: _error(subject, seed)),
        Stage("smoothness", lambda _: _smoothness(subject, seed)),
        Stage("codebook", lambda _: _codebook(subject, seed)),
    ]
    if policy is not None and seen is not None:
        # first of all: a policy that breaks its protocol is refused before the work
        stages.insert(0, Stage("policy", lambda _: policy_measures(subject, subject.at_starts(seen), policy, seed)))
    if seen is not None:
        stages.append(Stage("states", lambda _: state_measures(subject, seen, seed)))
        stages.append(Stage("dynamics", lambda _: dynamics_measures(subject, seen, seed=seed)))
    if replay is not None:
        stages.append(Stage("replay", lambda _: replay_measures(subject, replay, seed=seed, progress=progress)))
    stages.append(Stage("learnability", lambda _: learnability.learnability(subject, seen, seed)))
    length = round(float(np.mean([subject.episodes.lengths[i] for i in subject.present])))
    stages.append(Stage("bounds", lambda taken: bounds.bound_measures(taken, length)))
    return stages


def _error(subject: Subject, seed: int) -> list[Measure]:
    return [
        error.error_mean(subject),
        error.error_quantiles(subject),
        error.error_max(subject),
        error.error_sup(subject, seed=seed),
        error.clipping(subject),
        along.drift(subject),
        along.drift_leaky(subject),
        along.hold_bias(subject),
        along.gripper_flips(subject),
        along.border_jump(subject),
    ]


def _smoothness(subject: Subject, seed: int) -> list[Measure]:
    return [
        jumps.excess_jump(subject, seed=seed),
        jumps.modulus(subject, seed=seed),
        *smoothness.silent_failure(subject, seed=seed),
        smoothness.flips(subject, seed=seed),
        fragility.wrong_token(subject, seed=seed),
    ]


def _codebook(subject: Subject, seed: int) -> list[Measure]:
    return [
        codebook.tokens(subject),
        codebook.bits(subject),
        codebook.usage(subject),
        codebook.entropy(subject),
        codebook.shift_overlap(subject),
        codebook.undecodable(subject, seed=seed),
        geometry.cell_width(subject),
        geometry.cell_border_jump(subject),
        geometry.margin(subject),
        geometry.covering_radius(subject, seed=seed),
    ]


def _run(
    stages: Sequence[Stage], budget: float | None, progress: Progress | None
) -> tuple[dict[str, Measure], list[str]]:
    """Return the measures by name, and the stages that a spent budget left out."""
    taken: dict[str, Measure] = {}
    late: list[str] = []
    began = time.monotonic()
    for done, stage in enumerate(stages):
        if progress is not None:
            progress("audit", done, len(stages))
        if stage.name not in ALWAYS and budget is not None and time.monotonic() - began > budget:
            late.append(stage.name)
            continue
        for measure in stage.takes(taken):
            taken[measure.name] = measure
    if progress is not None:
        progress("audit", len(stages), len(stages))
    return taken, late


def _wanted(stages: Collection[str] | None) -> set[str]:
    unknown = sorted(set(stages or ()) - set(STAGES))
    if unknown:
        raise ActionValueError(f"expected stages among {list(STAGES)}, got {unknown}")
    return set(STAGES if stages is None else stages) | set(ALWAYS)


def _notes(subject: Subject) -> list[str]:
    episodes, notes = subject.episodes, []
    skipped = len(episodes) - len(subject.present)
    if skipped:
        notes.append(f"{skipped} episodes are shorter than the horizon, {subject.horizon} steps, and were skipped")
    if len(subject.present) < smoothness.LEAST_EPISODES:
        notes.append(
            f"episodes: only {len(subject.present)}, so that intervals are wide, and what needs "
            f"{smoothness.LEAST_EPISODES} of them is not shown"
        )
    if isinstance(subject.tokenizer.range, OpenRange):
        notes.append(
            "the tokenizer takes normalised actions and has no range of its own: the numbers mean something only if "
            "these actions are normalised; with_range (import --range-from) gives it one"
        )
    if subject.tokenizer.relative is not None:
        notes.append(
            "the tokenizer codes relative actions: errors and jumps are in half ranges of the absolute ones; the "
            "smoothness alarm, changed ids and what counts as far in any condition in half spans of the relative ones"
        )
    if not episodes.independent:
        notes.append("the episodes are parts of one recording: intervals that take them as independent are too narrow")
    return notes


def _unlearnt(taken: Mapping[str, Measure]) -> list[str]:
    """Say so where the probe of learnability learnt nothing, so that its numbers are not read as the tokenizer's."""
    found = taken.get("probe_error")
    if found is None or found.value is None or found.value < found.parts["repeat_last"]:
        return []
    return [
        f"the small probe learnt too little here to beat repeating the last action ({found.value:.3g} against "
        f"{found.parts['repeat_last']:.3g}): with more episodes it would say more of how learnable the ids are"
    ]


def _states(states: States | Literal[False] | None, episodes: Episodes) -> list[npt.NDArray[np.float64]] | None:
    """Return one `(t_i, ds)` array per episode, or None where there are none.

    Padded steps may hold anything, and are given the last real state, as they are given the last real action.
    """
    if states is False:
        return None
    given = episodes.states if states is None else states
    if given is None:
        return None
    if isinstance(given, bool):
        raise ActionValueError("expected states as one (t_i, ds) array per episode, or False, got True")
    arrays = [array_of(s, "states", "fiub").astype(np.float64) for s in given]
    got = [a.shape[0] if a.ndim == 2 else a.shape for a in arrays]
    if got != list(episodes.lengths):
        raise ActionShapeError(
            f"expected states as one (t_i, ds) array per episode, of the lengths {_short(list(episodes.lengths))}, got "
            f"{_short(got)}; states=False leaves them out"
        )
    widths = sorted({a.shape[1] for a in arrays})
    if len(widths) > 1 or widths == [0]:
        raise ActionShapeError(f"expected states of one width of at least 1 in all episodes, got {widths}")
    masks = episodes.padding
    for name, array, mask in zip(episodes.names, arrays, masks, strict=True):
        wrong = np.argwhere(~np.isfinite(array) & ~mask[:, None])
        if len(wrong):
            frame, dim = wrong[0].tolist()
            raise ActionValueError(
                f"expected finite states, got {array[frame, dim]} in episode {name}, frame {frame}, dim {dim}"
            )
    return [array if mask.all() else _held(array, mask) for array, mask in zip(arrays, masks, strict=True)]


def _held(array: npt.NDArray[np.float64], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return `array (t, ds)` with the last real row before them where `mask (t,)`, else the first one after."""
    held: npt.NDArray[np.float64] = hold_last(torch.from_numpy(array)[None], torch.from_numpy(mask)[None])[0].numpy()
    return held


def _horizon(tokenizer: ActionTokenizer, episodes: Episodes, asked: int | None) -> int:
    if asked is not None and (not isinstance(asked, Integral) or asked < 1):
        raise ActionValueError(f"expected horizon a whole number of steps of at least 1, got {asked!r}")
    fitted = tokenizer.horizon
    if fitted is not None and asked not in (None, fitted):
        raise ActionShapeError(f"expected horizon {fitted}, as the tokenizer was fitted, got {asked}")
    horizon = fitted or asked or default_horizon(episodes)
    if horizon is None:
        raise ActionShapeError(
            f"expected a horizon, but {episodes.source or 'the data'} have no fps to take one second of; give horizon="
        )
    return horizon


def _unit(unit: npt.NDArray[np.floating], action_dim: int) -> npt.NDArray[np.float64]:
    values = array_of(unit, "unit", "fiub").astype(np.float64)
    if values.shape != (action_dim,) or not bool((np.isfinite(values) & (values > 0)).all()):
        raise ActionValueError(f"expected unit ({action_dim},), finite and above 0, got {values.tolist()}")
    return values


def _facts(tokenizer: ActionTokenizer) -> dict[str, Any]:
    told = tokenizer.provenance
    return {
        "type": tokenizer.tokenizer_type,
        "params": {name: str(value) for name, value in tokenizer.get_params().items()},
        "horizon": tokenizer.horizon,
        "action_dim": tokenizer.action_dim,
        "vocab_size": tokenizer.vocab_size,
        "fitted_on": [str(source) for source in told.get("sources") or ()],
        "sample": told.get("sample"),
    }


def _data(subject: Subject, seed: int) -> dict[str, Any]:
    episodes = subject.episodes
    return {
        "source": episodes.source,
        "key": subject.key,
        "fps": episodes.fps,
        "episodes": len(subject.present),
        "names": [int(episodes.names[i]) for i in subject.present],
        "chunks": len(subject),
        "steps": int(subject.real.sum()),
        "horizon": subject.horizon,
        "action_dim": episodes.action_dim,
        "action_names": list(episodes.action_names) if episodes.action_names else None,
        "unit": subject.unit.tolist(),
        "seed": seed,
    }


def _examples(subject: Subject, taken: Mapping[str, Measure]) -> tuple[dict[str, Any], ...]:
    """Return the dims that drift most in the episode whose drift is the median, recorded and decoded."""
    executed = along.executed(subject)
    drifts = [along.drift_of([e.error])["drift"] for e in executed]
    middle = int(np.argsort(drifts)[len(drifts) // 2])
    action, error_ = executed[middle]
    names = subject.episodes.action_names or tuple(map(str, range(action.shape[1])))
    worst = np.argsort(taken["drift"].parts["per_dim"])[::-1][:DIMS_SHOWN]
    recorded = action[:STEPS_SHOWN] * subject.unit
    decoded = (action + error_)[:STEPS_SHOWN] * subject.unit
    return tuple(
        {
            "episode": int(subject.episodes.names[subject.present[middle]]),
            "dim": names[j],
            "recorded": recorded[:, j].round(6).tolist(),
            "decoded": decoded[:, j].round(6).tolist(),
        }
        for j in worst.tolist()
    )


def _short(values: list[Any]) -> str:
    return str(values) if len(values) <= 8 else f"[{', '.join(map(str, values[:8]))}, ...]"
