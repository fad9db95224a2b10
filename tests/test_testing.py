"""The conformance suite passes what keeps the contract, and names the promise that a broken tokenizer breaks."""

import copy

import numpy as np
import pytest
import torch

from action_tokenizers import BinningTokenizer, FASTTokenizer, KMeansTokenizer, ResidualVQTokenizer
from action_tokenizers.data.synthetic import smooth_chunks
from action_tokenizers.testing import CHECKS, Trial, check_tokenizer, damaged, sample_allowed
from tests.fakes.composite import CompositeTokenizer

ACTIONS = smooth_chunks(60, 4, 4)
COMPOSITE = CompositeTokenizer(parts=[FASTTokenizer(vocab_size=160), BinningTokenizer(bins=16)], dims=[[0, 1, 2], [3]])


@pytest.mark.parametrize("name", CHECKS)
def test_a_composite_of_a_variable_and_a_fixed_part_keeps_the_contract(name):
    CHECKS[name](Trial(COMPOSITE, ACTIONS))


@pytest.mark.parametrize(
    "parts",
    [
        [BinningTokenizer(bins=4), KMeansTokenizer(codebook_size=5)],
        [KMeansTokenizer(codebook_size=5, scope="chunk"), ResidualVQTokenizer(levels=2, codebook_size=6)],
        [FASTTokenizer(vocab_size=90), FASTTokenizer(vocab_size=40, scale=20)],
    ],
    ids=["open horizons", "fixed lengths", "two of variable length"],
)
def test_other_composites_keep_the_contract(parts):
    check_tokenizer(CompositeTokenizer(parts=parts, dims=[[3, 1], [0, 2]]), ACTIONS)


def test_default_actions_suit_any_family():
    check_tokenizer(BinningTokenizer(bins=16, horizon=5), seed=3)


def test_the_tokenizer_itself_is_left_alone():
    tokenizer = BinningTokenizer(bins=4)
    check_tokenizer(tokenizer, ACTIONS)
    assert not tokenizer.is_fitted


class Broken(BinningTokenizer):
    """A tokenizer with one fault; the checks must see it."""

    def __init__(self, *, horizon=None, range="quantile", bins=8):
        super().__init__(horizon=horizon, range=range, bins=bins, shared_ids=False)
        self._params = {name: self._params[name] for name in ("horizon", "range", "bins")} | {
            "shared_ids": False,
            "strategy": "uniform",
            "mu": 1.0,
        }

    def get_params(self, deep=True):
        return {name: self._params[name] for name in ("horizon", "range", "bins")}


class ConvertsInConstructor(Broken):
    def __init__(self, *, horizon=None, range="quantile", bins=(8, 8, 8, 8)):
        super().__init__(horizon=horizon, range=range, bins=list(bins))


class KeepsItsFit(Broken):
    def set_params(self, **params):
        fitted, sizes = self.range, self._sizes
        super().set_params(**params)
        self.range, self._sizes = fitted, sizes
        return self


class DrawsWithoutSeed(Broken):
    def _fit(self, chunks, is_pad, progress):
        super()._fit(chunks, is_pad, progress)
        self.centres += torch.from_numpy(np.random.default_rng().uniform(0, 1e-3, self.centres.shape)).float()


class CountsItsFits(Broken):
    def _fit(self, chunks, is_pad, progress):
        super()._fit(chunks, is_pad, progress)
        self.__dict__["fits"] = self.__dict__.get("fits", 0) + 1
        self.neutral.fill_(self.__dict__["fits"] % 2)


class WritesToItsInput(Broken):
    def encode(self, actions, **rest):
        ids = super().encode(actions, **rest)
        if isinstance(actions, np.ndarray) and actions.flags.writeable:
            actions *= 0.5
        return ids


class ReturnsTorch(Broken):
    def decode(self, ids, **rest):
        return torch.as_tensor(super().decode(ids, **rest))


class ReturnsFloat64(Broken):
    def decode(self, ids, **rest):
        actions = super().decode(ids, **rest)
        return actions.astype(np.float64) if isinstance(actions, np.ndarray) else actions.double()


class LooksAtTheBatch(Broken):
    def _encode(self, chunks):
        return super()._encode(chunks - chunks.mean(0) if len(chunks) > 1 else chunks)


class RemembersTheHorizon(Broken):
    def encode(self, actions, **rest):
        ids = super().encode(actions, **rest)
        self.neutral.fill_(0)
        return ids


class IgnoresKeys(Broken):
    def decode(self, ids, *, key=None, **rest):
        return super().decode(ids, key=self.range_keys[0], **rest)


class CountsFromOne(Broken):
    def _encode(self, chunks):
        return super()._encode(chunks) + 1


class LeavesTheRange(Broken):
    def _actions(self, read, key):
        return super()._actions(read, key) * 1.5


class AcceptsEverything(Broken):
    def _read(self, ids, horizon, action_dim):
        read = super()._read(ids, horizon, action_dim)
        object.__setattr__(read, "complete", torch.ones_like(read.complete))
        object.__setattr__(read, "begins", torch.ones_like(read.begins))
        return read


class RaisesAnythingOnBadIds(Broken):
    def decode(self, ids, *, errors="strict", **rest):
        try:
            return super().decode(ids, errors=errors, **rest)
        except ValueError as error:
            raise KeyError(str(error)) from error


class RepairsToNaN(Broken):
    def try_decode(self, ids, **rest):
        actions, valid = super().try_decode(ids, **rest)
        if isinstance(actions, np.ndarray):
            actions = np.where(np.asarray(valid)[..., None, None], actions, np.nan).astype(np.float32)
        return actions, valid


class LetsNaNIn(Broken):
    def encode(self, actions, **rest):
        if isinstance(actions, np.ndarray) and actions.dtype == np.float32:
            actions = np.nan_to_num(actions)
        return super().encode(actions, **rest)


class AllowsTooMuch(Broken):
    def _allowed(self, prefix, horizon, action_dim):
        return torch.ones(len(prefix), self.vocab_size, dtype=torch.bool)


class AllowsTooLittle(Broken):
    def _allowed(self, prefix, horizon, action_dim):
        mask = super()._allowed(prefix, horizon, action_dim).clone()
        mask[:, ::2] = False
        return mask


class GetsFinerTheWrongWay(Broken):
    prefix_decodable = True

    def _decode(self, ids, kept, horizon, action_dim):
        exact = super()._decode(ids, kept, horizon, action_dim)
        partial = (kept > 0) & (kept < horizon * action_dim)
        return torch.where(partial[:, None, None], -exact, exact)


class CountsBitsByVocabulary(Broken):
    def _choices(self, ids, kept, horizon, action_dim):
        return torch.full_like(ids, self.vocab_size)


class MovesItsCentres(Broken):
    def scalar_cells(self):
        cells = super().scalar_cells()
        return type(cells)(cells.edges, tuple(centres + 0.01 for centres in cells.centres))


class CutsItselfInHalf(Broken):
    def _apply(self, fn, recurse=True):
        return torch.nn.Module._apply(self, fn, recurse)


class CachesItsRange(Broken):
    def _forget(self):
        super()._forget()
        self.__dict__["cached"] = None

    def _fitted_range(self):
        fitted = super()._fitted_range()
        if self.__dict__["cached"] is None:
            self.__dict__["cached"] = copy.deepcopy(fitted)
        return self.__dict__["cached"]


class CannotBeLoaded(Broken):
    """It has no name of its own, so its folder says that it is a BinningTokenizer."""


class PadsAreAnyId(Broken):
    def length(self, ids, **rest):
        found = super().length(ids, **rest)
        return abs(found)


class TellsNothing(Broken):
    def _provenance_of(self, sample):
        return {}


class TellsTheTime(Broken):
    def _provenance_of(self, sample):
        return {**super()._provenance_of(sample), "time": np.random.default_rng().random()}


class HasFactsBeforeFit(Broken):
    @property
    def vocab_size(self):
        return super().vocab_size if self.is_fitted else 1


class CannotBePickled(Broken):
    def __getstate__(self):
        raise TypeError("cannot pickle a robot")


class RefusesFloat64(Broken):
    def encode(self, actions, **rest):
        if getattr(actions, "dtype", None) == np.float64:
            raise TypeError("float32 only")
        return super().encode(actions, **rest)


class RefusesEmptyBatches(Broken):
    def _encode(self, chunks):
        if not len(chunks):
            raise RuntimeError("nothing to do")
        return super()._encode(chunks)


class FitsInAnotherDtype(Broken):
    def _fit(self, chunks, is_pad, progress):
        super()._fit(chunks, is_pad, progress)
        self.centres = self.centres.to(torch.get_default_dtype())


class ClipsMoreThanItSays(Broken):
    def clip_report(self, actions, **rest):
        return super().clip_report(actions, **rest) * 0


class ReturnsNothingFromFit(Broken):
    def fit(self, data, **rest):
        super().fit(data, **rest)


class FollowsAutocast(Broken):
    def decode(self, ids, **facts):  # outside the base class's full precision
        return super().decode(ids, **facts) * float(torch.ones(1, 1) @ torch.full((1, 1), 0.3))


class NeedsNoHorizon(Broken):
    def _shape(self, horizon, action_dim):
        return super()._shape(horizon or self._horizon or 4, action_dim)


FAULTS = {
    "constructor_only_stores": [ConvertsInConstructor],
    "params_round_trip": [KeepsItsFit],
    "unfitted_facts": [HasFactsBeforeFit],
    "copies_are_equal": [CannotBePickled],
    "fit_returns_self": [ReturnsNothingFromFit],
    "equal_fits_are_equal_bytes": [DrawsWithoutSeed, TellsTheTime],
    "refit_replaces_everything": [CountsItsFits],
    "inputs_stay_unchanged": [WritesToItsInput],
    "numpy_and_torch": [ReturnsTorch, ReturnsFloat64],
    "other_dtypes_and_layouts": [RefusesFloat64],
    "leading_dims": [RefusesEmptyBatches],
    "a_chunk_alone_is_the_chunk_in_a_batch": [LooksAtTheBatch],
    "encode_keeps_no_state": [RemembersTheHorizon],
    "keys_are_apart": [IgnoresKeys],
    "open_horizon": [NeedsNoHorizon],
    "ids_are_in_the_vocabulary": [CountsFromOne],
    "length_looks_at_no_pads": [PadsAreAnyId],
    "decoded_actions_are_inside_the_range": [LeavesTheRange],
    "clip_report_is_a_fraction": [ClipsMoreThanItSays],
    "damaged_ids_decode_or_raise": [AcceptsEverything, RaisesAnythingOnBadIds, RepairsToNaN],
    "impossible_ids_raise": [AcceptsEverything, RaisesAnythingOnBadIds],
    "bad_actions_raise": [LetsNaNIn],
    "encoded_ids_are_allowed": [AllowsTooLittle],
    "allowed_sequences_decode": [AllowsTooMuch],
    "prefixes_decode_coarse_to_fine": [GetsFinerTheWrongWay],
    "bits_count_the_choices": [CountsBitsByVocabulary],
    "scalar_cells_are_the_codec": [MovesItsCentres],
    "saved_and_loaded_is_the_same": [CannotBeLoaded],
    "half_precision_leaves_it_alone": [CutsItselfInHalf],
    "autocast_changes_nothing": [FollowsAutocast],
    "default_dtype_changes_nothing": [FitsInAnotherDtype],
    "state_dict_round_trip": [CachesItsRange],
    "provenance_is_reproducible": [TellsNothing],
}


def test_there_is_a_fault_for_every_check():
    assert list(FAULTS) == list(CHECKS)


@pytest.mark.parametrize(
    ("name", "fault"),
    [(name, fault) for name, faults in FAULTS.items() for fault in faults],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_each_check_finds_its_fault(name, fault, monkeypatch):
    monkeypatch.setattr("action_tokenizers.testing.CHECKS", {name: CHECKS[name]})
    with pytest.raises(AssertionError, match=f"{fault.__name__} fails {name}: "):
        check_tokenizer(fault(), ACTIONS)


def test_a_fault_is_told_with_what_was_expected_and_what_came():
    with pytest.raises(AssertionError, match=r"CountsFromOne fails .*: expected .*, got "):
        check_tokenizer(CountsFromOne(), ACTIONS)


def test_damage_comes_in_every_kind():
    ids = np.arange(12).reshape(2, 6)
    rows = list(damaged(ids, np.array([6, 4]), 20, 600, np.random.default_rng(0)))
    assert len(rows) == 600
    lengths = {len(row) for row in rows}
    assert {0, 3, 4, 5, 6, 7} <= lengths
    assert min(row.min() for row in rows if len(row)) == -1
    assert max(row.max() for row in rows if len(row)) == 20


def test_sampled_ids_cover_what_is_allowed():
    tokenizer = BinningTokenizer(bins=3, range="minmax").fit(smooth_chunks(50, 2, 1, gripper=False))
    ids = sample_allowed(tokenizer, 900, np.random.default_rng(0))
    rows, counts = np.unique(ids, axis=0, return_counts=True)
    assert len(rows) == 9
    assert counts.min() > 60
    opened = BinningTokenizer(bins=3).fit(list(smooth_chunks(50, 2, 1, gripper=False)))
    assert sample_allowed(opened, 5, np.random.default_rng(0), horizon=4).shape == (5, 4)
