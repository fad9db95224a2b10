"""Jumps of decoded actions: exact where it can be said in a line, else equal to a loop written a second time."""

from pathlib import Path

import numpy as np
import pytest

from action_tokenizers import (
    ActionTokenizer,
    BinningTokenizer,
    Episodes,
    FASTTokenizer,
    KMeansTokenizer,
    Range,
    Relative,
    ResidualVQTokenizer,
)
from action_tokenizers.data import ChunkSample
from action_tokenizers.data.synthetic import smooth_chunks, smooth_episodes
from action_tokenizers.diagnostics.error import unit_of
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
    excess_jump,
    flips,
    jump_alarm,
    modulus,
    scalar_excess_jump,
    silent_failure,
    worst_jumps,
    wrong_token,
)
from action_tokenizers.diagnostics.subject import Subject
from action_tokenizers.errors import ActionShapeError, ActionValueError

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
EPSILON = 2.0**-7
HORIZON = 12

FAMILY = {
    "bins": lambda: BinningTokenizer(horizon=HORIZON, bins=32),
    "quantile bins": lambda: BinningTokenizer(horizon=HORIZON, bins=32, strategy="quantile"),
    "k-means": lambda: KMeansTokenizer(horizon=HORIZON, codebook_size=32),
    "k-means chunk": lambda: KMeansTokenizer(horizon=HORIZON, codebook_size=32, scope="chunk"),
    "residual VQ": lambda: ResidualVQTokenizer(horizon=HORIZON, codebook_size=16, levels=3),
    "FAST": lambda: FASTTokenizer(horizon=HORIZON, vocab_size=256),
}


def subject_of(tokenizer: ActionTokenizer, episodes: Episodes, horizon: int = HORIZON, unit=None) -> Subject:
    return Subject.of(tokenizer, episodes, horizon, unit_of(episodes.actions) if unit is None else np.asarray(unit))


@pytest.fixture(scope="module")
def held_out():
    return smooth_episodes(12, (40, 70), action_dim=3, seed=1)


@pytest.fixture(scope="module")
def subjects(held_out):
    train = smooth_episodes(30, (40, 70), action_dim=3, seed=2)
    return {name: subject_of(make().fit(train), held_out) for name, make in FAMILY.items()}


def uniform(n: int, length: int, dims: int, low: float = -1, high: float = 1) -> Episodes:
    rng = np.random.default_rng(5)
    return Episodes([rng.uniform(low, high, (length, dims)).astype(np.float32) for _ in range(n)])


# ---- the excess jump of a step function -------------------------------------------------------------------------


def brute_force(edges, centres, low=-1.0, high=1.0):
    """The largest excess over all pairs of a grid that holds both sides of every edge."""
    near = np.concatenate([edges - 1e-9, edges, edges + 1e-9])
    x = np.concatenate([np.linspace(low, high, 201), near[(near >= low) & (near <= high)]])
    q = centres[np.searchsorted(edges, x, side="right")]
    return (np.abs(q[:, None] - q) - np.abs(x[:, None] - x)).max()


@pytest.mark.parametrize("k", [1, 2, 3, 5, 9, 40])
def test_equals_brute_force_on_random_step_functions(k):
    """In any order of the centres, and rising as those of a tokenizer; with edges beyond the domain."""
    rng = np.random.default_rng(k)
    for trial in range(60):
        edges, centres = np.sort(rng.uniform(-1.5, 1.5, k - 1)), rng.uniform(-2, 2, k)
        if trial % 2:
            centres = np.sort(centres)
        assert scalar_excess_jump(edges, centres) == pytest.approx(brute_force(edges, centres), abs=1e-8)


def test_a_smaller_domain_sees_fewer_jumps():
    edges, centres = np.array([-0.5, 0.0, 0.5]), np.array([-0.75, -0.25, 0.25, 3.0])
    for low, high in ((-1, 1), (-1, 0.4), (0.1, 0.4), (-0.5, 0.5)):
        found = scalar_excess_jump(edges, centres, low, high)
        assert found == pytest.approx(brute_force(edges, centres, low, high), abs=1e-8)
    assert scalar_excess_jump(edges, centres, 0.1, 0.4) == 0


@pytest.mark.parametrize("bins", [4, 16, 256])
def test_of_uniform_bins_is_a_cell(bins):
    cells = BinningTokenizer(bins=bins).fit(smooth_chunks(200, 5, 2)).scalar_cells()
    moving, gripper = (
        scalar_excess_jump(edges.numpy(), centres.numpy())
        for edges, centres in zip(cells.edges, cells.centres, strict=True)
    )
    assert moving == pytest.approx(2 / bins, abs=1e-6)
    assert gripper == pytest.approx(2)  # two values, -1 and 1: between them there is one border to jump across


# ---- the excess jump of a tokenizer -----------------------------------------------------------------------------


def test_excess_jump_of_bins_is_a_cell_in_every_dim():
    """In units: 10 raw actions per unit in dim 1, and a range of half the data there."""
    episodes = uniform(4, 30, 2)
    tokenizer = BinningTokenizer(bins=[8, 16], range=Range([-1, -5], [1, 5])).fit(episodes)
    found = excess_jump(subject_of(tokenizer, episodes, 10, [1.0, 10.0]), sup=0.2)
    assert found.kind is Kind.EXACT
    assert found.interval is None
    assert found.parts["per_dim"] == pytest.approx([2 / 8, 10 / 16 / 10], rel=1e-5)
    assert found.value == pytest.approx(np.hypot(0.25, 0.0625), rel=1e-5)
    assert found.parts["least_sup"] == found.value / 2
    assert found.parts["over_twice_sup"] == pytest.approx(found.value / 0.4)
    assert found.parts["disproves_sup"] is False
    assert excess_jump(subject_of(tokenizer, episodes, 10, [1.0, 10.0]), sup=0.1).parts["disproves_sup"] is True


def test_clipping_adds_nothing_to_the_excess_jump():
    """All pairs of a grid three times as wide as the range."""
    episodes = uniform(4, 30, 1)
    tokenizer = BinningTokenizer(bins=6, strategy="gaussian", range=Range([-0.5], [0.5])).fit(episodes)
    subject = subject_of(tokenizer, episodes, 10, [1.0])
    x = np.linspace(-1.5, 1.5, 3000, dtype=np.float32)
    q = subject.quantize(x.reshape(-1, 10, 1)).ravel()
    widest = (np.abs(q[:, None] - q) - np.abs(x[:, None] - x)).max()
    assert excess_jump(subject).value == pytest.approx(widest, abs=2e-3)


def test_several_dims_that_jump_across_a_distance_give_an_upper_bound():
    """Two borders .02 apart with jumps of .4 together jump .78; two dims do not both do so at no distance."""
    episodes = uniform(4, 30, 2)
    tokenizer = BinningTokenizer(bins=3, range="unit").fit(episodes)
    tokenizer.edges[:] = tokenizer.edges.new_tensor([-0.01, 0.01])
    tokenizer.centres[:] = tokenizer.centres.new_tensor([-0.4, 0.0, 0.4])
    subject = subject_of(tokenizer, episodes, 10, [1.0, 1.0])
    found = excess_jump(subject)
    assert found.kind is Kind.UPPER
    assert found.parts["per_dim"] == pytest.approx([0.78, 0.78], rel=1e-5)
    assert found.value == pytest.approx(0.78 * 2**0.5, rel=1e-5)
    assert found.parts["attained"] == pytest.approx(0.4 * 2**0.5, rel=1e-5)
    one = BinningTokenizer(bins=3, range="unit").fit(uniform(4, 30, 1))
    one.edges[:], one.centres[:] = tokenizer.edges[:1], tokenizer.centres[:1]
    assert excess_jump(subject_of(one, uniform(4, 30, 1), 10, [1.0])).kind is Kind.EXACT


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_search_finds_the_excess_jump_of_a_line_of_codewords(seed):
    episodes = uniform(4, 100, 1)
    tokenizer = KMeansTokenizer(codebook_size=9, range="unit", seed=seed, horizon=10).fit(episodes)
    words = np.sort(tokenizer.codebook_0.numpy().ravel().astype(np.float64))
    truth = scalar_excess_jump((words[1:] + words[:-1]) / 2, words)
    found = excess_jump(subject_of(tokenizer, episodes, 10, [1.0]), sup=truth / 2.1, seed=seed)
    assert found.kind is Kind.LOWER
    assert 0.98 * truth <= found.value <= truth + 1e-6
    assert found.parts["disproves_sup"] is True
    assert set(found.parts["pairs"]) == {"noise", "neighbour", "hull", "bisection"}


@pytest.mark.parametrize("name", ["k-means", "k-means chunk", "residual VQ", "FAST"])
def test_the_search_stays_below_what_is_possible(name, subjects):
    subject = subjects[name]
    found = excess_jump(subject)
    assert found.kind is Kind.LOWER
    assert found.n["episodes"] == 12
    assert found.value == max(found.parts["pairs"].values())
    assert ("offset" in found.parts["pairs"]) == (not subject.steps_alone)
    # decoded actions lie in a box
    rows = np.concatenate([subject.tokenizer.range.low.numpy(), subject.tokenizer.range.high.numpy()]) / subject.unit
    assert 0 < found.value <= np.linalg.norm(rows[1] - rows[0])
    mean = np.linalg.norm(subject.error, axis=-1)
    assert found.parts["over_twice_mean"] == pytest.approx(found.value / 2 / subject.average(mean).mean())
    # rounding a chunk of coefficients to the nearest tenth moves every step by at most so much, and twice that apart
    if name == "FAST":
        half = (rows[1] - rows[0]) / 2
        assert found.value <= 2 * 0.05 * HORIZON**0.5 * np.linalg.norm(half)


# ---- the modulus ------------------------------------------------------------------------------------------------


def test_modulus_of_fine_bins_is_the_move_and_of_coarse_ones_a_cell():
    episodes = uniform(10, 200, 1)
    for bins in (4096, 8):
        tokenizer = BinningTokenizer(bins=bins, range="unit").fit(episodes)
        found = modulus(subject_of(tokenizer, episodes, 10, [1.0]))
        width, eta = 2 / bins, np.array(found.parts["eta"])
        inner = eta <= 0.3
        # a move by eta crosses eta / width borders, rounded down or up
        least, most = np.floor(eta / width) * width, np.ceil(eta / width) * width
        assert (np.array(found.parts["largest"])[inner] <= most[inner] + 1e-6).all()
        assert (np.array(found.parts["q99"])[inner] >= least[inner] - 1e-6 - 2 * eta[inner]).all()
        assert found.parts["largest"][0] == pytest.approx(width if bins == 8 else most[0], abs=1e-6)
        assert found.parts["median"][0] == pytest.approx(0 if bins == 8 else 0.001, abs=width if bins == 4096 else 1e-9)
        assert found.value == found.parts["q99"][found.parts["eta"].index(0.1)]
        assert found.value == pytest.approx(0.1 if bins == 4096 else 0.25, abs=6e-4)
        assert found.parts["std"] == pytest.approx([2 / 12**0.5], rel=0.03)
        assert "offset" not in found.parts


def test_modulus_tells_moves_of_every_step_from_moves_of_the_whole_chunk(subjects):
    found = modulus(subjects["FAST"])
    steps, offset = found.parts["q99"], found.parts["offset"]["q99"]
    assert len(steps) == len(offset) == len(found.parts["eta"])
    assert steps[-1] == pytest.approx(1, abs=0.3)  # a move of half the range is followed by as large a jump
    assert all(0 <= value < 2 for value in steps + offset)


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
    """Neither in the middle of the recording nor behind it."""
    masks = [np.zeros(length, np.bool_) for length in held_out.lengths]
    for mask in masks:
        mask[[7, 8, -2, -1]] = True
    found = []
    for filler in (0.0, 1.0):
        actions = [np.where(m[:, None], np.float32(filler), a) for a, m in zip(held_out.actions, masks, strict=True)]
        padded = Episodes(actions, action_is_pad=masks)
        subject = subject_of(subjects[name].tokenizer, padded, unit=subjects[name].unit)
        found.append([worst_jumps(subject, 0.05, family) for family in ("noise", "smooth")])
    assert np.allclose(*found, atol=1e-6)


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


# ---- one wrong id -----------------------------------------------------------------------------------------------


def test_one_wrong_id_of_bins_moves_one_step_by_known_cells():
    episodes = uniform(30, 60, 1)
    tokenizer = BinningTokenizer(bins=16, range="unit", horizon=6).fit(episodes)
    subject = subject_of(tokenizer, episodes, 6, [1.0])
    damage, broken = wrong_token(subject)
    cells = np.arange(16)
    apart = np.abs(cells[:, None] - cells) * 0.125
    assert damage.value == pytest.approx(apart.sum() / (16 * 15), rel=0.03)
    assert damage.interval[0] < damage.value < damage.interval[1]
    assert damage.parts["neighbour"]["mean"] == pytest.approx(0.125, abs=1e-6)
    assert damage.parts["neighbour"]["largest"] == pytest.approx(0.125, abs=1e-6)
    assert damage.parts["positions"] == list(range(6))
    for law in ("allowed", "any"):
        told = damage.parts[law]
        assert told["undecodable"] == told["other_length"] == 0
        assert told["largest"] == max(told["largest_at"]) <= 15 * 0.125 + 1e-6
        assert len(told["mean_at"]) == len(told["q95_at"]) == 6
        assert told["mean_at"] == pytest.approx([damage.value] * 6, rel=0.2)
    assert (broken.name, broken.value) == ("wrong_token_undecodable", 0)


def test_ids_of_the_wrong_slot_do_not_decode():
    """With ids of its own for each of two dims, 16 of the 31 other ids stand for the other dim."""
    episodes = uniform(30, 60, 2)
    tokenizer = BinningTokenizer(bins=16, range="unit", horizon=6, shared_ids=False).fit(episodes)
    damage, broken = wrong_token(subject_of(tokenizer, episodes, 6, [1.0, 1.0]))
    assert broken.value == pytest.approx(16 / 31, rel=0.03)
    assert broken.parts["any"]["undecodable"] == pytest.approx(16 / 31, rel=0.03)
    assert broken.parts["allowed"]["undecodable"] == 0
    assert damage.parts["neighbour"]["undecodable"] == 0  # 15 and 16 are no neighbours


def test_wrong_ids_of_many_lengths_may_end_a_chunk_elsewhere(subjects):
    damage, broken = wrong_token(subjects["FAST"])
    assert 0.3 < broken.value < 1
    assert damage.parts["allowed"]["undecodable"] < 1
    assert 0 < damage.parts["any"]["other_length"] <= damage.parts["any"]["undecodable"]
    assert damage.value > 0


def test_a_runner_up_is_tried_where_it_is_known(subjects):
    subject = subjects["k-means"]
    second = np.where(subject.ids > 0, subject.ids - 1, subject.ids)  # the same id is no other id
    second[0] = -1
    damage, _ = wrong_token(subject, runner_up=second)
    words = subject.tokenizer.codebook_0.numpy() * 1.0
    low, high = subject.tokenizer.range.low[0].numpy(), subject.tokenizer.range.high[0].numpy()
    raw = (low + (np.clip(words, -1, 1) + 1) / 2 * (high - low)) / subject.unit
    steps = np.linalg.norm(np.diff(raw, axis=0), axis=1)
    told = damage.parts["runner_up"]
    assert steps.min() - 1e-5 <= told["mean"] <= told["largest"] <= steps.max() + 1e-5
    with pytest.raises(ActionShapeError, match="expected runner_up like the ids"):
        wrong_token(subject, runner_up=second[:3])


def test_where_there_is_but_one_id_none_can_be_wrong():
    still = Episodes([np.zeros((20, 1), np.float32) for _ in range(3)])
    damage, broken = wrong_token(subject_of(KMeansTokenizer(horizon=5).fit(still), still, 5))
    assert damage.value is broken.value is None
    assert "no other id" in broken.caveat.lower()
    assert damage.parts["allowed"]["mean"] is None


# ---- all of them ------------------------------------------------------------------------------------------------


def all_measures(subject: Subject, seed: int = 0) -> tuple[Measure, ...]:
    return (
        excess_jump(subject, seed=seed),
        modulus(subject, seed=seed),
        *silent_failure(subject, seed=seed),
        flips(subject, seed=seed),
        *wrong_token(subject, seed=seed),
    )


@pytest.mark.parametrize("name", list(FAMILY))
def test_every_row_is_measured_and_equal_seeds_give_equal_numbers(name, subjects):
    first, again = (all_measures(subjects[name], 7) for _ in range(2))
    assert first == again
    assert [measure.name for measure in first] == [row.name for row in ESTIMATORS]
    assert jump_alarm(*first[2:4]) is False


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


def test_a_single_episode(held_out):
    for measure in all_measures(subject_of(FAMILY["k-means chunk"]().fit(held_out), held_out[[0]])):
        assert measure.n.get("episodes", 1) == 1
