"""Memory-mapped ids and encoding inside real DataLoader workers, forked and spawned."""

import pickle
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes"))

import memory_mapped_tokens as recipe

from action_tokenizers import BinningTokenizer, Episodes, FASTTokenizer
from action_tokenizers.codecs.dct_bpe import encode_chunks
from action_tokenizers.data.synthetic import smooth_chunks
from action_tokenizers.errors import FormatError

CHUNKS = smooth_chunks(200, 12, 3, seed=0)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")


@pytest.fixture(scope="module")
def tokenizer() -> FASTTokenizer:
    return FASTTokenizer(vocab_size=200).fit(CHUNKS)


@pytest.fixture(scope="module")
def folder(tokenizer: FASTTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tokens") / "new" / "folder"
    assert recipe.write_tokens(tokenizer, [CHUNKS[:64], CHUNKS[64:]], place) == len(CHUNKS)
    return place


def ids_of(tokenizer: FASTTokenizer) -> list[list[int]]:
    ids = tokenizer.encode(CHUNKS)
    return [row[:n].tolist() for row, n in zip(ids, tokenizer.length(ids), strict=True)]


def rows(batches: list) -> list[list[int]]:
    return [row[keep].tolist() for ids, mask in batches for row, keep in zip(ids, mask, strict=True)]


class WhoAmI:
    """What a worker is: its torch threads, its pool threads, and how often it had to compile the FAST kernel."""

    def __init__(self, tokenizer: FASTTokenizer) -> None:
        self.encode = recipe.EncodeChunks(tokenizer)

    def __call__(self, chunks: list) -> tuple[int, int, int]:
        self.encode(chunks)
        pool = [thread for thread in threading.enumerate() if thread.name.startswith("action_tokenizers")]
        return torch.get_num_threads(), len(pool), sum(encode_chunks.stats.cache_misses.values())


def test_the_file_is_an_ordinary_npy(folder, tokenizer):
    stored, ends = np.load(folder / "ids.npy"), np.load(folder / "ends.npy")
    assert stored.dtype == np.int32
    assert [part.tolist() for part in np.split(stored, ends[:-1])] == ids_of(tokenizer)
    assert tokenizer.from_pretrained(folder / "tokenizer").decode(ids_of(tokenizer)).shape == CHUNKS.shape


def test_items(folder, tokenizer):
    data = recipe.TokenFile(folder)
    assert len(data) == len(CHUNKS)
    assert [data[i].tolist() for i in range(len(data))] == ids_of(tokenizer)
    assert data[-1].tolist() == ids_of(tokenizer)[-1]
    assert pickle.loads(pickle.dumps(data))[3].tolist() == ids_of(tokenizer)[3]
    assert b"memmap" not in pickle.dumps(data)
    for beyond in (len(data), -len(data) - 1):
        with pytest.raises(IndexError, match=r"in 0\.\.199"):
            data[beyond]


def test_what_breaks_off_leaves_nothing(tokenizer, tmp_path):
    def broken():
        yield CHUNKS[:10]
        raise KeyboardInterrupt

    folder = tmp_path / "tokens"
    with pytest.raises(KeyboardInterrupt):
        recipe.write_tokens(tokenizer, broken(), folder)
    assert not list(tmp_path.iterdir())
    seen = []

    def batches():
        seen.extend(tmp_path.iterdir())
        yield CHUNKS

    recipe.write_tokens(tokenizer, batches(), folder)
    assert [path.name.startswith(".tokens.writing-") for path in seen] == [True]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_in_use_is_not_written_over(folder, tokenizer):
    before = (folder / "ids.npy").read_bytes()
    with pytest.raises(FileExistsError, match="a new or an empty folder"):
        recipe.write_tokens(tokenizer, [CHUNKS[:5]], folder)
    assert (folder / "ids.npy").read_bytes() == before


def test_files_that_do_not_belong_together_are_refused(folder, tokenizer, tmp_path):
    """As an earlier, interrupted write, or one with another tokenizer, would leave them."""
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    np.save(copied / "ids.npy", np.load(folder / "ids.npy")[:-1])
    with pytest.raises(FormatError, match=r"got \d+ ids instead of \d+ in ids\.npy; write the folder anew"):
        recipe.TokenFile(copied)
    np.save(copied / "ids.npy", np.empty(0, np.int32))
    with pytest.raises(FormatError, match="got 0 ids"):
        recipe.TokenFile(copied)
    shutil.copy(folder / "ids.npy", copied)
    for name in ("ids.npy", "ends.npy", "tokens.json"):
        whole = (copied / name).read_bytes()
        for cut in (whole[:-9], whole[:40], b""):
            (copied / name).write_bytes(cut)
            with pytest.raises(FormatError, match="expected what was written to"):
                recipe.TokenFile(copied)
        (copied / name).unlink()
        with pytest.raises(FormatError, match="expected what was written to"):
            recipe.TokenFile(copied)
        (copied / name).write_bytes(whole)
    np.save(copied / "ends.npy", np.load(folder / "ends.npy")[1:])  # the first two chunks in one
    with pytest.raises(FormatError, match=r"ends\.npy is another"):
        recipe.TokenFile(copied)
    shutil.copy(folder / "ends.npy", copied)
    other = FASTTokenizer(vocab_size=150).fit(CHUNKS)
    with pytest.raises(FormatError, match="the tokenizer that made the ids"):
        recipe.TokenFile(copied, other)
    assert len(recipe.TokenFile(copied, tokenizer)) == len(CHUNKS)
    other.save_pretrained(copied / "tokenizer")
    with pytest.raises(FormatError, match="the tokenizer that made the ids"):
        recipe.TokenFile(copied)


def test_data_of_several_files_are_never_in_memory_as_a_whole(tmp_path, monkeypatch, capsys):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    data = tmp_path / "data"
    data.mkdir()
    for file in range(2):
        count = 40
        actions = CHUNKS[file * 10 : file * 10 + 4].reshape(-1, 3)[:count]
        table = {"action": actions.tolist(), "episode_index": [file] * count, "frame_index": list(range(count))}
        parquet.write_table(pyarrow.table(table), data / f"{file}.parquet")
    whole = [chunk for part in recipe.batches_of([Episodes.load(data)], 8) for chunk in part]
    monkeypatch.setattr(Episodes, "load", lambda *a, **k: pytest.fail("all data in memory"))
    assert recipe.main(["--data", str(data), "--out", str(tmp_path / "tokens"), "--horizon", "8"]) == 0
    assert f"{len(whole)} chunks" in capsys.readouterr().out
    found = recipe.TokenFile(tmp_path / "tokens")
    made_by = FASTTokenizer.from_pretrained(tmp_path / "tokens" / "tokenizer")
    ids = made_by.encode(np.stack(whole))
    assert [row.tolist() for row in found] == rows([(ids, made_by.pad_mask(ids))])


def test_no_chunks(tokenizer, tmp_path):
    assert recipe.write_tokens(tokenizer, [], tmp_path) == 0
    assert len(recipe.TokenFile(tmp_path)) == 0
    assert len(np.load(tmp_path / "ids.npy")) == 0


def test_chunks_of_equal_length_have_no_pads(tmp_path):
    binning = BinningTokenizer(bins=16).fit(CHUNKS)
    recipe.write_tokens(binning, [CHUNKS], tmp_path)
    ids, mask = next(iter(DataLoader(recipe.TokenFile(tmp_path), batch_size=200, collate_fn=binning.collate)))
    np.testing.assert_array_equal(ids, binning.encode(CHUNKS))
    assert mask.all()


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_two_workers_read_the_map_and_collate_with_masks(folder, tokenizer, start):
    loader = DataLoader(
        recipe.TokenFile(folder),
        batch_size=32,
        num_workers=2,
        collate_fn=tokenizer.collate,
        multiprocessing_context=start,
        timeout=120,
    )
    batches = list(loader)
    assert rows(batches) == ids_of(tokenizer)
    assert all(bool((ids[~mask] == tokenizer.pad_id).all()) for ids, mask in batches)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_two_workers_encode_on_one_thread_each_with_kernels_from_the_cache(tokenizer, start):
    ids_of(tokenizer)  # the parent has encoded on all its threads, and its kernels are on disk
    for collate, check in ((recipe.EncodeChunks(tokenizer), False), (WhoAmI(tokenizer), True)):
        loader = DataLoader(
            list(CHUNKS),
            batch_size=50,
            num_workers=2,
            collate_fn=collate,
            multiprocessing_context=start,
            timeout=120,
        )
        found = list(loader)
        if check:
            before = sum(encode_chunks.stats.cache_misses.values())  # forked workers inherit the count
            assert all(worker in ((1, 0, 0), (1, 0, before)) for worker in found), found
        else:
            assert rows(found) == ids_of(tokenizer)


def test_smoke(capsys):
    assert recipe.main(["--smoke"]) == 0
    assert "read through 2 workers" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [[], ["--data", "x"], ["--smoke", "--data", "x", "--out", "y"]])
def test_wrong_options(wrong, capsys):
    with pytest.raises(SystemExit):
        recipe.main(wrong)
    assert "expected --smoke" in capsys.readouterr().err
