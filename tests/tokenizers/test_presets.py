"""Presets against transcriptions of the published formulas in plain numpy, written apart from the package."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
import torch

from action_tokenizers import (
    ActionShapeError,
    ActionTokenizer,
    ActionTokenizerError,
    ActionValueError,
    BinningTokenizer,
    Episodes,
    FormatError,
    Range,
)
from action_tokenizers.data.synthetic import smooth_chunks
from action_tokenizers.testing import check_tokenizer
from action_tokenizers.tokenizers.presets import PresetTokenizer, gato, octo, openpi, openvla, rt1
from tests.fakes.damage import SlotLayout, accept_allowed, accept_damage

F32 = np.float32
LOW, HIGH = [-0.0512345, -1.0, 0.3, 20.0], [0.1298765, 1.0, 3.7, 100.0]
IDENTITY = (-1.0, 1.0)
ACTIONS = smooth_chunks(40, 4, 3, seed=1)


# ---- what was published -----------------------------------------------------------------------------------------
# each takes values (n,) float32 and one dim's low and high, and returns ids (n,) and the value of every id


def published_openvla(x, low, high, k=256):
    if (low, high) != IDENTITY:
        x = F32(2) * (x - F32(low)) / F32(high - low + 1e-8) - F32(1)
    x = np.clip(x, a_min=-1.0, a_max=1.0)
    bins = np.linspace(-1, 1, k)
    bin_centers = (bins[:-1] + bins[1:]) / 2.0
    discretized = np.digitize(x, bins)
    decoded = bin_centers[np.clip(np.arange(1, k + 1) - 1, a_min=0, a_max=len(bin_centers) - 1)]
    if (low, high) != IDENTITY:
        decoded = 0.5 * (decoded + 1) * (high - low + 1e-8) + low
    return discretized - 1, decoded


def published_rt1(x, low, high, k=256):
    low, high = F32(low), F32(high)
    a = np.minimum(np.maximum(x, low), high)
    token = (a - low) / (high - low)
    token = np.trunc(token * F32(k - 1)).astype(int)
    decoded = np.arange(k).astype(F32) / F32(k - 1)
    return token, decoded * (high - low) + low


def jax_linspace(start, stop, n):
    """start * (1 - step) + stop * step in float32, last product and sum with one rounding, as XLA fuses them."""
    start, stop = F32(start), F32(stop)
    out = []
    for i in range(n - 1):
        step = F32(i) / F32(n - 1)
        out.append(float(Fraction(float(start * (F32(1) - step))) + Fraction(float(stop)) * Fraction(float(step))))
    return np.array([*out, stop], F32)


def octo_one_hot(x, thresholds):
    ids = [
        np.argmax((part[:, None] < thresholds[1:]) & (part[:, None] >= thresholds[:-1]), axis=-1)
        for part in np.array_split(x, 20)
    ]
    return np.concatenate(ids), (thresholds[1:] + thresholds[:-1]) / F32(2)


def published_octo_uniform(x, low, high, k=256):
    x = np.minimum(np.maximum(x, F32(low + 1e-6)), F32(high - 1e-6))
    return octo_one_hot(x, jax_linspace(low, high, k + 1))


def published_octo_gaussian(x, low, high, k=256):
    return octo_one_hot(x, scipy.stats.norm.ppf(jax_linspace(1e-6, 1 - 1e-6, k + 1).astype(float)).astype(F32))


def published_gato(x, low, high, k=1024):
    mu, m = 100.0, 256.0
    companded = [math.copysign(math.log(abs(v) * mu + 1) / math.log(m * mu + 1), v) for v in x.tolist()]
    ids = [min(math.floor((max(-1.0, min(1.0, f)) + 1) / 2 * k), k - 1) for f in companded]
    middle = [-1 + (2 * i + 1) / k for i in range(k)]
    return np.array(ids), np.array([math.copysign(((m * mu + 1) ** abs(y) - 1) / mu, y) for y in middle])


def published_openpi(x, low, high, k=256):
    x = x.astype(np.float64)
    if (low, high) != IDENTITY:
        x = (x - low) / (high - low + 1e-6) * 2.0 - 1.0
    ids = np.digitize(x, bins=np.linspace(-1, 1, k + 1)[:-1]) - 1
    decoded = np.arange(k) / k * 2 - 1
    if (low, high) != IDENTITY:
        decoded = (decoded + 1.0) / 2.0 * (high - low + 1e-6) + low
    return np.where(ids < 0, 0, ids), decoded  # below -1 openpi has -1, which is no id


PUBLISHED = {
    "openvla": (openvla, published_openvla),
    "rt1": (rt1, published_rt1),
    "octo_uniform": (octo, published_octo_uniform),
    "octo_gaussian": (lambda d, **own: octo(d, strategy="gaussian", **own), published_octo_gaussian),
    "gato": (gato, published_gato),
    "openpi": (openpi, published_openpi),
}
WITH_RANGE = ["openvla", "rt1", "octo_uniform", "openpi"]
CASES = [(name, *IDENTITY) for name in PUBLISHED] + [
    (name, low, high) for name in WITH_RANGE for low, high in zip(LOW, HIGH, strict=True)
]


def probing(edges, low, high, seed=0):
    """Every edge and the numbers beside it, zeros, ends, far values, tiny ones, and 100,000 at random."""
    rng = np.random.default_rng(seed)
    ends = np.array([low, high, -low, 0.0, -0.0, 5.0, 1e30, 3.4e38, 1e-40, 1e-30, 1e-12, np.finfo(F32).max], F32)
    marks = np.concatenate([edges[np.abs(edges) < 3e38], ends, -ends])
    beside = [np.nextafter(marks[np.abs(marks) < 3e38], F32(to)) for to in (-np.inf, np.inf)]
    width = high - low
    drawn = [
        rng.uniform(low - width / 10, high + width / 10, 40_000),
        rng.normal((low + high) / 2, width, 40_000),
        np.exp(rng.uniform(-20, 12, 20_000)) * rng.choice([-1, 1], 20_000),
    ]
    return np.concatenate([marks, *beside, *drawn]).astype(F32)


def encode(tokenizer, values):
    """Ids of values (n,) through a tokenizer of one dim."""
    return tokenizer.encode(values[:, None]).astype(int)


@pytest.mark.parametrize(("name", "low", "high"), CASES)
def test_ids_and_values_are_the_published_ones(name, low, high):
    make, published = PUBLISHED[name]
    tokenizer = make(1) if (low, high) == IDENTITY else make(1, low=low, high=high)
    x = probing(tokenizer.scalar_cells().edges[0].numpy(), low, high)
    with np.errstate(over="ignore"):
        ids, values = published(x, low, high)
    np.testing.assert_array_equal(encode(tokenizer, x), ids)
    k = len(values)
    np.testing.assert_array_equal(tokenizer.decode(np.arange(k), horizon=k)[:, 0], values.astype(F32))
    assert tokenizer.vocab_size == k + 1
    assert set(ids.tolist()) == set(range(k))


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("bins", [2, 7, 1000])
def test_other_numbers_of_bins_too(name, bins):
    make, published = PUBLISHED[name]
    tokenizer = make(1, bins=bins)
    x = probing(tokenizer.scalar_cells().edges[0].numpy(), *IDENTITY)[:20_000]
    ids, values = published(x, *IDENTITY, bins)
    np.testing.assert_array_equal(encode(tokenizer, x), ids)
    np.testing.assert_array_equal(tokenizer.decode(np.arange(bins), horizon=bins)[:, 0], values.astype(F32))


@pytest.mark.parametrize("name", WITH_RANGE)
def test_every_dim_has_its_own_range(name):
    make, published = PUBLISHED[name]
    tokenizer = make(4, low=LOW, high=HIGH, horizon=5)
    actions = np.random.default_rng(0).uniform(np.array(LOW) - 0.1, np.array(HIGH) + 0.1, (2000, 5, 4)).astype(F32)
    ids = tokenizer.encode(actions).reshape(-1, 4)
    for j, (low, high) in enumerate(zip(LOW, HIGH, strict=True)):
        np.testing.assert_array_equal(ids[:, j], published(actions[..., j].ravel(), low, high)[0])


def test_statistics_keep_their_float64_precision():
    """Decoded in float64 with the checkpoint's own numbers; float32 ones give other values."""
    low, high = 0.1234567890123, 0.1334567890123
    exact = published_openvla(np.zeros(1, F32), low, high)[1].astype(F32)
    rounded = published_openvla(np.zeros(1, F32), float(F32(low)), float(F32(high)))[1].astype(F32)
    assert (exact != rounded).any()
    np.testing.assert_array_equal(openvla(1, low=low, high=high).decode(np.arange(256), horizon=256)[:, 0], exact)


def test_openvla_in_the_tail_of_a_vocabulary():
    actions = np.array([[-1.0, 0.0, 1.0, 2.0, -7.0]])
    tokens = 32000 - np.digitize(np.clip(actions[0], -1, 1), np.linspace(-1, 1, 256))
    assert (32000 - 1 - openvla(5).encode(actions)).tolist() == tokens.tolist() == [31999, 31872, 31744, 31744, 31999]


# ---- defects ----------------------------------------------------------------------------------------------------


def bias(tokenizer, half_bin):
    """Mean signed error on uniform data, in half bins."""
    x = np.random.default_rng(1).uniform(-1, 1, (200_000, 1)).astype(F32)
    return float((tokenizer.quantize(x) - x).mean(dtype=np.float64)) / half_bin


@pytest.mark.parametrize(
    ("make", "half_bin", "published"),
    [(rt1, 1 / 255, -1), (openpi, 1 / 256, -1), (openvla, 1 / 255, 0), (octo, 1 / 256, 0)],
    ids=["rt1", "openpi", "openvla", "octo"],
)
def test_the_half_bin_bias_is_there_and_goes(make, half_bin, published):
    assert bias(make(1), half_bin) == pytest.approx(published, abs=0.01)
    assert bias(make(1, corrected=True), half_bin) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("make", [rt1, openpi], ids=["rt1", "openpi"])
def test_corrected_values_are_at_most_half_a_bin_away(make):
    x = np.linspace(-1, 1, 5001, dtype=F32)[:, None]
    assert np.abs(make(1).quantize(x) - x).max() > 0.99 * 2 / 256
    assert np.abs(make(1, corrected=True).quantize(x) - x).max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize("name", ["openvla", "rt1", "gato", "openpi", "octo_uniform"])
def test_correction_leaves_ids_alone(name):
    x = np.random.default_rng(0).normal(0, 1, (1000, 4, 2)).astype(F32)
    plain, corrected = (PresetTokenizer(system=name, corrected=c, range="unit").fit(x) for c in (False, True))
    np.testing.assert_array_equal(plain.encode(x), corrected.encode(x))


@pytest.mark.parametrize("make", [openvla, rt1], ids=["openvla", "rt1"])
def test_the_top_value(make):
    """It has an id of its own, which RT-1 decodes exactly and OpenVLA half a bin below."""
    top = np.array([[1.0]])
    below = np.array([[0.99999]])
    assert make(1).encode(top) - make(1).encode(below) == 1
    assert make(1, corrected=True).quantize(top) == 1
    assert make(1).quantize(top) == (1 if make is rt1 else F32(1 - 1 / 255))
    assert make(1, low=-3.0, high=5.0, corrected=True).quantize(np.array([[5.0]])) == 5


def test_octo_sends_a_hundred_sigma_to_the_lowest_id():
    far = np.array([[100.0, 4.8, 4.7, -100.0, 1e38]])
    plain, corrected = octo(5, strategy="gaussian"), octo(5, strategy="gaussian", corrected=True)
    assert plain.encode(far).tolist() == [0, 0, 255, 0, 0]
    assert corrected.encode(far).tolist() == [255, 255, 255, 0, 255]
    assert plain.quantize(far)[0, 0] == plain.quantize(far)[0, 3] < -3
    assert corrected.quantize(far)[0, 0] == corrected.decode([[255] * 5], horizon=1)[0, 0, 0] > 3


def test_octo_uniform_loses_its_top_where_float32_cannot_hold_the_margin():
    x = np.array([[100.0], [99.99], [200.0]])
    assert octo(1, low=0.0, high=100.0).encode(x).tolist() == [0, 255, 0]
    assert octo(1, low=0.0, high=100.0, corrected=True).encode(x).tolist() == [255, 255, 255]
    assert octo(1, low=0.0, high=30.0).encode(x).tolist() == [255, 255, 255]


def test_scalar_cells_know_the_value_without_a_bin():
    x = np.concatenate([np.linspace(-6, 6, 1001), [4.7507577, 1e30]]).astype(F32)
    tokenizer = octo(1, strategy="gaussian")
    (edges,), (centres,) = tokenizer.scalar_cells().edges, tokenizer.scalar_cells().centres
    assert (len(edges), len(centres)) == (256, 257)
    looked_up = centres[torch.searchsorted(edges, torch.from_numpy(x), right=True)]
    np.testing.assert_array_equal(looked_up, tokenizer.quantize(x[:, None])[:, 0])


# ---- the contract -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("range_", ["quantile", "unit"])
@pytest.mark.parametrize("system", PUBLISHED)
def test_contract(system, range_):
    check_tokenizer(PresetTokenizer(system=system, range=range_, corrected=range_ == "quantile"), ACTIONS)


@pytest.mark.parametrize("system", ["octo_uniform", "rt1"])
def test_contract_with_a_given_range(system):
    check_tokenizer(PresetTokenizer(system=system, range=Range([-0.7, -0.3, -1], [0.9, 0.7, 1])), ACTIONS)


@pytest.mark.parametrize("name", WITH_RANGE)
def test_a_preset_without_data_is_one_that_was_fitted_with_its_range(name):
    low, high = np.array(LOW, F32), np.array(HIGH, F32)
    made = PUBLISHED[name][0](4, low=low, high=high, horizon=3)
    fitted = PresetTokenizer(system=name, range=Range(low, high), horizon=3).fit(np.zeros((5, 3, 4)))
    assert {k: v.tolist() for k, v in made.state_dict().items()} == {
        k: v.tolist() for k, v in fitted.state_dict().items()
    }
    assert (made.horizon, made.action_dim, made.vocab_size, made.pad_id) == (3, 4, 256, None)
    params = {k: v for k, v in made.get_params().items() if k not in ("range", "bins")}
    assert params == {k: v for k, v in fitted.get_params().items() if k not in ("range", "bins")}


def test_a_learned_range_gives_the_same_bins_but_for_rounding():
    rng = np.random.default_rng(0)
    actions = rng.normal(0.3, 0.1, (500, 4, 3)).astype(F32)
    for system in WITH_RANGE:
        learned = PresetTokenizer(system=system, range="minmax").fit(actions)
        low, high = learned.range.low[0].numpy(), learned.range.high[0].numpy()
        given = PUBLISHED[system][0](3, low=low, high=high, horizon=4)
        assert (learned.encode(actions) == given.encode(actions)).mean() > 0.999
        assert np.abs(learned.quantize(actions) - given.quantize(actions)).mean() < 1e-5


def test_octo_gaussian_learns_mean_and_deviation():
    actions = np.random.default_rng(0).normal([3.0, -1.0], [0.5, 7.0], (2000, 4, 2)).astype(F32)
    learned = PresetTokenizer(system="octo_gaussian", range="meanstd").fit(actions)
    frames = actions.reshape(-1, 2).astype(np.float64)
    standard = ((frames - frames.mean(0)) / frames.std(0)).astype(F32)
    ids = octo(2, strategy="gaussian", horizon=4).encode(standard.reshape(-1, 4, 2))
    assert (learned.encode(actions) == ids).mean() > 0.999


def test_several_robots_have_several_ranges():
    rng = np.random.default_rng(0)
    data = [Episodes(list(rng.normal(0, size, (20, 8, 2)).astype(F32)), key=key) for key, size in (("a", 1), ("b", 9))]
    tokenizer = PresetTokenizer(system="rt1", horizon=8).fit(data)
    assert tokenizer.range_keys == ("a", "b")
    both = Range([[-1, -1], [-9, -9]], [[1, 1], [9, 9]], ("a", "b"))
    given = PresetTokenizer(system="rt1", horizon=8, range=both).fit(data)
    x = np.ones((8, 2), F32)
    assert set(given.encode(x, key="a").tolist()) == {255}
    assert set(given.encode(x, key="b").tolist()) == {int(5 / 9 * 255)}


@pytest.mark.parametrize(
    "tokenizer",
    [
        openvla(7),
        rt1(2, low=[0.0, -5.0], high=[1.0, 5.0], horizon=4, key="everyday_robot"),
        octo(3, strategy="gaussian"),
        octo(3, low=0.0, high=100.0, horizon=2),
        gato(1, bins=64),
        openpi(2, corrected=True),
    ],
    ids=lambda t: t.get_params()["system"],
)
def test_saved_and_loaded_without_ever_seeing_data(tokenizer, tmp_path):
    loaded = ActionTokenizer.from_pretrained(tokenizer.save_pretrained(tmp_path / "a"))
    t, d = tokenizer.horizon or 6, tokenizer.action_dim
    actions = np.random.default_rng(0).normal(0, 40, (50, t, d)).astype(F32)
    ids = tokenizer.encode(actions)
    np.testing.assert_array_equal(loaded.encode(actions), ids)
    np.testing.assert_array_equal(loaded.decode(ids, horizon=t), tokenizer.decode(ids, horizon=t))
    np.testing.assert_array_equal(loaded.clip_report(actions), tokenizer.clip_report(actions))
    assert loaded.range_keys == tokenizer.range_keys
    loaded.save_pretrained(tmp_path / "b")
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("learned", [False, True])
def test_the_card_tells_how_to_decode_without_this_library(name, learned, tmp_path, monkeypatch):
    actions = np.random.default_rng(0).normal(0, 0.5, (30, 4, 2)).astype(F32)
    tokenizer = PUBLISHED[name][0](2) if not learned else PresetTokenizer(system=name).fit(actions)
    folder = tokenizer.save_pretrained(tmp_path / "saved")
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[-1]
    ids = tokenizer.encode(actions)[0]
    names = {"ids": ids}
    monkeypatch.chdir(folder)
    exec(code, names)
    np.testing.assert_allclose(names["actions"], tokenizer.decode(ids, horizon=4), rtol=1e-6, atol=1e-7)


def test_the_range_says_what_the_system_represents():
    x = np.array([[0.9], [1.1], [-300.0], [4.9]])
    limits = {"openvla": 0.75, "rt1": 0.75, "octo_uniform": 0.75, "octo_gaussian": 0.5, "gato": 0.25, "openpi": 0.75}
    for name, fraction in limits.items():
        assert PUBLISHED[name][0](1).clip_report(x) == fraction
    assert rt1(1, low=-1000.0, high=1.0).clip_report(x) == 0.5


def test_an_open_horizon_has_a_pad():
    tokenizer = openvla(2)
    assert (tokenizer.horizon, tokenizer.max_tokens, tokenizer.pad_id, tokenizer.vocab_size) == (None, None, 256, 257)
    ids = tokenizer.encode([np.zeros((1, 2), F32), np.ones((3, 2), F32)])
    assert ids.tolist() == [[127, 127, 256, 256, 256, 256], [255] * 6]
    assert gato(2).vocab_size == 1025


def test_made_while_a_policy_is_built_elsewhere():
    with torch.device("meta"):
        tokenizer = rt1(2, low=0.0, high=4.0)
    assert tokenizer.quantize(np.array([[4.0, 0.0]])).tolist() == [[4, 0]]
    assert tokenizer.get_params()["range"].low.device.type == "cpu"


def test_damage():
    x = np.random.default_rng(0).normal(0, 0.5, (500, 6, 3)).astype(F32)
    tokenizer = openvla(3, horizon=6)
    accept_damage(tokenizer, x, lambda t, horizon: SlotLayout([(0, 256)] * (3 * horizon), t.pad_id), 500)
    accept_allowed(tokenizer, x[:100], 100)


def test_a_missing_id_is_the_middle_of_the_range():
    actions, valid = rt1(1, low=2.0, high=4.0, horizon=2).try_decode([255])
    assert not valid
    assert actions[0] == 4
    assert abs(actions[1] - 3) < 0.01


# ---- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "given", "said"),
    [
        (openvla, {"low": -1.0}, "both low and high"),
        (openvla, {"low": [0, 0], "high": [1, 1]}, "one per dim"),
        (openvla, {"low": "a", "high": 1.0}, "one per dim"),
        (openvla, {"low": 1.0, "high": 0.0}, "low <= high"),
        (openvla, {"low": 0.0, "high": np.nan}, "finite"),
        (rt1, {"low": 1.0, "high": 1.0}, "some range"),
        (octo, {"low": 0.0, "high": 1e-6}, "some range"),
        (octo, {"strategy": "normal"}, "uniform"),
        (octo, {"strategy": "gaussian", "low": -1.0, "high": 1.0}, "normalise"),
        (rt1, {"bins": 1}, "bins"),
        (rt1, {"bins": 2.5}, "bins"),
        (rt1, {"horizon": 0}, "horizon"),
        (rt1, {"corrected": 1}, "corrected"),
    ],
    ids=str,
)
def test_unusable_parameters_are_refused(make, given, said):
    with pytest.raises(ActionTokenizerError, match=said):
        make(3, **given)


@pytest.mark.parametrize("action_dim", [0, -1, 2.0, True, None])
def test_unusable_dims_are_refused(action_dim):
    with pytest.raises(ActionTokenizerError, match="action_dim"):
        gato(action_dim)


@pytest.mark.parametrize("system", ["rt2", None, 3, ["rt1"]])
def test_unknown_systems_are_refused(system):
    with pytest.raises(ActionValueError, match="expected system among"):
        PresetTokenizer(system=system).fit(np.zeros((2, 3, 4)))


def test_a_constant_dim_survives_where_the_formula_lets_it():
    x = np.full((1, 2), 0.25)
    assert openvla(2, low=0.25, high=0.25).quantize(x).tolist() == x.tolist()
    assert openpi(2, low=0.25, high=0.25, corrected=True).quantize(x).tolist() == x.tolist()


@pytest.mark.parametrize(
    ("name", "value"), [("edges", -3.0), ("centres", 7.0), ("last", -2.0), ("neutral", 256), ("neutral", -1)]
)
def test_damaged_tensors_are_refused(name, value):
    tokenizer = rt1(2)
    tokenizer._check_loaded()
    getattr(tokenizer, name)[..., -1] = value
    with pytest.raises(FormatError, match="damaged"):
        tokenizer._check_loaded()


# ---- torchrl, where it installs ---------------------------------------------------------------------------------


def test_uniform_bins_equal_torchrls():
    """Ids equal but where torchrl's float32 arithmetic rounds a value over an edge; decoded to float32 rounding."""
    vla = pytest.importorskip("torchrl.data.vla")
    low, high = torch.tensor([-0.5, 0.0, -2.0]), torch.tensor([0.5, 3.0, 7.0])
    theirs = vla.UniformActionTokenizer(256, low=low, high=high)
    ours = BinningTokenizer(bins=256, range=Range(low, high)).fit(torch.rand(10, 5, 3, generator=torch.Generator()))
    x = torch.rand(20_000, 5, 3, generator=torch.Generator().manual_seed(0)) * (high - low) * 1.2 + low - 0.1
    ids, found = ours.encode(x).reshape(x.shape), theirs.encode(x)
    place = (x - low) / (high - low) * 256
    on_edge = (place - place.round()).abs() < 1e-4
    assert torch.equal(ids[~on_edge], found[~on_edge])
    assert on_edge.float().mean() < 1e-3
    torch.testing.assert_close(ours.decode(found.flatten(1)), theirs.decode(found), rtol=1e-6, atol=1e-6)
    assert theirs.vocab_size == ours.vocab_size


def test_openvla_equals_torchrls():
    vla = pytest.importorskip("torchrl.data.vla")
    theirs, ours = vla.VocabTailActionTokenizer(256, full_vocab_size=32000), openvla(7, horizon=1)
    x = torch.rand(100_000, 1, 7, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2
    tokens = theirs.encode(x)
    # torchrl's edges are float32, OpenVLA's float64: they tell values apart that lie between the two
    edges = torch.linspace(-1, 1, 256, dtype=torch.float64)
    beside = (x.double()[..., None] - edges).abs().amin(-1) < 2e-7
    assert torch.equal((32000 - 1 - ours.encode(x)).reshape(x.shape)[~beside], tokens[~beside])
    assert beside.float().mean() < 1e-3
    torch.testing.assert_close(ours.decode(31999 - tokens[:, 0]), theirs.decode(tokens), rtol=0, atol=1e-7)


def test_openvla_with_statistics_equals_torchrls():
    """Their decoding is float64 on the CPU: equal bit for bit."""
    vla = pytest.importorskip("torchrl.data.vla")
    rng = np.random.default_rng(0)
    low = np.append(rng.uniform(-0.1, -0.01, 6), -1.0)
    high = np.append(rng.uniform(0.01, 0.1, 6), 1.0)
    mask = [True] * 6 + [False]
    theirs = vla.VocabTailActionTokenizer(256, full_vocab_size=32000, norm_low=low, norm_high=high, norm_mask=mask)
    ours = openvla(7, low=low, high=high, horizon=1)
    tokens = torch.from_numpy(rng.integers(32000 - 256, 32000, (5000, 1, 7)))
    assert torch.equal(ours.decode(31999 - tokens[:, 0]), theirs.decode(tokens))
    x = torch.from_numpy(rng.uniform(low * 1.2, high * 1.2, (50_000, 1, 7)).astype(F32))
    found, expected = (32000 - 1 - ours.encode(x)).reshape(x.shape), theirs.encode(x)
    assert (found - expected).abs().max() <= 1
    assert (found != expected).float().mean() < 1e-4


@pytest.mark.parametrize("make", [openvla, rt1, octo, openpi])
def test_bounds_beyond_the_published_arithmetic(make):
    with pytest.raises(ActionValueError, match="at most 1e"):
        make(1, low=-3e38, high=3e38)
    with pytest.raises(ActionValueError, match="key a name"):
        make(1, key=3)
    with pytest.raises(ActionShapeError, match="65536"):
        make(1 << 40)
