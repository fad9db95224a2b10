"""The nearest codeword against brute force in float64, and codebooks."""

import numpy as np
import pytest
import torch

from action_tokenizers.codecs import nearest as module
from action_tokenizers.codecs.affine import from_unit
from action_tokenizers.codecs.nearest import build_books, decode_words, fit_codebook, nearest, nearest_levels
from action_tokenizers.errors import ActionValueError


def brute_force(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    distance = (vectors.double()[:, None, :] - codebook.double()[None]).square().sum(-1)
    return torch.from_numpy(distance.numpy().argmin(1))  # numpy's argmin is the first of equals


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32))


@pytest.fixture(params=[nearest, module._nearest_on_device], ids=["kernel", "torch"])
def find(request):
    """The kernel, and what serves on other devices."""
    return request.param


@pytest.mark.parametrize(("n", "k", "d"), [(500, 1, 3), (500, 7, 1), (400, 256, 7), (300, 64, 140), (60, 16, 1400)])
def test_finds_what_brute_force_finds(find, n, k, d):
    codebook, vectors = random(1, k, d), random(2, n, d)
    torch.testing.assert_close(find(vectors, codebook), brute_force(vectors, codebook))


@pytest.mark.parametrize("offset", [0.0, 0.9, 30.0, -4000.0])
@pytest.mark.parametrize("d", [1, 4, 200])
def test_crowded_codewords_far_from_zero(find, d, offset):
    """Differences that a float32 product of the raw vectors could not resolve."""
    codebook = (random(3, 200, d) * 1e-2 + offset).float()
    vectors = (random(4, 300, d) * 1e-2 + offset).float()
    torch.testing.assert_close(find(vectors, codebook), brute_force(vectors, codebook))


@pytest.mark.parametrize("d", [96, 256, 700, 5600])
def test_products_that_round_apart_do_not_decide(find, d):
    """Codewords about a mean of zero, of which the errors of two that are equally near have nothing in common."""
    rng = np.random.default_rng(d)
    for _ in range(30):
        a = rng.uniform(0.8, 1)
        b, turns = -a + rng.uniform(0.02, 0.12), np.where(np.arange(d) % 2, 0.98, -0.98)
        book = np.stack([np.full(d, a), np.full(d, b), -(a + b) / 2 + turns, -(a + b) / 2 - turns]).astype(np.float32)
        first, second = book[:2, 0].astype(float)
        # as far from the tie as the rounding of d terms of about |c|² reaches
        steps = (first + second) / 2 + rng.uniform(-1, 1, (256, 1)) * 2.0**-24 * d / (first - second)
        vectors = torch.from_numpy(np.repeat(steps, d, 1).astype(np.float32))
        distance = ((vectors.double()[:, None] - torch.from_numpy(book).double()) ** 2).sum(-1)
        found = distance.gather(1, find(vectors, torch.from_numpy(book))[:, None])[:, 0]
        assert bool((found <= distance.amin(1) * (1 + 1e-12)).all())


@pytest.mark.parametrize("d", [256, 1400, 14336])
def test_sums_of_many_equal_terms_round_all_the_same_way(find, d):
    """Held vectors near a tie: what rounding adds up to grows with the dims, here to a hundred float32 ulps."""
    rng = np.random.default_rng(1)
    for _ in range(10):
        codebook = np.repeat(rng.uniform(-1, 1, (3, 1)), d, 1).astype(np.float32)
        tie, apart = (codebook[0].astype(float) + codebook[1]) / 2, abs(codebook[0, 0] - codebook[1, 0])
        vectors = torch.from_numpy((tie + rng.normal(size=(64, 1)) * 3e-6 * apart).astype(np.float32))
        distance = ((vectors.double()[:, None] - torch.from_numpy(codebook).double()) ** 2).sum(-1)
        found = distance.gather(1, find(vectors, torch.from_numpy(codebook))[:, None])[:, 0]
        assert bool((found <= distance.amin(1) * (1 + 1e-12)).all())


@pytest.mark.parametrize("d", [112, 128, 256])
def test_squares_that_round_all_the_same_way(find, d):
    """Codewords whose squares and products are half an ulp of their sums each, of one a bit more and of the other less.

    One long coordinate moves the tie: of the two, the first is nearer by less than the distance's last float32 digit.
    """
    rng = np.random.default_rng(d)
    vector = np.full(d, -(2.0**-13), np.float32)
    vector[:2] = 0, 1e-5**0.5
    vectors, compared = torch.from_numpy(np.repeat(vector[None], 9, 0)), 0
    for _ in range(30):
        near, far = (np.full(d, 2.0**-12 * (1 + sign * 0.02) ** 0.5, np.float32) for sign in (1, -1))
        near[1] = far[1] = vector[1]
        near[0] = 1 + 3e-5 + rng.uniform(0, 40) * 2.0**-23
        rest = [(word[1:].astype(float) ** 2 - 2 * word[1:] * vector[1:].astype(float)).sum() for word in (near, far)]
        far[0] = np.nextafter(np.float32((float(near[0]) ** 2 + rest[0] - rest[1]) ** 0.5), np.float32(2))
        codebook = torch.from_numpy(np.stack([near, far, -near, -far]))
        expected = brute_force(vectors, codebook)
        compared += int(expected[0] == 0)
        torch.testing.assert_close(find(vectors, codebook), expected)
    assert compared > 20


@pytest.mark.parametrize("length", [1e-4, 1.0])
def test_codewords_shorter_than_a_square_can_tell(find, length):
    """The same in every batch; distances of float64 are all equal here."""
    crowded = random(5, 8, 32).double().repeat(256, 1) * (1 + random(6, 2048, 1).double() * 1e-7)
    codebook, vectors = (crowded * 1e-24).float(), random(7, 100, 32) * length
    expected = torch.cat([find(one[None], codebook) for one in vectors])
    torch.testing.assert_close(find(vectors, codebook), expected)


@pytest.mark.parametrize("exponent", [-18, -20, -21, -22, -23, -30, -38, -44])
def test_codewords_as_small_as_numbers_are(find, exponent):
    """Products of so small numbers have few digits left, or none."""
    codebook, vectors = ((random(seed, n, 7).double() * 10.0**exponent).float() for seed, n in ((5, 64), (6, 500)))
    torch.testing.assert_close(find(vectors, codebook), brute_force(vectors, codebook))


@pytest.mark.parametrize("length", [1e18, 1e19, 1e20, 1e22, 3e38])
@pytest.mark.parametrize("n", [3, 9])
def test_vectors_whose_products_have_no_float32(find, length, n):
    codebook = torch.tensor([[0.0, 1.0], [5.0, -1.0], [-5.0, 0.5]]) * 1e18
    vectors = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]]).repeat(n // 3, 1) * length
    torch.testing.assert_close(find(vectors, codebook), brute_force(vectors, codebook))


def test_one_outlier_does_not_blur_the_others(find):
    codebook = torch.cat([random(5, 100, 3) * 1e-3, torch.full((1, 3), 500.0)])
    vectors = random(6, 300, 3) * 1e-3
    torch.testing.assert_close(find(vectors, codebook), brute_force(vectors, codebook))


def test_ties_go_to_the_first(find):
    codebook = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.3], [-0.5, 0.5]])
    assert find(vectors, codebook).tolist() == [0, 0, 2, 1]
    grid = torch.cartesian_prod(torch.arange(-3.0, 4), torch.arange(-3.0, 4))
    middles = grid[:, :] + 0.5  # each as far from four codewords
    torch.testing.assert_close(find(middles, grid), brute_force(middles, grid))
    shuffled = grid[torch.from_numpy(np.random.default_rng(0).permutation(len(grid)))]
    torch.testing.assert_close(find(middles, shuffled), brute_force(middles, shuffled))


@pytest.mark.parametrize("d", [2, 33])
def test_a_vector_gets_the_same_codeword_in_every_batch(find, d, monkeypatch):
    """Near-ties everywhere: vectors half way between codewords, give or take an ulp."""
    codebook = random(7, 128, d)
    pick = np.random.default_rng(8).integers(0, 128, (2, 600))
    vectors = (codebook[pick[0]] + codebook[pick[1]]) / 2
    together = find(vectors, codebook)
    torch.testing.assert_close(together, brute_force(vectors, codebook))
    assert together[:40].tolist() == [int(find(vectors[i : i + 1], codebook)) for i in range(40)]
    monkeypatch.setattr(module, "BLOCK", 128 * 7)
    torch.testing.assert_close(find(vectors, codebook), together)
    monkeypatch.setattr(module, "BLOCK", 1)
    torch.testing.assert_close(find(vectors[:20], codebook), together[:20])


def test_float64_vectors_are_compared_as_they_are(find):
    codebook = torch.tensor([[0.0], [1.0]])
    vectors = torch.tensor([[0.5 - 1e-12], [0.5], [0.5 + 1e-12]], dtype=torch.float64)
    assert find(vectors, codebook).tolist() == [0, 0, 1]


@pytest.fixture
def restored():
    """The settings of float32 products, which tests change."""
    yield
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("asked", ["highest", "high", "medium"])
def test_scores_are_computed_in_full_precision_whatever_products_else_are(asked):
    torch.set_float32_matmul_precision(asked)
    with module._full_precision():
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.get_float32_matmul_precision() == asked
    with pytest.raises(ZeroDivisionError), module._full_precision():
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == asked


@pytest.mark.usefixtures("restored")
@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch < 2.9")
def test_scores_are_computed_in_full_precision_where_the_newer_setting_asks_for_less():
    matmul = torch.backends.cuda.matmul
    matmul.fp32_precision = "tf32"
    with module._full_precision():
        assert matmul.fp32_precision == "ieee"
    assert matmul.fp32_precision == "tf32"


def test_the_scores_of_other_devices_are_computed_so(monkeypatch):
    inside, original = [], torch.addmm
    monkeypatch.setattr(
        torch, "addmm", lambda *a, **k: inside.append(torch.get_float32_matmul_precision()) or original(*a, **k)
    )
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "highest" if changed else "high")
    changed = []
    monkeypatch.setattr(
        torch, "set_float32_matmul_precision", lambda s: changed.append(s) if s == "highest" else changed.clear()
    )
    module._nearest_on_device(random(0, 20, 3), random(1, 5, 3))
    assert inside == ["highest"]
    assert changed == []


@pytest.mark.usefixtures("restored")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="TF32 is a thing of CUDA")
@pytest.mark.parametrize("d", [4, 140])
def test_tf32_does_not_change_a_codeword(d):
    torch.set_float32_matmul_precision("high")
    codebook, vectors = random(1, 256, d), random(2, 20_000, d)
    found = nearest(vectors.cuda(), codebook.cuda()).cpu()
    torch.testing.assert_close(found, nearest(vectors, codebook))
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.parametrize("odd", [np.nan, np.inf, 3e38])
def test_codewords_that_products_cannot_tell_apart_are_refused(find, odd):
    codebook = random(0, 8, 3)
    codebook[5, 1] = odd
    codebook[6, 1] = -odd
    with pytest.raises(ActionValueError, match="codewords of finite length in float32, got others in codebook 1"):
        build_books([random(1, 8, 3), codebook])
    with pytest.raises(ActionValueError, match="codewords of finite length in float32, got others in codebook 0"):
        find(random(2, 5, 3), codebook)


def test_nothing_leads_to_an_id_outside_of_the_codebook():
    """NaN, which no door lets pass, would leave no codeword that is close."""
    assert nearest(torch.full((3, 2), torch.nan), random(0, 8, 2)).tolist() == [0, 0, 0]


def test_a_codebook_may_be_a_parameter():
    codebook = random(0, 8, 2)
    vectors = random(1, 20, 2)
    assert torch.equal(nearest(vectors, codebook.clone().requires_grad_()), nearest(vectors, codebook))


def test_no_vectors(find):
    found = find(torch.empty(0, 3), random(0, 4, 3))
    assert found.shape == (0,)
    assert found.dtype == torch.int64


@pytest.mark.parametrize("sizes", [(1,), (3, 1, 40), (256, 256)])
@pytest.mark.parametrize("d", [1, 4, 31])
def test_each_level_codes_what_the_levels_before_left_over(sizes, d):
    """Books of several sizes, more and fewer vectors than the kernel takes at a time."""
    books = [random(10 + i, k, d) / 2**i for i, k in enumerate(sizes)]
    for n in (0, 1, 3, 64, 65, 150):
        vectors = random(20, n, d)
        left, expected = vectors.double(), []
        for book in books:
            expected.append(brute_force(left, book) if n else torch.empty(0, dtype=torch.int64))
            left = left - book.double()[expected[-1]]
        found = nearest_levels(vectors, build_books(books))
        assert found.shape == (n, len(sizes))
        torch.testing.assert_close(found, torch.stack(expected, 1))


# ---- codebooks --------------------------------------------------------------------------------------------------


def test_few_distinct_vectors_are_the_codebook():
    levels = torch.tensor([[0.5, -1.0], [-0.25, 0.125], [1.0, 1.0]])
    vectors = levels[torch.from_numpy(np.random.default_rng(0).integers(0, 3, 500))]
    codebook = fit_codebook(vectors, 8, seed=0)
    assert sorted(codebook.tolist()) == sorted(levels.tolist())
    torch.testing.assert_close(codebook[nearest(vectors, codebook)], vectors, rtol=0, atol=0)


@pytest.mark.parametrize("k", [1, 2, 16])
def test_at_most_k_distinct_codewords(k):
    codebook = fit_codebook(random(0, 400, 3), k, seed=0)
    assert codebook.shape == (k, 3)
    assert codebook.dtype == torch.float32
    assert len(torch.unique(codebook, dim=0)) == k


def test_vectors_that_k_means_cannot_tell_apart_give_fewer_codewords():
    tiny = np.zeros((60, 1), np.float32)
    tiny[:, 0] = np.arange(60) * 1e-30
    vectors = torch.from_numpy(np.concatenate([tiny, tiny + 0.5, [[1.0]], [[-1.0]]]).astype(np.float32))
    codebook = fit_codebook(vectors, 10, seed=0)
    assert 3 <= len(codebook) <= 10
    assert torch.isfinite(codebook).all()


def test_codewords_are_the_means_of_their_cells():
    """Where Lloyd has converged, which separated clusters make sure of."""
    rng = np.random.default_rng(1)
    centres = np.array([[-0.8, 0.0], [0.0, 0.8], [0.8, -0.8], [0.8, 0.8]])
    which = rng.integers(0, 4, 800)
    vectors = torch.from_numpy((centres[which] + rng.normal(0, 0.02, (800, 2))).astype(np.float32))
    codebook = fit_codebook(vectors, 4, seed=3)
    cell = nearest(vectors, codebook)
    for i in range(4):
        torch.testing.assert_close(codebook[i], vectors[cell == i].mean(0), atol=1e-5, rtol=0)
    assert (vectors - codebook[cell]).norm(dim=1).max() < 0.15


def test_equal_data_give_equal_bytes():
    vectors = random(9, 3000, 5)
    first = fit_codebook(vectors, 40, seed=1).numpy().tobytes()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        second = fit_codebook(vectors.clone(), 40, seed=1).numpy().tobytes()
    finally:
        torch.set_num_threads(threads)
    assert first == second
    assert first != fit_codebook(vectors, 40, seed=2).numpy().tobytes()


def test_a_draw_over_all_of_many_vectors_is_used(monkeypatch):
    """A head of them would be the steps of a few chunks."""
    monkeypatch.setattr(module, "LEAST_ROWS", 100)
    monkeypatch.setattr(module, "ROWS_PER_CODEWORD", 10)
    vectors = torch.arange(4.0).repeat_interleave(1000)[:, None] + random(10, 4000, 1) / 100
    codebook = fit_codebook(vectors, 4, seed=0)[:, 0]
    torch.testing.assert_close(codebook, torch.arange(4.0), atol=0.05, rtol=0)


@pytest.mark.parametrize("places", [1, 6])
def test_words_become_actions_to_the_same_bits(places):
    rng, n, t, d = np.random.default_rng(places), 50, 6, 4
    low, high = np.float32([-2, 0.5, 1, -0.1]), np.float32([3, 0.5, 1e6, 0.3])
    groups, out, steps = [[2, 0], [3, 1]], np.empty((n, t, d), np.float32), np.empty((n, t, d), np.float32)
    ids = np.empty((n, places * 2), np.int64)
    for g, dims in enumerate(groups):
        words = rng.normal(0, 0.7, (5 + g, t // places * 2)).astype(np.float32)
        codes = rng.integers(0, len(words), (n, places))
        ids[:, g::2] = codes + 10 * g
        assert decode_words(words, 10 * g, np.array(dims), low, high, ids, g, 2, out)
        z = torch.from_numpy(words[codes].reshape(n, t, 2))
        steps[:, :, dims] = from_unit(z, torch.from_numpy(low[dims]), torch.from_numpy(high[dims])).numpy()
        for wrong in (10 * g - 1, 10 * g + len(words), -(2**63), 2**63 - 1):
            bad = ids.copy()
            bad[-1, g] = wrong
            assert not decode_words(words, 10 * g, np.array(dims), low, high, bad, g, 2, out.copy())
    np.testing.assert_array_equal(out.view(np.uint32), steps.view(np.uint32))
