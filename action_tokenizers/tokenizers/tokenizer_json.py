"""`tokenizer.json`, the file format of the `tokenizers` library, read and written without that library.

Published FAST tokenizers keep a byte-level BPE in it. Our own FAST writes one over its integer symbols, so that
other tools can look at it or encode with it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from action_tokenizers.errors import FormatError

__all__ = ["MOST_SYMBOLS", "read_byte_level", "read_json_file", "symbol_level", "write_byte_level"]

MOST_BYTES = 64 << 20
MOST_IDS = 1 << 20
# our integer symbols become characters of the Unicode planes that are private, so no tool normalises or splits them
PRIVATE = 0xF0000
MOST_SYMBOLS = 0xFFFE

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_PLAIN = {
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}


def read_json_file(file: Path) -> dict[str, Any]:
    """Return the JSON object in `file`.

    Raises:
        FormatError: missing, too large, or no JSON object.
    """
    if not file.is_file():
        raise FormatError(f"expected {file.name} in {file.parent}, got no such file")
    if file.stat().st_size > MOST_BYTES:
        raise FormatError(f"expected at most {MOST_BYTES} bytes in {file}, got {file.stat().st_size}")
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"expected JSON in {file}, got {error}; the file is damaged or cut short") from error
    if not isinstance(value, dict):
        raise FormatError(f"expected a JSON object in {file}, got a {type(value).__name__}")
    return value


def read_byte_level(file: Path) -> tuple[list[str], npt.NDArray[np.int32]]:
    """Return the entry of each id, and the merges `(m, 3)` as ids left, right, product.

    Raises:
        FormatError: damaged, or anything that would give other ids than plain byte-level BPE; names what.
    """
    whole = read_json_file(file)
    model = whole.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise FormatError(f"expected a BPE model in {file}, got {_brief(model)}")
    _check_plain(whole, model, file)
    return _vocabulary_and_merges(model, file)


def _check_plain(whole: dict[str, Any], model: dict[str, Any], file: Path) -> None:
    before, after, last = whole.get("pre_tokenizer"), whole.get("decoder"), whole.get("post_processor")
    fine = {
        "pre_tokenizer": isinstance(before, dict)
        and before.get("type") == "ByteLevel"
        and before.get("add_prefix_space") is False
        and before.get("use_regex", True) is True,
        "decoder": isinstance(after, dict) and after.get("type") == "ByteLevel",
        "post_processor": last is None or (isinstance(last, dict) and last.get("type") == "ByteLevel"),
        "normalizer": whole.get("normalizer") is None,
        "truncation": whole.get("truncation") is None,
        "padding": whole.get("padding") is None,
        "added_tokens": not whole.get("added_tokens"),
    }
    for name, is_fine in fine.items():
        if not is_fine:
            raise FormatError(
                f"expected the {name} of plain byte-level BPE in {file}, as published FAST tokenizers have it, "
                f"got {_brief(whole.get(name))}"
            )
    for name, value in _PLAIN.items():
        if model.get(name, value) not in (value, "" if value is None else value):  # older releases have fewer keys
            raise FormatError(f"expected model.{name} {value!r} in {file}, got {_brief(model.get(name))}")


def _vocabulary_and_merges(model: dict[str, Any], file: Path) -> tuple[list[str], npt.NDArray[np.int32]]:
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list) or not 0 < len(vocab) <= MOST_IDS:
        raise FormatError(
            f"expected model.vocab as an object of 1 to {MOST_IDS} ids and model.merges as a list in {file}"
        )
    tokens = [""] * len(vocab)
    for token, i in vocab.items():
        if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < len(vocab) or tokens[i] or not token:
            raise FormatError(
                f"expected ids 0..{len(vocab) - 1}, one per entry, in model.vocab of {file}, "
                f"got {_brief(token)}: {_brief(i)}"
            )
        tokens[i] = token
    try:
        "".join(tokens).encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"expected entries that UTF-8 can hold in model.vocab of {file}, got half a pair") from error
    rows = np.empty((len(merges), 3), np.int32)
    for rank, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise FormatError(f"expected merges of two entries in {file}, got {_brief(merge)} at rank {rank}")
        left, right = pair
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise FormatError(
                f"expected merges of entries that model.vocab holds in {file}, got {_brief(merge)} at rank {rank}; "
                "vocabulary and merges do not belong together"
            )
        rows[rank] = vocab[left], vocab[right], vocab[left + right]
    if len({(a, b) for a, b, _ in rows.tolist()}) < len(rows):
        raise FormatError(f"expected every merge once in {file}, got some twice")
    return tokens, rows


def write_byte_level(tokens: Sequence[str], merges: npt.NDArray[np.int32]) -> bytes:
    """Return a tokenizer.json that `read_byte_level`, and the `tokenizers` library, read as the same BPE."""
    model = {
        "type": "BPE",
        **_PLAIN,
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": [[tokens[left], tokens[right]] for left, right, _ in merges.tolist()],
    }
    return _file(model, pre_tokenizer=_BYTE_LEVEL, decoder=_BYTE_LEVEL)


def symbol_level(base: int, merges: npt.NDArray[np.int32]) -> bytes:
    """Return a tokenizer.json over integer symbols: symbol i < `base` is the character U+F0000 + i.

    Args:
        base: number of symbols, at most MOST_SYMBOLS.
        merges: `(m, 2)`; merge i makes the id base + i.
    """
    text = [chr(PRIVATE + i) for i in range(base)]
    pairs = []
    for left, right in merges.tolist():
        pairs.append([text[left], text[right]])
        text.append(text[left] + text[right])
    vocab = {token: i for i, token in enumerate(text)}
    return _file({"type": "BPE", **_PLAIN, "vocab": vocab, "merges": pairs}, decoder={"type": "Fuse"})


def _file(model: dict[str, Any], **parts: Any) -> bytes:
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        **parts,
        "model": model,
    }
    return (json.dumps(whole, ensure_ascii=False, indent=1) + "\n").encode()


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
