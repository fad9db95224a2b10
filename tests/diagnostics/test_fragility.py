"""One wrong id: known for bins, and of every family what can be said of any."""

import numpy as np
import pytest

from action_tokenizers import BinningTokenizer, Episodes, KMeansTokenizer
from action_tokenizers.diagnostics import fragility
from action_tokenizers.diagnostics.fragility import wrong_token
from action_tokenizers.errors import ActionShapeError
from tests.fakes.subjects import FAMILY, all_subjects, subject_of, uniform


@pytest.fixture(scope="module")
def subjects():
    return all_subjects()


def test_one_wrong_id_of_bins_moves_one_step_by_known_cells():
    episodes = uniform(30, 60, 1)
    tokenizer = BinningTokenizer(bins=16, range="unit", horizon=6).fit(episodes)
    subject = subject_of(tokenizer, episodes, 6, [1.0])
    damage = wrong_token(subject)
    cells = np.arange(16)
    apart = np.abs(cells[:, None] - cells) * 0.125
    assert damage.value == pytest.approx(apart.sum() / (16 * 15), rel=0.03)
    assert damage.interval[0] < damage.value < damage.interval[1]
    assert damage.parts["neighbour"]["mean"] == pytest.approx(0.125, abs=1e-6)
    assert damage.parts["neighbour"]["largest"] == pytest.approx(0.125, abs=1e-6)
    assert damage.parts["positions"] == list(range(6))
    for law in ("allowed", "any"):
        told = damage.parts[law]
        assert told["undecodable"] == told["other_length"] == 0
        assert told["largest"] == max(told["largest_at"]) <= 15 * 0.125 + 1e-6
        assert len(told["mean_at"]) == len(told["q95_at"]) == 6
        assert told["mean_at"] == pytest.approx([damage.value] * 6, rel=0.2)


def test_ids_of_the_wrong_slot_do_not_decode():
    """With ids of its own for each of two dims, 16 of the 31 other ids stand for the other dim."""
    episodes = uniform(30, 60, 2)
    tokenizer = BinningTokenizer(bins=16, range="unit", horizon=6, shared_ids=False).fit(episodes)
    damage = wrong_token(subject_of(tokenizer, episodes, 6, [1.0, 1.0]))
    assert damage.parts["any"]["undecodable"] == pytest.approx(16 / 31, rel=0.03)
    assert damage.parts["allowed"]["undecodable"] == 0
    assert damage.parts["neighbour"]["undecodable"] == 0  # 15 and 16 are no neighbours


def test_wrong_ids_of_many_lengths_may_end_a_chunk_elsewhere(subjects):
    damage = wrong_token(subjects["FAST"])
    assert 0.3 < damage.parts["any"]["undecodable"] < 1
    assert damage.parts["allowed"]["undecodable"] < 1
    assert 0 < damage.parts["any"]["other_length"] <= damage.parts["any"]["undecodable"]
    assert damage.value > 0


def test_a_runner_up_is_tried_where_it_is_known(subjects):
    subject = subjects["k-means"]
    second = np.where(subject.ids > 0, subject.ids - 1, subject.ids)  # the same id is no other id
    second[0] = -1
    damage = wrong_token(subject, runner_up=second)
    words = subject.tokenizer.codebook_0.numpy() * 1.0
    low, high = subject.tokenizer.range.low[0].numpy(), subject.tokenizer.range.high[0].numpy()
    raw = (low + (np.clip(words, -1, 1) + 1) / 2 * (high - low)) / subject.unit
    steps = np.linalg.norm(np.diff(raw, axis=0), axis=1)
    told = damage.parts["runner_up"]
    assert steps.min() - 1e-5 <= told["mean"] <= told["largest"] <= steps.max() + 1e-5
    with pytest.raises(ActionShapeError, match="expected runner_up like the ids"):
        wrong_token(subject, runner_up=second[:3])


def test_where_there_is_but_one_id_none_can_be_wrong():
    still = Episodes([np.zeros((20, 1), np.float32) for _ in range(3)])
    damage = wrong_token(subject_of(KMeansTokenizer(horizon=5).fit(still), still, 5))
    assert damage.value is None
    assert "No other id" in damage.caveat
    assert damage.parts["allowed"]["mean"] is None


@pytest.mark.parametrize("name", list(FAMILY))
def test_equal_seeds_give_equal_numbers(name, subjects):
    found, again = (wrong_token(subjects[name], seed=7) for _ in range(2))
    assert found == again
    assert found.value > 0


@pytest.mark.parametrize("name", ["k-means chunk", "FAST"])
def test_little_of_the_vocabulary_is_held_at_once(name, subjects, monkeypatch):
    sizes, draw = [], fragility._draw

    def watched(mask, luck):
        sizes.append(mask.size)
        return draw(mask, luck)

    expected = wrong_token(subjects[name])
    monkeypatch.setattr(fragility, "_draw", watched)
    monkeypatch.setattr(fragility, "ALLOWED", 1000)
    assert wrong_token(subjects[name]) == expected
    assert 500 < max(sizes) <= 1000


def test_a_single_episode_has_no_interval(subjects):
    subject = subjects["k-means"]
    found = wrong_token(subject_of(subject.tokenizer, subject.episodes[[0]]))
    assert found.n["episodes"] == 1
    assert found.interval is None
