import numba

from action_tokenizers.codecs.kernel import kernel


def double(x):
    return 2 * x


def test_compiles_and_releases_the_gil():
    compiled = kernel(double)
    assert compiled(21) == 42
    assert compiled.targetoptions["nogil"]


def test_without_a_place_for_the_cache_it_compiles_all_the_same(monkeypatch):
    original = numba.njit

    def njit(**options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return original(**options)

    monkeypatch.setattr(numba, "njit", njit)
    assert kernel(double)(21) == 42
