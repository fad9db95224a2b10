"""What cloning learns: a mapping it has seen, frequencies where the state says nothing, the same from equal seeds."""

import numpy as np
import pytest

from action_tokenizers import (
    ActionShapeError,
    ActionValueError,
    BinningTokenizer,
    ChunkSample,
    Episodes,
    FASTTokenizer,
    KMeansTokenizer,
    Relative,
)
from action_tokenizers.cloning.training import clone, states_and_chunks
from action_tokenizers.diagnostics.subject import Subject
from action_tokenizers.diagnostics.variation import ESTIMATORS, policy_measures

SMALL = {"width": 32, "layers": 1, "heads": 2}


def steered(n=24, t=12, seed=0):
    """Actions that are a plain function of the state; states drawn afresh at every step."""
    states = np.random.default_rng(seed).uniform(-1, 1, (n, t, 2)).astype(np.float32)
    actions = np.stack([np.sign(states[..., 0]) * 0.5, states[..., 1]], -1)
    return Episodes([*actions.astype(np.float32)], states=[*states])


def test_a_function_of_the_state_is_learned():
    tokenizer = BinningTokenizer(horizon=1, bins=8, range="unit").fit(steered())
    policy = clone(tokenizer, steered(), steps=300, learning_rate=5e-3, **SMALL)
    fresh = steered(seed=1)
    states, wanted = np.concatenate(fresh.states), np.concatenate(fresh.actions)
    got = tokenizer.decode(policy.greedy(states))[:, 0]
    assert (np.abs(got[:, 0] - wanted[:, 0]) < 0.2).mean() > 0.95
    assert np.abs(got[:, 1] - wanted[:, 1]).mean() < 0.15
    even = -2 * np.log(8)
    assert policy.log_prob(states, tokenizer.encode(wanted[:, None])).mean() > even / 2


def test_frequencies_are_learned_where_the_state_says_nothing():
    rng = np.random.default_rng(0)
    actions = rng.choice([-0.5, 0.5], (40, 25, 1), p=[0.25, 0.75]).astype(np.float32)
    episodes = Episodes([*actions], states=[*rng.normal(size=(40, 25, 2)).astype(np.float32)])
    tokenizer = KMeansTokenizer(horizon=1, codebook_size=2, range="unit").fit(episodes)
    policy = clone(tokenizer, episodes, steps=150, **SMALL)
    states = np.zeros((2, 2), np.float32)
    p = np.exp(policy.log_prob(states, tokenizer.encode(np.array([[[-0.5]], [[0.5]]], np.float32))))
    np.testing.assert_allclose(p, [0.25, 0.75], atol=0.08)


def test_rows_of_several_lengths_are_learned():
    episodes = steered(t=16)
    tokenizer = FASTTokenizer(horizon=4, vocab_size=64, scale=3, range="unit").fit(episodes)
    policy = clone(tokenizer, episodes, steps=60, **SMALL)
    states, cut = states_and_chunks(episodes, 4)
    ids = tokenizer.encode(cut.actions)
    assert (ids == tokenizer.pad_id).any()
    even = -tokenizer.bits(ids).mean() * np.log(2)
    assert policy.log_prob(states, ids).mean() > 0.9 * even


def test_a_chunk_begins_at_every_frame():
    episodes = steered(n=3, t=5)
    states, cut = states_and_chunks(episodes, 4)
    assert len(states) == len(cut) == 15
    np.testing.assert_array_equal(states, np.concatenate(episodes.states))
    np.testing.assert_array_equal(cut.actions[:, 0], np.concatenate(episodes.actions))
    assert cut.padding[4].tolist() == [False, True, True, True]


def test_relative_actions_are_learned_as_differences():
    rng = np.random.default_rng(0)
    states = rng.uniform(-1, 1, (20, 15, 1)).astype(np.float32)
    episodes = Episodes([*(states + 0.25)], states=[*states])
    tokenizer = BinningTokenizer(horizon=1, bins=4).fit(ChunkSample().add(episodes, 1, 1, relative=Relative("state")))
    policy = clone(tokenizer, episodes, steps=60, **SMALL)
    decoded = tokenizer.decode(policy.greedy(states[0]))
    np.testing.assert_allclose(decoded, 0.25, atol=0.01)


def test_equal_seeds_give_equal_weights():
    tokenizer = BinningTokenizer(horizon=2, bins=4, range="unit").fit(steered())
    first, again, other = (clone(tokenizer, steered(), steps=3, seed=seed, **SMALL) for seed in (0, 0, 1))
    states = np.concatenate(steered().states)
    ids = first.greedy(states)
    assert np.array_equal(first.log_prob(states, ids), again.log_prob(states, ids))
    assert not np.array_equal(first.log_prob(states, ids), other.log_prob(states, ids))


def test_the_audit_measures_what_was_learned():
    """Trained, it says more of held-out chunks than untrained: the statistical term of Lemma 13 falls."""
    tokenizer = KMeansTokenizer(horizon=1, codebook_size=8, range="unit").fit(steered())
    held_out = steered(n=6, t=3, seed=1)
    subject, states = Subject.of(tokenizer, held_out, 1, np.ones(2)), np.concatenate(held_out.states)
    found = []
    for steps in (1, 300):
        policy = clone(tokenizer, steered(), steps=steps, learning_rate=5e-3, **SMALL)
        found.append({measure.name: measure for measure in policy_measures(subject, states, policy)})
    assert set(found[1]) == {row.name for row in ESTIMATORS}
    assert found[1]["statistical_term"].value < found[0]["statistical_term"].value < 1
    assert found[1]["policy_tv"].value > found[0]["policy_tv"].value  # what ignores the state is smooth


def test_progress_is_told():
    told = []
    tokenizer = BinningTokenizer(horizon=2, bins=4, range="unit").fit(steered())
    clone(tokenizer, steered(), steps=2, progress=lambda *done: told.append(done), **SMALL)
    assert told == [("clone", 1, 2), ("clone", 2, 2)]


class TestBadInput:
    def test_data(self):
        tokenizer = BinningTokenizer(horizon=2).fit(steered())
        with pytest.raises(ActionValueError, match="expected episodes with states"):
            clone(tokenizer, Episodes(list(steered().actions)))
        with pytest.raises(ActionShapeError, match="2 dims, got 1"):
            clone(tokenizer, Episodes([np.zeros((5, 1))], states=[np.zeros((5, 2))]))
        with pytest.raises(ActionShapeError, match="fit it with horizon="):
            clone(BinningTokenizer().fit(list(steered().actions)), steered())

    @pytest.mark.parametrize("bad", [{"steps": 0}, {"batch_size": 1.5}, {"learning_rate": -1}, {"width": 0}])
    def test_numbers(self, bad):
        with pytest.raises(ActionValueError, match=f"expected {next(iter(bad))}"):
            clone(BinningTokenizer(horizon=2).fit(steered()), steered(), **bad)

    def test_a_training_that_diverges(self):
        tokenizer = BinningTokenizer(horizon=2).fit(steered())
        with pytest.raises(ActionValueError, match=r"finite loss.*learning_rate 1e\+30; lower it"):
            clone(tokenizer, steered(), steps=20, learning_rate=1e30, **SMALL)
