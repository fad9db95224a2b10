"""Log-loss cloning: the maximum-likelihood policy over the ids of recorded chunks (Cao & Xie 2026, section 2)."""

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from action_tokenizers.base import ActionTokenizer, Progress
from action_tokenizers.cloning.policy import TransformerPolicy
from action_tokenizers.cloning.trainer import Trainer, check_training
from action_tokenizers.data.chunks import Chunks, gather, plan_chunks
from action_tokenizers.data.episodes import Episodes
from action_tokenizers.data.relative import Relative
from action_tokenizers.errors import ActionShapeError, ActionValueError

__all__ = ["check_match", "clone", "states_and_chunks"]

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


def check_match(tokenizer: ActionTokenizer, episodes: Episodes) -> int:
    """Return the tokenizer's horizon, once it has one and the episodes' actions are what it codes.

    Raises:
        ActionShapeError: they do not match.
    """
    if tokenizer.horizon is None:
        raise ActionShapeError("expected a tokenizer with a horizon, got one that leaves it open; fit it with horizon=")
    if episodes.action_dim != tokenizer.action_dim:
        raise ActionShapeError(
            f"expected actions of the tokenizer's {tokenizer.action_dim} dims, got {episodes.action_dim}"
        )
    return tokenizer.horizon


def clone(
    tokenizer: ActionTokenizer,
    episodes: Episodes,
    *,
    steps: int = 1500,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    seed: int = 0,
    device: torch.device | str = "cpu",
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
        device: to train on; the policy stays there, its tokenizer with it.
        progress: called as `progress("clone", done, steps)`.
        sizes: width, layers and heads of `TransformerPolicy`.

    Returns:
        The policy, ready to be asked.

    Raises:
        ActionValueError: no states; numbers outside their domain, or with which the training diverges.
        ActionShapeError: episodes that do not fit the tokenizer.
    """
    check_training(steps, batch_size, learning_rate)
    horizon = check_match(tokenizer, episodes)
    seen, cut = states_and_chunks(episodes, horizon, tokenizer.relative)
    ids = torch.as_tensor(tokenizer.encode(cut.actions, action_is_pad=cut.padding))
    targets = ids.masked_fill(~torch.as_tensor(tokenizer.pad_mask(ids)), IGNORED).to(device)
    policy = TransformerPolicy(tokenizer, seen.shape[1], seed=seed, **sizes).to(device)
    states, ids = torch.from_numpy(seen).to(device), ids.to(device)
    policy.know_states(states)
    trainer = Trainer(policy.network, steps, learning_rate, seed)
    policy.train()
    for step in range(steps):
        rows = trainer.rows(len(ids), batch_size, device)
        logits = policy(states[rows], ids[rows])
        trainer.step(cross_entropy(logits.flatten(0, 1), targets[rows].flatten(), ignore_index=IGNORED))
        if progress is not None:
            progress("clone", step + 1, steps)
    return policy.eval()
