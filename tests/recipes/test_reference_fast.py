"""The stand-in is the original: every golden id, every decoded action, and the traits that we beat."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("scipy", reason="the FAST stand-in uses scipy")
pytest.importorskip("tokenizers", reason="the FAST stand-in uses tokenizers")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes" / "benchmarks"))

from reference_fast import ReferenceFAST

PRETRAINED = Path(__file__).resolve().parents[3] / "shared" / "pretrained"
GOLDEN = [
    ("physical-intelligence-fast", "g1_inspire_bottle_h30"),
    ("physical-intelligence-fast", "pusht_h10"),
    ("physical-intelligence-fast", "aloha_sim_mini_h50"),
    ("physical-intelligence-fast", "gr1_picknplace_h16"),
    ("physical-intelligence-fast", "crazyflie_100hz_h100"),
    ("univla-calvin-fast", "pusht_h10"),
    ("univla-calvin-fast", "g1_inspire_bottle_h10"),
]

needs_shared = pytest.mark.skipif(not PRETRAINED.is_dir(), reason="../shared/pretrained is not here")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rayon's pool must not be alive when a later test forks."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="module")
def chunks() -> NDArray[np.float64]:
    time = np.linspace(0, 1, 12)[:, None]
    phase, speed = np.random.default_rng(0).uniform(0, 3, (2, 200, 1, 3))
    waves: NDArray[np.float64] = np.sin(phase + speed * time)
    return waves


@pytest.fixture
def fitted(chunks: NDArray[np.float64]) -> ReferenceFAST:
    return ReferenceFAST.fit(list(chunks), scale=10, vocab_size=400)


@needs_shared
@pytest.mark.parametrize(("folder", "name"), GOLDEN)
def test_reproduces_every_golden_id_and_action(folder: str, name: str) -> None:
    reference = ReferenceFAST.from_folder(PRETRAINED / folder)
    with np.load(PRETRAINED / folder / "golden.npz") as golden:
        actions, padded, decoded = (golden[f"{name}/{part}"] for part in ("actions", "ids", "decoded"))
    expected = [row[row >= 0].tolist() for row in padded]

    assert reference.encode(actions) == expected
    assert reference.encode_batch(actions) == expected
    for decode in (reference.decode, reference.decode_batch):
        np.testing.assert_allclose(decode(expected, *actions.shape[1:]), decoded, rtol=0, atol=1e-6)
    assert reference.failures == 0


@needs_shared
def test_the_golden_list_is_complete() -> None:
    found = set()
    for file in PRETRAINED.glob("*/golden.npz"):
        with np.load(file) as golden:
            found |= {(file.parent.name, key.split("/")[0]) for key in golden.files}
    assert found == set(GOLDEN)


@needs_shared
def test_loads_the_subfolder_layout(tmp_path: Path) -> None:
    source = PRETRAINED / "univla-calvin-fast"
    (tmp_path / "bpe_tokenizer").mkdir()
    shutil.copyfile(source / "processor_config.json", tmp_path / "processor_config.json")
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        ReferenceFAST.from_folder(tmp_path)
    shutil.copyfile(source / "tokenizer.json", tmp_path / "bpe_tokenizer" / "tokenizer.json")
    reference = ReferenceFAST.from_folder(tmp_path)
    assert (reference.scale, reference.min_token, reference.vocab_size) == (50, -158, 1024)
    assert len(reference) == 1024


def test_a_fit_round_trips_within_rounding(fitted: ReferenceFAST, chunks: NDArray[np.float64]) -> None:
    ids = fitted.encode(chunks)
    assert ids == fitted.encode_batch(chunks)
    # every coefficient is off by at most 0.5 / scale, and the transform is orthonormal
    worst = np.abs(fitted.decode(ids, 12, 3) - chunks).max()
    assert worst <= 0.05 * np.sqrt(12)
    assert fitted.failures == 0
    assert sum(map(len, ids)) < chunks.size / 4


def test_a_fit_accepts_chunks_of_several_horizons(chunks: NDArray[np.float64]) -> None:
    reference = ReferenceFAST.fit([*chunks[:50], *chunks[50:100, :6]], vocab_size=300)
    np.testing.assert_allclose(reference.decode(reference.encode(chunks[:9, :6]), 6, 3), chunks[:9, :6], atol=0.15)


def test_a_small_fit_gets_fewer_ids_than_asked(chunks: NDArray[np.float64]) -> None:
    reference = ReferenceFAST.fit(list(chunks[:2]), vocab_size=1024)
    assert reference.vocab_size == 1024
    assert len(reference) < 300


def test_coefficients_wider_than_the_vocabulary_are_refused(chunks: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="more than the 20 ids"):
        ReferenceFAST.fit(list(chunks), vocab_size=20)


def test_a_fit_wastes_68_ids() -> None:
    """Byte-level text writes the bytes 0-32, 127-160 and 173 with other letters than `chr` of themselves."""
    symbols = np.arange(256)[:, None] - 128
    # one-step chunks: the DCT of length 1 is the identity, so every symbol 0..255 occurs, many times over
    reference = ReferenceFAST.fit([symbol[None] for symbol in symbols] * 3, scale=1, vocab_size=600)
    emitted = {ids for row in reference.encode(symbols[:, None].astype(float)) for ids in row}

    vocabulary = reference.bpe.get_vocab()
    dead = [symbol for symbol in range(256) if vocabulary[chr(symbol)] not in emitted]
    assert {*range(33), *range(127, 161), 173} <= set(dead)
    twins = [reference.encode(np.array([[[symbol - 128.0]]]))[0] for symbol in range(33)]
    raw = [[vocabulary[chr(symbol)]] for symbol in range(33)]
    np.testing.assert_array_equal(reference.decode(twins, 1, 1), reference.decode(raw, 1, 1))


def test_low_coefficients_are_clipped_and_high_ones_lose_the_chunk(fitted: ReferenceFAST) -> None:
    low = fitted.decode(fitted.encode(np.full((1, 12, 3), -9.0)), 12, 3)
    assert fitted.failures == 0
    assert low.min() > -1.5

    high = fitted.decode(fitted.encode(np.full((1, 12, 3), 9.0)), 12, 3)
    assert fitted.failures == 1
    assert not high.any()


def test_a_dropped_id_is_a_zero_chunk(fitted: ReferenceFAST, chunks: NDArray[np.float64]) -> None:
    ids = fitted.encode(chunks[:1])[0]
    decoded = fitted.decode([ids[:-1], ids], 12, 3)
    assert fitted.failures == 1
    assert not decoded[0].any()
    assert decoded[1].any()
    assert fitted.decode([], 12, 3).shape == (0, 12, 3)
