"""From states to the actions that are executed next: chunk by chunk, or several chunks ahead with a model.

`Planner` with a transition model is Algorithm 1 of Cao & Xie 2026 (arXiv:2603.20538): an auxiliary rollout starts in
the observed state, the policy is asked in the states that the model foresees, and the robot executes those actions
open loop. The model foresees where the *expert's* actions lead that ids stand for (see `model.executed_steps`), so that
errors of the tokenizer reach the robot but not the policy, which stays in states it knows from the demonstrations
(Theorem 7): no smoothness is needed, but a model is, and a robot that forgets disturbances by itself. A model of what
the decoded actions do, such as a simulator, foresees ordinary execution and gains nothing. The paper runs the auxiliary
rollout to the end of the task; here it is begun anew every `sub_horizon` asks.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from action_tokenizers.base import ActionTokenizer
from action_tokenizers.cloning.model import TransitionModel
from action_tokenizers.cloning.reference import check_reference, reference
from action_tokenizers.diagnostics.policy import CheckedPolicy, TokenPolicy, array_of, checked, derived
from action_tokenizers.errors import ActionShapeError, ActionValueError
from action_tokenizers.warn import warn

__all__ = ["Plan", "Planner", "Plans"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Plan:
    """What to execute from some states on, until they are looked at again.

    Attributes:
        actions: `(b, k, d)` float32, absolute, in raw units; of row i the first `steps[i]`, NaN after them.
        steps: `(b,)` int64; 0: the policy's ids do not decode, and nothing may be executed.
        asks: how often the policy was asked.
        diverged: `(b,)` bool, the model left what it knows and the plan was cut there.
        undecodable: `(b,)` bool, ids that do not decode cut the plan.
    """

    actions: Floats
    steps: Ints
    asks: int
    diverged: Bools
    undecodable: Bools


class Plans(Protocol):
    """Whatever can tell what to execute next: a `Planner`, or a policy without tokens."""

    def plan(self, states: Floats, *, seed: int) -> Plan:
        """Return what to execute from `states (b, ds)` on; a row's random numbers depend on its place alone."""


class Planner:
    """Plans with a policy over ids, and perhaps with a model.

    Args:
        policy: any `diagnostics.policy.TokenPolicy`; its answers are checked.
        tokenizer: whose ids it draws, with a horizon; None: the policy's own.
        execute: steps of each chunk that are executed; None: all.
        model: any `TransitionModel`; needed for `sub_horizon` > 1.
        sub_horizon: asks of the policy between two looks at the state. 1 is ordinary execution, without the model.
        limits: `(2, ds)` lowest and highest state a forecast may reach; None: the model's `limits`, where it has some.
        key: of the range to decode with, where several were fitted.

    Raises:
        ActionShapeError: policy, tokenizer, model and limits do not fit each other, or a tokenizer without a horizon.
        ActionValueError: no model for a sub-horizon above 1, or numbers outside their domain.
    """

    def __init__(
        self,
        policy: TokenPolicy,
        tokenizer: ActionTokenizer | None = None,
        *,
        execute: int | None = None,
        model: TransitionModel | None = None,
        sub_horizon: int = 1,
        limits: Any = None,
        key: str | None = None,
    ) -> None:
        self.tokenizer = _tokenizer_of(policy, tokenizer)
        self.key = policy.key if key is None and isinstance(policy, CheckedPolicy) else key
        horizon = self.tokenizer.horizon
        if horizon is None:
            raise ActionShapeError("expected a tokenizer with a horizon, got one that leaves it open; fit it with one")
        keys = self.tokenizer.range_keys
        if self.key not in keys and not (self.key is None and len(keys) == 1):
            raise ActionShapeError(f"expected key= among {list(keys)}, got {self.key!r}")
        self.execute = horizon if execute is None else execute
        if not _is_whole(self.execute) or self.execute > horizon:
            raise ActionValueError(f"expected execute in 1..{horizon}, the steps of a chunk, got {execute!r}")
        if not _is_whole(sub_horizon):
            raise ActionValueError(f"expected sub_horizon an integer >= 1, got {sub_horizon!r}")
        if sub_horizon > 1 and not isinstance(model, TransitionModel):
            raise ActionValueError(
                f"expected a model with foresee(states, actions, *, seed) for sub_horizon {sub_horizon}, got "
                f"{type(model).__name__}; see cloning.model.fit_model"
            )
        check_reference(self.tokenizer)
        self.policy = checked(policy, self.tokenizer, key=self.key)
        self.model, self.sub_horizon = model, sub_horizon
        self.state_dim = _agreed("state_dim", policy, model)
        if (asked := getattr(model, "action_dim", None)) not in (None, self.tokenizer.action_dim):
            raise ActionShapeError(
                f"expected a model of the tokenizer's {self.tokenizer.action_dim} action dims, got {asked}"
            )
        self.limits = _limits(getattr(model, "limits", None) if limits is None else limits, self.state_dim)

    def plan(self, states: Floats, *, seed: int = 0) -> Plan:
        """Return what to execute from `states (b, ds)` on.

        A forecast that is not finite or leaves `limits`, or a model that raises, ends the plan before the policy is
        asked there, with a warning; a plan of one ask always remains, which is ordinary execution.

        Args:
            states: as observed.
            seed: of everything that is drawn; equal seeds give equal plans, a row's draws depend on its place alone.

        Raises:
            ActionShapeError: states of another width than policy or model know, or a model that returns another shape.
            ActionValueError: the policy's answers are unusable.
        """
        states = np.asarray(states, np.float32)
        if states.ndim != 2 or states.shape[1] != (self.state_dim or states.shape[1]):
            raise ActionShapeError(f"expected states (b, {self.state_dim or 'ds'}), got shape {states.shape}")
        k, b = self.execute, len(states)
        actions = np.full((b, self.sub_horizon * k, self.tokenizer.action_dim or 0), np.nan, np.float32)
        steps = np.zeros(b, np.int64)
        diverged, undecodable = np.zeros(b, np.bool_), np.zeros(b, np.bool_)
        # rows that are cut stay in place, so that the others keep their random numbers
        is_going = np.ones(b, np.bool_)
        asks = 0
        reasons: list[str] = []
        while is_going.any():
            chunk, valid = self._chunk(states, derived(seed, asks, 0))
            undecodable |= is_going & ~valid
            is_going &= valid
            actions[is_going, asks * k : (asks + 1) * k] = chunk[is_going]
            steps[is_going] += k
            asks += 1
            if asks == self.sub_horizon:
                break
            states, known = self._foreseen(states, chunk, is_going, derived(seed, asks, 1), reasons)
            diverged |= is_going & ~known
            is_going &= known
        if diverged.any():
            warn(
                f"the model left what it knows in {diverged.sum()} of {b} auxiliary rollouts{''.join(reasons)}; what "
                "was planned before is executed, then the state is looked at again"
            )
        return Plan(actions, steps, asks, diverged, undecodable)

    def _chunk(self, states: Floats, seed: int) -> tuple[Floats, Bools]:
        """Return the steps to execute `(b, k, d)` of one chunk per state, and which decode."""
        ids = self.policy.sample(states, seed=seed)
        decoded, valid = self.tokenizer.try_decode(ids, key=self.key)
        if self.tokenizer.relative is not None:
            decoded = self.tokenizer.relative.invert(decoded, reference(states, decoded.shape[-1]))
        return decoded[:, : self.execute], np.asarray(valid)

    def _foreseen(
        self, states: Floats, chunk: Floats, is_going: Bools, seed: int, reasons: list[str]
    ) -> tuple[Floats, Bools]:
        """Return the states `(b, ds)` that the model foresees after `chunk (b, k, d)`, and which of them are known.

        A row whose forecast is not, or that does not go on, keeps the last state that was.
        """
        model, known = self.model, is_going.copy()
        if model is None:  # refused when the planner was made
            return states, np.zeros(len(states), np.bool_)
        executed = np.where(is_going[:, None, None], chunk, 0)
        for h in range(chunk.shape[1]):
            try:
                with np.errstate(all="ignore"):
                    answer = model.foresee(states.copy(), executed[:, h].copy(), seed=derived(seed, h))
            except Exception as error:  # a user's model may raise anything
                reasons.append(f" ({type(error).__name__}: {error})")
                return states, np.zeros(len(states), np.bool_)
            after = array_of(answer, "model.foresee", "iuf").astype(np.float32)
            if after.shape != states.shape:
                raise ActionShapeError(f"expected model.foresee to return states {states.shape}, got {after.shape}")
            known &= np.isfinite(after).all(axis=1)
            if self.limits is not None:
                known &= ((after >= self.limits[0]) & (after <= self.limits[1])).all(axis=1)
            states = np.where(known[:, None], after, states)
        return states, known


def _tokenizer_of(policy: Any, given: ActionTokenizer | None) -> ActionTokenizer:
    """Return the tokenizer whose ids a policy draws; another one than its own would decode them wrongly."""
    own = getattr(policy, "tokenizer", None)
    if given is None and own is None:
        raise ActionValueError("expected tokenizer=, because the policy has none of its own; give the one of its ids")
    if isinstance(own, ActionTokenizer) and given is not None and not _is_same(own, given):
        raise ActionShapeError("expected the policy's own tokenizer, got another one; leave tokenizer= out")
    chosen: Any = own if given is None else given
    if not isinstance(chosen, ActionTokenizer):
        raise ActionValueError(f"expected an ActionTokenizer, got {type(chosen).__name__}")
    return chosen


def _is_same(a: ActionTokenizer, b: ActionTokenizer) -> bool:
    if a is b:
        return True
    tensors, others = a.state_dict(), b.state_dict()
    return (
        type(a) is type(b)
        and tensors.keys() == others.keys()
        and all(torch.equal(tensors[name].cpu(), others[name].cpu()) for name in tensors)
    )


def _agreed(name: str, policy: Any, model: Any) -> int | None:
    """Return the width that policy and model say they know, where they say so."""
    told = {
        type(part).__name__: int(value)
        for part in (policy, model)
        if isinstance(value := getattr(part, name, None), int)
    }
    if len(set(told.values())) > 1:
        raise ActionShapeError(f"expected policy and model of one {name}, got {told}")
    return next(iter(told.values()), None)


def _limits(given: Any, state_dim: int | None) -> Floats | None:
    if given is None:
        return None
    limits = array_of(given, "limits", "iuf").astype(np.float32)
    if limits.ndim != 2 or len(limits) != 2 or limits.shape[1] != (state_dim or limits.shape[1]):
        raise ActionShapeError(f"expected limits (2, {state_dim or 'ds'}), lowest and highest, got {limits.shape}")
    return limits


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
