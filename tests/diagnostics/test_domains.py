import numpy as np
import pytest

from action_tokenizers import BinningTokenizer, Episodes, FASTTokenizer, KMeansTokenizer, NotFittedError, Range
from action_tokenizers.data import smooth_episodes
from action_tokenizers.diagnostics.domains import (
    Frame,
    Span,
    atoms,
    cells_of,
    climb,
    discrete_dims,
    discrete_note,
    domains,
    quantized,
    size,
)
from action_tokenizers.diagnostics.subject import Subject
from action_tokenizers.tokenizers.presets import openvla

UNIT = np.array([0.5, 2.0, 1.0])
MOVING = np.zeros(3, bool)  # no dim is discrete


@pytest.fixture(scope="module")
def episodes():
    return smooth_episodes(8, length=(20, 30), action_dim=3, seed=0)


def subject_of(tokenizer, episodes, horizon=4):
    return Subject.of(tokenizer, episodes, horizon, UNIT)


class TestFrame:
    def test_lays_the_range_beside_the_units(self, episodes):
        tokenizer = BinningTokenizer(horizon=4, range=Range([-1.0, 0.0, 2.0], [1.0, 4.0, 2.0])).fit(episodes)
        frame = Frame.of(subject_of(tokenizer, episodes))
        assert frame.half.tolist() == [2.0, 1.0, 0.0]
        assert (frame.first.tolist(), frame.last.tolist()) == ([-1] * 3, [1] * 3)
        assert frame.clips
        actions = np.array([[0.5, 1.0, 2.0], [-3.0, 5.0, 0.0]])
        assert frame.clip(actions).tolist() == [[0.5, 1.0, 2.0], [-1.0, 4.0, 2.0]]
        assert frame.to_cells(actions).tolist() == [[0.5, -0.5, 0.0], [-1.0, 1.0, 0.0]]

    def test_of_raw_actions_is_raw(self, episodes):
        frame = Frame.of(subject_of(openvla(3), episodes))
        assert not frame.clips
        assert frame.half == pytest.approx(1 / UNIT)
        inside = np.array([[0.5, -0.25, 0.0]])
        assert frame.to_cells(inside) == pytest.approx(inside)

    def test_takes_the_range_of_the_subjects_key(self, episodes):
        others = Episodes([10 * a for a in episodes.actions], key="big")
        tokenizer = BinningTokenizer(horizon=4, range="minmax").fit([episodes, others])
        halves = [Frame.of(subject_of(tokenizer, data)).half for data in (episodes, others)]
        assert halves[1] == pytest.approx(10 * halves[0])

    def test_needs_a_fit(self, episodes):
        subject = subject_of(BinningTokenizer(horizon=4).fit(episodes), episodes)
        subject.tokenizer.set_params(bins=8)
        with pytest.raises(NotFittedError, match="fit"):
            Frame.of(subject)

    def test_padded_steps_are_not_clipped(self, episodes):
        tokenizer = BinningTokenizer(horizon=4, range=Range([-0.1] * 3, [0.1] * 3)).fit(episodes)
        subject = subject_of(tokenizer, episodes)
        error = Frame.of(subject).clip_error(subject)
        assert not subject.real.all()
        assert (error[~subject.real] == 0).all()
        clipped = np.clip(subject.coded.actions, np.float32(-0.1), np.float32(0.1))
        expected = ((clipped.astype(np.float64) - subject.coded.actions) / UNIT)[subject.real]
        np.testing.assert_allclose(error[subject.real], expected, atol=1e-9)


class TestCells:
    def test_are_cut_at_the_ends_of_the_range(self, episodes):
        subject = subject_of(BinningTokenizer(horizon=4, bins=4).fit(episodes), episodes)
        cells = cells_of(subject, Frame.of(subject))
        assert cells[0].lower.tolist() == [-1, -0.5, 0, 0.5]
        assert cells[0].upper.tolist() == [-0.5, 0, 0.5, 1]
        assert cells[0].centres.tolist() == [-0.75, -0.25, 0.25, 0.75]
        assert cells[2].centres.tolist() == [-1, 1]  # the gripper

    def test_that_hold_nothing_are_left_out(self, episodes, monkeypatch):
        """Quantile cells may be empty, and cells may lie beyond the range."""
        from torch import tensor

        from action_tokenizers.base import ScalarCells

        subject = subject_of(BinningTokenizer(horizon=4, bins=4).fit(episodes), episodes)
        edges, centres = tensor([-1.0, 0.0, 0.0, 1.0, 2.0]), tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
        known = ScalarCells((edges,) * 3, (centres,) * 3)
        monkeypatch.setattr(subject.tokenizer, "scalar_cells", lambda: known)
        (cells, *_) = cells_of(subject, Frame.of(subject))
        # 1 itself is in the range, and belongs to the cell above the edge at 1
        assert [c.tolist() for c in cells] == [[-1, 0, 1], [0, 1, 1], [1, 3, 4]]

    def test_do_not_exist_for_every_tokenizer(self, episodes):
        subject = subject_of(FASTTokenizer(horizon=4).fit(episodes), episodes)
        assert cells_of(subject, Frame.of(subject)) is None


class TestAtoms:
    def test_are_steps_or_chunks(self, episodes):
        alone = subject_of(KMeansTokenizer(horizon=4, codebook_size=8).fit(episodes), episodes)
        steps = atoms(alone)
        assert steps.shape == (sum(episodes.lengths), 1, 3)
        np.testing.assert_array_equal(steps[: episodes.lengths[0], 0], episodes.actions[0])
        whole = subject_of(FASTTokenizer(horizon=4).fit(episodes), episodes)
        assert atoms(whole).shape == (len(whole), 4, 3)

    @pytest.mark.parametrize("family", [KMeansTokenizer(horizon=4, codebook_size=8), FASTTokenizer(horizon=4)])
    def test_are_quantized_as_in_the_subject(self, episodes, family):
        subject = subject_of(family.fit(episodes), episodes)
        found = quantized(subject, atoms(subject))
        expected = subject.decoded / UNIT
        if subject.steps_alone:
            np.testing.assert_allclose(found[:, 0], expected[subject.real], rtol=1e-6)
        else:
            full = subject.real.all(1)
            np.testing.assert_allclose(found[full], expected[full], rtol=1e-6)
        np.testing.assert_allclose(quantized(subject, atoms(subject)[:3]), found[:3])

    def test_have_the_size_of_their_largest_step(self):
        assert size(np.array([[[3.0, 4.0], [0.0, 1.0]], [[0.0, 0.0], [1.0, 0.0]]])).tolist() == [5.0, 1.0]


class TestDomains:
    def test_hold_the_data_and_nothing_beyond(self):
        rng = np.random.default_rng(0)
        data = rng.normal(size=(20, 4, 2)) * [1, 10] + [0, 5]
        low, high, spread = data.min((0, 1)), data.max((0, 1)), data.reshape(-1, 2).std(0)
        rows = np.arange(20)
        base, found = np.stack([rows, rng.permutation(20)], 1), {}
        for domain in domains(data, MOVING[:2]):
            np.testing.assert_allclose(domain.points(base, domain.home(rows)), data)
            found[domain.name] = domain.points(base, rng.random((20, domain.size)))
        assert list(found) == ["hull", "noise_0.5", "noise_1", "noise_2", "box"]
        assert ((found["box"] >= low) & (found["box"] <= high)).all()
        for scale in (0.5, 1, 2):
            away = np.abs(found[f"noise_{scale:g}"] - data) / spread
            assert 0.9 * scale < away.max() <= scale
        # between two chunks: the two distances add up to theirs
        one, other = data, data[base[:, 1]]
        lengths = [
            np.linalg.norm((a - b).reshape(20, -1), axis=1) for a, b in ((one, found["hull"]), (found["hull"], other))
        ]
        np.testing.assert_allclose(sum(lengths), np.linalg.norm((one - other).reshape(20, -1), axis=1), atol=1e-12)

    def test_of_a_constant_dim_stay_there(self):
        data = np.zeros((5, 1, 1))
        base = np.zeros((5, 2), np.int64)
        for domain in (*domains(data, MOVING[:1]), *domains(data, ~MOVING[:1])):
            assert (domain.points(base, np.full((5, domain.size), 0.3)) == 0).all()
            assert np.isfinite(domain.home(np.arange(5))).all()

    def test_hold_recorded_values_of_discrete_dims_only(self):
        rng = np.random.default_rng(0)
        data = rng.normal(size=(20, 4, 3))
        data[..., 1] = rng.choice([-1.0, 0.25, 3.0], (20, 4))
        rows = np.arange(20)
        base, discrete = np.stack([rows, np.roll(rows, 1)], 1), np.array([False, True, False])
        for domain in domains(data, discrete):
            np.testing.assert_allclose(domain.points(base, domain.home(rows)), data)
            found = domain.points(base, rng.random((20, domain.size)))
            assert np.isin(found[..., 1], [-1.0, 0.25, 3.0]).all()
            assert not np.isin(found[..., [0, 2]], data).any()
            if domain.name == "box":
                assert sorted(set(found[..., 1].ravel())) == [-1.0, 0.25, 3.0]  # any of them at every step
            else:
                np.testing.assert_array_equal(found[..., 1], data[..., 1])
            for end in (0.0, 1.0):
                assert np.isin(domain.points(base, np.full((20, domain.size), end))[..., 1], [-1.0, 0.25, 3.0]).all()


class TestDiscrete:
    @pytest.mark.parametrize(
        "family",
        [
            BinningTokenizer(horizon=4, bins=16),
            KMeansTokenizer(horizon=4, codebook_size=8),
            KMeansTokenizer(horizon=4, codebook_size=8, scope="chunk"),
            FASTTokenizer(horizon=4),
        ],
        ids=["bins", "k-means", "k-means chunk", "FAST"],
    )
    def test_is_the_gripper(self, episodes, family):
        assert discrete_dims(subject_of(family.fit(episodes), episodes)).tolist() == [False, False, True]

    @pytest.mark.parametrize(("levels", "expected"), [(1, True), (2, True), (3, True), (4, False)])
    def test_is_of_at_most_three_values(self, levels, expected):
        random = np.random.default_rng(0)
        actions = random.normal(size=(5, 40, 3)).astype(np.float32)
        actions[..., 1] = random.integers(0, levels, (5, 40))
        data = Episodes(list(actions))
        for family in (BinningTokenizer(), KMeansTokenizer(codebook_size=8)):
            assert discrete_dims(subject_of(family.fit(data), data)).tolist() == [False, expected, False]

    def test_rare_values_count(self, monkeypatch):
        """Also where they come long after those that are looked at first."""
        monkeypatch.setattr("action_tokenizers.diagnostics.domains.PEEK", 8)
        actions = np.zeros((1, 400, 3), np.float32)
        actions[0, :, 0] = np.arange(400) % 2
        actions[0, 390:394, 0] = [5, 6, 7, 8]
        data = Episodes(list(actions))
        found = discrete_dims(subject_of(KMeansTokenizer(codebook_size=8).fit(data), data))
        assert found.tolist() == [False, True, True]

    def test_padding_has_no_values(self):
        actions = np.random.default_rng(0).normal(size=(2, 40, 3)).astype(np.float32)
        actions[..., 1] = np.arange(40) % 2
        actions[:, 7, 1] = 5.0
        actions[:, 9, 1] = 7.0
        masks = [np.isin(np.arange(40), [7, 9])] * 2
        data = Episodes(list(actions), action_is_pad=masks)
        tokenizer = KMeansTokenizer(codebook_size=8).fit(Episodes(list(actions)))
        assert discrete_dims(subject_of(tokenizer, data))[1]

    def test_few_cells_of_what_moves_and_many_of_what_does_not_are_none(self, episodes):
        """One cell in a dim that moves is coarse; a dim that stands still here has cells where it does not."""
        coarse = BinningTokenizer(horizon=4, bins=[2, 16, 2]).fit(episodes)
        assert discrete_dims(subject_of(coarse, episodes)).tolist() == [False, False, True]
        still = Episodes([np.full((12, 3), 0.25, np.float32)] * 2)
        assert discrete_dims(subject_of(coarse, still)).tolist() == [True, False, True]

    def test_is_said_in_words(self):
        assert discrete_note([]) == ""
        assert discrete_note([6]).startswith("Dim 6 (counted from 0) only ever takes two or three values in the data")
        assert discrete_note(range(30)).startswith("Dims 0, 1, 2, 3, 4, 5, 6, 7, ... (counted from 0)")
        assert discrete_note([3, 6]).startswith("Dims 3, 6 (counted from 0) only ever take two or three values")


def test_a_span_gives_every_level_an_equal_share():
    span = Span(np.array([-1.0, 0.0]), np.array([1.0, 4.0]), [None, np.array([0.0, 1.0, 4.0])])
    place = np.linspace(0, 1, 9)
    found = span.at(np.stack([place, place], 1))
    np.testing.assert_allclose(found[:, 0], 2 * place - 1)
    assert found[:, 1].tolist() == [0, 0, 0, 1, 1, 1, 4, 4, 4]
    np.testing.assert_allclose(span.at(span.place_of(found)), found)


class TestClimb:
    def test_finds_a_corner(self):
        """The farthest point of a box from its middle: random points in ten dims do not come near it."""
        data = np.random.default_rng(0).uniform(-1, 1, (50, 1, 10))
        box = domains(data, np.zeros(10, bool))[-1]
        largest = np.sqrt((np.maximum(np.abs(data.max((0, 1))), np.abs(data.min((0, 1)))) ** 2).sum())
        rows = np.arange(0)
        found = climb(size, box, rows, len(data), 8192, seed=0)
        assert 0.97 * largest < found <= largest
        random = size(box.points(np.zeros((8192, 2), np.int64), np.random.default_rng(0).random((8192, 10)))).max()
        assert random < found

    def test_starts_from_the_worst_of_the_data(self):
        data = np.zeros((1000, 1, 3))
        data[437] = 100.0
        domain = domains(data, MOVING)[0]
        value = lambda points: np.where(size(points) > 150, 1.0, 0.0)  # noqa: E731  one chunk alone has it
        assert climb(value, domain, np.array([437]), 1000, 64, seed=0) == 1
        assert climb(value, domain, np.array([3]), 1000, 64, seed=0) == 0

    def test_does_not_look_at_more_than_its_budget(self):
        seen = []
        domain = domains(np.zeros((4, 1, 2)), MOVING[:2])[-1]

        def value(points):
            seen.append(len(points))
            return size(points)

        climb(value, domain, np.arange(4), 4, 500, seed=0)
        assert 480 <= sum(seen) <= 500
