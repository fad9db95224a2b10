"""Executes decoded actions beside the exact ones in a simulator, open loop, and collects how far the states part.

The protocol of a replay (`Outcome`, `Replay`), and a round of it over the episodes (`Bench`): the same start and the
same noise for exact and decoded actions; what a simulator returns is checked, what fails noted down with its reason
while the others go on. `stability` says what follows.

Errors of actions are in half ranges (`Subject`), states in whatever units they come in.
"""

import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from action_tokenizers.diagnostics.subject import Subject

__all__ = [
    "Bench",
    "Move",
    "Outcome",
    "Replay",
    "Run",
    "decoded_episodes",
]

Floats = npt.NDArray[np.float64]
Actions = npt.NDArray[np.float32]

QUANTIZATION = "quantization"  # the disturbance that decoded actions are


class Outcome(NamedTuple):
    """What an execution of actions led to.

    Attributes:
        states: `(t + 1, k)`, from the start on, or `(t, k)`, after each of t actions, in physical units: one array, or
            several by name, such as hand and object.
        score: success 0 or 1, coverage 0..1, higher is better; None where there is none.
    """

    states: Mapping[str, Floats] | Floats
    score: float | None = None


Replay = Callable[[int, Actions], Outcome]
"""Called as `replay(name, actions)`: executes `actions (t, d)`, absolute and in raw units, open loop from the recorded
start of the episode of that name (`Episodes.names`), always with the same noise."""


def decoded_episodes(subject: Subject) -> Iterator[tuple[int, Actions, Actions]]:
    """Yield per episode with chunks its position, and its recorded and decoded actions `(t_i, d)`, absolute and raw.

    Where no chunk covers a step, the decoded action is the recorded one.
    """
    # to the bit what is decoded, and so not recorded actions plus errors: contacts amplify rounding
    absolute = subject.coded.absolute(subject.decoded)
    steps = subject.first[:, None] + np.arange(subject.horizon)
    for position in subject.present.tolist():
        rows = subject.episode == position
        real = subject.real[rows]
        recorded = subject.episodes.actions[position]
        decoded = recorded.copy()
        decoded[steps[rows][real]] = absolute[rows][real]
        yield position, recorded, decoded


class _UnusableError(Exception):
    """What a replay returned cannot be used; says why in a line."""


class _Course(NamedTuple):
    """A checked outcome: states `(rows, k)` by group, and the score."""

    groups: dict[str, Floats]
    score: float | None


class Move(NamedTuple):
    """What a disturbance of the actions did to the states.

    Attributes:
        size: `(t,)` of the action errors, in half ranges.
        deviation: `(t + 1,)` by group of states, at the start and after each action.
    """

    size: Floats
    deviation: dict[str, Floats]


@dataclass(frozen=True)
class Run:
    """One episode that was executed.

    Attributes:
        name: of the episode.
        exact: score of the exact actions; None where there is none.
        decoded: score of the decoded ones, likewise.
        moves: by disturbance, that of the decoded actions first; the others are probes.
        from_recorded: the largest distance of the exact replay from the recorded states; None where it cannot be told.
    """

    name: int
    exact: float | None
    decoded: float | None
    moves: dict[str, Move]
    from_recorded: float | None

    @property
    def deviation(self) -> dict[str, Floats]:
        """How far decoded actions led from the exact ones, `(t + 1,)` by group."""
        return self.moves[QUANTIZATION].deviation


@dataclass
class Bench:
    """Replays episodes one after another, and collects what came of it.

    Attributes:
        subject: the tokenizer on held-out episodes.
        replay: executes actions in a simulator.
        baseline: outcomes of the exact actions by episode name: what is there is not executed again, what is executed
            is added.
        probes: sizes, in half ranges, of two further disturbances per episode, one push at a random step and random
            signs at every step.
        seed: of the probes.
        runs: the episodes that could be executed.
        failed: `{"episode", "reason"}` of each replay that could not be used.
        repeat: how far the exact actions of the first episode end from themselves when executed again.
    """

    subject: Subject
    replay: Replay
    baseline: MutableMapping[int, Outcome]
    probes: Sequence[float]
    seed: int
    runs: list[Run] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    repeat: float | None = None

    @property
    def groups(self) -> list[str]:
        """The groups of states that the simulator returns."""
        return list(self.runs[0].deviation) if self.runs else []

    def replay_episode(self, position: int, recorded: Actions, decoded: Actions) -> None:
        """Replay one episode; what fails is noted down."""
        name = self.subject.episodes.names[position]
        with self._noted(name):
            exact = self._exact(name, recorded)
            deviation, score = self._against(exact, "decoded actions", name, decoded)
            if not self.runs:
                # a simulator with noise of its own cannot be compared with itself
                with self._noted(name):
                    again, _ = self._against(exact, "exact actions again", name, recorded)
                    self.repeat = max(float(distance.max()) for distance in again.values())
            moves = {QUANTIZATION: Move(self._size(recorded, decoded), deviation)}
            for label, moved in self._disturbed(recorded, position):
                with self._noted(name):
                    away, _ = self._against(exact, label, name, moved)
                    moves[label] = Move(self._size(recorded, moved), away)
            self.runs.append(Run(name, exact.score, score, moves, self._from_recorded(position, exact)))

    @contextmanager
    def _noted(self, name: int) -> Iterator[None]:
        try:
            yield
        except _UnusableError as problem:
            self.failed.append({"episode": name, "reason": str(problem)})

    def _exact(self, name: int, recorded: Actions) -> _Course:
        with _naming("exact actions"):
            outcome = self.baseline[name] if name in self.baseline else self._called(name, recorded)
            course = _checked(outcome, len(recorded), self.groups)
        self.baseline.setdefault(name, outcome)
        return course

    def _against(
        self, exact: _Course, what: str, name: int, actions: Actions
    ) -> tuple[dict[str, Floats], float | None]:
        """Execute actions; return by group how far the states are from the exact ones `(t + 1,)`, and the score."""
        with _naming(what):
            course = _checked(self._called(name, actions), len(actions), list(exact.groups))
            return _apart(exact, course, len(actions)), course.score

    def _called(self, name: int, actions: Actions) -> Outcome:
        try:
            return self.replay(name, actions.copy())
        except Exception as problem:  # a simulator fails in its own ways, and the other episodes must go on
            told = (str(problem).splitlines() or [""])[0][:200]
            raise _UnusableError(f"{type(problem).__name__}: {told}") from problem

    def _size(self, recorded: Actions, moved: Actions) -> Floats:
        return np.asarray(np.linalg.norm((moved.astype(np.float64) - recorded) / self.subject.unit, axis=1))

    def _disturbed(self, recorded: Actions, position: int) -> Iterator[tuple[str, Actions]]:
        """Yield the recorded actions with one push, and with random signs at every step, for each size."""
        random = np.random.default_rng([self.seed, position])
        steps, dim = recorded.shape
        for size in self.probes:
            push = np.zeros((steps, dim))
            direction = random.standard_normal(dim)
            push[random.integers(steps)] = size * direction / np.linalg.norm(direction)
            signs = random.choice([-1.0, 1.0], (steps, dim)) * size / math.sqrt(dim)
            for label, shift in (("push", push), ("signs", signs)):
                yield f"{label} of {size:.3g}", (recorded + shift * self.subject.unit).astype(np.float32)

    def _from_recorded(self, position: int, exact: _Course) -> float | None:
        """Return how far the exact replay is from the recorded states, where it returns something of their kind."""
        states, replayed = self.subject.episodes.states, exact.groups.get("state")
        if states is None or replayed is None or replayed.shape[1] != states[position].shape[1]:
            return None
        recorded = states[position].astype(np.float64)
        # states are recorded before each action
        shift = 1 if len(replayed) == len(recorded) else 0
        distance = np.linalg.norm(replayed[:-1] - recorded[shift:], axis=1)
        return float(distance.max()) if len(distance) else None


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Say which actions it was that led to something unusable."""
    try:
        yield
    except _UnusableError as problem:
        raise _UnusableError(f"{what}: {problem}") from problem


def _checked(outcome: Any, steps: int, known: Sequence[str]) -> _Course:
    """Check what a replay returned; `known` are the groups of states that others returned, none for the first."""
    if not isinstance(outcome, Outcome):
        raise _UnusableError(f"expected an Outcome, got {type(outcome).__name__}")
    states = outcome.states if isinstance(outcome.states, Mapping) else {"state": outcome.states}
    groups = {str(group): _trajectory(str(group), values, steps) for group, values in states.items()}
    if not groups or set(groups) != set(known or groups):
        raise _UnusableError(f"expected states of {sorted(known) or 'a group'}, got {sorted(groups)}")
    return _Course(groups, _number(outcome.score))


def _trajectory(group: str, values: Any, steps: int) -> Floats:
    try:
        states = np.asarray(values, np.float64)
    except (TypeError, ValueError) as problem:
        raise _UnusableError(f"expected states of numbers, got others in {group!r}") from problem
    if states.ndim != 2 or len(states) not in (steps, steps + 1) or not states.shape[1]:
        raise _UnusableError(
            f"expected states ({steps} or {steps + 1}, k) for {steps} actions, got {states.shape} in {group!r}"
        )
    if not np.isfinite(states).all():
        step = int(np.flatnonzero(~np.isfinite(states).all(1))[0])
        raise _UnusableError(f"expected finite states, got others from row {step} on in {group!r}")
    return states


def _number(score: Any) -> float | None:
    if score is None:
        return None
    try:
        number = float(score)
    except (TypeError, ValueError) as problem:
        raise _UnusableError(f"expected a score or None, got {type(score).__name__}") from problem
    if not math.isfinite(number):
        raise _UnusableError(f"expected a finite score or None, got {number}")
    return number


def _apart(exact: _Course, other: _Course, steps: int) -> dict[str, Floats]:
    """Return by group the distance at the start and after each action, `(t + 1,)`."""
    apart = {}
    for group, states in exact.groups.items():
        got = other.groups[group]
        if got.shape != states.shape:
            raise _UnusableError(
                f"expected states {states.shape} as of the exact actions, got {got.shape} in {group!r}"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            distance = np.linalg.norm(got - states, axis=1)
        if not np.isfinite(distance).all():
            raise _UnusableError(f"the states of {group!r} diverge beyond what a number holds")
        apart[group] = distance if len(distance) > steps else np.concatenate([[0.0], distance])
    return apart
