"""The bins of published systems, id for id: OpenVLA, RT-1, Octo, Gato, openpi.

Each system is two formulas, value -> id and id -> value, in the float arithmetic that it uses. The cells are found
from the first one by bisection over all float32 numbers, so ids are equal by construction, on every edge too.
"""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from action_tokenizers.base import ActionTokenizer, Progress, ScalarCells
from action_tokenizers.codecs.bins import bin_index
from action_tokenizers.codecs.preset_bins import SYSTEMS, System, preset_cells
from action_tokenizers.data.sample import ChunkSample
from action_tokenizers.errors import ActionShapeError, ActionValueError, FormatError
from action_tokenizers.ranges import OpenRange, Range
from action_tokenizers.tokenizers.binning import BEYOND, BinningTokenizer

__all__ = ["PresetTokenizer", "gato", "octo", "openpi", "openvla", "rt1"]

MOST_DIMS = 1 << 16
LARGEST = 1e38  # the published formulas compute in float32

_Floats = npt.NDArray[np.floating[Any]]


class PresetTokenizer(BinningTokenizer, name="preset"):
    """The ids and values of a published system.

    `openvla(...)`, `rt1(...)`, `octo(...)`, `gato(...)` and `openpi(...)` return one that needs no data; they also say
    what each system computes. `fit` learns the range and nothing else: the cells are the system's.

    Args:
        horizon: steps per chunk; None: from the data. The functions leave it open, and then there is a pad id.
        range: `unit`: actions are normalised already, the way the system wants them, and pass as they are. A `Range`
            of one key: the low and high of the system's own formula. Anything else is learned or given as in every
            tokenizer and maps actions to the system's [-1, 1] (`octo_gaussian`: to ±4 standard deviations, so
            `meanstd` is meant); there a value within a rounding error of an edge may fall on its other side.
        system: `openvla`, `rt1`, `octo_uniform`, `octo_gaussian`, `gato` or `openpi`.
        bins: number of ids; None: as published, 256 (Gato: 1024).
        corrected: without the system's known defects. What an id decodes to is then unbiased; ids stay as published,
            so that a policy trained on them gains, except that Octo's largest values get the last id instead of 0.

    Example:
        >>> import numpy as np
        >>> tokenizer = PresetTokenizer(system="openvla", horizon=1, range="unit").fit(np.zeros((1, 1, 3)))
        >>> tokenizer.encode(np.array([[-1.0, 0.0, 1.0]])).tolist(), tokenizer.vocab_size
        ([0, 127, 255], 256)
    """

    decode_alone = """
        centres, given = tensors["centres"], config["params"]["range"]
        actions = centres[np.arange(len(centres)), ids.reshape(-1, len(centres))]
        if given != "unit" and not (isinstance(given, dict) and len(tensors["range.low"]) == 1):
            low, high = tensors["range.low"][0], tensors["range.high"][0]
            actions = low + (actions + 1) / 2 * (high - low)
    """

    last: torch.Tensor  # (d,) the largest value that has a bin of its own; what lies above gets id 0

    def __init__(
        self,
        *,
        horizon: int | None = None,
        range: Any = "quantile",
        system: str = "openvla",
        bins: int | None = None,
        corrected: bool = False,
    ) -> None:
        # the strategies of BinningTokenizer are none of a preset's parameters
        ActionTokenizer.__init__(self, horizon=horizon, range=range, system=system, bins=bins, corrected=corrected)

    def scalar_cells(self) -> ScalarCells:
        """Return edges and centres per dim; where too large a value gets id 0, that is one more cell."""
        cells = super().scalar_cells()
        edges, centres = list(cells.edges), list(cells.centres)
        for j, first in enumerate(torch.nextafter(self.last, torch.full_like(self.last, torch.inf))):
            if first <= BEYOND:
                edges[j] = torch.cat([edges[j], first[None]])
                centres[j] = torch.cat([centres[j], centres[j][:1]])
        return ScalarCells(tuple(edges), tuple(centres))

    def _shares_ids(self) -> bool:
        return True

    def _system(self) -> System:
        return SYSTEMS[self._params["system"]]

    def _asked_bins(self) -> list[int]:
        bins = self._system().bins if self._params["bins"] is None else self._whole("bins", 2, 1 << 16)
        return [bins] * (self._action_dim or 0)

    def _check_params(self) -> None:
        name, given = self._params["system"], self._params["range"]
        if not isinstance(name, str) or name not in SYSTEMS:
            raise ActionValueError(f"expected system among {list(SYSTEMS)}, got {name!r}")
        if not isinstance(self._params["corrected"], bool):
            raise ActionValueError(f"expected corrected True or False, got {self._params['corrected']!r}")
        if isinstance(given, Range) and not self._system().takes_range:
            raise ActionValueError(
                f"expected no low and high for {name}, whose formula has none, got a Range; normalise the actions "
                "before, and give range='unit'"
            )
        self._asked_bins()

    def _is_raw(self) -> bool:
        """Say whether the cells are laid in the units of the actions, as the system's own formula does."""
        given = self._params["range"]
        return len(given.keys) == 1 if isinstance(given, Range) else isinstance(given, str) and given == "unit"

    def _fit(self, chunks: torch.Tensor, is_pad: torch.Tensor | None, progress: Progress | None) -> None:
        """Do nothing: there is only the range to learn."""

    def _learn_from(self, sample: ChunkSample, is_open: bool, progress: Progress | None) -> None:
        super()._learn_from(sample, is_open, progress)
        fitted = self._fitted_range()
        self._lay(fitted.keys, fitted.low[0].double().numpy(), fitted.high[0].double().numpy())

    def _without_data(self, action_dim: int, key: str, low: _Floats, high: _Floats) -> Self:
        """Settle what a fit would, for actions between `low (d,)` and `high (d,)`."""
        from action_tokenizers import __version__

        self._horizon, self._action_dim = self.asked_horizon, action_dim
        self._check_params()
        self._lay((key,), low, high)
        self._provenance = {"library": f"action-tokenizers {__version__}", "sources": [], "keys": {}}
        return self

    def _lay(self, keys: Sequence[str], low: _Floats, high: _Floats) -> None:
        """Fill the buffers with the cells of every dim; where they are raw, let the actions pass to them."""
        name, corrected, system = self._params["system"], self._params["corrected"], self._system()
        is_raw, has_range = self._is_raw(), isinstance(self._params["range"], Range)
        if not (is_raw and has_range):
            low, high = np.full_like(low, -1), np.full_like(high, 1)
        bounds = np.stack([low, high]).astype(np.float32)
        if not (bounds[1] - bounds[0] > system.narrowest).all():
            raise ActionValueError(
                f"expected high - low > {system.narrowest} in every dim for {name}, got low={low.tolist()} and "
                f"high={high.tolist()}; give a constant dim some range"
            )
        if is_raw and not has_range:
            bounds *= np.float32(system.limit)
        self._sizes = {"bins": self._asked_bins()}
        self._allocate()
        pairs, k = list(zip(low.tolist(), high.tolist(), strict=True)), self.centres.shape[1]
        found = {pair: preset_cells(name, k, *pair, corrected, 1.0 if is_raw else system.span) for pair in set(pairs)}
        for j, pair in enumerate(pairs):
            edges, values = found[pair]
            centres = values.astype(np.float32)
            if corrected or not is_raw:
                centres = centres.clip(bounds[0, j], bounds[1, j])
            self.edges[j] = torch.from_numpy(edges[:-1].clip(max=BEYOND))
            self.centres[j] = torch.from_numpy(centres)
            if not corrected and edges[-1] < np.inf:
                self.last[j] = float(np.nextafter(edges[-1], np.float32(-np.inf)))
            # a published value may lie an ulp beyond the low and high it was computed from
            bounds[:, j] = min(bounds[0, j], centres.min()), max(bounds[1, j], centres.max())
        middle = torch.from_numpy(bounds.astype(np.float64).mean(0).astype(np.float32))
        self.neutral.copy_(bin_index(middle[None], self.edges)[0])
        if is_raw:
            self.range = OpenRange(np.tile(bounds[0], (len(keys), 1)), np.tile(bounds[1], (len(keys), 1)), keys)

    def _allocate(self) -> None:
        super()._allocate()
        self.register_buffer("last", torch.full((len(self._sizes["bins"]),), BEYOND, dtype=torch.float32))

    def _allocate_range(self, keys: Sequence[str]) -> Range:
        empty = super()._allocate_range(keys)
        return OpenRange(empty.low, empty.high, keys) if self._is_raw() else empty

    def _check_tensors(self) -> None:
        fitted, bins = self._fitted_range(), self._asked_bins()
        if self._sizes["bins"] != bins:
            raise FormatError(f"expected the bins {bins} of the system, got {self._sizes['bins']}")
        low, high = (fitted.low[:1].T, fitted.high[:1].T) if self._is_raw() else (-1, 1)
        inside = (self.centres >= low) & (self.centres <= high)
        if not bool(inside.all() and (self.edges.diff() >= 0).all() and (self.last >= self.edges[:, -1]).all()):
            raise FormatError("expected ascending edges and centres inside the range, got others; the file is damaged")
        if not bool(((self.neutral >= 0) & (self.neutral < self.centres.shape[1])).all()):
            raise FormatError("expected neutral cells that exist, got others; the file is damaged")

    def _encode(self, chunks: torch.Tensor) -> torch.Tensor:
        ids = super()._encode(chunks)
        return torch.where(chunks.flatten(1) > self.last.repeat(chunks.shape[1]), 0, ids)


def openvla(
    action_dim: int,
    *,
    low: Any = None,
    high: Any = None,
    bins: int = 256,
    horizon: int | None = None,
    key: str = "default",
    corrected: bool = False,
) -> PresetTokenizer:
    """Return OpenVLA's bins (`ActionTokenizer` of openvla/openvla): `bins` edges, `bins - 1` centres, `bins` ids.

    id = digitize(clip(z, -1, 1), linspace(-1, 1, bins)) - 1 in float64; an id decodes to the middle of its bin. The
    language-model id is vocab_size - 1 - id, the tail of the vocabulary.

    Defect: the last id is hit by exactly 1 (where every value above q99 is clipped to), and decodes to the middle of
    the bin below, half a bin too low. Corrected, it decodes to 1. The other ids have no bias.

    Args:
        action_dim: number of dims d.
        low: q01 of the actions, a number or `(d,)`; z = 2 (a - low) / (high - low + 1e-8) - 1 in float32, and back in
            float64 (with the 1e-8, as OpenVLA-OFT; the first release leaves it out there). A dim of -1 to 1 passes as
            it is, as one whose `mask` is False does. None: actions are z already.
        high: likewise, q99.
        bins: number of ids.
        horizon: steps per chunk; None: any. OpenVLA itself uses 1.
        key: a name for the range.
        corrected: see above.

    Raises:
        ActionShapeError: `low` or `high` not of d dims.
        ActionValueError: a parameter outside its domain.

    Example:
        >>> import numpy as np
        >>> ids = openvla(3).encode(np.array([[-1.0, 0.0, 1.0]]))
        >>> ids.tolist(), (32000 - 1 - ids).tolist()
        ([0, 127, 255], [31999, 31872, 31744])
    """
    return _preset("openvla", action_dim, low, high, key, horizon=horizon, bins=bins, corrected=corrected)


def rt1(
    action_dim: int,
    *,
    low: Any = None,
    high: Any = None,
    bins: int = 256,
    horizon: int | None = None,
    key: str = "default",
    corrected: bool = False,
) -> PresetTokenizer:
    """Return RT-1's bins (`RT1ActionTokenizer` of google-research/robotics_transformer), of its float actions.

    id = int((clip(a, low, high) - low) / (high - low) * (bins - 1)) and a = id / (bins - 1) * (high - low) + low, all
    in float32.

    Defect: truncation. Every id decodes to the lower end of its bin, on average half a bin too low, and only
    `high` itself has the last id. Corrected, an id decodes to the middle of its bin, the last one to `high`.

    Args:
        action_dim: number of dims d.
        low: the action spec's minimum, a number or `(d,)`; None: -1.
        high: the action spec's maximum; None: 1.
        bins: number of ids.
        horizon: steps per chunk; None: any. RT-1 itself uses 1.
        key: a name for the range.
        corrected: see above.

    Raises:
        ActionShapeError: `low` or `high` not of d dims.
        ActionValueError: a parameter outside its domain.
    """
    return _preset("rt1", action_dim, low, high, key, horizon=horizon, bins=bins, corrected=corrected)


def octo(
    action_dim: int,
    *,
    strategy: str = "uniform",
    low: Any = None,
    high: Any = None,
    bins: int = 256,
    horizon: int | None = None,
    key: str = "default",
    corrected: bool = False,
) -> PresetTokenizer:
    """Return Octo's bins (`BinTokenizer` of octo-models/octo), in float32.

    id = the i with thresholds[i] <= a < thresholds[i + 1], decoded to the mean of these two. `uniform`: thresholds are
    linspace(low, high, bins + 1) and a is first clipped to [low + 1e-6, high - 1e-6]. `gaussian`: they are the normal
    quantiles of linspace(1e-6, 1 - 1e-6, bins + 1), and nothing is clipped. The thresholds are computed as JAX does on
    a CPU; JAX's own approximation of the normal quantile differs from them by a few float32 ulps.

    Defect: a value that is in no bin gets id 0, the lowest, even where it is too large: in `gaussian` beyond +4.75
    standard deviations, in `uniform` at `high` where that is above 32, as float32 cannot hold high - 1e-6. Corrected,
    it gets the last id.

    Args:
        action_dim: number of dims d.
        strategy: `uniform` or `gaussian` (Octo's `normal`: actions with mean 0 and standard deviation 1).
        low: of `uniform`, a number or `(d,)`; None: -1.
        high: likewise; None: 1.
        bins: number of ids.
        horizon: steps per chunk; None: any.
        key: a name for the range.
        corrected: see above.

    Raises:
        ActionShapeError: `low` or `high` not of d dims.
        ActionValueError: a parameter outside its domain, or `low` and `high` for `gaussian`.
    """
    if strategy not in ("uniform", "gaussian"):
        raise ActionValueError(f"expected strategy 'uniform' or 'gaussian', got {strategy!r}")
    return _preset(f"octo_{strategy}", action_dim, low, high, key, horizon=horizon, bins=bins, corrected=corrected)


def gato(action_dim: int, *, bins: int = 1024, horizon: int | None = None, key: str = "default") -> PresetTokenizer:
    """Return Gato's mu-law bins (Reed et al. 2022, appendix B), in float64.

    F(x) = sign(x) log(100 |x| + 1) / log(100 * 256 + 1), clipped to [-1, 1], so that |x| <= 256 is represented;
    id = floor((F + 1) / 2 * bins), decoded to the middle of the bin through the inverse of F. The paper gives no code
    and no way back. It compands observations in this way; its actions, which all lie in [-1, 1], fall into the same
    uniform bins without F: `BinningTokenizer(bins=1024, range="unit")`. No defect is known.

    Args:
        action_dim: number of dims d.
        bins: number of ids.
        horizon: steps per chunk; None: any.
        key: a name for the range.

    Raises:
        ActionValueError: a parameter outside its domain.
    """
    return _preset("gato", action_dim, None, None, key, horizon=horizon, bins=bins)


def openpi(
    action_dim: int,
    *,
    low: Any = None,
    high: Any = None,
    bins: int = 256,
    horizon: int | None = None,
    key: str = "default",
    corrected: bool = False,
) -> PresetTokenizer:
    """Return the bins of openpi's RoboArena baseline (`BinningTokenizer` of Physical-Intelligence/openpi), in float64.

    An id decodes to z = id / bins * 2 - 1. That class refuses to encode; ids here are those that openpi gives the
    robot's state, digitize(z, linspace(-1, 1, bins + 1)[:-1]) - 1, with what lies below -1 in the first bin.

    Defect: every id decodes to the lower edge of its bin, on average half a bin too low. Corrected, to its middle.

    Args:
        action_dim: number of dims d.
        low: q01 of the actions, a number or `(d,)`; z = (a - low) / (high - low + 1e-6) * 2 - 1 and back. A dim of -1
            to 1 passes as it is. None: actions are z already.
        high: likewise, q99.
        bins: number of ids.
        horizon: steps per chunk; None: any.
        key: a name for the range.
        corrected: see above.

    Raises:
        ActionShapeError: `low` or `high` not of d dims.
        ActionValueError: a parameter outside its domain.
    """
    return _preset("openpi", action_dim, low, high, key, horizon=horizon, bins=bins, corrected=corrected)


def _preset(system: str, action_dim: int, low: Any, high: Any, key: str, **own: Any) -> PresetTokenizer:
    whole = isinstance(action_dim, int | np.integer) and not isinstance(action_dim, bool)
    if not whole or not 1 <= action_dim <= MOST_DIMS:
        raise ActionShapeError(f"expected action_dim an integer from 1 to {MOST_DIMS}, got {action_dim!r}")
    if not isinstance(key, str):
        raise ActionValueError(f"expected key a name, got {key!r}")
    if (low is None) != (high is None):
        raise ActionValueError("expected both low and high, or neither, got one of them")
    d = int(action_dim)
    with torch.device("cpu"):  # also where a policy is being built under another default device
        if low is None:
            return PresetTokenizer(system=system, range="unit", **own)._without_data(d, key, -np.ones(d), np.ones(d))
        try:
            lower, upper = (np.broadcast_to(np.asarray(bound, np.float64), (d,)) for bound in (low, high))
        except (TypeError, ValueError) as error:
            raise ActionShapeError(
                f"expected low and high one number or {d}, one per dim, got others: {error}"
            ) from error
        if bool((np.isfinite(lower) & np.isfinite(upper) & (upper - lower > LARGEST)).any()):
            raise ActionValueError(f"expected high - low of at most {LARGEST}, got {low!r} and {high!r}")
        # in full precision beside the float32 Range: statistics come as float64, and decoding is to be exact
        tokenizer = PresetTokenizer(system=system, range=Range(lower.tolist(), upper.tolist(), (key,)), **own)
        return tokenizer._without_data(d, key, lower, upper)
