"""The held-out chunks that every tokenizer of a comparison is measured on, absolute and as it codes them."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from action_tokenizers.base import ActionTokenizer
from action_tokenizers.data import Chunks, ChunkSample, Episodes, Relative
from action_tokenizers.data.chunks import ChunkPlan, gather
from action_tokenizers.doors import hold_last
from action_tokenizers.errors import ActionShapeError, NotFittedError

__all__ = ["Coded", "Scene", "key_of"]

_Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Coded:
    """Chunks as one tokenizer codes them: relative to something, or as recorded.

    Attributes:
        actions: `(n, t, d)`.
        is_pad: `(n, t)` bool.
        reference: `(n, d)` what relative actions are relative to, or None.
        relative: how, or None.
    """

    actions: _Floats
    is_pad: npt.NDArray[np.bool_]
    reference: _Floats | None = None
    relative: Relative | None = None

    @classmethod
    def of(cls, found: Chunks, relative: Relative | None) -> "Coded":
        """Take what `gather` returns."""
        return cls(found.actions, found.padding, found.reference, relative)

    @property
    def shape(self) -> dict[str, Any]:
        """Return horizon and action_dim, for tokenizers that leave them open."""
        return {"horizon": self.actions.shape[1], "action_dim": self.actions.shape[2]}

    def held(self) -> "Coded":
        """Return the same chunks with the last real step at padded ones, where encoding puts it too."""
        if not self.is_pad.any():
            return self
        actions = hold_last(torch.from_numpy(self.actions), torch.from_numpy(self._replaced))
        return replace(self, actions=actions.numpy())

    def encode(self, tokenizer: ActionTokenizer, key: str) -> npt.NDArray[np.int64]:
        """Return the ids `(n, m)`."""
        return np.asarray(tokenizer.encode(self.actions, key=key, action_is_pad=self._replaced))

    @property
    def _replaced(self) -> npt.NDArray[np.bool_]:
        """The padded steps, `(n, t)`; none of a chunk of nothing else: it has no step to hold, and no error counts."""
        replaced: npt.NDArray[np.bool_] = self.is_pad & ~self.is_pad.all(axis=1, keepdims=True)
        return replaced

    def quantize(self, tokenizer: ActionTokenizer, key: str) -> tuple[npt.NDArray[np.int64], _Floats]:
        """Return ids and decoded absolute actions."""
        ids = self.encode(tokenizer, key)
        return ids, self.absolute(tokenizer.decode(ids, **self.shape, key=key))

    def clip(self, tokenizer: ActionTokenizer, key: str) -> _Floats:
        """Return the absolute actions that an infinitely fine tokenizer of the same range would decode."""
        fitted = tokenizer.range
        if fitted is None:
            raise NotFittedError("expected a fitted tokenizer, got one that is not; call fit(data) first")
        row = fitted.index(key)
        low, high = (bound[row].cpu().numpy() for bound in (fitted.low, fitted.high))
        return self.absolute(np.clip(self.actions, low, high))

    def absolute(self, actions: _Floats) -> _Floats:
        """Return `actions` `(n, t, d)`, coded like these chunks, as absolute ones."""
        if self.relative is None or self.reference is None:
            return actions
        return np.asarray(self.relative.invert(actions, self.reference))


@dataclass(frozen=True)
class Scene:
    """Held-out data: sampled chunks for what is per chunk, whole episodes for what adds up.

    Attributes:
        episodes: all of them.
        horizon: steps per chunk.
        unit: `(d,)` half the range of each dim.
        plan: where the sampled chunks begin.
        chunks: `(n, t, d)` the sampled chunks, absolute.
        episode: `(n,)` the episode of each.
        skipped: number of episodes shorter than the horizon.
    """

    episodes: Episodes
    horizon: int
    unit: npt.NDArray[np.float64]
    plan: ChunkPlan
    chunks: _Floats
    episode: npt.NDArray[np.int64]
    skipped: int

    @classmethod
    def of(
        cls, episodes: Episodes, horizon: int, unit: npt.NDArray[np.float64], stride: int, most: int, seed: int
    ) -> "Scene":
        """Sample at most `most` chunks of `episodes`.

        Raises:
            ActionShapeError: no episode as long as the horizon.
        """
        sample = ChunkSample(most, seed).add(episodes, horizon, stride)
        if not len(sample):
            raise ActionShapeError(
                f"expected a held-out episode of at least the horizon, {horizon} steps, got {len(episodes)} of at most "
                f"{max(episodes.lengths)}; give a smaller horizon"
            )
        places = {name: i for i, name in enumerate(episodes.names)}
        position = np.array([places[name] for name in sample.episode.tolist()], np.int64)
        first = sample.start - np.asarray(episodes.offsets, np.int64)[position]
        plan = ChunkPlan(position, first, horizon, ())
        return cls(episodes, horizon, unit, plan, sample.actions, sample.episode, sample.skipped)

    def key_of(self, tokenizer: ActionTokenizer) -> str:
        """Return the range key to use, see `key_of`."""
        return key_of(tokenizer, self.episodes)

    def coded(self, tokenizer: ActionTokenizer) -> Coded:
        """Return the sampled chunks as `tokenizer` codes them."""
        return Coded.of(gather(self.episodes, self.plan, tokenizer.relative), tokenizer.relative)

    def later(self, tokenizer: ActionTokenizer) -> tuple[npt.NDArray[np.bool_], Coded]:
        """Say which sampled chunks have one a step later, `(n,)`, and return those as `tokenizer` codes them."""
        lengths = np.asarray(self.episodes.lengths)[self.plan.position]
        exists = self.plan.first + self.horizon < lengths
        plan = ChunkPlan(self.plan.position[exists], self.plan.first[exists] + 1, self.horizon, ())
        return exists, Coded.of(gather(self.episodes, plan, tokenizer.relative), tokenizer.relative)


def key_of(tokenizer: ActionTokenizer, episodes: Episodes) -> str:
    """Return the range key to use: the data's own, or a tokenizer's only one.

    Raises:
        ActionShapeError: neither.
    """
    if episodes.key in tokenizer.range_keys:
        return episodes.key
    if len(tokenizer.range_keys) == 1:
        return tokenizer.range_keys[0]
    raise ActionShapeError(
        f"expected data of one of the keys {list(tokenizer.range_keys)}, got key {episodes.key!r}; "
        "load the data with the right key= (--key)"
    )
