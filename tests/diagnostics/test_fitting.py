import pytest

from action_tokenizers import ActionShapeError, ActionValueError, BinningTokenizer, FASTTokenizer, KMeansTokenizer
from action_tokenizers.data import smooth_episodes
from action_tokenizers.diagnostics.fitting import common_horizon, fit_all


@pytest.fixture(scope="module")
def episodes():
    return smooth_episodes(10, length=(40, 60), action_dim=2, seed=0)


def test_copies_are_fitted_on_one_part(episodes):
    asked = {"bins": BinningTokenizer(horizon=8), "fast": FASTTokenizer(horizon=8)}
    found = fit_all(asked, episodes, 8, test=0.3, seed=1)
    assert not any(t.is_fitted for t in asked.values())
    assert all(t.is_fitted for t in found.tokenizers.values())
    train, test = episodes.split(0.3, seed=1)
    assert found.held_out.names == test.names
    assert found.tokenizers["bins"].provenance["chunks"] == sum(n - 7 for n in train.lengths)


def test_where_all_are_fitted_everything_is_held_out(episodes):
    fitted = BinningTokenizer(horizon=8).fit(episodes)
    found = fit_all({"mine": fitted}, episodes, 8)
    assert found.tokenizers["mine"] is fitted
    assert found.held_out is episodes


def test_one_that_cannot_be_fitted_is_noted_or_raised(episodes):
    asked = {"bins": BinningTokenizer(horizon=8), "huge": KMeansTokenizer(horizon=8, codebook_size=-1)}
    found = fit_all(asked, episodes, 8, skip_unfit=True)
    assert list(found.tokenizers) == ["bins"]
    assert any(note.startswith("huge was left out: expected codebook_size") for note in found.notes)
    with pytest.raises(ActionValueError, match="codebook_size"):
        fit_all(asked, episodes, 8)
    with pytest.raises(ActionValueError, match="expected a tokenizer that can be fitted"):
        fit_all({"huge": asked["huge"]}, episodes, 8, skip_unfit=True)


def test_a_single_episode_is_split_in_time_only_on_request(episodes):
    one = episodes[[0]]
    with pytest.raises(ActionValueError, match="two or more episodes"):
        fit_all({"bins": BinningTokenizer(horizon=8)}, one, 8)
    found = fit_all({"bins": BinningTokenizer(horizon=8)}, one, 8, allow_single_episode=True)
    assert not found.held_out.independent
    assert any("one recording" in note for note in found.notes)


def test_one_horizon_for_all(episodes):
    assert common_horizon({"a": BinningTokenizer(horizon=8), "b": BinningTokenizer()}, episodes) == 8
    assert common_horizon({"b": BinningTokenizer()}, episodes) == round(episodes.fps)
    with pytest.raises(ActionShapeError, match="one horizon"):
        common_horizon({"a": BinningTokenizer(horizon=8), "b": BinningTokenizer(horizon=9)}, episodes)
