"""`Measure`: a number with its interval, what kind of statement it is, and what it rests on.

The unit of independence is the episode: steps of one episode are copies of each other, so every interval here is over
per-episode values. Intervals marked *guaranteed* hold for any law of the episodes (within the stated bounds), at any
sample size; the bootstrap-t is approximate, and falls short on heavy tails and few episodes.
"""

import math
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from action_tokenizers.errors import ActionValueError

__all__ = [
    "Estimator",
    "Kind",
    "Measure",
    "bernstein",
    "bootstrap_t",
    "clopper_pearson",
    "hoeffding",
    "plain",
    "share_interval",
]

Values = npt.NDArray[np.float64]
LEVEL = 0.95
RESAMPLES = 2000
FEW_EQUAL = 5  # episodes: what fewer of them agree on may be chance
SAME_SHARE = 1e-6  # what rounding does to a probability: shares nearer than this are the same
BOOTSTRAP = "bootstrap-t over episodes, 95 %"
AGREE = "Clopper-Pearson over episodes, 95 %: all of them agree"


class Kind(StrEnum):
    """What a number says about the quantity it is named after."""

    EXACT = "exact"  # a property of the tokenizer, computed
    LOWER = "lower"  # a search found this much; the truth may be larger
    UPPER = "upper"  # a bound; the truth may be smaller
    UNBIASED = "unbiased"  # the mean of the estimate is the quantity
    CONSISTENT = "consistent"  # with more episodes it becomes the quantity
    PROXY = "proxy"  # another quantity that tends to go along with it


@dataclass(frozen=True)
class Measure:
    """One number of an audit.

    Attributes:
        name: unique within an audit.
        value: the number; None where the data cannot show it.
        unit: such as `half range`, `bits`, `share of episodes`.
        kind: what kind of statement it is.
        interval: lower and upper end, `LEVEL` of the time around the quantity; None: there is none.
        method: how the interval was made.
        n: sample sizes by name, `episodes` among them where it rests on data.
        caveat: what a reader must know to not over-read it.
        parts: the same number per dim, per position, per perturbation and so on.
    """

    name: str
    value: float | None
    unit: str
    kind: Kind
    interval: tuple[float, float] | None = None
    method: str | None = None
    n: dict[str, int] = field(default_factory=dict)
    caveat: str = ""
    parts: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types; what is not finite becomes null, and an infinite value is `unbounded`."""
        told: dict[str, Any] = plain(asdict(self))
        return {**told, "unbounded": self.value is not None and math.isinf(self.value)}


@dataclass(frozen=True)
class Estimator:
    """One row of the table of estimators: what a measure is, apart from its number. Every module lists its own.

    Attributes:
        name: of the measures it makes.
        heading: what a report calls them.
        unit: theirs.
        kinds: the kinds they can be of; the first where nothing else is said.
        meaning: what the number is, in a sentence.
        caution: what it cannot say.
        advice: what to do where it is bad.
        source: the equation, theorem or paper it comes from.
        function: where it is computed, from `diagnostics` on, such as `error.drift`.
        test: the test with its known answer, such as `test_error.py::test_drift`.
    """

    name: str
    heading: str
    unit: str
    kinds: tuple[Kind, ...]
    meaning: str
    caution: str
    advice: str
    source: str
    function: str
    test: str

    def measure(
        self,
        value: float | None,
        *,
        kind: Kind | None = None,
        interval: tuple[float, float] | None = None,
        method: str | None = None,
        n: dict[str, int] | None = None,
        note: str = "",
        parts: dict[str, Any] | None = None,
    ) -> Measure:
        """Return the number as a `Measure`; `note` is a caveat of this number, said after the row's own caution."""
        settled = kind or self.kinds[0]
        if settled not in self.kinds:
            raise ActionValueError(f"expected a kind of {self.name} among {list(self.kinds)}, got {settled!r}")
        caveat = f"{self.caution} {note}".strip()
        shown = None if value is None else float(value)
        return Measure(self.name, shown, self.unit, settled, interval, method, n or {}, caveat, parts or {})


def bootstrap_t(values: npt.ArrayLike, *, seed: int = 0, level: float = LEVEL) -> tuple[float, float] | None:
    """Return an approximate interval of the mean of per-episode `values (n,)`; None for fewer than two.

    Studentized: resampled deviations are divided by their own standard error, so that it widens on small and skewed
    samples, where the percentile bootstrap covers .81 to .90. Equal values have no spread to widen it: of five or more
    the interval is a point, of fewer there is none. Of shares see `share_interval`.

    Example:
        >>> low, high = bootstrap_t(np.random.default_rng(0).normal(size=50))
        >>> low < 0.1 < high
        True
    """
    x = np.asarray(values, np.float64)
    n = len(x)
    if n < 2:
        return None
    mean, error = float(x.mean()), float(x.std(ddof=1)) / math.sqrt(n)
    # the mean of equal values may differ from them by rounding, and then so does their spread from 0
    if error == 0 or np.ptp(x) == 0:
        return None if n < FEW_EQUAL else (mean, mean)
    drawn = x[np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))]
    means, errors = drawn.mean(1), drawn.std(1, ddof=1) / math.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(means == mean, 0.0, (means - mean) / errors)
    # equal draws have no spread: what they say about the tail is that it has no end
    low, high = np.quantile(t, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return mean - float(high) * error, mean - float(low) * error


def share_interval(
    values: npt.ArrayLike, low: float = 0.0, high: float = 1.0, *, seed: int = 0, level: float = LEVEL
) -> tuple[tuple[float, float] | None, str | None]:
    """Return the interval of the mean of per-episode `values (n,)` that lie in `low..high`, and how it was made.

    It is that of `bootstrap_t`, cut off at the ends. Where all values agree nothing can be resampled, but an episode
    unlike them is at most as frequent as `clopper_pearson` of none in n says, and at most as far from them as an end:
    of shares that are 0, E[X] <= P(X > 0). None for fewer than two episodes, and for fewer than five that agree on
    anything but an end.

    Example:
        >>> (low, high), _ = share_interval([0, 0])
        >>> low, round(high, 3)
        (0.0, 0.842)
    """
    x = np.asarray(values, np.float64)
    n = len(x)
    if n < 2:
        return None, None
    if np.ptp(x) > SAME_SHARE:
        found, method = bootstrap_t(x, seed=seed, level=level), BOOTSTRAP
    else:
        mean, other = float(x.mean()), clopper_pearson(0, n, level)[1]
        at_an_end = min(mean - low, high - mean) <= SAME_SHARE
        found = (mean - (mean - low) * other, mean + (high - mean) * other) if at_an_end or n >= FEW_EQUAL else None
        method = AGREE
    if found is None:
        return None, None
    return (min(max(found[0], low), high), min(max(found[1], low), high)), method


def clopper_pearson(hits: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Return the guaranteed interval of a probability seen `hits` times in `n` independent trials.

    Example:
        >>> low, high = clopper_pearson(0, 25)
        >>> low, round(high, 3)
        (0.0, 0.137)
    """
    from scipy.stats import beta

    if not 0 <= hits <= n or n < 1:
        raise ActionValueError(f"expected 0 <= hits <= n and n >= 1, got {hits} of {n}")
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, n - hits + 1))
    high = 1.0 if hits == n else float(beta.ppf(1 - tail, hits + 1, n - hits))
    return low, high


def hoeffding(values: npt.ArrayLike, low: float, high: float, level: float = LEVEL) -> tuple[float, float]:
    """Return the guaranteed interval of the mean of independent `values (n,)` that lie in `low..high`.

    Hoeffding 1963: half width (high - low) sqrt(ln(2 / (1 - level)) / 2n).
    """
    x = _within(values, low, high)
    half = (high - low) * math.sqrt(math.log(2 / (1 - level)) / (2 * len(x)))
    return max(low, float(x.mean()) - half), min(high, float(x.mean()) + half)


def bernstein(values: npt.ArrayLike, low: float, high: float, level: float = LEVEL) -> tuple[float, float]:
    """Return the guaranteed interval of the mean that profits from a small variance.

    Empirical Bernstein (Audibert, Munos, Szepesvari 2009): half width sqrt(2 V ln(3/δ) / n) + 3 (high - low) ln(3/δ)
    / n with the (biased) sample variance V and δ = 1 - level.
    """
    x = _within(values, low, high)
    n, log = len(x), math.log(3 / (1 - level))
    half = math.sqrt(2 * float(x.var()) * log / n) + 3 * (high - low) * log / n
    return max(low, float(x.mean()) - half), min(high, float(x.mean()) + half)


def _within(values: npt.ArrayLike, low: float, high: float) -> Values:
    x = np.asarray(values, np.float64)
    if not len(x) or not bool(((x >= low) & (x <= high)).all()):
        raise ActionValueError(
            f"expected at least one value, all in {low}..{high}, got {len(x)} with others among them"
        )
    return x


def plain(value: Any) -> Any:
    """Return `value` in plain JSON types; what is not finite becomes None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
