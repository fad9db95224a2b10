"""q#pi*: what the expert's actions are encoded to, with probability 1."""

import numpy as np
import pytest

from action_tokenizers import (
    ActionShapeError,
    ActionValueError,
    BinningTokenizer,
    ChunkSample,
    Episodes,
    FASTTokenizer,
    Relative,
)
from action_tokenizers.cloning.expert import QuantizedExpert
from action_tokenizers.diagnostics.policy import TokenPolicy, check_normalised, checked

CHUNKS = np.random.default_rng(0).uniform(-1, 1, (40, 4, 1)).astype(np.float32)
TOKENIZER = FASTTokenizer(horizon=4, vocab_size=32, range="unit").fit(CHUNKS)
STATES = np.linspace(-1, 1, 5, dtype=np.float32)[:, None]


def expert(states):
    return np.repeat(states[:, None], 4, axis=1)


def test_it_gives_the_ids_of_the_experts_actions_and_no_others():
    policy = QuantizedExpert(TOKENIZER, expert)
    assert isinstance(policy, TokenPolicy)
    ids = policy.sample(STATES, seed=3)
    assert np.array_equal(ids, TOKENIZER.encode(expert(STATES)))
    assert policy.log_prob(STATES, ids).tolist() == [0.0] * 5
    assert policy.log_prob(STATES, ids[::-1]).tolist() == [-np.inf, -np.inf, 0.0, -np.inf, -np.inf]
    padded = np.pad(ids, ((0, 0), (0, 2)), constant_values=TOKENIZER.pad_id)
    assert policy.log_prob(STATES, padded).tolist() == [0.0] * 5
    assert check_normalised(checked(policy, TOKENIZER), STATES[:2], draws=16)


def test_an_expert_of_another_shape():
    with pytest.raises(ActionShapeError, match=r"\(5, t, d\) from the expert, got \(5, 1\)"):
        QuantizedExpert(TOKENIZER, lambda x: x).sample(STATES)


def test_actions_relative_to_the_state_are_taken_from_absolute_ones():
    states = np.random.default_rng(0).uniform(-1, 1, (8, 6, 1)).astype(np.float32)
    episodes = Episodes([*(states + 0.25)], states=[*states])
    relative = BinningTokenizer(horizon=1).fit(ChunkSample().add(episodes, 1, 1, relative=Relative("state")))
    policy = QuantizedExpert(relative, lambda x: x[:, None] + 0.25)
    np.testing.assert_allclose(relative.decode(policy.sample(STATES)), 0.25, atol=0.01)
    previous = BinningTokenizer(horizon=1).fit(ChunkSample().add(episodes, 1, 1, relative=Relative("previous")))
    with pytest.raises(ActionValueError, match="which a state does not tell"):
        QuantizedExpert(previous, expert)
