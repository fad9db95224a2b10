"""A small causal transformer over one state and the ids that follow it; it keeps what it computed, to sample fast."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from einops import rearrange
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["Cache", "TokenTransformer", "seeded"]

MLP_RATIO = 4
START_STD = 0.02


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let torch's layers draw their first weights from `seed`, on the CPU, and give the generator back as it was."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # not torch.manual_seed, which would seed the generators of every device and not give those back
        torch.default_generator.manual_seed(seed)
        yield


class Cache(NamedTuple):
    """Keys and values of one layer for the positions seen so far, `(b, heads, n, width / heads)` each."""

    keys: torch.Tensor
    values: torch.Tensor


class Block(nn.Module):
    """Attention and a two-layer network, each added to what it is given (pre-norm)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, MLP_RATIO * width), nn.GELU(), nn.Linear(MLP_RATIO * width, width)
        )

    def forward(self, x: torch.Tensor, cache: Cache | None) -> tuple[torch.Tensor, Cache]:
        """Return `x (b, n, width)` with what the positions before and in it say added, and the longer cache."""
        projected = self.queries_keys_values(self.attention_norm(x))
        q, k, v = rearrange(projected, "b n (three h d) -> three b h n d", three=3, h=self.heads)
        if cache is not None:
            k, v = torch.cat([cache.keys, k], 2), torch.cat([cache.values, v], 2)
        # several positions come at once only where there is no cache; a single one sees all that came before
        seen = scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        x = x + self.attention_out(rearrange(seen, "b h n d -> b n (h d)"))
        return x + self.mlp(x), Cache(k, v)


class TokenTransformer(nn.Module):
    """Logits of each id of a chunk from the state and the ids before it.

    Args:
        vocab_size: v, number of ids.
        max_tokens: most ids of a chunk.
        state_dim: ds.
        width: of the residual stream; a multiple of `heads`.
        layers: number of blocks.
        heads: of each attention.
    """

    def __init__(self, vocab_size: int, max_tokens: int, state_dim: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.state_in = nn.Sequential(nn.Linear(state_dim, width), nn.GELU(), nn.Linear(width, width))
        self.id_in = nn.Embedding(vocab_size, width)
        self.place = nn.Parameter(torch.empty(max_tokens, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, vocab_size))
        for weight in (self.place, self.id_in.weight):
            nn.init.normal_(weight, std=START_STD)

    def forward(self, states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits `(b, n + 1, v)` of each of `ids (b, n)` and of the one after, given `states (b, ds)`."""
        state = self.state_in(states)[:, None]
        # the state is added everywhere, so that no id has to look far for it
        x = torch.cat([state, self.id_in(ids) + state], 1) + self.place[: ids.shape[1] + 1]
        for block in self.blocks:
            x, _ = block(x, None)
        logits: torch.Tensor = self.out(x)
        return logits

    def step(
        self, states: torch.Tensor, last: torch.Tensor | None, caches: list[Cache] | None
    ) -> tuple[torch.Tensor, list[Cache]]:
        """Return the logits `(b, v)` of the next id, and what to give to the next call.

        Args:
            states: `(b, ds)`.
            last: `(b,)` ids chosen last; None at the beginning.
            caches: of the call before; None at the beginning.
        """
        x = self.state_in(states)[:, None]
        position = 0
        if last is not None and caches is not None:
            x = x + self.id_in(last)[:, None]
            position = caches[0].keys.shape[2]
        x = x + self.place[position]
        longer = []
        for i, block in enumerate(self.blocks):
            x, cache = block(x, None if caches is None else caches[i])
            longer.append(cache)
        return self.out(x[:, -1]), longer
