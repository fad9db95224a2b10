"""Coefficients as text: bytes, words and rounding, beside the `tokenizers` library and plain Python."""

import unicodedata
from itertools import pairwise

import numpy as np
import pytest

from action_tokenizers.codecs.byte_text import (
    MOST_CHARACTER,
    character_classes,
    spell_token,
    split_words,
    token_bytes,
    write_characters,
)

# letters, digits, other signs, spaces of several kinds, what contractions are made of, and characters of 2 and 3 bytes
MIXED = [*" \t\n\xa0\u2003\u3000'", *"stmdrevlSTMD", *"ab1²½٣", *"!?\x00\x1c\x85", *"é\u0301Ţ€漢ꟍ\ud7ff"]


def words(text: str) -> list[str]:
    characters = np.array([ord(c) for c in text], np.int32)
    ends = np.empty(len(characters), np.int64)
    n = split_words(characters, character_classes(), ends)
    stops = [0, *ends[:n].tolist()]
    assert stops[-1] == len(text)
    return [text[a:b] for a, b in pairwise(stops)]


@pytest.fixture(scope="module")
def byte_level():
    tokenizers = pytest.importorskip("tokenizers", reason="the judge of the word borders")
    return tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def same_words(byte_level, text: str) -> bool:
    return [spell_token(word.encode()) for word in words(text)] == [w for w, _ in byte_level.pre_tokenize_str(text)]


def test_every_character_in_every_company(byte_level):
    """Each character behind a letter, a number, another sign and spaces, and before a letter."""
    wrong = []
    for code in range(MOST_CHARACTER + 1):
        c = chr(code)
        text = f"A{c}1{c}!{c}\t{c} {c}  {c}A"
        if not same_words(byte_level, text):
            wrong.append(hex(code))
    assert not wrong


@pytest.mark.parametrize("kind", ["mixed", "ascii", "any"])
def test_random_texts(byte_level, kind):
    rng = np.random.default_rng(0)
    pool = np.array({"mixed": [ord(c) for c in MIXED], "ascii": range(128), "any": range(MOST_CHARACTER + 1)}[kind])
    for _ in range(2000):
        n = int(rng.integers(1, 60))
        text = "".join(map(chr, rng.choice(pool, n)))
        if rng.random() < 0.3:  # runs, as of zeros
            text = "".join(c * int(k) for c, k in zip(text, rng.integers(1, 5, n), strict=True))
        assert same_words(byte_level, text), ascii(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", ["a"]),
        ("ab12!?", ["ab", "12", "!?"]),
        ("a b", ["a", " b"]),
        ("a  b", ["a", " ", " b"]),
        ("a\n\nb", ["a", "\n", "\n", "b"]),
        ("a \n", ["a", " \n"]),
        ("it's", ["it", "'s"]),
        ("'sll'll", ["'s", "ll", "'ll"]),
        ("'l", ["'", "l"]),
        ("'S", ["'", "S"]),
        ("!'s", ["!'", "s"]),
        (" '", [" '"]),
        ("'", ["'"]),
        ("  ", ["  "]),
    ],
)
def test_words_by_hand(text, expected):
    """What the pattern says, for where `tokenizers` is not installed."""
    assert words(text) == expected


def test_classes_follow_the_standard_and_not_the_python():
    classes = character_classes()
    assert len(classes) == MOST_CHARACTER + 1 == 0xD800
    assert not classes.flags.writeable
    for code in [*range(0x250), 0x1680, 0x2003, 0x3000]:
        c = chr(code)
        # str.isspace also takes the separators 0x1C..0x1F, which no pattern calls whitespace
        space = c.isspace() and not 0x1C <= code <= 0x1F
        expected = 3 if space else {"L": 1, "N": 2}.get(unicodedata.category(c)[0], 0)
        assert classes[code] == expected, hex(code)
    assert (classes[[0x1C89, 0xA7CB, 0xA7DC]] == 1).all()  # unknown to the Unicode data of Python 3.11


def test_every_byte_has_a_printable_character_of_its_own():
    spelled = [spell_token(bytes([byte])) for byte in range(256)]
    assert len(set(spelled)) == 256
    assert all(len(s) == 1 and s.isprintable() and not s.isspace() for s in spelled)
    assert [token_bytes(s) for s in spelled] == [bytes([byte]) for byte in range(256)]
    assert spelled[0x20] == "Ġ"
    assert spelled[0x21:0x7F] == [chr(byte) for byte in range(0x21, 0x7F)]


def test_the_characters_of_bytes_are_those_of_the_library(byte_level):
    assert {spell_token(bytes([byte])) for byte in range(256)} == set(byte_level.alphabet())


def test_entries_and_bytes_are_inverse():
    rng = np.random.default_rng(0)
    for _ in range(200):
        data = rng.integers(0, 256, int(rng.integers(0, 9)), np.uint8).tobytes()
        assert token_bytes(spell_token(data)) == data


@pytest.mark.parametrize("entry", [chr(5), chr(0x7F), chr(0x85), chr(0xAD), chr(400), "a b", "Å\x00", "漢"])
def test_an_entry_that_spells_no_bytes_is_its_own_text(entry):
    """As the library decodes it."""
    assert token_bytes(entry) == entry.encode()


def test_entries_as_the_library_decodes_them():
    tokenizers = pytest.importorskip("tokenizers", reason="the judge of decoding")
    decoder = tokenizers.decoders.ByteLevel()
    for entry in [*map(chr, range(0x200)), "Å¢", "Å", "Ġa", "a b", "Åģ"]:
        assert token_bytes(entry).decode(errors="replace") == decoder.decode([entry]), ascii(entry)


def test_rounding_is_numpys():
    rng = np.random.default_rng(0)
    coefficients = np.concatenate([rng.normal(0, 30, 4000), np.arange(-40, 40) / 20]).astype(np.float32)[None]
    for scale in (10, 50, 0.3, 1e-6, 7.7):
        out = np.empty(coefficients.shape, np.int32)
        write_characters(coefficients, np.float32(scale), -354, 100, 600, out)
        expected = np.clip(np.around(coefficients * np.float32(scale)) + 354, 100, 600)
        np.testing.assert_array_equal(out, expected)


def test_nothing_comes_out_of_bounds():
    wild = np.array([[np.inf, -np.inf, np.nan, 3e38, -3e38, 1e10, 0]], np.float32)
    out = np.empty(wild.shape, np.int32)
    write_characters(wild, np.float32(1000), -5, 2, 9, out)
    np.testing.assert_array_equal(out, [[9, 2, 2, 9, 2, 9, 5]])
