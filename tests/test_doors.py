"""What may come into a call, what it is inside, and in which form the answer goes back."""

import numpy as np
import pytest
import torch

from action_tokenizers.doors import hold_last, is_chunk_list, open_actions, open_ids, open_mask, refuse_odd
from action_tokenizers.errors import ActionShapeError, ActionValueError, TokenError

CPU = torch.device("cpu")

# ---- actions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "i1", "i2", "i8", "u1", "u2", "u4", "u8", "?"])
def test_any_real_dtype_of_numpy_becomes_float32(dtype):
    values = (np.arange(6) % 2).reshape(1, 3, 2).astype(dtype)
    chunks, give_back = open_actions(values, CPU)
    assert chunks.dtype == torch.float32
    assert chunks.tolist() == values.astype(np.float32).tolist()
    assert isinstance(give_back(chunks), np.ndarray)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.uint8, torch.bool])
def test_any_real_dtype_of_torch_becomes_float32(dtype):
    values = torch.tensor([[[1, 0], [1, 1]]]).to(dtype)
    chunks, give_back = open_actions(values, CPU)
    assert chunks.dtype == torch.float32
    assert chunks.tolist() == [[[1.0, 0.0], [1.0, 1.0]]]
    assert isinstance(give_back(chunks), torch.Tensor)


@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3), (0,), (0, 4), (2, 1, 3)])
@pytest.mark.parametrize("torch_in", [False, True])
def test_leading_dims_are_folded_and_given_back(lead, torch_in):
    values = np.arange(np.prod(lead, dtype=int) * 8, dtype=np.float32).reshape(*lead, 4, 2)
    chunks, give_back = open_actions(torch.from_numpy(values) if torch_in else values, CPU)
    assert chunks.shape == (int(np.prod(lead)), 4, 2)
    back = give_back(chunks)
    assert type(back) is (torch.Tensor if torch_in else np.ndarray)
    assert tuple(back.shape) == (*lead, 4, 2)
    np.testing.assert_array_equal(np.asarray(back), values)
    assert tuple(give_back(torch.zeros(len(chunks))).shape) == lead  # one flag per chunk
    assert tuple(give_back(torch.zeros(len(chunks), 7)).shape) == (*lead, 7)


def test_lists_of_numbers_are_numpy():
    chunks, give_back = open_actions([[[1, 2], [3, 4]]], CPU)
    assert chunks.tolist() == [[[1.0, 2.0], [3.0, 4.0]]]
    assert isinstance(give_back(chunks), np.ndarray)


def test_gradients_read_only_and_reversed_memory_are_no_obstacle():
    values = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    frozen = values.copy()
    frozen.setflags(write=False)
    for given in (frozen, values[::-1][::-1], np.asfortranarray(values), np.broadcast_to(values, values.shape)):
        assert open_actions(given, CPU)[0].tolist() == values.tolist()
    assert open_actions(values[:, ::-1], CPU)[0].tolist() == values[:, ::-1].tolist()
    with_gradient = torch.from_numpy(values).requires_grad_()
    assert not open_actions(with_gradient, CPU)[0].requires_grad


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("lead", [(), (7,), (1, 7)])
def test_nan_and_inf_are_refused_with_their_place(bad, lead):
    values = np.zeros((*lead, 5, 3), np.float32)
    values[(..., 4, 2) if not lead else (*(-1 for _ in lead), 4, 2)] = bad
    with pytest.raises(ActionValueError, match=f"chunk {6 if lead else 0}, step 4, dim 2") as caught:
        open_actions(values, CPU)
    assert str(np.float32(bad)) in str(caught.value)


def test_nan_and_inf_pass_where_they_are_left_to_the_caller():
    values = np.zeros((3, 5, 3), np.float32)
    values[2, 4, 1] = np.nan
    chunks, _ = open_actions(values, CPU, odd=True)
    with pytest.raises(ActionValueError, match=r"got nan in chunk 2, step 4, dim 1 \(1 such"):
        refuse_odd(chunks)
    refuse_odd(chunks[:2])


def test_what_is_as_wanted_passes_without_a_copy():
    actions, ids = torch.zeros(2, 3, 4), torch.zeros(2, 7, dtype=torch.int64)
    assert open_actions(actions, CPU)[0] is actions
    assert open_actions(actions.numpy(), CPU)[0].data_ptr() == actions.data_ptr()
    assert open_ids(ids, CPU, None)[0] is ids
    assert open_ids(ids.numpy(), CPU, None)[0].data_ptr() == ids.data_ptr()


def test_infinities_that_cancel_are_still_refused():
    values = np.zeros((2, 2, 1))
    values[0, 0], values[1, 1] = np.inf, -np.inf
    with pytest.raises(ActionValueError, match=r"chunk 0, step 0, dim 0 \(2 such"):
        open_actions(values, CPU)


def test_large_finite_values_are_fine():
    most = np.finfo(np.float32).max
    chunks, _ = open_actions(np.full((4, 50, 20), most), CPU)
    assert bool((chunks == float(most)).all())
    with pytest.raises(ActionValueError):  # beyond float32
        open_actions(np.full((1, 2, 2), 1e39), CPU)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros(3),
        5.0,
        [],
        np.zeros((2, 0, 3)),
        np.zeros((2, 3, 0)),
        np.zeros((2, 3), complex),
        torch.zeros(2, 3, dtype=torch.complex64),
        [["a", "b"]],
        [[[1.0, 2.0]], [[1.0]]],
        {"action": 1},
        None,
        np.array([[object()]]),
    ],
)
def test_what_is_no_array_of_steps_is_a_shape_error(bad):
    with pytest.raises(ActionShapeError, match="expected"):
        open_actions(bad, CPU)


def test_long_doubles_are_converted_or_refused_by_us():
    values = np.ones((1, 2, 2), np.longdouble)
    try:
        chunks, _ = open_actions(values, CPU)
    except ActionShapeError:
        return
    assert chunks.tolist() == [[[1.0, 1.0], [1.0, 1.0]]]


def test_the_callers_array_is_not_changed():
    values = np.arange(6, dtype=np.float32).reshape(1, 3, 2)
    before = values.copy()
    chunks, _ = open_actions(values, CPU)
    hold_last(chunks, torch.tensor([[False, True, True]]))
    np.testing.assert_array_equal(values, before)


# ---- lists of chunks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        ([np.zeros((2, 3))], True),
        ([torch.zeros(2, 3)], True),
        ((torch.zeros(2, 3), np.zeros((4, 3))), True),
        (np.zeros((2, 3)), False),
        (torch.zeros(2, 3), False),
        ([[[1.0]]], False),
        ([], False),
    ],
)
def test_is_chunk_list(value, answer):
    assert is_chunk_list(value) is answer


# ---- ids --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["i1", "i4", "i8", ">i8", "u1", "u2", "u4", "u8"])
def test_any_integer_dtype_becomes_int64(dtype):
    rows, give_back = open_ids(np.array([[1, 2, 3]], dtype), CPU, None)
    assert rows.dtype == torch.int64
    assert rows.tolist() == [[1, 2, 3]]
    assert isinstance(give_back(rows), np.ndarray)


@pytest.mark.parametrize("lead", [(), (1,), (4,), (2, 3), (0,)])
def test_ids_fold_their_leading_dims(lead):
    ids = np.arange(np.prod(lead, dtype=int) * 5).reshape(*lead, 5)
    for given in (ids, torch.from_numpy(ids)):
        rows, give_back = open_ids(given, CPU, None)
        assert rows.shape == (int(np.prod(lead)), 5)
        back = give_back(rows)
        assert type(back) is type(given)
        assert tuple(back.shape) == (*lead, 5)
        assert tuple(give_back(torch.zeros(len(rows), 2, 3)).shape) == (*lead, 2, 3)


def test_lists_of_different_lengths_are_padded_on_the_right():
    given = [[1, 2, 3], [], [4]]
    assert open_ids(given, CPU, 9)[0].tolist() == [[1, 2, 3], [9, 9, 9], [4, 9, 9]]
    assert open_ids(given, CPU, None)[0].tolist() == [[1, 2, 3], [-1, -1, -1], [4, -1, -1]]
    arrays = [np.array(row, np.int32) for row in given]
    assert open_ids(arrays, CPU, 9)[0].tolist() == [[1, 2, 3], [9, 9, 9], [4, 9, 9]]


def test_lists_of_tensors_go_back_as_tensors():
    """As lists of chunks do: torch in, torch out."""
    for given in (
        [torch.tensor([1, 2]), torch.tensor([3])],
        [torch.tensor([1, 2]), torch.tensor([3, 4])],
    ):
        rows, give_back = open_ids(given, CPU, 9)
        assert rows.shape == (2, 2)
        assert isinstance(give_back(rows), torch.Tensor)


@pytest.mark.parametrize(
    ("given", "shape", "lead"),
    [([], (1, 0), ()), ([[]], (1, 0), (1,)), ([[], []], (2, 0), (2,)), (np.zeros((3, 0)), (3, 0), (3,))],
)
def test_no_ids_at_all_are_an_empty_prefix(given, shape, lead):
    rows, give_back = open_ids(given, CPU, 9)
    assert rows.shape == shape
    assert rows.dtype == torch.int64
    assert tuple(give_back(torch.zeros(len(rows), 4)).shape) == (*lead, 4)


@pytest.mark.parametrize(
    "bad",
    [
        5,
        np.int64(5),
        [1.0, 2.0],
        [True, False],
        torch.tensor([1.5]),
        ["1", "2"],
        [[1, 2], [3.0]],
        [[1], "a"],
        [[[1], [2, 3]], [[1], [2]]],
        [[1, 2], 3],
        None,
    ],
)
def test_what_is_no_ids_is_a_token_error(bad):
    with pytest.raises(TokenError, match="expected"):
        open_ids(bad, CPU, 9)


def test_ids_beyond_int64_are_no_ids_of_ours():
    """They must not wrap around into valid ids."""
    try:
        rows, _ = open_ids(np.array([[2**64 - 1, 2**63 + 5]], np.uint64), CPU, 9)
    except TokenError:
        return
    assert bool((rows < 0).all())


# ---- masks ------------------------------------------------------------------------------------------------------


def test_masks_fold_like_their_chunks():
    mask = np.zeros((2, 3, 4), bool)
    mask[1, 2, 3] = True
    opened = open_mask(mask, torch.Size((6, 4)), CPU)
    assert opened.shape == (6, 4)
    assert opened.nonzero().tolist() == [[5, 3]]
    assert open_mask([False, True], torch.Size((1, 2)), CPU).tolist() == [[False, True]]


@pytest.mark.parametrize(
    "bad", [np.zeros((6, 3), bool), np.zeros((5, 4), bool), np.zeros((6, 4)), np.zeros((4, 6), bool), "mask"]
)
def test_masks_of_another_shape_or_dtype_are_refused(bad):
    with pytest.raises(ActionShapeError, match="action_is_pad"):
        open_mask(bad, torch.Size((6, 4)), CPU)


@pytest.mark.parametrize("seed", range(10))
def test_padded_steps_hold_the_last_real_one(seed):
    rng = np.random.default_rng(seed)
    chunks = rng.normal(size=(20, 6, 2)).astype(np.float32)
    pad = rng.random((20, 6)) < 0.5
    pad[np.arange(20), rng.integers(0, 6, 20)] = False
    expected = chunks.copy()
    for row in range(20):
        real = np.flatnonzero(~pad[row])
        for step in np.flatnonzero(pad[row]):
            before = real[real < step]
            expected[row, step] = chunks[row, before[-1] if len(before) else real[0]]
    held = hold_last(torch.from_numpy(chunks), torch.from_numpy(pad))
    np.testing.assert_array_equal(held.numpy(), expected)


def test_a_chunk_of_padding_alone_is_refused():
    pad = torch.zeros(3, 4, dtype=torch.bool)
    pad[1] = True
    with pytest.raises(ActionValueError, match="chunk 1"):
        hold_last(torch.zeros(3, 4, 2), pad)
