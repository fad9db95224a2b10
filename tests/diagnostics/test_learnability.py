import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from action_tokenizers import BinningTokenizer, Episodes, FASTTokenizer, KMeansTokenizer, Relative, ResidualVQTokenizer
from action_tokenizers.data import ChunkSample, smooth_episodes
from action_tokenizers.diagnostics.learnability import ESTIMATORS, learnability
from tests.fakes.lessons import DEMO, FAMILIES, demo, eight_bins, fitted, levels, subject_of

SHORT = 8  # steps of training where the numbers do not matter


def test_ids_that_follow_from_the_context_are_learnt():
    """Eight levels in turn: the state, or the last action, says everything."""
    episodes = levels(drawn=False)
    subject = subject_of(eight_bins(episodes), episodes, 6)
    nll, error = learnability(subject, episodes.states, steps=40)
    assert nll.parts["unigram_nats"] == pytest.approx(12 * np.log(8), rel=0.01)
    assert nll.value < 0.03 * nll.parts["unigram_nats"]
    assert error.parts["tokenizer"] < 1e-6
    assert error.value < 0.1
    assert error.parts["repeat_last"] > 1
    assert nll.interval[0] <= nll.value <= nll.interval[1]
    # without states nothing tells the first chunk of an episode: one draw of eight, once in six chunks
    blind, _ = learnability(subject, steps=40)
    assert np.log(8) / 6 < blind.value < 0.1 * nll.parts["unigram_nats"]


def test_ids_of_variable_length_that_follow_from_the_context_are_learnt():
    episodes = levels(drawn=False)
    tokenizer = FASTTokenizer(horizon=6, vocab_size=128).fit(episodes)
    nll, error = learnability(subject_of(tokenizer, episodes, 6), episodes.states, steps=64)
    assert nll.value < 0.1 * nll.parts["unigram_nats"]
    assert error.value < 2 * error.parts["tokenizer"] + 0.1


def test_ids_that_follow_from_nothing_cost_their_logarithm():
    episodes = levels(drawn=True)
    one = Episodes.from_arrays([a[:, :1] for a in episodes.actions], fps=10)
    nll, error = learnability(subject_of(eight_bins(one), one, 6), steps=64)
    assert nll.parts["even_nats"] == pytest.approx(6 * np.log(8))
    assert nll.value == pytest.approx(6 * np.log(8), rel=0.05)
    assert nll.value > 0.99 * nll.parts["unigram_nats"]
    assert error.value > 0.8 * error.parts["mean_action"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_measured(name):
    subject = subject_of(fitted(name), demo())
    nll, error = learnability(subject, demo().states, steps=SHORT)
    assert 0 < nll.value <= 1.03 * nll.parts["unigram_nats"]
    assert nll.parts["unigram_nats"] < 1.03 * nll.parts["even_nats"]
    assert nll.parts["tokens_per_chunk"] == pytest.approx(subject.lengths[subject.real.all(1)].mean(), rel=0.02)
    assert nll.parts["nats_per_step"] == pytest.approx(nll.value / 20)
    assert nll.n["episodes"] == error.n["episodes"] == 10
    assert nll.n["chunks"] == subject.real.all(1).sum()
    assert error.parts["tokenizer"] < error.value < 3
    json.dumps([nll.to_json(), error.to_json()], allow_nan=False)


def test_the_ids_of_an_open_horizon_are_those_of_a_fixed_one():
    fixed = BinningTokenizer(horizon=20, bins=8, range="minmax").fit(demo())
    left_open = BinningTokenizer(bins=8, range="minmax").fit(demo().actions)
    assert left_open.pad_id == 8
    one, other = (learnability(subject_of(tokenizer, demo()), steps=SHORT) for tokenizer in (fixed, left_open))
    assert one == other


def test_coarser_bins_cost_fewer_nats():
    nats = []
    for bins in (4, 16, 64):
        tokenizer = BinningTokenizer(horizon=20, bins=bins).fit(demo())
        nats.append(learnability(subject_of(tokenizer, demo()), steps=SHORT)[0].value)
    assert 1.5 * nats[0] < nats[1] < nats[2] / 1.2


@pytest.mark.parametrize("mode", ["state", "previous"])
def test_errors_of_relative_tokenizers_are_those_of_the_absolute_actions(mode):
    episodes = smooth_episodes(6, action_dim=3)
    tokenizer = BinningTokenizer(horizon=20).fit(ChunkSample().add(episodes, 20, relative=Relative(mode)))
    plain = BinningTokenizer(horizon=20).fit(episodes)
    subject = subject_of(tokenizer, episodes)
    found = learnability(subject, steps=4)[1].parts
    others = learnability(subject_of(plain, episodes), steps=4)[1].parts
    for name in ("repeat_last", "mean_action"):  # no tokenizer's matter
        assert found[name] == pytest.approx(others[name], rel=1e-4)
    # few enough chunks that all are decoded
    coded = subject.coded
    decoded, recorded = (coded.relative.invert(a, coded.reference) for a in (subject.decoded, coded.actions))
    errors = np.linalg.norm((decoded - recorded) / subject.unit, axis=2).mean(1)
    whole = subject.real.all(1)
    per_episode = [errors[whole & (subject.episode == i)].mean() for i in range(6)]
    assert found["tokenizer"] == pytest.approx(np.mean(per_episode), rel=1e-4)


def test_equal_seeds_give_equal_numbers_whatever_the_caller_has_set():
    episodes = demo()[:4]
    subject = subject_of(fitted("fast"), episodes)
    before = torch.get_rng_state(), torch.get_num_threads(), np.random.get_state()[1].copy()
    plain = [measure.to_json() for measure in learnability(subject, episodes.states, seed=1, steps=SHORT)]
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        again = [measure.to_json() for measure in learnability(subject, episodes.states, seed=1, steps=SHORT)]
    assert again == plain
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])
    other = learnability(subject, episodes.states, seed=2, steps=SHORT)
    assert other[0].value != plain[0]["value"]
    assert other[0].value == pytest.approx(plain[0]["value"], rel=0.1)


def test_one_episode_shows_nothing():
    for measure in learnability(subject_of(fitted("binning"), demo()[:1])):
        assert measure.value is None
        assert measure.interval is None
        assert "two episodes" in measure.caveat


@pytest.mark.parametrize("name", ["binning", "fast"])
def test_two_short_episodes_are_enough_to_run(name):
    """One chunk each: no episode is left to say when to stop, so nothing is trained, and the note says how few."""
    short = Episodes.from_arrays([actions[:20] for actions in demo().actions[:2]], fps=80)
    nll, error = learnability(subject_of(fitted(name), short))
    assert nll.value == pytest.approx(nll.parts["unigram_nats"])
    assert nll.parts["steps"] == [0, 0]
    assert "Only 2 episodes" in nll.caveat
    assert "Only 2 episodes" in error.caveat


def test_steps_that_were_not_recorded_are_left_out():
    episodes = demo()
    pads = [np.zeros(length, np.bool_) for length in episodes.lengths]
    for pad in pads:
        pad[25:30] = True  # in the second chunk
    holed = Episodes.from_arrays(episodes.actions, fps=80, action_is_pad=pads)
    whole, _ = learnability(subject_of(fitted("binning"), episodes), steps=0)
    nll, _ = learnability(subject_of(fitted("binning"), holed), steps=0)
    assert nll.n["chunks"] == whole.n["chunks"] - 10
    assert nll.n["windows"] < whole.n["windows"]


def test_progress_is_told():
    told = []
    learnability(subject_of(fitted("chunk kmeans"), demo()), steps=4, progress=lambda *stage: told.append(stage))
    assert told == [("probe", 0, 2), ("probe", 1, 2)]


def test_rows_of_the_table_say_what_they_are():
    assert [row.name for row in ESTIMATORS] == ["probe_nll", "probe_error"]
    for row in ESTIMATORS:
        assert "equal chunk length and data" in row.caution


@pytest.mark.slow
def test_the_ranking_does_not_hang_on_the_seed_or_the_budget():
    episodes = Episodes.load(DEMO)
    made = [BinningTokenizer(horizon=20, bins=k) for k in (8, 32, 256)]
    made += [KMeansTokenizer(horizon=20, codebook_size=k, scope=s) for k in (16, 256) for s in ("step", "chunk")]
    made += [ResidualVQTokenizer(horizon=20, levels=n, codebook_size=k) for n, k in ((2, 32), (4, 256))]
    made += [FASTTokenizer(horizon=20, scale=s, vocab_size=v) for s, v in ((2, 256), (10, 1024))]
    subjects = [subject_of(tokenizer.fit(episodes), episodes) for tokenizer in made]

    def numbers(**asked):
        return np.array([[m.value for m in learnability(one, episodes.states, **asked)] for one in subjects]).T

    nats, error = numbers()
    for asked in ({"seed": 1}, {"steps": 800}):
        others = numbers(**asked)
        assert spearmanr(nats, others[0]).statistic > 0.98
        assert spearmanr(error, others[1]).statistic > 0.8
