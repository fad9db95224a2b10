import warnings

import pytest

from action_tokenizers import warn as module
from action_tokenizers.warn import warn


def inside(depth: int) -> None:
    """A function of the package, as far as `warn` can tell, that gets to its warning through others of it."""
    if depth:
        LOCAL["inside"](depth - 1)
    else:
        LOCAL["warn"]("something", LOCAL["category"])


LOCAL: dict = {}


@pytest.mark.parametrize("depth", [0, 1, 5])
@pytest.mark.parametrize("category", [UserWarning, RuntimeWarning])
def test_a_warning_points_to_the_line_outside_of_the_package(depth, category):
    LOCAL.update({"warn": warn, "category": category, "LOCAL": LOCAL, "__name__": f"{module.PACKAGE}.data.made_up"})
    LOCAL["inside"] = type(inside)(inside.__code__, LOCAL)
    with pytest.warns(category, match="something") as told:
        LOCAL["inside"](depth)
    assert [one.filename for one in told] == [__file__]
    with pytest.warns(UserWarning, match="from here") as told:
        warn("from here")
    assert [one.filename for one in told] == [__file__]


def test_a_package_whose_name_begins_alike_is_outside():
    other = {"warn": warn, "__name__": f"{module.PACKAGE}_plugin"}
    code = compile("def call():\n    warn('something')\n", "plugin.py", "exec")
    exec(code, other)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        other["call"]()
    assert [one.filename for one in told] == ["plugin.py"]
