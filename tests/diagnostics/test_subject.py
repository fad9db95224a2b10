"""A subject against loops over its episodes, for tokenizers of every kind."""

import numpy as np
import pytest

from action_tokenizers import (
    ActionShapeError,
    BinningTokenizer,
    ChunkSample,
    Episodes,
    FASTTokenizer,
    KMeansTokenizer,
    Relative,
)
from action_tokenizers.diagnostics import subject as module
from action_tokenizers.diagnostics.subject import Subject

HORIZON = 4
LENGTHS = (9, 3, 12, 4, 14)
UNIT = np.array([0.5, 2.0])
# name -> the tokenizer to fit, and how its actions are relative
FAMILIES = {
    "bins": (lambda: BinningTokenizer(horizon=HORIZON, bins=8), None),
    "open bins": (lambda: BinningTokenizer(bins=8), None),
    "chunk kmeans": (lambda: KMeansTokenizer(horizon=HORIZON, codebook_size=6, scope="chunk"), None),
    "fast": (lambda: FASTTokenizer(horizon=HORIZON, vocab_size=64), None),
    "relative to the state": (lambda: BinningTokenizer(horizon=HORIZON, bins=8), "state"),
    "relative to the step before": (lambda: FASTTokenizer(horizon=HORIZON, vocab_size=64), "previous"),
}


def walks(lengths, seed, **more):
    random = np.random.default_rng(seed)
    actions = [np.cumsum(random.normal(0, 0.1, (n, 2)), axis=0).astype(np.float32) for n in lengths]
    states = [(a - 0.05).astype(np.float32) for a in actions]
    return Episodes(actions, states=states, **more)


@pytest.fixture(scope="module")
def held_out():
    return walks(LENGTHS, 1, names=(10, 11, 12, 13, 14))


@pytest.fixture(scope="module")
def subjects(held_out):
    made = {}
    for name, (make, mode) in FAMILIES.items():
        sample = ChunkSample().add(walks((30, 40, 50), 0), HORIZON, 1, Relative(mode) if mode else None)
        made[name] = Subject.of(make().fit(sample), held_out, HORIZON, UNIT)
    return made


@pytest.fixture(params=FAMILIES)
def subject(request, subjects):
    return subjects[request.param]


def rows_of(subject):
    """Per episode the rows of its chunks, found one by one."""
    return [[i for i, e in enumerate(subject.episode) if e == episode] for episode in subject.present]


def test_chunks_follow_one_another_and_repeat_the_last_step(subjects, held_out):
    subject = subjects["bins"]
    row = 0
    for position, actions in enumerate(held_out.actions):
        for first in range(0, len(actions), HORIZON) if len(actions) >= HORIZON else ():
            at = np.arange(first, first + HORIZON)
            np.testing.assert_array_equal(subject.coded.actions[row], actions[np.minimum(at, len(actions) - 1)])
            np.testing.assert_array_equal(subject.real[row], at < len(actions))
            assert (subject.episode[row], subject.first[row]) == (position, first)
            row += 1
    assert row == len(subject) == len(subject.ids) == len(subject.lengths) == len(subject.decoded)


def test_short_episodes_have_no_chunk(subject):
    assert subject.present.tolist() == [0, 2, 3, 4]


def test_an_episode_as_long_as_the_horizon_is_one_chunk(subject):
    assert (subject.episode == 3).sum() == 1
    assert subject.real[subject.episode == 3].all()


def test_ids_are_those_of_the_tokenizer(subject):
    """Padded steps hold the last real action, in the frame in which the tokenizer codes."""
    told = {"key": "default", "action_is_pad": ~subject.real}
    np.testing.assert_array_equal(subject.ids, subject.tokenizer.encode(subject.coded.actions, **told))
    shape = {"horizon": HORIZON, "action_dim": 2}
    np.testing.assert_array_equal(subject.decoded, subject.tokenizer.decode(subject.ids, **shape))
    np.testing.assert_array_equal(subject.lengths, subject.tokenizer.length(subject.ids, **shape))


@pytest.mark.parametrize("name", ["relative to the state", "relative to the step before"])
def test_relative_actions_are_those_that_are_coded(subjects, held_out, name):
    subject = subjects[name]
    mode = FAMILIES[name][1]
    for row, (position, first) in enumerate(zip(subject.episode, subject.first, strict=True)):
        actions, states = held_out.actions[position].astype(float), held_out.states[position].astype(float)
        for step in np.flatnonzero(subject.real[row]):
            at = first + step
            before = states[first] if mode == "state" or at == 0 else actions[at - 1]
            np.testing.assert_allclose(subject.coded.actions[row, step], actions[at] - before, atol=1e-6)
            np.testing.assert_allclose(subject.actions[row, step], (actions[at] - before) / UNIT, atol=1e-6)


class TestOwnUnits:
    """Of relative actions, half the span of these."""

    def test_are_those_of_the_data_where_nothing_is_relative(self, subjects):
        assert subjects["fast"].in_own_units() is subjects["fast"]

    @pytest.mark.parametrize("name", ["relative to the state", "relative to the step before"])
    def test_are_half_the_span_of_the_recorded_differences(self, subjects, name):
        subject = subjects[name]
        own = subject.in_own_units()
        np.testing.assert_allclose(own.unit, np.ptp(subject.coded.actions[subject.real], axis=0) / 2, rtol=1e-6)
        np.testing.assert_allclose(own.error * own.unit, subject.error * UNIT, atol=1e-9)
        np.testing.assert_array_equal(own.ids, subject.ids)
        span = own.actions[own.real].max(0) - own.actions[own.real].min(0)
        np.testing.assert_allclose(span, 2, rtol=1e-6)

    def test_dims_that_stay_absolute_or_never_move_keep_theirs(self):
        episodes = walks((30, 30), 2)
        still = [np.pad(a, ((0, 0), (0, 1)), constant_values=1) for a in episodes.actions]
        data = Episodes(still, states=still)
        relative = Relative(["previous", None, "previous"])
        tokenizer = BinningTokenizer(horizon=HORIZON, bins=8).fit(ChunkSample().add(data, HORIZON, 1, relative))
        subject = Subject.of(tokenizer, data, HORIZON, np.array([3.0, 4.0, 5.0]))
        own = subject.in_own_units().unit
        assert own[0] < 1
        assert own[1:].tolist() == [4.0, 5.0]
        assert subject.relative_dims.tolist() == [True, False, False]

    def test_are_told_only_where_actions_are_relative(self, subjects):
        assert subjects["fast"].in_own_units().told_in_own_units(more=1) == {}
        own = subjects["relative to the state"].in_own_units()
        told = own.told_in_own_units(more=1)["of_relative"]
        assert told == {"unit": own.unit.tolist(), "mean_error": own.mean_error, "more": 1}
        assert not subjects["fast"].relative_dims.any()
        assert subjects["relative to the state"].relative_dims.all()


def test_errors_are_in_units_and_none_where_nothing_was_recorded(subject):
    for row in range(len(subject)):
        for step in range(HORIZON):
            error = (subject.decoded[row, step].astype(float) - subject.coded.actions[row, step]) / UNIT
            expected = error if subject.real[row, step] else np.zeros(2)
            np.testing.assert_allclose(subject.error[row, step], expected, atol=1e-12)


def test_steps_alone_are_those_of_the_tokenizer(subjects):
    alone = {name for name, subject in subjects.items() if subject.steps_alone}
    assert alone == {"bins", "open bins", "relative to the state"}


class TestPerEpisode:
    @pytest.fixture
    def values(self, subject):
        return np.random.default_rng(0).normal(size=(len(subject), HORIZON))

    def test_each_joins_the_chunks(self, subject, held_out):
        steps = list(subject.each(subject.actions))
        assert [len(s) for s in steps] == [held_out.lengths[i] for i in subject.present]
        for rows, found in zip(rows_of(subject), steps, strict=True):
            expected = [subject.actions[i, h] for i in rows for h in range(HORIZON) if subject.real[i, h]]
            np.testing.assert_array_equal(found, expected)

    def test_largest_of_steps_leaves_padding_out(self, subject, values):
        values = np.where(subject.real, values, 9.0)
        expected = [
            max(values[i, h] for i in rows for h in range(HORIZON) if subject.real[i, h]) for rows in rows_of(subject)
        ]
        np.testing.assert_array_equal(subject.largest(values), expected)

    def test_largest_of_chunks(self, subject, values):
        expected = [max(values[i, 0] for i in rows) for rows in rows_of(subject)]
        np.testing.assert_array_equal(subject.largest(values[:, 0]), expected)

    @pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
    def test_average_leaves_padding_out(self, subject, shape):
        values = np.random.default_rng(1).normal(size=(len(subject), HORIZON, *shape))
        values[~subject.real] = np.nan
        expected = [
            np.mean([values[i, h] for i in rows for h in range(HORIZON) if subject.real[i, h]], axis=0)
            for rows in rows_of(subject)
        ]
        found = subject.average(values)
        assert found.shape == (4, *shape)
        np.testing.assert_allclose(found, expected, rtol=1e-12)

    def test_at_starts_are_the_rows_at_which_chunks_begin(self, subject, held_out):
        arrays = [np.arange(n)[:, None] + [100.0 * i, 0] for i, n in enumerate(held_out.lengths)]
        found = subject.at_starts(arrays)
        assert found.dtype == np.float64
        expected = [[100 * e + f, f] for e, f in zip(subject.episode, subject.first, strict=True)]
        np.testing.assert_array_equal(found, expected)


class TestMoved:
    def test_is_the_difference_of_what_is_decoded(self, subject):
        full = np.flatnonzero(subject.real.all(1))
        shift = np.random.default_rng(0).uniform(-0.3, 0.3, (len(full), HORIZON, 2))
        for row, moved, found in zip(full, shift, subject.moved(shift, full), strict=True):
            before, after = (
                subject.tokenizer.quantize(actions[None].astype(np.float32))[0].astype(float)
                for actions in (subject.coded.actions[row], subject.coded.actions[row] + moved * UNIT)
            )
            np.testing.assert_allclose(found, (after - before) / UNIT, atol=1e-6)

    def test_nothing_moves_where_nothing_is_moved(self, subject):
        np.testing.assert_allclose(subject.moved(np.zeros(subject.actions.shape)), 0, atol=1e-6)

    def test_padding_follows_the_last_real_step(self, subject):
        """Whatever the shift says there."""
        shift = np.random.default_rng(0).uniform(-0.3, 0.3, subject.actions.shape)
        other = np.where(subject.real[..., None], shift, 7.0)
        assert not subject.real.all()
        np.testing.assert_array_equal(subject.moved(other), subject.moved(shift))
        still = np.where(subject.real[..., None], 0, 7.0)
        np.testing.assert_allclose(subject.moved(still), 0, atol=1e-6)

    def test_rows_may_be_chosen(self, subject):
        shift = np.full((2, HORIZON, 2), 0.1)
        np.testing.assert_array_equal(subject.moved(shift, np.array([0, 3])), subject.moved(shift[:1], [0, 3]))
        np.testing.assert_array_equal(
            subject.moved(shift, slice(0, 2)), subject.moved(np.full(subject.actions.shape, 0.1))[:2]
        )


class TestSample:
    def test_takes_chunks_without_padding_once_and_in_order(self, subject):
        rows = subject.sample(5, np.random.default_rng(0))
        assert len(rows) == 5
        assert (np.diff(rows) > 0).all()
        assert subject.real[rows].all()

    def test_takes_all_where_there_are_fewer(self, subject):
        np.testing.assert_array_equal(subject.sample(99, np.random.default_rng(0)), np.flatnonzero(subject.real.all(1)))

    def test_takes_padded_ones_where_there_are_no_others(self):
        mask = np.array([False, False, True, True])
        episodes = walks((4, 4), 3)
        subject = Subject.of(bins(), Episodes(episodes.actions, action_is_pad=[mask, mask]), HORIZON, UNIT)
        assert subject.sample(9, np.random.default_rng(0)).tolist() == [0, 1]

    def test_is_as_its_generator_says(self, subject):
        draws = [subject.sample(3, np.random.default_rng(seed)).tolist() for seed in (0, 0, 1, 2, 3)]
        assert draws[0] == draws[1]
        assert len(set(map(tuple, draws))) > 1


def test_mean_error_is_the_mean_over_episodes(subject):
    """Not over steps: a long episode counts no more than a short one."""
    means = [
        np.mean([np.linalg.norm(subject.error[i, h]) for i in rows for h in range(HORIZON) if subject.real[i, h]])
        for rows in rows_of(subject)
    ]
    assert subject.mean_error == pytest.approx(np.mean(means), rel=1e-12)


class TestQuantize:
    def test_is_in_units(self, subject):
        chunks = subject.coded.actions[:3]
        expected = subject.tokenizer.quantize(chunks).astype(float) / UNIT
        np.testing.assert_array_equal(subject.quantize(chunks), expected)

    @pytest.mark.parametrize("block", [1, HORIZON * 2, 3 * HORIZON * 2])
    def test_blocks_change_nothing(self, subject, monkeypatch, block):
        chunks = subject.coded.actions
        expected = subject.quantize(chunks)
        monkeypatch.setattr(module, "BLOCK", block)
        np.testing.assert_array_equal(subject.quantize(chunks), expected)

    def test_blocks_bound_what_is_quantized_at_once(self, subjects, monkeypatch):
        subject, sizes = subjects["bins"], []
        monkeypatch.setattr(module, "BLOCK", 3 * HORIZON * 2)
        quantize = subject.tokenizer.quantize
        monkeypatch.setattr(
            subject.tokenizer, "quantize", lambda block, **more: (sizes.append(len(block)), quantize(block, **more))[1]
        )
        subject.quantize(np.zeros((8, HORIZON, 2)))
        assert sizes == [3, 3, 2]

    @pytest.mark.parametrize("block", [HORIZON * 2, 1 << 20])
    def test_replaces_padded_steps(self, subject, monkeypatch, block):
        monkeypatch.setattr(module, "BLOCK", block)
        is_pad = np.zeros((3, HORIZON), bool)
        is_pad[1, 2:] = is_pad[2, 1] = True
        chunks = subject.coded.actions[:3].copy()
        held = chunks.copy()
        held[1, 2:], held[2, 1] = held[1, 1], held[2, 0]
        chunks[is_pad] = 50
        np.testing.assert_array_equal(subject.quantize(chunks, is_pad), subject.quantize(held))

    def test_of_no_chunk_is_none(self, subject):
        assert subject.quantize(np.empty((0, HORIZON, 2))).shape == (0, HORIZON, 2)

    def test_uses_the_range_of_the_subjects_key(self):
        fit = ChunkSample().add(walks((30,), 0, key="a"), HORIZON).add(walks((30,), 5, key="b"), HORIZON)
        tokenizer = BinningTokenizer(bins=8).fit(fit)
        subject = Subject.of(tokenizer, walks((8,), 2, key="b"), HORIZON, UNIT)
        assert subject.key == "b"
        chunks = subject.coded.actions
        np.testing.assert_array_equal(subject.quantize(chunks), tokenizer.quantize(chunks, key="b") / UNIT)


def bins():
    return BinningTokenizer(bins=8).fit(walks((30,), 0))


def test_frames_that_were_not_recorded_count_nowhere():
    mask = np.zeros(8, bool)
    mask[2:6] = True
    episodes = walks((8, 8), 3)
    padded = Episodes(episodes.actions, action_is_pad=[mask, np.zeros(8, bool)])
    subject = Subject.of(bins(), padded, HORIZON, UNIT)
    np.testing.assert_array_equal(subject.real[subject.episode == 0].ravel(), ~mask)
    assert not subject.error[~subject.real].any()
    held = [0, 1, 1, 1, 6, 6, 6, 7]  # the last real step, or the first where there is none before
    np.testing.assert_array_equal(subject.coded.actions[:2].reshape(8, 2), episodes.actions[0][held])
    assert [len(steps) for steps in subject.each(subject.actions)] == [4, 8]
    ones = np.where(subject.real, 1.0, 5.0)
    assert subject.average(ones).tolist() == subject.largest(ones).tolist() == [1, 1]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_padding_holds_does_not_matter(name, subjects):
    mask = np.isin(np.arange(10), [2, 3, 4, 7, 9])
    held = [0, 1, 1, 1, 5, 5, 6, 6, 8, 8, 8, 8]  # of chunks from 0, 4 and 8 on
    tokenizer, mode = subjects[name].tokenizer, FAMILIES[name][1]
    walk, found = walks((10,), 3), []
    for filler in (0.0, 0.3):
        actions = np.where(mask[:, None], np.float32(filler), walk.actions[0])
        found.append(
            Subject.of(tokenizer, Episodes([actions], states=walk.states, action_is_pad=[mask]), HORIZON, UNIT)
        )
        if mode is None:
            np.testing.assert_array_equal(found[-1].coded.actions.reshape(12, 2), actions[held])
        # whoever codes these chunks again needs no mask
        np.testing.assert_array_equal(tokenizer.encode(found[-1].coded.actions), found[-1].ids)
    if mode != "previous":  # there a step behind padding is relative to it
        np.testing.assert_array_equal(found[0].coded.actions, found[1].coded.actions)


def test_chunks_and_episodes_of_nothing_but_padding_are_left_out():
    late, never = np.zeros(8, bool), np.ones(8, bool)
    late[4:] = True
    episodes = walks((8, 8, 8), 3)
    padded = Episodes(episodes.actions, action_is_pad=[late, never, np.zeros(8, bool)])
    subject = Subject.of(bins(), padded, HORIZON, UNIT)
    assert subject.episode.tolist() == [0, 2, 2]
    assert subject.present.tolist() == [0, 2]
    with pytest.raises(ActionShapeError, match="nothing but padding"):
        Subject.of(bins(), padded[[1]], HORIZON, UNIT)


def test_no_episode_as_long_as_the_horizon_is_refused():
    with pytest.raises(ActionShapeError, match="at least the horizon, 6 steps, got 2 of at most 5; give a smaller"):
        Subject.of(bins(), walks((3, 5), 1), 6, UNIT)


def test_data_of_another_key_are_refused():
    fit = ChunkSample().add(walks((30,), 0, key="a"), HORIZON).add(walks((30,), 5, key="b"), HORIZON)
    with pytest.raises(ActionShapeError, match="got key 'c'"):
        Subject.of(BinningTokenizer(bins=8).fit(fit), walks((8,), 2, key="c"), HORIZON, UNIT)
