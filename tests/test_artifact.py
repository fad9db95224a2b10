"""Configs and tensors: what is taken apart comes together again, and what does not belong together is refused."""

import copy
import json
import subprocess
import sys
import textwrap
import tracemalloc
from functools import cache
from importlib.metadata import packages_distributions
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from action_tokenizers import (
    ActionValueError,
    BinningTokenizer,
    FASTTokenizer,
    FormatError,
    NotFittedError,
    UnknownTokenizerError,
    artifact,
    registry,
)
from action_tokenizers.artifact import from_parts, to_json_bytes, to_parts
from action_tokenizers.card import model_card
from tests.fakes.fitted import MADE, chunks, episodes, fit

FILE = "somewhere/config.json"
Config = dict[str, Any]
Tensors = dict[str, torch.Tensor]
installed = cache(packages_distributions)


@pytest.fixture(autouse=True)
def quick_look_up(monkeypatch):
    """Ask the environment once which distributions it holds, not at every save."""
    monkeypatch.setattr(artifact, "packages_distributions", installed)


@cache
def _parts(name: str) -> tuple[Config, Tensors]:
    return to_parts(fit(name))


def parts(name: str = "fast") -> tuple[Config, Tensors]:
    """Config and tensors of one's own, to spoil."""
    return copy.deepcopy(_parts(name))


def refused(config: Any, tensors: Tensors, says: str | None = None) -> str:
    """Return the message of the FormatError that rebuilding must end in."""
    with pytest.raises(FormatError, match=says) as caught:
        from_parts(config, tensors, FILE)
    assert "expected" in str(caught.value)
    return str(caught.value)


# ---- there and back ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MADE)
def test_what_is_taken_apart_comes_together(name):
    tokenizer, (config, tensors) = fit(name), parts(name)
    again = from_parts(json.loads(to_json_bytes(config)), tensors)
    ids = tokenizer.encode(chunks())
    np.testing.assert_array_equal(again.encode(chunks()), ids)
    assert again.decode(ids, horizon=6).tobytes() == tokenizer.decode(ids, horizon=6).tobytes()
    assert to_parts(again)[0] == config
    assert to_json_bytes(to_parts(again)[0]) == to_json_bytes(config)


def test_the_parts_are_no_window_into_the_tokenizer():
    tokenizer, (config, tensors) = from_parts(*parts()), parts()
    loaded = from_parts(config, tensors)
    for tensor in tensors.values():
        tensor.zero_()
    config["provenance"]["sources"].append("more")
    again, state = to_parts(loaded)
    state["range.low"] += 1
    assert again == to_parts(tokenizer)[0]
    np.testing.assert_array_equal(loaded.encode(chunks()), tokenizer.encode(chunks()))


def test_an_unfitted_tokenizer_has_no_parts():
    with pytest.raises(NotFittedError, match="fit"):
        to_parts(BinningTokenizer())


@pytest.mark.parametrize(
    ("value", "says"), [({"a": float("nan")}, "nan|compliant"), ({"a": {1}}, "set"), ({"a": np.float32(1)}, "float32")]
)
def test_values_that_json_cannot_hold(value, says):
    with pytest.raises(ActionValueError, match=f"(?i){says}"):
        to_json_bytes(value)


def test_parameters_that_json_cannot_hold():
    tokenizer = from_parts(*parts("binning"))
    tokenizer._params["strategy"] = {1, 2}
    with pytest.raises(ActionValueError, match="set"):
        to_parts(tokenizer)
    tokenizer._params["strategy"] = float("inf")
    with pytest.raises(ActionValueError, match="finite"):
        to_parts(tokenizer)


# ---- configs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [None, [], "text", {}, {"model_type": "llama"}, {"model_type": None}])
def test_a_config_of_something_else(config):
    assert FILE in refused(config, {})


@pytest.mark.parametrize("version", [2, 1000, "1", None, 1.5, [1], 0, -1, True])
def test_a_format_version_of_the_future_or_that_never_was(version):
    config, tensors = parts()
    config["format_version"] = version
    assert FILE in refused(config, tensors, "format_version")


@pytest.mark.parametrize("place", [(), ("params",), ("fitted",), ("fitted", "sizes")])
def test_an_unknown_key(place):
    config, tensors = parts()
    inner = config
    for name in place:
        inner = inner[name]
    inner["surprise"] = 1
    assert FILE in refused(config, tensors, "surprise")


@pytest.mark.parametrize("name", sorted(artifact.KEYS))
def test_a_missing_key(name):
    config, tensors = parts()
    del config[name]
    assert FILE in refused(config, tensors)


@pytest.mark.parametrize("name", sorted(artifact.FACTS))
def test_a_missing_fact(name):
    config, tensors = parts()
    del config["fitted"][name]
    assert FILE in refused(config, tensors)


@pytest.mark.parametrize("name", sorted(artifact.KEYS))
@pytest.mark.parametrize("value", [None, 7, "text", [1], {"a": 1}])
def test_a_key_of_another_type(name, value):
    config, tensors = parts()
    if name != "provenance" or not isinstance(value, dict):
        refused({**config, name: value}, tensors)


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("horizon", None),
        ("horizon", 7),
        ("horizon", 0),
        ("horizon", -6),
        ("horizon", "6"),
        ("horizon", 10**30),
        ("horizon", float("inf")),
        ("action_dim", None),
        ("action_dim", 4),
        ("action_dim", -3),
        ("action_dim", 2.5),
        ("vocab_size", 159),
        ("max_tokens", 1),
        ("pad_id", None),
        ("pad_id", 0),
        ("range_keys", []),
        ("range_keys", ["a", "b"]),
        ("range_keys", 5),
        ("range_keys", [["default"]]),
        ("sizes", {}),
        ("sizes", None),
        ("sizes", {"alphabet": -1, "radix": 0, "merges": 0}),
        ("sizes", {"alphabet": "many", "radix": 0, "merges": 0}),
    ],
)
@pytest.mark.parametrize("name", ["fast", "binning", "chunk kmeans", "residual_vq"])
def test_facts_that_contradict_the_rest(name, fact, value):
    config, tensors = parts(name)
    if config["fitted"][fact] != value:
        config["fitted"][fact] = value
        refused(config, tensors)


@pytest.mark.parametrize(
    "value",
    [
        {"range": {"keys": ["a"], "low": [1.0], "high": [0.0]}},
        {"range": {"keys": ["a"], "low": [0.0]}},
        {"range": 5},
        {"nonsense": 1},
        {"tokenizer_type": "binning", "params": {}, "fitted": {}},
        {"tokenizer_type": "no_such_type", "params": {}, "fitted": None},
        {"tokenizer_type": ["binning"], "params": {}, "fitted": None},
        {"tokenizer_type": "binning", "params": [], "fitted": None},
        [{"nonsense": [1]}],
    ],
)
def test_params_that_are_no_params(value):
    config, tensors = parts()
    config["params"]["range"] = value
    refused(config, tensors)


@pytest.mark.parametrize(
    "value", ["ten", None, [10], -1.0, 0, float("nan"), float("inf"), 1e300, pytest.param(10**400, id="10**400")]
)
def test_a_scale_that_is_no_scale(value):
    config, tensors = parts()
    config["params"]["scale"] = value
    refused(config, tensors)


@pytest.mark.parametrize("name", sorted(artifact.PROVENANCE))
@pytest.mark.parametrize("value", [5, True, "text", [1], {"a": 1}, None])
def test_a_provenance_of_another_kind(name, value):
    config, tensors = parts()
    config["provenance"][name] = value
    if value is None or isinstance(value, artifact.PROVENANCE[name]):
        model_card(to_parts(from_parts(config, tensors))[0])
    else:
        assert FILE in refused(config, tensors, name)


@pytest.mark.parametrize("kind", ["binning", "kmeans", "residual_vq"])
def test_the_config_of_another_family(kind):
    config, tensors = parts()
    refused({**config, "tokenizer_type": kind}, tensors)


def test_an_unknown_tokenizer_type_names_what_is_known():
    config, tensors = parts()
    with pytest.raises(UnknownTokenizerError, match=r"binning.*no_such_type"):
        from_parts({**config, "tokenizer_type": "no_such_type"}, tensors)


def test_an_unknown_tokenizer_type_names_the_distribution_that_wrote_it(monkeypatch):
    """A third party's tokenizer, saved where it is installed and loaded where it is not."""
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))

    class Theirs(BinningTokenizer, name="theirs"):
        pass

    Theirs.__module__ = "their_module.bins"
    monkeypatch.setattr(artifact, "packages_distributions", lambda: {"their_module": ["their-tokenizers"]})
    config, tensors = to_parts(Theirs(horizon=6, bins=4).fit(episodes()))
    loaded = from_parts(config, tensors)
    assert type(loaded) is Theirs
    assert to_parts(loaded)[0] == config
    del registry._classes["theirs"]
    with pytest.raises(UnknownTokenizerError, match="their-tokenizers"):
        from_parts(config, tensors)


# ---- tensors ----------------------------------------------------------------------------------------------------


def test_the_tensors_of_another_tokenizer():
    other = FASTTokenizer(horizon=6, vocab_size=150).fit(episodes())
    refused(parts()[0], to_parts(other)[1], FILE)


@pytest.mark.parametrize("name", MADE)
def test_missing_and_unknown_tensors(name):
    config, tensors = parts(name)
    for gone in tensors:
        refused(config, {name: t for name, t in tensors.items() if name != gone}, gone.split(".")[0])
    refused(config, {**tensors, "surprise": torch.zeros(1)}, "surprise")


@pytest.mark.parametrize("name", MADE)
def test_tensors_of_another_shape_or_dtype(name):
    config, tensors = parts(name)
    for name, tensor in tensors.items():
        wrong = [torch.cat([tensor, tensor]), tensor[None], tensor.double() if tensor.is_floating_point() else None]
        wrong.append(tensor.to(torch.int16 if tensor.dtype != torch.int16 else torch.int64))
        for other in (w for w in wrong if w is not None and (w.shape, w.dtype) != (tensor.shape, tensor.dtype)):
            refused(config, {**tensors, name: other}, name.split(".")[0])


@pytest.mark.parametrize("name", MADE)
def test_tensors_that_hold_no_numbers(name):
    """They would come out as actions of a robot."""
    config, tensors = parts(name)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            for value in (float("nan"), float("inf"), -float("inf")):
                spoiled = tensor.clone()
                spoiled.view(-1)[0] = value
                refused(config, {**tensors, name: spoiled})


@pytest.mark.parametrize("name", ["binning", "fast"])
def test_a_range_upside_down(name):
    config, tensors = parts(name)
    refused(config, {**tensors, "range.low": tensors["range.high"] + 1, "range.high": tensors["range.low"]})


@pytest.mark.parametrize(
    "change",
    [
        lambda alphabet: alphabet.flip(0),
        lambda alphabet: alphabet * 0,
        lambda alphabet: alphabet + 1_000_000,
        lambda alphabet: -alphabet.abs() - 1,
    ],
)
def test_an_alphabet_that_is_none(change):
    config, tensors = parts()
    refused(config, {**tensors, "alphabet": change(tensors["alphabet"])})


@pytest.mark.parametrize("bad", [[-1, 0], [0, 10**6], [5, 2**31 - 1], "itself", "twice", "digit", "doubling"])
def test_merges_that_are_none(bad):
    config, tensors = parts()
    facts = config["fitted"]
    base = facts["vocab_size"] - 1 - facts["sizes"]["merges"]
    assert facts["sizes"]["radix"] > 0
    assert facts["sizes"]["merges"] > 8
    merges = tensors["merges"]
    if bad == "itself":
        merges[3] = torch.tensor([base + 3, 0])
    elif bad == "twice":
        merges[3] = merges[2]
    elif bad == "digit":
        merges[3] = torch.tensor([base - 1, 0])
    elif bad == "doubling":
        merges[0] = torch.tensor([0, 0])
        for i in range(1, len(merges)):
            merges[i] = base + i - 1
    else:
        merges[3] = torch.tensor(bad)
    refused(config, tensors)


def test_binning_cells_that_do_not_exist():
    config, tensors = parts("binning")
    for name, value in [("neutral", 99), ("neutral", -1), ("centres", 1.5), ("edges", float("nan"))]:
        spoiled = tensors[name].clone()
        spoiled.view(-1)[0] = value
        refused(config, {**tensors, name: spoiled})
    refused(config, {**tensors, "edges": tensors["edges"].flip(1)})


# ---- configs that ask for the moon ------------------------------------------------------------------------------

ENORMOUS = 10**15


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("fast", ("fitted", "sizes", "alphabet"), ENORMOUS),
        ("fast", ("fitted", "sizes", "merges"), ENORMOUS),
        ("fast", ("fitted", "sizes", "radix"), ENORMOUS),
        ("fast", ("fitted", "action_dim"), ENORMOUS),
        ("fast", ("fitted", "horizon"), ENORMOUS),
        ("fast", ("params", "scale"), float(ENORMOUS)),
        ("binning", ("fitted", "sizes", "bins"), [ENORMOUS] * 3),
        ("binning", ("fitted", "horizon"), ENORMOUS),
        ("binning", ("fitted", "action_dim"), ENORMOUS),
        ("kmeans", ("fitted", "sizes", "codewords"), [ENORMOUS, 2]),
        ("kmeans", ("fitted", "horizon"), ENORMOUS),
        ("kmeans", ("fitted", "action_dim"), 10**8),
        ("chunk kmeans", ("fitted", "horizon"), ENORMOUS),
        ("residual_vq", ("fitted", "sizes", "codewords"), [ENORMOUS] * 2),
        ("residual_vq", ("fitted", "sizes", "basis"), ENORMOUS),
        ("residual_vq", ("fitted", "horizon"), ENORMOUS),
    ],
)
def test_an_enormous_size_is_refused_without_memory(name, place, value):
    """Sizes are compared with the tensors before anything of that size exists."""
    config, tensors = parts(name)
    inner = config
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    tracemalloc.start()
    try:
        message = refused(config, tensors)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 << 20
    # torch's CPU allocator was never asked
    assert "allocate" not in message
    assert "memory" not in message


# configs whose facts agree with each other, and with their small tensors, yet mean tables of many GiB
CONSISTENT_AND_ENORMOUS = """
    import json, resource, sys
    from pathlib import Path
    import numpy as np, torch
    from safetensors.torch import load_file
    from action_tokenizers import FormatError
    from action_tokenizers.artifact import from_parts
    from action_tokenizers.codecs.dct import coefficient_bound
    from action_tokenizers.codecs.symbols import Alphabet

    config, asked = json.loads(sys.stdin.read())
    few = {"alphabet": torch.zeros(1, dtype=torch.int32), "merges": torch.zeros(0, 2, dtype=torch.int32)}
    tensors = load_file(sys.argv[1]) | few
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
    said = []
    for scale, radix in asked:
        size = Alphabet(np.zeros(1, np.int32), coefficient_bound(6, scale), radix).size
        config["params"]["scale"] = scale
        config["fitted"].update(vocab_size=size + 1, pad_id=size, max_tokens=36)
        config["fitted"]["sizes"] = {"alphabet": 1, "radix": radix, "merges": 0}
        try:
            tokenizer = from_parts(config, tensors)
            # small after all: then it must also work
            tokenizer.decode(tokenizer.encode(torch.zeros(1, 6, 3)))
            said.append("works")
        except FormatError:
            said.append("refused")
        except MemoryError:
            said.append("out of memory")
    print(json.dumps(said))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits its own address space")
def test_a_consistent_config_cannot_ask_for_tables_larger_than_memory(tmp_path):
    config, tensors = parts()
    save_file(tensors, tmp_path / "tensors")
    asked = [(2e8, 1), (1e9, 70_000), (1e17, 10**9), (10.0, 7)]
    command = [sys.executable, "-c", textwrap.dedent(CONSISTENT_AND_ENORMOUS), str(tmp_path / "tensors")]
    given = json.dumps([config, asked])
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-600:]
    assert json.loads(done.stdout) == ["refused", "refused", "refused", "works"]
