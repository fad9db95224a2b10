"""Both sides of every contest do the same thing, and peers that are missing are left out."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("scipy", reason="the FAST stand-in uses scipy")
pytest.importorskip("tokenizers", reason="the FAST stand-in uses tokenizers")

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "recipes" / "benchmarks"))

import contests
from contests import BATCH, BINS, OURS, PER_CHUNK, PREALLOCATED, RESIDUAL, SKLEARN, TAIL, UNIFORM

from action_tokenizers.data.synthetic import smooth_chunks

SHARED = Path(__file__).resolve().parents[4] / "shared"


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rayon's pool must not be alive when a later test forks."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


def test_fast_and_the_stand_in_decode_what_they_encode() -> None:
    contest = contests.smooth_fast(64, 200, 10, 3, seed=0)
    assert contest.items == 64
    for operation in ("encode", "decode"):
        assert set(contest.jobs[operation]) == {OURS, PER_CHUNK, BATCH}
        assert {len(job()) for job in contest.jobs[operation].values()} == {64}
    for note in contest.notes.values():
        assert 0 < note["mse"] < 0.25 / contests.SCALE**2
        assert 0 < note["tokens"] <= 30
        assert 0 < note["vocab_size"] <= contests.VOCAB_SIZE
    # ours gives every chunk back; the stand-in may lose some whose coefficients its fit has not seen
    assert contest.notes[OURS]["lost"] == 0
    assert contest.notes["stand-in"]["lost"] < 64 / 4


@pytest.mark.slow
def test_fast_on_recorded_chunks() -> None:
    if not (SHARED / "data" / "adroit_door").is_dir():
        pytest.skip("the recorded data beside the repository are not here")
    contest = contests.recorded_fast(SHARED / "data" / "adroit_door", 50)
    assert contest.items > 1000
    assert contest.notes[OURS]["lost"] == contest.notes["stand-in"]["lost"] == 0


def test_the_published_folder_gives_the_stand_ins_ids() -> None:
    folder = SHARED / "pretrained" / "physical-intelligence-fast"
    if not folder.is_dir():
        pytest.skip("the published tokenizers beside the repository are not here")
    contest = contests.published(folder, 30, 20, 4, seed=0)
    assert contest.notes == {"identical ids": True}
    ours, other = (contest.jobs["decode"][side]() for side in (OURS, PER_CHUNK))
    np.testing.assert_allclose(ours, other, atol=1e-6)


def test_fits() -> None:
    contest = contests.fast_fit(100, 8, 2, seed=0)
    jobs = contest.jobs["fit"]
    assert jobs[OURS]().is_fitted
    assert len(jobs[PER_CHUNK]()) > 0
    assert set(contest.notes) == {OURS, "stand-in"}
    assert contest.notes[OURS]["vocab_size"] == jobs[OURS]().vocab_size
    assert contest.notes["stand-in"]["vocab_size"] == len(jobs[PER_CHUNK]())
    for note in contest.notes.values():
        assert 0 < note["mse"] < 0.25 / contests.SCALE**2
        assert 0 < note["tokens"] <= 16


def test_binning_and_its_kernel_give_the_same() -> None:
    contest = contests.binning(20, 10, 3, seed=0)
    for operation, sides in contest.jobs.items():
        assert contest.bytes_each[operation] == dict.fromkeys(sides, 12 * 30)
        ours, buffer = sides[OURS]().numpy(), sides[PREALLOCATED]()
        np.testing.assert_array_equal(buffer.reshape(ours.shape), ours)
        assert len(np.unique(buffer)) > 30
    assert contest.jobs["decode"][OURS]().shape == (20, 10, 3)
    for side in (UNIFORM, TAIL):
        assert (side in contest.jobs["encode"]) == (contests.peer(side) is not None)


def test_a_peer_that_is_not_installed_has_no_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contests, "MODULES", dict.fromkeys(contests.MODULES, "no_such_module"))
    assert not {UNIFORM, TAIL} & set(contests.binning(5, 4, 2, seed=0).jobs["encode"])
    assert RESIDUAL not in contests.residual_vq(10, 60, 4, 2, 2, 8, seed=0).jobs["encode"]
    assert not any("torchrl" in name for name in contests.single_chunks(4, 2, 60, 2, seed=0))


def test_residual_vq() -> None:
    contest = contests.residual_vq(10, 60, 4, 2, 2, 8, seed=0)
    assert contest.jobs["encode"][OURS]().shape == (10, 2)
    assert 0 < contest.notes[OURS]["mse"] < 0.3
    both = contest.jobs["encode and decode"][OURS]()
    torch.testing.assert_close(both, contest.jobs["decode"][OURS](), rtol=0, atol=0)


class Peer(torch.nn.Module):
    """Stands in for the peer: its output lies outside the range."""

    def __init__(self, dim: int, **rest: object) -> None:
        super().__init__()

    def forward(self, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        return torch.full_like(flat, 7.0), torch.zeros(len(flat), 2, dtype=torch.int64), None


def test_the_error_of_residual_vqs_peer_is_that_of_its_output_in_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contests, "peer", lambda side: SimpleNamespace(ResidualVQ=Peer))
    contest = contests.residual_vq(10, 60, 4, 2, 2, 8, seed=0)
    assert 0 < contest.notes[RESIDUAL]["mse"] <= 4
    assert "forward" in contest.notes[f"{RESIDUAL}: encode"]
    assert contest.jobs["encode"][RESIDUAL] is contest.jobs["encode and decode"][RESIDUAL]


@pytest.mark.parametrize("scope", ["step", "chunk"])
def test_k_means_and_scikit_learn_agree(scope: str) -> None:
    contest = contests.kmeans(30, 60, 4, 2, 8, scope, seed=0)
    assert set(contest.jobs["encode"]) == {OURS, SKLEARN}
    assert contest.notes["equal ids"] > 0.99


def test_copying() -> None:
    contest = contests.copying(1)
    assert contest.bytes_each == {"copy": dict.fromkeys(contest.jobs["copy"], 2 << 20)}
    assert all(bool((job() == 1).all()) for job in contest.jobs["copy"].values())


def test_single_chunks_are_of_one_chunk() -> None:
    jobs = contests.single_chunks(4, 2, 60, 3, seed=0)
    assert {name.split(" | ")[1] for name in jobs} == {"FAST", "binning", "k-means", "residual VQ"}
    assert all(len(job(i)) == 1 for job in jobs.values() for i in (0, 7))


def test_the_accelerators_jobs_run_anywhere() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    contest = contests.accelerator(20, 4, 2, 300, 0, device)
    assert set(contest.jobs) == {"encode", "decode"}
    actions = smooth_chunks(20, 4, 2, seed=0)
    ids_each = {BINS: 8, "k-means 256 per step": 4, "residual VQ 8 x 256": 8}
    for name, count in ids_each.items():
        ids, decoded = contest.jobs["encode"][name](), contest.jobs["decode"][name]()
        assert ids.device.type == decoded.device.type == device
        assert ids.shape == (20, count)
        assert len(torch.unique(ids)) > 10
        assert float(np.square(decoded.cpu().numpy() - actions).mean()) < 0.02
        assert contest.bytes_each["encode"][name] == contest.bytes_each["decode"][name] == 4 * 8 + 8 * count
