"""Simulators to replay actions in, open loop from a recorded start: Meta-World and PushT (`pip install [sim]`).

`MetaWorldReplay` and `PushTReplay` are what the audit calls `replay`: called with an episode's name and actions, they
execute the actions from the start of that episode and tell what came of it. Recorded actions reproduce the recording,
so that whatever differs after a tokenizer is the tokenizer's doing. Both are deterministic, on one machine to the bit.

    fit, _ = record("push-v3", range(25))
    held_out, starts = record("push-v3", range(25, 50), one_per_start=True)
    report = audit(BinningTokenizer(horizon=8).fit(fit), held_out, replay=MetaWorldReplay("push-v3", starts))

Two traps are avoided here. Meta-World ignores `reset(seed=)`: only `set_task` chooses a start, and with the other way
4 to 38 % of the recorded successes come back. gym-pusht's `reset_to_state` turns the block about another point than the
one whose position it was told, and so puts it up to 90 px beside the recorded place; see `PushTReplay`.
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from action_tokenizers.base import Progress
from action_tokenizers.data.episodes import Episodes
from action_tokenizers.diagnostics.execution import Outcome
from action_tokenizers.errors import ActionShapeError, ActionValueError, FormatError
from action_tokenizers.extras import require

__all__ = [
    "ACTION_NAMES",
    "FPS",
    "STATE_NAMES",
    "Demonstration",
    "MetaWorldReplay",
    "MetaWorldSimulator",
    "MetaWorldTask",
    "PushTReplay",
    "PushTSimulator",
    "Recording",
    "record",
    "recorded_starts",
    "state_of",
]

Floats = npt.NDArray[np.float32]
Observation = npt.NDArray[np.float64]

FPS = 80
MAX_STEPS = 400
STEPS_AFTER_SUCCESS = 15
NOISE_STD = 0.05
ACTION_NAMES = ("delta_x", "delta_y", "delta_z", "gripper")
STATE_NAMES = (
    *("hand_x", "hand_y", "hand_z", "gripper_opening"),
    *("object_x", "object_y", "object_z"),
    *("object_quat_0", "object_quat_1", "object_quat_2", "object_quat_3"),
    *("goal_x", "goal_y", "goal_z"),
)
# Where the state sits in Meta-World's 39 observations; what is left out is a second object, which most tasks do not
# have, and the previous frame.
STATE_ENTRIES = (*range(11), *range(36, 39))
HAND, OBJECT = slice(0, 3), slice(4, 7)  # of an observation

PUSHT_SIDE = 512.0  # px
PUSHT_STATE = 5
CORRECTIONS = 50


@dataclass(frozen=True)
class Demonstration:
    """One success of Meta-World's scripted expert.

    Attributes:
        start: which of the task's 50 start states.
        noise_seed: of the execution noise.
        states: `(n, 14)` see `STATE_NAMES`; `states[h]` is what the expert saw before `actions[h]`.
        actions: `(n, 4)` as executed.
        successes: `(n,)` after each action.
    """

    start: int
    noise_seed: int
    states: Floats
    actions: Floats
    successes: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.actions)


def state_of(observation: Observation) -> Floats:
    """Return the state `(14,)`, see `STATE_NAMES`, in Meta-World's 39 observations."""
    return observation[list(STATE_ENTRIES)].astype(np.float32)


class MetaWorldTask:
    """One Meta-World task with the 50 start states of `MT1(task, seed=0)`.

    Args:
        task: such as `pick-place-v3`.

    Raises:
        MissingExtraError: metaworld is not installed.
        ActionValueError: no such task; lists the known ones.
    """

    def __init__(self, task: str) -> None:
        metaworld = require("metaworld", "sim")
        self._experts = require("metaworld.policies", "sim").ENV_POLICY_MAP
        if task not in self._experts:
            raise ActionValueError(f"expected a Meta-World task among {sorted(self._experts)}, got {task!r}")
        benchmark = metaworld.MT1(task, seed=0)
        self.task = task
        self._tasks: list[Any] = benchmark.train_tasks
        self._env: Any = benchmark.train_classes[task]()

    @property
    def starts(self) -> int:
        """Number of start states."""
        return len(self._tasks)

    def reset(self, start: int) -> Observation:
        """Go to a start state and return Meta-World's 39 observations."""
        if not 0 <= start < self.starts:
            raise ActionValueError(f"expected a start of {self.task} among 0..{self.starts - 1}, got {start}")
        self._env.set_task(self._tasks[start])
        observation: Observation = self._env.reset()[0]
        return observation

    def step(self, action: npt.NDArray[np.floating]) -> tuple[Observation, bool]:
        """Execute `action (4,)` and return the 39 observations and whether the task is solved now."""
        observation, _, _, _, info = self._env.step(action)
        return observation, bool(info["success"])

    def demonstrate(self, start: int, noise_seed: int) -> Demonstration | None:
        """Let the scripted expert act once, up to 15 steps after its success; None: none within 400 steps.

        Its action is clipped to [-1, 1], its xyz part disturbed by N(0, 0.05²), clipped again and rounded to float32;
        what is executed is what is recorded.
        """
        with warnings.catch_warnings():  # the experts saturate on purpose
            warnings.filterwarnings("ignore", message="Constant.s. may be too high", category=UserWarning)
            return self._act(start, noise_seed)

    def _act(self, start: int, noise_seed: int) -> Demonstration | None:
        expert = self._experts[self.task]()
        rng = np.random.default_rng([start, noise_seed])
        states, actions = [], []
        successes: list[bool] = []
        steps_left = MAX_STEPS
        observation = self.reset(start)
        while steps_left > 0:
            noise = rng.normal(0, NOISE_STD, 4)
            noise[3] = 0  # the gripper is not disturbed
            # a copy: the expert of door-open moves the door it is shown
            wanted = np.clip(expert.get_action(observation.copy()), -1, 1)
            action = np.clip(wanted + noise, -1, 1).astype(np.float32)
            states.append(state_of(observation))
            actions.append(action)
            observation, success = self.step(action)
            steps_left -= 1
            if success and not any(successes):
                steps_left = min(steps_left, STEPS_AFTER_SUCCESS)
            successes.append(success)
        if not any(successes):
            return None
        return Demonstration(start, noise_seed, np.stack(states), np.stack(actions), np.array(successes))


class Recording(NamedTuple):
    """Recorded demonstrations and where each began.

    Attributes:
        episodes: with states, see `STATE_NAMES`.
        starts: episode name -> start state, for `MetaWorldReplay`.
    """

    episodes: Episodes
    starts: dict[int, int]


def record(
    task: str,
    starts: Iterable[int],
    noise_seeds: Iterable[int] = range(4),
    *,
    one_per_start: bool = False,
    progress: Progress | None = None,
) -> Recording:
    """Record Meta-World's scripted expert; what fails is left out.

    Args:
        task: such as `pick-place-v3`.
        starts: which of the 50 start states.
        noise_seeds: of the execution noise; every pair of start and seed is a demonstration.
        one_per_start: only the first seed with which the expert succeeds; held-out episodes should be independent.
        progress: called as `progress("record", done, total)` per start.

    Raises:
        MissingExtraError: metaworld is not installed.
        ActionValueError: no such task or start, or the expert never succeeded.
    """
    simulator, starts, seeds = MetaWorldTask(task), list(starts), list(noise_seeds)
    kept: list[Demonstration] = []
    for done, start in enumerate(starts):
        if progress is not None:
            progress("record", done, len(starts))
        for seed in seeds:
            found = simulator.demonstrate(start, seed)
            kept += [] if found is None else [found]
            if found is not None and one_per_start:
                break
    if not kept:
        raise ActionValueError(
            f"expected a success of the expert of {task}, got none from starts {starts} with seeds {seeds}; give more"
        )
    episodes = Episodes(
        [demonstration.actions for demonstration in kept],
        states=[demonstration.states for demonstration in kept],
        fps=FPS,
        action_names=ACTION_NAMES,
        # fits and held-out episodes of one task must not pass for the same data
        source=f"{task} starts {starts[0]}-{starts[-1]}",
    )
    return Recording(episodes, {name: d.start for name, d in zip(episodes.names, kept, strict=True)})


def recorded_starts(folder: str | Path, task: str) -> dict[int, int]:
    """Return episode name -> start of a LeRobot v3.0 folder that says so, as the package's demonstrations do.

    Args:
        folder: with the columns `metaworld/task` and `metaworld/start` in its `meta/episodes`.
        task: such as `pick-place-v3`; episodes of other tasks are left out.

    Raises:
        FormatError: the folder does not say where its episodes began.
    """
    parquet = require("pyarrow.parquet", "data")
    starts: dict[int, int] = {}
    for path in sorted(Path(folder).glob("meta/episodes/*/*.parquet")):
        table = parquet.read_table(path)
        if not {"metaworld/task", "metaworld/start"} <= set(table.column_names):
            break
        rows = table.select(["episode_index", "metaworld/task", "metaworld/start"]).to_pylist()
        starts |= {row["episode_index"]: row["metaworld/start"] for row in rows if row["metaworld/task"] == task}
    if not starts:
        raise FormatError(
            f"expected columns metaworld/task and metaworld/start with episodes of {task} in {folder}/meta/episodes, "
            "got none; pass starts= yourself"
        )
    return starts


class MetaWorldReplay:
    """Execute actions open loop from the start state of a Meta-World episode.

    Args:
        task: such as `pick-place-v3`.
        starts: episode name -> start state, see `record` and `recorded_starts`.

    Called as `replay(name, actions (t, 4))` it returns the places of the `hand` and of the task's first `object`,
    each `(t + 1, 3)` in metres, before the first action and after every one, and as score 1 where the task was solved
    at any step, else 0.

    Raises:
        MissingExtraError: metaworld is not installed.
        ActionValueError: no such task.
    """

    def __init__(self, task: str, starts: Mapping[int, int]) -> None:
        self.task, self.starts = task, dict(starts)
        self._simulator = MetaWorldTask(task)

    def __call__(self, name: int, actions: Floats) -> Outcome:
        """Replay `actions (t, 4)` in the episode `name`."""
        start = _known(self.starts, name, "start")
        _check_width(actions, len(ACTION_NAMES), "Meta-World")
        seen, solved = [self._simulator.reset(start)], False
        for action in actions:
            observation, success = self._simulator.step(action)
            seen.append(observation)
            solved |= success
        states = np.stack(seen)
        return Outcome({"hand": states[:, HAND], "object": states[:, OBJECT]}, float(solved))


class MetaWorldSimulator:
    """A Meta-World task to execute a policy in, closed loop: a `cloning.rollout.Simulator`.

    States are `(14,)` as recorded, see `STATE_NAMES`; the score is 1 once the task is solved.

    Args:
        task: such as `pick-place-v3`.

    Raises:
        MissingExtraError: metaworld is not installed.
        ActionValueError: no such task, or in `reset` no such start.
    """

    def __init__(self, task: str) -> None:
        self._task = MetaWorldTask(task)

    def reset(self, start: int) -> Floats:
        """Go to one of the 50 start states and return the state `(14,)`."""
        return state_of(self._task.reset(start))

    def step(self, action: Floats) -> tuple[Floats, float]:
        """Execute `action (4,)`, clipped to [-1, 1] by the simulator."""
        _check_width(action[None], len(ACTION_NAMES), "Meta-World")
        observation, success = self._task.step(action)
        return state_of(observation), float(success)


class PushTSimulator:
    """PushT from the first recorded states of episodes, to execute a policy in: a `cloning.rollout.Simulator`.

    States are `(5,)`: agent x and y, block x and y in px, block angle; the score is the share of the goal that the
    block covers.

    Args:
        episodes: with states `(t_i, 5)`; `reset` takes their names.

    Raises:
        MissingExtraError: gym-pusht is not installed.
        ActionValueError: no states, or episodes whose beginning was cut off.
        ActionShapeError: states of another width.
    """

    def __init__(self, episodes: Episodes) -> None:
        require("gym_pusht", "sim")
        pusht = require("gym_pusht.envs.pusht", "sim")
        if episodes.states is None:
            raise ActionValueError("expected PushT episodes with states, got none: a replay begins in the first one")
        width = episodes.states[0].shape[1]
        if width != PUSHT_STATE:
            raise ActionShapeError(
                f"expected PushT states (t, {PUSHT_STATE}): agent x, y, block x, y and angle, got width {width}; "
                "LeRobot's copy of the data holds the agent's place alone"
            )
        if any(episodes.offsets):
            raise ActionValueError(
                "expected PushT episodes from their first frame, got some cut in time: the states hold no velocities"
            )
        self._first = {name: states[0] for name, states in zip(episodes.names, episodes.states, strict=True)}
        self._draws: dict[int, Observation] = {}
        self._env: Any = pusht.PushTEnv(obs_type="state")

    def reset(self, name: int) -> Observation:
        """Go to the first recorded state of the episode `name` and return the state `(5,)`."""
        first = _known(self._first, name, "first state")
        if name not in self._draws:
            self._draws[name] = self._draw_of(first)
        return self._reset(self._draws[name])

    def step(self, action: Floats) -> tuple[Observation, float]:
        """Execute `action (2,)`, the place in px that the agent is drawn to."""
        _check_width(action[None], 2, "PushT")
        observation, _, _, _, info = self._env.step(action)
        return observation, float(info["coverage"])

    def _reset(self, draw: Observation) -> Observation:
        observation: Observation = self._env.reset(options={"reset_to_state": draw})[0]
        return observation

    def _draw_of(self, first: Floats) -> Observation:
        """Return what `reset_to_state` must be told, so that the episode begins in its `first (5,)` recorded state.

        The recording began in the same way: its simulator drew whole pixels and an angle, turned the block about its
        centre of gravity, which moves it, and let one step of physics push it out of the agent. What was drawn is
        found by correcting a guess by what is missing.
        """
        wanted = first.astype(np.float64)
        draw = wanted.copy()
        for _ in range(CORRECTIONS):
            missing = wanted - self._reset(draw)
            missing[4] = (missing[4] + np.pi) % (2 * np.pi) - np.pi
            if np.abs(missing).max() < 1e-9:
                whole = np.append(draw[:4].round(), draw[4])
                # a drawn pixel is known exactly, the recorded place only as float32: contacts amplify the difference
                return whole if np.abs(whole - draw).max() < 1e-3 else draw
            draw += missing
        raise ActionValueError(
            f"expected a first state that PushT can begin in, got {first.tolist()}; leave the episode out of the replay"
        )


class PushTReplay:
    """Execute actions open loop from the first recorded state of a PushT episode.

    Args:
        episodes: with states `(t_i, 5)`, see `PushTSimulator`.

    Called as `replay(name, actions (t, 2))` it returns the places of the `agent` and of the `block`, each `(t + 1,
    2)` in widths of the field (512 px), before the first action and after every one, and as score the best share of
    the goal that the block covered after a step.

    Raises:
        MissingExtraError: gym-pusht is not installed.
        ActionValueError: no states, or episodes whose beginning was cut off.
        ActionShapeError: states of another width.
    """

    def __init__(self, episodes: Episodes) -> None:
        self._simulator = PushTSimulator(episodes)

    def __call__(self, name: int, actions: Floats) -> Outcome:
        """Replay `actions (t, 2)` in the episode `name`."""
        seen, best = [self._simulator.reset(name)], 0.0
        _check_width(actions, 2, "PushT")
        for action in actions:
            observation, coverage = self._simulator.step(action)
            seen.append(observation)
            best = max(best, coverage)
        states = np.stack(seen) / PUSHT_SIDE
        return Outcome({"agent": states[:, 0:2], "block": states[:, 2:4]}, best)


def _known(episodes: Mapping[int, Any], name: int, what: str) -> Any:
    if name not in episodes:
        raise ActionValueError(f"expected the name of an episode whose {what} is known, {sorted(episodes)}, got {name}")
    return episodes[name]


def _check_width(actions: Floats, width: int, where: str) -> None:
    if actions.ndim != 2 or actions.shape[1] != width:
        raise ActionShapeError(f"expected {where} actions (t, {width}), got shape {tuple(actions.shape)}")
