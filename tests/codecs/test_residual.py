"""Residual quantization, level by level, against a loop that says the same in words."""

import numpy as np
import pytest
import torch

from action_tokenizers.codecs.affine import from_unit
from action_tokenizers.codecs.residual import decode_levels, residual_decode, residual_encode


def books(seed: int, levels: int, length: int) -> list[torch.Tensor]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 20, levels)
    return [
        torch.from_numpy((rng.uniform(-1, 1, (int(k), length)) / 2**level).astype(np.float32))
        for level, k in enumerate(sizes)
    ]


def vectors(seed: int, n: int, length: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (n, length)))


def greedy(vector: np.ndarray, codebooks: list[torch.Tensor]) -> list[int]:
    left, codes = vector.copy(), []
    for book in codebooks:
        words = book.numpy().astype(np.float64)
        codes.append(int(((left - words) ** 2).sum(1).argmin()))
        left = left - words[codes[-1]]
    return codes


@pytest.mark.parametrize(("levels", "length"), [(1, 1), (3, 2), (5, 30)])
def test_each_level_takes_the_nearest_to_what_is_left(levels, length):
    codebooks, data = books(levels, levels, length), vectors(1, 100, length)
    codes = residual_encode(data, codebooks)
    assert codes.dtype == torch.int64
    assert codes.tolist() == [greedy(vector, codebooks) for vector in data.numpy()]


def test_leaves_the_vectors_alone():
    data = vectors(2, 10, 3)
    before = data.clone()
    residual_encode(data, books(0, 4, 3))
    torch.testing.assert_close(data, before, rtol=0, atol=0)


def test_a_vector_gets_the_same_codes_in_every_batch():
    codebooks, data = books(3, 4, 40), vectors(4, 200, 40)
    together = residual_encode(data, codebooks)
    assert together[:30].tolist() == [residual_encode(data[i : i + 1], codebooks)[0].tolist() for i in range(30)]


@pytest.mark.parametrize("m", range(5))
def test_decodes_the_first_levels(m):
    codebooks = books(5, 4, 6)
    codes = residual_encode(vectors(6, 50, 6), codebooks)
    total = residual_decode(codes, codebooks, torch.full((50,), m))
    expected = torch.zeros(50, 6, dtype=torch.float64)
    for level in range(m):
        expected += codebooks[level][codes[:, level]].double()
    assert total.dtype == torch.float64
    torch.testing.assert_close(total, expected, rtol=0, atol=0)


def test_every_row_has_a_number_of_levels_of_its_own():
    codebooks = books(7, 3, 2)
    codes = residual_encode(vectors(8, 4, 2), codebooks)
    total = residual_decode(codes, codebooks, torch.arange(4))
    for row in range(4):
        alone = residual_decode(codes[row : row + 1], codebooks, torch.tensor([row]))
        torch.testing.assert_close(total[row : row + 1], alone, rtol=0, atol=0)
    assert total[0].tolist() == [0.0, 0.0]


def test_codes_that_were_not_kept_may_be_anything():
    codebooks = books(9, 3, 2)
    codes = torch.tensor([[0, 999, -5]])
    torch.testing.assert_close(
        residual_decode(codes, codebooks, torch.tensor([1])), codebooks[0][:1].double(), rtol=0, atol=0
    )


def test_fewer_codes_than_levels():
    codebooks = books(10, 3, 2)
    total = residual_decode(torch.zeros(5, 1, dtype=torch.int64), codebooks, torch.ones(5, dtype=torch.int64))
    torch.testing.assert_close(total, codebooks[0][:1].double().expand(5, 2), rtol=0, atol=0)
    none = residual_decode(torch.zeros(5, 0, dtype=torch.int64), codebooks, torch.zeros(5, dtype=torch.int64))
    assert none.tolist() == [[0.0, 0.0]] * 5


def test_zero_among_the_codewords_makes_every_level_help():
    codebooks = [torch.cat([torch.zeros(1, 5), book]) for book in books(11, 6, 5)]
    data = vectors(12, 100, 5)
    codes = residual_encode(data, codebooks)
    errors = [float((residual_decode(codes, codebooks, torch.full((100,), m)) - data).square().sum()) for m in range(7)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 2


@pytest.mark.parametrize("n", [0, 1, 7, 300])
def test_levels_decode_in_one_pass_to_the_same_bits(n):
    rng, (t, d) = np.random.default_rng(n), (5, 3)
    sizes = np.array([4, 7, 1, 9])
    words = rng.normal(0, 0.5, (4, 9, t * d)).astype(np.float32)
    first, mean = np.cumsum(sizes) - sizes, rng.normal(0, 0.3, t * d).astype(np.float32).astype(np.float64)
    low, high = np.float32([-2, 0.5, 1]), np.float32([3, 0.5, 1e6])
    codes = rng.integers(0, sizes, (n, 4))
    out = np.empty((n, t, d), np.float32)
    assert decode_levels(words, sizes, mean, first, low, high, codes + first, out)
    books = [torch.from_numpy(book[:k]) for book, k in zip(words, sizes, strict=True)]
    total = residual_decode(torch.from_numpy(codes), books, torch.full((n,), 4)) + torch.from_numpy(mean)
    steps = from_unit(total.float().reshape(n, t, d), torch.from_numpy(low), torch.from_numpy(high)).numpy()
    np.testing.assert_array_equal(out.view(np.uint32), steps.view(np.uint32))
    for level, wrong in ((0, -1), (1, 7), (3, 9), (2, -(2**62)), (3, 2**62)):
        if n:
            bad = codes + first
            bad[-1, level] = first[level] + wrong
            assert not decode_levels(words, sizes, mean, first, low, high, bad, out)
