"""Files of networks: refused unless they are what was written."""

import json

import pytest
import torch

from action_tokenizers import FormatError
from action_tokenizers.cloning import saving


def test_there_and_back(tmp_path):
    tensors = {"w": torch.arange(6.0).reshape(2, 3).T, "n": torch.tensor([1, 2])}
    path = saving.write(tmp_path / "new", "net", {"sizes": {"a": 1}}, tensors)
    assert path == (tmp_path / "new").resolve()
    config, back = saving.read(path, "net", {"sizes"})
    assert config == {"sizes": {"a": 1}}
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "net.json and net.safetensors"),
        ("[]", "format_version 1"),
        (json.dumps({"format_version": 2, "sizes": 1}), "upgrade"),
        (json.dumps({"format_version": 1}), r"expected the keys \['sizes'\]"),
    ],
)
def test_other_configs(tmp_path, text, match):
    saving.write(tmp_path, "net", {"sizes": 1}, {})
    (tmp_path / "net.json").write_text(text)
    with pytest.raises(FormatError, match=match):
        saving.read(tmp_path, "net", {"sizes"})


def test_other_tensors():
    module = torch.nn.Linear(2, 1)
    own = module.state_dict()
    for tensors, match in (
        ({"weight": own["weight"]}, r"\['bias'\]"),
        ({**own, "weight": torch.zeros(2, 2)}, r"\['weight'"),
        ({**own, "bias": torch.tensor([torch.inf])}, r"NaN or inf in \['bias'\]"),
    ):
        with pytest.raises(FormatError, match=match):
            saving.fill(module, own, tensors, "net")
    wanted = {"weight": torch.ones(1, 2), "bias": torch.ones(1)}
    saving.fill(module, own, wanted, "net")
    assert bool((module.weight == 1).all())
