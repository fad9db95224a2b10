"""A made-up robot for the smoke form: a hand that moves as told, and an object that comes along once the gripper shuts.

Position increments, as in Meta-World, without its physics: what an error does to the state is known (it stays), so the
study's answer is known too.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from action_tokenizers import Episodes
from action_tokenizers.diagnostics.execution import Outcome

STEP = 0.02  # metres per action of 1
REACH = 0.01  # at which the expert shuts the gripper
GOAL = np.array([0.0, 0.4, 0.3])
TOLERANCE = 0.02
HOLD = 10  # steps in which the gripper shuts
GAIN, NOISE_STD, MOST_STEPS = 10, 0.05, 150


class LinearReplay:
    """Execute actions `(t, 4)` from the start of an episode: the places of the hand and of the object, `(6,)`."""

    def __init__(self, starts: Mapping[int, NDArray[np.float64]]) -> None:
        self.starts = dict(starts)

    def __call__(self, name: int, actions: NDArray[np.float32]) -> Outcome:
        hand, thing = self.starts[name][:3].copy(), self.starts[name][3:].copy()
        hands, things, done = [hand.copy()], [thing.copy()], False
        for action in actions.astype(np.float64):
            hand += STEP * action[:3]
            thing += STEP * action[:3] * (action[3] > 0)
            hands.append(hand.copy())
            things.append(thing.copy())
            done |= bool(np.linalg.norm(thing - GOAL) < TOLERANCE)
        return Outcome({"hand": np.stack(hands), "object": np.stack(things)}, float(done))


def record_linear(count: int, seed: int) -> tuple[Episodes, LinearReplay]:
    """Return demonstrations: to the object, shut the gripper, to the goal; noise on the motion."""
    rng = np.random.default_rng(seed)
    starts = {
        name: rng.uniform([-0.1, 0.5, 0.1, -0.2, 0.6, 0], [0.1, 0.6, 0.3, 0.2, 0.8, 0.1]) for name in range(count)
    }
    actions, states = zip(*(_demonstrate(start, rng) for start in starts.values()), strict=True)
    names = ("delta_x", "delta_y", "delta_z", "gripper")
    episodes = Episodes(actions, states=states, fps=80, action_names=names, source=f"linear robot {seed}")
    return episodes, LinearReplay(starts)


def _demonstrate(
    start: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    hand, thing = start[:3].copy(), start[3:].copy()
    actions, states = [], []
    shut = 0  # steps since the gripper closed
    while len(actions) < MOST_STEPS and np.linalg.norm(thing - GOAL) > TOLERANCE / 4:
        if shut or np.linalg.norm(hand - thing) < REACH:
            shut += 1
        target = thing if shut == 0 else hand if shut <= HOLD else GOAL
        moved = np.clip(GAIN * (target - hand), -1, 1) + rng.normal(0, NOISE_STD, 3)
        action = np.append(np.clip(moved, -1, 1), 1 if shut else -1).astype(np.float32)
        states.append(np.concatenate([hand, thing]))
        actions.append(action)
        hand = hand + STEP * action[:3].astype(np.float64)
        thing = thing + STEP * action[:3].astype(np.float64) * (shut > 0)
    return np.stack(actions), np.stack(states).astype(np.float32)
