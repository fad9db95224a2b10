from dataclasses import replace

import numpy as np
import pytest

from action_tokenizers import (
    BinningTokenizer,
    ChunkSample,
    Episodes,
    FASTTokenizer,
    KMeansTokenizer,
    Range,
    Relative,
    ResidualVQTokenizer,
)
from action_tokenizers.data import smooth_episodes
from action_tokenizers.diagnostics.domains import quantized
from action_tokenizers.diagnostics.error import (
    ESTIMATORS,
    clipping,
    episode_means,
    error_max,
    error_mean,
    error_quantiles,
    error_split,
    error_sup,
    far,
    half_range,
    mean_over_episodes,
    share_of_episodes,
    unit_of,
)
from action_tokenizers.diagnostics.known import Trap, binning_control
from action_tokenizers.diagnostics.measure import Kind, bootstrap_t, clopper_pearson
from action_tokenizers.diagnostics.subject import Subject
from action_tokenizers.tokenizers.presets import openvla
from tests.fakes.relative import differences, drifting, pair_of_bins, turned

EPSILON = 2.0**-7


@pytest.fixture(scope="module")
def trapped():
    """The E4 table of the trap and its controls, in raw actions: 128 chains of 1507 steps."""
    trap = Trap(EPSILON)
    episodes = trap.demonstrations(128, seed=None)
    tokenizers = {
        "trap": trap.tokenizer(1),
        "bins": binning_control(2 * EPSILON, 1),
        "wide bins": binning_control(0.178, 1),
    }
    return {name: Subject.of(tokenizer, episodes, 1, np.ones(1)) for name, tokenizer in tokenizers.items()}


@pytest.fixture(scope="module")
def split():
    return smooth_episodes(30, length=(30, 50), action_dim=3, seed=0).split(0.4, seed=0)


@pytest.fixture(scope="module")
def subjects(split):
    train, test = split
    fitted = {
        "binning": BinningTokenizer(horizon=8, bins=16),
        "kmeans": KMeansTokenizer(horizon=8, codebook_size=16),
        "residual_vq": ResidualVQTokenizer(horizon=8, levels=2, codebook_size=16),
        "fast": FASTTokenizer(horizon=8, vocab_size=256),
    }
    unit = unit_of(test.actions)
    return {name: Subject.of(tokenizer.fit(train), test, 8, unit) for name, tokenizer in fitted.items()}


def per_episode(subject, split):
    """The errors of each episode, by hand: chunk after chunk, the last one padded by repetition."""
    errors = []
    for action in split[1].actions:
        missing = -len(action) % 8
        padded = np.concatenate([action, np.repeat(action[-1:], missing, 0)]).reshape(-1, 8, 3)
        decoded = subject.tokenizer.quantize(padded).reshape(-1, 3)[: len(action)]
        errors.append((decoded.astype(np.float64) - action) / subject.unit)
    return errors


def part(measure, threshold):
    return next(row for row in measure.parts["curve"] if row["t"] == threshold)


def test_unit_is_half_the_span_and_1_for_a_constant_dim():
    a = np.array([[0.0, 5.0, -1.0], [4.0, 5.0, 0.0]], np.float32)
    b = np.array([[-4.0, 5.0, 1.0]], np.float32)
    assert unit_of([a, b]).tolist() == [4.0, 1.0, 1.0]


def test_error_splits_into_clipping_and_cells():
    clipping = np.zeros((4, 1))
    clipping[0, 0] = -0.5
    total = clipping.copy()
    total[3, 0] = 0.1
    split = error_split(total, clipping)
    assert split["mse"] == pytest.approx((0.25 + 0.01) / 4)
    assert split["clip_mse"] == pytest.approx(0.25 / 4)
    assert split["cell_mse"] == pytest.approx(0.01 / 4)
    assert split["max"] == 0.5
    assert split["mse_per_dim"] == [split["mse"]]


def test_the_trap_looks_harmless_by_its_mean_and_quantiles(trapped):
    expected = {"trap": (0.0444, 0.0460), "bins": (0.0078, 0.0078), "wide bins": (0.0888, 0.0890)}
    for name, (mean, quantile) in expected.items():
        assert error_mean(trapped[name]).value == pytest.approx(mean, rel=0.05)
        found = error_quantiles(trapped[name])
        assert found.value == found.parts["0.999"] == pytest.approx(quantile, rel=0.05)
        assert found.kind is Kind.CONSISTENT


def test_episodes_show_what_steps_hide(trapped):
    shares = {name: part(error_max(subject), 0.5) for name, subject in trapped.items()}
    assert shares["trap"]["share"] == pytest.approx(0.431, rel=0.05)
    assert shares["trap"]["interval"][0] > 0.3
    for name in ("bins", "wide bins"):
        assert shares[name]["share"] == 0
        # none of n: at most 3.7 / n, two-sided
        assert shares[name]["interval"] == pytest.approx([0, 3.7 / 128], rel=0.05)


def test_the_worst_case_of_the_trap_and_its_controls_is_exact(trapped):
    expected = {"trap": 0.991, "bins": 0.0078, "wide bins": 0.089}
    for name, value in expected.items():
        found = error_sup(trapped[name])
        assert found.kind is Kind.EXACT
        assert found.value == pytest.approx(value, rel=0.05)
        assert found.parts["clipped"] == 0
    assert error_sup(trapped["trap"]).parts["ratio"] > 20


@pytest.mark.parametrize("name", ["binning", "kmeans", "residual_vq", "fast"])
def test_the_mean_error_is_that_of_the_episodes(subjects, split, name):
    subject = subjects[name]
    errors = per_episode(subject, split)
    means = [np.linalg.norm(e, axis=1).mean() for e in errors]
    found = error_mean(subject)
    assert found.value == pytest.approx(np.mean(means))
    assert found.interval == pytest.approx(bootstrap_t(means))
    assert found.parts["mse"] == pytest.approx(np.mean([(e**2).mean() for e in errors]))
    assert found.parts["per_dim"] == pytest.approx(np.mean([np.abs(e).mean(0) for e in errors], axis=0))
    third = np.concatenate([np.linalg.norm(e, axis=1)[3::8] for e in errors])
    assert found.parts["per_position"][3] == pytest.approx(third.mean())
    assert found.n == {"episodes": 12, "chunks": len(subject), "steps": sum(map(len, errors))}
    assert error_max(subject).parts["maxima"] == pytest.approx([np.linalg.norm(e, axis=1).max() for e in errors])


@pytest.mark.parametrize("name", ["binning", "kmeans", "residual_vq", "fast"])
def test_the_guaranteed_interval_rests_on_the_largest_error_there_can_be(subjects, name):
    subject = subjects[name]
    found = error_mean(subject).parts["guaranteed"]
    assert found["low"] <= found["mean"] <= found["high"] <= found["bound"] + 1e-5
    exact = error_sup(subject)
    if exact.kind is Kind.LOWER:
        assert found["bound"] >= exact.value
    elif exact.kind is Kind.UPPER:
        assert found["bound"] == exact.value
    else:
        # that these episodes hold nothing between the values of a gripper is no guarantee
        (half_way,) = exact.parts["discrete"]["between"]
        assert found["bound"] == pytest.approx(np.hypot(exact.value, half_way))


def test_actions_that_are_not_clipped_have_no_guarantee(split):
    _, test = split
    subject = Subject.of(openvla(3), test, 8, np.ones(3))
    found = error_mean(subject)
    assert found.parts["guaranteed"] is None
    assert "not clipped" in clipping(subject).caveat
    # its cells are laid in raw actions: 255 of them between -1 and 1, and the last id is hit by 1 alone
    assert error_sup(subject).parts["per_dim"] == pytest.approx([1 / 255] * 3, rel=1e-4)


def test_few_steps_are_no_quantile(split):
    train, test = split
    subject = Subject.of(BinningTokenizer(horizon=8).fit(train), test[[0]], 8, np.ones(3))
    found = error_quantiles(subject)
    assert found.kind is Kind.PROXY
    assert "1000" in found.caveat
    mean = error_mean(subject)
    assert mean.interval is None
    assert mean.method is None
    assert "One episode gives no interval" in mean.caveat
    assert mean.value > 0


def test_what_counts_as_far_grows_with_the_mean_error(subjects):
    assert far(0.01) == pytest.approx(0.5)
    assert far(0.2) == pytest.approx(2.0)
    subject = subjects["kmeans"]
    beyond = error_max(subject).parts["beyond_threshold"]
    assert beyond["t"] == far(error_mean(subject).value)
    assert beyond["hits"] == sum(m > beyond["t"] for m in error_max(subject).parts["maxima"])


def test_means_of_episodes_leave_out_what_does_not_count():
    values = np.array([[1.0, 2.0], [3.0, 9.0], [9.0, 9.0], [4.0, 9.0]])
    counted = np.array([[True, True], [True, False], [False, False], [True, False]])
    assert episode_means(values, counted, np.array([0, 0, 3, 5])).tolist() == [2.0, 4.0]


def test_shares_of_episodes_come_with_their_interval():
    found = share_of_episodes(np.array([True, False, False, False]))
    assert (found["hits"], found["n"], found["share"]) == (1, 4, 0.25)
    assert found["interval"][0] < 0.25 < found["interval"][1]


def test_the_curve_never_rises(subjects):
    shares = [row["share"] for row in error_max(subjects["kmeans"], thresholds=np.linspace(0, 2, 40)).parts["curve"]]
    assert shares[0] == 1
    assert shares[-1] == 0
    assert shares == sorted(shares, reverse=True)


def test_uniform_bins_err_by_half_a_cell_at_most():
    rng = np.random.default_rng(0)
    episodes = Episodes([rng.uniform(-1, 1, (2000, 1)).astype(np.float32) for _ in range(5)])
    tokenizer = BinningTokenizer(horizon=1, bins=32, range=Range([-1.0], [1.0])).fit(episodes)
    found = error_sup(Subject.of(tokenizer, episodes, 1, np.ones(1)))
    assert found.value == 1 / 32
    assert found.parts["ratio"] == pytest.approx(2, rel=0.02)


def test_clipping_is_counted_by_values_and_by_episodes():
    actions = np.zeros((4, 5, 2), np.float32)
    actions[..., 1] = np.linspace(-0.5, 0.5, 5)
    actions[0, 2] = [1.5, 3.0]  # by .5 and by 2
    actions[1, 0, 0] = 1.0  # touches
    episodes = Episodes(list(actions))
    tokenizer = BinningTokenizer(horizon=5, bins=4096, range=Range([-1.0, -1.0], [1.0, 1.0])).fit(episodes)
    found = clipping(Subject.of(tokenizer, episodes, 5, np.array([1.0, 2.0])))
    assert found.value == pytest.approx(2 / 40)
    assert found.parts["per_dim"] == pytest.approx([1 / 20, 1 / 20])
    assert found.parts["at_the_ends"] == pytest.approx(3 / 40)
    assert (found.parts["episodes"]["hits"], found.parts["episodes"]["n"]) == (1, 4)
    assert found.parts["largest"] == pytest.approx(np.hypot(0.5, 2.0 / 2))
    assert found.parts["error"]["clip_mse"] == pytest.approx((0.25 + 1) / 40)
    assert found.parts["error"]["mse"] == pytest.approx((0.25 + 1) / 40, rel=1e-2)


class TestWorstCase:
    def test_dims_add_up_in_the_units_of_the_data(self):
        rng = np.random.default_rng(0)
        episodes = Episodes([rng.uniform(-1, 1, (50, 2)).astype(np.float32) for _ in range(5)])
        tokenizer = BinningTokenizer(horizon=1, bins=[4, 8], range=Range([-2.0, -1.0], [2.0, 1.0])).fit(episodes)
        found = error_sup(Subject.of(tokenizer, episodes, 1, np.array([0.5, 1.0])))
        assert found.parts["per_dim"] == pytest.approx([2 / 4 / 0.5, 1 / 8])
        assert found.value == pytest.approx(np.hypot(1, 1 / 8))

    def test_a_gripper_that_errs_half_way_does_not_count(self):
        """It is told apart, because nothing is ever there."""
        rng = np.random.default_rng(0)
        actions = rng.uniform(-1, 1, (20, 30, 2)).astype(np.float32)
        actions[..., 1] = np.sign(actions[..., 1])
        episodes = Episodes(list(actions))
        tokenizer = BinningTokenizer(horizon=1, bins=64, range=Range([-1.0, -1.0], [1.0, 1.0])).fit(episodes)
        found = error_sup(Subject.of(tokenizer, episodes, 1, np.ones(2)))
        assert found.kind is Kind.EXACT
        assert found.parts["per_dim"] == pytest.approx([1 / 64, 0])
        assert found.value == pytest.approx(1 / 64)
        assert found.parts["discrete"] == {"dims": [1], "between": pytest.approx([1.0])}
        assert "Dim 1 (counted from 0)" in found.caveat

    def test_a_gripper_counts_at_its_values(self):
        """At -.2 and .2, where two uniform cells decode to -.5 and .5."""
        rng = np.random.default_rng(0)
        actions = rng.uniform(-1, 1, (20, 30, 2)).astype(np.float32)
        tokenizer = BinningTokenizer(horizon=1, bins=[64, 2], range="unit").fit(Episodes(list(actions)))
        actions[..., 1] = 0.2 * np.sign(actions[..., 1])
        found = error_sup(Subject.of(tokenizer, Episodes(list(actions)), 1, np.ones(2)))
        assert found.parts["per_dim"] == pytest.approx([1 / 64, 0.3])
        assert found.parts["discrete"]["between"] == pytest.approx([0.5])

    def test_few_cells_of_a_dim_that_moves_count(self):
        rng = np.random.default_rng(0)
        episodes = Episodes([rng.uniform(-1, 1, (50, 2)).astype(np.float32) for _ in range(5)])
        tokenizer = BinningTokenizer(horizon=1, bins=2, range="unit").fit(episodes)
        found = error_sup(Subject.of(tokenizer, episodes, 1, np.ones(2)))
        assert found.value == pytest.approx(0.5 * 2**0.5)
        assert found.parts["discrete"] == {"dims": [], "between": []}

    @pytest.mark.parametrize("name", ["kmeans", "residual_vq", "fast"])
    def test_no_search_looks_between_the_values_of_a_gripper(self, subjects, name, monkeypatch):
        seen = []
        monkeypatch.setattr(
            "action_tokenizers.diagnostics.error.quantized",
            lambda subject, actions: (seen.append(actions), quantized(subject, actions))[1],
        )
        found = error_sup(subjects[name], budget=64)
        assert found.parts["discrete"] == {"dims": [2]}
        # the bound of FAST is of all actions
        assert ("Dim 2 (counted from 0)" in found.caveat) == (found.kind is Kind.LOWER)
        assert len(seen) > 5
        for actions in seen:
            assert (np.abs(actions[..., 2]) == 1).all()

    @pytest.mark.parametrize("strategy", ["uniform", "quantile", "gaussian", "mu_law"])
    def test_exact_is_what_a_fine_grid_finds(self, strategy):
        rng = np.random.default_rng(1)
        episodes = Episodes([rng.normal(size=(200, 1)).astype(np.float32) for _ in range(4)])
        tokenizer = BinningTokenizer(horizon=1, bins=12, strategy=strategy).fit(episodes)
        low, high = tokenizer.range.low.item(), tokenizer.range.high.item()
        grid = np.linspace(low, high, 20001, dtype=np.float32)[:, None, None]
        largest = np.abs(tokenizer.quantize(grid) - grid).max()
        found = error_sup(Subject.of(tokenizer, episodes, 1, np.ones(1)))
        assert largest <= found.value + 1e-6
        assert found.value == pytest.approx(largest, abs=2 * (high - low) / 20000)

    def test_rounding_of_fast_is_bounded(self):
        """16 steps of 7 dims, step .1: a chunk is off by at most .529, a step by little less."""
        rng = np.random.default_rng(0)
        episodes = Episodes([rng.uniform(-1, 1, (320, 7)).astype(np.float32) for _ in range(4)])
        tokenizer = FASTTokenizer(horizon=16, scale=10, range="unit").fit(episodes)
        subject = Subject.of(tokenizer, episodes, 16, np.ones(7))
        found = error_sup(subject, budget=512)
        assert found.kind is Kind.UPPER
        assert found.parts["chunk"] == pytest.approx(0.529, abs=5e-4)
        chunks = np.linalg.norm(subject.error.reshape(len(subject), -1), axis=1)
        # a rounding error is uniform: its square is step^2 / 12 on average, of 112 coefficients
        assert chunks.mean() == pytest.approx(0.1 * np.sqrt(112 / 12), rel=0.02)
        assert chunks.max() < found.parts["chunk"]
        assert 0.8 * found.parts["chunk"] < found.value < found.parts["chunk"]
        assert max(row["value"] for row in found.parts["domains"].values()) < found.value

    def test_a_step_can_come_near_the_bound(self):
        """Every coefficient half a step off, with the signs that add up at step 0."""
        from action_tokenizers.codecs.dct import dct_matrix

        episodes = Episodes([np.random.default_rng(0).uniform(-0.5, 0.5, (16, 2)).astype(np.float32)] * 2)
        tokenizer = FASTTokenizer(horizon=8, scale=10, range="unit").fit(episodes)
        matrix = dct_matrix(8)
        worst = matrix.T @ np.sign(matrix[:, 0]) * 0.0499
        chunk = np.stack([worst, worst], 1)[None].astype(np.float32)
        error = np.linalg.norm(tokenizer.quantize(chunk) - chunk, axis=-1).max()
        found = error_sup(Subject.of(tokenizer, episodes, 8, np.ones(2)), budget=64)
        assert 0.98 * found.value < error < found.value

    def test_a_search_comes_near_the_truth_on_a_line(self):
        rng = np.random.default_rng(2)
        episodes = Episodes([rng.normal(size=(100, 1)).astype(np.float32) for _ in range(6)])
        tokenizer = KMeansTokenizer(horizon=1, codebook_size=8, range="minmax").fit(episodes)
        low, high = tokenizer.range.low.item(), tokenizer.range.high.item()
        words = np.sort(low + (tokenizer.codebook_0.numpy()[:, 0] + 1) / 2 * (high - low))
        truth = max(words[0] - low, high - words[-1], np.diff(words).max() / 2)
        found = error_sup(Subject.of(tokenizer, episodes, 1, np.ones(1)))
        assert found.kind is Kind.LOWER
        assert list(found.parts["domains"]) == ["hull", "noise_0.5", "noise_1", "noise_2", "box"]
        assert found.value <= truth + 1e-6
        assert found.parts["domains"]["box"]["value"] == pytest.approx(truth, rel=0.01)

    def test_a_search_finds_what_no_data_show(self):
        """Half of the range is never visited, and has no codeword."""
        rng = np.random.default_rng(3)
        episodes = Episodes([rng.uniform(-1, 0, (60, 2)).astype(np.float32) for _ in range(5)] + [np.ones((8, 2))])
        tokenizer = KMeansTokenizer(horizon=4, codebook_size=64, range="minmax").fit(episodes)
        subject = Subject.of(tokenizer, episodes, 4, np.ones(2))
        found = error_sup(subject)
        assert found.parts["domains"]["box"]["value"] > 10 * error_mean(subject).value
        assert error_max(subject).value < 0.3

    def test_no_domain_is_better_than_the_data(self, subjects):
        for name in ("kmeans", "residual_vq", "fast"):
            subject = subjects[name]
            low, high = (bound[0].numpy() for bound in (subject.tokenizer.range.low, subject.tokenizer.range.high))
            cells = (subject.decoded - np.clip(subject.coded.actions, low, high)) / subject.unit
            seen = np.linalg.norm(cells[subject.real], axis=-1).max()
            found = error_sup(subject, budget=64)
            assert all(row["value"] >= seen - 1e-9 for row in found.parts["domains"].values())

    def test_equal_seeds_give_equal_numbers(self, subjects):
        subject = subjects["residual_vq"]
        assert error_sup(subject, budget=128, seed=3) == error_sup(subject, budget=128, seed=3)
        assert error_sup(subject, budget=128, seed=3) != error_sup(subject, budget=128, seed=4)

    def test_no_error_has_no_ratio(self):
        episodes = Episodes([np.full((10, 2), 0.25, np.float32)] * 3)
        found = error_sup(Subject.of(BinningTokenizer(horizon=2).fit(episodes), episodes, 2, np.ones(2)))
        assert found.value == 0
        assert found.parts["ratio"] is None


class TestMeansOverEpisodes:
    row = ESTIMATORS[0]
    share = replace(row, unit="share of steps")

    @pytest.mark.parametrize("n", [2, 12])
    def test_a_share_that_nobody_showed_may_be_more(self, n):
        found = mean_over_episodes(self.share, np.zeros(n), {})
        assert (found.value, found.interval) == (0, clopper_pearson(0, n))
        assert found.method.startswith("Clopper-Pearson")
        assert mean_over_episodes(self.share, np.ones(n), {}).interval == pytest.approx(clopper_pearson(n, n))

    def test_equal_values_of_any_size_need_five_episodes(self):
        few, enough = (mean_over_episodes(self.row, np.full(n, 7.0), {}) for n in (4, 5))
        assert (few.value, few.interval, few.method) == (7, None, None)
        assert "Fewer than five episodes that are all equal" in few.caveat
        assert enough.interval == (7, 7)

    def test_one_episode(self):
        for row in (self.row, self.share):
            found = mean_over_episodes(row, np.ones(1), {})
            assert found.interval is None
            assert "One episode gives no interval" in found.caveat

    def test_linearised_shares_may_lie_beyond_one_by_one(self):
        found = mean_over_episodes(self.share, np.array([-0.1, 0.0, 0.0, 0.3, 0.2]), {})
        assert found.value == pytest.approx(0.08)
        assert found.interval[0] == 0 < 0.08 < found.interval[1] <= 1


def test_no_clipped_value_in_two_episodes_does_not_say_that_there_are_none():
    episodes = Episodes([np.linspace(-1, 1, 8, dtype=np.float32)[:, None]] * 2)
    found = clipping(Subject.of(BinningTokenizer(horizon=4).fit(episodes), episodes, 4, np.ones(1)))
    assert found.value == 0
    assert found.interval == pytest.approx((0, 0.842), abs=1e-3)


def test_a_position_without_steps_has_no_mean_error():
    actions = [np.linspace(-1, 1, 8, dtype=np.float32)[:, None]] * 3
    mask = np.array([False, False, True, True] * 2)
    tokenizer = BinningTokenizer(horizon=4, bins=4).fit(Episodes(actions))
    subject = Subject.of(tokenizer, Episodes(actions, action_is_pad=[mask] * 3), 4, np.ones(1))
    found = error_mean(subject).parts["per_position"]
    size = np.abs(tokenizer.quantize(actions[0].reshape(2, 4, 1)).reshape(-1) - actions[0][:, 0])
    assert found[:2] == pytest.approx([size[[0, 4]].mean(), size[[1, 5]].mean()])
    assert found[2:] == [None, None]


def test_padded_steps_count_nowhere():
    action = np.zeros((9, 1), np.float32)
    action[-1] = 2.0  # repeated seven times in the second chunk
    episodes = Episodes([action])
    tokenizer = BinningTokenizer(horizon=8, range=Range([-1.0], [1.0])).fit([np.linspace(-1, 1, 20)[:, None]])
    found = clipping(Subject.of(tokenizer, episodes, 8, np.ones(1)))
    assert found.value == pytest.approx(1 / 9)


def test_every_row_has_its_function_and_its_test():
    for row in ESTIMATORS:
        assert row.function == f"error.{row.name}"
        assert row.name in globals()
        assert row.test.removeprefix("test_error.py::") in globals()


def test_half_range_is_of_recorded_steps_only():
    actions = [np.array([[0.0, 1.0], [4.0, 1.0], [100.0, 100.0]])]
    pad = [np.array([False, False, True])]
    assert half_range(Episodes(actions, action_is_pad=pad)).tolist() == [2.0, 1.0]
    assert half_range(Episodes(actions)).tolist() == [50.0, 49.5]
    assert half_range(Episodes(actions, action_is_pad=[np.ones(3, bool)])).tolist() == [50.0, 49.5]


@pytest.mark.parametrize("make", ["bins", "FAST"])
def test_errors_of_relative_actions_are_told_in_their_own_units_too(make):
    """As they are of the same actions recorded as differences: exactly, and where a bound has a search beside it."""
    train, test = drifting(0), drifting(1)
    if make == "bins":
        pair = [turned(tokenizer) for tokenizer in pair_of_bins(train)]
    else:
        sample = ChunkSample().add(train, 1, 1, Relative("state"))
        pair = [FASTTokenizer(horizon=1, vocab_size=64, scale=4).fit(data) for data in (sample, differences(train))]
    one, other = (
        Subject.of(tokenizer, data, 1, unit_of(data.actions))
        for tokenizer, data in zip(pair, (test, differences(test)), strict=True)
    )
    mine, theirs = (error_max(subject).parts for subject in (one, other))
    own = mine["of_relative"]
    assert own["mean_error"] == pytest.approx(other.mean_error, rel=1e-2)
    assert own["beyond_threshold"]["hits"] == theirs["beyond_threshold"]["hits"] == (14 if make == "bins" else 0)
    assert own["beyond_threshold"]["t"] == pytest.approx(theirs["beyond_threshold"]["t"], rel=1e-2)
    assert mine["beyond_threshold"]["hits"] == 0
    assert "of_relative" not in theirs
    mine, theirs = error_sup(one), error_sup(other)
    assert mine.kind is theirs.kind
    own = mine.parts["of_relative"]
    assert own["value"] == pytest.approx(theirs.value, rel=1e-2)
    assert mine.value < 0.06 * own["value"]
    assert (own["domains"] is None) == (make == "bins")
    for name, domain in (own["domains"] or {}).items():
        assert domain["value"] == pytest.approx(theirs.parts["domains"][name]["value"], rel=0.1)
    assert "of_relative" not in theirs.parts
