"""How far decoded actions jump when actions move a little: the smoothness a tokenized policy inherits.

All numbers are in normalised units, in which the range of every dim is [-1, 1]; norms are Euclidean over the dims of a
step, and of a chunk the largest over its steps. The excess jump of a pair is how much farther its decoded actions lie
apart than the actions themselves; its supremum J_q decides how smooth a deterministic expert's tokenized policy is
(Cao & Xie 2026, Prop 5, with J_q for 2 ε_q).
"""

import numpy as np
import numpy.typing as npt

__all__ = ["scalar_excess_jump"]

Floats = npt.NDArray[np.floating]


def scalar_excess_jump(edges: Floats, centres: Floats, low: float = -1.0, high: float = 1.0) -> float:
    """Return the exact excess jump of a step function on `low..high`.

    Between two points x <= y the excess |q(y) - q(x)| - (y - x) is largest where x is the right end of what comes
    before and y the left end of what comes after, so that one-sided limits at the edges decide: it is the largest rise
    of q - id, or fall of q + id, along the line.

    Args:
        edges: `(k - 1,)` ascending.
        centres: `(k,)` what each cell decodes to, in any order.
        low: where the domain begins.
        high: where it ends.

    Example:
        >>> scalar_excess_jump(np.array([-0.5, 0.0, 0.5]), np.array([-0.75, -0.25, 0.25, 0.75]))
        0.5
    """
    inside = (edges > low) & (edges <= high)  # a value on an edge belongs to the cell above
    first = int(np.searchsorted(edges, low, side="right"))
    borders = np.asarray(edges[inside], np.float64)
    values = np.asarray(centres[first : first + len(borders) + 1], np.float64)
    # every cell from both of its ends
    x = np.concatenate([[low], np.repeat(borders, 2), [high]])
    q = np.repeat(values, 2)
    rise, fall = q - x, q + x
    up = (rise - np.minimum.accumulate(rise)).max()
    down = (np.maximum.accumulate(fall) - fall).max()
    return float(max(up, down))
