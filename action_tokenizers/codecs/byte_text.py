"""The text a published FAST tokenizer writes coefficients in: one character each, as UTF-8 bytes, split into words.

Two facts of byte-level BPE (GPT-2, Radford et al. 2019) that our own FAST does without: every byte has a printable
character that stands for it in a vocabulary file, and merges never cross the borders of the words that a pattern
cuts the text into. A coefficient c becomes the character c - min_token, so both concern robot actions.
"""

import unicodedata
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from action_tokenizers.codecs.kernel import kernel

__all__ = ["MOST_CHARACTER", "character_classes", "spell_token", "split_words", "token_bytes", "write_characters"]

_Array = npt.NDArray[Any]

# above it lie the surrogates, which no UTF-8 text may hold
MOST_CHARACTER = 0xD7FF

OTHER, LETTER, NUMBER, WHITESPACE = 0, 1, 2, 3
SPACE = 0x20
_WHITESPACE = [
    *range(0x09, 0x0E),
    SPACE,
    0x85,
    0xA0,
    0x1680,
    *range(0x2000, 0x200B),
    0x2028,
    0x2029,
    0x202F,
    0x205F,
    0x3000,
]
# letters since Unicode 16: an id must not depend on the Unicode version that a Python brings
_NEW_LETTERS = [0x1C89, 0x1C8A, 0xA7CB, 0xA7CC, 0xA7CD, 0xA7DA, 0xA7DB, 0xA7DC]


@cache
def _byte_characters() -> tuple[str, ...]:
    """Return the character that stands for each byte: itself where it is printable, else one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in printable]
    return tuple(chr(byte if byte in printable else 256 + hidden.index(byte)) for byte in range(256))


@cache
def _character_bytes() -> dict[str, int]:
    return {character: byte for byte, character in enumerate(_byte_characters())}


def token_bytes(token: str) -> bytes:
    """Return the bytes that a vocabulary entry stands for.

    An entry with a character that stands for no byte is its own text: the published `fit` leaves such ones.

    Example:
        >>> token_bytes("Å¢"), token_bytes(chr(5))
        (b'\\xc5\\xa2', b'\\x05')
    """
    known = _character_bytes()
    if all(character in known for character in token):
        return bytes(known[character] for character in token)
    return token.encode()


def spell_token(data: bytes) -> str:
    """Return the vocabulary entry of some bytes.

    Example:
        >>> spell_token(b"\\xc5\\xa2")
        'Å¢'
    """
    characters = _byte_characters()
    return "".join(characters[byte] for byte in data)


@cache
def character_classes() -> npt.NDArray[np.uint8]:
    """Return what each character 0..MOST_CHARACTER is to the pattern: other, letter, number or whitespace."""
    classes = np.zeros(MOST_CHARACTER + 1, np.uint8)
    for character in range(MOST_CHARACTER + 1):
        kind = unicodedata.category(chr(character))[0]
        classes[character] = LETTER if kind == "L" else NUMBER if kind == "N" else OTHER
    classes[_WHITESPACE] = WHITESPACE
    classes[_NEW_LETTERS] = LETTER
    classes.setflags(write=False)
    return classes


@kernel
def write_characters(coefficients: _Array, scale: Any, min_token: int, low: int, high: int, characters: _Array) -> None:
    """Round `coefficients (n, l)` float32, times `scale` float32, to `characters (n, l)` int32, clipped to low..high.

    Ties round to even, as the published FAST processor does.
    """
    for i in range(coefficients.shape[0]):
        for j in range(coefficients.shape[1]):
            value = np.rint(coefficients[i, j] * scale) - min_token
            characters[i, j] = high if value > high else np.int32(value) if value >= low else low


@kernel
def _contraction(characters: _Array, start: Any) -> Any:
    """Return the length of 's 't 'm 'd 're 've 'll at `start`, 0 where there is none."""
    n = len(characters)
    if characters[start] != 0x27 or start + 1 >= n:
        return 0
    first = characters[start + 1]
    if first == 0x73 or first == 0x74 or first == 0x6D or first == 0x64:
        return 2
    if start + 2 < n:
        second = characters[start + 2]
        if second == 0x65 and (first == 0x72 or first == 0x76):
            return 3
        if first == 0x6C and second == 0x6C:
            return 3
    return 0


@kernel
def _word(characters: _Array, classes: _Array, start: Any) -> Any:
    """Return where the word that begins at `start` ends.

    's|'t|'re|'ve|'m|'ll|'d| ?letters| ?numbers| ?others|whitespace not before a word|whitespace
    """
    n = len(characters)
    short = _contraction(characters, start)
    if short > 0:
        return start + short
    begin = start
    if characters[start] == SPACE and start + 1 < n and classes[characters[start + 1]] != WHITESPACE:
        begin = start + 1
    kind = classes[characters[begin]]
    stop = begin + 1
    while stop < n and classes[characters[stop]] == kind:
        stop += 1
    if kind == WHITESPACE and stop < n and stop - start > 1:
        stop -= 1  # the last whitespace goes with what follows
    return stop


@kernel
def split_words(characters: _Array, classes: _Array, ends: _Array) -> int:
    """Write where each word ends to `ends` and return the number of words.

    Args:
        characters: `(n,)` int32 in 0..MOST_CHARACTER.
        classes: as `character_classes` returns them.
        ends: `(n,)`, takes the ends.
    """
    words = 0
    start = 0
    while start < len(characters):
        start = _word(characters, classes, start)
        ends[words] = start
        words += 1
    return words
