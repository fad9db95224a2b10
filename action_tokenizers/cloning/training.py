"""Log-loss cloning: the maximum-likelihood policy over the ids of recorded chunks (Cao & Xie 2026, section 2)."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from action_tokenizers.base import ActionTokenizer, Progress
from action_tokenizers.cloning.policy import TransformerPolicy
from action_tokenizers.data.chunks import Chunks, gather, plan_chunks
from action_tokenizers.data.episodes import Episodes
from action_tokenizers.data.relative import Relative
from action_tokenizers.errors import ActionShapeError, ActionValueError

__all__ = ["Trainer", "check_training", "clone", "states_and_chunks"]

WARM_UP = 0.05  # share of the steps in which the rate rises
LARGEST_GRADIENT = 1.0
WEIGHT_DECAY = 0.01
IGNORED = -100  # what cross_entropy leaves out


def states_and_chunks(
    episodes: Episodes, horizon: int, relative: Relative | None = None
) -> tuple[npt.NDArray[np.float32], Chunks]:
    """Return what cloning learns from: a chunk from every recorded frame, and the state it begins in, `(n, ds)`.

    Raises:
        ActionValueError: episodes without states.
    """
    if episodes.states is None:
        raise ActionValueError("expected episodes with states, got none: a policy has to see something")
    plan = plan_chunks(episodes, horizon, pad_tail=True)
    offset = np.concatenate([[0], np.cumsum(episodes.lengths)])[plan.position]
    return np.concatenate(episodes.states)[offset + plan.first], gather(episodes, plan, relative)


def clone(
    tokenizer: ActionTokenizer,
    episodes: Episodes,
    *,
    steps: int = 1500,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    seed: int = 0,
    progress: Progress | None = None,
    **sizes: int,
) -> TransformerPolicy:
    """Train a policy by log-loss on the ids of recorded chunks, one chunk from every frame.

    The loss is that of all ids, which bounds that of the allowed ones from above: ids that cannot follow lose their
    probability when the policy is asked.

    Args:
        tokenizer: fitted, with a horizon; on other episodes than those the policy is judged on.
        episodes: with states `(t_i, ds)`.
        steps: of the optimiser (AdamW, cosine to 0).
        batch_size: chunks per step.
        learning_rate: the largest.
        seed: of weights and batches.
        progress: called as `progress("clone", done, steps)`.
        sizes: width, layers and heads of `TransformerPolicy`.

    Returns:
        The policy, ready to be asked.

    Raises:
        ActionValueError: no states, or NaN in them; numbers outside their domain.
        ActionShapeError: episodes that do not fit the tokenizer.
    """
    check_training(steps, batch_size, learning_rate)
    if tokenizer.horizon is None:
        raise ActionShapeError("expected a tokenizer with a horizon, got one that leaves it open; fit it with horizon=")
    if episodes.action_dim != tokenizer.action_dim:
        raise ActionShapeError(
            f"expected actions of the tokenizer's {tokenizer.action_dim} dims, got {episodes.action_dim}"
        )
    seen, cut = states_and_chunks(episodes, tokenizer.horizon, tokenizer.relative)
    policy = TransformerPolicy(tokenizer, seen.shape[1], seed=seed, **sizes)
    policy.know_states(seen)
    ids = torch.as_tensor(tokenizer.encode(cut.actions, action_is_pad=cut.padding))
    targets = ids.masked_fill(~torch.as_tensor(tokenizer.pad_mask(ids)), IGNORED)
    states = torch.from_numpy(seen)
    trainer = Trainer(policy.network, steps, learning_rate)
    generator = torch.Generator().manual_seed(seed)
    policy.train()
    for step in range(steps):
        rows = torch.randint(len(ids), (batch_size,), generator=generator)
        logits = policy(states[rows], ids[rows])
        trainer.step(cross_entropy(logits.flatten(0, 1), targets[rows].flatten(), ignore_index=IGNORED))
        if progress is not None:
            progress("clone", step + 1, steps)
    return policy.eval()


class Trainer:
    """AdamW whose rate rises, then falls to 0 by a cosine, with clipped gradients."""

    def __init__(
        self, network: torch.nn.Module, steps: int, learning_rate: float, largest_gradient: float = LARGEST_GRADIENT
    ) -> None:
        self.network, self.largest_gradient = network, largest_gradient
        self.optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=WEIGHT_DECAY)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: min((step + 1) / (WARM_UP * steps), 1.0) * (1 + math.cos(math.pi * step / steps)) / 2,
        )

    def step(self, loss: torch.Tensor) -> None:
        """Follow the gradient of `loss`."""
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.largest_gradient)
        self.optimizer.step()
        self.schedule.step()


def check_training(steps: Any, batch_size: Any, learning_rate: Any) -> None:
    """Refuse numbers no training can have."""
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ActionValueError(f"expected {name} an integer >= 1, got {value!r}")
    if not 0 < learning_rate < math.inf:
        raise ActionValueError(f"expected learning_rate a finite number > 0, got {learning_rate!r}")
