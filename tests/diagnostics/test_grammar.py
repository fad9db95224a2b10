import numpy as np
import pytest

from action_tokenizers.diagnostics import grammar as module
from tests.fakes.lessons import FAMILIES, HORIZON, lesson_of

SHAPE = {"horizon": HORIZON, "action_dim": 4}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_may_stand_at_a_place_is_what_the_tokenizer_allows(name):
    lesson = lesson_of(name)
    grammar, chunks = lesson.grammar, lesson.chunks
    for position in range(chunks.lengths[7]):
        low, high = grammar.kinds[grammar.kind(np.array([position]))[0]]
        narrower = grammar.allowed(chunks.ids, np.array([7]), position)
        told = np.arange(low, high) if narrower is None else np.flatnonzero(narrower[0])
        assert low <= told.min() <= told.max() < high
        prefix = chunks.ids[7, :position]
        assert np.array_equal(told, np.flatnonzero(lesson.subject.tokenizer.allowed(prefix, **SHAPE)))


def test_places_are_of_one_kind_where_the_same_ids_may_stand():
    # the last dim is a gripper of two values
    assert lesson_of("binning").grammar.kinds.tolist() == [[0, 2], [0, 32]]
    assert lesson_of("binning").grammar.kind(np.arange(6)).tolist() == [1, 1, 1, 0, 1, 1]
    assert lesson_of("own ids").grammar.kinds.tolist() == [[0, 16], [16, 32], [32, 48], [48, 50]]
    assert lesson_of("own ids").grammar.kind(np.arange(6)).tolist() == [0, 1, 2, 3, 0, 1]
    assert lesson_of("fast").grammar.kinds.tolist() == [[0, 255]]  # the pad stands nowhere


@pytest.mark.parametrize("name", ["own ids", "fast"])
def test_groups_are_what_can_be_judged_at_once(name, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 50)
    lesson = lesson_of(name)
    position = lesson.judge.position
    groups = list(lesson.grammar.groups(position))
    assert np.array_equal(np.sort(np.concatenate([rows for _, rows in groups])), np.arange(len(position)))
    for kind, rows in groups:
        assert (lesson.grammar.kind(position[rows]) == kind).all()
        if name == "own ids":
            assert len(rows) <= 50
        else:  # one call of `allowed` for all
            assert len(np.unique(position[rows])) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_that_comes_later_is_looked_at(name):
    lesson = lesson_of(name)
    chunks, judge = lesson.chunks, lesson.judge
    wrong = np.random.default_rng(0).integers(0, lesson.subject.tokenizer.vocab_size, chunks.ids.shape)
    for position in np.unique(judge.position)[::7]:
        rows = judge.at(np.flatnonzero(judge.position == position))
        ids = np.where(np.arange(chunks.ids.shape[1]) < position, chunks.ids, wrong)
        place, looks = lesson.grammar.context(ids, rows.chunk, rows.position, chunks.held)
        assert np.array_equal(place, rows.place)
        assert np.array_equal(looks, rows.looks)


@pytest.mark.parametrize("name", ["binning", "kmeans", "residual_vq"])
def test_a_place_is_what_the_tokenizer_says_of_it(name):
    lesson = lesson_of(name)
    judge = lesson.judge
    about = lesson.subject.tokenizer.locate(lesson.chunks.ids, **SHAPE)[judge.chunk, judge.position]
    assert np.array_equal(judge.place[:, :3], about + 1)


def test_before_the_first_step_the_held_action_stands_in():
    lesson = lesson_of("binning")
    chunks, judge = lesson.chunks, lesson.judge
    rows = judge.at(np.flatnonzero((judge.position < 4) & ~chunks.starts[judge.chunk]))
    held = chunks.held.ids[rows.chunk, rows.position]
    assert np.array_equal(rows.looks[:, 2:], np.stack([held, held, held], 1))
    before = lesson.subject.tokenizer.decode(chunks.held.ids[rows.chunk])[:, 0]
    assert np.abs(before - chunks.last[rows.chunk]).max() < 0.2
    # from the third step on, the two ids before of the same dim
    rows = judge.at(np.flatnonzero(judge.position >= 8))
    assert np.array_equal(rows.looks[:, 2], chunks.ids[rows.chunk, rows.position - 4])
    assert np.array_equal(rows.looks[:, 3], chunks.ids[rows.chunk, rows.position - 8])


@pytest.mark.parametrize("name", FAMILIES)
def test_of_a_chunk_that_holds_the_last_action_every_id_is_looked_at(name):
    lesson = lesson_of(name)
    held = lesson.chunks.held
    known = np.flatnonzero(~lesson.chunks.starts)
    lengths = lesson.subject.tokenizer.length(held.ids[known], **SHAPE)
    nth, position = module.spread(lengths)
    chunk = known[nth]
    _, looks = lesson.grammar.context(held.ids, chunk, position, held)
    assert np.array_equal(looks[:, -1], held.ids[chunk, position])


@pytest.mark.parametrize("name", FAMILIES)
def test_complete_is_what_the_tokenizer_calls_whole(name):
    lesson = lesson_of(name)
    for n in range(1, lesson.chunks.ids.shape[1] + 1, 3):
        # only what was written without pads is asked about
        ids = lesson.chunks.ids[lesson.chunks.lengths >= n, :n]
        whole = lesson.subject.tokenizer.length(ids, **SHAPE) >= 0
        assert np.array_equal(lesson.grammar.complete(ids), whole)


def test_recurrences_are_the_two_latest_of_the_same():
    about = np.random.default_rng(0).integers(0, 3, (40, 2))
    found = module._recurrences(about)
    for p, row in enumerate(about):
        earlier = [q for q in range(p) if (about[q] == row).all()][::-1]
        assert found[p].tolist() == [*earlier, -1, -1][:2]
    assert (module._recurrences(np.zeros((5, 2), np.int64)) == -1).all()
