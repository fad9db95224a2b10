"""Residual quantization: each level codes what the levels before it left over."""

from collections.abc import Sequence

import torch

from action_tokenizers.codecs.nearest import Books, build_books, nearest, nearest_levels

__all__ = ["residual_decode", "residual_encode"]


def residual_encode(
    vectors: torch.Tensor, codebooks: Sequence[torch.Tensor], books: Books | None = None
) -> torch.Tensor:
    """Return the codeword of each level, `(n, levels)` int64, chosen greedily from the first level on.

    Args:
        vectors: `(n, l)` float64.
        codebooks: per level `(k_i, l)` float32.
        books: `build_books(codebooks)`, where a caller has kept them.

    Example:
        >>> books = [torch.tensor([[0.0], [1.0]]), torch.tensor([[-0.25], [0.25]])]
        >>> residual_encode(torch.tensor([[0.8]], dtype=torch.float64), books).tolist()
        [[1, 0]]
    """
    if vectors.device.type == "cpu":
        return nearest_levels(vectors, build_books(codebooks) if books is None else books)
    left = vectors.clone()
    codes = torch.empty(len(vectors), len(codebooks), dtype=torch.int64, device=vectors.device)
    for level, codebook in enumerate(codebooks):
        codes[:, level] = nearest(left, codebook)
        left -= codebook[codes[:, level]]
    return codes


def residual_decode(codes: torch.Tensor, codebooks: Sequence[torch.Tensor], kept: torch.Tensor) -> torch.Tensor:
    """Return the sum of the first `kept (n,)` levels' codewords, `(n, l)` float64; a missing level adds zero."""
    total = torch.zeros(len(codes), codebooks[0].shape[1], dtype=torch.float64, device=codes.device)
    for level, codebook in enumerate(codebooks[: codes.shape[1]]):
        said = kept > level
        total += torch.where(said[:, None], codebook[torch.where(said, codes[:, level], 0)].double(), 0.0)
    return total
