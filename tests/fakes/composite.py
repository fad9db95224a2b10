"""A toy composite: dims split over two kinds of tokenizer, their ids one after the other.

Written against the contract of `base.py` alone, to prove that it carries tokenizers made of tokenizers.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from torch import nn

from action_tokenizers import ActionShapeError, ActionTokenizer, ActionValueError, ChunkSample
from action_tokenizers.base import Progress


class CompositeTokenizer(ActionTokenizer, name="toy_composite"):
    """Each part codes its own dims; a chunk's ids are those of part 0, then those of part 1, and so on.

    Every part has ids of its own (its pad left out), so one id alone tells whose it is. A part of variable
    length needs no end mark: like every family it says itself which id completes it.

    Args:
        horizon: steps per chunk; None: from the data.
        range: see `ActionTokenizer`; the parts are fitted on range units.
        parts: unfitted tokenizers; their own `horizon` and `range` are set here.
        dims: the dims of each part; together each dim once.
    """

    def __init__(
        self,
        *,
        horizon: int | None = None,
        range: Any = "quantile",
        parts: Sequence[ActionTokenizer] = (),
        dims: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__(horizon=horizon, range=range, parts=parts, dims=dims)

    @property
    def vocab_size(self) -> int:
        self._fitted_range()
        return sum(self._widths()) + (not self._fixed_length())

    def _forget(self) -> None:
        super()._forget()
        self.parts = nn.ModuleList()

    def _needs_horizon(self) -> bool:
        return any(part._needs_horizon() for part in self._params["parts"])

    def _fixed_length(self) -> bool:
        # a part fitted beside an open horizon was shown single steps, and believes that its horizon is 1
        return self._horizon is not None and all(part._fixed_length() for part in self.parts)

    def _saved_params(self) -> dict[str, Any]:
        return {**self.get_params(), "parts": list(self.parts)}

    def _widths(self) -> list[int]:
        """Ids of each part, its pad left out."""
        return [part.vocab_size - (part.pad_id is not None) for part in self.parts]

    def _places(self) -> Iterator[tuple[ActionTokenizer, list[int], int, int]]:
        """Yield each part with its dims, its first id and its number of ids."""
        first = 0
        for part, dims, width in zip(self.parts, self._params["dims"], self._widths(), strict=True):
            yield part, list(dims), first, width
            first += width

    def _check_params(self) -> None:
        parts, dims = self._params["parts"], self._params["dims"]
        if len(parts) != len(dims) or not all(isinstance(part, ActionTokenizer) for part in parts):
            raise ActionValueError(f"expected one list of dims per part, got {len(parts)} parts and {len(dims)} lists")
        if sorted(dim for group in dims for dim in group) != list(np.arange(self._action_dim or 0)):
            raise ActionShapeError(f"expected each of the {self._action_dim} dims in one part, got dims={dims}")

    def _fit(self, chunks: torch.Tensor, is_pad: torch.Tensor | None, progress: Progress | None) -> None:
        row = np.arange(len(chunks))
        fitted = []
        for part, group in zip(self._params["parts"], self._params["dims"], strict=True):
            sample = ChunkSample(k=len(chunks)).add_chunks(
                chunks[:, :, list(group)], episode=row, start=np.zeros_like(row), action_is_pad=is_pad
            )
            fitted.append(clone(part).set_params(horizon=self._horizon, range="unit").fit(sample, progress=progress))
        self.parts = nn.ModuleList(fitted)

    def _allocate(self) -> None:
        self.parts = nn.ModuleList(self._params["parts"])  # a loaded folder brings its parts fitted

    def _check_tensors(self) -> None:
        for part in self.parts:
            part._check_tensors()

    def _encode(self, chunks: torch.Tensor) -> torch.Tensor:
        b, t, _ = chunks.shape
        pad = sum(self._widths())
        out = torch.full((b, self._max_tokens(t, chunks.shape[2])), pad, device=chunks.device)
        used = torch.zeros(b, dtype=torch.int64, device=chunks.device)
        for part, dims, first, _ in self._places():
            ids = part._encode(chunks[:, :, dims])
            length, _ = part._parse(ids, t, len(dims))
            place = torch.arange(ids.shape[1], device=ids.device)
            said = place < length[:, None]
            row, column = said.nonzero(as_tuple=True)
            out[row, used[row] + column] = ids[said] + first
            used += length
        return out[:, : int(used.max()) if b else 0]

    def _split(
        self, ids: torch.Tensor, kept: torch.Tensor, horizon: int
    ) -> Iterator[tuple[ActionTokenizer, list[int], torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield each part with its dims, its own ids moved to the left, how many they are, and if they complete it.

        Only the first `kept (b,)` ids of each row count.
        """
        place = torch.arange(ids.shape[1], device=ids.device)
        start, complete = torch.zeros_like(kept), torch.ones_like(kept, dtype=torch.bool)
        for part, dims, first, width in self._places():
            source = start[:, None] + place
            own = ids.gather(1, source.clamp(max=max(0, ids.shape[1] - 1))) - first
            known = (own >= 0) & (own < width) & (source < kept[:, None]) & complete[:, None]
            own = torch.where(known, own, -1)
            count, done = part._parse(own, horizon, len(dims))
            start, complete = start + count, complete & done
            yield part, dims, own, count, complete

    def _parse(self, ids: torch.Tensor, horizon: int, action_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        everything = torch.full((len(ids),), ids.shape[1], device=ids.device)
        split = list(self._split(ids, everything, horizon))
        return torch.stack([count for _, _, _, count, _ in split]).sum(0), split[-1][-1]

    def _decode(self, ids: torch.Tensor, kept: torch.Tensor, horizon: int, action_dim: int) -> torch.Tensor:
        out = torch.empty(len(ids), horizon, action_dim, dtype=torch.float32, device=ids.device)
        for part, dims, own, count, _ in self._split(ids, kept, horizon):
            out[:, :, dims] = part._decode(own, count, horizon, len(dims))
        return out

    def _allowed(self, prefix: torch.Tensor, horizon: int, action_dim: int) -> torch.Tensor:
        mask = torch.zeros(len(prefix), self.vocab_size, dtype=torch.bool, device=prefix.device)
        begun = torch.ones(len(prefix), dtype=torch.bool, device=prefix.device)  # the parts before are complete
        everything = torch.full((len(prefix),), prefix.shape[1], device=prefix.device)
        first = 0
        for (part, dims, own, count, done), width in zip(
            self._split(prefix, everything, horizon), self._widths(), strict=True
        ):
            for length in count.unique().tolist():  # a part's hook takes prefixes of one length
                rows = (begun & ~done & (count == length)).nonzero()[:, 0]
                if len(rows):
                    allowed = part._allowed(own[rows, :length], horizon, len(dims))
                    mask[rows, first : first + width] = allowed[:, :width]
            begun, first = done, first + width
        return mask

    def _max_tokens(self, horizon: int, action_dim: int) -> int:
        return sum(part._max_tokens(horizon, len(dims)) for part, dims, _, _ in self._places())
