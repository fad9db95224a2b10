"""Byte-level BPE beside the `tokenizers` library, and reading ids beside a plain-Python UTF-8 validator."""

import json
from itertools import pairwise

import numpy as np
import pytest

from action_tokenizers.codecs.byte_bpe import (
    ByteTables,
    allowed_rows,
    build_byte_tables,
    choices_rows,
    decode_rows,
    encode_rows,
    locate_rows,
    parse_rows,
)
from tests.fakes.published import TextLayout, all_bytes, entry, random_data

Merges = list[tuple[str, str]]


def tables_of(entries: list[str], merges: Merges) -> ByteTables:
    number = {e: i for i, e in enumerate(entries)}
    rows = [(number[a], number[b], number[a + b]) for a, b in merges]
    return build_byte_tables(entries, np.array(rows, np.int32).reshape(-1, 3))


def encode(tables: ByteTables, texts: list[str]) -> list[list[int] | None]:
    """Ids of texts of one length; None where a byte is missing."""
    characters = np.array([[ord(c) for c in text] for text in texts], np.int32)
    out, lengths = np.full(3 * characters.size, -7, np.int32), np.empty(len(texts), np.int64)
    n = encode_rows(tables, characters, out, lengths)
    assert n == np.maximum(lengths, 0).sum()
    assert (out[n:] == -7).all() or n == 0 or (lengths < 0).any()
    ends = np.cumsum(np.maximum(lengths, 0))
    return [out[b - m : b].tolist() if m >= 0 else None for b, m in zip(ends, lengths, strict=True)]


def library(entries: list[str], merges: Merges):
    tokenizers = pytest.importorskip("tokenizers", reason="the judge of encoding")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={e: i for i, e in enumerate(entries)}, merges=merges))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return bpe


def texts(rng: np.random.Generator, pool: str, n: int, length: int) -> list[str]:
    """Half noise, half runs of one character, as zeros come."""
    out = []
    for i in range(n):
        codes = rng.integers(0, len(pool), length)
        if i % 2:
            codes = np.repeat(codes, rng.integers(1, 9, length))[:length]
        out.append("".join(pool[c] for c in codes))
    return out


POOLS = {
    "one byte": "abc !'st1\n",
    "around the zero of FAST+": "ŞşŠšŢţŤťŦ",
    "around the zero of UniVLA": "\x9b\x9c\x9d\x9e\x9f\xa0\xa1",
    "two and three bytes": "~\x7f\x80ÿĀ߿ࠀ漢\ud7ff ",
}


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("size", [0, 1, 30, 200])
def test_trained_merges_encode_as_the_library_does(pool, size):
    tokenizers = pytest.importorskip("tokenizers", reason="the judge of encoding")
    rng = np.random.default_rng(size)
    bpe = library([entry(bytes([b])) for b in range(256)], [])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=256 + size,
        min_frequency=2,
        initial_alphabet=[entry(bytes([b])) for b in range(256)],
        show_progress=False,
    )
    bpe.train_from_iterator(texts(rng, pool, 80, 60), trainer)
    vocab = bpe.get_vocab()
    merges = [tuple(m) for m in json.loads(bpe.to_str())["model"]["merges"]]
    tables = tables_of(sorted(vocab, key=vocab.get), merges)
    assert tables.merges is not None
    for length in (1, 2, 13, 300):
        fresh = texts(rng, pool, 40, length)
        assert encode(tables, fresh) == [bpe.encode(text).ids for text in fresh]


def random_merges(rng: np.random.Generator, alphabet: str, n: int) -> tuple[list[str], Merges]:
    """Merges of any order, several of which may make the same entry."""
    entries = list(alphabet)
    merges: Merges = []
    for _ in range(n):
        pair = tuple(rng.choice(entries, 2).tolist())
        if pair not in merges and len("".join(pair)) < 9:
            merges.append(pair)
            if "".join(pair) not in entries:
                entries.append("".join(pair))
    return entries, [merges[i] for i in rng.permutation(len(merges))]


def by_definition(entries: list[str], merges: Merges, word: list[str]) -> list[int]:
    """Always the earliest rule, and of it the leftmost pair."""
    while True:
        ranks = [(merges.index(pair), p) for p, pair in enumerate(pairwise(word)) if pair in merges]
        if not ranks:
            return [entries.index(part) for part in word]
        _, p = min(ranks)
        word[p : p + 2] = [word[p] + word[p + 1]]


def test_foreign_merges_encode_as_the_library_and_the_definition_say():
    """Shared products, rules before the rules that make their parts: nothing that training leaves."""
    rng = np.random.default_rng(0)
    slow = 0
    for trial in range(45):
        alphabet = "abc"[: 1 + trial % 3]
        entries, merges = random_merges(rng, alphabet, int(rng.integers(0, 16)))
        tables = tables_of(entries, merges)
        slow += tables.merges is None
        bpe = library(entries, merges)
        for length in (1, 2, 7, 40):
            fresh = texts(rng, alphabet, 6, length)
            found = encode(tables, fresh)
            assert found == [bpe.encode(text).ids for text in fresh], (entries, merges)
            assert found == [by_definition(entries, merges, list(text)) for text in fresh]
    assert 15 < slow < 45


def test_foreign_merges_that_are_in_order_go_the_fast_way():
    """Each makes an entry of its own from earlier ones, but not every entry can be reached."""
    rng = np.random.default_rng(1)
    for _ in range(60):
        entries, merges = ["a", "b"], []
        for _ in range(int(rng.integers(1, 12))):
            pair = tuple(rng.choice(entries, 2).tolist())
            if "".join(pair) not in entries:
                entries.append("".join(pair))
                merges.append(pair)
        tables = tables_of(entries, merges)
        assert tables.merges is not None
        for length in (1, 5, 40):
            fresh = texts(rng, "ab", 6, length)
            assert encode(tables, fresh) == [by_definition(entries, merges, list(text)) for text in fresh]


def test_ids_in_any_order():
    """A vocabulary need not number its bytes first and its merges by rank."""
    rng = np.random.default_rng(2)
    entries, merges = all_bytes(["ŢŢŢŢ".encode(), b"aab", "ţa".encode()])
    shuffled = [entries[i] for i in rng.permutation(len(entries))]
    tables, plain = tables_of(shuffled, merges), tables_of(entries, merges)
    assert tables.merges is not None
    fresh = texts(rng, "abŢţ", 20, 50)
    for ids, expected in zip(encode(tables, fresh), encode(plain, fresh), strict=True):
        assert [shuffled[i] for i in ids or []] == [entries[i] for i in expected or [-1]]


@pytest.mark.parametrize("order", ["fast", "slow"])
def test_a_missing_byte_is_said_and_never_dropped(order):
    merges: Merges = [("a", "a"), ("aa", "a"), ("a", "aa")] if order == "slow" else [("a", "a")]
    entries = ["a", entry(b"\xc2"), entry(b"\x80"), "aa"] + (["aaa"] if order == "slow" else [])
    tables = tables_of(entries, merges)
    assert (tables.merges is None) == (order == "slow")
    found = encode(tables, ["aaaa", "aaba", "a\x80aa", "a\x81aa", "b\x80aa", "aab\xc3", "\x80\x80aa"])
    assert [ids is None for ids in found] == [False, True, False, True, True, True, False]
    assert found[2] == [0, 1, 2, 3]
    assert found[6] == [1, 2, 1, 2, 3]


def test_a_raw_character_is_not_the_byte_it_decodes_to():
    """The published fit leaves `chr(5)` in the vocabulary, a twin of the byte 5, which no encoding ever writes."""
    twins = [chr(5), entry(b"\x05")]
    for entries in (twins, twins[::-1]):
        tables = tables_of(entries, [])
        assert encode(tables, ["\x05"]) == [[entries.index(twins[1])]]
    assert encode(tables_of(twins[:1], []), ["\x05"]) == [None]


def test_words_bound_the_merges():
    entries, merges = all_bytes([b"a1", b" a", b"a "])
    tables = tables_of(entries, merges)
    assert [len(ids or []) for ids in encode(tables, ["a1", " a", "a "])] == [2, 1, 2]


# ---- reading ----------------------------------------------------------------------------------------------------


def read(tables: ByteTables, row: list[int], length: int, low: int, high: int) -> tuple[int, bool, str]:
    ids = np.array([row], np.int64).reshape(1, -1)
    kept, complete, said = np.empty(1, np.int64), np.empty(1, np.bool_), np.empty(1, np.int64)
    parse_rows(tables.reader, ids, length, low, high, kept, complete)
    out = np.full((1, length), -1, np.int32)
    decode_rows(tables.reader, ids, kept, low, high, out, said)
    assert (out[0, said[0] :] == -1).all()
    return int(kept[0]), bool(complete[0]), "".join(map(chr, out[0, : said[0]]))


def tiny_vocabularies(n: int):
    """Vocabularies that a folder may hold, with the range of characters and the room to judge them by."""
    rng = np.random.default_rng(0)
    while n:
        data = random_data(rng)
        tables = tables_of([entry(d) for d in data], [])
        low = int(rng.choice([0, 0x41, 0x42, 0x7F, 0x80, 0x100, 0x800]))
        high = int(rng.choice([0x41, 0x7F, 0x80, 0xDF, 0x7FF, 0x800, 0xD7FF]))
        if low > high or tables.begins_inside() or tables.spelling[low : high + 1, 0].max() < 0:
            continue
        n -= 1
        yield rng, tables, TextLayout(data, low, high), int(rng.integers(1, 5))


def test_reading_is_that_of_a_plain_validator():
    outcomes = {True: 0, False: 0}
    for rng, tables, layout, length in tiny_vocabularies(100):
        for _ in range(20):
            # mostly ids that may follow, else every row would stop at once
            row: list[int] = []
            for _ in range(int(rng.integers(0, 3 * length + 2))):
                kept, text = layout.read(row, length)
                following: list[int] = []
                if kept == len(row):
                    pending = b"".join(layout.data[i] for i in row)[len(text.encode()) :]
                    following = list(layout.following(pending, length - len(text)))
                options = following if following and rng.random() < 0.85 else range(-2, len(layout.data) + 2)
                row.append(int(rng.choice(options)))
            kept, text = layout.read(row, length)
            assert read(tables, row, length, layout.low, layout.high) == (kept, len(text) == length, text)
            outcomes[len(text) == length] += 1
    assert min(outcomes.values()) > 200


def test_allowed_and_choices_are_what_enumeration_finds():
    """An id is allowed exactly if some completion exists, whatever bytes miss and wherever characters are cut."""
    cut, refused = 0, 0
    for rng, tables, layout, length in tiny_vocabularies(100):
        v = len(layout.data)
        for _ in range(6):
            row, pending, left, counts = [], b"", length, []
            while left:
                expected = np.zeros(v + 1, np.bool_)
                expected[list(layout.following(pending, left))] = True
                mask = np.zeros((1, v + 1), np.bool_)
                ids = np.array([row], np.int64).reshape(1, -1)
                allowed_rows(tables.reader, ids, length, layout.low, layout.high, mask)
                np.testing.assert_array_equal(mask[0], expected)
                assert expected.any()
                refused += int((~expected).sum())
                cut += len(pending) > 0
                counts.append(int(expected.sum()))
                row.append(int(rng.choice(np.flatnonzero(expected))))
                pending, said = layout.after(pending, row[-1], left) or (b"", "")
                left -= len(said)
            found = np.ones((1, len(row) + 2), np.int64)
            ids = np.array([[*row, -1, v]], np.int64)
            kept = np.array([len(row)])
            choices_rows(tables.reader, ids, kept, length, layout.low, layout.high, found)
            assert found[0].tolist() == [*counts, 1, 1]
    assert cut > 200
    assert refused > 1000


FORMS = {
    "a character": ("Ţ", True),
    "the last before the surrogates": ("\ud7ff", True),
    "the first of three bytes": ("\u0800", True),
    "an overlong one of two bytes": (b"\xc1\xbf", False),
    "an overlong one of three bytes": (b"\xe0\x9f\xbf", False),
    "a surrogate": (b"\xed\xa0\x80", False),
    "behind the surrogates": ("\ue000", False),
    "the sign of broken text": ("\ufffd", False),
    "four bytes": ("\U00010000", False),
    "a lonely continuation": (b"\x80", False),
    "a character cut short": (b"\xe2\x82A", False),
    "no UTF-8 byte": (b"\xff", False),
}


@pytest.mark.parametrize(("data", "fine"), FORMS.values(), ids=FORMS)
def test_forms_of_utf8(data, fine):
    """In one id, and byte by byte."""
    data = data.encode() if isinstance(data, str) else data
    entries, merges = all_bytes([data])
    tables = tables_of(entries, merges)
    for row in ([entries.index(entry(data))], [entries.index(entry(bytes([b]))) for b in data]):
        kept, complete, text = read(tables, row, 1, 0, 0xD7FF)
        assert complete == fine
        assert text == (data.decode() if fine else "")
        assert fine or kept < len(row)


def test_characters_out_of_bounds_are_refused():
    entries, merges = all_bytes(["ŢŢ".encode(), "Ţţ".encode()])
    tables = tables_of(entries, merges)
    both = [entries.index(entry("ŢŢ".encode())), entries.index(entry("Ţţ".encode()))]
    assert read(tables, both, 4, 0x162, 0x163) == (2, True, "ŢŢŢţ")
    assert read(tables, both, 4, 0x162, 0x162) == (1, False, "ŢŢ")
    assert read(tables, both, 4, 0x163, 0x200) == (0, False, "")
    assert read(tables, both, 3, 0x162, 0x163) == (1, False, "ŢŢ")  # no room
    assert read(tables, both, 2, 0x162, 0x163) == (1, True, "ŢŢ")  # the rest does not belong to the chunk


def test_bytes_that_begin_inside_a_character_must_be_ids():
    def tables(*data: bytes) -> ByteTables:
        return tables_of([entry(d) for d in data], [])

    assert not tables(b"a", b"\xc2", b"\x80").begins_inside()
    assert not tables(b"a", b"\xc2\x80").begins_inside()
    assert not tables(b"a", b"a\xe2\x82").begins_inside()
    assert not tables(b"\x80", b"\x80a").begins_inside()
    assert not tables(b"\x80", b"\x81", b"\x80\x81\x82").begins_inside()
    assert tables(b"a", b"\x80a").begins_inside()
    assert tables(b"\x80", b"\x80\x81").begins_inside()


def test_locate_counts_the_characters_an_id_is_part_of():
    entries, merges = all_bytes(["ŢŢ".encode(), b"\xa2\xc5", b"\x85\xa2a"])
    tables = tables_of(entries, merges)
    number = {e: i for i, e in enumerate(entries)}
    parts = ["ŢŢ".encode(), b"\xc5", b"\xa2\xc5", b"\xa2", b"\xe2", b"\x85", b"\xa2", b"a", b"\xe1", b"\x85\xa2a"]
    ids = np.array([[number[entry(part)] for part in parts]])
    length = len(b"".join(parts).decode())
    first, span = np.full(ids.shape, -9), np.full(ids.shape, -9)
    locate_rows(tables.reader, ids, np.array([len(parts)]), length, 0, 0xD7FF, first, span)
    assert first.tolist() == [[0, 2, 2, 3, 4, 4, 4, 5, 6, 6]]
    assert span.tolist() == [[2, 1, 2, 1, 1, 1, 1, 1, 1, 2]]
