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
from action_tokenizers.diagnostics.along import (
    ESTIMATORS,
    border_jump,
    border_jump_of,
    drift,
    drift_leaky,
    drift_of,
    gripper_flips,
    gripper_flips_of,
    hold_bias,
    hold_bias_of,
    two_valued,
)
from action_tokenizers.diagnostics.error import unit_of
from action_tokenizers.diagnostics.measure import bootstrap_t
from action_tokenizers.diagnostics.subject import Subject

HORIZON = 8
NAMES = ["binning", "kmeans", "residual_vq", "fast"]


@pytest.fixture(scope="module")
def split():
    """Uneven lengths, so that last chunks are padded, and a gripper in the last dim."""
    return smooth_episodes(24, length=(20, 60), action_dim=3, seed=0).split(0.5, seed=0)


@pytest.fixture(scope="module")
def subjects(split):
    train, test = split
    fitted = {
        "binning": BinningTokenizer(horizon=HORIZON, bins=6),
        "kmeans": KMeansTokenizer(horizon=HORIZON, codebook_size=16, scope="chunk"),
        "residual_vq": ResidualVQTokenizer(horizon=HORIZON, levels=2, codebook_size=8),
        "fast": FASTTokenizer(horizon=HORIZON, scale=3, vocab_size=256),
    }
    unit = unit_of(test.actions)
    return {name: Subject.of(tokenizer.fit(train), test, HORIZON, unit) for name, tokenizer in fitted.items()}


@pytest.fixture(scope="module")
def by_hand(subjects, split):
    """Recorded actions and errors per episode: chunk after chunk, the last one padded by repetition."""

    def run(name):
        subject, actions, errors = subjects[name], [], []
        for action in split[1].actions:
            padded = np.concatenate([action, np.repeat(action[-1:], -len(action) % HORIZON, 0)])
            decoded = subject.tokenizer.quantize(padded.reshape(-1, HORIZON, 3)).reshape(-1, 3)[: len(action)]
            actions.append(action / subject.unit)
            errors.append((decoded.astype(np.float64) - action) / subject.unit)
        return actions, errors

    return run


def brute_drift(error, window):
    w = min(window, len(error))
    return max(np.linalg.norm(error[i : i + w].mean(0)) for i in range(len(error) - w + 1))


def brute_leaky(error, leak):
    state, largest = np.zeros(error.shape[1]), 0.0
    for step in error:
        state = leak * state + step
        largest = max(largest, np.linalg.norm(state))
    return largest


def brute_holds(action, error, least=8):
    """|mean error| of every stretch of one dim that holds still."""
    found, start = [], 0
    for stop in range(1, len(action) + 1):
        if stop == len(action) or action[stop] != action[start]:
            if stop - start >= least:
                found.append(abs(error[start:stop].mean()))
            start = stop
    return found


def test_drift_is_the_largest_windowed_mean_error():
    rng = np.random.default_rng(0)
    errors = [rng.normal(size=(n, 3)) for n in (5, 16, 17, 80)]
    found = drift_of(errors, window=16)
    assert found["drift"] == pytest.approx(np.mean([brute_drift(e, 16) for e in errors]))
    per_dim = [np.mean([brute_drift(e[:, [j]], 16) for e in errors]) for j in range(3)]
    assert found["drift_per_dim"] == pytest.approx(per_dim)


def test_drift_sees_the_sign_of_the_error():
    alternating = np.tile([[0.1], [-0.1]], (20, 1))
    assert drift_of([alternating])["drift"] < 1e-12
    assert drift_of([np.abs(alternating)])["drift"] == pytest.approx(0.1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("window", [16, 5])
def test_drift_of_a_subject_is_that_of_its_episodes(subjects, by_hand, name, window):
    _, errors = by_hand(name)
    found = drift(subjects[name], window=window)
    largest = [brute_drift(e, window) for e in errors]
    assert found.value == pytest.approx(np.mean(largest))
    assert found.interval == pytest.approx(bootstrap_t(largest))
    assert found.parts["per_dim"] == pytest.approx(drift_of(errors, window)["drift_per_dim"])
    assert found.parts["window"] == window
    assert found.n["episodes"] == 12


def test_leaky_drift_is_the_recursion(subjects, by_hand):
    for name in NAMES:
        _, errors = by_hand(name)
        found = drift_leaky(subjects[name])
        assert found.value == pytest.approx(np.mean([brute_leaky(e, 0.95) for e in errors]))
        per_dim = [np.mean([brute_leaky(e[:, [j]], 0.95) for e in errors]) for j in range(3)]
        assert found.parts == {"per_dim": pytest.approx(per_dim), "leak": 0.95}
    # without leak it is the largest sum, and with nothing kept the largest error
    assert drift_leaky(subjects["fast"], leak=0).value == pytest.approx(
        np.mean([np.linalg.norm(e, axis=1).max() for e in errors])
    )


def test_hold_bias_looks_only_at_stretches_that_hold_still():
    action = np.array([[0.0, 0.0]] * 8 + [[1.0, i] for i in range(1, 8)])
    error = np.full((15, 2), 0.25)
    error[8:] = 9.0
    error[:4, 0] = -0.25  # cancels over the stretch: mean, not mean of magnitudes
    assert hold_bias_of([action], [error]) == [0.0, 0.25]
    assert hold_bias_of([action[8:]], [error[8:]]) == [None, None]  # seven steps are one too few


def test_hold_bias_is_that_of_all_stretches():
    rng = np.random.default_rng(0)
    actions = [np.repeat(rng.integers(0, 3, (n, 2)), 5, axis=0).astype(float) for n in (7, 30, 12)]
    errors = [rng.normal(size=a.shape) for a in actions]
    expected = [
        np.mean([v for a, e in zip(actions, errors, strict=True) for v in brute_holds(a[:, j], e[:, j])])
        for j in range(2)
    ]
    assert hold_bias_of(actions, errors) == pytest.approx(expected)


def test_hold_bias_of_a_subject_names_the_worst_dim(subjects, by_hand):
    for name in NAMES:
        actions, errors = by_hand(name)
        expected = hold_bias_of(actions, errors)
        found = hold_bias(subjects[name])
        assert found.parts["per_dim"] == [*expected[:2], pytest.approx(expected[2])]
        assert expected[:2] == [None, None]  # smooth waves never stand still
        assert found.value == pytest.approx(expected[2])
        assert found.parts["worst_dim"] == 2
        low, high = found.interval
        assert low <= found.value <= high
        assert found.n["holds"] == sum(len(brute_holds(a[:, 2], e[:, 2])) for a, e in zip(actions, errors, strict=True))


def test_what_never_holds_still_has_no_hold_bias():
    rng = np.random.default_rng(0)
    episodes = Episodes([rng.normal(size=(30, 2)).astype(np.float32) for _ in range(4)])
    found = hold_bias(Subject.of(BinningTokenizer(horizon=4).fit(episodes), episodes, 4, np.ones(2)))
    assert found.value is None
    assert found.interval is None
    assert found.parts["per_dim"] == [None, None]
    assert "8 steps" in found.caveat


def test_values_that_do_not_come_back_are_listed():
    """Dim 0 rests at 0 and 1, dim 1 moves but for a rest at -1: 6 bins of 1/3 decode to the middles of bins."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (10, 40, 2)).astype(np.float32)
    actions[:, :16, 0], actions[:, 16:28, 0] = 0.0, 1.0
    actions[:, :2, 1] = -1.0
    episodes = Episodes(list(2 * actions))
    tokenizer = BinningTokenizer(horizon=8, bins=6, range=Range([-2.0, -2.0], [2.0, 2.0])).fit(episodes)
    found = hold_bias(Subject.of(tokenizer, episodes, 8, np.array([2.0, 2.0])))
    rows = found.parts["unreproducible"]
    # 0 is on an edge and belongs to the cell above it
    expected = [(0, 0.0, 1 / 3, 0.4), (0, 2.0, 2 - 1 / 3, 0.3), (1, -2.0, -2 + 1 / 3, 0.05)]
    assert [(row["dim"], row["value"]) for row in rows] == [(dim, value) for dim, value, _, _ in expected]
    for row, (_, value, decoded, share) in zip(rows, expected, strict=True):
        assert row["decoded"] == pytest.approx(decoded, abs=1e-6)
        assert row["error"] == pytest.approx((decoded - value) / 2, abs=1e-6)
        assert row["share"] == pytest.approx(share)
        assert row["kept"] == 0
    assert found.parts["unreproducible_values"] == 3
    assert found.value == pytest.approx(1 / 6, abs=1e-6)  # both rests of dim 0 are off by 1/3 of 2
    odd = BinningTokenizer(horizon=8, bins=7, range=Range([-2.0, -2.0], [2.0, 2.0])).fit(episodes)
    kept = hold_bias(Subject.of(odd, episodes, 8, np.array([2.0, 2.0])))
    assert [row["value"] for row in kept.parts["unreproducible"]] == [2.0, -2.0]  # 0 is a middle now


def test_levels_of_a_gripper_come_back(subjects):
    assert subjects["binning"].tokenizer.scalar_cells().centres[2].tolist() == [-1, 1]
    found = hold_bias(subjects["binning"])
    assert found.value == 0
    assert found.parts["unreproducible"] == []
    coarse = hold_bias(subjects["residual_vq"]).parts["unreproducible"]
    assert {row["dim"] for row in coarse} <= {2}


def test_gripper_flips_count_decoded_sides():
    action = np.array([[0.0, 3.0], [1.0, 4.0], [1.0, 5.0], [0.0, 3.5]])
    dims = two_valued([action.astype(np.float32)])
    assert dims == [0]
    error = np.array([[0.4, 0.0], [-0.6, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert gripper_flips_of([action], [error], dims) == 0.25
    assert gripper_flips_of([action], [error], []) is None


def test_gripper_flips_of_a_subject(subjects, by_hand):
    for name in NAMES:
        actions, errors = by_hand(name)
        found = gripper_flips(subjects[name])
        assert found.parts["dims"] == [2]
        assert found.value == pytest.approx(gripper_flips_of(actions, errors, [2]))
        flipped = [bool(((a > 0) != (a + e > 0))[:, 2].any()) for a, e in zip(actions, errors, strict=True)]
        assert found.parts["episodes"]["hits"] == sum(flipped)
    assert found.value == 0  # FAST
    assert gripper_flips(subjects["kmeans"]).value > 0


def test_no_gripper_has_no_flips():
    rng = np.random.default_rng(0)
    episodes = Episodes([rng.normal(size=(30, 2)).astype(np.float32) for _ in range(4)])
    found = gripper_flips(Subject.of(BinningTokenizer(horizon=4).fit(episodes), episodes, 4, np.ones(2)))
    assert found.value is None
    assert "exactly two values" in found.caveat


def test_border_jump_is_the_change_of_error_across_borders():
    error = np.zeros((7, 2))
    error[3:6] = [3.0, 4.0]
    assert border_jump_of([error], 3) == pytest.approx(5.0)  # borders at 3 and 6, nothing inside
    assert border_jump_of([error[:3]], 3) is None
    assert border_jump_of([error], 1) is None  # all borders


def test_border_jump_leaves_ordinary_noise_out():
    noise = np.random.default_rng(0).normal(size=(4000, 2))
    assert abs(border_jump_of([noise], 8)) < 0.1  # a step changes by 1.8 on average, border or not


def test_border_jump_of_a_subject(subjects, by_hand):
    for name in NAMES:
        _, errors = by_hand(name)
        found = border_jump(subjects[name])
        assert found.value == pytest.approx(border_jump_of(errors, HORIZON))
        assert found.value == pytest.approx(found.parts["across"] - found.parts["inside"])
        assert found.n["borders"] == sum((len(e) - 1) // HORIZON for e in errors)
    assert border_jump(subjects["kmeans"]).interval[0] > 0


def test_chunks_of_one_step_have_no_inside():
    episodes = smooth_episodes(3, length=(10, 12), action_dim=2)
    found = border_jump(Subject.of(BinningTokenizer(horizon=1).fit(episodes), episodes, 1, np.ones(2)))
    assert found.value is None
    assert "no inside" in found.caveat


@pytest.mark.parametrize("mode", ["state", "previous"])
def test_relative_actions_are_measured_as_they_are_executed(mode):
    """Errors of differences add up over a chunk, and what holds still does not move in the chunk's own frame."""
    rng = np.random.default_rng(0)
    actions = np.cumsum(rng.normal(0, 0.1, (6, 40, 2)), axis=1).astype(np.float32)
    actions[:, 10:30, 1] = 0.5
    episodes = Episodes(list(actions), states=list(actions))
    sample = ChunkSample().add(episodes, HORIZON, 1, Relative(mode))
    tokenizer = BinningTokenizer(bins=16).fit(sample)
    unit = unit_of(episodes.actions)
    subject = Subject.of(tokenizer, episodes, HORIZON, unit)
    executed = subject.coded.relative.invert(subject.decoded, subject.coded.reference).reshape(6, 40, 2)
    errors = list((executed.astype(np.float64) - actions) / unit)
    assert drift(subject).value == pytest.approx(drift_of(errors)["drift"])
    assert hold_bias(subject).parts["per_dim"][1] == pytest.approx(hold_bias_of(list(actions / unit), errors)[1])
    assert border_jump(subject).value == pytest.approx(border_jump_of(errors, HORIZON))


def test_one_episode_has_no_interval(split, subjects):
    subject = Subject.of(subjects["binning"].tokenizer, split[1][[0]], HORIZON, np.ones(3))
    for measure in (drift(subject), drift_leaky(subject), hold_bias(subject), border_jump(subject)):
        assert measure.value is not None
        assert measure.interval is None
        assert "One episode" in measure.caveat


@pytest.mark.slow
def test_ratios_vary_over_episodes_as_their_interval_says():
    """The interval of a ratio of sums covers the truth, though episodes hold different numbers of steps."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        actions, decoded = [], []
        for _ in range(25):
            n = int(rng.integers(8, 60))
            action = np.tile([[-1.0], [1.0]], (n, 1)).astype(np.float32)
            wrong = rng.random(action.shape) < rng.beta(2, 18)
            actions.append(action)
            decoded.append(np.where(wrong, -action, action))
        found = gripper_flips(_faked(actions, decoded))
        covered += found.interval[0] <= 0.1 <= found.interval[1]
    assert 0.92 <= covered / 400 <= 0.98


def _faked(actions, decoded):
    """A subject that decodes to what is given."""
    episodes = Episodes(actions)
    subject = Subject.of(BinningTokenizer(horizon=2).fit(episodes), episodes, 2, np.ones(1))
    object.__setattr__(subject, "decoded", np.concatenate(decoded).reshape(-1, 2, 1))
    return subject


def test_every_row_has_its_function_and_its_test():
    for row in ESTIMATORS:
        assert row.function == f"along.{row.name}"
        assert row.name in globals()
        assert row.test.removeprefix("test_along.py::") in globals()
