"""`ActionTokenizer`: the contract every family keeps, and the one place that checks what a call brings."""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, ParamSpec, Self, TypeVar

import torch
from torch import nn

from action_tokenizers.artifact import MOST_CHUNK_VALUES
from action_tokenizers.data.episodes import Episodes
from action_tokenizers.data.fingerprint import fingerprints
from action_tokenizers.data.relative import Relative
from action_tokenizers.data.sample import ChunkSample
from action_tokenizers.doors import hold_last, is_chunk_list, open_actions, open_ids, open_mask, refuse_odd
from action_tokenizers.errors import (
    ActionShapeError,
    ActionTokenizerError,
    ActionValueError,
    FormatError,
    NotFittedError,
    TokenError,
)
from action_tokenizers.hub import PretrainedMixin
from action_tokenizers.ranges import Range, fit_range
from action_tokenizers.reading import Reading
from action_tokenizers.registry import register
from action_tokenizers.warn import warn

__all__ = ["ActionTokenizer", "Progress", "ScalarCells", "range_of"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

# methods that do in one pass what others do step by step
SHORT_CUTS = {
    "_encode_actions": frozenset({"_encode"}),
    "_decode_whole": frozenset({"_parse", "_decode", "_read", "_actions"}),
}

Progress = Callable[[str, int, int], None]
"""Called as `progress(stage, done, total)`; only a user interface draws it."""


def _plainly(call: Callable[P, R]) -> Callable[P, R]:
    """Run a method without gradients, and in full precision also inside a policy's autocast."""

    @functools.wraps(call)
    def plain(*args: P.args, **kwargs: P.kwargs) -> R:
        fitted = getattr(args[0], "_modules", {}).get("range")  # a quicker way to its attributes
        device = "cpu" if fitted is None else fitted._buffers["low"].device.type
        with torch.no_grad():
            if not torch.is_autocast_enabled(device):  # the context costs more than a small call
                return call(*args, **kwargs)
            with torch.autocast(device, enabled=False):
                return call(*args, **kwargs)

    return plain


@dataclass(frozen=True)
class ScalarCells:
    """Exact cells of a tokenizer that quantizes every value alone, in range units ([-1, 1]).

    Attributes:
        edges: per dim `(k - 1,)` float32, ascending: a value on an edge belongs to the cell above it.
        centres: per dim `(k,)` float32: what a cell decodes to.
    """

    edges: tuple[torch.Tensor, ...]
    centres: tuple[torch.Tensor, ...]


class ActionTokenizer(nn.Module, PretrainedMixin, ABC):
    """A fitted, two-way map between action chunks and ids.

    Actions are `(..., t, d)` float32 and ids `(..., n)` int64, with t = `horizon`, d = `action_dim` and ids in
    0..`vocab_size`-1. numpy in gives numpy out; torch in gives torch out on the same device.

    A family writes `vocab_size`, `_fit`, `_allocate`, `_encode`, `_parse`, `_decode`, `_allowed` and
    `_max_tokens`; it sees only range units ([-1, 1]), tensors `(b, t, d)` and `(b, n)`, and good data.

    Args:
        horizon: steps per chunk; None: from the data (see `fit`).
        range: how actions map to [-1, 1]: `quantile` (q01 and q99), `minmax`, `meanstd` (±4 standard deviations),
            `unit` (they are in [-1, 1] already), one of these per dim, or a `Range`.
        own: the family's own parameters.
    """

    tokenizer_type: ClassVar[str]
    prefix_decodable: ClassVar[bool] = False
    size_names: ClassVar[frozenset[str]] = frozenset()  # keys of `_sizes`
    # per short cut of SHORT_CUTS that the family has: methods of its own that the steps call and it does not
    own_steps: ClassVar[Mapping[str, frozenset[str]]] = {}
    # for the card: lines of numpy that turn `ids` of one chunk into `actions` from `config` and `tensors` alone
    decode_alone: ClassVar[str] = ""
    range: Range | None

    def __init_subclass__(cls, *, name: str | None = None, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        for short_cut in SHORT_CUTS:  # who takes a step anew does not inherit the short cut past it
            if _passes_by_a_step(cls, short_cut):
                setattr(cls, short_cut, vars(ActionTokenizer)[short_cut])
        if name is not None:
            register(name, cls)
            cls.tokenizer_type = name

    def __init__(self, *, horizon: int | None = None, range: Any = "quantile", **own: Any) -> None:
        super().__init__()
        self._horizon: int | None
        self._action_dim: int | None
        self._sizes: dict[str, Any]
        self._provenance: dict[str, Any]
        self._beside: dict[str, Any]
        self._params: dict[str, Any] = {"horizon": horizon, "range": range, **own}
        self._forget()

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids v, the pad included where there is one: the width of a policy's head."""

    @abstractmethod
    def _fit(self, chunks: torch.Tensor, is_pad: torch.Tensor | None, progress: Progress | None) -> None:
        """Learn from `chunks (n, t, d)`, set `_sizes`, call `_allocate`, fill the buffers.

        Padded steps repeat the last real one; `is_pad (n, t)` tells which they are.
        """

    @abstractmethod
    def _allocate(self) -> None:
        """Register every buffer, zeroed, in the shape that parameters, facts and `_sizes` decide."""

    @abstractmethod
    def _encode(self, chunks: torch.Tensor) -> torch.Tensor:
        """Return the ids of `chunks (b, t, d)`, padded with `pad_id` to the longest."""

    @abstractmethod
    def _parse(self, ids: torch.Tensor, horizon: int, action_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return how many leading ids can begin a chunk, `(b,)` int64, and whether they complete it, `(b,)` bool.

        Total: any int64 may come. Stops at the id that completes the chunk, and before a pad.
        """

    @abstractmethod
    def _decode(self, ids: torch.Tensor, kept: torch.Tensor, horizon: int, action_dim: int) -> torch.Tensor:
        """Decode the first `kept (b,)` ids of each row, as `_parse` found them, to `(b, t, d)`.

        What they do not say takes the family's neutral value. The caller clamps.
        """

    @abstractmethod
    def _allowed(self, prefix: torch.Tensor, horizon: int, action_dim: int) -> torch.Tensor:
        """Return the ids, pad excluded, that may follow each valid, incomplete prefix, `(b, v)` bool."""

    @abstractmethod
    def _max_tokens(self, horizon: int, action_dim: int) -> int:
        """Return the most ids a chunk can need."""

    def _encode_actions(self, chunks: torch.Tensor, key: str | None) -> torch.Tensor:
        """Return the ids of `chunks (b, t, d)` as they came, in units of action; NaN and inf are refused.

        A family may do all of it in one pass over memory, to the same ids; the range is then a plain `Range`.
        """
        refuse_odd(chunks)
        return self._encode(self._fitted_range().to_unit(chunks, key))

    def _decode_whole(self, ids: torch.Tensor, horizon: int, action_dim: int, key: str | None) -> torch.Tensor | None:
        """Return the actions of ids, each row of which is exactly one chunk, in one pass; or None.

        None where a row is anything else, or where the family has no such pass: then `_parse` and `_decode` tell. The
        range is a plain `Range`.
        """
        return None

    def _needs_horizon(self) -> bool:
        """Say whether chunks must all have the fitted horizon; False where every step is coded alone."""
        return True

    def _fixed_length(self) -> bool:
        """Say whether every chunk has the same number of ids, so that no pad is needed."""
        return self._horizon is not None

    def _choices(self, ids: torch.Tensor, kept: torch.Tensor, horizon: int, action_dim: int) -> torch.Tensor:
        """Return how many ids could stand at each of the first `kept (b,)` positions of valid `ids (b, n)`.

        Everything after them counts as 1. Slow but general; a family may know better.
        """
        counts = torch.ones_like(ids)
        for p in range(ids.shape[1]):
            rows = kept > p
            counts[rows, p] = self._allowed(ids[rows, :p], horizon, action_dim).sum(-1)
        return counts

    def _locate(self, ids: torch.Tensor, kept: torch.Tensor, horizon: int, action_dim: int) -> torch.Tensor:
        """Return step, dim and level of the first `kept (b,)` ids of each row, `(b, n, 3)`; the rest is ignored."""
        return torch.full((*ids.shape, 3), -1, dtype=torch.int64, device=ids.device)

    def _more_files(self) -> dict[str, bytes]:
        """Return further files for other tools, by name; loading does not read them."""
        return {}

    def _allocate_range(self, keys: Sequence[str]) -> Range:
        """Return an empty range with these keys; the loader fills it."""
        empty = torch.empty(len(keys), self._action_dim or 0, dtype=torch.float32)
        return Range(empty, empty, keys)

    def _settled(self) -> None:
        """Follow a horizon or action_dim that was open until now."""

    def _check_params(self) -> None:
        """Raise ActionValueError or ActionShapeError for parameters outside their domain; facts are known."""

    def _check_tensors(self) -> None:
        """Raise FormatError where loaded buffers contradict each other; called when all are finite."""

    def scalar_cells(self) -> ScalarCells | None:
        """Return exact edges and centres where every value is quantized alone, else None."""
        return None

    @property
    def is_fitted(self) -> bool:
        """Whether `fit` or `from_pretrained` has run."""
        return self.range is not None

    @property
    def horizon(self) -> int | None:
        """Steps per chunk; None: any."""
        return self._horizon

    @property
    def asked_horizon(self) -> int | None:
        """The parameter `horizon`, checked; None: from the data.

        Raises:
            ActionValueError: neither None nor a positive integer.
        """
        return None if self._params["horizon"] is None else self._whole("horizon")

    @property
    def action_dim(self) -> int | None:
        """Dims per step; None only for an imported tokenizer that does not store it."""
        return self._action_dim

    @action_dim.setter
    def action_dim(self, value: int | None) -> None:
        """Settle an open action_dim, see `time_horizon`."""
        self._settle("_action_dim", value)

    @property
    def codes_steps_alone(self) -> bool:
        """Whether the ids of a step depend on that step only, so that a chunk is no more than its steps."""
        return not self._needs_horizon()

    @property
    def time_horizon(self) -> int | None:
        """Another name for `horizon`, which starVLA and the published FAST processor use.

        They set it, and `action_dim`, before they decode. Here that settles a shape that was open; what the fit
        decided stays, and another value raises ActionShapeError.
        """
        return self._horizon

    @time_horizon.setter
    def time_horizon(self, value: int | None) -> None:
        """Settle an open horizon."""
        self._settle("_horizon", value)

    @property
    def range_keys(self) -> tuple[str, ...]:
        """The keys that `key=` may name."""
        return self._fitted_range().keys

    @property
    def pad_id(self) -> int | None:
        """The id that fills rows up and marks the end, `vocab_size - 1`; None where all chunks are equally long."""
        self._fitted_range()
        return None if self._fixed_length() else self.vocab_size - 1

    @property
    def max_tokens(self) -> int | None:
        """Most ids a chunk can need; None where horizon or action_dim are open, see `max_tokens_for`."""
        self._fitted_range()
        is_open = self._horizon is None or self._action_dim is None
        return None if is_open else self.max_tokens_for(self._horizon)

    def max_tokens_for(self, horizon: int | None = None, action_dim: int | None = None) -> int:
        """Return the most ids a chunk `(horizon, action_dim)` can need; what the fit decided may be left out."""
        return self._max_tokens(*self._shape(horizon, action_dim))

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What it was fitted on: library version, data sets, keys, fps, chunk count, sample digest, fingerprints."""
        return self._provenance

    @property
    def relative(self) -> Relative | None:
        """How the actions it was fitted on were made relative; `relative.invert(decoded, reference)` undoes it."""
        stored = self._provenance.get("relative")
        return None if stored is None else Relative.from_json(stored)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters as they were asked; the facts say what came of them."""
        return dict(self._params)

    def set_params(self, **params: Any) -> Self:
        """Replace parameters. A fitted tokenizer forgets its fit: parameters and tensors never disagree.

        Raises:
            ActionValueError: an unknown name; lists the known ones.
        """
        unknown = sorted(set(params) - set(self._params))
        if unknown:
            raise ActionValueError(f"expected parameters among {sorted(self._params)}, got {unknown}")
        self._params.update(params)
        self._forget()
        return self

    @_plainly
    def fit(self, data: Any, *, progress: Progress | None = None) -> Self:
        """Learn from demonstrations; a refit replaces everything.

        Args:
            data: `Episodes`, a `ChunkSample`, an array of chunks `(n, t, d)`, an iterable of these, or a list of
                EPISODES `(t_i, d)`. More chunks than a `ChunkSample` holds by default are sampled.
            progress: called as `progress(stage, done, total)`.

        Where the parameter `horizon` is None it is taken from the chunks, or is one second of data (fps), at most
        the median episode. Families that code every step alone leave it open for episodes without fps.

        Raises:
            ActionShapeError: horizons or action_dims that do not agree, no way to tell the horizon, or a horizon
                longer than every episode.
            ActionValueError: no data, NaN or inf, or a parameter outside its domain.
        """
        self._forget()
        asked = self.asked_horizon
        is_open = asked is None and not self._needs_horizon() and _has_no_clock(data)
        sample = ChunkSample.of(data, horizon=1 if is_open else asked)
        if not len(sample.actions):
            raise ActionValueError("expected at least one chunk to fit, got none; give episodes with data")
        if sample.skipped:
            warn(f"{sample.skipped} episodes are shorter than the horizon, {sample.horizon} steps, and were skipped")
        try:
            with torch.device("cpu"):  # also where a policy is being built under another default device
                self._learn_from(sample, is_open, progress)
        except BaseException:
            self._forget()  # never half fitted
            raise
        return self

    @_plainly
    def encode(self, actions: Any, *, key: str | None = None, action_is_pad: Any = None) -> Any:
        """Return the ids of chunks.

        Args:
            actions: `(..., t, d)`, or a list of CHUNKS `(t_i, d)`. Values outside the range are clipped to it
                (`clip_report` counts them).
            key: whose range; needed where several were fitted.
            action_is_pad: `(..., t)` bool, True where a step is padding: it is replaced by the last real step.

        Returns:
            `(..., n)` int64, padded on the right with `pad_id` to the longest chunk of this call.

        Raises:
            NotFittedError: not fitted.
            ActionShapeError: another action_dim or horizon than fitted, or no such key.
            ActionValueError: NaN or inf; names chunk, step and dim.
        """
        fitted = self._fitted_range()
        if is_chunk_list(actions):
            return self._encode_list(actions, key, action_is_pad)
        chunks, give_back = open_actions(actions, fitted.low.device, odd=True)
        self._shape(chunks.shape[1], chunks.shape[2])
        if action_is_pad is not None:
            refuse_odd(chunks)  # also in what is padding
            chunks = hold_last(chunks, open_mask(action_is_pad, chunks.shape[:2], chunks.device))
        # a short cut knows the affine map and no other range
        if type(fitted) is Range:
            return give_back(self._encode_actions(chunks, key))
        return give_back(ActionTokenizer._encode_actions(self, chunks, key))

    @_plainly
    def decode(
        self,
        ids: Any,
        *,
        horizon: int | None = None,
        action_dim: int | None = None,
        key: str | None = None,
        errors: str = "strict",
        time_horizon: int | None = None,
    ) -> Any:
        """Return the actions of ids `(..., n)` as `(..., t, d)` float32, inside the range.

        Args:
            ids: `(..., n)` integers, or a list of id lists; pads may follow the chunk's last id, nothing else may.
            horizon: needed where the fit left it open; else, if given, equal to the fitted one.
            action_dim: likewise.
            key: whose range; needed where several were fitted.
            errors: `strict` refuses ids that no chunk could have; `repair` returns what `try_decode` makes of
                them, without its flag.
            time_horizon: another name for `horizon`, used by openpi and the published FAST processor.

        Raises:
            TokenError: ids that are not integers or, under `strict`, no chunk's ids; says where and why.
            ActionShapeError: a fact that contradicts the fit, or an open one not given.
        """
        if errors not in ("strict", "repair"):
            raise ActionValueError(f"expected errors='strict' or 'repair', got {errors!r}")
        if time_horizon is not None and horizon not in (None, time_horizon):
            raise ActionShapeError(f"expected one horizon, got horizon={horizon} and time_horizon={time_horizon}")
        shape = self._shape(time_horizon if horizon is None else horizon, action_dim)
        fitted = self._fitted_range()
        has_short_cut = type(self)._decode_whole is not ActionTokenizer._decode_whole and type(fitted) is Range
        if errors == "strict" and has_short_cut:
            rows, give_back = open_ids(ids, fitted.low.device, self.pad_id)
            actions = self._decode_whole(rows, *shape, key)
            if actions is not None:
                return give_back(actions)
        read = self._read(ids, *shape)
        if errors == "strict":
            read.refuse_unless(read.valid)
        return read.give_back(self._actions(read, key))

    @_plainly
    def try_decode(
        self,
        ids: Any,
        *,
        horizon: int | None = None,
        action_dim: int | None = None,
        key: str | None = None,
    ) -> tuple[Any, Any]:
        """Return actions `(..., t, d)` and `valid (...)` bool; whatever integers come, it does not raise.

        Where `valid` is False the longest valid prefix was kept and the rest is the family's neutral value: such an
        action is finite and inside the range, but nobody chose it.
        """
        read = self._read(ids, horizon, action_dim)
        return read.give_back(self._actions(read, key)), read.give_back(read.valid)

    @_plainly
    def decode_prefix(
        self,
        ids: Any,
        *,
        horizon: int | None = None,
        action_dim: int | None = None,
        key: str | None = None,
    ) -> Any:
        """Return the coarse actions `(..., t, d)` that the first ids of a chunk already say.

        Raises:
            ActionValueError: this family is not coarse-to-fine (`prefix_decodable` is False).
            TokenError: ids that begin no chunk.
        """
        if not self.prefix_decodable:
            raise ActionValueError(
                f"expected a prefix-decodable tokenizer, got {type(self).__name__}, whose ids are not coarse-to-fine"
            )
        read = self._read(ids, horizon, action_dim)
        read.refuse_unless(read.begins)
        return read.give_back(self._actions(read, key))

    @_plainly
    def allowed(self, prefix: Any, *, horizon: int | None = None, action_dim: int | None = None) -> Any:
        """Return which ids may follow `prefix (..., m)` so that the chunk can still be completed, `(..., v)` bool.

        After a complete chunk only the pad may follow, or nothing where there is none. A prefix that begins no
        chunk allows nothing.
        """
        read = self._read(prefix, horizon, action_dim)
        mask = torch.zeros(len(read.rows), self.vocab_size, dtype=torch.bool, device=read.rows.device)
        if self.pad_id is not None:
            mask[:, self.pad_id] = read.valid
        incomplete = read.begins & ~read.complete & (read.kept == read.rows.shape[1])
        if bool(incomplete.any()):
            mask[incomplete] = self._allowed(read.rows[incomplete], read.horizon, read.action_dim)
        return read.give_back(mask)

    @_plainly
    def length(self, ids: Any, *, horizon: int | None = None, action_dim: int | None = None) -> Any:
        """Return how many leading ids complete a chunk, `(...)` int64, without looking at pads; -1: none do."""
        read = self._read(ids, horizon, action_dim)
        return read.give_back(torch.where(read.complete, read.kept, -1))

    @_plainly
    def bits(self, ids: Any, *, horizon: int | None = None, action_dim: int | None = None) -> Any:
        """Return the bits of each chunk, `(...)` float64: the sum over its ids of log2(ids that could stand there).

        Raises:
            TokenError: ids that no chunk has.
        """
        read = self._read(ids, horizon, action_dim)
        read.refuse_unless(read.valid)
        choices = self._choices(read.rows, read.kept, read.horizon, read.action_dim)
        return read.give_back(choices.double().log2().sum(-1))

    def pad_mask(self, ids: Any) -> Any:
        """Return which ids are not padding, `(..., n)` bool: the ids that a loss counts."""
        rows, give_back = open_ids(ids, self._fitted_range().low.device, self.pad_id)
        return give_back(torch.ones_like(rows, dtype=torch.bool) if self.pad_id is None else rows != self.pad_id)

    @_plainly
    def locate(self, ids: Any, *, horizon: int | None = None, action_dim: int | None = None) -> Any:
        """Return what each id of a chunk or a prefix is about, `(..., n, 3)` int64: step, dim, level.

        For loss weights per step, dim or level. A step or dim of -1 means all of them, or several; levels count from
        0, coarse to fine (of FAST: the frequency where the id begins). A pad, and an id that cannot stand where it
        does, is (-1, -1, -1).
        """
        read = self._read(ids, horizon, action_dim)
        found = self._locate(read.rows, read.kept, read.horizon, read.action_dim)
        said = torch.arange(read.rows.shape[1], device=read.rows.device) < read.kept[:, None]
        return read.give_back(torch.where(said[..., None], found, -1))

    def collate(self, rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids `(b, n)` int64, padded to the longest, and which are not padding, `(b, n)` bool.

        For a DataLoader that serves one chunk's ids `(n_i,)` per item.

        Raises:
            TokenError: not integers, not in the vocabulary, or rows of different lengths although every chunk has the
                same number of ids.
        """
        lengths = {len(row) for row in rows}
        if self.pad_id is None and len(lengths) > 1:
            raise TokenError(f"expected rows of one length, because this tokenizer has no pad, got {sorted(lengths)}")
        ids, _ = open_ids(list(rows), torch.device("cpu"), self.pad_id)
        odd = ((ids < 0) | (ids >= self.vocab_size)).nonzero()
        if len(odd):
            row, place = odd[0].tolist()
            raise TokenError(
                f"expected ids in 0..{self.vocab_size - 1}, got {ids[row, place]} in row {row}, place {place}: are "
                "they another tokenizer's?"
            )
        return ids, torch.as_tensor(self.pad_mask(ids))

    def quantize(self, actions: Any, *, key: str | None = None, action_is_pad: Any = None) -> Any:
        """Return decode(encode(actions)): what a policy could execute in their place (the paper's q)."""
        if is_chunk_list(actions):
            masks = _mask_list(action_is_pad, len(actions))
            return [self.quantize(a, key=key, action_is_pad=m) for a, m in zip(actions, masks, strict=True)]
        ids = self.encode(actions, key=key, action_is_pad=action_is_pad)
        shape = actions.shape if hasattr(actions, "shape") else torch.as_tensor(actions).shape
        return self.decode(ids, horizon=shape[-2], action_dim=shape[-1], key=key)

    @_plainly
    def clip_report(self, actions: Any, *, key: str | None = None) -> Any:
        """Return the fraction of values outside the range per dim, `(d,)` float64: what encoding clips."""
        fitted = self._fitted_range()
        given = actions
        if is_chunk_list(actions):
            # every step counts once, however the list is cut into chunks
            given = actions[0]
            chunks = torch.cat([self._listed(actions, i, None)[0] for i in range(len(actions))])[None]
        else:
            chunks, _ = open_actions(actions, fitted.low.device)
            self._shape(chunks.shape[1], chunks.shape[2])
        count = max(1, chunks.shape[0] * chunks.shape[1])
        fraction = fitted.outside(chunks, key).sum(dim=(0, 1)).double() / count
        return fraction.to(given.device) if isinstance(given, torch.Tensor) else fraction.cpu().numpy()

    def forward(self, actions: Any, *, key: str | None = None) -> Any:
        """Return `encode(actions)`: LeRobot, openpi and torch call a tokenizer."""
        return self.encode(actions, key=key)

    def extra_repr(self) -> str:
        """Show the parameters and, after fit, the facts."""
        asked = ", ".join(f"{name}={value!r}" for name, value in self._params.items())
        return f"{asked}; {self._facts()}" if self.is_fitted else f"{asked}; not fitted"

    def _forget(self) -> None:
        self._tables_cache: Any = None  # what a family makes of its tensors for the kernels, at the first call
        self._buffers.clear()
        self._modules.clear()
        self.range = None
        self._horizon = None
        self._action_dim = None
        self._sizes = {}
        self._provenance = {}
        self._beside = {}

    def _tables_of(self, build: Callable[[], T]) -> T:
        """Return what `build` makes of the buffers, kept until one of them is replaced or changed in place.

        Averages of weights, broadcasts between processes and loaded checkpoints write into the buffers there are.
        Their counters tell, except of tensors made in `torch.inference_mode` and of writes through `.data` or numpy.
        """
        buffers: Any = self._buffers.values()
        try:
            stamp = [(buffer.data_ptr(), buffer._version) for buffer in buffers]
        except RuntimeError:  # of inference mode
            stamp = [(buffer.data_ptr(), 0) for buffer in buffers]
        kept = self._tables_cache
        if kept is None or kept[0] != stamp:
            # holds the buffers too, so that no other tensor can lie where one of them lay
            kept = self._tables_cache = (stamp, build(), tuple(buffers))
        tables: T = kept[1]
        return tables

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Forget the tables: they belong to the tensors that are replaced."""
        super()._load_from_state_dict(*args, **kwargs)
        self._tables_cache = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the tables out: they are quicker built than sent to a worker."""
        return {**self.__dict__, "_tables_cache": None}

    def _learn_from(self, sample: ChunkSample, is_open: bool, progress: Progress | None) -> None:
        actions, is_pad, rows = _by_key(sample)
        if sample.unsampled_keys:
            raise ActionValueError(
                f"expected a chunk of every key in the sample, got none of {list(sample.unsampled_keys)} among "
                f"{len(actions)}; raise the sample's k or give these keys more weight"
            )
        self._horizon = None if is_open else int(actions.shape[1])
        self._action_dim = int(actions.shape[2])
        fitted = range_of(sample, self._params["range"])
        chunks = torch.empty_like(actions)
        for key, members in rows.items():
            chunks[members] = fitted.to_unit(actions[members], key)
        self._check_params()
        self._fit(chunks if is_pad is None else hold_last(chunks, is_pad), is_pad, progress)
        self.range = fitted
        self._provenance = self._provenance_of(sample)

    def _settle(self, fact: str, value: int | None) -> None:
        before = getattr(self, fact)
        if value == before:
            return
        name, pad_id = fact.removeprefix("_"), self.pad_id
        if before is None and isinstance(value, Integral) and not isinstance(value, bool) and value > 0:
            setattr(self, fact, int(value))
            try:
                self._check_params()
                if self.pad_id == pad_id:
                    self._settled()
                    return
            except ActionTokenizerError:
                setattr(self, fact, before)
                raise
            setattr(self, fact, before)  # the ids would change their meaning
        raise ActionShapeError(f"expected {name} {before or 'as in the calls'}, got {value!r}; refit for another one")

    def _whole(self, name: str, least: int = 1, most: int = 1 << 31) -> int:
        """Return a parameter that must be an integer from `least` to `most`."""
        value = self._params[name]
        number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
        if number is None or not least <= number <= most:
            raise ActionValueError(f"expected {name} an integer >= {least} (and <= {most}), got {value!r}")
        return number

    def _positive(self, name: str) -> float:
        """Return a parameter that must be a finite number above 0."""
        value = self._params[name]
        try:
            number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
        except OverflowError:
            number = math.inf
        if not 0 < number < math.inf:
            raise ActionValueError(f"expected {name} a finite number > 0, got {value!r}")
        return number

    def _fitted_range(self) -> Range:
        fitted: Any = self._modules.get("range")
        if fitted is None:
            raise NotFittedError(
                f"expected a fitted {type(self).__name__}, got one that is not; call fit(data) or from_pretrained(...)"
            )
        return fitted  # type: ignore[no-any-return]

    def _shape(self, horizon: int | None, action_dim: int | None) -> tuple[int, int]:
        """Return t and d of a call; what the fit decided may be repeated but not contradicted."""
        if horizon is not None and (horizon, action_dim) == (self._horizon, self._action_dim):
            return self._horizon or 0, self._action_dim or 0  # integers, whatever the caller gave for them
        self._fitted_range()
        facts = {"horizon": (horizon, self._horizon), "action_dim": (action_dim, self._action_dim)}
        for name, (given, fitted) in facts.items():
            if given is None and fitted is None:
                raise ActionShapeError(f"expected {name}= in this call, because the fit left it open; got none")
            if given is not None and (given < 1 or fitted not in (None, given)):
                raise ActionShapeError(f"expected {name} {fitted or '>= 1'}, got {given}; refit for another one")
        t, d = (int((fitted if given is None else given) or 0) for given, fitted in facts.values())
        if t * d > MOST_CHUNK_VALUES:
            raise ActionShapeError(f"expected a chunk of at most {MOST_CHUNK_VALUES} values, got {t} steps x {d} dims")
        return t, d

    def _read(self, ids: Any, horizon: int | None, action_dim: int | None) -> Reading:
        t, d = self._shape(horizon, action_dim)
        rows, give_back = open_ids(ids, self._fitted_range().low.device, self.pad_id)
        kept, complete = self._parse(rows, t, d)
        content = torch.full_like(kept, rows.shape[1])
        begins = torch.ones_like(complete)
        if self.pad_id is not None:
            is_pad = rows == self.pad_id
            content = (~is_pad).cumprod(-1).sum(-1)
            # pads may follow a chunk or a prefix, nothing may follow pads
            begins = is_pad.sum(-1) + content == rows.shape[1]
        return Reading(rows, give_back, t, d, kept, complete, begins & (kept == content), self.vocab_size, self.pad_id)

    def _actions(self, read: Reading, key: str | None) -> torch.Tensor:
        chunks = self._decode(read.rows, read.kept, read.horizon, read.action_dim)
        return self._fitted_range().from_unit(chunks, key)

    def _encode_list(self, actions: Any, key: str | None, action_is_pad: Any) -> Any:
        """Encode chunks of several lengths: one call per length, rows padded to the longest."""
        if any(not hasattr(a, "ndim") or a.ndim != 2 for a in actions):
            raise ActionShapeError("expected a list of chunks (t_i, d), got other shapes in the list")
        if self._action_dim is None and len({a.shape[1] for a in actions}) > 1:
            raise ActionShapeError(
                f"expected chunks of one action_dim in a list, got {sorted({a.shape[1] for a in actions})}"
            )
        groups: dict[int, list[int]] = {}
        for i, chunk in enumerate(actions):
            groups.setdefault(chunk.shape[0], []).append(i)
        first = actions[0]
        masks = _mask_list(action_is_pad, len(actions))
        parts = []
        for members in groups.values():
            # chunk by chunk through the door, so that an error names the chunk of the list
            chunks = torch.cat([self._listed(actions, i, masks[i]) for i in members])
            try:
                parts.append(self.encode(chunks, key=key))
            except ActionValueError:
                for i in members:  # only the family knows which it was, and it knows it as one of these
                    self._encode_item(actions, i, key)
                raise
        width = max(part.shape[1] for part in parts)
        pad = -1 if self.pad_id is None else self.pad_id
        out = torch.full((len(actions), width), pad, dtype=torch.int64, device="cpu")
        for members, part in zip(groups.values(), parts, strict=True):
            out[torch.tensor(members, device="cpu"), : part.shape[1]] = part.cpu()
        return out.to(first.device) if isinstance(first, torch.Tensor) else out.numpy()

    def _encode_item(self, actions: Any, i: int, key: str | None) -> None:
        try:
            self.encode(actions[i], key=key)
        except ActionValueError as error:
            raise ActionValueError(f"chunk {i} of the list: {error}") from error

    def _listed(self, actions: Any, i: int, is_pad: Any) -> torch.Tensor:
        try:
            chunk, _ = open_actions(actions[i], self._fitted_range().low.device)
            self._shape(chunk.shape[1], chunk.shape[2])
            if is_pad is not None:
                chunk = hold_last(chunk, open_mask(is_pad, chunk.shape[:2], chunk.device))
        except (ActionShapeError, ActionValueError) as error:
            raise type(error)(f"chunk {i} of the list: {error}") from error
        return chunk

    def _saved_params(self) -> dict[str, Any]:
        """Return the parameters to write; a tokenizer made of tokenizers writes its fitted parts."""
        return self.get_params()

    def _facts(self) -> dict[str, Any]:
        """What config.json stores beside the parameters; `_sizes` decides shapes, the rest is read by people."""
        return {
            "horizon": self._horizon,
            "action_dim": self._action_dim,
            "vocab_size": self.vocab_size,
            "max_tokens": self.max_tokens,
            "pad_id": self.pad_id,
            "range_keys": list(self.range_keys),
            "sizes": self._sizes,
        }

    def _restore(self, facts: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
        """Take `facts` as `_facts` gave them and allocate; the loader fills the tensors."""
        self._forget()
        self._horizon, self._action_dim = facts["horizon"], facts["action_dim"]
        if set(facts["sizes"]) != self.size_names:
            raise ActionValueError(f"expected the sizes {sorted(self.size_names)}, got {sorted(facts['sizes'])}")
        self._sizes = dict(facts["sizes"])
        self._check_params()
        self._allocate()
        self.range = self._allocate_range(facts["range_keys"])
        self._provenance = dict(provenance)

    def _check_loaded(self) -> None:
        """Refuse loaded tensors that no fit could have left."""
        for name, tensor in self.named_buffers():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise FormatError(f"{name} holds NaN or inf")
        fitted = self._fitted_range()
        fitted.check()
        self._check_tensors()

    def _provenance_of(self, sample: ChunkSample) -> dict[str, Any]:
        from action_tokenizers import __version__

        # only where there are any: fits on whole data keep their bytes
        broken = {"skipped_shards": list(sample.skipped_shards), "lost_episodes": sample.lost_episodes}
        return {
            **(broken if sample.skipped_shards or sample.lost_episodes else {}),
            "library": f"action-tokenizers {__version__}",
            "sources": list(sample.sources),
            "keys": {key: int(count) for key, count in sorted(sample.count.items())},
            "fps": sample.fps,
            "chunks": len(sample.actions),
            "steps": int(sample.actions.shape[1]),
            "skipped_episodes": sample.skipped,
            "sample": sample.digest(),
            "fingerprints": fingerprints(sample.actions, sample.episode),
            "relative": None if sample.relative is None else sample.relative.to_json(),
        }

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Move with the policy it sits in, but stay float32: half-precision bounds would move every action."""

        def keep_dtype(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(keep_dtype, recurse)  # type: ignore[no-untyped-call]
        return self


def _passes_by_a_step(cls: type, short_cut: str) -> bool:
    """Say whether a class before the one that defines the short cut, in the order of inheritance, defines a step."""
    order = cls.__mro__
    place = {name: i for i, kind in reversed(list(enumerate(order))) for name in vars(kind)}  # the first that has it
    owner = order[place[short_cut]]
    if vars(owner)[short_cut] is vars(ActionTokenizer)[short_cut]:
        return False  # takes all steps
    steps = SHORT_CUTS[short_cut] | getattr(owner, "own_steps", {}).get(short_cut, frozenset())
    return any(place.get(step, len(order)) < place[short_cut] for step in steps)


def range_of(sample: ChunkSample, strategy: Any = "quantile") -> Range:
    """Return the range that a fit on `sample` learns; see `ActionTokenizer` for the strategies."""
    actions, is_pad, rows = _by_key(sample)
    real = {k: actions[r][~is_pad[r]] if is_pad is not None else actions[r].flatten(0, 1) for k, r in rows.items()}
    return fit_range(strategy, {k: v.numpy() for k, v in real.items()}, sample.minimum, sample.maximum)


def _mask_list(masks: Any, chunks: int) -> list[Any]:
    """Return one mask, or None, per chunk of a list."""
    if masks is None:
        return [None] * chunks
    if not isinstance(masks, list | tuple) or len(masks) != chunks:
        got = len(masks) if isinstance(masks, list | tuple) else type(masks).__name__
        raise ActionShapeError(f"expected action_is_pad as a list of one mask or None per chunk, {chunks}, got {got}")
    return list(masks)


def _has_no_clock(data: Any) -> bool:
    """Say whether data are episodes that do not know their fps, so that there is no second to take as horizon."""
    if isinstance(data, Episodes):
        return data.fps is None
    if not isinstance(data, list | tuple) or not data:
        return False
    return all(_has_no_clock(item) if isinstance(item, Episodes) else getattr(item, "ndim", 0) == 2 for item in data)


def _by_key(sample: ChunkSample) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, Any]]:
    """Return actions, padding mask and, per key, what picks its rows; of a single key without copying them."""
    actions = torch.as_tensor(sample.actions)
    is_pad = None if sample.action_is_pad is None else torch.as_tensor(sample.action_is_pad)
    key_index = torch.as_tensor(sample.key_index)
    rows = {key: (key_index == i).nonzero()[:, 0] for i, key in enumerate(sample.key_names)}
    found: dict[str, Any] = {key: slice(None) if len(row) == len(actions) else row for key, row in rows.items()}
    return actions, is_pad, {key: found[key] for key, row in rows.items() if len(row)}
