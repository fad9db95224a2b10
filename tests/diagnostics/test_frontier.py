import json

import pytest

from action_tokenizers import ActionValueError, BinningTokenizer, FASTTokenizer, KMeansTokenizer
from action_tokenizers.data import smooth_episodes
from action_tokenizers.diagnostics.frontier import SWEEP, frontier
from action_tokenizers.registry import FAMILIES, tokenizer_class


@pytest.fixture(scope="module")
def episodes():
    return smooth_episodes(24, length=(50, 70), action_dim=2, seed=2, gripper=False)


@pytest.fixture(scope="module")
def found(episodes):
    asked = {
        "coarse": BinningTokenizer(horizon=8, bins=8),
        "fine": BinningTokenizer(horizon=8, bins=128),
        "wasteful": BinningTokenizer(horizon=8, bins=8, strategy="mu_law"),
        "kmeans": KMeansTokenizer(horizon=8, codebook_size=32),
        "fast": FASTTokenizer(horizon=8, vocab_size=256),
        "impossible": KMeansTokenizer(horizon=8, codebook_size=-1),
    }
    return frontier(episodes, asked, test=0.5)


def test_points_are_on_the_frontier_where_nothing_beats_them(found):
    points = {p.name: p for p in found.points}
    assert [p.bits for p in found.points] == sorted(p.bits for p in found.points)
    for p in found.points:
        beaten = any(o.bits <= p.bits and o.drift < p.drift for o in found.points if o is not p)
        assert p.best == (not beaten)
    assert points["fine"].drift < points["coarse"].drift
    assert points["coarse"].bits == 16 * 3
    assert any(note.startswith("impossible was left out") for note in found.notes)


def test_without_a_budget_the_least_drift_is_recommended(found):
    assert found.recommended == "fine"
    assert "no budget" in found.why
    assert found.tokenizers["fine"].is_fitted


def test_a_budget_is_kept(episodes):
    asked = {"coarse": BinningTokenizer(horizon=8, bins=8), "fine": BinningTokenizer(horizon=8, bins=128)}
    found = frontier(episodes, asked, bits=16 * 4, test=0.5)
    assert found.recommended == "coarse"
    nothing = frontier(episodes, asked, tokens=3, test=0.5)
    assert nothing.recommended is None
    assert "the least here is 16 tokens" in nothing.why
    with pytest.raises(ActionValueError, match="budget of bits above 0"):
        frontier(episodes, asked, bits=0)


def test_json_holds_every_point(found):
    told = json.loads(found.to_json_text())
    assert {p["name"] for p in told["points"]} == {p.name for p in found.points}
    assert told["recommended"] == found.recommended
    assert all(isinstance(p["drift"], float) for p in told["points"])


def test_the_default_sweep_is_of_every_family_and_can_be_built():
    assert {kind for kind, _ in SWEEP} == set(FAMILIES)
    assert len(SWEEP) >= 20
    for kind, params in SWEEP:
        tokenizer_class(kind)(horizon=8, **params)


@pytest.mark.slow
def test_the_default_sweep_runs(episodes):
    found = frontier(episodes, horizon=8, tokens=8)
    assert len(found.points) == len(SWEEP)
    assert found.recommended is not None
