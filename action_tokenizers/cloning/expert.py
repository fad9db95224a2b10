"""The quantized expert q#pi*: what log-loss cloning converges to, as the policy of a known expert."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from action_tokenizers.base import ActionTokenizer
from action_tokenizers.cloning.reference import check_reference, reference
from action_tokenizers.errors import ActionShapeError

__all__ = ["QuantizedExpert"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class QuantizedExpert:
    """A deterministic expert whose actions are encoded: the push-forward policy q#pi* of Cao & Xie 2026, section 2.

    It satisfies `diagnostics.policy.TokenPolicy`. Cloning with endless data gives this policy, so that whatever it
    loses in execution is the tokenizer's doing.

    Args:
        tokenizer: fitted.
        expert: gives the absolute actions `(b, t, d)` of states `(b, ds)`; it is called with them in the dtype they
            come in. A tokenizer of actions relative to the state gets them so: the state then begins with the d dims.
        key: of the range to encode with.

    Example:
        >>> from action_tokenizers.diagnostics.known import Trap
        >>> trap = Trap(2**-5)
        >>> policy = QuantizedExpert(trap.tokenizer(horizon=1), lambda x: trap.expert(x)[:, None])
        >>> ids = policy.sample(np.zeros((1, 1)), seed=0)
        >>> policy.log_prob(np.zeros((1, 1)), ids).tolist()
        [0.0]
    """

    def __init__(self, tokenizer: ActionTokenizer, expert: Callable[[Any], Any], key: str | None = None) -> None:
        check_reference(tokenizer)
        self.tokenizer, self.expert, self.key = tokenizer, expert, key

    def sample(self, states: Any, *, seed: int = 0) -> Ints:
        """Return the ids `(b, n)` of the expert's actions in `states (b, ds)`; nothing is drawn.

        Raises:
            ActionShapeError: the expert gives something else than a chunk per state.
        """
        actions = np.asarray(self.expert(states))
        if actions.ndim != 3 or len(actions) != len(states):
            raise ActionShapeError(f"expected actions ({len(states)}, t, d) from the expert, got {actions.shape}")
        if self.tokenizer.relative is not None:
            actions = self.tokenizer.relative.apply(actions, reference(states, actions.shape[2]))
        return np.asarray(self.tokenizer.encode(actions, key=self.key), np.int64)

    def log_prob(self, states: Any, ids: Any) -> Floats:
        """Return 0 for rows of `ids (b, n)` that the expert's actions have, else -inf, `(b,)`."""
        own, given = self.sample(states), np.asarray(ids)
        pad = -1 if self.tokenizer.pad_id is None else self.tokenizer.pad_id
        width = max(own.shape[1], given.shape[1])
        wide = [np.pad(rows, ((0, 0), (0, width - rows.shape[1])), constant_values=pad) for rows in (own, given)]
        return np.where((wide[0] == wide[1]).all(axis=1), 0.0, -np.inf)
