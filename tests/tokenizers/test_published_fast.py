"""Published FAST folders: the original's ids and actions, without its code and without its accidents.

The judge is the stand-in of `recipes/benchmarks`, which `tests/recipes` proves to be the original, and a validator in
plain Python. Without the published folders or the `tokenizers` library the tests that need them are skipped.
"""

import copy
import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import textwrap
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.fft import dct, idct

from action_tokenizers import (
    ActionShapeError,
    ActionTokenizer,
    ActionValueError,
    ChunkSample,
    FASTTokenizer,
    FormatError,
    Range,
    TokenError,
)
from action_tokenizers.base import range_of
from action_tokenizers.data.synthetic import smooth_chunks
from action_tokenizers.testing import CHECKS, Trial, damaged, sample_allowed
from action_tokenizers.tokenizers.published_fast import PublishedFASTTokenizer
from tests.fakes.damage import accept_allowed, recorded
from tests.fakes.published import TextLayout, all_bytes, entry, random_data, whole_json, write_published
from tests.fakes.workers import encode_in_another_process, encode_in_threads, encode_in_workers

ROOT = Path(__file__).resolve().parents[2]
PRETRAINED = ROOT.parent / "shared" / "pretrained"
PLUS, UNIVLA = "physical-intelligence-fast", "univla-calvin-fast"
FOLDERS = [PLUS, UNIVLA]
PLACES = ["tokenizer.json", "bpe_tokenizer/tokenizer.json"]
SHAPES = [(10, 7), (50, 14), (33, 3), (1, 1), (1, 2), (100, 1), (400, 2), (7, 1), (16, 32)]
needs_shared = pytest.mark.skipif(not PRETRAINED.is_dir(), reason="../shared/pretrained is not here")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rayon's pool must not be alive when a test forks."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="module")
def stand_in() -> Any:
    """The class of the stand-in."""
    pytest.importorskip("tokenizers", reason="the FAST stand-in uses tokenizers")
    folder = str(ROOT / "recipes" / "benchmarks")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    from reference_fast import ReferenceFAST

    return ReferenceFAST


@pytest.fixture(scope="module")
def plus() -> ActionTokenizer:
    if not PRETRAINED.is_dir():
        pytest.skip("../shared/pretrained is not here")
    return ActionTokenizer.from_pretrained(PRETRAINED / PLUS)


def with_facts(folder: Path, target: Path, place: str = PLACES[0], **facts: Any) -> Path:
    """A copy of a published folder, of which processor_config.json says more."""
    (target / place).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "tokenizer.json", target / place)
    config = json.loads((folder / "processor_config.json").read_text())
    (target / "processor_config.json").write_text(json.dumps({**config, **facts}))
    return target


def rows_of(tokenizer: ActionTokenizer, ids: np.ndarray) -> list[list[int]]:
    return [row[row != tokenizer.pad_id].tolist() for row in ids]


def overshoot(horizon: int, scale: float) -> float:
    """Half a rounding step per coefficient, added up in the worst value."""
    matrix = idct(np.eye(horizon), axis=0, norm="ortho")
    return float(0.5 / scale * np.abs(matrix).sum(1).max())


def bounds_of(tokenizer: ActionTokenizer, horizon: int) -> tuple[int, int, float, float]:
    """Bound of a coefficient, smallest coefficient, limit, and the largest decoded value."""
    params = tokenizer.get_params()
    bound = round(params["limit"] * params["scale"] * horizon**0.5)
    most = params["limit"] + overshoot(horizon, params["scale"])
    return bound, params["min_token"], params["limit"], most


def tiny(folder: Path, merged: tuple[bytes, ...] = (b"ddd", b"dedd"), **config: Any) -> ActionTokenizer:
    """An import with a vocabulary of all bytes whose zero is the letter d."""
    return ActionTokenizer.from_pretrained(write_published(folder, whole_json(*all_bytes(list(merged))), **config))


# ---- the same ids and actions as the original -------------------------------------------------------------------

GOLDEN = """
    import json, socket, sys

    def refuse(*args, **kwargs):
        raise RuntimeError("the network was touched")

    for module in ("tokenizers", "transformers"):
        sys.modules[module] = None
    socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse

    import numpy as np
    from action_tokenizers import ActionTokenizer

    found = {}
    for folder, golden_file in json.loads(sys.argv[1]):
        tokenizer = ActionTokenizer.from_pretrained(folder)
        with np.load(golden_file) as golden:
            for name in sorted({key.split("/")[0] for key in golden.files}):
                actions, ids, decoded = (golden[f"{name}/{part}"] for part in ("actions", "ids", "decoded"))
                t, d = actions.shape[1:]
                ours = tokenizer.encode(actions)
                expected = np.where(ids < 0, tokenizer.pad_id, ids)
                again = tokenizer.decode(ours, time_horizon=t, action_dim=d)
                found[f"{folder}: {name}"] = (
                    ours.shape == expected.shape and int((ours != expected).sum()),
                    float(np.abs(again - decoded).max()),
                    len(actions),
                )
    print(json.dumps(found))
"""


@needs_shared
def test_golden_vectors_without_the_libraries_and_the_network(tmp_path):
    work = []
    for folder in FOLDERS:
        for i, place in enumerate(PLACES):
            target = with_facts(PRETRAINED / folder, tmp_path / f"{folder}-{i}", place)
            work.append((str(target), str(PRETRAINED / folder / "golden.npz")))
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(GOLDEN), json.dumps(work)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 14
    for name, (wrong, error, chunks) in found.items():
        assert wrong is not False, name
        assert wrong == 0, name
        assert error <= 1e-6, name
        assert chunks > 50, name


def inputs(t: int, d: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(t * 100 + d)
    n = 20 if t * d > 500 else 60
    alternating = np.where(np.arange(t) % 2, 1.0, -1.0)[:, None] * np.ones(d)
    corners = [np.ones((t, d)), -np.ones((t, d)), alternating, np.zeros((t, d))]
    return {
        "smooth": smooth_chunks(n, t, d, seed=1),
        "noise": rng.uniform(-1, 1, (n, t, d)).astype(np.float32),
        "large": rng.uniform(-4.9, 4.9, (n, t, d)).astype(np.float32),
        "corners": np.array([scale * chunk for scale in (1, 0.05, 4.9) for chunk in corners], np.float32),
        "ties": (rng.integers(-20, 20, (n, t, d)) / np.float32(20)).astype(np.float32),
    }


@needs_shared
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("folder", FOLDERS)
def test_ids_and_actions_are_the_stand_ins(folder, shape, stand_in):
    tokenizer, reference = (
        ActionTokenizer.from_pretrained(PRETRAINED / folder),
        stand_in.from_folder(PRETRAINED / folder),
    )
    t, d = shape
    _, low, limit, most = bounds_of(tokenizer, t)
    for kind, actions in inputs(t, d).items():
        expected = reference.encode(actions)
        ids = tokenizer.encode(actions)
        assert rows_of(tokenizer, ids) == expected, kind
        decoded = tokenizer.decode(ids, horizon=t, action_dim=d)
        theirs = reference.decode(expected, t, d)
        # a chunk whose low coefficients were clipped may decode beyond the limit: there we clamp
        np.testing.assert_allclose(decoded, np.clip(theirs, -most, most), rtol=0, atol=1e-6, err_msg=kind)
        coefficients = np.around(dct(actions, axis=1, norm="ortho") * tokenizer.get_params()["scale"])
        intact = (coefficients >= low).all((1, 2))
        np.testing.assert_allclose(decoded[intact], theirs[intact], rtol=0, atol=1e-6, err_msg=kind)
        assert np.abs(theirs[intact]).max(initial=0) <= most
        assert kind == "corners" or intact.any() or limit * t**0.5 * tokenizer.get_params()["scale"] > -low
    assert reference.failures == 0


@needs_shared
@pytest.mark.parametrize("folder", FOLDERS)
def test_float64_in_is_float32_in(folder):
    """The original takes the precision that comes; every door here is float32, as the policies' are."""
    tokenizer = ActionTokenizer.from_pretrained(PRETRAINED / folder)
    actions = smooth_chunks(20, 10, 7)
    np.testing.assert_array_equal(tokenizer.encode(actions.astype(np.float64)), tokenizer.encode(actions))


@needs_shared
def test_a_chunk_has_the_same_ids_in_every_batch(plus):
    """Near ties must not round by how many chunks the transform is given."""
    rng = np.random.default_rng(3)
    actions = (rng.integers(-20, 20, (700, 8, 3)) / 20).astype(np.float32)
    whole = rows_of(plus, plus.encode(actions))
    for n in (1, 2, 3, 5, 64, 257):
        assert rows_of(plus, plus.encode(actions[:n])) == whole[:n]
        assert rows_of(plus, plus.encode(actions[-n:])) == whole[-n:]


# ---- refits made elsewhere --------------------------------------------------------------------------------------


def save_refit(reference: Any, folder: Path, place: str = PLACES[0], **facts: Any) -> Path:
    """What the published processor's `save_pretrained` leaves of a refit."""
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    reference.bpe.save(str(folder / place))
    config = {
        "action_dim": None,
        "min_token": reference.min_token,
        "scale": reference.scale,
        "time_horizon": None,
        "vocab_size": reference.vocab_size,
    }
    (folder / "processor_config.json").write_text(json.dumps({**config, **facts}))
    return folder


REFITS: dict[str, dict[str, Any]] = {
    "plain": {"scale": 10, "vocab_size": 600},
    "fine": {"scale": 100, "vocab_size": 1500},
    "coarse": {"scale": 1, "vocab_size": 60},
    "hardly any merges": {"scale": 10, "vocab_size": 200},
    "a fraction": {"scale": 2.5, "vocab_size": 300},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("params", REFITS.values(), ids=REFITS)
def test_refits_of_the_stand_in(params, place, stand_in, tmp_path):
    """With dead ids, without some bytes, with small vocabularies: the ids of the stand-in, or a refusal."""
    train = smooth_chunks(150, 12, 3, seed=0)
    reference = stand_in.fit(list(train), **params)
    tokenizer = ActionTokenizer.from_pretrained(save_refit(reference, tmp_path / "t", place))
    assert isinstance(tokenizer, PublishedFASTTokenizer)
    assert tokenizer.vocab_size == len(reference) + 1
    assert tokenizer.get_params()["vocab_size"] == params["vocab_size"]
    fresh = smooth_chunks(150, 12, 3, seed=1)
    for actions in (train, fresh, 0.3 * fresh, fresh[:, :5], fresh[:, :, :1]):
        t, d = actions.shape[1:]
        expected = reference.encode(actions)
        reference.failures = 0
        lost = np.array([not reference.decode([row], t, d).any() for row in expected]) & actions.any((1, 2))
        for chunk, row, is_lost in zip(actions, expected, lost, strict=True):
            if reference.failures and is_lost:
                continue
            assert tokenizer.encode(chunk).tolist() == row
        kept = actions[~lost]
        ids = tokenizer.encode(kept)
        theirs = reference.decode([row for row, is_lost in zip(expected, lost, strict=True) if not is_lost], t, d)
        most = bounds_of(tokenizer, t)[3]
        np.testing.assert_allclose(
            tokenizer.decode(ids, horizon=t, action_dim=d), np.clip(theirs, -most, most), rtol=0, atol=1e-6
        )


def test_a_coefficient_that_a_refit_cannot_spell_is_refused_where_the_original_drops_it(stand_in, tmp_path):
    reference = stand_in.fit(list(smooth_chunks(100, 12, 3)), scale=10, vocab_size=400)
    tokenizer = ActionTokenizer.from_pretrained(save_refit(reference, tmp_path))
    actions = smooth_chunks(6, 12, 3, seed=1)
    actions[4] = 4
    assert not reference.decode(reference.encode(actions[4:5]), 12, 3).any()  # a chunk of zeros
    with pytest.raises(ActionValueError, match=r"coefficients that this vocabulary can spell.* chunk 4"):
        tokenizer.encode(actions)
    assert tokenizer.encode(actions[:4]).shape[0] == 4
    with pytest.raises(ActionValueError, match=r"chunk 0\b"):
        tokenizer.encode(actions[4])


def test_dead_ids_are_understood_as_the_original_does(stand_in, tmp_path):
    """Raw characters that no encoding writes decode like the bytes whose twins they are."""
    symbols = (np.arange(256)[:, None, None] - 128).astype(np.float32)
    reference = stand_in.fit(list(symbols) * 3, scale=1, vocab_size=700)
    tokenizer = PublishedFASTTokenizer.from_published(save_refit(reference, tmp_path), limit=200)
    np.testing.assert_array_equal(tokenizer.encode(symbols)[:, 0] >= 0, True)
    assert rows_of(tokenizer, tokenizer.encode(symbols)) == reference.encode(symbols)
    vocabulary = reference.bpe.get_vocab()
    raw = np.array([[vocabulary[chr(symbol)]] for symbol in range(256)])
    # the raw characters 0x80.. are two bytes as they stand, the printable ones among them are single bytes
    theirs = [reference.decode([row], 1, 1) for row in raw.tolist()]
    for row, expected in zip(raw, theirs, strict=True):
        actions, valid = tokenizer.try_decode(row, horizon=1, action_dim=1)
        spoken = reference.bpe.decode(row.tolist(), skip_special_tokens=False)
        assert valid == (len(spoken) == 1 and spoken != "\ufffd")
        if valid:
            np.testing.assert_allclose(actions, expected[0], atol=1e-6)


# ---- the contract -----------------------------------------------------------------------------------------------

# checks of testing.py that fit a clone: an import refuses to be fitted, and says how to go on
FITS = {
    "copies_are_equal",
    "fit_returns_self",
    "equal_fits_are_equal_bytes",
    "refit_replaces_everything",
    "inputs_stay_unchanged",
    "open_horizon",
    "bad_actions_raise",
    "saved_and_loaded_is_the_same",
    "autocast_changes_nothing",
    "default_dtype_changes_nothing",
    "state_dict_round_trip",
    "provenance_is_reproducible",
}
# without a range it takes normalised actions: there are no keys to fit, and a decoded value may overshoot the limit
OPEN = {"keys_are_apart", "decoded_actions_are_inside_the_range", "damaged_ids_decode_or_raise"}


class ImportTrial(Trial):
    """A trial of a tokenizer that is loaded, not fitted."""

    def __init__(self, loaded: ActionTokenizer) -> None:
        super().__init__(loaded, smooth_chunks(300, 8, 4, seed=0))
        self.loaded = loaded

    @cached_property
    def fitted(self) -> ActionTokenizer:
        return copy.deepcopy(self.loaded)


MADE_UP = "a vocabulary made up"


@pytest.fixture(scope="module", params=[*FOLDERS, MADE_UP])
def loaded(request, tmp_path_factory) -> ActionTokenizer:
    folder, facts = tmp_path_factory.mktemp("published"), {"time_horizon": 8, "action_dim": 4}
    if request.param == MADE_UP:
        return tiny(folder, **facts)
    if not PRETRAINED.is_dir():
        pytest.skip("../shared/pretrained is not here")
    return ActionTokenizer.from_pretrained(with_facts(PRETRAINED / request.param, folder, **facts))


@pytest.fixture(scope="module")
def open_trial(loaded) -> ImportTrial:
    return ImportTrial(loaded)


@pytest.fixture(scope="module")
def ranged_trial(loaded) -> ImportTrial:
    return ImportTrial(loaded.with_range(Range([-0.9] * 4, [0.9] * 4)))


@pytest.mark.parametrize("name", [name for name in CHECKS if name not in FITS | OPEN])
def test_contract(name, open_trial):
    CHECKS[name](open_trial)


@pytest.mark.parametrize("name", [name for name in CHECKS if name not in FITS])
def test_contract_with_a_range(name, ranged_trial):
    CHECKS[name](ranged_trial)


def test_the_checks_left_out_are_checks():
    assert set(CHECKS) >= FITS | OPEN
    assert not FITS & OPEN


def test_what_the_checks_left_out_ask_for_besides(tmp_path):
    """Nothing is written to what a call is given; autocast, another default dtype and a second save change nothing."""
    tokenizer = tiny(tmp_path / "t", time_horizon=8, action_dim=2)
    actions = smooth_chunks(300, 8, 2)
    given, tensor = actions.copy(), torch.from_numpy(actions.copy())
    ids = tokenizer.encode(given)
    decoded = tokenizer.decode(ids)
    copied = ids.copy()
    for call in (tokenizer.decode, tokenizer.try_decode, tokenizer.length, tokenizer.bits, tokenizer.allowed):
        call(copied)
    for call in (tokenizer.encode, tokenizer.quantize, tokenizer.clip_report):
        call(given)
        call(tensor)
    np.testing.assert_array_equal(given, actions)
    np.testing.assert_array_equal(tensor.numpy(), actions)
    np.testing.assert_array_equal(copied, ids)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(tokenizer.encode(actions), ids)
        np.testing.assert_array_equal(tokenizer.decode(ids), decoded)
    first = tokenizer.save_pretrained(tmp_path / "first")
    second = ActionTokenizer.from_pretrained(first).save_pretrained(tmp_path / "second")
    assert {f.name: f.read_bytes() for f in first.iterdir()} == {f.name: f.read_bytes() for f in second.iterdir()}
    assert set(tokenizer.provenance) == {"library", "imported"}
    bad = actions[:5].copy()
    bad[3, 7, 1] = np.inf
    with pytest.raises(ActionValueError, match="chunk 3, step 7, dim 1"):
        tokenizer.encode(bad)


def test_it_refuses_to_be_fitted(tmp_path):
    tokenizer = tiny(tmp_path)
    for target in (tokenizer, PublishedFASTTokenizer()):
        with pytest.raises(ActionValueError, match="with_range"):
            target.fit(smooth_chunks(30, 8, 4))
    assert tokenizer.is_fitted


def test_facts_are_open_or_the_files(tmp_path):
    tokenizer = tiny(tmp_path / "open")
    assert (tokenizer.horizon, tokenizer.action_dim, tokenizer.max_tokens) == (None, None, None)
    assert tokenizer.vocab_size == len(tokenizer.ends) + 1 == tokenizer.pad_id + 1
    assert tokenizer.range_keys == ("default",)
    actions = smooth_chunks(4, 6, 2)
    ids = tokenizer.encode(actions)
    for facts in ({}, {"horizon": 6}, {"action_dim": 2}):
        with pytest.raises(ActionShapeError, match="left it open"):
            tokenizer.decode(ids, **facts)
    assert tokenizer.decode(ids, horizon=6, action_dim=2).shape == (4, 6, 2)
    assert tokenizer.decode(ids, time_horizon=6, action_dim=2).shape == (4, 6, 2)
    assert tokenizer.max_tokens_for(6, 2) == 24
    assert tokenizer.quantize(actions).shape == actions.shape
    # nothing sticks: another shape afterwards is another shape
    other = smooth_chunks(4, 9, 3)
    assert tokenizer.decode(tokenizer.encode(other), horizon=9, action_dim=3).shape == other.shape
    stored = tiny(tmp_path / "stored", time_horizon=6, action_dim=2)
    assert (stored.horizon, stored.action_dim, stored.max_tokens) == (6, 2, 24)
    np.testing.assert_array_equal(stored.decode(ids), tokenizer.decode(ids, horizon=6, action_dim=2))
    with pytest.raises(ActionShapeError, match="horizon"):
        stored.encode(other)


def test_longer_than_any_chunk(tmp_path):
    """The transform is a matrix of horizon x horizon."""
    tokenizer = tiny(tmp_path)
    for call, given in ((tokenizer.encode, np.zeros((4097, 1))), (tokenizer.quantize, np.zeros((1, 4097, 1)))):
        with pytest.raises(ActionShapeError, match="at most 4096 steps, got 4097"):
            call(given)
    with pytest.raises(ActionShapeError, match=r"at most (4096 steps|67108864 values)"):
        tokenizer.decode([1], horizon=1 << 40, action_dim=1)


def test_lists_of_chunks_of_several_lengths(tmp_path):
    tokenizer = tiny(tmp_path)
    chunks = [chunk[: 2 + i] for i, chunk in enumerate(smooth_chunks(5, 8, 3))]
    ids = tokenizer.encode(chunks)
    for row, chunk in zip(ids, chunks, strict=True):
        assert tokenizer.length(row, horizon=len(chunk), action_dim=3) > 0
        np.testing.assert_array_equal(
            tokenizer.decode(row, horizon=len(chunk), action_dim=3), tokenizer.quantize(chunk)
        )


@pytest.mark.parametrize("size", [1e3, 1e30, 3.4e38])
def test_no_action_is_too_large_to_encode(size, tmp_path):
    """Even where the sums of the transform leave float32."""
    tokenizer = tiny(tmp_path, time_horizon=8, action_dim=2)
    sign = np.where(np.arange(8) % 2, 1, -1)[:, None]
    chunks = np.stack([np.full((8, 2), size), np.full((8, 2), -size), size * sign * [1, -1]]).astype(np.float32)
    most = bounds_of(tokenizer, 8)[3]
    decoded = tokenizer.quantize(chunks)
    assert np.isfinite(decoded).all()
    assert np.abs(decoded).max() <= most + 1e-6
    np.testing.assert_array_equal(decoded, tokenizer.quantize(np.clip(chunks, -1e3, 1e3)))
    assert decoded[0].min() > 4.9
    assert tokenizer.clip_report(chunks).tolist() == [1, 1]


# ---- damage -----------------------------------------------------------------------------------------------------


class Judge:
    """What the original makes of a row, and what may be accepted of that."""

    def __init__(self, tokenizer: ActionTokenizer, reference: Any, horizon: int, action_dim: int) -> None:
        self.reference, self.size = reference, horizon * action_dim
        bound, low, self.limit, self.most = bounds_of(tokenizer, horizon)
        self.low, self.high, self.shift = max(low, -bound), min(bound, 0xD7FF + low), low
        self.shape, self.scale = (horizon, action_dim), tokenizer.get_params()["scale"]

    def actions(self, coefficients: np.ndarray) -> np.ndarray:
        return idct(coefficients.reshape(self.shape) / self.scale, axis=0, norm="ortho")

    def read(self, row: list[int]) -> tuple[bool, bool, np.ndarray]:
        """Whether the original fails, whether a coefficient is impossible, and what it decodes to."""
        text = self.reference.bpe.decode(row, skip_special_tokens=False)
        if len(text) != self.size:
            return True, False, np.zeros(self.shape)
        coefficients = np.array([ord(c) for c in text], np.float64) + self.shift
        impossible = bool(((coefficients < self.low) | (coefficients > self.high)).any())
        return False, impossible, self.actions(coefficients)


def repaired(layout: TextLayout, judge: Judge, row: list[int]) -> np.ndarray:
    """The longest valid prefix, zero for what is missing, inside the limit."""
    kept, text = layout.read(row, judge.size)
    coefficients = np.zeros(judge.size)
    coefficients[: len(text)] = [ord(c) + judge.shift for c in text]
    most = judge.most if len(text) == judge.size else judge.limit
    assert kept <= len(row)
    return np.clip(judge.actions(coefficients), -most, most)


def judge_rows(tokenizer: ActionTokenizer, judge: Judge, rows: list[list[int]]) -> dict[str, int]:
    """Every row: flagged exactly where the original fails or says the impossible, else the original's actions."""
    t, d = judge.shape
    actions, valid = tokenizer.try_decode(rows, horizon=t, action_dim=d)
    assert np.isfinite(actions).all()
    assert np.abs(actions).max() <= judge.most + 1e-5
    count = {"rows": len(rows), "valid": 0, "failed": 0, "impossible": 0}
    accepted, expected = [], []
    for i, row in enumerate(rows):
        fails, impossible, theirs = judge.read(row)
        count["failed"] += fails
        count["impossible"] += impossible
        count["valid"] += int(valid[i])
        assert valid[i] == (not fails and not impossible), row
        if valid[i]:
            accepted.append(actions[i])
            expected.append(np.clip(theirs, -judge.most, judge.most))
    np.testing.assert_allclose(np.array(accepted), np.array(expected), rtol=0, atol=2e-6)
    for row, fine in zip(rows[:300], valid[:300], strict=True):
        if not fine:
            with pytest.raises(TokenError):
                tokenizer.decode(row, horizon=t, action_dim=d)
    return count


def pool_of(tokenizer: ActionTokenizer, t: int, d: int) -> list[list[int]]:
    actions = np.concatenate([smooth_chunks(300, t, d, seed=5), inputs(t, d)["noise"], inputs(t, d)["large"]])
    return rows_of(tokenizer, tokenizer.encode(actions))


@needs_shared
@pytest.mark.parametrize(
    ("folder", "shape", "n"), [(PLUS, (10, 7), 10_000), (UNIVLA, (10, 7), 2000), (PLUS, (1, 2), 2000)]
)
def test_one_id_replaced(folder, shape, n, stand_in):
    """No silent zero chunk, nothing that is not finite, nothing beyond the limit and the rounding overshoot."""
    tokenizer = ActionTokenizer.from_pretrained(PRETRAINED / folder)
    judge = Judge(tokenizer, stand_in.from_folder(PRETRAINED / folder), *shape)
    rng = np.random.default_rng(0)
    pool = pool_of(tokenizer, *shape)
    rows = []
    for i in range(n):
        row = list(pool[i % len(pool)])
        row[int(rng.integers(0, len(row)))] = int(rng.integers(0, tokenizer.vocab_size - 1))
        rows.append(row)
    count = judge_rows(tokenizer, judge, rows)
    assert count["failed"] > n / 20
    assert count["valid"] > n / 100
    actions, valid = tokenizer.try_decode(rows, horizon=shape[0], action_dim=shape[1])
    # the original's zeros for a failure are flagged; what says it is valid and is all zeros, said zeros
    for i in np.flatnonzero(valid & ~actions.any((1, 2))):
        assert not judge.read(rows[i])[2].any()


@needs_shared
@pytest.mark.parametrize(("folder", "shape"), [(PLUS, (10, 7)), (UNIVLA, (7, 3)), (PLUS, (1, 1)), (PLUS, (2, 1))])
def test_ids_dropped_added_cut_and_drawn(folder, shape, stand_in):
    tokenizer = ActionTokenizer.from_pretrained(PRETRAINED / folder)
    judge = Judge(tokenizer, stand_in.from_folder(PRETRAINED / folder), *shape)
    pool = pool_of(tokenizer, *shape)
    longest = max(map(len, pool))
    ids = np.array([row + [0] * (longest - len(row)) for row in pool])
    v = tokenizer.vocab_size - 1
    made = damaged(ids, np.array(list(map(len, pool))), v, 3000, np.random.default_rng(1))
    rows = [row.tolist() for row in made if ((row >= 0) & (row < v)).all()]
    count = judge_rows(tokenizer, judge, rows + pool)
    assert count["failed"] > 1000
    assert count["valid"] >= len(pool)


@needs_shared
@pytest.mark.parametrize("folder", FOLDERS)
def test_repair_keeps_the_longest_valid_prefix(folder, stand_in):
    """Checked by a validator that reads bytes as Python does."""
    shape = (6, 3)
    tokenizer = ActionTokenizer.from_pretrained(PRETRAINED / folder)
    judge = Judge(tokenizer, stand_in.from_folder(PRETRAINED / folder), *shape)
    layout = TextLayout.of(tokenizer, shape[0])
    pool = pool_of(tokenizer, *shape)[::9]
    longest = max(map(len, pool))
    ids = np.array([row + [0] * (longest - len(row)) for row in pool])
    made = damaged(ids, np.array(list(map(len, pool))), tokenizer.vocab_size, 600, np.random.default_rng(2))
    rows = [row.tolist() for row in made]
    t, d = shape
    actions, valid = tokenizer.try_decode(rows, horizon=t, action_dim=d)
    lengths = tokenizer.length(rows, horizon=t, action_dim=d)
    for row, action, fine, length in zip(rows, actions, valid, lengths, strict=True):
        kept, text = layout.read(row, judge.size)
        assert length == (kept if len(text) == judge.size else -1)
        assert fine == layout.valid(row, judge.size, tokenizer.pad_id)
        np.testing.assert_allclose(action, repaired(layout, judge, row), rtol=0, atol=2e-6)
        if fine:
            np.testing.assert_array_equal(tokenizer.decode(row, horizon=t, action_dim=d), action)
        else:
            with pytest.raises(TokenError):
                tokenizer.decode(row, horizon=t, action_dim=d)
            repair = tokenizer.decode(row, horizon=t, action_dim=d, errors="repair")
            np.testing.assert_array_equal(repair, action)
        prefix = row[:kept]
        whole_prefix = tokenizer.decode_prefix(prefix, horizon=t, action_dim=d)
        np.testing.assert_array_equal(whole_prefix, action)
        if kept < len(row) and row[kept] != tokenizer.pad_id:
            with pytest.raises(TokenError):
                tokenizer.decode_prefix(row[: kept + 1], horizon=t, action_dim=d)


def test_nothing_said_is_a_zero_chunk_that_says_it_is_invalid(tmp_path):
    tokenizer = tiny(tmp_path)
    actions, valid = tokenizer.try_decode(np.empty((2, 0), np.int64), horizon=4, action_dim=2)
    assert not valid.any()
    assert not actions.any()


# ---- what may follow --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranged(tmp_path_factory) -> ActionTokenizer:
    """FAST+ for the embedded demonstrations, with a range of their quantiles."""
    if not PRETRAINED.is_dir():
        pytest.skip("../shared/pretrained is not here")
    train, _ = recorded(16)
    low, high = np.quantile(train.reshape(-1, train.shape[2]), [0.01, 0.99], axis=0)
    folder = with_facts(PRETRAINED / PLUS, tmp_path_factory.mktemp("plus"), time_horizon=16)
    return ActionTokenizer.from_pretrained(folder).with_range(Range(low, high))


def test_recorded_ids_are_allowed_and_sampled_ones_decode(ranged):
    train, held_out = recorded(16)
    actions = np.concatenate([held_out, train])[:2000]
    assert len(actions) == 2000
    accept_allowed(ranged, actions, 100)


@needs_shared
@pytest.mark.parametrize("folder", FOLDERS)
def test_sampled_sequences_decode_strictly(folder, tmp_path):
    facts = {"time_horizon": 3, "action_dim": 2}
    tokenizer = ActionTokenizer.from_pretrained(with_facts(PRETRAINED / folder, tmp_path, **facts))
    ids = sample_allowed(tokenizer, 300, np.random.default_rng(0))
    decoded = tokenizer.decode(ids)
    assert np.abs(decoded).max() <= bounds_of(tokenizer, 3)[3] + 1e-5
    assert np.abs(decoded).max() > 4
    assert len({row.tobytes() for row in decoded}) > 250


def test_allowed_is_what_enumeration_finds_on_tiny_vocabularies(tmp_path):
    """Of vocabularies with missing bytes, characters cut across ids, overlong forms, surrogates and broken text."""
    rng = np.random.default_rng(0)
    tried = cut = 0
    zeros = ["A", "\x7f", "\x80", "ß", "\u0800"]
    while tried < 40:
        data = random_data(rng)
        zero = zeros[tried % len(zeros)]
        number = {d: i for i, d in enumerate(data)}
        if not all(bytes([b]) in number for b in zero.encode()):
            continue
        whole = whole_json([entry(d) for d in data], [])
        folder = write_published(tmp_path / str(tried), whole, min_token=-ord(zero))
        limit = float(rng.choice([0.1, 5, 300]))
        inside = [d[:k] for d in data for k in (1, 2) if all(b & 0xC0 == 0x80 for b in d[:k])]
        if not all(bytes([b]) in number for d in inside for b in d):
            with pytest.raises(FormatError, match="every byte that entries begin with"):
                PublishedFASTTokenizer.from_published(folder, limit=limit)
            continue
        tried += 1
        tokenizer = PublishedFASTTokenizer.from_published(folder, limit=limit)
        t, d = ((1, 1), (1, 2), (3, 1), (2, 2))[tried % 4]
        layout = TextLayout.of(tokenizer, t)
        facts = {"horizon": t, "action_dim": d}
        for _ in range(3):
            row: list[int] = []
            pending, left, choices = b"", t * d, []
            while left:
                expected = np.zeros(tokenizer.vocab_size, np.bool_)
                expected[list(layout.following(pending, left))] = True
                np.testing.assert_array_equal(tokenizer.allowed(row, **facts), expected)
                choices.append(expected.sum())
                row.append(int(rng.choice(np.flatnonzero(expected))))
                pending, said = layout.after(pending, row[-1], left) or (b"", "")
                left -= len(said)
                cut += len(pending) > 0
            assert np.flatnonzero(tokenizer.allowed(row, **facts)).tolist() == [tokenizer.pad_id]
            assert tokenizer.length(row, **facts) == len(row)
            np.testing.assert_allclose(tokenizer.bits(row, **facts), np.log2(choices).sum(), atol=1e-9)
            tokenizer.decode(row, **facts)
            back = tokenizer.decode(row, **facts)
            for i in range(tokenizer.vocab_size):
                found = layout.valid([i], t * d, tokenizer.pad_id)
                assert tokenizer.try_decode([i], **facts)[1] == found
            assert np.isfinite(back).all()
    assert cut > 30


@needs_shared
@pytest.mark.parametrize("folder", FOLDERS)
def test_choices_are_those_of_the_contract(folder):
    tokenizer = ActionTokenizer.from_pretrained(PRETRAINED / folder)
    for t, d in ((1, 1), (5, 3)):
        actions = np.concatenate([inputs(t, d)["noise"][:6], smooth_chunks(6, t, d)])
        ids = torch.from_numpy(tokenizer.encode(actions))
        whole = tokenizer._parse(ids, t, d)[0]
        for kept in (whole, whole // 2, whole * 0):
            slow = ActionTokenizer._choices(tokenizer, ids, kept, t, d)
            assert torch.equal(tokenizer._choices(ids, kept, t, d), slow)


def test_prefixes_say_the_low_frequencies_first(ranged):
    _, held_out = recorded(16)
    ids = ranged.encode(held_out[:200])
    lengths = ranged.length(ids)
    layout = TextLayout.of(ranged, 16)
    for row, length in list(zip(ids.tolist(), lengths.tolist(), strict=True))[::20]:
        for m in range(length + 1):
            kept, text = layout.read(row[:m], 16 * ranged.action_dim)
            assert kept == m
            coefficients = np.zeros(16 * ranged.action_dim)
            coefficients[: len(text)] = [ord(c) - 354 for c in text]
            z = idct(coefficients.reshape(16, -1) / 10, axis=0, norm="ortho").clip(-1, 1)
            low, high = ranged.range.low[0].numpy(), ranged.range.high[0].numpy()
            expected = low + (z + 1) / 2 * (high - low)
            np.testing.assert_allclose(ranged.decode_prefix(row[:m]), expected, atol=1e-5 * np.abs(expected).max())


@needs_shared
@pytest.mark.parametrize("folder", FOLDERS)
def test_locate_tells_dim_and_frequency(folder):
    tokenizer = ActionTokenizer.from_pretrained(PRETRAINED / folder)
    t, d = 6, 3
    actions = np.concatenate([smooth_chunks(40, t, d), inputs(t, d)["noise"]])
    ids = tokenizer.encode(actions)
    found = tokenizer.locate(ids, horizon=t, action_dim=d)
    layout = TextLayout.of(tokenizer, t)
    cut = 0
    for row, places in zip(rows_of(tokenizer, ids), found, strict=True):
        pending, done = b"", 0
        for token, place in zip(row, places, strict=False):
            rest, said = layout.after(pending, token, t * d - done) or (b"", "")
            several = len(said) + bool(rest) > 1
            assert place.tolist() == [-1, -1 if several else done % d, done // d]
            cut += bool(rest)
            pending, done = rest, done + len(said)
        assert done == t * d
        assert (places[len(row) :] == -1).all()
    assert cut > 20 or folder == PLUS  # where hardly any id of smooth chunks is cut
    flat = tokenizer.encode(actions[..., :1])
    assert (tokenizer.locate(flat, horizon=t, action_dim=1)[..., 1][flat != tokenizer.pad_id] == 0).all()
    broken = ids[:1].copy()
    broken[0, 1] = tokenizer.vocab_size
    assert (tokenizer.locate(broken, horizon=t, action_dim=d)[0, 1:] == -1).all()


# ---- folders that are not what they should be -------------------------------------------------------------------

WHOLE = whole_json(*all_bytes([b"ddd"]))


def refused(folder: Path, name: str, *words: str) -> None:
    with pytest.raises(FormatError) as refusal:
        ActionTokenizer.from_pretrained(folder)
    for word in (str(folder), name, "expected", *words):
        assert word in str(refusal.value)


BAD_CONFIGS: dict[str, dict[str, Any]] = {
    "no scale": {"scale": ...},
    "no min_token": {"min_token": ...},
    "a scale of zero": {"scale": 0},
    "a negative scale": {"scale": -10},
    "a scale that is no number": {"scale": float("nan")},
    "an infinite scale": {"scale": float("inf")},
    "a tiny scale": {"scale": 1e-300},
    "a huge scale": {"scale": 1e9},
    "a scale beyond floats": {"scale": 10**400},
    "a scale of text": {"scale": "10"},
    "a scale of true": {"scale": True},
    "no scale at all": {"scale": None},
    "a positive min_token": {"min_token": 1},
    "a min_token beyond the characters": {"min_token": -0xD800},
    "a min_token far beyond": {"min_token": -(10**30)},
    "a min_token with a fraction": {"min_token": -3.5},
    "a min_token of text": {"min_token": "-100"},
    "a min_token of true": {"min_token": False},
    "no min_token at all": {"min_token": None},
    "a horizon of zero": {"time_horizon": 0},
    "a negative horizon": {"time_horizon": -4},
    "a horizon with a fraction": {"time_horizon": 8.5},
    "a horizon of text": {"time_horizon": "8"},
    "a horizon of true": {"time_horizon": True},
    "a list of horizons": {"time_horizon": [8]},
    "a huge horizon": {"time_horizon": 10**6},
    "a horizon beyond integers": {"time_horizon": 10**30},
    "an action_dim of zero": {"action_dim": 0},
    "a negative action_dim": {"action_dim": -7},
    "an action_dim with a fraction": {"action_dim": 7.0},
    "an action_dim of text": {"action_dim": "7"},
    "an action_dim of true": {"action_dim": True},
    "an object of dims": {"action_dim": {}},
    "a huge action_dim": {"action_dim": 10**12},
    "an action_dim beyond integers": {"action_dim": 10**30},
    "a vocab_size of zero": {"vocab_size": 0},
    "a vocab_size of text": {"vocab_size": "1024"},
    "no vocab_size at all": {"vocab_size": None},
}


@pytest.mark.parametrize("changes", BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_bad_configs(changes, tmp_path):
    file = write_published(tmp_path, WHOLE) / "processor_config.json"
    config = {k: v for k, v in {**json.loads(file.read_text()), **changes}.items() if v is not ...}
    file.write_text(json.dumps(config))
    # JSON has no infinity: that is refused before anybody asks what it was for
    what = "Infinity" if float("inf") in changes.values() else next(iter(changes)).removeprefix("time_")
    refused(tmp_path, "processor_config.json", what)


def test_every_config_value_of_every_kind(tmp_path):
    """Refused by name, or what the file says is taken."""
    file = write_published(tmp_path, WHOLE) / "processor_config.json"
    config = json.loads(file.read_text())
    kinds = [None, True, False, 0, 1, 5, -3, -100, 2.5, 10**400, float("nan"), "", "a", "\ud800", [], [1], {}, {"a": 1}]
    taken = []
    for name in config:
        for value in kinds:
            file.write_text(json.dumps({**config, name: value}))
            try:
                tokenizer = ActionTokenizer.from_pretrained(tmp_path)
            except FormatError as error:
                if str(file) not in str(error) and str(tmp_path / "tokenizer.json") not in str(error):
                    pytest.fail(f"{name} {value}: {error}")
                continue
            taken.append((name, value))
            ids = tokenizer.encode(np.zeros((1, tokenizer.horizon or 2, tokenizer.action_dim or 2)))
            assert (
                tokenizer.decode(ids, horizon=tokenizer.horizon or 2, action_dim=tokenizer.action_dim or 2).any() == 0
            )
    names = {name for name, _ in taken}
    assert names == set(config)
    assert [value for name, value in taken if name == "scale"] == [1, 5, 2.5]
    assert [value for name, value in taken if name == "min_token"] == [0, -3, -100]
    assert [value for name, value in taken if name == "time_horizon"] == [None, 1, 5]
    assert [value for name, value in taken if name == "action_dim"] == [None, 1, 5]


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 100_000], ids=lambda d: repr(d[:8]))
def test_a_config_that_is_no_json(data, tmp_path):
    write_published(tmp_path, WHOLE)
    (tmp_path / "processor_config.json").write_bytes(data)
    refused(tmp_path, "processor_config.json")


@pytest.mark.parametrize("place", PLACES)
def test_a_vocabulary_cut_short_is_named(place, tmp_path):
    write_published(tmp_path, WHOLE, place)
    data = (tmp_path / place).read_bytes()
    (tmp_path / place).write_bytes(data[: len(data) // 2])
    refused(tmp_path, place)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FormatError, match=r"processor_config\.json"):
        PublishedFASTTokenizer.from_published(tmp_path)
    write_published(tmp_path, WHOLE)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        PublishedFASTTokenizer.from_published(tmp_path)
    with pytest.raises(FormatError):
        ActionTokenizer.from_pretrained(tmp_path)
    with pytest.raises(FormatError, match="FASTTokenizer"):
        FASTTokenizer.from_pretrained(write_published(tmp_path / "t", WHOLE))


def test_a_vocabulary_without_the_zero_coefficient_is_named(tmp_path):
    whole = whole_json(["a", "b", "aa"], [("a", "a")])
    for low in (-100, -0x162, 0):
        refused(write_published(tmp_path / str(low), whole, min_token=low), "tokenizer.json", "zero coefficient")
    ActionTokenizer.from_pretrained(write_published(tmp_path / "fine", whole, min_token=-ord("a")))


@pytest.mark.parametrize("limit", [0, -1, np.nan, np.inf, "5", None, True])
def test_a_limit_that_is_none_is_the_callers_mistake(limit, tmp_path):
    folder = write_published(tmp_path, WHOLE)
    with pytest.raises(ActionValueError, match="limit") as refusal:
        PublishedFASTTokenizer.from_published(folder, limit=limit)
    assert not isinstance(refusal.value, FormatError)


def test_loading_under_another_default_device_and_dtype(tmp_path):
    expected = tiny(tmp_path)
    actions = smooth_chunks(5, 8, 2)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            tokenizer = PublishedFASTTokenizer.from_published(tmp_path)
            again = ActionTokenizer.from_pretrained(tmp_path)
    finally:
        torch.set_default_dtype(before)
    for found in (tokenizer, again):
        np.testing.assert_array_equal(found.encode(actions), expected.encode(actions))
        assert found.range.low.dtype == torch.float32


# ---- our own format ---------------------------------------------------------------------------------------------


@needs_shared
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("folder", FOLDERS)
def test_import_and_export(folder, place, stand_in, tmp_path):
    source = with_facts(PRETRAINED / folder, tmp_path / "published", place)
    tokenizer, reference = ActionTokenizer.from_pretrained(source), stand_in.from_folder(source)
    actions = np.concatenate([*inputs(10, 7).values()])
    expected = reference.encode(actions)

    loaded = ActionTokenizer.from_pretrained(tokenizer.save_pretrained(tmp_path / "ours"))
    assert isinstance(loaded, PublishedFASTTokenizer)
    assert loaded.get_params() == tokenizer.get_params()
    assert rows_of(loaded, loaded.encode(actions)) == expected

    exported = loaded.to_published(tmp_path / "exported")
    names = {str(file.relative_to(exported)) for file in exported.rglob("*") if file.is_file()}
    root = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert names == {"processor_config.json", *root, *(f"bpe_tokenizer/{name}" for name in root)}
    assert (exported / PLACES[0]).read_bytes() == (exported / PLACES[1]).read_bytes()
    for hidden in (None, PLACES[0]):
        if hidden:
            (exported / hidden).unlink()
        theirs = stand_in.from_folder(exported)
        assert theirs.encode(actions) == expected
        assert (theirs.scale, theirs.min_token, theirs.vocab_size) == (
            reference.scale,
            reference.min_token,
            reference.vocab_size,
        )
        again = ActionTokenizer.from_pretrained(exported)
        assert {name: t.tolist() for name, t in again.state_dict().items()} == {
            name: t.tolist() for name, t in tokenizer.state_dict().items()
        }
        assert again.get_params() == tokenizer.get_params()
    config = json.loads((exported / "processor_config.json").read_text())
    original = json.loads((source / "processor_config.json").read_text())
    assert {k: v for k, v in config.items() if k != "auto_map"} == {
        k: v for k, v in original.items() if k != "auto_map"
    }
    assert list(config["auto_map"]) == ["AutoProcessor"]


def test_export_keeps_the_facts_and_forgets_the_range(tmp_path):
    tokenizer = tiny(tmp_path / "t", time_horizon=6, action_dim=2, scale=7.5).with_range(Range([-3, 0], [3, 1]))
    again = ActionTokenizer.from_pretrained(tokenizer.to_published(tmp_path / "exported"))
    assert (again.horizon, again.action_dim, again.get_params()["scale"]) == (6, 2, 7.5)
    assert again.get_params()["range"] == "open"
    units = smooth_chunks(5, 6, 2)
    np.testing.assert_array_equal(
        again.encode(units), tokenizer.encode(tokenizer.range.from_unit(torch.from_numpy(units)).numpy())
    )


def test_export_of_a_refit_with_dead_ids(stand_in, tmp_path):
    """Raw characters, the space among them, survive two trips through JSON."""
    actions = smooth_chunks(100, 12, 3)
    reference = stand_in.fit(list(actions), scale=30, vocab_size=500)
    tokenizer = ActionTokenizer.from_pretrained(save_refit(reference, tmp_path / "a"))
    again = stand_in.from_folder(tokenizer.to_published(tmp_path / "b"))
    assert again.bpe.get_vocab() == reference.bpe.get_vocab()
    assert " " in again.bpe.get_vocab()
    assert again.encode(actions) == reference.encode(actions) == rows_of(tokenizer, tokenizer.encode(actions))


def test_a_range_normalises_and_is_saved(tmp_path):
    plain = tiny(tmp_path / "t", time_horizon=6)
    assert plain.action_dim is None
    two = Range([[-2.0, 0.0], [0.0, -8.0]], [[2.0, 10.0], [1.0, 8.0]], ["arm", "leg"])
    tokenizer = plain.with_range(two)
    assert (tokenizer.action_dim, tokenizer.range_keys, plain.range_keys) == (2, ("arm", "leg"), ("default",))
    assert plain.action_dim is None
    with pytest.raises(ActionShapeError, match="'arm', 'leg'"):
        tokenizer.encode(smooth_chunks(2, 6, 2))
    units = smooth_chunks(20, 6, 2)
    expected = plain.encode(units)
    loaded = ActionTokenizer.from_pretrained(tokenizer.save_pretrained(tmp_path / "saved"))
    for found in (tokenizer, loaded, pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        for i, key in enumerate(("arm", "leg")):
            low, high = two.low[i].numpy(), two.high[i].numpy()
            actions = low + (units + 1) / 2 * (high - low)
            ids = found.encode(actions, key=key)
            mostly = (ids == expected[:, : ids.shape[1]]).all(1) if ids.shape == expected.shape else np.zeros(1)
            assert mostly.mean() > 0.9  # a value next to a tie may round otherwise
            decoded = found.decode(ids, key=key)
            assert ((decoded >= low) & (decoded <= high)).all()
            assert np.abs(decoded - actions).max() <= overshoot(6, 10) * (high - low).max() / 2 + 1e-5
            outside = found.encode(actions + 100 * (high - low), key=key)
            assert np.abs(found.decode(outside, key=key) - high).max() <= overshoot(6, 10) * (high - low).max() / 2
    assert loaded.get_params()["range"].keys == ("arm", "leg")
    # a coefficient beyond what [-1, 1] can have is refused, though the open import takes it
    large = plain.encode(np.full((1, 6, 2), 3.0))
    assert plain.try_decode(large, horizon=6, action_dim=2)[1].all()
    assert not tokenizer.try_decode(large, key="arm")[1].any()


def test_ranges_that_do_not_fit(tmp_path):
    tokenizer = tiny(tmp_path, action_dim=3)
    with pytest.raises(ActionShapeError, match=r"action_dim 3.* got 2"):
        tokenizer.with_range(Range([0, 0], [1, 1]))
    for other in ("quantile", None, (0, 1)):
        with pytest.raises(ActionValueError, match="Range"):
            tokenizer.with_range(other)


def test_a_wider_limit_takes_larger_actions(tmp_path):
    folder = write_published(tmp_path / "t", whole_json(*all_bytes([b"ddd"])), min_token=-1000, time_horizon=4)
    narrow, wide = (PublishedFASTTokenizer.from_published(folder, limit=limit) for limit in (5, 50))
    actions = np.full((1, 4, 2), 20.0, np.float32)
    ids = wide.encode(actions)
    np.testing.assert_allclose(wide.decode(ids, action_dim=2), actions, atol=0.2)
    assert not narrow.try_decode(ids, action_dim=2)[1].any()
    with pytest.raises(TokenError):
        narrow.decode(ids, action_dim=2)
    assert np.abs(narrow.quantize(actions)).max() <= bounds_of(narrow, 4)[3] + 1e-6
    loaded = ActionTokenizer.from_pretrained(wide.save_pretrained(tmp_path / "saved"))
    assert loaded.get_params()["limit"] == 50
    np.testing.assert_array_equal(loaded.decode(ids, action_dim=2), wide.decode(ids, action_dim=2))
    assert narrow.clip_report(actions).tolist() == [1, 1]
    assert wide.clip_report(actions).tolist() == [0, 0]


def test_copies_and_states(tmp_path):
    first = tiny(tmp_path / "a", merged=(b"dd", b"ee"))
    second = tiny(tmp_path / "b", merged=(b"de", b"ed"))
    actions = smooth_chunks(50, 8, 2)
    expected = first.encode(actions)
    assert expected.shape != second.encode(actions).shape or (expected != second.encode(actions)).any()
    for copied in (pickle.loads(pickle.dumps(first)), copy.deepcopy(first)):
        np.testing.assert_array_equal(copied.encode(actions), expected)
    second.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(second.encode(actions), expected)
    np.testing.assert_array_equal(
        second.decode(expected, horizon=8, action_dim=2), first.decode(expected, horizon=8, action_dim=2)
    )
    assert len(pickle.dumps(first)) < 200_000  # the tables stay behind


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers(start, ranged):
    _, held_out = recorded(16)
    encode_in_workers([ranged], held_out[:400], start)


def test_threads_and_other_processes(ranged, tmp_path):
    _, held_out = recorded(16)
    encode_in_threads(ranged, held_out)
    encode_in_another_process([ranged], held_out[:100], tmp_path)


def test_torch_tensors_come_back_as_such(tmp_path):
    tokenizer = tiny(tmp_path, time_horizon=8, action_dim=2)
    actions = torch.from_numpy(smooth_chunks(5, 8, 2))
    ids = tokenizer.encode(actions)
    assert ids.dtype == torch.int64
    assert torch.equal(tokenizer.decode(ids), torch.from_numpy(tokenizer.decode(ids.numpy())))


def rehashed(folder: Path, change: Any) -> Path:
    """Change tensors of a saved folder and let its config vouch for them."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def put(name: str, at: Any, value: Any) -> Any:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name][at] = value

    return change


BAD_TENSORS: dict[str, Any] = {
    "an entry that is no UTF-8": put("tokens", 5, 0xFF),
    "an entry twice": put("tokens", 2 * 33 + 1, ord("!")),  # 33 entries of two bytes, then the signs from ! on
    "an entry that ends where it begins": put("ends", 3, 3),
    "entries that end in descending order": put("ends", 3, 9),
    "an end below zero": put("ends", 0, -1),
    "an end that is no place": put("ends", 0, 1 << 62),
    "text behind the last end": put("ends", -1, 40),
    "a merge of an id below zero": put("merges", (0, 0), -1),
    "a merge of an id that is not there": put("merges", (0, 1), 1 << 20),
    "a merge that makes another entry": put("merges", (0, 2), 4),
    "merges that make themselves": put("merges", (1, 0), 258),
    "all merges alike": lambda tensors: tensors["merges"].copy_(tensors["merges"][:1].expand(3, 3).clone()),
    "a range that is not the limit": put("range.high", 0, 7),
    "a range that is no number": put("range.low", 0, float("nan")),
}


@pytest.mark.parametrize("change", BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_tensors_that_contradict_each_other(change, tmp_path):
    merged = (b"dd", b"dddd"[:3], b"dde")
    folder = tiny(tmp_path / "t", merged=merged).save_pretrained(tmp_path / "saved")
    ActionTokenizer.from_pretrained(rehashed(folder, lambda tensors: None))
    with pytest.raises(FormatError, match=re.escape(str(folder))):
        ActionTokenizer.from_pretrained(rehashed(folder, change))


def test_random_damage_to_tensors(tmp_path):
    """FormatError, or a vocabulary that is as good as any: never a crash, never an endless loop."""
    rng = np.random.default_rng(0)
    entries = ["a", "b", "c", "aa", "aab", "caab", entry(b"\xc2"), entry(b"\x80"), entry(b"\xc2\x80")]
    merges = [("a", "a"), ("aa", "b"), ("c", "aab"), (entry(b"\xc2"), entry(b"\x80"))]
    source = ActionTokenizer.from_pretrained(
        write_published(tmp_path / "t", whole_json(entries, merges), min_token=-98)
    )
    refusals = 0
    folder = source.save_pretrained(tmp_path / "saved")
    clean = load_file(folder / "model.safetensors")
    actions = np.array([[[0.0], [0.1], [-0.1]]])
    for _ in range(150):

        def change(tensors: dict[str, torch.Tensor]) -> None:
            for name in tensors:
                tensors[name].copy_(clean[name])
            for _ in range(int(rng.integers(1, 3))):
                name = str(rng.choice(["tokens", "ends", "merges"]))
                flat = tensors[name].view(-1)
                near = int(flat[int(rng.integers(0, len(flat)))])
                wild = int(rng.integers(-3, 130 if name == "tokens" else 12))
                value = near if rng.random() < 0.5 else wild
                flat[int(rng.integers(0, len(flat)))] = value % 256 if name == "tokens" else value

        try:
            tokenizer = ActionTokenizer.from_pretrained(rehashed(folder, change))
        except FormatError as error:
            refusals += str(folder) in str(error)
            continue
        rows = rng.integers(-1, 12, (50, 5))
        assert np.isfinite(tokenizer.try_decode(rows, horizon=3, action_dim=1)[0]).all()
        tokenizer.allowed(rows[:, :2], horizon=3, action_dim=1)
        try:
            ids = tokenizer.encode(actions)
        except ActionValueError:
            continue
        assert tokenizer.try_decode(ids, horizon=3, action_dim=1)[1].all()
        assert ActionTokenizer.from_pretrained(tokenizer.to_published(tmp_path / "out")).encode(actions).tolist() == (
            ids.tolist()
        )
    assert refusals > 60


# ---- the card ---------------------------------------------------------------------------------------------------


def alone(folder: Path) -> str:
    """The lines of the card that decode without this library."""
    card = (folder / "README.md").read_text()
    found: str = card.split("## Decode without this library")[1].split("```python\n")[1].split("```")[0]
    return found


@needs_shared
@pytest.mark.parametrize("ranged_too", [False, True], ids=["open", "with a range"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_the_card_decodes_alone(folder, ranged_too, tmp_path, monkeypatch):
    source = with_facts(PRETRAINED / folder, tmp_path / "published", **({"action_dim": 4} if not ranged_too else {}))
    tokenizer = ActionTokenizer.from_pretrained(source)
    if ranged_too:
        tokenizer = tokenizer.with_range(Range([-1, 0, -5, 2], [1, 4, 5, 2]))
    saved = tokenizer.save_pretrained(tmp_path / "saved")
    monkeypatch.chdir(saved)
    code = compile(alone(saved), "the card", "exec")
    actions = smooth_chunks(10, 12, 4) * (1 if not ranged_too else 3)
    for row, expected in zip(tokenizer.encode(actions), tokenizer.quantize(actions), strict=True):
        known: dict[str, Any] = {"ids": row}
        exec(code, known)
        assert known["actions"].shape == (12, 4)
        np.testing.assert_allclose(known["actions"], expected, atol=1e-5)


@needs_shared
def test_the_card_of_an_import_without_dims_says_where_they_go(tmp_path, monkeypatch, plus):
    saved = plus.save_pretrained(tmp_path / "saved")
    monkeypatch.chdir(saved)
    actions = smooth_chunks(1, 10, 7)
    known: dict[str, Any] = {"ids": plus.encode(actions)[0]}
    assert "7  # dims of the chunk" in alone(saved)
    exec(compile(alone(saved), "the card", "exec"), known)
    np.testing.assert_allclose(known["actions"], plus.quantize(actions)[0], atol=1e-6)


def test_the_module_needs_no_graphics_card(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "")
    tokenizer = tiny(tmp_path)
    assert tokenizer.range.low.device.type == "cpu"
    assert tokenizer.encode(smooth_chunks(2, 4, 2)).shape[0] == 2


def test_export_into_a_saved_tokenizer_is_refused(tmp_path):
    tokenizer = FASTTokenizer(vocab_size=64).fit(smooth_chunks(50, 5, 2))
    tokenizer.save_pretrained(tmp_path / "ours")
    imported = ActionTokenizer.from_pretrained(write_published(tmp_path / "published", whole_json(*all_bytes([]))))
    with pytest.raises(FormatError, match=r"config\.json"):
        imported.to_published(tmp_path / "ours")
    assert type(ActionTokenizer.from_pretrained(tmp_path / "ours")) is FASTTokenizer


class TestSettledShape:
    """starVLA and the published processor's users set the shape on the object before they decode."""

    def test_settled_then_saved_and_loaded(self, tmp_path):
        tokenizer = tiny(tmp_path / "published")
        tokenizer.time_horizon, tokenizer.action_dim = 6, 2
        loaded = ActionTokenizer.from_pretrained(tokenizer.save_pretrained(tmp_path / "t"))
        chunks = smooth_chunks(5, 6, 2)
        ids = tokenizer.encode(chunks)
        assert (loaded.encode(chunks) == ids).all()
        assert (loaded.decode(ids) == tokenizer.decode(ids)).all()
        assert (loaded.horizon, loaded.action_dim) == (6, 2)

    def test_settled_once(self, tmp_path):
        tokenizer = tiny(tmp_path / "published")
        tokenizer.action_dim = 2
        with pytest.raises(ActionShapeError, match="expected action_dim 2, got 3"):
            tokenizer.action_dim = 3
        with pytest.raises(ActionShapeError, match="4096"):
            tokenizer.time_horizon = 5000
        assert (tokenizer.horizon, tokenizer.action_dim) == (None, 2)


def test_another_limit_is_another_tokenizer(tmp_path):
    tokenizer = tiny(tmp_path / "published")
    wide = tokenizer.with_limit(8)
    chunk = np.full((4, 1), 7.0, np.float32)
    assert np.abs(wide.quantize(chunk) - 7).max() < 0.5
    assert np.abs(tokenizer.quantize(chunk)).max() < 6
    assert tokenizer.get_params()["limit"] == 5
    saved = ActionTokenizer.from_pretrained(wide.save_pretrained(tmp_path / "wide"))
    assert (saved.encode(chunk) == wide.encode(chunk)).all()
    with pytest.raises(ActionValueError, match="limit"):
        tokenizer.with_limit(float("nan"))


def test_the_range_of_a_sample_is_remembered(tmp_path):
    sample = ChunkSample().add_chunks(smooth_chunks(40, 6, 2), episode=np.arange(40), start=np.zeros(40, np.int64))
    tokenizer = tiny(tmp_path / "published").with_range(sample)
    assert tokenizer.provenance["sample"] == sample.digest()
    assert tokenizer.provenance["imported"]
    assert torch.equal(tokenizer.range.low, range_of(sample).low)


@pytest.mark.parametrize("name", ["tokenizer.json", "special_tokens_map.json", "processor_config.json"])
def test_export_over_files_of_somebody_else_is_refused(tmp_path, name):
    tokenizer = tiny(tmp_path / "published")
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / name).write_text('{"processor_class": "LlavaProcessor"}')
    with pytest.raises(FormatError, match=re.escape(name)):
        tokenizer.to_published(folder)
    assert [path.name for path in folder.iterdir()] == [name]
    exported = tokenizer.to_published(tmp_path / "exported")
    assert tokenizer.to_published(exported) == exported  # an earlier export is replaced


def test_a_list_of_chunks_has_one_action_dim(tmp_path):
    with pytest.raises(ActionShapeError, match=r"one action_dim in a list, got \[2, 3\]"):
        tiny(tmp_path / "published").encode([np.zeros((4, 2)), np.zeros((4, 3))])
