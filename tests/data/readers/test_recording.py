import numpy as np
import pytest

from action_tokenizers.data.readers.recording import pick_action, pick_state, positive, split_rows
from action_tokenizers.errors import FormatError


@pytest.mark.parametrize(
    ("columns", "wanted", "found"),
    [
        (["x", "actions", "action"], None, ["action"]),
        (["action.b", "x", "action.a"], None, ["action.b", "action.a"]),
        (["action_is_pad", "actions"], None, ["actions"]),
        (["action.arm.x", "action.arm.y", "action.armour"], "action.arm", ["action.arm.x", "action.arm.y"]),
    ],
)
def test_action_columns(columns, wanted, found):
    assert pick_action(dict.fromkeys(columns, "(1)"), wanted, "here") == found


def test_states_are_optional_unless_asked_for():
    columns = {"action": "(1)", "qpos": "(2)"}
    assert pick_state(columns, None, "here") == ["qpos"]
    assert pick_state(columns, False, "here") == []
    assert pick_state({"action": "(1)"}, None, "here") == []
    with pytest.raises(FormatError, match=r"state column 'pose' in here, got action \(1\), qpos \(2\)"):
        pick_state(columns, "pose", "here")


def test_rows_already_in_order_are_not_copied():
    actions = np.zeros((6, 2))
    names, split = split_rows({"action": actions}, np.array([3, 3, 3, 5, 5, 8]), None, "here")
    assert names == (3, 5, 8)
    assert [len(part) for part in split["action"]] == [3, 2, 1]
    assert all(np.shares_memory(part, actions) for part in split["action"])


@pytest.mark.parametrize(
    ("value", "rate"),
    [(10, 10.0), ("29.97", 29.97), (np.array([5]), 5.0), (0, None), (-1, None), (None, None), ("x", None), ([], None)],
)
def test_rates(value, rate):
    assert positive(value) == rate
