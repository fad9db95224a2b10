"""The affine map between actions and [-1, 1], per dim, exact to one float32 ulp of the range.

Both directions compute in float64 and round once: in float32 the three roundings of (x - middle) / half add up
to more than one ulp of the range. On the CPU one fused pass does it without float64 arrays.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from action_tokenizers.codecs.kernel import inner_kernel, kernel
from action_tokenizers.codecs.threads import over_rows

__all__ = ["action_of", "from_unit", "to_unit"]


def to_unit(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Map `low` to -1 and `high` to +1, clipped; a dim with `low == high` becomes 0.

    Args:
        x: `(..., d)` float32.
        low: `(d,)` float32.
        high: `(d,)` float32.

    Returns:
        `(..., d)` float32 in [-1, 1].

    Example:
        >>> to_unit(torch.tensor([[0.0, 5.0]]), torch.tensor([0.0, 5.0]), torch.tensor([4.0, 5.0])).tolist()
        [[-1.0, 0.0]]
    """
    if x.device.type == "cpu":
        return _fused(_to_unit_kernel, x, low, high)
    low, high = low.double(), high.double()
    middle, half = (high + low) / 2, (high - low) / 2
    scale = torch.where(half > 0, 1 / half, torch.zeros_like(half))
    return ((x.double() - middle) * scale).clamp_(-1, 1).float()


def from_unit(z: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Inverse of `to_unit`; `z` outside [-1, 1] is clamped first, so the result is inside the range."""
    if z.device.type == "cpu":
        return _fused(_from_unit_kernel, z, low, high)
    half = (high.double() - low.double()) / 2
    # from the nearer end, so that both ends come back exactly however different they are in size
    value = z.double().clamp_(-1, 1)
    return torch.where(value < 0, low.double() + (value + 1) * half, high.double() - (1 - value) * half).float()


def _fused(kernel: Any, x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    rows = x.detach().contiguous().view(-1, low.numel())
    out = torch.empty_like(rows)
    source, target = rows.numpy(), out.numpy()
    a, b = low.contiguous().numpy(), high.contiguous().numpy()
    over_rows(lambda i, j: kernel(source[i:j], a, b, target[i:j]), len(source), least=4096)
    return out.view(x.shape)


_Array = npt.NDArray[Any]


@kernel
def _to_unit_kernel(x: _Array, low: _Array, high: _Array, out: _Array) -> None:
    middle, scale = np.empty(len(low), np.float64), np.empty(len(low), np.float64)
    for j in range(len(low)):
        half = (np.float64(high[j]) - np.float64(low[j])) / 2
        middle[j] = (np.float64(high[j]) + np.float64(low[j])) / 2
        scale[j] = 1 / half if half > 0 else 0.0
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            z = (np.float64(x[i, j]) - middle[j]) * scale[j]
            out[i, j] = np.float32(min(1.0, max(-1.0, z)))


@inner_kernel
def action_of(z: Any, low: Any, high: Any) -> Any:
    """Return the float32 action of `z`; all three float64. What kernels do of `from_unit`, to the bit."""
    value = min(1.0, max(-1.0, z))
    half = (high - low) / 2
    # from the nearer end, so that both ends come back exactly however different they are in size
    return np.float32(low + (value + 1) * half if value < 0 else high - (1 - value) * half)


@kernel
def _from_unit_kernel(z: _Array, low: _Array, high: _Array, out: _Array) -> None:
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            out[i, j] = action_of(np.float64(z[i, j]), np.float64(low[j]), np.float64(high[j]))
