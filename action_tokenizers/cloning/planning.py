"""From states to the actions that are executed next: chunk by chunk, or several chunks ahead with a model.

`Planner` with a transition model is Algorithm 1 of Cao & Xie 2026 (arXiv:2603.20538): an auxiliary rollout starts in
the observed state, the policy is asked in the states that the model foresees, and the robot executes those actions
open loop. Errors of the tokenizer then reach the robot but not the policy, which stays in states it knows from the
demonstrations (Theorem 7): no smoothness is needed, but a model is, and a robot that forgets disturbances by itself.
The paper runs the auxiliary rollout to the end of the task; here it is begun anew every `sub_horizon` calls.
"""

import warnings
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from action_tokenizers.base import ActionTokenizer
from action_tokenizers.cloning.model import TransitionModel
from action_tokenizers.diagnostics.policy import TokenPolicy, checked, derived
from action_tokenizers.errors import ActionShapeError, ActionValueError

__all__ = ["Plan", "Planner", "Plans"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """What to execute from some states on, until they are looked at again.

    Attributes:
        actions: `(b, k, d)` float32, absolute, in raw units; of row i only the first `steps[i]` are meant.
        steps: `(b,)` int64; 0: the policy's ids do not decode, and nothing may be executed.
        calls: how often the policy was asked.
        diverged: `(b,)` bool, the model left what it knows and the plan was cut there.
        undecodable: `(b,)` bool, ids that do not decode cut the plan.
    """

    actions: Floats
    steps: Ints
    calls: int
    diverged: npt.NDArray[np.bool_]
    undecodable: npt.NDArray[np.bool_]


class Plans(Protocol):
    """Whatever can tell what to execute next: a `Planner`, or a policy without tokens."""

    def plan(self, states: Floats, *, seed: int) -> Plan:
        """Return what to execute from `states (b, ds)` on."""


@dataclass(frozen=True)
class Planner:
    """Plans with a policy over ids, and perhaps with a model.

    Args:
        policy: any `diagnostics.policy.TokenPolicy`; its answers are checked.
        tokenizer: whose ids it draws, with a horizon.
        execute: steps of each chunk that are executed; None: all.
        model: any `TransitionModel`; needed for `sub_horizon` > 1.
        sub_horizon: calls of the policy between two looks at the state. 1 is ordinary execution, without the model.
        limits: `(2, ds)` lowest and highest state a forecast may reach; None: the model's `limits`, where it has some.

    Raises:
        ActionShapeError: tokenizer and model do not fit each other, or a tokenizer without a horizon.
        ActionValueError: no model for a sub-horizon above 1, or numbers outside their domain.
    """

    policy: TokenPolicy
    tokenizer: ActionTokenizer
    execute: int | None = None
    model: TransitionModel | None = None
    sub_horizon: int = 1
    limits: Any = None

    def __post_init__(self) -> None:
        """Refuse parts that do not fit each other, before a robot moves."""
        horizon = self.tokenizer.horizon
        if horizon is None:
            raise ActionShapeError("expected a tokenizer with a horizon, got one that leaves it open; fit it with one")
        if self.execute is not None and not (_is_whole(self.execute) and self.execute <= horizon):
            raise ActionValueError(f"expected execute in 1..{horizon}, the steps of a chunk, got {self.execute!r}")
        if not _is_whole(self.sub_horizon):
            raise ActionValueError(f"expected sub_horizon an integer >= 1, got {self.sub_horizon!r}")
        if self.sub_horizon > 1 and not isinstance(self.model, TransitionModel):
            raise ActionValueError(
                f"expected a model with step(states, actions, *, seed) for sub_horizon {self.sub_horizon}, got "
                f"{type(self.model).__name__}; see cloning.model.fit_model"
            )
        asked = getattr(self.model, "action_dim", None)
        if asked not in (None, self.tokenizer.action_dim):
            raise ActionShapeError(
                f"expected a model of the tokenizer's {self.tokenizer.action_dim} action dims, got {asked}"
            )
        relative = self.tokenizer.relative
        if relative is not None and "previous" in relative.modes(self.tokenizer.action_dim or 0):
            raise ActionValueError(
                "expected a tokenizer of absolute actions or of actions relative to the state, got one relative to the "
                "action before, which a state does not tell"
            )
        checked(self.policy, self.tokenizer)

    @property
    def steps_per_call(self) -> int:
        """Steps that are executed of each chunk."""
        return int(self.execute or self.tokenizer.horizon or 1)

    def plan(self, states: Floats, *, seed: int = 0) -> Plan:
        """Return what to execute from `states (b, ds)` on.

        A forecast that is not finite or leaves `limits` ends the plan before the policy is asked in it, with a
        warning; a plan of one call always remains, which is ordinary execution.

        Args:
            states: as observed.
            seed: of everything that is drawn; equal seeds give equal plans.

        Raises:
            ActionShapeError: states of another width than policy or model know, or a model that returns another shape.
            ActionValueError: the policy's answers are unusable.
        """
        states = np.asarray(states, np.float32)
        if states.ndim != 2:
            raise ActionShapeError(f"expected states (b, ds), got shape {states.shape}")
        k, b = self.steps_per_call, len(states)
        actions = np.zeros((b, self.sub_horizon * k, self.tokenizer.action_dim or 0), np.float32)
        steps = np.zeros(b, np.int64)
        diverged, undecodable = np.zeros(b, np.bool_), np.zeros(b, np.bool_)
        going = np.arange(b)
        calls = 0
        for call in range(self.sub_horizon):
            chunk, valid = self._chunk(states, derived(seed, call, 0))
            calls += 1
            undecodable[going[~valid]] = True
            going, states, chunk = going[valid], states[valid], chunk[valid]
            actions[going, call * k : (call + 1) * k] = chunk
            steps[going] += k
            if call + 1 == self.sub_horizon or not len(going):
                break
            states = self._foreseen(states, chunk, derived(seed, call, 1))
            known = self._is_known(states)
            diverged[going[~known]] = True
            going, states = going[known], states[known]
            if not len(going):
                break
        if diverged.any():
            warnings.warn(
                f"the model left what it knows in {diverged.sum()} of {b} auxiliary rollouts; what was planned before "
                "is executed, then the state is looked at again",
                UserWarning,
                stacklevel=2,
            )
        return Plan(actions, steps, calls, diverged, undecodable)

    def _chunk(self, states: Floats, seed: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Return the steps to execute `(b, k, d)` of one chunk per state, and which decode."""
        ids = checked(self.policy, self.tokenizer).sample(states, seed=seed)
        decoded, valid = self.tokenizer.try_decode(ids)
        if self.tokenizer.relative is not None:
            width = decoded.shape[-1]
            if states.shape[1] < width:
                raise ActionShapeError(
                    f"expected states that begin with the {width} dims actions are relative to, got {states.shape[1]}"
                )
            decoded = self.tokenizer.relative.invert(decoded, states[:, :width])
        return decoded[:, : self.steps_per_call], np.asarray(valid)

    def _foreseen(self, states: Floats, chunk: Floats, seed: int) -> Floats:
        """Return the states `(b, ds)` that the model foresees after the steps of `chunk (b, k, d)`."""
        given = states.shape
        model = self.model
        if model is None:  # refused when the planner was made
            return states
        with np.errstate(all="ignore"):
            for h in range(chunk.shape[1]):
                states = np.asarray(model.step(states, chunk[:, h], seed=derived(seed, h)), np.float32)
                if states.shape != given:
                    raise ActionShapeError(f"expected model.step to return states {given}, got {states.shape}")
        return states

    def _is_known(self, states: Floats) -> npt.NDArray[np.bool_]:
        known: Any = np.isfinite(states).all(axis=1)
        limits = getattr(self.model, "limits", None) if self.limits is None else self.limits
        if limits is not None:
            low, high = np.asarray(limits, np.float32)
            known &= ((states >= low) & (states <= high)).all(axis=1)
        return np.asarray(known, np.bool_)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
