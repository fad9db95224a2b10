import numpy as np
import pytest

from action_tokenizers import BinningTokenizer, Episodes, Relative
from action_tokenizers.data import ChunkSample, smooth_episodes
from action_tokenizers.diagnostics import lesson as module
from action_tokenizers.diagnostics.lesson import Examples, Lesson, coded_at, holding, thinned
from tests.fakes.lessons import FAMILIES, demo, fitted, lesson_of, subject_of


def lesson_with_states(name):
    subject = subject_of(fitted(name), demo())
    return Lesson.of(subject, demo().states, np.flatnonzero(subject.real.all(1)), 0)


def test_a_chunk_is_shown_with_what_was_recorded_before_it():
    lesson = lesson_with_states("binning")
    subject, chunks = lesson.subject, lesson.chunks
    for i, row in enumerate(lesson.rows):
        at, first = subject.episode[row], subject.first[row]
        assert chunks.starts[i] == (first == 0)
        assert np.array_equal(chunks.last[i], demo().actions[at][first - 1] if first else np.zeros(4))
        assert np.array_equal(chunks.state[i], demo().states[at][first])
    assert np.array_equal(chunks.ids, subject.ids[lesson.rows])
    assert len(lesson.windows.ids) == sum(length - 19 for length in demo().lengths)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_episode_begins_without_a_last_action(name):
    for chunks in (lesson_of(name).chunks, lesson_of(name).windows):
        assert chunks.starts.sum() == 10
        assert (chunks.held.ids[chunks.starts] == -1).all()
        assert (chunks.held.ids[~chunks.starts, 0] >= 0).all()


def test_a_share_of_the_ids_stands_for_all_of_them():
    """Whatever the length and the number taken, every position is as likely to be taken."""
    lesson = lesson_of("fast")
    length = lesson.chunks.lengths[0]
    assert length > 15
    copies = lesson.chunks.at(np.zeros(200, np.int64))
    some = Examples.of(lesson.grammar, copies, 10, np.random.default_rng(0))
    assert np.bincount(some.chunk).tolist() == [10] * 200
    assert len({*zip(some.chunk.tolist(), some.position.tolist(), strict=True)}) == 2000
    assert np.abs(np.bincount(some.position, minlength=length) / 200 - 10 / length).max() < 0.2
    assert np.array_equal(some.target, copies.ids[some.chunk, some.position])


def test_of_short_chunks_every_id_is_taken():
    lesson = lesson_of("residual_vq")
    assert np.array_equal(lesson.judge.position, np.tile(np.arange(3), len(lesson.chunks.ids)))
    assert np.array_equal(lesson.judge.target, lesson.chunks.ids.ravel())


def test_many_chunks_are_thinned_in_every_episode(monkeypatch):
    episode = np.repeat([3, 5, 9], [1, 20, 100])
    monkeypatch.setattr(module, "CHUNKS", 30)
    assert np.unique(episode[thinned(episode)], return_counts=True)[1].tolist() == [1, 4, 20]


def test_windows_of_steps_that_were_not_recorded_are_left_out():
    pads = [np.zeros(length, np.bool_) for length in demo().lengths]
    for pad in pads:
        pad[25:30] = True
    subject = subject_of(fitted("binning"), Episodes.from_arrays(demo().actions, fps=80, action_is_pad=pads))
    lesson = Lesson.of(subject, None, np.flatnonzero(subject.real.all(1)), 0)
    # those that begin at steps 0 to 5, and those from step 30 on
    assert len(lesson.windows.ids) == sum(6 + length - 30 - 19 for length in demo().lengths)


@pytest.mark.parametrize("mode", ["state", "previous"])
def test_what_is_held_is_the_absolute_action(mode):
    episodes = smooth_episodes(4, action_dim=3)
    tokenizer = BinningTokenizer(horizon=20).fit(ChunkSample().add(episodes, 20, relative=Relative(mode)))
    rows = np.array([1, 3])
    coded = coded_at(subject_of(tokenizer, episodes).coded, rows)
    actions = np.random.default_rng(0).normal(size=(2, 3))
    held = coded.absolute(holding(actions, coded))
    assert held == pytest.approx(np.repeat(actions[:, None], 20, axis=1), abs=1e-5)
