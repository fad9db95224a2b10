"""Transition models, learned from the demonstrations that the policy learns from (Cao & Xie 2026, Algorithm 1)."""

from itertools import pairwise
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import nn

from action_tokenizers.base import ActionTokenizer, Progress
from action_tokenizers.cloning.saving import SizedModule
from action_tokenizers.cloning.trainer import Trainer, check_sizes, check_training, scale_of
from action_tokenizers.cloning.training import check_match
from action_tokenizers.data.chunks import gather, plan_chunks
from action_tokenizers.data.episodes import Episodes
from action_tokenizers.errors import ActionShapeError, ActionValueError

__all__ = ["GaussianModel", "Steps", "TransitionModel", "executed_steps", "fit_model"]

Floats = npt.NDArray[np.float32]

LEAST_SCALE = 1e-6
LEAST_LOG_STD, LARGEST_LOG_STD = -7.0, 5.0  # of a motion, in units of `residual`
LARGEST_GRADIENT = 100.0  # a motion without noise has steep densities
REACH = 0.5  # how far beyond the recorded states a forecast is believed, as a share of their span


@runtime_checkable
class TransitionModel(Protocol):
    """Where the expert's actions lead that an id stands for: (T o rho)(x' | x, u~) of the paper.

    Not where the decoded action itself leads: a model of that foresees what happens anyhow, errors included.
    """

    def foresee(self, states: Floats, actions: Floats, *, seed: int) -> Any:
        """Return the states `(b, ds)` after `states (b, ds)` where `actions (b, d)`, absolute and raw, were decoded.

        The same seed must give the same states; what a row draws should depend on its place alone.
        """


class Steps(NamedTuple):
    """Recorded steps with the actions as a policy would execute them.

    Attributes:
        states: `(n, ds)` before.
        actions: `(n, d)` decoded.
        after: `(n, ds)` the states that the recorded actions led to.
    """

    states: Floats
    actions: Floats
    after: Floats


def executed_steps(
    tokenizer: ActionTokenizer, episodes: Episodes, execute: int | None = None, *, key: str | None = None
) -> Steps:
    """Return every recorded step with the action that would be decoded for it, to fit a `TransitionModel` to.

    The state after is the recorded one. What the model learns is where the expert's actions lead that a token
    stands for, not where its decoded action would.

    Args:
        tokenizer: fitted, with a horizon.
        episodes: with states.
        execute: how many steps of a chunk are executed before the next one begins; None: all.
        key: of the range to encode with.

    Raises:
        ActionValueError: no states, or no step to learn from.
        ActionShapeError: actions of another dim than the tokenizer's.
    """
    if episodes.states is None:
        raise ActionValueError("expected episodes with states, got none: a model has to be told where actions lead")
    horizon = check_match(tokenizer, episodes)
    execute = horizon if execute is None else execute
    if not 1 <= execute <= horizon:
        raise ActionValueError(f"expected execute in 1..{horizon}, the tokenizer's horizon, got {execute}")
    plan = plan_chunks(episodes, horizon, execute, pad_tail=True)
    cut = gather(episodes, plan, tokenizer.relative)
    decoded = tokenizer.quantize(cut.actions, key=key, action_is_pad=cut.padding)
    if tokenizer.relative is not None and cut.reference is not None:
        decoded = tokenizer.relative.invert(decoded, cut.reference)
    place = plan.first[:, None] + np.arange(execute)
    lengths = np.asarray(episodes.lengths)[plan.position][:, None]
    known = (place + 1 < lengths) & ~cut.padding[:, :execute]
    if not known.any():
        raise ActionValueError("expected episodes of at least 2 steps, got none: no step leads to a recorded state")
    first = np.concatenate([[0], np.cumsum(episodes.lengths)])[plan.position][:, None]
    at = (first + place)[known]
    states = np.concatenate(episodes.states)
    return Steps(states[at], np.asarray(decoded, np.float32)[:, :execute][known], states[at + 1])


class GaussianModel(SizedModule, name="model"):
    """Mean and standard deviation of the next state: a linear motion, and networks for what bends; a `TransitionModel`.

    Args:
        state_dim: ds.
        action_dim: d.
        width: of the two hidden layers of a network; 0: the linear motion alone.
        members: networks that learn from the same steps in another order; each forecast asks one at random.
        seed: of the first weights.

    Attributes:
        limits: `(2, ds)` lowest and highest state that a forecast is believed to reach.
    """

    def __init__(self, state_dim: int, action_dim: int, *, width: int = 128, members: int = 1, seed: int = 0) -> None:
        super().__init__()
        sizes = {"state_dim": state_dim, "action_dim": action_dim, "width": width, "members": members}
        check_sizes(sizes, least={"width": 0})
        self.sizes = sizes
        generator = torch.Generator("cpu").manual_seed(seed)
        widths = [state_dim + action_dim, *[width] * (2 if width else 0), 2 * state_dim]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, (before, after) in enumerate(pairwise(widths)):
            weight = torch.randn((members, before, after), generator=generator, device="cpu") / before**0.5
            # the last layer begins at 0: nothing bends, and the spread is that of the residuals
            self.weights.append(nn.Parameter(weight * (i < len(widths) - 2)))
            self.biases.append(nn.Parameter(torch.zeros(members, 1, after)))
        self.in_mean: torch.Tensor
        self.in_scale: torch.Tensor
        self.motion: torch.Tensor
        self.drift: torch.Tensor
        self.residual: torch.Tensor
        self.limits: torch.Tensor
        self.register_buffer("in_mean", torch.zeros(state_dim + action_dim))
        self.register_buffer("in_scale", torch.ones(state_dim + action_dim))
        self.register_buffer("motion", torch.zeros(state_dim + action_dim, state_dim))
        self.register_buffer("drift", torch.zeros(state_dim))
        self.register_buffer("residual", torch.ones(state_dim))
        self.register_buffer("limits", torch.stack([-torch.ones(state_dim), torch.ones(state_dim)]))

    @property
    def state_dim(self) -> int:
        """Dims ds of a state."""
        return self.sizes["state_dim"]

    @property
    def action_dim(self) -> int:
        """Dims d of an action."""
        return self.sizes["action_dim"]

    def know(self, steps: Steps) -> None:
        """Find the linear motion of recorded steps by least squares, their scales, and how far a forecast may go."""
        inputs = torch.from_numpy(np.concatenate([steps.states, steps.actions], 1)).double()
        moves = torch.from_numpy(steps.after).double() - torch.from_numpy(steps.states)
        mean, scale = inputs.mean(0), scale_of(inputs)
        scaled = (inputs - mean) / scale
        drift = moves.mean(0)
        # the driver that also copes with dims that never move or always move together
        motion = torch.linalg.lstsq(scaled, moves - drift, driver="gelsd").solution
        residual = (moves - drift - scaled @ motion).std(0, correction=0).clamp_min(LEAST_SCALE)
        seen = torch.from_numpy(np.concatenate([steps.states, steps.after]))
        low, high = seen.amin(0), seen.amax(0)
        # a dim that never moved may move a little: as far as one of unit scale
        reach = REACH * torch.maximum(high - low, (scale_of(seen) == 1) * 2.0)
        found = {"in_mean": mean, "in_scale": scale, "motion": motion, "drift": drift, "residual": residual}
        for name, value in {**found, "limits": torch.stack([low - reach, high + reach])}.items():
            getattr(self, name).copy_(value)

    def forward(self, states: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log standard deviation of the motion, `(members, b, ds)`, of `(members, b, ...)`.

        Both in units of `residual`, the deviation of what the linear motion leaves unexplained.
        """
        scaled = (torch.cat([states, actions], -1) - self.in_mean) / self.in_scale
        x = scaled
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, torch.nn.functional.silu(x) if i else x, weight)
        bend, spread = x.chunk(2, -1)
        # smooth at both ends, so that a gradient leads back from them
        spread = LARGEST_LOG_STD - torch.nn.functional.softplus(LARGEST_LOG_STD - spread)
        spread = LEAST_LOG_STD + torch.nn.functional.softplus(spread - LEAST_LOG_STD)
        return bend + (scaled @ self.motion + self.drift) / self.residual, spread

    def nats(self, states: torch.Tensor, actions: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Return minus the log-density of the motions in units of `residual`, less a constant, `(members, b)`."""
        mean, spread = self(states, actions)
        wanted = (after - states) / self.residual
        nats: torch.Tensor = (((wanted - mean) * (-spread).exp()) ** 2 / 2 + spread).sum(-1)
        return nats

    @torch.no_grad()
    def foresee(self, states: Any, actions: Any, *, seed: int) -> Floats:
        """Return states `(b, ds)` drawn for what follows `states (b, ds)` after `actions (b, d)`."""
        x, u = self._open(states, self.state_dim, "states"), self._open(actions, self.action_dim, "actions")
        members = self.sizes["members"]
        mean, spread = self(x.expand(members, -1, -1), u.expand(members, -1, -1))
        # row by row, so that a row draws the same in any company
        noise = np.random.default_rng([seed, 0]).standard_normal(x.shape)
        member = (np.random.default_rng([seed, 1]).random(len(x)) * members).astype(np.int64)
        asked = torch.from_numpy(member).to(x.device), torch.arange(len(x), device=x.device)
        motion = mean[asked] + torch.from_numpy(noise).to(x) * spread[asked].exp()
        after: Floats = (x + motion * self.residual).cpu().numpy()
        return after

    @torch.no_grad()
    def disagreement(self, states: Any, actions: Any) -> Floats:
        """Return how far the members' means are apart, `(b,)`: the largest over dims, in units of `residual`."""
        x, u = self._open(states, self.state_dim, "states"), self._open(actions, self.action_dim, "actions")
        members = self.sizes["members"]
        mean, _ = self(x.expand(members, -1, -1), u.expand(members, -1, -1))
        apart: Floats = (mean.amax(0) - mean.amin(0)).amax(-1).cpu().numpy()
        return apart

    def _open(self, values: Any, width: int, name: str) -> torch.Tensor:
        tensor = torch.as_tensor(values, dtype=torch.float32, device=self.limits.device)
        if tensor.ndim != 2 or tensor.shape[1] != width:
            raise ActionShapeError(f"expected {name} (b, {width}) as the model was fitted, got {tuple(tensor.shape)}")
        return tensor


def fit_model(
    recorded: Steps,
    *,
    steps: int = 2000,
    batch_size: int = 256,
    learning_rate: float = 3e-3,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    **sizes: int,
) -> GaussianModel:
    """Fit a model by maximum likelihood.

    Args:
        recorded: see `executed_steps`.
        steps: of the optimiser.
        batch_size: recorded steps per step and member.
        learning_rate: the largest.
        seed: of weights and batches.
        device: to train on; the model stays there.
        progress: called as `progress("model", done, steps)`.
        sizes: width and members of `GaussianModel`.

    Raises:
        ActionShapeError: states, actions and states after that do not belong together.
        ActionValueError: NaN or inf; numbers outside their domain, or with which the training diverges.
    """
    check_training(steps, batch_size, learning_rate)
    _check_steps(recorded)
    x, u, after = (torch.from_numpy(np.ascontiguousarray(part, np.float32)).to(device) for part in recorded)
    model = GaussianModel(x.shape[1], u.shape[1], seed=seed, **sizes)
    model.know(recorded)
    model.to(device)
    trainer = Trainer(model, steps, learning_rate, seed, LARGEST_GRADIENT)
    members = model.sizes["members"]
    for step in range(steps):
        rows = trainer.rows(len(x), members * batch_size, device)
        parts = (rearrange(part[rows], "(m b) d -> m b d", m=members) for part in (x, u, after))
        trainer.step(model.nats(*parts).mean())
        if progress is not None:
            progress("model", step + 1, steps)
    return model.eval()


def _check_steps(recorded: Steps) -> None:
    shapes = [np.shape(part) for part in recorded]
    if any(len(shape) != 2 for shape in shapes) or len({n for n, _ in shapes}) > 1 or shapes[0] != shapes[2]:
        raise ActionShapeError(f"expected states (n, ds), actions (n, d) and states after (n, ds), got {shapes}")
    for name, part in zip(Steps._fields, recorded, strict=True):
        if not len(part) or not np.isfinite(part).all():
            raise ActionValueError(f"expected finite {name} of at least one step, got {len(part)} with NaN or inf")
