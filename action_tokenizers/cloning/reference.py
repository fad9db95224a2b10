"""What relative actions are relative to where a policy acts: the state it sees, and nothing before it."""

from typing import Any

import numpy as np
import numpy.typing as npt

from action_tokenizers.base import ActionTokenizer
from action_tokenizers.errors import ActionShapeError, ActionValueError

__all__ = ["check_reference", "reference"]


def check_reference(tokenizer: ActionTokenizer) -> None:
    """Refuse a tokenizer of actions relative to the action before, which a state does not tell.

    Raises:
        ActionValueError: it is one.
    """
    relative = tokenizer.relative
    if relative is not None and "previous" in relative.modes(tokenizer.action_dim or 0):
        raise ActionValueError(
            "expected a tokenizer of absolute actions or of actions relative to the state, got one relative to the "
            "action before, which a state does not tell"
        )


def reference(states: Any, width: int) -> npt.NDArray[Any]:
    """Return the first `width` dims of `states (b, ds)`, which actions are relative to.

    Raises:
        ActionShapeError: states have fewer.
    """
    values = np.asarray(states)
    if values.shape[1] < width:
        raise ActionShapeError(
            f"expected states that begin with the {width} dims actions are relative to, got {values.shape[1]}"
        )
    return values[:, :width]
