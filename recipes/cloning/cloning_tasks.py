"""Tasks to clone: demonstrations, held-out ones, and a simulator to execute the policy in.

Meta-World: the scripted expert with N(0, .05²) on its executed xyz actions; 100 demonstrations from starts 0-24,
policies are executed from starts 25-49. PushT: 166 human demonstrations; policies are executed from the first states of
the other 40. The policy sees the angle of the block as sine and cosine. The made-up reach needs no simulator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from action_tokenizers import Episodes
from action_tokenizers.cloning.rollout import Simulator
from action_tokenizers.diagnostics.error import unit_of

META_WORLD = ("reach-v3", "pick-place-v3")
PUSHT = "pusht"
MADE_UP = "made-up reach"
PUSHT_HELD_OUT = 40

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Task:
    """What to learn from, and where to show it.

    Attributes:
        name: of the task.
        fit: demonstrations with states.
        held_out: demonstrations from other starts, for the audit.
        simulator: makes one.
        starts: for its `reset`; none of them was demonstrated in `fit`.
        steps: most of a rollout.
        horizon: steps of a chunk.
        execute: how many of them are executed.
        range: of the tokenizers.
        unit: `(d,)` of the audit.
    """

    name: str
    fit: Episodes
    held_out: Episodes
    simulator: Callable[[], Simulator]
    starts: tuple[int, ...]
    steps: int
    horizon: int
    execute: int
    range: str
    unit: NDArray[np.float64]


def meta_world(task: str) -> Task:
    from action_tokenizers.integrations.simulators import MetaWorldSimulator, record

    return Task(
        task,
        record(task, range(25), range(4)).episodes,
        record(task, range(25, 50), range(4), one_per_start=True).episodes,
        partial(MetaWorldSimulator, task),
        tuple(range(25, 50)),
        steps=300,
        horizon=8,
        execute=4,
        range="unit",
        unit=np.ones(4),
    )


def pusht(folder: Path) -> Task:
    from action_tokenizers.integrations.simulators import PushTSimulator

    episodes = Episodes.load(folder)
    order = np.random.default_rng(0).permutation(len(episodes))
    fit, held_out = episodes[order[PUSHT_HELD_OUT:]], episodes[order[:PUSHT_HELD_OUT]]

    class Seen(PushTSimulator):
        """PushT whose angle is seen as sine and cosine."""

        def reset(self, name: int) -> Any:
            return _turned(super().reset(name)[None])[0]

        def step(self, action: Floats) -> tuple[Any, float]:
            state, score = super().step(action)
            return _turned(state[None])[0], score

    def seen(some: Episodes) -> Episodes:
        return replace(some, states=[_turned(states) for states in some.states or ()])

    return Task(
        PUSHT,
        seen(fit),
        seen(held_out),
        partial(Seen, held_out),
        held_out.names,
        steps=300,
        horizon=16,
        execute=8,
        range="minmax",
        unit=unit_of(list(fit.actions)),
    )


def _turned(states: NDArray[Any]) -> Floats:
    """Return PushT's states with the angle as sine and cosine, `(t, 6)`."""
    angle = states[:, 4:5]
    return np.concatenate([states[:, :4], np.sin(angle), np.cos(angle)], 1).astype(np.float32)


class Reach:
    """A point that a velocity moves towards a goal; the goal is seen. Done within 0.1 of it."""

    def reset(self, start: int) -> Floats:
        self.place, self.goal = np.random.default_rng(start).uniform(-1, 1, (2, 2))
        return self.state()

    def step(self, action: Floats) -> tuple[Floats, float]:
        self.place = self.place + 0.2 * np.clip(action, -1, 1)
        return self.state(), float(np.linalg.norm(self.place - self.goal) < 0.1)

    def state(self) -> Floats:
        return np.concatenate([self.place, self.goal - self.place]).astype(np.float32)


def made_up() -> Task:
    def demonstrations(starts: range) -> Episodes:
        actions, states = [], []
        for start in starts:
            robot, rng = Reach(), np.random.default_rng([1, start])
            rows = [robot.reset(start)]
            done: list[Floats] = []
            for _ in range(20):
                wanted = np.clip(3 * rows[-1][2:], -1, 1)
                done.append(np.clip(wanted + rng.normal(0, 0.05, 2), -1, 1).astype(np.float32))
                rows.append(robot.step(done[-1])[0])
            actions.append(np.stack(done))
            states.append(np.stack(rows[:-1]))
        return Episodes(actions, states=states, fps=10, source=f"made-up reach {starts.start}-{starts.stop - 1}")

    return Task(
        MADE_UP,
        demonstrations(range(60)),
        demonstrations(range(60, 80)),
        Reach,
        tuple(range(60, 80)),
        steps=30,
        horizon=4,
        execute=2,
        range="unit",
        unit=np.ones(2),
    )


def tasks(data: Path | None) -> dict[str, Callable[[], Task]]:
    """Return how to prepare each task; PushT needs the folder of its demonstrations with 5-D states."""
    known: dict[str, Callable[[], Task]] = {name: partial(meta_world, name) for name in META_WORLD}
    return known if data is None else {**known, PUSHT: partial(pusht, data)}
