"""Slots against brute force over every row of ids that a tiny vocabulary can form."""

import itertools
import math
from typing import Any

import numpy as np
import pytest

from action_tokenizers import ActionTokenizer, BinningTokenizer, KMeansTokenizer, ResidualVQTokenizer
from action_tokenizers.slots import SlotTokenizer


def fitted(cls: type[ActionTokenizer], **params: Any) -> ActionTokenizer:
    rng = np.random.default_rng(0)
    chunks = rng.uniform(-1, 1, (60, 2, 2)).astype(np.float32)
    return cls(range="unit", **params).fit(chunks)


TINY = {
    "shared bins": lambda: fitted(BinningTokenizer, bins=[2, 3]),
    "own bins": lambda: fitted(BinningTokenizer, bins=[3, 2], shared_ids=False),
    "k-means steps": lambda: fitted(KMeansTokenizer, codebook_size=3),
    "k-means groups": lambda: fitted(KMeansTokenizer, codebook_size=2, groups=[[1], [0]]),
    "k-means chunks": lambda: fitted(KMeansTokenizer, codebook_size=4, scope="chunk"),
    "residual": lambda: fitted(ResidualVQTokenizer, levels=2, codebook_size=3),
}


@pytest.fixture(params=TINY)
def tokenizer(request) -> ActionTokenizer:
    return TINY[request.param]()


def choices(tokenizer: ActionTokenizer) -> list[list[int]]:
    """The ids of each position, written down by hand from what the families document."""
    match tokenizer:
        case BinningTokenizer():
            bins = tokenizer.get_params()["bins"]
            if tokenizer.get_params()["shared_ids"]:
                return [list(range(k)) for k in bins] * 2
            return [list(range(bins[0])), list(range(bins[0], sum(bins)))] * 2
        case KMeansTokenizer():
            if tokenizer.get_params()["scope"] == "chunk":
                return [list(range(4))]
            return [[0, 1, 2]] * 2 if tokenizer.get_params()["groups"] is None else [[0, 1], [2, 3]] * 2
        case _:
            return [[0, 1, 2], [3, 4, 5]]


def test_is_a_slot_tokenizer(tokenizer):
    assert isinstance(tokenizer, SlotTokenizer)
    assert tokenizer.pad_id is None
    assert tokenizer.max_tokens == len(choices(tokenizer))


def test_every_row_of_ids_is_judged_as_brute_force_judges(tokenizer):
    """All rows up to one id too long, ids from -1 to one beyond the vocabulary."""
    slots = choices(tokenizer)
    chunks = set(itertools.product(*slots))
    for n in range(len(slots) + 2):
        rows = np.array(list(itertools.product(range(-1, tokenizer.vocab_size + 1), repeat=n)), np.int64)
        if len(rows) > 20_000:
            rows = rows[np.random.default_rng(n).permutation(len(rows))[:20_000]]
        rows = np.concatenate([rows, [[*chunk, 0][:n] for chunk in sorted(chunks)]]) if n else rows
        valid = tokenizer.try_decode(rows)[1]
        length = tokenizer.length(rows)
        for row, is_valid, end in zip(map(tuple, rows.tolist()), valid.tolist(), length.tolist(), strict=True):
            assert is_valid == (row in chunks)
            assert end == (len(slots) if row[: len(slots)] in chunks else -1)


def test_allowed_is_every_id_after_which_some_chunk_remains(tokenizer):
    slots = choices(tokenizer)
    chunks = list(itertools.product(*slots))
    for m in range(len(slots) + 1):
        prefixes = sorted({chunk[:m] for chunk in chunks})
        strangers = [(tokenizer.vocab_size,) * m, (-1,) * m] if m else []
        rows = [*prefixes, *strangers]
        mask = tokenizer.allowed(np.array(rows, np.int64).reshape(len(rows), m))
        for prefix, line in zip(rows, mask, strict=True):
            expected = {chunk[m] for chunk in chunks if chunk[:m] == prefix and len(chunk) > m}
            assert set(np.flatnonzero(line).tolist()) == expected


def test_bits_are_the_logarithm_of_the_number_of_chunks(tokenizer):
    slots = choices(tokenizer)
    ids = np.array([[slot[0] for slot in slots], [slot[-1] for slot in slots]])
    assert tokenizer.bits(ids).tolist() == pytest.approx([math.log2(math.prod(map(len, slots)))] * 2)


def test_encoding_fills_every_slot_from_its_own_ids(tokenizer):
    rng = np.random.default_rng(1)
    ids = tokenizer.encode(rng.uniform(-1, 1, (300, 2, 2)).astype(np.float32))
    for position, slot in enumerate(choices(tokenizer)):
        assert set(ids[:, position].tolist()) == set(slot)


def test_an_open_horizon_has_slots_for_any_number_of_steps():
    rng = np.random.default_rng(2)
    episodes = [rng.uniform(-1, 1, (n, 2)).astype(np.float32) for n in (9, 14)]
    tokenizer = BinningTokenizer(bins=[3, 2], shared_ids=False, range="unit").fit(episodes)
    assert tokenizer.horizon is None
    assert (tokenizer.pad_id, tokenizer.vocab_size) == (5, 6)
    for horizon in (1, 3, 10):
        assert tokenizer.max_tokens_for(horizon) == 2 * horizon
        ids = np.array([[0, 3] * horizon, [2, 4] * (horizon - 1) + [5, 5]])
        assert tokenizer.length(ids, horizon=horizon).tolist() == [2 * horizon, -1]
        assert tokenizer.try_decode(ids, horizon=horizon)[1].tolist() == [True, False]
        after = tokenizer.allowed(ids[:1], horizon=horizon)[0]
        assert np.flatnonzero(after).tolist() == [5]  # then only the end
    longer = np.array([[0, 3, 0, 3, 5, 5]])
    assert tokenizer.length(longer, horizon=2).tolist() == [4]
    assert tokenizer.try_decode(longer, horizon=2)[1].tolist() == [True]
