import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import action_tokenizers
from action_tokenizers import BinningTokenizer, Episodes, FASTTokenizer, KMeansTokenizer, Relative, ResidualVQTokenizer
from action_tokenizers.data import ChunkSample, smooth_episodes
from action_tokenizers.diagnostics import learnability as module
from action_tokenizers.diagnostics.error import unit_of
from action_tokenizers.diagnostics.learnability import ESTIMATORS, learnability
from action_tokenizers.diagnostics.subject import Subject

DEMO = Path(action_tokenizers.__file__).parent / "data" / "demo"
LEVELS = np.linspace(-1, 1, 8)
SHORT = 32  # steps of training where the numbers do not matter


def subject_of(tokenizer, episodes, horizon=6):
    return Subject.of(tokenizer, episodes, horizon, unit_of(episodes.actions))


def levels(drawn, count=20, length=36, states=True):
    """Episodes of two dims that go through eight levels in turn, or draw one at each step; states name the level."""
    rng = np.random.default_rng(0)
    actions, seen = [], []
    for _ in range(count):
        phase = rng.integers(0, 8, length) if drawn else (rng.integers(8) + np.arange(length)) % 8
        actions.append(LEVELS[np.stack([phase, 3 * phase % 8], 1)])
        seen.append(np.eye(8)[phase])
    return Episodes.from_arrays(actions, states=seen if states else None, fps=10)


def eight_bins(episodes):
    # edges halfway between the levels, so that every level decodes to itself
    return BinningTokenizer(horizon=6, bins=8, strategy="quantile").fit(episodes)


@cache
def demo():
    return Episodes.load(DEMO)[np.arange(10)]


@cache
def fitted(name):
    made = {
        "binning": BinningTokenizer(horizon=20, bins=32),
        "own ids": BinningTokenizer(horizon=20, bins=16, shared_ids=False),
        "open binning": BinningTokenizer(bins=32),
        "kmeans": KMeansTokenizer(horizon=20, codebook_size=32, groups=[[0, 1], [2, 3]]),
        "chunk kmeans": KMeansTokenizer(horizon=20, codebook_size=32, scope="chunk"),
        "residual_vq": ResidualVQTokenizer(horizon=20, levels=3, codebook_size=16),
        "fast": FASTTokenizer(horizon=20, vocab_size=256),
    }
    return made[name].fit(demo().actions if name == "open binning" else demo())


FAMILIES = ("binning", "own ids", "open binning", "kmeans", "chunk kmeans", "residual_vq", "fast")


def test_ids_that_follow_from_the_context_are_learnt():
    """Eight levels in turn: the state, or the last action, says everything."""
    episodes = levels(drawn=False)
    subject = subject_of(eight_bins(episodes), episodes)
    nll, error = learnability(subject, episodes.states, steps=64)
    assert nll.parts["unigram_nats"] == pytest.approx(12 * np.log(8), rel=0.01)
    assert nll.value < 0.03 * nll.parts["unigram_nats"]
    assert error.parts["tokenizer"] < 1e-6
    assert error.value < 0.1
    assert error.parts["repeat_last"] > 1
    assert nll.interval[0] <= nll.value <= nll.interval[1]
    # without states nothing tells the first chunk of an episode: one draw of eight, once in six chunks
    blind, _ = learnability(subject, steps=64)
    assert np.log(8) / 6 < blind.value < 0.1 * nll.parts["unigram_nats"]


def test_ids_of_variable_length_that_follow_from_the_context_are_learnt():
    episodes = levels(drawn=False)
    tokenizer = FASTTokenizer(horizon=6, vocab_size=128).fit(episodes)
    nll, error = learnability(subject_of(tokenizer, episodes), episodes.states, steps=64)
    assert nll.value < 0.1 * nll.parts["unigram_nats"]
    assert error.value < 2 * error.parts["tokenizer"] + 0.1


def test_ids_that_follow_from_nothing_cost_their_logarithm():
    episodes = levels(drawn=True)
    one = Episodes.from_arrays([a[:, :1] for a in episodes.actions], fps=10)
    nll, error = learnability(subject_of(eight_bins(one), one), steps=64)
    assert nll.parts["even_nats"] == pytest.approx(6 * np.log(8))
    assert nll.value == pytest.approx(6 * np.log(8), rel=0.05)
    assert nll.value > 0.99 * nll.parts["unigram_nats"]
    assert error.value > 0.8 * error.parts["mean_action"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_measured(name):
    subject = subject_of(fitted(name), demo(), 20)
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
    one, other = (learnability(subject_of(tokenizer, demo(), 20), steps=SHORT) for tokenizer in (fixed, left_open))
    assert one == other


def test_coarser_bins_cost_fewer_nats():
    nats = []
    for bins in (4, 16, 64):
        tokenizer = BinningTokenizer(horizon=20, bins=bins).fit(demo())
        nats.append(learnability(subject_of(tokenizer, demo(), 20), steps=SHORT)[0].value)
    assert 1.5 * nats[0] < nats[1] < nats[2] / 1.2


@pytest.mark.parametrize("mode", ["state", "previous"])
def test_errors_of_relative_tokenizers_are_those_of_the_absolute_actions(mode):
    episodes = smooth_episodes(6, action_dim=3)
    tokenizer = BinningTokenizer(horizon=20).fit(ChunkSample().add(episodes, 20, relative=Relative(mode)))
    plain = BinningTokenizer(horizon=20).fit(episodes)
    subject = subject_of(tokenizer, episodes, 20)
    found = learnability(subject, steps=4)[1].parts
    others = learnability(subject_of(plain, episodes, 20), steps=4)[1].parts
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
    subject = subject_of(fitted("fast"), demo(), 20)
    before = torch.get_rng_state(), torch.get_num_threads(), np.random.get_state()[1].copy()
    plain = [measure.to_json() for measure in learnability(subject, demo().states, seed=1, steps=SHORT)]
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        again = [measure.to_json() for measure in learnability(subject, demo().states, seed=1, steps=SHORT)]
    assert again == plain
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])
    other = learnability(subject, demo().states, seed=2, steps=SHORT)
    assert other[0].value != plain[0]["value"]
    assert other[0].value == pytest.approx(plain[0]["value"], rel=0.1)


def test_one_episode_shows_nothing():
    for measure in learnability(subject_of(fitted("binning"), demo()[:1], 20)):
        assert measure.value is None
        assert measure.interval is None
        assert "two episodes" in measure.caveat


@pytest.mark.parametrize("name", ["binning", "fast"])
def test_two_short_episodes_are_enough_to_run(name):
    """One chunk each: no episode is left to say when to stop, so nothing is trained, and the note says how few."""
    short = Episodes.from_arrays([actions[:20] for actions in demo().actions[:2]], fps=80)
    nll, error = learnability(subject_of(fitted(name), short, 20))
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
    whole, _ = learnability(subject_of(fitted("binning"), episodes, 20), steps=SHORT)
    nll, _ = learnability(subject_of(fitted("binning"), holed, 20), steps=SHORT)
    assert nll.n["chunks"] == whole.n["chunks"] - 10
    assert nll.n["windows"] < whole.n["windows"]


def test_many_chunks_are_thinned_in_every_episode(monkeypatch):
    episode = np.repeat([3, 5, 9], [1, 20, 100])
    monkeypatch.setattr(module, "CHUNKS", 30)
    kept = episode[module._thinned(episode)]
    assert np.unique(kept, return_counts=True)[1].tolist() == [1, 4, 20]


def test_progress_is_told():
    told = []
    learnability(subject_of(fitted("chunk kmeans"), demo(), 20), steps=4, progress=lambda *stage: told.append(stage))
    assert told == [("probe", 0, 2), ("probe", 1, 2)]


@cache
def trained(name, choices=module.CHOICES):
    before, module.CHOICES = module.CHOICES, choices
    try:
        subject = subject_of(fitted(name), demo(), 20)
        lesson = module._Lesson.of(subject, None, np.flatnonzero(subject.real.all(1)), 0)
        return lesson, module._Probe(lesson, np.arange(6), 8, np.random.default_rng(0))
    finally:
        module.CHOICES = before


@pytest.mark.parametrize("choices", [6, 1024])
@pytest.mark.parametrize("name", ["own ids", "residual_vq", "fast"])
def test_the_probabilities_of_the_allowed_ids_sum_to_1(name, choices):
    """Also where rare ids share a word, and of the unigram."""
    lesson, probe = trained(name, choices)
    chunks, tokenizer = lesson.chunks, lesson.subject.tokenizer
    for example in (0, 7, 130 % len(lesson.judge.chunk)):
        one = lesson.judge.at(np.array([example]))
        chunk, position = int(one.chunk[0]), int(one.position[0])
        allowed = np.flatnonzero(tokenizer.allowed(chunks.ids[chunk, :position], horizon=20, action_dim=4))
        each = lesson.judge.at(np.full(len(allowed), example))._replace(target=allowed)
        nats = probe.nll(chunks, each)
        assert np.exp(-nats.probe).sum() == pytest.approx(1, rel=1e-4)
        assert np.exp(-nats.unigram).sum() == pytest.approx(1, rel=1e-4)
        assert np.exp(nats.even) == pytest.approx(len(allowed), rel=1e-4)


@pytest.mark.parametrize("name", ["kmeans", "residual_vq", "fast"])
def test_the_probe_looks_at_nothing_that_comes_later(name):
    lesson, _ = trained(name)
    chunks, judge = lesson.chunks, lesson.judge
    wrong = np.random.default_rng(0).integers(0, lesson.subject.tokenizer.vocab_size, chunks.ids.shape)
    for position in np.unique(judge.position)[::7]:
        rows = judge.at(np.flatnonzero(judge.position == position))
        ids = np.where(np.arange(chunks.ids.shape[1]) < position, chunks.ids, wrong)
        place = lesson.grammar.place(ids, rows.chunk, rows.position)
        assert np.array_equal(place, rows.place)
        assert np.array_equal(lesson.grammar.looks(chunks, ids, rows.chunk, rows.position, place), rows.looks)


def test_before_the_first_step_the_held_action_stands_in():
    lesson, _ = trained("binning")
    chunks, judge = lesson.chunks, lesson.judge
    rows = judge.at(np.flatnonzero((judge.position < 4) & ~chunks.starts[judge.chunk]))
    held = chunks.hold[rows.chunk, rows.position]
    assert np.array_equal(rows.looks[:, 2:], np.stack([held, held, held], 1))
    before = lesson.subject.tokenizer.decode(chunks.hold[rows.chunk])[:, 0]
    assert np.abs(before - chunks.last[rows.chunk]).max() < 0.2
    # from the third step on, the two ids before of the same dim
    rows = judge.at(np.flatnonzero(judge.position >= 8))
    assert np.array_equal(rows.looks[:, 2], chunks.ids[rows.chunk, rows.position - 4])
    assert np.array_equal(rows.looks[:, 3], chunks.ids[rows.chunk, rows.position - 8])


def test_an_episode_begins_without_a_last_action():
    lesson, probe = trained("fast")
    starts = lesson.chunks.starts
    assert starts.sum() == 10
    assert (lesson.chunks.hold[starts] == -1).all()
    shown = probe._scale.shown(lesson.chunks)
    assert np.array_equal(shown[starts], np.repeat([[0, 0, 0, 0, 1]], 10, axis=0))
    assert (shown[~starts, -1] == 0).all()


def test_a_share_of_the_ids_stands_for_all_of_them():
    """Whatever the length and the number taken, every position is as likely to be taken."""
    lesson, _ = trained("fast")
    rng = np.random.default_rng(0)
    length = lesson.chunks.lengths[0]
    taken = np.zeros(length)
    for _ in range(200):
        some = module._Examples.of(lesson.grammar, lesson.chunks.at(np.array([0])), 10, rng)
        assert len(np.unique(some.position)) == len(some.position) == min(10, length)
        taken[some.position] += 1
    assert length > 15
    assert np.abs(taken / 200 - 10 / length).max() < 0.2


def test_chunks_are_written_under_the_rules_of_the_tokenizer():
    for name in FAMILIES:
        lesson, probe = trained(name)
        chunks = lesson.chunks.at(np.arange(24))
        ids, whole = probe.write(chunks)
        _, valid = lesson.subject.tokenizer.try_decode(ids, horizon=20, action_dim=4)
        assert np.array_equal(valid, whole)
        assert whole.mean() > 0.5


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
    subjects = [subject_of(tokenizer.fit(episodes), episodes, 20) for tokenizer in made]

    def numbers(**asked):
        return np.array([[m.value for m in learnability(one, episodes.states, **asked)] for one in subjects]).T

    nats, error = numbers()
    for asked in ({"seed": 1}, {"steps": 800}):
        others = numbers(**asked)
        assert spearmanr(nats, others[0]).statistic > 0.98
        assert spearmanr(error, others[1]).statistic > 0.8
