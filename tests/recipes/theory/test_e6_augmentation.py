"""Algorithm 1 on the trap, and what policy and model together cost to learn."""

import itertools

import numpy as np
import pytest


def test_smoke(smoke, measured, verdicts):
    assert verdicts == {"holds": 11, "differs": 0, "misses": 0}
    assert measured("|Π| = |M|") == pytest.approx(-0.5, abs=0.02)
    assert measured("bound, κ = 1") == pytest.approx(1.996, abs=0.005)
    assert min(smoke["classes"]["biased"]) > 0.1


def test_most_likely_members_are_found_by_trying_all():
    import e6_augmentation as recipe

    members, n = np.array([0.0, 0.2, 0.35, 0.7, 1.0]), 5
    expected = 0.0
    for data in itertools.product([0, 1], repeat=n):
        likelihood = np.where(data, members[:, None], 1 - members[:, None]).prod(1)
        mass = np.where(data, 0.37, 0.63).prod()
        expected += mass * abs(members[likelihood.argmax()] - 0.37)
    assert recipe.learned_error(n, 0.37, members) == pytest.approx(expected)


def test_the_hard_class_is_misjudged_as_often_as_a_majority_errs():
    import e6_augmentation as recipe

    lean = recipe.SHIFT / np.sqrt(3)
    wrong = (0.5 - lean) ** 3 + 3 * (0.5 - lean) ** 2 * (0.5 + lean)
    assert recipe.hard_error(2, 6) == pytest.approx(2 * lean * wrong)
