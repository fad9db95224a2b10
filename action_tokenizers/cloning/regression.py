"""Cloning without tokens: a network that regresses the chunk itself, the usual baseline.

Cao & Xie 2026, Prop 4, bound what regression loses by its mean error if its policy is smooth in total variation. A
network with one answer per state is not, so that the bound does not cover it: it is what people do, not what is proven.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import nn

from action_tokenizers.base import Progress
from action_tokenizers.cloning.network import seeded
from action_tokenizers.cloning.planning import Plan
from action_tokenizers.cloning.saving import SizedModule
from action_tokenizers.cloning.trainer import Trainer, check_sizes, check_training, scale_of
from action_tokenizers.cloning.training import states_and_chunks
from action_tokenizers.data.episodes import Episodes
from action_tokenizers.errors import ActionShapeError, ActionValueError

__all__ = ["RegressionPolicy", "regress"]

Floats = npt.NDArray[np.float32]


class RegressionPolicy(SizedModule, name="regression"):
    """A network of two hidden layers from a state to a chunk; plans as a `planning.Planner` does.

    It has one answer per state: where demonstrations differ it gives their mean, which nobody showed.

    Args:
        state_dim: ds.
        action_dim: d.
        horizon: t, steps of a chunk.
        execute: how many of them are executed; None: all.
        width: of the hidden layers.
        seed: of the first weights.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        horizon: int,
        *,
        execute: int | None = None,
        width: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        execute = horizon if execute is None else execute
        sizes = {"state_dim": state_dim, "action_dim": action_dim, "horizon": horizon, "execute": execute}
        sizes["width"] = width
        check_sizes(sizes)
        if execute > horizon:
            raise ActionValueError(f"expected execute in 1..{horizon}, the steps of a chunk, got {execute}")
        self.sizes = sizes
        with seeded(seed):
            self.network = nn.Sequential(
                nn.Linear(state_dim, width),
                nn.GELU(),
                nn.Linear(width, width),
                nn.GELU(),
                nn.Linear(width, horizon * action_dim),
            )
        self.state_mean: torch.Tensor
        self.state_scale: torch.Tensor
        self.action_mean: torch.Tensor
        self.action_scale: torch.Tensor
        for name, width_of in (("state", state_dim), ("action", action_dim)):
            self.register_buffer(f"{name}_mean", torch.zeros(width_of))
            self.register_buffer(f"{name}_scale", torch.ones(width_of))

    def know(self, states: torch.Tensor, actions: torch.Tensor) -> None:
        """Take the scales of `states (n, ds)` and `actions (n, d)`."""
        for name, values in (("state", states.double()), ("action", actions.double())):
            getattr(self, f"{name}_mean").copy_(values.mean(0))
            getattr(self, f"{name}_scale").copy_(scale_of(values))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return chunks `(b, t, d)` for `states (b, ds)`, in standard deviations of the actions."""
        flat = self.network((states - self.state_mean) / self.state_scale)
        chunks: torch.Tensor = rearrange(flat, "b (t d) -> b t d", d=self.sizes["action_dim"])
        return chunks

    @torch.no_grad()
    def act(self, states: Any) -> Floats:
        """Return chunks `(b, t, d)` in raw units for `states (b, ds)`.

        Raises:
            ActionShapeError: another state_dim.
            ActionValueError: NaN or inf.
        """
        values = torch.as_tensor(states, dtype=torch.float32, device=self.state_mean.device)
        if values.ndim != 2 or values.shape[1] != self.sizes["state_dim"]:
            raise ActionShapeError(f"expected states (b, {self.sizes['state_dim']}), got {tuple(values.shape)}")
        if not bool(torch.isfinite(values).all()):
            raise ActionValueError("expected finite states, got NaN or inf; look at the simulator")
        actions: Floats = (self(values) * self.action_scale + self.action_mean).cpu().numpy()
        return actions

    def plan(self, states: Floats, *, seed: int = 0) -> Plan:
        """Return what to execute from `states (b, ds)` on; nothing is drawn, so that the seed does not matter."""
        actions = self.act(states)[:, : self.sizes["execute"]]
        none = np.zeros(len(actions), np.bool_)
        return Plan(actions, np.full(len(actions), actions.shape[1], np.int64), 1, none, none)


def regress(
    episodes: Episodes,
    horizon: int,
    *,
    steps: int = 2000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    **sizes: int,
) -> RegressionPolicy:
    """Train a policy on the mean squared error of recorded chunks, one chunk from every frame.

    Args:
        episodes: with states `(t_i, ds)`.
        horizon: t, steps of a chunk.
        steps: of the optimiser.
        batch_size: chunks per step.
        learning_rate: the largest.
        seed: of weights and batches.
        device: to train on; the policy stays there.
        progress: called as `progress("regress", done, steps)`.
        sizes: execute and width of `RegressionPolicy`.

    Raises:
        ActionValueError: no states; numbers outside their domain, or with which the training diverges.
    """
    check_training(steps, batch_size, learning_rate)
    seen, cut = states_and_chunks(episodes, horizon)
    states, actions = torch.from_numpy(seen).to(device), torch.from_numpy(cut.actions).to(device)
    is_real = torch.from_numpy(~cut.padding).to(device)
    policy = RegressionPolicy(states.shape[1], actions.shape[2], horizon, seed=seed, **sizes).to(device)
    policy.know(states, actions[is_real])
    trainer = Trainer(policy.network, steps, learning_rate, seed)
    for step in range(steps):
        rows = trainer.rows(len(states), batch_size, device)
        wanted = (actions[rows] - policy.action_mean) / policy.action_scale
        squared = ((policy(states[rows]) - wanted) ** 2).mean(-1)
        trainer.step(squared[is_real[rows]].mean())
        if progress is not None:
            progress("regress", step + 1, steps)
    return policy.eval()
