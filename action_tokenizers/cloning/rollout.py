"""Execute what a policy plans in simulators, from given starts, many at once: closed loop."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from action_tokenizers.base import Progress
from action_tokenizers.cloning.planning import Plan, Plans
from action_tokenizers.diagnostics.policy import derived
from action_tokenizers.errors import ActionShapeError, ActionValueError

__all__ = ["Executed", "Simulator", "rollout"]

Floats = npt.NDArray[np.float32]

UNDECODABLE = "the policy's ids do not decode"


class Simulator(Protocol):
    """One robot. Deterministic: equal starts and actions give equal states."""

    def reset(self, start: int) -> Any:
        """Go to the start and return the state `(ds,)`."""

    def step(self, action: Floats) -> tuple[Any, float]:
        """Execute `action (d,)`; return the state `(ds,)` and how much of the task is done, 1: all of it."""


@dataclass(frozen=True)
class Executed:
    """What came of the rollouts, in the order of the starts.

    Attributes:
        scores: `(b,)` the best score of each.
        steps: `(b,)` executed.
        looks: `(b,)` how often the state was looked at.
        asks: `(b,)` how often the policy was asked.
        stopped: why a rollout ended before its time, None: it did not (or the task was done).
        diverged: `(b,)` plans that were cut because the model left what it knows.
    """

    scores: npt.NDArray[np.float64]
    steps: npt.NDArray[np.int64]
    looks: npt.NDArray[np.int64]
    asks: npt.NDArray[np.int64]
    stopped: tuple[str | None, ...]
    diverged: npt.NDArray[np.int64]


class _Robot:
    """A simulator on its way, and what it is still to execute."""

    def __init__(self, simulator: Simulator, start: int, budget: int) -> None:
        self.simulator, self.budget = simulator, budget
        self.queue: deque[Floats] = deque()
        self.score, self.steps, self.looks, self.asks, self.diverged = 0.0, 0, 0, 0, 0
        self.stopped: str | None = None
        self.state = _state(simulator.reset(start), f"the start {start}")

    @property
    def is_going(self) -> bool:
        return self.stopped is None and self.steps < self.budget and self.score < 1

    def take(self, plan: Plan, row: int) -> None:
        self.looks += 1
        self.asks += plan.asks
        self.diverged += int(plan.diverged[row])
        self.queue.extend(plan.actions[row, : plan.steps[row]])
        if not self.queue:
            self.stopped = UNDECODABLE

    def act(self) -> None:
        """Execute what was planned; a simulator that raises or leaves the numbers ends this rollout alone."""
        while self.queue and self.is_going:
            try:
                state, score = self.simulator.step(self.queue.popleft())
                self.state = _state(state, f"step {self.steps}")
            except Exception as error:  # a user's simulator may raise anything
                self.stopped = f"{type(error).__name__}: {error}"
                return
            self.steps += 1
            self.score = max(self.score, float(score))
        self.queue.clear()


def rollout(
    planner: Plans,
    simulator: Callable[[], Simulator],
    starts: Sequence[int],
    *,
    steps: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> Executed:
    """Execute a policy from each start, until the task is done or the steps are over.

    All robots are planned for in one call, also those that are done: a robot keeps its row and with it its random
    numbers, whatever becomes of the others, so that policies can be compared start by start.

    Args:
        planner: a `Planner`, or anything with its `plan`.
        simulator: makes one; called once per start.
        starts: given to `reset`.
        steps: most steps of each. What is planned beyond them is not executed, whether or not horizons divide.
        seed: of all plans.
        progress: called as `progress("rollout", steps done, steps of all)`.

    Raises:
        ActionValueError: no starts or steps, or a start without a finite state.
        ActionShapeError: the planner returns another number of plans than states.
    """
    if not len(starts) or steps < 1:
        raise ActionValueError(f"expected starts and steps >= 1, got {len(starts)} and {steps}")
    robots = [_Robot(simulator(), start, steps) for start in starts]
    look = 0
    while any(robot.is_going for robot in robots):
        plan = planner.plan(np.stack([robot.state for robot in robots]), seed=derived(seed, look))
        if len(plan.steps) != len(robots):
            raise ActionShapeError(f"expected a plan for each of {len(robots)} states, got {len(plan.steps)}")
        for row, robot in enumerate(robots):
            if robot.is_going:
                robot.take(plan, row)
                robot.act()
        look += 1
        if progress is not None:
            left = sum(robot.budget - robot.steps for robot in robots if robot.is_going)
            progress("rollout", len(robots) * steps - left, len(robots) * steps)
    return Executed(
        np.array([robot.score for robot in robots]),
        np.array([robot.steps for robot in robots]),
        np.array([robot.looks for robot in robots]),
        np.array([robot.asks for robot in robots]),
        tuple(robot.stopped for robot in robots),
        np.array([robot.diverged for robot in robots]),
    )


def _state(value: Any, where: str) -> Floats:
    state = np.asarray(value, np.float32)
    if state.ndim != 1 or not np.isfinite(state).all():
        raise ActionValueError(f"expected a finite state (ds,) from the simulator at {where}, got {state}")
    return state
