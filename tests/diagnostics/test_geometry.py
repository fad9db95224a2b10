import tracemalloc

import numpy as np
import pytest

from action_tokenizers import BinningTokenizer, Episodes, FASTTokenizer, KMeansTokenizer, Range, ResidualVQTokenizer
from action_tokenizers.data import smooth_episodes
from action_tokenizers.diagnostics import geometry
from action_tokenizers.diagnostics.geometry import (
    ESTIMATORS,
    cell_border_jump,
    cell_width,
    covering_radius,
    margin,
)
from action_tokenizers.diagnostics.known import Trap
from action_tokenizers.diagnostics.measure import Kind, bootstrap_t, clopper_pearson
from action_tokenizers.diagnostics.subject import Subject

UNIT = np.array([0.5, 2.0, 1.0])


@pytest.fixture(scope="module")
def episodes():
    return smooth_episodes(12, length=(20, 40), action_dim=3, seed=0)


def codebook_of(subject, group=0):
    """Codewords in units, `(k, p, d)`, and what scales range units to them."""
    dims, words = subject.tokenizer.codewords()[group]
    low, high = (
        bound[0].double().numpy()[dims] for bound in (subject.tokenizer.range.low, subject.tokenizer.range.high)
    )
    return (low + (words.numpy() + 1) / 2 * (high - low)) / subject.unit[dims], (high - low) / 2 / subject.unit[dims]


def two_words(unit=(1.0, 1.0), tokenizer=None):
    """A square with codewords at (-1/2, 0) and (1/2, 0)."""
    words = np.array([[-0.5, 0.0], [0.5, 0.0]], np.float32)
    fitted = KMeansTokenizer(horizon=1, codebook_size=2, range=Range([-1.0, -1.0], [1.0, 1.0])).fit(words[:, None])
    points = np.array([[-0.9, 0.2], [0.1, 0.9], [0.2, -0.4], [0.6, 0.0]], np.float32)
    return Subject.of(fitted, Episodes([points] * 3), 1, np.array(unit))


def test_uniform_bins_are_as_wide_as_they_are_far_apart():
    rng = np.random.default_rng(0)
    episodes = Episodes([rng.uniform(-1, 1, (50, 2)).astype(np.float32) for _ in range(4)])
    tokenizer = BinningTokenizer(horizon=1, bins=[4, 8], range=Range([-2.0, -1.0], [2.0, 1.0])).fit(episodes)
    subject = Subject.of(tokenizer, episodes, 1, np.array([0.5, 1.0]))
    width = cell_width(subject)
    assert width.kind is Kind.EXACT
    assert width.parts == {"widest": pytest.approx([2.0, 0.25]), "median": pytest.approx([2.0, 0.25])}
    assert width.value == pytest.approx(np.hypot(2.0, 0.25))
    jump = cell_border_jump(subject)
    assert jump.kind is Kind.EXACT
    assert jump.parts["per_dim"] == pytest.approx([2.0, 0.25])  # a border is crossed in one dim
    assert jump.value == pytest.approx(2.0)
    assert jump.parts["median"] == pytest.approx(0.25)


def test_the_trap_tears_actions_apart_at_one_border():
    trap = Trap(2.0**-7)
    subject = Subject.of(trap.tokenizer(1), trap.demonstrations(8, seed=None, horizon=20), 1, np.ones(1))
    found = cell_border_jump(subject)
    assert found.value == pytest.approx(0.99, abs=0.01)
    assert found.parts["median"] == pytest.approx(2.0**-7, rel=0.01)


@pytest.mark.parametrize("scope", ["step", "chunk"])
def test_cells_of_codewords_are_as_wide_as_the_data_fill_them(episodes, scope):
    tokenizer = KMeansTokenizer(horizon=4, codebook_size=12, scope=scope).fit(episodes)
    subject = Subject.of(tokenizer, episodes, 4, UNIT)
    if scope == "step":
        data, ids = subject.actions[subject.real][:, None], subject.ids[subject.real]
    else:
        data, ids = subject.actions, subject.ids[:, 0]
    diameters = []
    for i in np.unique(ids):
        members = data[ids == i]
        apart = np.linalg.norm(members[:, None] - members[None], axis=-1).max(-1)
        if len(members) > 1:
            diameters.append(apart.max())
    found = cell_width(subject)
    assert found.kind is Kind.LOWER
    assert 0.9 * max(diameters) <= found.value <= max(diameters) + 1e-9
    assert found.parts["cells"] == len(diameters)
    assert 0.9 * np.median(diameters) <= found.parts["median"] <= np.median(diameters) + 1e-9
    assert found.parts["alone"] == pytest.approx(np.mean([np.sum(ids == i) == 1 for i in ids]))


def test_chunks_that_share_no_ids_show_no_cell(episodes):
    for tokenizer in (FASTTokenizer(horizon=8, scale=1000), ResidualVQTokenizer(horizon=8, codebook_size=64)):
        found = cell_width(Subject.of(tokenizer.fit(episodes), episodes, 8, UNIT))
        assert found.value is None
        assert found.parts["alone"] == 1
        assert "same ids" in found.caveat


@pytest.mark.parametrize("scope", ["step", "chunk"])
def test_neighbours_are_the_nearest_two_words_of_the_data(episodes, scope):
    tokenizer = KMeansTokenizer(horizon=4, codebook_size=12, scope=scope).fit(episodes)
    subject = Subject.of(tokenizer, episodes, 4, UNIT)
    words, half = codebook_of(subject)
    low, high = tokenizer.range.low[0].numpy(), tokenizer.range.high[0].numpy()
    coded = np.clip(subject.coded.actions, low, high).astype(np.float64) / UNIT
    points = coded[subject.real][:, None] if scope == "step" else coded
    apart = (((points[:, None] - words[None]) / half) ** 2).sum((-1, -2))
    pairs = {tuple(sorted(row)) for row in np.argsort(apart, axis=1)[:, :2].tolist()}
    jumps = [np.linalg.norm(words[a] - words[b], axis=-1).max() for a, b in pairs]
    found = cell_border_jump(subject)
    assert found.kind is Kind.LOWER
    assert found.parts["pairs"] == len(pairs)
    assert found.value == pytest.approx(max(jumps), rel=1e-5)
    assert found.parts["median"] == pytest.approx(np.median(jumps), rel=1e-5)


def test_margins_are_distances_to_the_nearest_border():
    """On both sides of the plane x = 0, in units of 1/2 and 1: twice as far."""
    found = margin(two_words())
    assert found.value == pytest.approx(0.4)  # of .9, .1, .2, .6
    assert found.parts == {"share": 0, "interval": [0, clopper_pearson(0, 3)[1]], "near": 0.04}
    assert margin(two_words(), near=0.15).parts["share"] == 0.25
    assert margin(two_words(unit=(0.5, 1.0))).value == pytest.approx(0.8)
    assert margin(two_words(unit=(1.0, 0.5))).value == pytest.approx(0.4)


@pytest.mark.parametrize("params", [{}, {"scope": "chunk"}, {"groups": [[0, 2], [1]]}], ids=["step", "chunk", "groups"])
def test_a_step_of_the_margin_reaches_the_border(episodes, params):
    """Of every direction, none reaches other ids sooner, and the one to the nearest plane does then."""
    tokenizer = KMeansTokenizer(horizon=2, codebook_size=8, range="minmax", **params).fit(episodes)
    subject = Subject.of(tokenizer, episodes, 2, UNIT)
    found = margin(subject)
    medians = []
    for chunks in subject.each(subject.actions):
        steps = 2 if params.get("scope") else 1
        count = -(-len(chunks) // steps)
        padded = np.concatenate([chunks, np.repeat(chunks[-1:], count * steps - len(chunks), 0)])
        least = np.full(count, np.inf)
        for g, (dims, _) in enumerate(tokenizer.codewords()):
            words, half = codebook_of(subject, g)
            k = len(words)
            points = padded[:, dims].reshape(count, -1)
            flat, scale = words.reshape(k, -1), np.tile(half, words.shape[1])
            for i, x in enumerate(points):
                squares = (((x - flat) / scale) ** 2).sum(1)
                own = squares.argmin()
                for j in set(range(k)) - {own}:
                    normal = (flat[j] - flat[own]) / scale**2  # the plane in units
                    least[i] = min(least[i], (squares[j] - squares[own]) / 2 / np.linalg.norm(normal))
        medians.append(np.median(least))
    assert found.value == pytest.approx(np.mean(medians), rel=1e-4)
    assert found.interval == pytest.approx(bootstrap_t(medians), rel=1e-3)


def test_margins_hold_no_table_of_all_pairs_of_words(monkeypatch):
    points = np.random.default_rng(0).uniform(-1, 1, (4, 300, 2)).astype(np.float32)
    episodes = Episodes(list(points))
    tokenizer = KMeansTokenizer(horizon=1, codebook_size=1000).fit(episodes)
    subject = Subject.of(tokenizer, episodes, 1, np.ones(2))
    whole = margin(subject)
    monkeypatch.setattr(geometry, "BLOCK", 20_000)
    tracemalloc.start()
    found = margin(subject)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.value == pytest.approx(whole.value)
    assert peak < 1000 * 1000 * 8 / 2


def test_margins_of_bins_are_to_the_nearest_edge_of_any_dim(episodes):
    tokenizer = BinningTokenizer(horizon=4, bins=[4, 6, 2], range="minmax").fit(episodes)
    subject = Subject.of(tokenizer, episodes, 4, UNIT)
    low, high = (bound[0].double().numpy() for bound in (tokenizer.range.low, tokenizer.range.high))
    edges = [low[j] + (e.numpy() + 1) / 2 * (high - low)[j] for j, e in enumerate(tokenizer.scalar_cells().edges)]
    medians, shares = [], []
    for actions in episodes.actions:
        distance = np.min([np.abs(actions[:, [j]] - edges[j]).min(1) / UNIT[j] for j in range(3)], axis=0)
        medians.append(np.median(distance))
        shares.append((distance <= 0.04).mean())
    found = margin(subject)
    assert found.value == pytest.approx(np.mean(medians), rel=1e-4)
    assert found.parts["share"] == pytest.approx(np.mean(shares), abs=1e-3)


def test_covering_radius_of_two_words_in_a_square():
    """The corners are farthest: 1/2 across and 1 up."""
    found = covering_radius(two_words())
    assert found.kind is Kind.LOWER
    truth = np.hypot(0.5, 1)
    assert 0.97 * truth < found.value <= truth
    distances = [np.hypot(0.4, 0.2), np.hypot(0.4, 0.9), np.hypot(0.3, 0.4), 0.1]
    assert found.parts["ratio"] == pytest.approx(found.value / np.mean(distances), rel=1e-4)
    assert (
        0.97 * 3 < covering_radius(two_words(unit=(0.5, 1 / np.sqrt(8)))).value <= 3 + 1e-9
    )  # 1 across and sqrt(8) up


def test_covering_radius_on_lines_is_exact(episodes):
    tokenizer = KMeansTokenizer(horizon=4, codebook_size=6, range="minmax", groups=[[0], [1], [2]]).fit(episodes)
    found = covering_radius(Subject.of(tokenizer, episodes, 4, UNIT))
    assert found.kind is Kind.EXACT
    low, high = tokenizer.range.low[0].numpy(), tokenizer.range.high[0].numpy()
    steps = np.linspace(low, high, 5001, dtype=np.float32)[:5000].reshape(-1, 4, 3)
    largest = np.abs(tokenizer.quantize(steps) - steps).max((0, 1)) / UNIT
    largest[2] = 0  # the gripper has words for its values
    assert found.value == pytest.approx(np.linalg.norm(largest), rel=2e-3)


@pytest.mark.parametrize("scope", ["step", "chunk"])
def test_a_gripper_is_covered_at_its_values(scope):
    """Words at (-1/2, -1) and (1/2, 1): half way up nothing is, and at the corners across from a word all is 1.5, 2."""
    words = np.array([[-0.5, -1.0], [0.5, 1.0]], np.float32)
    span = Range([-1.0, -1.0], [1.0, 1.0])
    tokenizer = KMeansTokenizer(horizon=1, codebook_size=2, range=span, scope=scope).fit(words[:, None])
    points = np.random.default_rng(0).uniform(-1, 1, (40, 2)).astype(np.float32)
    moving = covering_radius(Subject.of(tokenizer, Episodes([points] * 3), 1, np.ones(2)))
    points[:, 1] = np.sign(points[:, 1])
    gripping = covering_radius(Subject.of(tokenizer, Episodes([points] * 3), 1, np.ones(2)))
    # the plane between the words: x + 2 y = 0
    assert moving.value == pytest.approx(max(np.hypot(0.5, 2 * 0.75), np.hypot(1.5, 0.5)), rel=0.03)
    assert gripping.value == pytest.approx(0.5 + 1.0, rel=0.03)  # at (1, -1) and (-1, 1), which decode across
    assert "only ever" not in moving.caveat
    assert "Dim 1 (counted from 0)" in gripping.caveat


def test_a_gripper_on_a_line_is_covered_at_its_values():
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (6, 40, 2)).astype(np.float32)
    actions[..., 1] = np.sign(actions[..., 1])
    episodes = Episodes(list(actions))
    tokenizer = KMeansTokenizer(horizon=1, codebook_size=2, range="unit", groups=[[0], [1]]).fit(episodes)
    found = covering_radius(Subject.of(tokenizer, episodes, 1, np.ones(2)))
    assert found.kind is Kind.EXACT
    words = np.sort(tokenizer.codewords()[0][1].numpy().ravel())
    assert found.value == pytest.approx(max(words[0] + 1, 1 - words[1], (words[1] - words[0]) / 2), rel=1e-4)


@pytest.mark.parametrize("measure", [cell_border_jump, margin, covering_radius])
def test_what_cannot_be_listed_is_not_shown(episodes, measure):
    for tokenizer in (FASTTokenizer(horizon=4), ResidualVQTokenizer(horizon=4, codebook_size=8)):
        found = measure(Subject.of(tokenizer.fit(episodes), episodes, 4, UNIT))
        assert found.value is None
        assert found.interval is None
        assert "listed" in found.caveat


@pytest.mark.parametrize("family", [BinningTokenizer, KMeansTokenizer])
def test_constant_actions_have_no_border(family):
    episodes = Episodes([np.full((10, 2), 0.25, np.float32)] * 3)
    subject = Subject.of(family(horizon=2).fit(episodes), episodes, 2, np.ones(2))
    assert cell_width(subject).value == 0
    assert cell_border_jump(subject).value is None
    assert margin(subject).value is None


def test_a_constant_dim_is_no_part_of_a_margin():
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (6, 20, 2)).astype(np.float32)
    actions[..., 1] = 3.0
    both, alone = Episodes(list(actions)), Episodes(list(actions[..., :1]))
    for family in (BinningTokenizer(horizon=1, bins=8), KMeansTokenizer(horizon=1, codebook_size=8)):
        found = [
            measure(Subject.of(family.fit(data), data, 1, np.ones(data.action_dim))).value
            for measure in (margin, cell_width, cell_border_jump)
            for data in (both, alone)
        ]
        assert found[::2] == pytest.approx(found[1::2])


def test_every_row_has_its_function_and_its_test():
    for row in ESTIMATORS:
        assert row.function == f"geometry.{row.name}"
        assert row.name in globals()
        assert row.test.removeprefix("test_geometry.py::") in globals()
