import json

import numpy as np
import pytest

from action_tokenizers.data import Relative
from action_tokenizers.errors import ActionShapeError, ActionValueError, FormatError

RNG = np.random.default_rng(0)


def distance(a, b, turning):
    gap = np.abs(a.astype(np.float64) - b)
    return np.where(turning, np.minimum(gap, np.abs(gap - 2 * np.pi)), gap).max()


@pytest.mark.parametrize("mode", ["state", "previous", ("state", None, "previous")])
@pytest.mark.parametrize(
    ("angles", "turning"),
    [
        ((), [False, False, False]),
        ((2,), [False, False, True]),
        ((-1,), [False, False, True]),
        ((False, False, True), [False, False, True]),
        (np.array([0, 2]), [True, False, True]),
    ],
)
def test_invert_undoes_apply(mode, angles, turning):
    actions = RNG.uniform(-np.pi, np.pi, (50, 12, 3)).astype(np.float32)
    reference = RNG.uniform(-np.pi, np.pi, (50, 3)).astype(np.float32)
    relative = Relative(mode, angles)
    deltas = relative.apply(actions, reference)
    assert deltas.dtype == np.float32
    assert distance(relative.invert(deltas, reference), actions, turning) < 3e-6


def test_state_and_previous_say_what_they_mean():
    actions = np.array([[[1.0, 1.0, 1.0], [4.0, 4.0, 4.0]]])
    deltas = Relative(("state", "previous", None)).apply(actions, np.full((1, 3), 0.5))
    np.testing.assert_array_equal(deltas, [[[0.5, 0.5, 1.0], [3.5, 3.0, 4.0]]])


def test_angles_take_the_short_way_round():
    actions = np.array([[[3.1], [-3.1]]])
    deltas = Relative("previous", (0,)).apply(actions, np.array([[3.0]]))
    np.testing.assert_allclose(deltas, [[[0.1], [2 * np.pi - 6.2]]], atol=1e-6)


def test_half_a_turn_stays_on_its_side():
    half = np.float32(np.pi)
    relative = Relative("state", (0,))
    for reference in (0.0, 1.0, -2.0):
        anchor = np.array([[reference]], np.float32)
        back = relative.invert(relative.apply(np.array([[[half]]]), anchor), anchor)
        assert min(abs(back - half), abs(back + half)) < 1e-6
    assert relative.apply(np.array([[[half]]]), np.zeros((1, 1)))[0, 0, 0] == half


def test_absolute_dims_are_never_wrapped():
    actions = np.array([[[10.0, 10.0]]])
    deltas = Relative((None, "state"), (0, 1)).apply(actions, np.zeros((1, 2)))
    assert deltas[0, 0, 0] == 10
    assert abs(deltas[0, 0, 1]) < np.pi


@pytest.mark.parametrize(
    "relative", [Relative("state"), Relative(("state", None), [1]), Relative(["previous"] * 2, [True, False])]
)
def test_json_round_trip(relative):
    assert Relative.from_json(json.loads(json.dumps(relative.to_json()))) == relative


def test_unknown_modes_and_shapes_are_refused():
    with pytest.raises(ActionValueError, match="'next'"):
        Relative("next")
    with pytest.raises(ActionShapeError, match="one mode per action dim"):
        Relative(("state", None)).apply(np.zeros((1, 2, 3)), np.zeros((1, 3)))
    with pytest.raises(ActionShapeError, match="angles among 2"):
        Relative("state", (2,)).apply(np.zeros((1, 2, 2)), np.zeros((1, 2)))
    with pytest.raises(ActionShapeError, match=r"reference \(n, d\)"):
        Relative("state").apply(np.zeros((2, 2, 2)), np.zeros((1, 2)))
    with pytest.raises(FormatError, match="mode and angles"):
        Relative.from_json({"mode": "state"})
