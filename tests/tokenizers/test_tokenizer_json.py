"""`tokenizer.json` beside the library whose format it is, and what is refused: always a FormatError with the file."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from action_tokenizers.errors import FormatError
from action_tokenizers.tokenizers import tokenizer_json
from action_tokenizers.tokenizers.tokenizer_json import (
    MOST_SYMBOLS,
    read_byte_level,
    read_json_file,
    symbol_level,
    write_byte_level,
)
from tests.fakes.published import all_bytes, whole_json

PRETRAINED = Path(__file__).resolve().parents[3] / "shared" / "pretrained"
FOLDERS = ["physical-intelligence-fast", "univla-calvin-fast"]
needs_shared = pytest.mark.skipif(not PRETRAINED.is_dir(), reason="../shared/pretrained is not here")

ENTRIES, MERGES = all_bytes([b"ddd", b"de d", "Å¢".encode()])
WHOLE = whole_json(ENTRIES, MERGES)
TEXTS = ["d", "dddddd", "dedde d  ed", "ddéÅ¢Å¢", "d's 12\n d"]


def write(folder: Path, whole: Any) -> Path:
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(whole))
    return file


def refuses(file: Path, *words: str) -> None:
    with pytest.raises(FormatError) as refusal:
        read_byte_level(file)
    for word in (str(file.parent), file.name, "expected", *words):
        assert word in str(refusal.value)
    assert len(str(refusal.value)) < 600 + len(str(file))


def library(text: str) -> Any:
    tokenizers = pytest.importorskip("tokenizers", reason="the judge of its own format")
    return tokenizers.Tokenizer.from_str(text)


# ---- what is read -----------------------------------------------------------------------------------------------


@needs_shared
@pytest.mark.parametrize("folder", FOLDERS)
def test_reads_published_files_as_the_library_does(folder):
    file = PRETRAINED / folder / "tokenizer.json"
    tokens, merges = read_byte_level(file)
    bpe = library(file.read_text(encoding="utf-8"))
    assert {token: i for i, token in enumerate(tokens)} == bpe.get_vocab()
    assert [(tokens[a], tokens[b]) for a, b, _ in merges.tolist()] == [
        tuple(m) for m in json.loads(bpe.to_str())["model"]["merges"]
    ]
    assert all(tokens[a] + tokens[b] == tokens[c] for a, b, c in merges.tolist())


@needs_shared
@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_written_is_read_alike_here_and_there(folder, tmp_path):
    file = PRETRAINED / folder / "tokenizer.json"
    tokens, merges = read_byte_level(file)
    written = write_byte_level(tokens, merges)
    (tmp_path / "tokenizer.json").write_bytes(written)
    again, merges_again = read_byte_level(tmp_path / "tokenizer.json")
    assert again == tokens
    np.testing.assert_array_equal(merges_again, merges)
    ours, theirs = library(written.decode()), library(file.read_text(encoding="utf-8"))
    assert ours.get_vocab() == theirs.get_vocab()
    rng = np.random.default_rng(0)
    for _ in range(200):
        text = "".join(map(chr, rng.normal(300, 60, 80).astype(int).clip(0, 700)))
        ids = theirs.encode(text).ids
        assert ours.encode(text).ids == ids
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids, skip_special_tokens=False)


def test_merges_as_text_and_as_pairs_are_the_same(tmp_path):
    old = copy.deepcopy(WHOLE)
    old["model"]["merges"] = [" ".join(pair) for pair in MERGES]
    tokens, merges = read_byte_level(write(tmp_path, WHOLE))
    old_tokens, old_merges = read_byte_level(write(tmp_path, old))
    assert old_tokens == tokens == ENTRIES
    np.testing.assert_array_equal(old_merges, merges)


HARMLESS: dict[str, Any] = {
    "no version": {"version": ...},
    "no post-processor": {"post_processor": None},
    "absent": {"post_processor": ..., "normalizer": ..., "truncation": ..., "padding": ..., "added_tokens": ...},
    "an older model": {"model.type": ..., "model.byte_fallback": ..., "model.ignore_merges": ..., "model.dropout": ...},
    "empty instead of null": {"model.continuing_subword_prefix": "", "model.end_of_word_suffix": ""},
    "an older pre-tokenizer": {"pre_tokenizer.use_regex": ...},
}


def changed(whole: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    whole = copy.deepcopy(whole)
    *parents, name = path.split(".")
    inner = whole
    for parent in parents:
        inner = inner[parent]
    if value is ...:
        inner.pop(name)
    else:
        inner[name] = value
    return whole


@pytest.mark.parametrize("changes", HARMLESS.values(), ids=HARMLESS)
def test_older_and_shorter_files_are_read(changes, tmp_path):
    whole = WHOLE
    for path, value in changes.items():
        whole = changed(whole, path, value)
    tokens, merges = read_byte_level(write(tmp_path, whole))
    assert tokens == ENTRIES
    assert len(merges) == len(MERGES)


# ---- what is refused --------------------------------------------------------------------------------------------

BYTE_LEVEL = WHOLE["pre_tokenizer"]
OTHER_PIPELINES: dict[str, tuple[str, Any]] = {
    "a normalizer": ("normalizer", {"type": "NFC"}),
    "truncation": ("truncation", {"max_length": 5, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}),
    "padding": ("padding", {"strategy": "BatchLongest"}),
    "added tokens": ("added_tokens", [{"id": 0, "content": "d", "special": True}]),
    "no pre-tokenizer": ("pre_tokenizer", None),
    "another pre-tokenizer": ("pre_tokenizer", {"type": "Whitespace"}),
    "a prefix space": ("pre_tokenizer", {**BYTE_LEVEL, "add_prefix_space": True}),
    "no pattern": ("pre_tokenizer", {**BYTE_LEVEL, "use_regex": False}),
    "no decoder": ("decoder", None),
    "another decoder": ("decoder", {"type": "Fuse"}),
    "another post-processor": ("post_processor", {"type": "TemplateProcessing"}),
    "another model": ("model.type", "Unigram"),
    "dropout": ("model.dropout", 0.1),
    "an unknown token": ("model.unk_token", "d"),
    "fused unknowns": ("model.fuse_unk", True),
    "a prefix": ("model.continuing_subword_prefix", "##"),
    "a suffix": ("model.end_of_word_suffix", "</w>"),
    "byte fallback": ("model.byte_fallback", True),
    "merges to be ignored": ("model.ignore_merges", True),
}


@pytest.mark.parametrize(("path", "value"), OTHER_PIPELINES.values(), ids=OTHER_PIPELINES)
def test_anything_that_would_give_other_ids_is_refused(path, value, tmp_path):
    refuses(write(tmp_path, changed(WHOLE, path, value)), path.split(".")[-1] if path != "model.type" else "BPE")


SMALL = whole_json(["a", "b", "aa", "aab"], [("a", "a"), ("aa", "b")])
BAD_VOCABULARIES: dict[str, Any] = {
    "a gap": {"vocab": {"a": 0, "b": 1, "aa": 2, "aab": 4}},
    "an id twice": {"vocab": {"a": 0, "b": 1, "aa": 2, "aab": 2}},
    "a negative id": {"vocab": {"a": 0, "b": 1, "aa": 2, "aab": -1}},
    "an id that is true": {"vocab": {"b": 0, "a": True, "aa": 2, "aab": 3}},
    "an id that is no integer": {"vocab": {"a": 0.0, "b": 1, "aa": 2, "aab": 3}},
    "an id as text": {"vocab": {"a": "0", "b": 1, "aa": 2, "aab": 3}},
    "a huge id": {"vocab": {"a": 0, "b": 1, "aa": 2, "aab": 10**30}},
    "an empty entry": {"vocab": {"": 0, "a": 1, "b": 2, "aa": 3, "aab": 4}},
    "half a surrogate pair": {"vocab": {"a": 0, "b": 1, "aa": 2, "aab": 3, "\ud800": 4}},
    "nothing": {"vocab": {}, "merges": []},
    "a list": {"vocab": ["a", "b"]},
    "merges of an entry that is not there": {"merges": [["a", "c"]]},
    "merges that make an entry that is not there": {"merges": [["b", "b"]]},
    "merges in the wrong order of parts": {"merges": [["a", "a"], ["b", "aa"]]},
    "a merge twice": {"merges": [["a", "a"], ["a", "a"]]},
    "a merge of three": {"merges": [["a", "a", "b"]]},
    "a merge of one": {"merges": [["a"]]},
    "a merge as text of one": {"merges": ["aa"]},
    "a merge as text of three": {"merges": ["a a b"]},
    "a merge of numbers": {"merges": [[0, 0]]},
    "a merge of lists": {"merges": [[["a"], ["a"]]]},
    "a merge of half a surrogate pair": {"merges": [["a", "\udc00"]]},
    "merges as an object": {"merges": {"a": "a"}},
    "no merges": {"merges": None},
    "merges of a whole book": {"merges": [["a" * 100_000, "b"]]},
}


@pytest.mark.parametrize("model", BAD_VOCABULARIES.values(), ids=BAD_VOCABULARIES)
def test_vocabularies_and_merges_that_do_not_belong_together(model, tmp_path):
    refuses(write(tmp_path, {**SMALL, "model": {**SMALL["model"], **model}}))


def test_an_entry_written_twice_is_a_gap(tmp_path):
    """JSON keeps the last of two equal keys."""
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(SMALL).replace('"b": 1', '"a": 1'))
    refuses(file)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value: of long lists and objects the first, the last and one between."""
    yield path
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        for key in keys if len(keys) < 20 else (keys[0], keys[len(keys) // 2], keys[-1]):
            yield from places(value[key], (*path, key))


def put(whole: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    whole = copy.deepcopy(whole)
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return whole


VALUES: list[Any] = [None, True, False, 0, 1, -3, 1.5, 10**400, "", "d", "\ud800", [], [1], ["d", "d"], {}, {"d": 1}]


def refusal_of(file: Path) -> str:
    """The message; empty where the file is read."""
    try:
        read_byte_level(file)
    except FormatError as error:
        return str(error)
    return ""


def test_every_place_with_every_kind_of_value(tmp_path):
    """Refused by name; what is accepted is plain byte-level BPE to the library too, if it takes it."""
    refused = accepted = 0
    for path in places(WHOLE):
        for value in VALUES:
            whole = put(WHOLE, path, value)
            file = write(tmp_path, whole)
            message = refusal_of(file)
            if message:
                assert str(tmp_path) in message
                refused += 1
                continue
            tokens, merges = read_byte_level(file)
            plain = whole_json(tokens, [(tokens[a], tokens[b]) for a, b, _ in merges.tolist()])
            try:
                theirs = library(json.dumps(whole))
            except Exception:  # the library is stricter about what changes nothing
                continue
            ours = library(json.dumps(plain))
            accepted += 1
            assert ours.get_vocab() == theirs.get_vocab()
            assert [ours.encode(t).ids for t in TEXTS] == [theirs.encode(t).ids for t in TEXTS], (path, value)
    assert refused > 300
    assert accepted > 20


def test_truncated_at_every_byte(tmp_path):
    data = json.dumps(SMALL).encode()
    file = tmp_path / "tokenizer.json"
    for stop in range(len(data)):
        file.write_bytes(data[:stop])
        refuses(file)


@needs_shared
@pytest.mark.parametrize("folder", FOLDERS)
def test_published_files_truncated(folder, tmp_path):
    data = (PRETRAINED / folder / "tokenizer.json").read_bytes().rstrip()
    file = tmp_path / "tokenizer.json"
    for stop in np.linspace(0, len(data) - 1, 60).astype(int):
        file.write_bytes(data[:stop])
        refuses(file)


def test_random_bytes_changed(tmp_path):
    rng = np.random.default_rng(0)
    data = json.dumps(SMALL).encode()
    file = tmp_path / "tokenizer.json"
    refused = 0
    for _ in range(600):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data), int(rng.integers(1, 4))):
            damaged[at] = int(rng.integers(0, 256))
        file.write_bytes(damaged)
        message = refusal_of(file)
        if message:
            assert str(tmp_path) in message
            refused += 1
        else:
            tokens, merges = read_byte_level(file)
            assert len(tokens) == 4
            assert all(tokens[a] + tokens[b] == tokens[c] for a, b, c in merges.tolist())
    assert refused > 300


NO_JSON: dict[str, bytes] = {
    "empty": b"",
    "text": b"not JSON",
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "binary": bytes(range(256)),
    "no UTF-8": b'{"model": "\xff"}',
    "deeply nested": b"[" * 200_000,
    "deeply nested objects": b'{"a":' * 200_000,
    "a number of many digits": b'{"model": ' + b"1" * 10_000 + b"}",
}


@pytest.mark.parametrize("data", NO_JSON.values(), ids=NO_JSON)
def test_no_json(data, tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_bytes(data)
    refuses(file)
    with pytest.raises(FormatError, match="expected"):
        read_json_file(file)


@pytest.mark.parametrize("depth", [50, 300, 600, 900, 950, 975, 985, 990, 995])
def test_values_nested_as_deep_as_json_goes(depth, tmp_path):
    """The message must not fail where reading did not."""
    for name in ("post_processor", "added_tokens", "model"):
        file = write(tmp_path, {**SMALL, name: "here"})
        file.write_text(file.read_text().replace('"here"', "[" * depth + "]" * depth))
        refuses(file)


def test_no_file(tmp_path):
    refuses(tmp_path / "tokenizer.json", "no such file")
    (tmp_path / "tokenizer.json").mkdir()
    refuses(tmp_path / "tokenizer.json", "no such file")


def test_large_files_are_not_even_read(tmp_path, monkeypatch):
    file = tmp_path / "tokenizer.json"
    with file.open("wb") as stream:
        stream.truncate(tokenizer_json.MOST_BYTES + 1)  # a hole, no bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("read"))
    refuses(file, f"at most {tokenizer_json.MOST_BYTES} bytes")


def test_large_vocabularies_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_json, "MOST_IDS", 3)
    refuses(write(tmp_path, SMALL), "1 to 3 ids")


# ---- over our own symbols ---------------------------------------------------------------------------------------


def test_symbols_are_characters_that_no_tool_touches():
    """Ids equal those of the merges applied in order, for any text of the symbols."""
    merges = np.array([[0, 0], [4, 1], [4, 4], [6, 5], [2, 0]], np.int32)
    bpe = library(symbol_level(4, merges).decode())
    assert bpe.get_vocab_size() == 9
    rng = np.random.default_rng(0)
    for _ in range(100):
        ids = symbols = rng.choice([0, 0, 0, 1, 2, 3], 30).tolist()
        for new, (a, b) in enumerate(merges.tolist(), 4):
            done: list[int] = []
            for i in ids:
                if done and (done[-1], i) == (a, b):
                    done[-1] = new
                else:
                    done.append(i)
            ids = done
        text = "".join(chr(0xF0000 + s) for s in symbols)
        assert bpe.encode(text).ids == ids
        assert bpe.decode(ids) == text


def test_as_many_symbols_as_there_are_private_characters():
    bpe = library(symbol_level(MOST_SYMBOLS, np.empty((0, 2), np.int32)).decode())
    assert bpe.get_vocab_size() == MOST_SYMBOLS
    assert bpe.encode(chr(0xF0000) + chr(0xF0000 + MOST_SYMBOLS - 1)).ids == [0, MOST_SYMBOLS - 1]
