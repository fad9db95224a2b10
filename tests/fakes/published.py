"""Published FAST folders made up for tests, and what their ids mean written a second time: slow, in plain Python."""

import codecs
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
MODEL = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
CONFIG = {
    "action_dim": None,
    "auto_map": {"AutoProcessor": "processing_action_tokenizer.UniversalActionProcessor"},
    "min_token": -100,
    "processor_class": "UniversalActionProcessor",
    "scale": 10,
    "time_horizon": None,
    "vocab_size": 1024,
}
MOST = 0xD7FF


def _alphabet() -> list[str]:
    own = [b for b in range(256) if 0x21 <= b <= 0x7E or 0xA1 <= b <= 0xAC or b >= 0xAE]
    others = iter(range(0x100, 0x200))
    return [chr(b) if b in own else chr(next(others)) for b in range(256)]


ALPHABET = _alphabet()


def entry(data: bytes) -> str:
    """How a vocabulary writes some bytes."""
    return "".join(ALPHABET[b] for b in data)


def data_of(written: str) -> bytes:
    """What an entry stands for."""
    if all(c in ALPHABET for c in written):
        return bytes(ALPHABET.index(c) for c in written)
    return written.encode()


def whole_json(entries: list[str], merges: list[tuple[str, str]]) -> dict[str, Any]:
    """The content of a tokenizer.json."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL,
        "post_processor": {**BYTE_LEVEL, "trim_offsets": False},
        "decoder": BYTE_LEVEL,
        "model": {**MODEL, "vocab": {e: i for i, e in enumerate(entries)}, "merges": [list(m) for m in merges]},
    }


def write_published(folder: Path, whole: dict[str, Any], place: str = "tokenizer.json", **config: Any) -> Path:
    """Write a folder as `physical-intelligence/fast` looks; `config` changes processor_config.json."""
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    (folder / place).write_text(json.dumps(whole), encoding="utf-8")
    (folder / "processor_config.json").write_text(json.dumps({**CONFIG, **config}))
    return folder


def all_bytes(merged: list[bytes]) -> tuple[list[str], list[tuple[str, str]]]:
    """A vocabulary of every byte, and merges that build `merged` from the left, in this order."""
    entries = [entry(bytes([b])) for b in range(256)]
    merges = []
    for data in merged:
        for stop in range(2, len(data) + 1):
            made = entry(data[:stop])
            if made not in entries:
                entries.append(made)
                merges.append((entry(data[: stop - 1]), entry(data[stop - 1 : stop])))
    return entries, merges


class TextLayout:
    """Ids are bytes, bytes are UTF-8, characters are coefficients; a sequence is valid if it says `length` of them.

    Args:
        data: the bytes of each id.
        low: the first character there can be.
        high: the last one.
    """

    def __init__(self, data: list[bytes], low: int, high: int) -> None:
        self.data, self.low, self.high = data, low, high
        self.completable = cache(self._completable)
        self.inside = [i for i, d in enumerate(data) if d[0] & 0xC0 == 0x80]
        # between two characters there is always a way if the bytes of one character are ids
        spelled = (chr(c).encode() for c in range(low, high + 1))
        self.fillable = any(all(bytes([b]) in data for b in character) for character in spelled)

    @classmethod
    def of(cls, tokenizer: Any, horizon: int) -> "TextLayout":
        """Of a tokenizer of which only what its folder says is believed."""
        params, state = tokenizer.get_params(), tokenizer.state_dict()
        text, ends = bytes(state["tokens"].tolist()), state["ends"].tolist()
        entries = [text[a:b].decode() for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        limit = 1 if params["range"] != "open" else params["limit"]
        bound = round(limit * params["scale"] * horizon**0.5)
        low = params["min_token"]
        return cls([data_of(e) for e in entries], max(0, -bound - low), min(MOST, bound - low))

    def after(self, pending: bytes, token: int, left: int) -> tuple[bytes, str] | None:
        """The unfinished bytes behind an id and the characters it completes; None where the id does not fit."""
        decoder = codecs.getincrementaldecoder("utf-8")("strict")
        try:
            said = decoder.decode(pending + self.data[token])
        except UnicodeDecodeError:
            return None
        rest: bytes = decoder.getstate()[0]
        if len(said) + bool(rest) > left or not all(self.low <= ord(c) <= self.high for c in said):
            return None
        return rest, said

    def _completable(self, pending: bytes, left: int) -> bool:
        if not pending and self.fillable:
            return True
        return any(True for _ in self.following(pending, left))

    def following(self, pending: bytes, left: int) -> Any:
        """The ids behind which the chunk can still be completed, as enumerating all sequences finds."""
        for token in self.inside if pending else range(len(self.data)):
            found = self.after(pending, token, left)
            if found is not None:
                rest, said = found
                if len(said) == left or self.completable(rest, left - len(said)):
                    yield token

    def read(self, row: list[int], length: int) -> tuple[int, str]:
        """How many leading ids can begin a chunk, and the characters that they say."""
        pending, text = b"", ""
        for p, token in enumerate(row):
            left = length - len(text)
            found = self.after(pending, token, left) if left and 0 <= token < len(self.data) else None
            if found is None or (len(found[1]) < left and not self.completable(found[0], left - len(found[1]))):
                return p, text
            pending, text = found[0], text + found[1]
        return len(row), text

    def valid(self, row: list[int], length: int, pad: int) -> bool:
        """Whether the ids say a chunk and nothing but pads follows."""
        kept, text = self.read(row, length)
        return len(text) == length and all(token == pad for token in row[kept:])


def random_data(rng: np.random.Generator) -> list[bytes]:
    """A tiny vocabulary of bytes: some alone, some joined across characters, some that are no UTF-8 at all."""
    pool = [0x41, 0x7F, 0xC2, 0xC3, 0xC1, 0xE0, 0xE1, 0xED, 0xEF, 0xF0, 0x80, 0x9F, 0xA0, 0xBF, 0xBD]
    single = [bytes([b]) for b in pool if rng.random() < 0.7]
    joined = {bytes(rng.choice(pool, int(rng.integers(2, 6))).tolist()) for _ in range(6)}
    whole = ["A", "\x7f", "\x80", "ß", "\u0800", "\ud7ff", "\ufffd", "Ã\x80", "\u07ffA"]
    text = "".join(rng.choice(whole, 3)).encode()
    cut = sorted(rng.integers(0, len(text) + 1, 2).tolist())
    parts = {text[: cut[0]], text[cut[0] : cut[1]], text[cut[1] :], text} - {b""}
    return [*single, *sorted((joined | parts) - set(single))]
