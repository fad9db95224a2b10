"""Excess jumps: exact where they can be said in a line, else equal to a search over all pairs, or below what can be."""

import numpy as np
import pytest

from action_tokenizers import BinningTokenizer, ChunkSample, Episodes, KMeansTokenizer, Range, Relative
from action_tokenizers.data.synthetic import smooth_chunks
from action_tokenizers.diagnostics.domains import quantized
from action_tokenizers.diagnostics.jumps import ESTIMATORS, excess_jump, modulus, nearest, scalar_excess_jump
from action_tokenizers.diagnostics.measure import Kind
from tests.fakes.subjects import FAMILY, HORIZON, all_subjects, held_out_waves, subject_of, uniform


@pytest.fixture(scope="module")
def subjects():
    return all_subjects()


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
    assert found.parts["attained"] == pytest.approx(0.78, rel=1e-5)  # by one of them, more than both at a border
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


# ---- switches ---------------------------------------------------------------------------------------------------


def gripping(levels=(-1.0, 1.0), n=6, length=30, seed=5) -> Episodes:
    """A dim that moves, and one that holds each of its values for ten steps."""
    actions = uniform(n, length, 2).actions
    for i, values in enumerate(actions):
        values[:, 1] = np.array(levels)[(np.arange(length) // 10 + i) % len(levels)]
    return Episodes(actions)


@pytest.mark.parametrize("levels", [(-1.0, 1.0), (-1.0, 0.5, 1.0)])
def test_the_step_of_a_gripper_is_told_apart(levels):
    """Between its values, where no action is, the quantizer steps from one to the next."""
    episodes = gripping(levels)
    subject = subject_of(BinningTokenizer(bins=16, range="unit").fit(episodes), episodes, 10, [1.0, 1.0])
    found = excess_jump(subject)
    assert found.kind is Kind.EXACT
    assert found.parts["per_dim"] == pytest.approx([2 / 16, 0], rel=0.01, abs=1e-6)
    assert found.value == pytest.approx(2 / 16, rel=0.01)
    assert found.parts["discrete"]["dims"] == [1]
    assert found.parts["discrete"]["between"] == pytest.approx([np.diff(levels).max()])
    assert "Dim 1 (counted from 0) only ever takes" in found.caveat


def test_a_gripper_whose_values_decode_farther_apart_does_jump():
    """At -0.2 and 0.2, two uniform cells decode to -0.5 and 0.5."""
    episodes = gripping((-0.2, 0.2))
    tokenizer = BinningTokenizer(bins=[16, 2], range="unit").fit(uniform(6, 30, 2))
    found = excess_jump(subject_of(tokenizer, episodes, 10, [1.0, 1.0]))
    assert found.kind is Kind.UPPER  # not at a border, so not surely both at once
    assert found.parts["per_dim"] == pytest.approx([2 / 16, 0.6], rel=1e-5)
    assert found.value == pytest.approx(np.hypot(2 / 16, 0.6), rel=1e-5)
    assert found.parts["attained"] == pytest.approx(0.6, rel=1e-5)
    assert found.parts["discrete"]["between"] == pytest.approx([1.0], rel=1e-5)


def test_two_cells_of_a_dim_that_moves_are_no_switch():
    episodes = uniform(4, 30, 2)
    found = excess_jump(subject_of(BinningTokenizer(bins=2, range="unit").fit(episodes), episodes, 10, [1.0, 1.0]))
    assert found.value == pytest.approx(2**0.5)
    assert found.parts["discrete"] == {"dims": [], "between": []}
    assert "only ever" not in found.caveat


@pytest.mark.parametrize("name", ["k-means", "k-means chunk", "residual VQ", "FAST"])
def test_no_search_looks_between_the_values_of_a_gripper(name, subjects, monkeypatch):
    subject, seen = subjects[name], []
    monkeypatch.setattr(
        "action_tokenizers.diagnostics.jumps.quantized",
        lambda subject, actions: (seen.append(actions), quantized(subject, actions))[1],
    )
    found = excess_jump(subject)
    assert found.parts["discrete"] == {"dims": [2]}
    assert "Dim 2 (counted from 0)" in found.caveat
    recorded = np.unique(held_out_waves().actions[0][:, 2])
    assert len(seen) > 10
    for actions in seen:
        assert np.isin(actions[..., 2].astype(np.float32), recorded).all()
        assert actions[..., :2].std() > 0
    # random directions, which the modulus is about, leave nothing out
    seen.clear()
    modulus(subject)
    assert not np.isin(seen[-1][..., 2].astype(np.float32), recorded).all()


def test_where_every_dim_is_a_switch_nothing_jumps():
    actions = [np.sign(a) for a in uniform(6, 30, 2).actions]
    episodes = Episodes(actions)
    for tokenizer in (BinningTokenizer(), KMeansTokenizer(codebook_size=8, horizon=10)):
        found = excess_jump(subject_of(tokenizer.fit(episodes), episodes, 10, [1.0, 1.0]))
        assert found.value == pytest.approx(0, abs=1e-6)
        assert "Dims 0, 1 (counted from 0) only ever take two or three values" in found.caveat


def test_a_constant_dim_is_nothing_to_tell():
    episodes = uniform(6, 30, 2)
    for values in episodes.actions:
        values[:, 1] = 0.5
    alone = Episodes([values[:, :1] for values in episodes.actions])
    for family in (BinningTokenizer, KMeansTokenizer):
        both, one = (
            excess_jump(subject_of(family(horizon=10).fit(data), data, 10, np.ones(data.action_dim)))
            for data in (episodes, alone)
        )
        assert both.parts["discrete"]["dims"] == []
        assert "only ever" not in both.caveat
        assert both.value == pytest.approx(one.value, rel=0.1)


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


# ---- the nearest ------------------------------------------------------------------------------------------------


def test_the_nearest_is_of_another_episode(monkeypatch):
    rng = np.random.default_rng(0)
    points, others = rng.normal(size=(40, 3)), rng.normal(size=(15, 3))
    episode, of = rng.integers(0, 3, 40), np.arange(15) % 3
    expected = []
    for point, own in zip(points, episode, strict=True):
        distance = np.linalg.norm(others - point, axis=1)
        distance[of == own] = np.inf
        expected.append(distance.argmin())
    assert nearest(points, episode, others, of).tolist() == expected
    monkeypatch.setattr("action_tokenizers.diagnostics.jumps.VALUES", 7 * 15)
    assert nearest(points, episode, others, of).tolist() == expected


# ---- both -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(FAMILY))
def test_every_row_is_measured_and_equal_seeds_give_equal_numbers(name, subjects):
    first, again = ([excess_jump(subjects[name], seed=7), modulus(subjects[name], seed=7)] for _ in range(2))
    assert first == again
    assert [measure.name for measure in first] == [row.name for row in ESTIMATORS]


def test_a_single_episode(subjects):
    subject = subjects["k-means chunk"]
    alone = subject_of(subject.tokenizer, subject.episodes[[0]])
    found = excess_jump(alone)
    assert "neighbour" not in found.parts["pairs"]
    assert found.n["episodes"] == modulus(alone).n["episodes"] == 1


@pytest.mark.parametrize(
    ("modes", "said"),
    [
        ("state", "that it codes span 4% to 40%, dim by dim."),
        (["state", None], "that it codes span 4%."),
        ([None, None], ""),
    ],
)
def test_how_much_relative_actions_span_is_told_of_those_dims_alone(modes, said):
    """A dim that stays absolute spans all of its range."""
    states = [np.stack([np.linspace(-1, 1, 50)] * 2, 1).astype(np.float32) for _ in range(4)]
    moves = np.stack([np.tile([-0.04, 0.04], 25), np.tile([-0.4, 0.4], 25)], 1).astype(np.float32)
    episodes = Episodes([s + moves for s in states], states=states)
    tokenizer = BinningTokenizer(bins=16, horizon=1).fit(ChunkSample().add(episodes, 1, 1, Relative(modes)))
    for found in (excess_jump, modulus):
        caveat = found(subject_of(tokenizer, episodes, 1, [1.0, 1.0])).caveat
        assert caveat.endswith(said) if said else "relative actions" not in caveat
