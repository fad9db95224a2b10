"""Nearest codeword per step or per chunk, over all dims or in groups of dims (BeT)."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from action_tokenizers.base import Progress
from action_tokenizers.codecs.nearest import (
    MOST_SEED,
    Books,
    build_books,
    decode_words,
    fit_codebook,
    nearest,
    nearest_levels,
)
from action_tokenizers.codecs.threads import all_rows
from action_tokenizers.errors import ActionValueError
from action_tokenizers.slots import SlotTokenizer

__all__ = ["KMeansTokenizer"]


class KMeansTokenizer(SlotTokenizer, name="kmeans"):
    """Replace each step, or each chunk, by the nearest of the codewords that k-means found.

    Args:
        horizon: steps per chunk; None: from the data.
        range: see `ActionTokenizer`.
        codebook_size: most codewords per group; fewer exist where the data have fewer distinct vectors.
        scope: `step` (BeT: one id per step and group) or `chunk` (one id per group).
        groups: lists of dims, each with a codebook and ids of its own (an arm and a hand); None: one group.
        seed: of k-means.

    Example:
        >>> import numpy as np
        >>> actions = np.random.default_rng(0).uniform(-1, 1, (200, 4, 3)).astype(np.float32)
        >>> tokenizer = KMeansTokenizer(codebook_size=16, groups=[[0, 1], [2]]).fit(actions)
        >>> tokenizer.encode(actions).shape, tokenizer.vocab_size
        ((200, 8), 32)
    """

    size_names = frozenset({"codewords", "groups"})
    own_steps: ClassVar[Mapping[str, frozenset[str]]] = {
        "_decode_whole": frozenset({"_slots", "_groups", "_codebook", "_first_ids"})
    }
    decode_alone = """
        groups, codewords = config["fitted"]["sizes"]["groups"], config["fitted"]["sizes"]["codewords"]
        codes = ids.reshape(-1, len(groups)) - np.cumsum([0, *codewords[:-1]])
        parts = [tensors[f"codebook_{g}"][codes[:, g]].reshape(-1, len(dims)) for g, dims in enumerate(groups)]
        z = np.concatenate(parts, axis=1)[:, np.argsort(np.concatenate(groups))]
        low, high = tensors["range.low"][0], tensors["range.high"][0]
        actions = low + (np.clip(z, -1, 1) + 1) / 2 * (high - low)
    """
    SCOPES: ClassVar[tuple[str, ...]] = ("step", "chunk")

    def __init__(
        self,
        *,
        horizon: int | None = None,
        range: Any = "quantile",
        codebook_size: int = 256,
        scope: str = "step",
        groups: Sequence[Sequence[int]] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            horizon=horizon, range=range, codebook_size=codebook_size, scope=scope, groups=groups, seed=seed
        )

    @property
    def vocab_size(self) -> int:
        """Codewords of all groups, and a pad where the horizon is open."""
        self._fitted_range()
        return int(sum(self._sizes["codewords"])) + (not self._fixed_length())

    def codewords(self) -> list[tuple[list[int], torch.Tensor]]:
        """Return dims and codewords of each group, `(k, p, len(dims))` in range units, p = 1 or the horizon.

        An action, clipped to the range, gets the codeword that is nearest to it in range units.
        """
        self._fitted_range()
        return [
            (dims, self._codebook(g).reshape(k, -1, len(dims)).clone())
            for g, (dims, k) in enumerate(zip(self._groups(), self._sizes["codewords"], strict=True))
        ]

    def _needs_horizon(self) -> bool:
        return bool(self._params["scope"] == "chunk")

    def _groups(self) -> list[list[int]]:
        dims = range(self._action_dim or 0)
        # as they were at fit: the caller may have changed the list since
        asked = self._sizes.get("groups", self._params["groups"])
        return [list(dims)] if asked is None else [list(group) for group in asked]

    def _codebook(self, group: int) -> torch.Tensor:
        return self.get_buffer(f"codebook_{group}")

    def _check_params(self) -> None:
        self._whole("codebook_size")
        self._whole("seed", 0, MOST_SEED)
        scope, groups = self._params["scope"], self._params["groups"]
        if scope not in self.SCOPES:
            raise ActionValueError(f"expected scope among {list(self.SCOPES)}, got {scope!r}")
        try:
            dims = sorted(operator.index(dim) for group in self._groups() for dim in group)
        except TypeError:
            dims = []
        if dims != list(range(self._action_dim or 0)) or not all(map(len, self._groups())):
            raise ActionValueError(f"expected groups that hold each of the {self._action_dim} dims once, got {groups}")

    def _fit(self, chunks: torch.Tensor, is_pad: torch.Tensor | None, progress: Progress | None) -> None:
        whole = self._params["scope"] == "chunk"
        codebooks = []
        for g, dims in enumerate(self._groups()):
            if progress is not None:
                progress("k-means", g, len(self._groups()))
            part = chunks[:, :, dims]
            vectors = part.flatten(1) if whole else part.flatten(0, 1) if is_pad is None else part[~is_pad]
            codebooks.append((fit_codebook(vectors, self._whole("codebook_size"), self._whole("seed", 0)), vectors))
        groups = [[int(dim) for dim in group] for group in self._groups()]
        self._sizes = {"codewords": [len(codebook) for codebook, _ in codebooks], "groups": groups}
        self._allocate()
        for g, (codebook, vectors) in enumerate(codebooks):
            self._codebook(g).copy_(codebook)
            self.get_buffer(f"neutral_{g}").copy_(vectors.double().mean(0))

    def _allocate(self) -> None:
        steps = self._horizon or 0 if self._params["scope"] == "chunk" else 1
        for g, (dims, k) in enumerate(zip(self._groups(), self._sizes["codewords"], strict=True)):
            self.register_buffer(f"codebook_{g}", torch.zeros(k, steps * len(dims), dtype=torch.float32))
            # what a missing id decodes to: the mean of the data
            self.register_buffer(f"neutral_{g}", torch.zeros(steps * len(dims), dtype=torch.float32))

    def _places(self, horizon: int) -> int:
        """Number of ids per group in a chunk."""
        return 1 if self._params["scope"] == "chunk" else horizon

    def _first_ids(self) -> list[int]:
        sizes = self._sizes["codewords"]
        return [sum(sizes[:g]) for g in range(len(sizes))]

    def _max_tokens(self, horizon: int, action_dim: int) -> int:
        return self._places(horizon) * len(self._sizes["codewords"])

    def _slots(self, horizon: int, action_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        device = self._codebook(0).device
        first = torch.tensor(self._first_ids(), device=device)
        return (
            first.repeat(self._places(horizon)),
            torch.tensor(self._sizes["codewords"], device=device).repeat(self._places(horizon)),
        )

    def _slot_meaning(self, horizon: int, action_dim: int) -> torch.Tensor:
        steps = torch.arange(horizon) if self._params["scope"] == "step" else torch.tensor([-1])
        dims = torch.tensor([group[0] if len(group) == 1 else -1 for group in self._groups()])
        return torch.cartesian_prod(steps, dims, torch.zeros(1, dtype=torch.int64))

    def _books(self) -> list[Books]:
        """Return the kernel's arrays per group."""
        return self._tables_of(lambda: [build_books([self._codebook(g)]) for g in range(len(self._groups()))])

    def _encode(self, chunks: torch.Tensor) -> torch.Tensor:
        b, t, _ = chunks.shape
        places, groups = self._places(t), list(zip(self._groups(), self._first_ids(), strict=True))
        if chunks.device.type != "cpu":
            widths = [self._codebook(g).shape[1] for g in range(len(groups))]
            found = [
                nearest(chunks[:, :, dims].reshape(b * places, widths[g]), self._codebook(g)).reshape(b, places) + first
                for g, (dims, first) in enumerate(groups)
            ]
            return torch.stack(found, -1).flatten(1)
        # numpy puts together what kernels find: torch's threads do not come along in a fork, and would hang there
        ids, actions, books = np.empty((b, places, len(groups)), np.int64), chunks.detach().numpy(), self._books()
        for g, (dims, first) in enumerate(groups):
            some = actions if dims == list(range(actions.shape[2])) else np.ascontiguousarray(actions[:, :, dims])
            vectors = torch.from_numpy(some.reshape(b * places, books[g].words.shape[2]))
            ids[:, :, g] = nearest_levels(vectors, books[g], first=np.array([first])).numpy().reshape(b, places)
        return torch.from_numpy(ids.reshape(b, places * len(groups)))

    def _decode_whole(self, ids: torch.Tensor, horizon: int, action_dim: int, key: str | None) -> torch.Tensor | None:
        groups = self._groups()
        if ids.device.type != "cpu" or ids.shape[1] != self._max_tokens(horizon, action_dim):
            return None
        low, high = self._fitted_range().bounds(key)
        rows, out = ids.contiguous().numpy(), np.empty((len(ids), horizon, action_dim), np.float32)
        each = [
            (self._codebook(g).numpy(), first, np.array(dims, np.int64))
            for g, (first, dims) in enumerate(zip(self._first_ids(), groups, strict=True))
        ]

        def decode(i: int, j: int) -> bool:
            return all(
                decode_words(words, first, dims, low, high, rows[i:j], g, len(groups), out[i:j])
                for g, (words, first, dims) in enumerate(each)
            )

        return torch.from_numpy(out) if all_rows(decode, len(rows)) else None

    def _decode(self, ids: torch.Tensor, kept: torch.Tensor, horizon: int, action_dim: int) -> torch.Tensor:
        groups, places = self._groups(), self._places(horizon)
        n = places * len(groups)
        padded = torch.zeros(len(ids), n, dtype=torch.int64, device=ids.device)
        m = min(n, ids.shape[1])
        padded[:, :m] = ids[:, :m]
        said = (torch.arange(n, device=ids.device) < kept[:, None]).reshape(-1, places, len(groups))
        cells = padded.reshape(-1, places, len(groups))
        out = torch.empty(len(ids), horizon, action_dim, dtype=torch.float32, device=ids.device)
        for g, (dims, first) in enumerate(zip(groups, self._first_ids(), strict=True)):
            index = torch.where(said[:, :, g], cells[:, :, g] - first, 0)
            words = torch.where(
                said[:, :, g, None],
                self._codebook(g)[index],
                self.get_buffer(f"neutral_{g}").expand(1, 1, -1),
            )
            out[:, :, dims] = words.reshape(len(ids), horizon, len(dims))
        return out
