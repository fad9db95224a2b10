"""Errors can be caught at every width: as ours, as what Python would have raised, or one by one."""

import inspect
import pickle

import pytest

from action_tokenizers import errors

BUILT_IN_BASES = {
    "NotFittedError": RuntimeError,
    "ActionShapeError": ValueError,
    "ActionValueError": ValueError,
    "TokenError": ValueError,
    "FormatError": ValueError,
    "HubError": OSError,
    "MissingExtraError": ImportError,
}


@pytest.mark.parametrize(("name", "built_in"), BUILT_IN_BASES.items())
def test_each_is_ours_and_pythons(name, built_in):
    cls = getattr(errors, name)
    assert cls.__mro__[1:3] == (errors.ActionTokenizerError, built_in)


def test_the_hierarchy_is_the_designs():
    assert errors.ActionTokenizerError.__bases__ == (Exception,)
    assert errors.UnknownTokenizerError.__bases__ == (errors.FormatError,)
    assert set(errors.__all__) == {*BUILT_IN_BASES, "ActionTokenizerError", "UnknownTokenizerError"}


def test_every_error_of_the_module_is_listed():
    found = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert found == set(errors.__all__)


@pytest.mark.parametrize("name", errors.__all__)
def test_messages_survive_a_worker_process(name):
    error = pickle.loads(pickle.dumps(getattr(errors, name)("expected 3 dims, got 4")))
    assert type(error) is getattr(errors, name)
    assert str(error) == "expected 3 dims, got 4"
