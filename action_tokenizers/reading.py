"""What one call's ids turned out to be, and how to say what is wrong with them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from action_tokenizers.errors import TokenError

__all__ = ["Reading"]


@dataclass(frozen=True)
class Reading:
    """The ids of a call, opened and parsed.

    Attributes:
        rows: `(b, n)` int64.
        give_back: gives a `(b, ...)` result the caller's form.
        horizon: of this call.
        action_dim: of this call.
        kept: `(b,)` how many leading ids can begin a chunk.
        complete: `(b,)` whether they complete it.
        begins: `(b,)` whether all ids before the pads begin a chunk.
        vocab_size: number of ids.
        pad_id: the pad, if there is one.
    """

    rows: torch.Tensor
    give_back: Callable[[torch.Tensor], Any]
    horizon: int
    action_dim: int
    kept: torch.Tensor
    complete: torch.Tensor
    begins: torch.Tensor
    vocab_size: int
    pad_id: int | None

    @property
    def valid(self) -> torch.Tensor:
        """Whether each row is exactly one chunk, `(b,)` bool."""
        return self.begins & self.complete

    def refuse_unless(self, fine: torch.Tensor) -> None:
        """Raise TokenError for the first row that is not `fine (b,)`, saying where and why."""
        if bool(fine.all()):
            return
        row = int((~fine).nonzero()[0])
        kept, ids = int(self.kept[row]), self.rows[row]
        if bool(self.complete[row]):
            what = f"{len(ids) - kept} more after the {kept} that complete the chunk"
        elif kept == len(ids) or int(ids[kept]) == self.pad_id:
            what = f"an end after {kept}, before the chunk is complete"
        else:
            what = f"id {int(ids[kept])} at position {kept}, which cannot stand there"
        then = "" if self.pad_id is None else f", then only the pad {self.pad_id}"
        raise TokenError(
            f"expected the ids of a chunk ({self.horizon}, {self.action_dim}) in 0..{self.vocab_size - 1}{then}, got "
            f"{what} (row {row}, {int((~fine).sum())} of {len(fine)} rows); generate under allowed(), or repair with "
            "try_decode"
        )
