"""With noise the trap loses a constant over |ln ε|."""

import numpy as np
import pytest


def test_smoke(smoke, measured, verdicts):
    assert verdicts == {"holds": 6, "differs": 0, "misses": 0}
    assert np.array(smoke["product"]) == pytest.approx(smoke["regret"] * np.abs(np.log(smoke["epsilon"])), rel=1e-4)
    assert 0.9 < min(smoke["product"]) <= max(smoke["product"]) < 1.5
    assert measured("ε = 2^-4 … 2^-6: error / ε") == pytest.approx(2.2 * 2 / 0.3, rel=0.01)
