# ruff: noqa: RUF001  (the Greek letters of the theory are meant)
"""Estimators against known answers."""

import numpy as np
import pytest


def test_smoke(measured, verdicts):
    assert verdicts["misses"] == 0
    assert verdicts["differs"] == 2
    assert measured("TV of 625 sequences") == pytest.approx(0.3826, abs=0.0031)
    assert measured("discontinuous expert, kernel of σ = 0.1") == pytest.approx(3.92, rel=0.05)
    assert measured("uniform chunks, decoded values clamped") == pytest.approx(0.303, abs=0.003)
    assert measured("one coefficient off by one: largest") == pytest.approx(0.0352, abs=5e-5)


def test_the_chain_is_normalised_and_draws_what_it_says():
    import e10_estimators as recipe

    chain = recipe.Chain()
    law = chain.law(0.7)
    assert law.sum() == pytest.approx(1)
    drawn = chain.sample(np.full((20000, 1), 0.7), seed=0)
    first = np.bincount(drawn[:, 0], minlength=recipe.IDS) / len(drawn)
    assert first == pytest.approx(law.reshape(recipe.IDS, -1).sum(1), abs=0.015)
    assert chain.log_prob(np.full((1, 1), 0.7), drawn[:1]) == pytest.approx(
        np.log(law[(drawn[0] * recipe.IDS ** np.arange(3, -1, -1)).sum()])
    )
