"""`check_tokenizer`: what every tokenizer must do, this library's and yours.

Each promise of the contract is one small function in `CHECKS`, so that a test run can name it:

    @pytest.mark.parametrize("name", CHECKS)
    def test_contract(name):
        CHECKS[name](Trial(MyTokenizer()))
"""

import contextlib
import copy
import math
import pickle
import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import clone

from action_tokenizers.base import ActionTokenizer
from action_tokenizers.data.episodes import Episodes
from action_tokenizers.data.synthetic import smooth_chunks
from action_tokenizers.errors import ActionShapeError, ActionValueError, NotFittedError, TokenError
from action_tokenizers.ranges import Range

__all__ = ["CHECKS", "Trial", "check_tokenizer", "damaged", "sample_allowed"]

CHECKS: dict[str, Callable[["Trial"], None]] = {}
"""Every check by name, in the order in which `check_tokenizer` runs them."""

_Ids = NDArray[np.int64]


class Trial:
    """A tokenizer under test and what the checks share: data, one fit, its ids.

    Args:
        tokenizer: an instance to judge; it is cloned, never fitted itself.
        actions: chunks `(n, t, d)` that it can be fitted on, n >= 24; None: smooth made-up ones.
        seed: of the made-up actions and of the damage done to ids.

    Example:
        >>> from action_tokenizers import BinningTokenizer
        >>> trial = Trial(BinningTokenizer(bins=16))
        >>> CHECKS["ids_are_in_the_vocabulary"](trial)
    """

    def __init__(self, tokenizer: ActionTokenizer, actions: Any = None, seed: int = 0) -> None:
        if actions is None:
            actions = smooth_chunks(300, tokenizer.get_params()["horizon"] or 8, 4, seed=seed)
        self.tokenizer = tokenizer
        self.actions: NDArray[np.float32] = np.asarray(actions, np.float32)
        self.seed = seed

    def fresh(self) -> ActionTokenizer:
        """Return an unfitted clone."""
        copied: ActionTokenizer = clone(self.tokenizer)
        return copied

    @cached_property
    def fitted(self) -> ActionTokenizer:
        """A clone fitted on `actions`; checks leave it as it is."""
        return self.fresh().fit(self.actions)

    @cached_property
    def few(self) -> NDArray[np.float32]:
        """Some of the chunks, two of them far outside any range."""
        chunks = self.actions[:24].copy()
        chunks[-1], chunks[-2] = 1e6, -1e6
        return chunks

    @cached_property
    def ids(self) -> _Ids:
        """The ids of `few`."""
        found: _Ids = self.fitted.encode(self.few)
        return found

    @property
    def random(self) -> np.random.Generator:
        """A generator that begins anew at each use."""
        return np.random.default_rng(self.seed)


def check_tokenizer(tokenizer: ActionTokenizer, actions: Any = None, *, seed: int = 0) -> None:
    """Run every check on clones of `tokenizer`.

    Args:
        tokenizer: an instance to judge; it stays as it is.
        actions: chunks `(n, t, d)` that it can be fitted on, n >= 24; None: smooth made-up ones.
        seed: of the made-up actions and of the damage done to ids.

    Raises:
        AssertionError: a promise is broken; names the check, and says what was expected and what came.

    Example:
        >>> from action_tokenizers import BinningTokenizer
        >>> check_tokenizer(BinningTokenizer(bins=16))
    """
    trial = Trial(tokenizer, actions, seed)
    for name, check in CHECKS.items():
        try:
            check(trial)
        except Exception as error:
            what = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            raise AssertionError(f"{type(tokenizer).__name__} fails {name}: {what}") from error


def sample_allowed(tokenizer: ActionTokenizer, n: int, random: np.random.Generator, **facts: int) -> _Ids:
    """Return `n` rows of ids `(n, m)`, each id drawn uniformly from those that `allowed` leaves.

    Args:
        tokenizer: a fitted tokenizer.
        n: number of rows.
        random: where the draws come from.
        facts: `horizon` or `action_dim`, where the fit left them open.
    """
    ids = np.empty((n, 0), np.int64)
    most = tokenizer.max_tokens_for(facts["horizon"]) if "horizon" in facts else tokenizer.max_tokens
    for _ in range(most or 0):
        mask = tokenizer.allowed(ids, **facts)
        draw = np.where(mask, random.random(mask.shape, np.float32), -1).argmax(1)
        if not mask.any(1).all() or (draw == tokenizer.pad_id).all():
            break
        ids = np.concatenate([ids, draw[:, None]], axis=1)
    return ids


def damaged(ids: _Ids, lengths: _Ids, vocab_size: int, n: int, random: np.random.Generator) -> Iterator[_Ids]:
    """Yield `n` damaged rows without pads: ids drawn uniformly, one replaced, dropped or added, cut short, empty.

    Args:
        ids: `(b, m)`, encoded chunks.
        lengths: `(b,)`, how many of them complete each chunk.
        vocab_size: ids are drawn from 0 to here; one in ten lies just outside.
        n: number of rows.
        random: where the draws come from.
    """

    def draw(size: int) -> _Ids:
        inside = random.integers(0, vocab_size, size)
        return np.where(random.random(size) < 0.1, random.choice([-1, vocab_size], size), inside)

    for i in range(n):
        which = int(random.integers(0, len(ids)))
        row = ids[which, : lengths[which]]
        at = int(random.integers(0, len(row)))
        match i % 12:
            case 0 | 6:
                yield random.integers(0, vocab_size, len(row))
            case 1 | 7:
                yield np.concatenate([row[:at], draw(1), row[at + 1 :]])
            case 2 | 8:
                yield np.delete(row, at)
            case 3 | 9:
                yield np.concatenate([row[:at], draw(1), row[at:]])
            case 4 | 10:
                yield row[:at]
            case 5:
                yield row[:0]
            case _:
                yield draw(len(row))


def _check(function: Callable[[Trial], None]) -> Callable[[Trial], None]:
    CHECKS[function.__name__] = function
    return function


def _expect(fine: Any, expected: str, got: Any) -> None:
    if not fine:
        raise AssertionError(f"expected {expected}, got {got}")


def _equal(a: Any, b: Any, expected: str) -> None:
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        raise AssertionError(f"expected {expected}, got shapes {a.shape} and {b.shape}")
    _expect(np.array_equal(a, b), expected, f"{int((a != b).sum())} of {a.size} values that differ")


def _near(a: Any, b: Any, expected: str) -> None:
    _expect(np.allclose(a, b, rtol=1e-5, atol=1e-6), expected, f"differences up to {np.abs(a - b).max()}")


def _refuses(error: type[Exception], what: str, call: Callable[..., Any], *given: Any, **named: Any) -> str:
    """Return the message with which `call(...)` raises `error`; anything else breaks the contract."""
    try:
        got = f"a result of type {type(call(*given, **named)).__name__}"
    except error as found:
        return str(found)
    except Exception as other:
        got = f"{type(other).__name__}: {other}"
    raise AssertionError(f"expected {error.__name__} for {what}, got {got}")


def _said(tokenizer: ActionTokenizer, ids: Any) -> list[tuple[int, ...]]:
    """Return each row's ids up to the one that completes the chunk."""
    rows = np.asarray(ids)
    return [tuple(row[:m].tolist()) for row, m in zip(rows, tokenizer.length(rows), strict=True)]


def _state(tokenizer: ActionTokenizer) -> dict[str, tuple[Any, ...]]:
    return {
        name: (tensor.dtype, tuple(tensor.shape), tensor.numpy().tobytes())
        for name, tensor in tokenizer.state_dict().items()
    }


def _files(tokenizer: ActionTokenizer) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        saved = tokenizer.save_pretrained(Path(folder) / "tokenizer")
        return {file.name: file.read_bytes() for file in sorted(saved.iterdir())}


def _reloaded(tokenizer: ActionTokenizer) -> ActionTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return ActionTokenizer.from_pretrained(tokenizer.save_pretrained(Path(folder) / "tokenizer"))


def _bounds(tokenizer: ActionTokenizer, key: str | None = None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    found = tokenizer.range
    _expect(isinstance(found, Range), "a Range in `range` after fit", type(found).__name__)
    row = found.index(key)  # type: ignore[union-attr]
    return found.low[row].numpy(), found.high[row].numpy()  # type: ignore[union-attr]


def _bad_rows(trial: Trial) -> list[_Ids]:
    lengths = trial.fitted.length(trial.ids)
    return list(damaged(trial.ids, lengths, trial.fitted.vocab_size, 96, trial.random))


@_check
def constructor_only_stores(trial: Trial) -> None:
    """`get_params` returns the very objects that the constructor was given."""
    given = {name: copy.copy(value) for name, value in trial.tokenizer.get_params(deep=False).items()}
    stored = type(trial.tokenizer)(**given).get_params(deep=False)
    _expect(stored.keys() == given.keys(), f"the parameters {sorted(given)}", sorted(stored))
    changed = [name for name in given if stored[name] is not given[name]]
    _expect(not changed, "parameters stored as they were given", f"others for {changed}")


@_check
def params_round_trip(trial: Trial) -> None:
    """`set_params` takes what `get_params` returns, forgets a fit and refuses unknown names."""
    tokenizer = copy.deepcopy(trial.fitted)
    before = tokenizer.get_params(deep=False)
    _expect(tokenizer.set_params(**before) is tokenizer, "set_params to return self", "something else")
    after = tokenizer.get_params(deep=False)
    _expect(all(after[name] is before[name] for name in before), f"the parameters {before}", after)
    _expect(not tokenizer.is_fitted, "an unfitted tokenizer after set_params", "a fitted one")
    _refuses(ActionValueError, "an unknown parameter", tokenizer.set_params, no_such_parameter=1)


@_check
def unfitted_facts(trial: Trial) -> None:
    """Before a fit there are no facts, and every call says so."""
    tokenizer = trial.fresh()
    _expect(not tokenizer.is_fitted, "is_fitted False before fit", tokenizer.is_fitted)
    _expect(tokenizer.horizon is None and tokenizer.action_dim is None, "no horizon and action_dim before fit", "some")
    for fact in ("vocab_size", "pad_id", "max_tokens", "range_keys"):
        _refuses(NotFittedError, f"{fact} before fit", getattr, tokenizer, fact)
    calls: dict[str, Any] = dict.fromkeys(("encode", "quantize", "clip_report", "__call__"), trial.actions)
    calls |= dict.fromkeys(("decode", "try_decode", "allowed", "length", "bits"), ((0,),))
    calls |= {"save_pretrained": "never_written", "max_tokens_for": 1}
    if tokenizer.prefix_decodable:
        calls["decode_prefix"] = ((0,),)
    for name, given in calls.items():
        _refuses(NotFittedError, f"{name} before fit", getattr(tokenizer, name), given)


@_check
def copies_are_equal(trial: Trial) -> None:
    """clone, pickle and deepcopy work before and after a fit; a fitted copy gives the same ids."""
    fresh = trial.fresh()
    for copied in (clone(trial.fitted), pickle.loads(pickle.dumps(fresh)), copy.deepcopy(fresh)):
        _expect(not copied.is_fitted, "an unfitted copy", "a fitted one")
        _equal(copied.fit(trial.actions).encode(trial.few), trial.ids, "the ids of an equal fit from a copy")
    for copied in (pickle.loads(pickle.dumps(trial.fitted)), copy.deepcopy(trial.fitted)):
        _equal(copied.encode(trial.few), trial.ids, "the same ids from a fitted copy")
        _equal(copied.decode(trial.ids), trial.fitted.decode(trial.ids), "the same actions from a fitted copy")


@_check
def fit_returns_self(trial: Trial) -> None:
    """`fit` returns the tokenizer and sets its facts."""
    tokenizer = trial.fresh()
    _expect(tokenizer.fit(trial.actions) is tokenizer, "fit to return self", "something else")
    _expect(tokenizer.is_fitted, "is_fitted after fit", tokenizer.is_fitted)
    shape = (tokenizer.horizon, tokenizer.action_dim)
    _expect(shape == trial.actions.shape[1:], f"horizon and action_dim {trial.actions.shape[1:]}", shape)


@_check
def equal_fits_are_equal_bytes(trial: Trial) -> None:
    """Fitting twice, or another instance, on equal data gives equal tensors and equal files."""
    again = copy.deepcopy(trial.fitted).fit(trial.actions)
    _expect(_state(again) == _state(trial.fitted), "equal tensors after an equal fit", "others")
    _expect(_files(again) == _files(trial.fitted), "equal files after an equal fit", "others")


@_check
def refit_replaces_everything(trial: Trial) -> None:
    """Nothing of an earlier fit, to other actions or other shapes, is left after a refit."""
    for other in (trial.actions[::2] * 0.5 + 0.1, trial.actions[:, ::2], trial.actions[:, :, :1]):
        tokenizer = trial.fresh()
        try:
            tokenizer.fit(other)
            if tokenizer.is_fitted and tokenizer.horizon is not None:
                tokenizer.encode(other[:2])  # fills whatever caches there are
        except (ActionShapeError, ActionValueError):
            continue  # its parameters ask for another shape
        tokenizer.fit(trial.actions)
        _expect(_state(tokenizer) == _state(trial.fitted), "the tensors of a first fit after a refit", "others")
        _expect(_files(tokenizer) == _files(trial.fitted), "the files of a first fit after a refit", "others")
        _equal(tokenizer.encode(trial.few), trial.ids, "the ids of a first fit after a refit")


@_check
def inputs_stay_unchanged(trial: Trial) -> None:
    """No call writes to the arrays it is given."""
    actions, ids = trial.actions.copy(), trial.ids.copy()
    trial.fresh().fit(actions).encode(actions)
    trial.fitted.quantize(actions)
    trial.fitted.clip_report(actions)
    _equal(actions, trial.actions, "actions as they were given")
    tensor = torch.from_numpy(actions)
    trial.fitted.encode(tensor)
    _equal(actions, trial.actions, "a tensor of actions as it was given")
    for call in (trial.fitted.decode, trial.fitted.try_decode, trial.fitted.length, trial.fitted.bits):
        call(ids)
    trial.fitted.allowed(ids)
    _equal(ids, trial.ids, "ids as they were given")


@_check
def numpy_and_torch(trial: Trial) -> None:
    """numpy in gives numpy out, torch in gives torch out, with the dtypes and values of the contract."""
    tokenizer, ids = trial.fitted, trial.ids
    tensor = torch.from_numpy(ids)
    chunks = torch.from_numpy(trial.few)
    results = {
        "encode": (tokenizer.encode(trial.few), tokenizer.encode(chunks), torch.int64),
        "encode (with gradient)": (ids, tokenizer.encode(chunks.clone().requires_grad_()), torch.int64),
        "call": (tokenizer(trial.few), tokenizer(chunks), torch.int64),
        "decode": (tokenizer.decode(ids), tokenizer.decode(tensor), torch.float32),
        "try_decode": (tokenizer.try_decode(ids)[0], tokenizer.try_decode(tensor)[0], torch.float32),
        "try_decode (valid)": (tokenizer.try_decode(ids)[1], tokenizer.try_decode(tensor)[1], torch.bool),
        "quantize": (tokenizer.quantize(trial.few), tokenizer.quantize(chunks), torch.float32),
        "allowed": (tokenizer.allowed(ids), tokenizer.allowed(tensor), torch.bool),
        "length": (tokenizer.length(ids), tokenizer.length(tensor), torch.int64),
        "bits": (tokenizer.bits(ids), tokenizer.bits(tensor), torch.float64),
        "clip_report": (tokenizer.clip_report(trial.few), tokenizer.clip_report(chunks), torch.float64),
    }
    for name, (array, found, dtype) in results.items():
        _expect(isinstance(array, np.ndarray), f"a numpy array from {name} of numpy", type(array).__name__)
        _expect(isinstance(found, torch.Tensor), f"a torch tensor from {name} of torch", type(found).__name__)
        _expect(found.dtype == dtype, f"{dtype} from {name}", found.dtype)
        _expect(torch.from_numpy(array).dtype == dtype, f"{dtype} from {name} of numpy", array.dtype)
        _equal(array, found, f"equal values from {name} of numpy and torch")
    _equal(tokenizer.decode(ids.tolist()), tokenizer.decode(ids), "equal actions from a list of ids")


@_check
def other_dtypes_and_layouts(trial: Trial) -> None:
    """float64, float16, integers, read-only and strided arrays are as good as contiguous float32."""
    tokenizer, actions = trial.fitted, trial.few[:-2]
    frozen = actions.copy()
    frozen.setflags(write=False)
    others = {
        "float64": actions.astype(np.float64),
        "float16": actions.astype(np.float16),
        "int64": np.rint(actions).astype(np.int64),
        "big-endian": actions.astype(">f4"),
        "read-only": frozen,
        "Fortran order": np.asfortranarray(actions),
        "negative strides": actions[::-1, ::-1, ::-1],
        "bfloat16": torch.from_numpy(actions).bfloat16(),
        "nested lists": actions.tolist(),
    }
    for name, given in others.items():
        plain = given.float().numpy() if isinstance(given, torch.Tensor) else np.ascontiguousarray(given, np.float32)
        _equal(tokenizer.encode(given), tokenizer.encode(plain), f"the ids of equal float32 for {name}")
    for name, ids in {"int32": trial.ids.astype(np.int32), "uint32": trial.ids.astype(np.uint32)}.items():
        _equal(tokenizer.decode(ids), tokenizer.decode(trial.ids), f"equal actions for {name} ids")


@_check
def leading_dims(trial: Trial) -> None:
    """One chunk, a batch, a batch of batches, an empty batch and a list of chunks all work."""
    tokenizer, actions = trial.fitted, trial.few[:6]
    t, d = actions.shape[1:]
    ids = tokenizer.encode(actions)
    said = _said(tokenizer, ids)
    one = tokenizer.encode(actions[0])
    _expect(one.ndim == 1, "ids (n,) for a chunk (t, d)", one.shape)
    _equal(one[: len(said[0])], said[0], "the ids of a chunk alone as in a batch")
    _equal(tokenizer.encode(actions.reshape(2, 3, t, d)), ids.reshape(2, 3, -1), "(2, 3, n) for (2, 3, t, d)")
    _equal(tokenizer.encode(list(actions)), ids, "the ids of a batch for a list of its chunks")
    _equal(tokenizer.decode(one), tokenizer.decode(ids[:1])[0], "a chunk (t, d) for ids (n,)")
    _equal(tokenizer.decode(ids.reshape(2, 3, -1)), tokenizer.decode(ids).reshape(2, 3, t, d), "(2, 3, t, d)")
    _equal(tokenizer.length(ids.reshape(2, 3, -1)), tokenizer.length(ids).reshape(2, 3), "(2, 3) from length")
    _equal(tokenizer.allowed(ids[:, :1].reshape(2, 3, 1)).reshape(6, -1), tokenizer.allowed(ids[:, :1]), "(2, 3, v)")
    for chunk, quantized in zip(actions, tokenizer.quantize(list(actions)), strict=True):
        _equal(quantized, tokenizer.quantize(chunk), "a list of quantized chunks for a list of chunks")
    none = tokenizer.encode(actions[:0])
    _expect(none.shape[0] == 0 and none.ndim == 2, "ids (0, n) for no chunks", none.shape)
    _expect(tokenizer.decode(none).shape == (0, t, d), f"no chunks {(0, t, d)} for ids {none.shape}", "another shape")
    _expect(tokenizer.try_decode(none)[1].shape == (0,), "no flags for no ids", tokenizer.try_decode(none)[1].shape)
    _expect(np.isfinite(tokenizer.clip_report(actions[:0])).all(), "a finite clip_report of no chunks", "NaN")


@_check
def a_chunk_alone_is_the_chunk_in_a_batch(trial: Trial) -> None:
    """Neither the other chunks of a call nor their order change a chunk's ids or actions."""
    tokenizer, actions = trial.fitted, trial.actions
    ids = tokenizer.encode(actions)
    said, decoded = _said(tokenizer, ids), tokenizer.decode(ids)
    order = trial.random.permutation(len(actions))
    shuffled = _said(tokenizer, tokenizer.encode(actions[order]))
    _expect(shuffled == [said[i] for i in order], "the same ids in another order", "others")
    for i in order[:24]:
        alone = tokenizer.encode(actions[i : i + 1])
        _expect(_said(tokenizer, alone) == [said[i]], f"the ids of chunk {i} as in its batch", alone)
        _near(tokenizer.decode(alone)[0], decoded[i], f"the actions of chunk {i} as in its batch")


@_check
def encode_keeps_no_state(trial: Trial) -> None:
    """Calls of other shapes, or refused ones, in between do not change what a call returns."""
    tokenizer = copy.deepcopy(trial.fitted)
    before = _state(tokenizer)
    t, d = trial.actions.shape[1:]
    for other in (trial.actions[0], trial.actions[:0], np.zeros((2, 1, t, d)), np.zeros((t + 1, d + 1))):
        with contextlib.suppress(ActionShapeError):
            tokenizer.decode(tokenizer.encode(other))
        _equal(tokenizer.encode(trial.few), trial.ids, "the same ids whatever was encoded before")
    _expect(_state(tokenizer) == before, "tensors that no call changes", "others")


@_check
def keys_are_apart(trial: Trial) -> None:
    """With several keys fitted one must be named; each has its own range."""
    if isinstance(trial.tokenizer.get_params()["range"], Range):
        return  # it brings its own keys
    n, t, _ = trial.actions.shape
    data = {"a": trial.actions[: n // 2], "b": trial.actions[n // 2 :] * 0.5}
    tokenizer = trial.fresh().set_params(horizon=t)
    tokenizer.fit([Episodes(list(chunks), key=key) for key, chunks in data.items()])
    _expect(tokenizer.range_keys == ("a", "b"), "the keys ('a', 'b')", tokenizer.range_keys)
    ids = {key: tokenizer.encode(chunks, key=key) for key, chunks in data.items()}
    for call, given in ((tokenizer.encode, data["a"]), (tokenizer.decode, ids["a"]), (tokenizer.try_decode, ids["a"])):
        for key in (None, "c"):
            message = _refuses(ActionShapeError, f"key {key!r}", call, given, key=key)
            _expect("'a', 'b'" in message, "the known keys in the message", message)
    for key, chunks in data.items():
        low, high = _bounds(tokenizer, key)
        decoded = tokenizer.decode(ids[key], key=key)
        _expect(((decoded >= low) & (decoded <= high)).all(), f"actions inside the range of {key!r}", "others")
        _equal(tokenizer.encode(chunks, key=key), ids[key], "the same ids after another key was used")


@_check
def open_horizon(trial: Trial) -> None:
    """Where episodes without fps leave the horizon open, chunks of any length go in, padded to the longest."""
    tokenizer = trial.fresh().set_params(horizon=None)
    message = ""
    try:
        tokenizer.fit(list(trial.actions))
    except ActionShapeError as error:
        message = str(error)
    if message:
        _expect("horizon" in message, "a message that asks for a horizon", message)
        return
    _expect(tokenizer.horizon is None and tokenizer.max_tokens is None, "horizon and max_tokens None", "numbers")
    _expect(tokenizer.pad_id == tokenizer.vocab_size - 1, "a pad, as chunks differ in length", tokenizer.pad_id)
    t = trial.actions.shape[1]
    chunks = [chunk[: 1 + i % t] for i, chunk in enumerate(trial.actions[:24])]
    ids = tokenizer.encode(chunks)
    for row, chunk in zip(ids, chunks, strict=True):
        m = int(tokenizer.length(row, horizon=len(chunk)))
        _expect(0 < m <= tokenizer.max_tokens_for(len(chunk)), "at most max_tokens_for(horizon) ids", m)
        _expect((row[m:] == tokenizer.pad_id).all(), "pads after a chunk's ids", row)
        _equal(tokenizer.decode(row, horizon=len(chunk)), tokenizer.quantize(chunk), "the chunk as quantized alone")
    _refuses(ActionShapeError, "ids without the horizon that the fit left open", tokenizer.decode, ids[0])


@_check
def ids_are_in_the_vocabulary(trial: Trial) -> None:
    """Ids lie in 0..vocab_size-1, a row has at most max_tokens, and only pads follow a chunk's ids."""
    tokenizer = trial.fitted
    ids = tokenizer.encode(np.concatenate([trial.actions, trial.few]))
    v, pad, most = tokenizer.vocab_size, tokenizer.pad_id, tokenizer.max_tokens or 0
    _expect(ids.min() >= 0 and ids.max() < v, f"ids in 0..{v - 1}", (ids.min(), ids.max()))
    _expect(ids.shape[1] <= most, f"at most max_tokens = {most} ids", ids.shape[1])
    _expect(most == tokenizer.max_tokens_for(trial.actions.shape[1]), "max_tokens_for(horizon) = max_tokens", "another")
    lengths = tokenizer.length(ids)
    _expect((lengths > 0).all(), "every encoded row to complete its chunk", int((lengths <= 0).sum()))
    after = np.arange(ids.shape[1]) >= lengths[:, None]
    _expect(pad is None or pad == v - 1, f"the pad {v - 1} or None", pad)
    _expect(pad is not None or not after.any(), "rows of one length, as there is no pad", lengths)
    _expect((ids[after] == pad).all() and not (ids[~after] == pad).any(), "pads only after the chunk's ids", "others")
    _expect(lengths.max() == ids.shape[1], "rows padded to the longest chunk of the call", ids.shape[1])


@_check
def length_looks_at_no_pads(trial: Trial) -> None:
    """`length` finds a chunk's end whatever follows, and says -1 where the chunk is incomplete."""
    tokenizer, v = trial.fitted, trial.fitted.vocab_size
    for row in _said(tokenizer, trial.ids):
        tail = trial.random.integers(0, v, 3).tolist()
        _equal(tokenizer.length([*row, *tail]), len(row), "the length of a chunk before other ids")
        _equal(tokenizer.length(list(row[:-1])), -1, "-1 for ids that stop early")
    _equal(tokenizer.length(np.empty((2, 0), np.int64)), [-1, -1], "-1 for no ids")


@_check
def decoded_actions_are_inside_the_range(trial: Trial) -> None:
    """decode(encode(x)) has x's shape, is finite and inside the range; quantize is the same."""
    tokenizer = trial.fitted
    decoded = tokenizer.decode(trial.ids)
    low, high = _bounds(tokenizer)
    _expect(decoded.shape == trial.few.shape, f"actions {trial.few.shape}", decoded.shape)
    _expect(np.isfinite(decoded).all(), "finite actions", "NaN or inf")
    _expect(((decoded >= low) & (decoded <= high)).all(), "actions inside the range", (decoded.min(), decoded.max()))
    _equal(tokenizer.quantize(trial.few), decoded, "quantize to equal decode of encode")
    _equal(tokenizer.decode(trial.ids, horizon=tokenizer.horizon), decoded, "the fitted horizon to be accepted")
    _equal(tokenizer.decode(trial.ids, time_horizon=tokenizer.horizon), decoded, "time_horizon to mean horizon")


@_check
def clip_report_is_a_fraction(trial: Trial) -> None:
    """`clip_report` says per dim which fraction lies outside the range."""
    low, high = _bounds(trial.fitted)
    for chunks in (trial.few, trial.actions):
        report = trial.fitted.clip_report(chunks)
        _near(report, ((chunks < low) | (chunks > high)).mean((0, 1)), "the fraction outside the range per dim")


@_check
def damaged_ids_decode_or_raise(trial: Trial) -> None:
    """`decode` refuses with TokenError exactly what `try_decode` flags; what it accepts is the same actions."""
    tokenizer = trial.fitted
    low, high = _bounds(tokenizer)
    outcomes = set()
    for row in [*_bad_rows(trial), *map(np.array, _said(tokenizer, trial.ids))]:
        actions, valid = tokenizer.try_decode(row)
        _expect(np.isfinite(actions).all(), f"a finite repair of {row}", "NaN or inf")
        _expect(((actions >= low) & (actions <= high)).all(), f"a repair of {row} inside the range", actions)
        _equal(tokenizer.decode(row, errors="repair"), actions, "errors='repair' to be try_decode")
        if valid:
            _equal(tokenizer.decode(row), actions, f"strict actions of {row} as try_decode's")
        else:
            _refuses(TokenError, f"{row}", tokenizer.decode, row)
        outcomes.add(bool(valid))
    _expect(outcomes == {True, False}, "valid and damaged rows among the trial's", outcomes)


@_check
def impossible_ids_raise(trial: Trial) -> None:
    """Ids that are no integers, or lie outside the vocabulary, are a TokenError in every call that reads ids."""
    tokenizer, v = trial.fitted, trial.fitted.vocab_size
    for what, bad in {"float": trial.ids.astype(np.float32), "bool": trial.ids > 0, "text": "ids"}.items():
        for call in (tokenizer.decode, tokenizer.try_decode, tokenizer.allowed, tokenizer.length, tokenizer.bits):
            _refuses(TokenError, f"{what} ids", call, bad)
    for bad_id in (v, -1, 2**62, -(2**63)):
        ids = trial.ids.copy()
        ids[3, 0] = bad_id
        message = _refuses(TokenError, f"id {bad_id}", tokenizer.decode, ids)
        _expect(str(bad_id) in message and "row 3" in message, f"id {bad_id} and row 3 in the message", message)
        _refuses(TokenError, f"bits of id {bad_id}", tokenizer.bits, ids)
        _equal(tokenizer.try_decode(ids)[1], np.arange(len(ids)) != 3, "every other row to stay valid")


@_check
def bad_actions_raise(trial: Trial) -> None:
    """NaN and inf are refused with their place; other shapes, horizons and dims with what was expected."""
    tokenizer, (t, d) = trial.fitted, trial.actions.shape[1:]
    for value in (np.nan, np.inf, -np.inf):
        chunks = trial.actions[:5].copy()
        chunks[3, t - 1, d - 1] = value
        for call in (tokenizer.encode, tokenizer.quantize, tokenizer.clip_report, trial.fresh().fit):
            message = _refuses(ActionValueError, f"{value}", call, chunks)
            place = f"chunk 3, step {t - 1}, dim {d - 1}"
            _expect(place in message, f"{place!r} in the message", message)
    for shape in ((t, d + 1), (t + 1, d), (5, t, d + 1), (5, t + 1, d), (d,), (0, d), (t, 0), ()):
        _refuses(ActionShapeError, f"actions {shape}", tokenizer.encode, np.zeros(shape))
    for facts in ({"horizon": t + 1}, {"action_dim": d + 1}, {"time_horizon": t + 1}, {"key": "no such key"}):
        _refuses(ActionShapeError, f"{facts}", tokenizer.decode, trial.ids, **facts)
    _refuses(ActionValueError, "errors='ignore'", tokenizer.decode, trial.ids, errors="ignore")
    _refuses(ActionValueError, "a fit on no chunks", trial.fresh().fit, trial.actions[:0])


@_check
def encoded_ids_are_allowed(trial: Trial) -> None:
    """Every encoded id is allowed after those before it; after a chunk only the pad is, or nothing."""
    tokenizer, ids, pad = trial.fitted, trial.ids, trial.fitted.pad_id
    lengths = tokenizer.length(ids)
    for p in range(ids.shape[1] + 1):
        mask = tokenizer.allowed(ids[:, :p])
        _expect(mask.shape == (len(ids), tokenizer.vocab_size), "a mask (b, vocab_size)", mask.shape)
        going = lengths > p
        if p < ids.shape[1]:
            _expect(mask[going, ids[going, p]].all(), f"the encoded ids at position {p} to be allowed", "others")
        _expect(pad is None or not mask[going, pad].any(), "no pad before the chunk is complete", f"one at {p}")
        after = np.zeros_like(mask[~going])
        if pad is not None:
            after[:, pad] = True
        _equal(mask[~going], after, "only the pad, or nothing, after a complete chunk")
    for beyond in (-1, tokenizer.vocab_size):
        _expect(not tokenizer.allowed([beyond]).any(), "nothing allowed after ids that begin no chunk", "something")


@_check
def allowed_sequences_decode(trial: Trial) -> None:
    """Ids drawn uniformly under `allowed` complete a chunk within max_tokens and decode strictly."""
    ids = sample_allowed(trial.fitted, 64, trial.random)
    _expect(trial.fitted.try_decode(ids)[1].all(), "allowed ids that decode strictly", "others")
    trial.fitted.decode(ids)


@_check
def prefixes_decode_coarse_to_fine(trial: Trial) -> None:
    """Where prefix_decodable, more ids do not raise the mean error, and all of them are `decode`."""
    tokenizer, actions = trial.fitted, trial.actions
    ids = tokenizer.encode(actions)
    if not tokenizer.prefix_decodable:
        _refuses(ActionValueError, "decode_prefix of a family without", tokenizer.decode_prefix, ids)
        return
    low, high = _bounds(tokenizer)
    clipped, span = np.clip(actions, low, high), np.where(high > low, high - low, 1)
    steps = np.unique(np.linspace(0, ids.shape[1], 17).round().astype(int))
    errors = [float((((tokenizer.decode_prefix(ids[:, :m]) - clipped) / span) ** 2).mean()) for m in steps]
    slack = 1e-3 * errors[0] + 1e-12
    rises = [m for m, a, b in zip(steps[1:], errors, errors[1:], strict=False) if b > a + slack]
    _expect(not rises, "a mean error that no further id raises", f"{errors} at {steps.tolist()} ids")
    _equal(tokenizer.decode_prefix(ids), tokenizer.decode(ids), "all ids to decode to the chunk")
    _refuses(TokenError, "decode_prefix of ids that begin no chunk", tokenizer.decode_prefix, [-1])


@_check
def bits_count_the_choices(trial: Trial) -> None:
    """`bits` is the sum of log2 of the ids that could stand at each position, as `allowed` tells them."""
    tokenizer = trial.fitted
    rows = np.concatenate([trial.ids[:4], trial.ids[-2:]])
    bits, lengths = tokenizer.bits(rows), tokenizer.length(rows)
    _expect(np.isfinite(bits).all() and (bits >= 0).all(), "finite bits >= 0", bits)
    counted = np.zeros(len(rows))
    for p in range(rows.shape[1]):
        count = tokenizer.allowed(rows[:, :p]).sum(1)
        counted += np.where(lengths > p, np.log2(np.maximum(count, 1)), 0)
    _near(bits, counted, "bits as counted through allowed")
    _refuses(TokenError, "bits of half a chunk", tokenizer.bits, rows[:1, : lengths[0] - 1])


@_check
def scalar_cells_are_the_codec(trial: Trial) -> None:
    """Where there are scalar cells, quantizing is looking up the cell's centre."""
    tokenizer = trial.fitted
    cells = tokenizer.scalar_cells()
    if cells is None:
        return
    _expect(len(cells.edges) == len(cells.centres) == tokenizer.action_dim, "cells for every dim", len(cells.edges))
    fitted = tokenizer.range
    units = fitted.to_unit(torch.from_numpy(trial.few))  # type: ignore[union-attr]
    looked_up = torch.empty_like(units)
    for j, (edges, centres) in enumerate(zip(cells.edges, cells.centres, strict=True)):
        _expect(len(centres) == len(edges) + 1, f"one centre more than edges in dim {j}", (len(edges), len(centres)))
        _expect(bool((edges[1:] >= edges[:-1]).all()), f"ascending edges in dim {j}", edges)
        looked_up[..., j] = centres[torch.searchsorted(edges, units[..., j].contiguous(), right=True)]
    _equal(tokenizer.quantize(trial.few), fitted.from_unit(looked_up), "the centres of the cells")  # type: ignore[union-attr]


@_check
def saved_and_loaded_is_the_same(trial: Trial) -> None:
    """A folder gives back the class, facts, ids and actions, and saves to the same bytes again."""
    tokenizer, loaded = trial.fitted, _reloaded(trial.fitted)
    _expect(type(loaded) is type(tokenizer), f"a {type(tokenizer).__name__} from its folder", type(loaded).__name__)
    for fact in ("horizon", "action_dim", "vocab_size", "max_tokens", "pad_id", "range_keys"):
        old, new = getattr(tokenizer, fact), getattr(loaded, fact)
        _expect(old == new, f"{fact} {old} from its folder", new)
    changed = [name for name, value in tokenizer.provenance.items() if loaded.provenance.get(name) != value]
    _expect(not changed, "the same provenance from its folder", f"another {changed}")
    _equal(loaded.encode(trial.few), trial.ids, "the same ids from its folder")
    _equal(loaded.decode(trial.ids), tokenizer.decode(trial.ids), "the same actions from its folder")
    _expect(_files(loaded) == _files(tokenizer), "the same bytes when saved again", "others")
    again = clone(loaded).fit(trial.actions)
    _equal(again.encode(trial.few), trial.ids, "the same ids when a clone of a loaded one is fitted")


@_check
def half_precision_leaves_it_alone(trial: Trial) -> None:
    """A policy cast to another float type moves no action."""
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        tokenizer = copy.deepcopy(trial.fitted).to(dtype)
        _expect(_state(tokenizer) == _state(trial.fitted), f"tensors that .to({dtype}) leaves alone", "others")
        _equal(tokenizer.encode(trial.few), trial.ids, f"the same ids after .to({dtype})")


@_check
def autocast_changes_nothing(trial: Trial) -> None:
    """In an autocast region, where policies train, ids and actions are the same."""
    with torch.autocast("cpu", torch.bfloat16):
        tokenizer = trial.fresh().fit(trial.actions)
        ids, actions = trial.fitted.encode(trial.actions), trial.fitted.decode(trial.ids)
        quantized = trial.fitted.quantize(torch.from_numpy(trial.few))
    _expect(_state(tokenizer) == _state(trial.fitted), "the same fit under autocast", "others")
    _equal(ids, trial.fitted.encode(trial.actions), "the same ids under autocast")
    _equal(actions, trial.fitted.decode(trial.ids), "the same actions under autocast")
    _equal(quantized, actions, "the same quantized actions under autocast")


@_check
def default_dtype_changes_nothing(trial: Trial) -> None:
    """Fitting and loading while torch's default dtype is another one, as policies are loaded, gives the same."""
    before = torch.get_default_dtype()
    for dtype in (torch.bfloat16, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            tokenizer, loaded = trial.fresh().fit(trial.actions), _reloaded(trial.fitted)
            ids, actions = loaded.encode(trial.few), loaded.decode(trial.ids)
        finally:
            torch.set_default_dtype(before)
        _expect(_state(tokenizer) == _state(trial.fitted), f"the same fit under {dtype}", "others")
        _expect(_state(loaded) == _state(trial.fitted), f"the same tensors when loaded under {dtype}", "others")
        _equal(ids, trial.ids, f"the same ids under {dtype}")
        _equal(actions, trial.fitted.decode(trial.ids), f"the same actions under {dtype}")


@_check
def state_dict_round_trip(trial: Trial) -> None:
    """As part of a policy its tensors travel in the policy's state_dict, and every cache follows them."""
    policy = torch.nn.ModuleDict({"tokenizer": copy.deepcopy(trial.fitted)})
    state = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    _expect(any("range.low" in name for name in state), "range.low in the state_dict", sorted(state))
    other = trial.fresh().fit(trial.actions[:, ::-1] * 0.5)
    other.encode(trial.few)  # fills whatever caches there are
    if {k: v.shape for k, v in other.state_dict().items()} != {
        k: v.shape for k, v in trial.fitted.state_dict().items()
    }:
        other = copy.deepcopy(trial.fitted)
    holder = torch.nn.ModuleDict({"tokenizer": other})
    holder.load_state_dict(state, strict=True)
    _equal(other.encode(trial.few), trial.ids, "the same ids from a loaded state_dict")
    _equal(other.decode(trial.ids), trial.fitted.decode(trial.ids), "the same actions from a loaded state_dict")
    _expect(not any(p.requires_grad for p in trial.fitted.parameters()), "no tensors that an optimizer moves", "some")


@_check
def provenance_is_reproducible(trial: Trial) -> None:
    """Provenance says what was fitted on, in words that JSON holds and that do not change between machines."""
    provenance = trial.fitted.provenance
    wanted = {"library", "sources", "keys", "fps", "chunks", "sample"}
    _expect(wanted <= set(provenance), f"provenance of {sorted(wanted)}", sorted(provenance))
    chunks = provenance["chunks"]
    _expect(isinstance(chunks, int) and 0 < chunks <= len(trial.actions), "the number of chunks", chunks)
    _expect(math.isclose(sum(provenance["keys"].values()), len(trial.actions)), "every chunk counted", provenance)
