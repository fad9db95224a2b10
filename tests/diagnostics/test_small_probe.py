from functools import cache

import numpy as np
import pytest
import torch

from action_tokenizers.diagnostics import small_probe as module
from action_tokenizers.diagnostics.lesson import Lesson
from action_tokenizers.diagnostics.small_probe import Probe
from tests.fakes.lessons import FAMILIES, HORIZON, eight_bins, fitted, lesson_of, levels, subject_of


@cache
def trained(name, choices=module.CHOICES, seed=0):
    before, module.CHOICES = module.CHOICES, choices
    try:
        return Probe(lesson_of(name), np.arange(6), 8, np.random.default_rng(seed))
    finally:
        module.CHOICES = before


def test_a_known_law_is_learnt():
    """Ids in turn, of episodes that were not taught: the first step of an episode is a guess, the rest follows."""
    episodes = levels(drawn=False, count=12)
    subject = subject_of(eight_bins(episodes), episodes, 6)
    lesson = Lesson.of(subject, None, np.arange(len(subject)), 0)
    probe = Probe(lesson, np.arange(8), 48, np.random.default_rng(0))
    unseen = ~lesson.chunks.starts[lesson.judge.chunk] & (lesson.chunks.episode[lesson.judge.chunk] >= 8)
    nats = probe.nll(lesson.chunks, lesson.judge.at(np.flatnonzero(unseen)))
    assert probe.steps > 0
    assert nats.probe.mean() < 0.1
    assert nats.unigram.mean() > 0.95 * np.log(8)
    assert nats.even == pytest.approx(np.log(8))
    rows = np.flatnonzero(~lesson.chunks.starts & (lesson.chunks.episode >= 8))
    ids, whole = probe.write(lesson.chunks.at(rows))
    assert whole.all()
    assert (ids == lesson.chunks.ids[rows]).mean() > 0.95


def test_untrained_it_is_the_unigram():
    lesson = lesson_of("kmeans")
    probe = Probe(lesson, np.arange(6), 0, np.random.default_rng(0))
    nats = probe.nll(lesson.chunks, lesson.judge)
    assert probe.steps == 0
    assert np.array_equal(nats.probe, nats.unigram)


def test_equal_seeds_give_equal_weights():
    one, again, other = (
        Probe(lesson_of("residual_vq"), np.arange(6), 4, np.random.default_rng(seed))._net.weights for seed in (3, 3, 4)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("choices", [6, 1024])
@pytest.mark.parametrize("name", ["own ids", "residual_vq", "fast"])
def test_the_probabilities_of_the_allowed_ids_sum_to_1(name, choices):
    """Also where rare ids share a word, and of the unigram."""
    lesson, probe = lesson_of(name), trained(name, choices)
    chunks, tokenizer = lesson.chunks, lesson.subject.tokenizer
    for example in (0, 7, 130 % len(lesson.judge.chunk)):
        one = lesson.judge.at(np.array([example]))
        chunk, position = int(one.chunk[0]), int(one.position[0])
        allowed = np.flatnonzero(tokenizer.allowed(chunks.ids[chunk, :position], horizon=HORIZON, action_dim=4))
        each = lesson.judge.at(np.full(len(allowed), example))._replace(target=allowed)
        nats = probe.nll(chunks, each)
        assert np.exp(-nats.probe).sum() == pytest.approx(1, rel=1e-4)
        assert np.exp(-nats.unigram).sum() == pytest.approx(1, rel=1e-4)
        assert np.exp(nats.even) == pytest.approx(len(allowed), rel=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_chunks_are_written_under_the_rules_of_the_tokenizer(name):
    ids, whole = trained(name).write(lesson_of(name).chunks.at(np.arange(24)))
    _, valid = fitted(name).try_decode(ids, horizon=HORIZON, action_dim=4)
    assert np.array_equal(valid, whole)
    assert whole.mean() > 0.5


def test_what_is_shown_is_of_size_1_and_flags_a_start():
    lesson, probe = lesson_of("fast"), trained("fast")
    taught = lesson.windows.at(np.flatnonzero(lesson.windows.episode < 6))
    shown = probe._scale.shown(taught)
    assert np.array_equal(shown[taught.starts], np.repeat([[0, 0, 0, 0, 1]], 6, axis=0))
    rest = shown[~taught.starts]
    assert (rest[:, -1] == 0).all()
    assert rest[:, :-1].mean(0) == pytest.approx(np.zeros(4), abs=1e-5)
    assert rest[:, :-1].std(0) == pytest.approx(np.ones(4), rel=1e-4)


def test_a_dim_that_never_changes_is_not_blown_up():
    chunks = lesson_of("fast").chunks
    still = chunks._replace(last=np.where(chunks.starts[:, None], 0, 0.1), state=np.full((len(chunks.ids), 1), 7.0))
    shown = module._Scale.of(still, np.ones(len(chunks.ids), np.bool_)).shown(still)
    assert np.abs(shown[:, :-1]).max() < 1e-6


def test_a_fifth_of_the_episodes_says_when_to_stop():
    episode = np.repeat(np.arange(12), 5)
    fit, check = module._parted(episode, np.arange(10)[::-1])
    assert np.unique(episode[check]).tolist() == [8, 9]
    assert np.unique(episode[fit]).tolist() == list(range(8))
    # of the only one, its last windows
    fit, check = module._parted(episode, np.array([3]))
    assert np.flatnonzero(fit).tolist() == [15, 16, 17, 18]
    assert np.flatnonzero(check).tolist() == [19]


def test_adam_is_the_published_recursion():
    weight = torch.tensor([1.0, -2.0], requires_grad=True)
    adam = module._Adam([weight])
    w, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    for t in range(1, 6):
        adam.step((weight**2).sum(), 0.1)
        slope = 2 * w
        m, v = 0.9 * m + 0.1 * slope, 0.99 * v + 0.01 * slope**2
        w = w - 0.1 * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
        assert weight.detach().numpy() == pytest.approx(w, rel=1e-5)
