"""Jumps near recorded actions: known of the trap and its controls, else equal to a loop written a second time."""

from pathlib import Path

import numpy as np
import pytest

from action_tokenizers import (
    ActionTokenizer,
    BinningTokenizer,
    Episodes,
    FASTTokenizer,
    KMeansTokenizer,
    Relative,
    ResidualVQTokenizer,
)
from action_tokenizers.data import ChunkSample
from action_tokenizers.diagnostics.error import unit_of
from action_tokenizers.diagnostics.jumps import excess_jump
from action_tokenizers.diagnostics.known import Trap, binning_control
from action_tokenizers.diagnostics.measure import Kind, Measure, clopper_pearson
from action_tokenizers.diagnostics.smoothness import (
    COARSE,
    ESTIMATORS,
    FAMILIES,
    FINE,
    LEAST_EPISODES,
    RARE,
    episode_jump,
    flips,
    jump_alarm,
    silent_failure,
    worst_jumps,
)
from action_tokenizers.diagnostics.subject import Subject
from action_tokenizers.errors import ActionValueError
from tests.fakes.relative import differences, drifting, pair_of_bins, turned
from tests.fakes.subjects import FAMILY, HORIZON, all_subjects, held_out_waves, subject_of, uniform

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
EPSILON = 2.0**-7


@pytest.fixture(scope="module")
def held_out():
    return held_out_waves()


@pytest.fixture(scope="module")
def subjects():
    return all_subjects()


# ---- the worst jump of an episode -------------------------------------------------------------------------------


def one_by_one(subject: Subject, eta: float, draws: int, seed: int) -> list[float]:
    """E_i under noise, chunk by chunk."""
    worst = dict.fromkeys(subject.present.tolist(), -np.inf)
    for draw in range(draws):
        noise = np.random.default_rng([seed, draw]).uniform(-eta, eta, subject.coded.actions.shape)
        for i, chunk in enumerate(subject.coded.actions):
            real = subject.real[i]
            shift = noise[i].copy()
            shift[~real] = shift[real][-1]
            moved = (chunk + shift * subject.unit).astype(np.float32)
            both = subject.tokenizer.quantize(np.stack([moved, chunk])) / subject.unit
            jump = np.linalg.norm(both[0] - both[1], axis=1)[real]
            size = np.linalg.norm(shift, axis=1)[real]
            excess = (jump - size).max() if subject.steps_alone else jump.max() - size.max()
            worst[int(subject.episode[i])] = max(worst[int(subject.episode[i])], excess)
    return list(worst.values())


@pytest.mark.parametrize("name", list(FAMILY))
def test_worst_jumps_equal_a_loop_over_chunks(name, subjects):
    found = worst_jumps(subjects[name], 0.05, draws=2, seed=3)
    assert found == pytest.approx(one_by_one(subjects[name], 0.05, 2, 3), abs=1e-5)


def test_blocks_change_nothing(subjects, monkeypatch):
    whole = {family: worst_jumps(subjects["FAST"], 0.05, family) for family in FAMILIES}
    monkeypatch.setattr("action_tokenizers.diagnostics.smoothness.VALUES", 5 * HORIZON * 3)
    for family, values in whole.items():
        assert worst_jumps(subjects["FAST"], 0.05, family) == pytest.approx(values, abs=1e-6)


def shifts_of(subject: Subject, family: str, eta: float, monkeypatch) -> list[np.ndarray]:
    """The perturbations that a family tries."""
    seen = []

    def moved(self, shift, rows):
        seen.append(shift)
        return np.zeros_like(shift)

    monkeypatch.setattr(Subject, "moved", moved)
    worst_jumps(subject, eta, family, draws=2)
    return seen


@pytest.mark.parametrize("family", ["noise", "smooth", "amplitude", "neighbour"])
def test_no_coordinate_moves_farther_than_eta(family, subjects, monkeypatch):
    seen = shifts_of(subjects["bins"], family, 0.07, monkeypatch)
    assert len(seen) == 2
    assert not np.array_equal(*seen)
    for shift in seen:
        assert 0.03 < np.abs(shift).max() <= 0.07 + 1e-9


def test_perturbations_are_what_they_are_called(subjects, monkeypatch):
    subject = subjects["bins"]
    full = subject.real.all(1)
    smooth, noise = (shifts_of(subject, family, 0.1, monkeypatch)[0] for family in ("smooth", "noise"))
    assert np.abs(np.diff(smooth[full], 2, axis=1)).max() < 1e-12  # between knots 16 steps apart: a line
    assert np.abs(np.diff(noise[full], 2, axis=1)).max() > 0.1
    middle = (subject.actions[subject.real].min(0) + subject.actions[subject.real].max(0)) / 2
    factors = shifts_of(subject, "amplitude", 0.1, monkeypatch)[0] / (subject.actions - middle)
    assert np.ptp(factors[full].reshape(full.sum(), -1), axis=1).max() < 1e-6
    way = shifts_of(subject, "neighbour", 0.1, monkeypatch)[0]
    distance = np.linalg.norm(subject.actions[:, None] - subject.actions, axis=(2, 3))
    distance[subject.episode[:, None] == subject.episode] = np.inf
    to = subject.actions[distance.argmin(1)] - subject.actions
    cosine = (way * to).sum((1, 2)) / (np.linalg.norm(way, axis=(1, 2)) * np.linalg.norm(to, axis=(1, 2)))
    assert cosine[full] == pytest.approx(np.ones(full.sum()), abs=1e-4)


def test_time_shifts_are_the_recorded_neighbours(subjects, held_out, monkeypatch):
    subject = subjects["FAST"]
    later, earlier = shifts_of(subject, "time", 0.1, monkeypatch)
    for i, (episode, first) in enumerate(zip(subject.episode, subject.first, strict=True)):
        recorded = held_out.actions[episode] / subject.unit
        steps = first + np.flatnonzero(subject.real[i])
        last = len(recorded) - 1
        expected = recorded[np.minimum(steps + 1, last)] - recorded[steps]
        assert later[i][subject.real[i]] == pytest.approx(expected, abs=1e-6)
        before = recorded[steps] if first == 0 else recorded[steps - 1]
        assert earlier[i][subject.real[i]] == pytest.approx(before - recorded[steps], abs=1e-6)


@pytest.mark.parametrize("name", ["bins", "FAST", "k-means chunk"])
def test_what_padding_holds_does_not_matter(name, subjects, held_out):
    """Neither in the middle of the recording nor behind it, nor where it fills the chunk that begins a step later."""
    masks = [np.zeros(length, np.bool_) for length in held_out.lengths]
    for mask in masks:
        mask[[7, 8, -2, -1]] = True
    masks[0][1 : HORIZON + 1] = True
    found = []
    for filler in (0.0, 1.0):
        actions = [np.where(m[:, None], np.float32(filler), a) for a, m in zip(held_out.actions, masks, strict=True)]
        padded = Episodes(actions, action_is_pad=masks)
        subject = subject_of(subjects[name].tokenizer, padded, unit=subjects[name].unit)
        found.append([worst_jumps(subject, 0.05, family) for family in FAMILIES])
        assert np.isfinite(found[-1]).all()
    assert np.allclose(*found, atol=1e-6)


def test_padding_flips_with_the_last_real_step():
    """Without a chunk that is whole, those with padding count, and only by their real steps."""
    episodes = uniform(40, 100, 1, -0.9, 0.9)
    padded = Episodes(episodes.actions, action_is_pad=[np.arange(100) % 10 >= 5] * 40)
    tokenizer = BinningTokenizer(bins=16, range="unit").fit(episodes)
    found = flips(subject_of(tokenizer, padded, 10, [1.0]), 0.05)
    assert found.value == pytest.approx(0.05 / 2 / 0.125, rel=0.1)
    alone = found.parts["by_position"]
    assert alone[5:] == [alone[4]] * 5
    assert len(set(alone[:5])) > 1


def test_an_unknown_family_is_refused(subjects):
    with pytest.raises(ActionValueError, match="expected a family of perturbations among"):
        worst_jumps(subjects["bins"], 0.1, "wind")


def test_episode_jump_counts_episodes_above_the_threshold(subjects):
    subject = subjects["k-means"]
    error = subject.average(np.linalg.norm(subject.error, axis=-1)).mean()
    for eta, name in ((COARSE, "episode_jump"), (FINE, "episode_jump_fine")):
        found = episode_jump(subject, eta, draws=3, seed=4)
        worst = worst_jumps(subject, eta, draws=3, seed=4)
        assert found.name == name
        assert found.parts["threshold"] == pytest.approx(5 * max(eta, 2 * error))
        assert found.parts["per_episode"] == worst.tolist()
        assert found.value == (worst > found.parts["threshold"]).mean()
        assert found.interval[0] <= found.value <= found.interval[1]
        assert set(found.parts["families"]) == set(FAMILIES)
        assert found.parts["families"]["noise"]["median"] == np.median(worst)
        curve = found.parts["curve"]
        assert curve["largest"][curve["eta"].index(eta)] == worst.max()


def test_few_episodes_are_no_ground_for_an_alarm(held_out):
    tokenizer = FAMILY["bins"]().fit(held_out)
    few = silent_failure(subject_of(tokenizer, held_out[[0]]))
    assert all("too few for the alarm" in measure.caveat for measure in few)
    assert "neighbour" not in few[0].parts["families"]  # of another episode
    assert jump_alarm(*few) is None


def share(hits: int, n: int) -> Measure:
    return Measure("x", hits / n, "", Kind.UNBIASED, clopper_pearson(hits, n), n={"episodes": n})


@pytest.mark.parametrize(
    ("coarse", "fine", "expected"),
    [
        ((25, 25), (25, 25), True),
        ((3, 25), (3, 25), True),  # the lower end of 3 in 25 is .025, of 2 in 25 .0098
        ((2, 25), (25, 25), False),
        ((25, 25), (2, 25), False),  # both scales
        ((0, 100), (0, 100), False),
        ((10, 10), (10, 10), True),
        ((9, 9), (9, 9), None),
        ((25, 25), (9, 9), None),
    ],
)
def test_the_alarm_needs_certainty_at_both_scales(coarse, fine, expected):
    assert (LEAST_EPISODES, RARE) == (10, 0.01)
    assert jump_alarm(share(*coarse), share(*fine)) is expected


# ---- the trap and its controls ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demonstrations():
    """Starts at the quantiles of their law: 1 in 256 of its mass each."""
    return Trap(EPSILON).demonstrations(256, seed=None)


@pytest.fixture(scope="module")
def controls():
    """Learned cells depend on which of the rare large actions a fit sees: here in windows of 137 steps of 100 chains.

    Wide gaps between the last codewords are a property of such a fit, not of this estimate of it.
    """
    episodes = Trap(EPSILON).demonstrations(100, seed=None)
    return {
        "trap": Trap(EPSILON).tokenizer(),
        "bins": binning_control(2 * EPSILON),
        "wide bins": binning_control(0.178),
        "k-means": KMeansTokenizer(codebook_size=64, range="minmax", horizon=137).fit(episodes),
        "quantile": BinningTokenizer(bins=64, strategy="quantile", range="minmax", horizon=137).fit(episodes),
    }


@pytest.fixture(scope="module")
def trapped(demonstrations, controls):
    return {name: subject_of(tokenizer, demonstrations, 137, [1.0]) for name, tokenizer in controls.items()}


@pytest.mark.parametrize(
    ("name", "jump", "median"),
    [("trap", 0.995, 0.946), ("bins", 0.0156, 0.0156), ("wide bins", 0.178, 0.178)],
)
def test_jumps_tell_the_trap_from_bins(name, jump, median, trapped):
    assert excess_jump(trapped[name]).value == pytest.approx(jump, rel=0.05)
    assert np.median(worst_jumps(trapped[name], 0.02, draws=1)) == pytest.approx(median, rel=0.05)


@pytest.mark.parametrize("name", ["k-means", "quantile"])
def test_learned_cells_jump_less_than_the_trap(name, trapped):
    assert excess_jump(trapped[name]).value <= 0.3
    assert np.median(worst_jumps(trapped[name], 0.02, draws=1)) <= 0.05


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("trap", (0.779, 1.0, 1.0)),
        ("bins", (0.0, 0.0, 0.0)),
        ("wide bins", (1.0, 1.0, 0.0)),
        ("k-means", (0.066, 0.001, 0.0)),
        ("quantile", (0.0, 0.0, 0.0)),
    ],
)
def test_episode_jumps_of_the_trap_and_its_controls(name, shares, trapped):
    """P(an episode holds a jump above 5 eta); 256 chains know a share of .779 to .026, and a few of k-means' to .1."""
    subject = trapped[name]
    for eta, expected in zip((0.0078, 0.02, 0.05), shares, strict=True):
        noise = np.random.default_rng(0).uniform(-eta, eta, subject.actions.shape)
        jump = subject.largest(np.abs(subject.moved(noise))[..., 0])
        assert (jump > 5 * eta).mean() == pytest.approx(expected, abs=0.1 if 0 < expected < 1 else 1e-3)
        # the audit's own: more than the noise, and against the mean error too
        found = episode_jump(subject, eta, draws=1, families=(), etas=())
        if name == "trap":
            assert found.value == pytest.approx(0.37 if eta < 0.01 else 1, abs=0.08)
        else:
            assert found.value <= (0.12 if name == "k-means" and eta < 0.01 else 0)


@pytest.mark.parametrize("seed", range(3))
def test_the_alarm_fires_on_the_trap_alone(seed, controls):
    fires_on_the_trap_alone(seed, controls)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 100))
def test_the_alarm_fires_on_the_trap_alone_in_100_draws(seed, controls):
    fires_on_the_trap_alone(seed, controls)


def fires_on_the_trap_alone(seed: int, controls: dict[str, ActionTokenizer]) -> None:
    """In units of the data, of 100 episodes drawn anew; learned cells as fitted once."""
    episodes = Trap(EPSILON).demonstrations(100, seed=1000 + seed)
    fired = {}
    for name, tokenizer in controls.items():
        subject = subject_of(tokenizer, episodes, 137)
        measures = [episode_jump(subject, eta, families=(), etas=(), seed=seed) for eta in (COARSE, FINE)]
        fired[name] = jump_alarm(*measures)
    assert fired == {name: name == "trap" for name in controls}


# ---- recorded data ----------------------------------------------------------------------------------------------

SETS = {"g1_inspire_bottle": 30, "pusht": 10, "adroit_door": 25, "crazyflie_100hz": 25}
RECORDED = {
    "bins": lambda t: BinningTokenizer(horizon=t),
    "quantile bins": lambda t: BinningTokenizer(horizon=t, strategy="quantile"),
    "k-means": lambda t: KMeansTokenizer(horizon=t),
    "k-means chunk": lambda t: KMeansTokenizer(horizon=t, scope="chunk"),
    "residual VQ": lambda t: ResidualVQTokenizer(horizon=t),
    "FAST": lambda t: FASTTokenizer(horizon=t),
}


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not here")
@pytest.mark.parametrize("data", list(SETS))
@pytest.mark.parametrize("family", list(RECORDED))
def test_no_alarm_on_recorded_data(family, data):
    """Fitted on 60 % of the episodes; 100 draws of 10 or more of the others."""
    horizon = SETS[data]
    episodes = Episodes.load(DATA / data)
    order = np.random.default_rng(0).permutation(len(episodes))
    held = order[: max(LEAST_EPISODES, int(0.4 * len(episodes)))]
    tokenizer = RECORDED[family](horizon).fit(episodes[np.setdiff1d(order, held).tolist()])
    subject = subject_of(tokenizer, episodes[held.tolist()], horizon, unit_of(episodes.actions))
    worst = [worst_jumps(subject, eta) for eta in (COARSE, FINE)]
    error = subject.average(np.linalg.norm(subject.error, axis=-1))
    rng = np.random.default_rng(1)
    fired = 0
    for _ in range(100):
        some = rng.permutation(len(error))[: rng.integers(LEAST_EPISODES, len(error) + 1)]
        hits = [
            int((values[some] > 5 * max(eta, 2 * error[some].mean())).sum())
            for values, eta in zip(worst, (COARSE, FINE), strict=True)
        ]
        fired += bool(jump_alarm(*(share(h, len(some)) for h in hits)))
    assert fired == 0


# ---- changed ids ------------------------------------------------------------------------------------------------


def test_flips_of_uniform_bins_are_known():
    """Of a value anywhere in a cell of width w, moved by at most eta <= w: the mean move over w, eta / 2w."""
    episodes = uniform(20, 200, 2, -0.9, 0.9)
    tokenizer = BinningTokenizer(bins=16, range="unit").fit(episodes)
    subject = subject_of(tokenizer, episodes, 10, [1.0, 1.0])
    found = flips(subject, 0.05)
    alone = 0.05 / 2 / 0.125
    assert found.value == pytest.approx(1 - (1 - alone) ** 2, rel=0.05)
    assert found.interval[0] < found.value < found.interval[1]
    assert found.parts["by_position"] == pytest.approx([alone] * 20, abs=0.07)
    assert np.mean(found.parts["by_position"]) == pytest.approx(alone, rel=0.05)
    # one dim flips, or both do: a cell, or the diagonal of one
    both = alone**2 / (1 - (1 - alone) ** 2)
    assert found.parts["jump_given_flip"] == pytest.approx(0.125 * (1 + both * (2**0.5 - 1)), rel=0.02)
    error = np.linalg.norm(subject.error, axis=-1).mean()
    assert 3 * error > 0.125  # a cell is no far jump
    assert found.parts["far"]["5"] == 0
    assert "Not a quality" in found.caveat


def test_flips_of_ids_of_many_lengths(subjects):
    found = flips(subjects["FAST"], 0.2)
    assert found.value == 1  # every chunk says other ids
    assert all(s is None or 0 <= s <= 1 for s in found.parts["by_position"])
    assert len(found.parts["by_position"]) >= subjects["FAST"].lengths.max()
    none = flips(subjects["k-means chunk"], 1e-7)
    assert none.value == 0
    assert none.parts["jump_given_flip"] is None


# ---- all of them ------------------------------------------------------------------------------------------------


def all_measures(subject: Subject, seed: int = 0) -> tuple[Measure, ...]:
    return (
        *silent_failure(subject, seed=seed),
        flips(subject, seed=seed),
    )


@pytest.mark.parametrize("name", list(FAMILY))
def test_every_row_is_measured_and_equal_seeds_give_equal_numbers(name, subjects):
    first, again = (all_measures(subjects[name], 7) for _ in range(2))
    assert first == again
    assert [measure.name for measure in first] == [row.name for row in ESTIMATORS]
    assert jump_alarm(*first[:2]) is False


@pytest.mark.parametrize("mode", ["previous", "state"])
@pytest.mark.parametrize("make", [FAMILY["bins"], FAMILY["FAST"]], ids=["bins", "FAST"])
def test_relative_actions(make, mode, held_out):
    """Also where the last chunk is a single step, which has none after it."""
    assert any(length % HORIZON == 1 for length in held_out.lengths)
    sample = ChunkSample(horizon=HORIZON).add(held_out, HORIZON, relative=Relative(mode))
    subject = subject_of(make().fit(sample), held_out)
    measures = {measure.name: measure for measure in all_measures(subject)}
    assert measures["episode_jump"].value == 0
    assert 0 < measures["episode_jump"].parts["families"]["time"]["largest"] < 2


@pytest.mark.parametrize("is_trap", [False, True])
def test_relative_actions_are_judged_as_if_they_had_been_recorded_as_differences(is_trap):
    """In half ranges of the absolute ones they span a twentieth, and no jump of theirs would be far."""
    train, test = drifting(0), drifting(1)
    relative, plain = (turned(tokenizer) if is_trap else tokenizer for tokenizer in pair_of_bins(train))
    as_is, as_differences = subject_of(relative, test, 1), subject_of(plain, differences(test), 1)
    assert (as_differences.unit < 0.06 * as_is.unit).all()
    one, other = all_measures(as_is), all_measures(as_differences)
    for mine, theirs in zip(one, other, strict=True):
        assert mine.value == pytest.approx(theirs.value, abs=0.02)
    for mine, theirs in zip(one[:2], other[:2], strict=True):
        assert mine.parts["per_episode"] == pytest.approx(theirs.parts["per_episode"], abs=1e-3)
        assert mine.parts["threshold"] == pytest.approx(theirs.parts["threshold"], rel=1e-3)
        assert mine.parts["of_relative"]["unit"] == pytest.approx(as_differences.unit.tolist(), rel=1e-3)
        assert mine.parts["of_relative"]["mean_error"] == pytest.approx(as_differences.mean_error, rel=1e-2)
        # J_q of what is coded, beside that of the absolute actions
        assert mine.parts["of_relative"]["excess_jump"] == pytest.approx(excess_jump(as_differences).value, rel=1e-3)
        assert excess_jump(as_is).value < 0.06 * mine.parts["of_relative"]["excess_jump"]
        assert "of_relative" not in theirs.parts
    assert all("half spans of the relative actions" in measure.caveat for measure in one)
    assert not any("relative" in measure.caveat for measure in other)
    assert jump_alarm(*one[:2]) is jump_alarm(*other[:2]) is is_trap


def test_a_single_episode(held_out):
    for measure in all_measures(subject_of(FAMILY["k-means chunk"]().fit(held_out), held_out[[0]])):
        assert measure.n.get("episodes", 1) == 1
