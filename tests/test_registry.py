"""Names of tokenizer types: built in, defined here, or brought by another distribution."""

from importlib.metadata import EntryPoint
from typing import Any

import pytest

from action_tokenizers import ActionTokenizer, ActionTokenizerError, UnknownTokenizerError, registry
from action_tokenizers.registry import BUILT_IN, known_types, register, tokenizer_class


@pytest.fixture(autouse=True)
def own_table(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))


def offer(monkeypatch, *points: tuple[str, str]) -> None:
    """Let the environment hold these entry points (name, value)."""
    found = [EntryPoint(name, value, "action_tokenizers") for name, value in points]

    def entry_points(*, group: str, name: str | None = None) -> list[EntryPoint]:
        assert group == "action_tokenizers"
        return [point for point in found if name in (None, point.name)]

    monkeypatch.setattr(registry, "entry_points", entry_points)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_types_are_where_the_table_says(name):
    cls = tokenizer_class(name)
    assert f"{cls.__module__}:{cls.__qualname__}" == BUILT_IN[name]
    assert cls.tokenizer_type == name
    assert issubclass(cls, ActionTokenizer)


def test_built_in_types_are_imported_when_asked_for(monkeypatch):
    """Nothing is registered yet; asking imports the module, which registers its class."""
    held = registry._classes.pop("binning")
    asked = []

    def import_module(name: str) -> Any:
        asked.append(name)
        register("binning", held)
        return __import__(name, fromlist=["x"])

    monkeypatch.setattr(registry, "import_module", import_module)
    assert "binning" in known_types()
    assert asked == []
    assert tokenizer_class("binning") is held
    assert asked == ["action_tokenizers.tokenizers.binning"]


def test_known_types_are_sorted_and_say_where_they_come_from(monkeypatch):
    offer(monkeypatch, ("zz_plugin", "plugin.module:Plugin"))
    known = known_types()
    assert list(known) == sorted(known)
    assert BUILT_IN.items() <= known.items()
    assert known["zz_plugin"] == "plugin.module:Plugin"


def test_an_unknown_name_lists_the_known_ones(monkeypatch):
    offer(monkeypatch, ("zz_plugin", "plugin.module:Plugin"))
    with pytest.raises(UnknownTokenizerError) as caught:
        tokenizer_class("no_such_type", distribution="their-tokenizers 3.1")
    message = str(caught.value)
    assert all(repr(name) in message for name in [*BUILT_IN, "zz_plugin", "no_such_type"])
    assert "their-tokenizers 3.1" in message


def test_without_a_distribution_there_is_no_advice():
    with pytest.raises(UnknownTokenizerError) as caught:
        tokenizer_class("no_such_type")
    assert "None" not in str(caught.value)
    assert "written by" not in str(caught.value)


def test_a_subclass_with_a_name_is_known_at_once():
    class Mine(ActionTokenizer, name="mine_for_a_test"):
        pass

    assert tokenizer_class("mine_for_a_test") is Mine
    assert Mine.tokenizer_type == "mine_for_a_test"
    assert known_types()["mine_for_a_test"].endswith("Mine")


def test_a_subclass_without_a_name_registers_nothing():
    before = dict(registry._classes)

    class Base(ActionTokenizer):
        pass

    assert registry._classes == before
    assert not hasattr(Base, "tokenizer_type")


def test_the_same_cell_run_twice_replaces_the_class():
    def cell() -> type:
        class Mine(ActionTokenizer, name="mine_for_a_test"):
            pass

        return Mine

    first, second = cell(), cell()
    assert first is not second
    assert tokenizer_class("mine_for_a_test") is second


def test_another_class_of_the_same_name_is_refused():
    class Mine(ActionTokenizer, name="mine_for_a_test"):
        pass

    with pytest.raises(ActionTokenizerError, match=r"mine_for_a_test.*Mine.*Other.*another name"):

        class Other(ActionTokenizer, name="mine_for_a_test"):
            pass

    assert tokenizer_class("mine_for_a_test") is Mine


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_names_of_built_in_types_are_taken(name):
    with pytest.raises(ActionTokenizerError, match=name):

        class Impostor(ActionTokenizer, name=name):
            pass

    assert tokenizer_class(name).__name__ != "Impostor"


class Plugin:
    """Stands for the class of another distribution."""


class OtherPlugin:
    """Stands for the class of a third one."""


def test_an_entry_point_is_loaded_when_its_name_is_asked_for(monkeypatch):
    loaded = []
    monkeypatch.setattr(EntryPoint, "load", lambda self: loaded.append(self.name) or Plugin)
    offer(monkeypatch, ("zz_plugin", "plugin:Plugin"), ("zz_other", "plugin:Other"))
    known_types()
    tokenizer_class("binning")
    assert loaded == []
    assert tokenizer_class("zz_plugin") is Plugin
    assert tokenizer_class("zz_plugin") is Plugin
    assert loaded == ["zz_plugin"]


def test_two_distributions_with_one_name_are_refused(monkeypatch):
    classes = {"a:Plugin": Plugin, "b:OtherPlugin": OtherPlugin}
    monkeypatch.setattr(EntryPoint, "load", lambda self: classes[self.value])
    offer(monkeypatch, ("zz_plugin", "a:Plugin"), ("zz_plugin", "b:OtherPlugin"))
    with pytest.raises(ActionTokenizerError, match=r"zz_plugin.*Plugin"):
        tokenizer_class("zz_plugin")


def test_an_entry_point_cannot_take_a_built_in_name(monkeypatch):
    monkeypatch.setattr(EntryPoint, "load", lambda self: Plugin)
    offer(monkeypatch, ("binning", "plugin:Plugin"))
    assert tokenizer_class("binning").__name__ == "BinningTokenizer"
    assert known_types()["binning"] == BUILT_IN["binning"]


def test_a_broken_distribution_does_not_hide_the_others(monkeypatch):
    def load(self: EntryPoint) -> type:
        if self.name == "zz_broken":
            raise ImportError("no module named their_dependency")
        return Plugin

    monkeypatch.setattr(EntryPoint, "load", load)
    offer(monkeypatch, ("zz_broken", "broken:Broken"), ("zz_plugin", "plugin:Plugin"))
    with pytest.raises(ImportError, match="their_dependency"):
        tokenizer_class("zz_broken")
    assert "zz_broken" not in registry._classes
    assert tokenizer_class("zz_plugin") is Plugin
