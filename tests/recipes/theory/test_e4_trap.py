"""The trap's error falls with ε and its regret does not."""

import matplotlib.figure
import pytest


def test_smoke(measured, verdicts):
    assert verdicts == {"holds": 14, "differs": 0, "misses": 0}
    assert measured("ε = 2^-5: error") == pytest.approx(0.17667, rel=0.02)
    assert measured("ε = 2^-5: deployed") == pytest.approx(0.60444, rel=0.02)
    assert measured("ε = 2^-5: augmented") == pytest.approx(0.11081, rel=0.02)
    assert measured("ε = 2^-5: bins deployed") == pytest.approx(0.0195, rel=0.02)
    assert measured("error / ε") == pytest.approx(5.67, rel=1e-3)


def test_the_proof_s_bound():
    import e4_trap as recipe

    from action_tokenizers.diagnostics.known import Trap

    bounds = [recipe.promised(Trap(2.0**-8), h) for h in recipe.HORIZONS]
    assert bounds == pytest.approx([0.0382, 0.0691, 0.0845, 0.0923, 0.0961, 0.0981], abs=1e-4)


def test_the_figure_has_five_lines(smoke):
    import e4_trap as recipe

    made = recipe.plot(smoke)
    assert isinstance(made, matplotlib.figure.Figure)
    assert len(made.axes[0].lines) == len(made.axes[0].texts) == 5
