"""A missing optional package is one line that says what to install."""

import json
import sys

import pytest

from action_tokenizers.errors import ActionTokenizerError, MissingExtraError
from action_tokenizers.extras import require


def test_returns_the_module():
    assert require("json", "data") is json
    assert require("json.decoder", "data") is json.decoder


@pytest.mark.parametrize("module", ["no_such_package_here", "json.no_such_part", "no_such_package_here.part"])
def test_names_the_package_and_the_extra(module):
    with pytest.raises(MissingExtraError) as caught:
        require(module, "plots")
    message = str(caught.value)
    assert module in message
    assert "pip install 'action-tokenizers[plots]'" in message
    assert "\n" not in message
    assert isinstance(caught.value, ActionTokenizerError)
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value.__cause__, ImportError)


def test_a_blocked_package_counts_as_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"h5py.*action-tokenizers\[data\]"):
        require("h5py", "data")
