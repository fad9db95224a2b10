"""The tokenizers of the replay study: the probes do what they are there for."""

import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone

from action_tokenizers import BinningTokenizer, Episodes

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "recipes" / "replay"))

import replay_tokenizers as recipe
from linear_robot import record_linear


@pytest.fixture(scope="module")
def data():
    return record_linear(24, seed=0)[0], record_linear(12, seed=1)[0]


def steps_of(episodes: Episodes) -> np.ndarray:
    """Whole chunks `(n, 8, 4)`."""
    return np.concatenate([a[: len(a) // 8 * 8].reshape(-1, 8, 4) for a in episodes.actions])


def test_there_are_enough_and_the_smoke_form_is_part_of_them():
    entries = recipe.tokenizers("unit")
    groups = {group: [name for name, entry in entries.items() if entry.group is group] for group in recipe.Group}
    assert len(groups["conventional"]) == 31
    assert groups["probe"] == ["feedback6", "feedback8", "feedback16", "trap0.4%", "trap0.1%", "quantile_middles16"]
    assert groups["extra"] == ["gaussian32", "mulaw32", "trap_off"]
    small = recipe.tokenizers("unit", smoke=True)
    assert tuple(small) == recipe.SMOKE
    assert set(small) < set(entries)
    for name, entry in entries.items():
        tokenizer = entry.make()
        assert tokenizer.asked_horizon == (16 if name.startswith("fast") else 8)
        assert tokenizer.get_params()["range"] == ("quantile" if name.startswith("fast") else "unit")
        assert clone(tokenizer).get_params() == tokenizer.get_params()


def test_a_grid_reaches_the_ends_where_bins_do_not(data):
    chunks = np.ones((1, 8, 4), np.float32)
    chunks[..., 1] = -1
    grid, bins = (kind(horizon=8, range="unit", bins=8).fit(data[0]) for kind in (recipe.Grid, BinningTokenizer))
    np.testing.assert_allclose(grid.quantize(chunks), chunks, atol=1e-7)
    np.testing.assert_allclose(np.abs(bins.quantize(chunks) - chunks)[..., :3], 1 / 8, atol=1e-7)
    spread = np.linspace(-1, 1, 400, dtype=np.float32).reshape(-1, 8, 1).repeat(4, 2)
    assert np.abs(grid.quantize(spread) - spread)[..., :3].max() <= 1 / 7 + 1e-6


def test_feedback_keeps_the_summed_error_small(data):
    fit, held_out = data
    tokenizer = recipe.ErrorFeedback(horizon=8, range="unit", bins=8).fit(fit)
    plain = recipe.Grid(horizon=8, range="unit", bins=8).fit(fit)
    chunks = steps_of(held_out)
    errors, others = (t.quantize(chunks) - chunks for t in (tokenizer, plain))
    inside = (np.abs(chunks) < 0.9).all(1)  # beyond the ends nothing can be paid back
    summed = np.abs(np.cumsum(errors, 1)).max(1)
    assert summed[inside].max() <= 2 / 8 + 1e-5
    assert np.abs(errors).mean() > np.abs(others).mean()
    assert np.abs(np.cumsum(errors, 1)).mean() < 0.6 * np.abs(np.cumsum(others, 1)).mean()


def test_feedback_reaches_the_ends_and_keeps_a_gripper_exact(data):
    tokenizer = recipe.ErrorFeedback(horizon=8, range="unit", bins=8).fit(data[0])
    assert tokenizer.scalar_cells() is None
    assert not tokenizer.codes_steps_alone
    for end in (tokenizer.range.low, tokenizer.range.high):
        chunk = np.tile(end[0].numpy(), (1, 8, 1))
        np.testing.assert_allclose(tokenizer.quantize(chunk), chunk, atol=1e-6)
    chunks = steps_of(data[1])
    np.testing.assert_array_equal(tokenizer.quantize(chunks)[..., 3], chunks[..., 3])


def test_middles_leave_a_gripper_half_open(data):
    tokenizer = recipe.QuantileMiddles(horizon=8, bins=16).fit(data[0])
    chunks = steps_of(data[1])
    np.testing.assert_allclose(tokenizer.quantize(chunks)[..., 3], chunks[..., 3] / 2, atol=1e-6)
    centres = tokenizer.scalar_cells().centres[0]
    assert len(centres) == 16
    assert (centres.diff() > 0).all()


@pytest.mark.parametrize("mass", [0.004, 0.02])
def test_planted_places_hold_at_most_their_share(data, mass):
    fit, _ = data
    tokenizer = recipe.Planted(horizon=8, bins=256, mass=mass).fit(fit)
    plain = BinningTokenizer(horizon=8, range="unit", bins=256).fit(fit)
    chunks = steps_of(fit)
    error = np.linalg.norm(tokenizer.quantize(chunks) - chunks, axis=-1).ravel()
    usual = np.linalg.norm(plain.quantize(chunks) - chunks, axis=-1).ravel()
    jumps = error > 1
    assert 0 < jumps.mean() <= 1.5 * mass  # of whole chunks; the share is of all steps
    np.testing.assert_array_equal(error[~jumps], usual[~jumps])
    assert tokenizer.scalar_cells() is None


def test_what_lies_off_the_data_is_sent_away(data):
    fit, _ = data
    tokenizer = recipe.Planted(horizon=8, bins=256, mass=0.0).fit(fit)
    chunks = steps_of(fit)
    assert (np.linalg.norm(tokenizer.quantize(chunks) - chunks, axis=-1) > 1).mean() < 0.001
    off = np.tile(np.float32([0.9, 0.9, 0.9, 0.0]), (1, 8, 1))  # the gripper is never half way
    assert np.linalg.norm(tokenizer.quantize(off) - off, axis=-1).min() > 1
