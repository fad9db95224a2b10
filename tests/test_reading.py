import numpy as np
import pytest

from action_tokenizers import BinningTokenizer, FASTTokenizer, TokenError
from action_tokenizers.data import smooth_chunks

CHUNKS = smooth_chunks(200, 6, 2, seed=0)


@pytest.fixture(scope="module")
def fast():
    return FASTTokenizer(vocab_size=128).fit(CHUNKS)


@pytest.fixture(scope="module")
def binning():
    return BinningTokenizer(bins=16).fit(CHUNKS)


def message(tokenizer, rows):
    with pytest.raises(TokenError) as error:
        tokenizer.decode(rows)
    return str(error.value)


def test_says_which_row_and_how_many(binning):
    ids = binning.encode(CHUNKS[:5])
    ids[2, 3] = 99
    ids[4, 0] = -1
    text = message(binning, ids)
    assert "id 99 at position 3" in text
    assert "row 2, 2 of 5 rows" in text
    assert "(6, 2)" in text
    assert "0..15" in text


def test_says_that_ids_are_missing(binning, fast):
    ids = binning.encode(CHUNKS[0])
    assert "an end after 11" in message(binning, ids[:11])
    row = fast.encode(CHUNKS[0])
    n = int(fast.length(row))
    row[n - 1] = fast.pad_id
    assert f"an end after {n - 1}" in message(fast, row)
    assert f"then only the pad {fast.pad_id}" in message(fast, row)


def test_says_that_ids_are_left_over(binning, fast):
    ids = binning.encode(CHUNKS[0])
    assert "2 more after the 12" in message(binning, np.append(ids, [0, 0]))
    row = fast.encode(CHUNKS[0])
    assert "more after the" in message(fast, np.append(row, 0))
