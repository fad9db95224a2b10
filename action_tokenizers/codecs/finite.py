"""Whether all numbers are finite, at the speed of memory."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from action_tokenizers.codecs.kernel import kernel
from action_tokenizers.codecs.threads import all_rows

__all__ = ["all_finite"]

_Array = npt.NDArray[Any]
# what is all ones in NaN and inf, and in no other float32
_EXPONENT = np.int32(0x7F800000)


def all_finite(values: torch.Tensor) -> bool:
    """Say whether `values`, float32 of any shape, hold neither NaN nor inf.

    Example:
        >>> all_finite(torch.zeros(3)), all_finite(torch.tensor([0.0, float("nan")]))
        (True, False)
    """
    if values.device.type != "cpu":
        return bool(torch.isfinite(values).all())
    bits = values.detach().contiguous().numpy().reshape(-1).view(np.int32)
    return all_rows(lambda i, j: _are_finite(bits[i:j]), len(bits), least=1 << 15)


@kernel
def _are_finite(bits: _Array) -> bool:
    odd = 0
    for i in range(len(bits)):
        odd |= (bits[i] & _EXPONENT) == _EXPONENT
    return odd == 0
