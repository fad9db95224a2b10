"""The reference of relative actions is the state, as far as it reaches; the action before is nobody's to know."""

import numpy as np
import pytest

from action_tokenizers import ActionShapeError, ActionValueError, BinningTokenizer, ChunkSample, Episodes, Relative
from action_tokenizers.cloning.reference import check_reference, reference


def test_the_first_dims_of_the_state():
    states = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(reference(states, 2), states[:, :2])
    with pytest.raises(ActionShapeError, match="begin with the 4 dims actions are relative to, got 3"):
        reference(states, 4)


def test_only_the_action_before_is_refused():
    episodes = Episodes([np.linspace(0, 1, 20)[:, None]], states=[np.zeros((20, 1))])
    for mode in ("state", None, "previous"):
        relative = None if mode is None else Relative(mode)
        tokenizer = BinningTokenizer(horizon=1).fit(ChunkSample().add(episodes, 1, 1, relative=relative))
        if mode == "previous":
            with pytest.raises(ActionValueError, match="which a state does not tell"):
                check_reference(tokenizer)
        else:
            check_reference(tokenizer)
