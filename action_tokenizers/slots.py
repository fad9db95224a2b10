"""Tokenizers with a fixed slot for every id: position p of a chunk holds one of a known, contiguous set of ids."""

from abc import abstractmethod

import torch

from action_tokenizers.base import ActionTokenizer

__all__ = ["SlotTokenizer"]


class SlotTokenizer(ActionTokenizer):
    """Base of families whose n-th id always means the same thing, so that `allowed` is a slice.

    A family writes `_slots` instead of `_parse` and `_allowed`, and `_slot_meaning` instead of `_locate`.
    """

    @abstractmethod
    def _slots(self, horizon: int, action_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the first id of each position and how many may stand there, both `(n,)` int64."""

    def _slot_meaning(self, horizon: int, action_dim: int) -> torch.Tensor:
        """Return step, dim and level of each position, `(n, 3)` int64; -1: unknown."""
        return torch.full((self._max_tokens(horizon, action_dim), 3), -1, dtype=torch.int64)

    def _locate(self, ids: torch.Tensor, kept: torch.Tensor, horizon: int, action_dim: int) -> torch.Tensor:
        meaning = self._slot_meaning(horizon, action_dim).to(ids.device)
        out = torch.full((*ids.shape, 3), -1, dtype=torch.int64, device=ids.device)
        n = min(ids.shape[1], len(meaning))
        out[:, :n] = meaning[:n]
        return out

    def _parse(self, ids: torch.Tensor, horizon: int, action_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        first, count = self._slots(horizon, action_dim)
        n = len(first)
        given = ids[:, :n]
        m = given.shape[1]
        fits = (given >= first[:m]) & (given < (first + count)[:m])
        if bool(fits.all()):
            kept = torch.full((len(ids),), m, dtype=torch.int64, device=ids.device)
        else:
            kept = fits.cumprod(-1).sum(-1)
        return kept, kept == n

    def _allowed(self, prefix: torch.Tensor, horizon: int, action_dim: int) -> torch.Tensor:
        first, count = self._slots(horizon, action_dim)
        p = prefix.shape[1]
        ids = torch.arange(self.vocab_size, device=prefix.device)
        return ((ids >= first[p]) & (ids < first[p] + count[p])).expand(len(prefix), -1)

    def _choices(self, ids: torch.Tensor, kept: torch.Tensor, horizon: int, action_dim: int) -> torch.Tensor:
        _, count = self._slots(horizon, action_dim)
        choices = torch.ones_like(ids)
        n = min(len(count), ids.shape[1])
        choices[:, :n] = count[:n]  # a valid row fills its slots
        return choices
