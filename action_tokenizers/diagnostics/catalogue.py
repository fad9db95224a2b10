"""The table of estimators: every number an audit can hold, gathered from the modules that compute them."""

from action_tokenizers.diagnostics import (
    along,
    bounds,
    codebook,
    dynamics,
    error,
    expert,
    fragility,
    geometry,
    jumps,
    kernels,
    learnability,
    smoothness,
    stability,
    states,
    variation,
)
from action_tokenizers.diagnostics.measure import Estimator

__all__ = ["CATALOGUE", "table"]

MODULES = (
    error,
    along,
    jumps,
    smoothness,
    fragility,
    codebook,
    geometry,
    learnability,
    expert,
    states,
    kernels,
    variation,
    stability,
    dynamics,
    bounds,
)

CATALOGUE: dict[str, Estimator] = {row.name: row for module in MODULES for row in module.ESTIMATORS}


def table() -> str:
    """Return every estimator as a Markdown table: name, unit, kinds, function, source and the test of its answer."""
    lines = ["| estimator | unit | kinds | function | source | test |", "|---|---|---|---|---|---|"]
    for row in CATALOGUE.values():
        kinds = ", ".join(kind.value.upper() for kind in row.kinds)
        lines.append(
            f"| {row.heading} `{row.name}` | {row.unit} | {kinds} | `{row.function}` | {row.source} | `{row.test}` |"
        )
    return "\n".join(lines)
