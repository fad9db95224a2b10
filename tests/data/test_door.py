import numpy as np
import pytest
import torch

from action_tokenizers.data.door import as_float32, checked_chunks, episode_matrices, first_nonfinite
from action_tokenizers.errors import ActionShapeError, ActionValueError


@pytest.mark.parametrize(
    "values",
    [
        np.ones((2, 3)),
        np.ones((3, 2), np.int16).T,
        [[1, 1, 1], [1, 1, 1]],
        torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True),
        torch.ones(2, 3, dtype=torch.int64),
    ],
)
def test_numbers_of_any_kind_become_contiguous_float32(values):
    array = as_float32(values, "actions")
    assert array.dtype == np.float32
    assert array.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(array, np.ones((2, 3)))


def test_a_float32_array_is_not_copied():
    array = np.ones((2, 3), np.float32)
    assert as_float32(array, "actions") is array


def test_too_large_for_float32_counts_as_infinite_without_a_warning():
    assert first_nonfinite(as_float32([[1.0, 1e300]], "actions")) == (0, 1)


@pytest.mark.parametrize("values", [np.array(["a"]), np.array([1j]), np.array([{}], dtype=object)])
def test_other_things_are_refused(values):
    with pytest.raises(ActionValueError, match="expected numbers"):
        as_float32(values, "actions")


def test_ragged_lists_are_refused():
    with pytest.raises(ActionShapeError, match="rectangular"):
        as_float32([[1.0], [1.0, 2.0]], "actions")


def test_matrices_name_the_episode_of_another_width():
    with pytest.raises(ActionShapeError, match="3 dims as in episode 4, got 2 in episode 9"):
        episode_matrices([np.ones((2, 3)), np.ones((2, 2))], (4, 9), "action")


def test_chunks_of_pads_alone_are_left_out():
    pad = np.array([[False, True], [True, True]])
    actions, ids, starts, pads = checked_chunks(np.ones((2, 2, 1)), [5, 6], [0, 1], pad)
    assert len(actions) == len(pads) == 1
    assert (ids, starts) == ([5], [0])


def test_chunks_need_one_id_and_start_each():
    with pytest.raises(ActionShapeError, match=r"episode and start \(2,\)"):
        checked_chunks(np.ones((2, 2, 1)), [5], [0, 1], None)
