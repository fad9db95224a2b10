"""The contract's own rules, whatever the family."""

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone

import action_tokenizers
from action_tokenizers import (
    ActionShapeError,
    ActionTokenizer,
    ActionValueError,
    BinningTokenizer,
    ChunkSample,
    Episodes,
    FASTTokenizer,
    KMeansTokenizer,
    NotFittedError,
    Range,
    ResidualVQTokenizer,
    TokenError,
)
from action_tokenizers.base import SHORT_CUTS, range_of
from action_tokenizers.data.chunks import chunks
from action_tokenizers.data.synthetic import smooth_chunks, smooth_episodes
from action_tokenizers.errors import ActionTokenizerError, UnknownTokenizerError
from action_tokenizers.ranges import OpenRange
from action_tokenizers.registry import known_types, tokenizer_class
from tests.fakes.composite import CompositeTokenizer
from tests.fakes.damage import accept_allowed, accept_repair
from tests.fakes.workers import encode_in_another_process, encode_in_workers

ACTIONS = smooth_chunks(60, 5, 3)
EPISODES = smooth_episodes(12, length=(30, 60), action_dim=3, fps=20.0)


def families(**params):
    return [
        BinningTokenizer(bins=16, **params),
        KMeansTokenizer(codebook_size=8, **params),
        KMeansTokenizer(codebook_size=8, scope="chunk", **params),
        ResidualVQTokenizer(levels=2, codebook_size=8, **params),
        FASTTokenizer(vocab_size=200, **params),
    ]


def ids_of(tokenizers):
    return [type(tokenizer).__name__ for tokenizer in tokenizers]


every_family = pytest.mark.parametrize("tokenizer", families(), ids=ids_of(families()))


class TestHorizon:
    @every_family
    def test_is_one_second_of_data(self, tokenizer):
        assert clone(tokenizer).fit(EPISODES).horizon == 20

    def test_is_at_most_the_median_episode(self):
        episodes = Episodes([np.zeros((t, 2)) for t in (4, 6, 7, 8, 50)], fps=30)
        with pytest.warns(UserWarning, match="shorter than the horizon"):
            assert BinningTokenizer().fit(episodes).horizon == 7

    @every_family
    def test_is_what_was_asked(self, tokenizer):
        fitted = clone(tokenizer).set_params(horizon=6).fit(EPISODES)
        assert fitted.horizon == 6
        bare = clone(tokenizer).set_params(horizon=6).fit(list(EPISODES.actions))
        assert bare.horizon == 6

    @every_family
    def test_is_that_of_chunks(self, tokenizer):
        assert clone(tokenizer).fit(ACTIONS).horizon == 5
        with pytest.raises(ActionShapeError, match="horizon 6"):
            clone(tokenizer).set_params(horizon=6).fit(ACTIONS)

    @every_family
    def test_of_bare_episodes_is_open_or_refused(self, tokenizer):
        tokenizer = clone(tokenizer)
        if tokenizer._needs_horizon():
            with pytest.raises(ActionShapeError, match="horizon="):
                tokenizer.fit(list(EPISODES.actions))
            assert not tokenizer.is_fitted
        else:
            assert tokenizer.fit(list(EPISODES.actions)).horizon is None

    @pytest.mark.parametrize("tokenizer", families()[:2], ids=ids_of(families()[:2]))
    def test_of_episodes_without_fps_is_open(self, tokenizer):
        """`fit`: families that code every step alone leave it open for episodes without fps."""
        bare = Episodes(list(EPISODES.actions))
        assert clone(tokenizer).fit(bare).horizon is None
        assert clone(tokenizer).fit([bare, bare[:2]]).horizon is None

    def test_skipped_episodes_are_told_and_stored(self):
        some_short = Episodes([*EPISODES.actions, *(a[:10] for a in EPISODES.actions[:3])], fps=20.0)
        with pytest.warns(UserWarning, match="3 episodes are shorter than the horizon, 12 steps"):
            tokenizer = BinningTokenizer(horizon=12).fit(some_short)
        assert tokenizer.provenance["skipped_episodes"] == 3

    def test_longer_than_every_episode_is_refused(self):
        with pytest.raises(ActionShapeError, match=r"horizon 100 .*longest of 58"):
            BinningTokenizer(horizon=100).fit(EPISODES)

    @pytest.mark.parametrize("horizon", [0, -1, 2.5, True, "8", np.nan, [8]], ids=str)
    def test_of_another_kind_is_refused(self, horizon):
        tokenizer = BinningTokenizer(horizon=horizon)
        with pytest.raises(ActionValueError, match="expected horizon"):
            tokenizer.fit(EPISODES)

    def test_may_be_a_numpy_number(self):
        assert BinningTokenizer(horizon=np.int64(5)).fit(ACTIONS).horizon == 5

    def test_is_never_contradicted(self):
        tokenizer = BinningTokenizer(bins=4).fit(ACTIONS)
        ids = tokenizer.encode(ACTIONS)
        expected = tokenizer.decode(ids)
        for facts in ({"horizon": 5}, {"time_horizon": 5}, {"action_dim": 3}, {"horizon": 5, "time_horizon": 5}):
            np.testing.assert_array_equal(tokenizer.decode(ids, **facts), expected)
        for facts in ({"horizon": 4}, {"time_horizon": 6}, {"action_dim": 2}, {"horizon": 0}, {"horizon": -5}):
            with pytest.raises(ActionShapeError, match=r"expected (horizon 5|action_dim 3), got"):
                tokenizer.decode(ids, **facts)
        with pytest.raises(ActionShapeError, match="one horizon"):
            tokenizer.decode(ids, horizon=5, time_horizon=6)
        for call in (tokenizer.try_decode, tokenizer.allowed, tokenizer.length, tokenizer.bits):
            call(ids, horizon=5, action_dim=3)
            with pytest.raises(ActionShapeError):
                call(ids, horizon=4)
        with pytest.raises(ActionShapeError):
            tokenizer.max_tokens_for(4)

    def test_left_open_takes_any(self):
        tokenizer = BinningTokenizer(bins=4).fit(list(EPISODES.actions))
        assert (tokenizer.max_tokens, tokenizer.pad_id, tokenizer.vocab_size) == (None, 4, 5)
        ragged = [ACTIONS[0][:t] for t in (2, 5, 3)]
        ids = tokenizer.encode(ragged)
        assert ids.shape == (3, 15)
        assert (ids == 4).sum(1).tolist() == [9, 0, 6]
        for row, chunk in zip(ids, ragged, strict=True):
            np.testing.assert_array_equal(tokenizer.decode(row, horizon=len(chunk)), tokenizer.quantize(chunk))
            np.testing.assert_array_equal(tokenizer.encode(chunk), row[: 3 * len(chunk)])
        assert [tokenizer.max_tokens_for(t) for t in (1, 2, 50)] == [3, 6, 150]
        tensors = tokenizer.encode([torch.from_numpy(chunk) for chunk in ragged])
        np.testing.assert_array_equal(tensors.numpy(), ids)
        with pytest.raises(ActionShapeError, match="expected horizon= in this call"):
            tokenizer.decode(ids)
        with pytest.raises(ActionShapeError, match="chunk 1 of the list"):
            tokenizer.encode([ACTIONS[0], ACTIONS[0, :, :2]])
        with pytest.raises(ActionValueError, match=r"chunk 2 of the list: .*step 1, dim 0"):
            tokenizer.encode([ACTIONS[0], ACTIONS[1, :2], np.where(np.arange(15).reshape(5, 3) == 3, np.nan, 0)])


class TestFit:
    @every_family
    def test_on_a_sample_equals_the_fit_on_its_episodes(self, tokenizer, tmp_path):
        tokenizer = tokenizer.set_params(horizon=8)
        sample = ChunkSample(horizon=8).add(EPISODES)
        found = [clone(tokenizer).fit(data) for data in (EPISODES, sample, [EPISODES[:5], EPISODES[5:]])]
        saved = [
            {file.name: file.read_bytes() for file in fitted.save_pretrained(tmp_path / str(i)).iterdir()}
            for i, fitted in enumerate(found)
        ]
        assert saved[0] == saved[1] == saved[2]

    def test_takes_tensors_and_iterables_of_chunks(self):
        expected = BinningTokenizer(bins=8).fit(ACTIONS).encode(ACTIONS)
        for data in (
            torch.from_numpy(ACTIONS),
            ACTIONS.astype(np.float64),
            [ACTIONS],
            iter([ACTIONS[:20], ACTIONS[20:]]),
        ):
            np.testing.assert_array_equal(BinningTokenizer(bins=8).fit(data).encode(ACTIONS), expected)

    def test_ids_do_not_depend_on_what_stands_in_padded_steps(self):
        is_pad = np.zeros((60, 5), bool)
        is_pad[::3, 3:] = True
        is_pad[1::5, 0] = True
        rows = np.arange(60)
        zeros, wild = ACTIONS.copy(), ACTIONS.copy()
        zeros[is_pad], wild[is_pad] = 0, 50
        for tokenizer in families():
            fitted = [
                clone(tokenizer).fit(ChunkSample().add_chunks(data, episode=rows, start=0 * rows, action_is_pad=is_pad))
                for data in (zeros, wild)
            ]
            for name, tensor in fitted[0].state_dict().items():
                assert torch.equal(tensor, fitted[1].state_dict()[name]), (type(tokenizer).__name__, name)
            ids = [fitted[0].encode(data, action_is_pad=is_pad) for data in (zeros, wild)]
            np.testing.assert_array_equal(*ids)
            quantized = [fitted[0].quantize(data, action_is_pad=is_pad) for data in (zeros, wild)]
            np.testing.assert_array_equal(*quantized)
            assert fitted[0].range.high.max() < 2

    def test_padded_steps_hold_the_last_real_one(self):
        tokenizer = BinningTokenizer(bins=16, range="minmax").fit(ACTIONS)
        is_pad = np.array([[False, False, True, False, True], [True, False, False, False, True]])
        held = np.stack([ACTIONS[0][[0, 1, 1, 3, 3]], ACTIONS[1][[1, 1, 2, 3, 3]]])
        np.testing.assert_array_equal(tokenizer.encode(ACTIONS[:2], action_is_pad=is_pad), tokenizer.encode(held))
        torched = tokenizer.encode(torch.from_numpy(ACTIONS[:2]), action_is_pad=torch.from_numpy(is_pad))
        np.testing.assert_array_equal(torched.numpy(), tokenizer.encode(held))
        np.testing.assert_array_equal(
            tokenizer.encode(list(ACTIONS[:2]), action_is_pad=list(is_pad)), tokenizer.encode(held)
        )
        np.testing.assert_array_equal(
            tokenizer.encode(ACTIONS[:2][None], action_is_pad=is_pad[None])[0], tokenizer.encode(held)
        )
        np.testing.assert_array_equal(
            tokenizer.quantize(list(ACTIONS[:2]), action_is_pad=list(is_pad)), tokenizer.quantize(held)
        )
        with pytest.raises(ActionValueError, match="only padding in chunk 1"):
            tokenizer.encode(ACTIONS[:2], action_is_pad=np.array([[False] * 5, [True] * 5]))
        for wrong in (is_pad[:1], is_pad[:, :4], is_pad.astype(int), is_pad.ravel()):
            with pytest.raises(ActionShapeError, match="action_is_pad"):
                tokenizer.encode(ACTIONS[:2], action_is_pad=wrong)

    def test_padded_tails_count_no_steps(self):
        """A step family learns from real steps only: held steps must not weigh on its cells."""
        actions = np.zeros((40, 4, 1), np.float32)
        actions[:, 0, 0] = np.linspace(-1, 1, 40)
        is_pad = np.zeros((40, 4), bool)
        is_pad[:, 1:] = True
        rows = np.arange(40)
        sample = ChunkSample().add_chunks(actions, episode=rows, start=0 * rows, action_is_pad=is_pad)
        tokenizer = BinningTokenizer(bins=8, strategy="quantile", range="minmax").fit(sample)
        ids = tokenizer.encode(actions[:, :1].repeat(4, 1))
        assert np.bincount(ids.ravel()).min() >= 8

    def test_says_how_far_it_is(self):
        for tokenizer in families():
            calls = []
            tokenizer.fit(ACTIONS, progress=lambda *call, calls=calls: calls.append(call))
            for stage, done, total in calls:
                assert isinstance(stage, str)
                assert 0 <= done <= total
            assert calls == sorted(calls, key=lambda call: call[1])
        assert calls

    @pytest.mark.parametrize(
        "data",
        [
            *(
                "a/path",
                5,
                None,
                [],
                {"a": ACTIONS},
                np.zeros((0, 5, 3)),
                np.zeros((4, 3)),
                np.zeros((4, 5, 3), object),
            ),
            *(np.full((4, 5, 3), np.nan), [np.full((40, 3), np.inf)], [np.zeros((4, 5, 3)), np.zeros((4, 5, 2))]),
        ],
        ids=lambda data: f"{type(data).__name__}{getattr(data, 'shape', '')}",
    )
    def test_refuses_other_data(self, data):
        tokenizer = BinningTokenizer(horizon=5)
        with pytest.raises(ActionTokenizerError, match="expected"):
            tokenizer.fit(data)
        assert not tokenizer.is_fitted

    @pytest.mark.parametrize("asked", ["q", None, 3, [], ["minmax"] * 2, ["minmax", "unit", None]], ids=str)
    def test_refuses_other_ranges(self, asked):
        tokenizer = BinningTokenizer(range=asked)
        with pytest.raises(ActionTokenizerError, match="expected range="):
            tokenizer.fit(ACTIONS)
        assert (tokenizer.is_fitted, tokenizer.horizon, tokenizer.action_dim) == (False, None, None)

    def test_that_fails_leaves_no_fit(self):
        for params in ({"bins": 1}, {"range": "q"}):
            tokenizer = BinningTokenizer().fit(ACTIONS)
            tokenizer._params.update(params)
            with pytest.raises(ActionTokenizerError):
                tokenizer.fit(ACTIONS)
            assert not tokenizer.is_fitted
            assert (tokenizer.horizon, tokenizer.action_dim, tokenizer.provenance) == (None, None, {})
            with pytest.raises(NotFittedError, match=r"call fit\(data\)"):
                tokenizer.encode(ACTIONS)

    @pytest.mark.parametrize("data", [np.full((4, 5, 3), np.nan), np.zeros((4, 3)), []], ids=["NaN", "shape", "none"])
    def test_that_fails_on_its_data_is_whole_or_none(self, data):
        tokenizer = BinningTokenizer().fit(ACTIONS)
        before = tokenizer.encode(ACTIONS)
        with pytest.raises(ActionTokenizerError):
            tokenizer.fit(data)
        if tokenizer.is_fitted:  # refused at the door: nothing was touched
            np.testing.assert_array_equal(tokenizer.encode(ACTIONS), before)
        else:
            assert (tokenizer.horizon, tokenizer.action_dim) == (None, None)

    def test_that_is_interrupted_leaves_no_fit(self):
        def stop(*_):
            raise KeyboardInterrupt

        tokenizer = FASTTokenizer().fit(ACTIONS)
        with pytest.raises(KeyboardInterrupt):
            tokenizer.fit(ACTIONS, progress=stop)
        assert not tokenizer.is_fitted


class TestKeys:
    def test_of_several_episodes_are_ranges_apart(self):
        small, large = (
            smooth_episodes(6, action_dim=3, key="small"),
            smooth_episodes(6, action_dim=3, key="large", seed=1),
        )
        large = Episodes([100 * actions for actions in large.actions], key="large", fps=20.0)
        for tokenizer in families(horizon=5):
            tokenizer.fit(iter([small, large]))
            assert tokenizer.range_keys == ("large", "small")
            assert tokenizer.provenance["keys"].keys() == {"large", "small"}
            with pytest.raises(ActionShapeError, match=re.escape("key= one of ['large', 'small'], got no key")):
                tokenizer.encode(ACTIONS)
            with pytest.raises(ActionShapeError, match="got key 'medium'"):
                tokenizer.clip_report(ACTIONS, key="medium")
            ids = tokenizer.encode(ACTIONS * 100, key="large")
            assert np.abs(tokenizer.decode(ids, key="large")).max() > 10
            assert np.abs(tokenizer.decode(ids, key="small")).max() <= 1.01
            tokenizer.allowed(ids[:, :1])  # ids mean the same under every key
            tokenizer.length(ids)
            assert tokenizer.clip_report(ACTIONS * 100, key="small").min() > 0.2

    def test_of_a_given_range_are_kept(self):
        given = Range([[-1.0] * 3, [-2.0] * 3], [[1.0] * 3, [2.0] * 3], keys=("a", "b"))
        tokenizer = BinningTokenizer(range=given, horizon=5).fit(Episodes(list(ACTIONS), key="b"))
        assert tokenizer.range_keys == ("a", "b")
        assert tokenizer.get_params()["range"] is given
        with pytest.raises(ActionShapeError, match="keys"):
            BinningTokenizer(range=given, horizon=5).fit(Episodes(list(ACTIONS), key="c"))
        with pytest.raises(ActionShapeError, match="action_dim 3"):
            BinningTokenizer(range=Range([-1.0], [1.0])).fit(ACTIONS)

    def test_with_other_dims_are_refused(self):
        with pytest.raises(ActionShapeError, match="action_dim 3"):
            BinningTokenizer(horizon=5).fit([EPISODES, smooth_episodes(3, action_dim=2, key="b")])


class TestParameters:
    def test_are_what_was_asked_and_facts_what_is(self):
        tokenizer = FASTTokenizer(vocab_size=4096).fit(ACTIONS)
        assert tokenizer.get_params() == {"horizon": None, "range": "quantile", "scale": 10, "vocab_size": 4096}
        assert tokenizer.horizon == 5
        assert tokenizer.vocab_size < 4096
        tokenizer.get_params()["scale"] = 3
        assert tokenizer.get_params()["scale"] == 10

    def test_that_are_set_forget_the_fit(self):
        for tokenizer in families():
            tokenizer.fit(ACTIONS).set_params(horizon=4)
            assert not tokenizer.is_fitted
            assert (tokenizer.horizon, tokenizer.action_dim, dict(tokenizer.provenance)) == (None, None, {})
            assert tokenizer.state_dict() == {}
            with pytest.raises(NotFittedError):
                tokenizer.encode(ACTIONS)
            assert tokenizer.fit(ACTIONS[:, :4]).horizon == 4

    def test_that_are_unknown_are_listed(self):
        with pytest.raises(ActionValueError, match=r"\['bins', 'horizon', .*got \['bin', 'lr'\]"):
            BinningTokenizer().set_params(lr=1, bin=3)

    def test_are_shown(self):
        tokenizer = BinningTokenizer(bins=7)
        assert "bins=7" in repr(tokenizer)
        assert "not fitted" in repr(tokenizer)
        assert "'vocab_size': 7" in repr(tokenizer.fit(ACTIONS))

    def test_can_be_searched(self):
        errors = {}
        for bins in (2, 8, 32):
            tokenizer = clone(BinningTokenizer()).set_params(bins=bins).fit(ACTIONS)
            errors[bins] = float(((tokenizer.quantize(ACTIONS) - ACTIONS) ** 2).mean())
        assert sorted(errors, key=errors.get) == [32, 8, 2]


class TestDevice:
    def test_move_keeps_dtypes(self):
        for tokenizer in families():
            tokenizer.fit(ACTIONS)
            expected = {name: tensor.dtype for name, tensor in tokenizer.state_dict().items()}
            for moved in (copy.deepcopy(tokenizer).half(), copy.deepcopy(tokenizer).to("meta", torch.float16)):
                assert {name: tensor.dtype for name, tensor in moved.state_dict().items()} == expected
            assert {tensor.device.type for tensor in moved.state_dict().values()} == {"meta"}

    def test_inside_a_policy(self):
        policy = torch.nn.Module()
        policy.head = torch.nn.Linear(4, 4)
        policy.tokenizer = BinningTokenizer(bins=8).fit(ACTIONS)
        expected = policy.tokenizer.encode(ACTIONS)
        policy.to(torch.bfloat16).train().eval().requires_grad_(False)
        assert policy.head.weight.dtype == torch.bfloat16
        np.testing.assert_array_equal(policy.tokenizer.encode(ACTIONS), expected)
        assert not list(policy.tokenizer.parameters())
        assert any(name.startswith("tokenizer.range.") for name in policy.state_dict())

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator here")
    def test_accelerator_gives_the_same_ids(self):
        actions = smooth_chunks(2000, 16, 4)
        for tokenizer in families():
            tokenizer.fit(actions)
            ids, decoded = tokenizer.encode(actions), tokenizer.quantize(actions)
            bits, mask = tokenizer.bits(ids), tokenizer.allowed(ids[:, :3])
            tokenizer.to("cuda")
            np.testing.assert_array_equal(tokenizer.encode(actions), ids)
            np.testing.assert_allclose(tokenizer.decode(ids), decoded, atol=1e-6)
            np.testing.assert_array_equal(tokenizer.allowed(ids[:, :3]), mask)
            np.testing.assert_allclose(tokenizer.bits(ids), bits)
            there = torch.from_numpy(actions).cuda()
            found = tokenizer.encode(there)
            assert found.device == there.device
            np.testing.assert_array_equal(found.cpu().numpy(), ids)
            actions_there, valid = tokenizer.try_decode(found)
            assert actions_there.device == valid.device == there.device
            assert bool(valid.all())
            assert tokenizer.encode(torch.from_numpy(actions)).device.type == "cpu"
            assert tokenizer.clip_report(there).device == there.device
            assert [chunk.device for chunk in tokenizer.quantize(list(there[:2]))] == [there.device] * 2
            assert tokenizer.encode(list(there[:2])).device == there.device

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator here")
    def test_actions_and_ids_stay_on_the_accelerator(self, monkeypatch):
        """All families but FAST, whose byte-pair encoding says that it runs on the CPU."""
        actions = torch.from_numpy(smooth_chunks(200, 16, 4)).cuda()
        for tokenizer in families()[:-1]:
            tokenizer.fit(actions.cpu()).to("cuda")
            tokenizer.decode(tokenizer.encode(actions))
            with monkeypatch.context() as patch:
                for way_out in ("cpu", "numpy", "tolist"):
                    patch.setattr(torch.Tensor, way_out, lambda tensor, way=way_out: pytest.fail(f"{way}() of data"))
                ids = tokenizer.encode(actions)
                assert tokenizer.decode(ids).device == ids.device == actions.device


class TestShortCuts:
    """One pass over memory gives what the steps give."""

    @pytest.mark.parametrize("keys", [("default",), ("a", "b")])
    @every_family
    def test_give_what_the_steps_give(self, tokenizer, keys, monkeypatch):
        samples = [smooth_episodes(6, action_dim=3, key=key, seed=i) for i, key in enumerate(keys)]
        tokenizer = clone(tokenizer).set_params(horizon=5).fit(samples)
        actions = ACTIONS * np.float32(1.3)  # some lie outside the range
        key = keys[-1]
        ids = tokenizer.encode(actions, key=key)
        decoded, one = tokenizer.decode(ids, key=key), tokenizer.decode(ids[:1], key=key)
        for short_cut in SHORT_CUTS:
            monkeypatch.setattr(type(tokenizer), short_cut, getattr(ActionTokenizer, short_cut))
        np.testing.assert_array_equal(tokenizer.encode(actions, key=key), ids)
        np.testing.assert_array_equal(tokenizer.decode(ids, key=key), decoded)
        np.testing.assert_array_equal(one, decoded[:1])

    @every_family
    def test_refuse_nan_with_its_place(self, tokenizer):
        fitted = clone(tokenizer).set_params(horizon=5).fit(ACTIONS)
        for chunks_in in (ACTIONS, torch.from_numpy(ACTIONS), ACTIONS.astype(np.float64), np.asfortranarray(ACTIONS)):
            bad = copy.deepcopy(chunks_in)
            bad[41, 3, 2] = np.nan
            with pytest.raises(ActionValueError, match="got nan in chunk 41, step 3, dim 2"):
                fitted.encode(bad)
            is_pad = np.zeros(ACTIONS.shape[:2], bool)
            is_pad[41, 3:] = True
            with pytest.raises(ActionValueError, match="got nan in chunk 41, step 3, dim 2"):
                fitted.encode(bad, action_is_pad=is_pad)

    @every_family
    def test_refuse_ids_as_the_steps_do(self, tokenizer):
        fitted = clone(tokenizer).set_params(horizon=5).fit(ACTIONS)
        ids = fitted.encode(ACTIONS)
        ids[7, 0] = fitted.vocab_size + 3
        with pytest.raises(TokenError, match=r"position 0, which cannot stand there \(row 7, 1 of 60 rows\)"):
            fitted.decode(ids)
        assert not fitted.try_decode(ids)[1][7]

    def test_ids_and_actions_in_any_order_in_memory(self):
        for tokenizer in families():
            fitted = tokenizer.fit(ACTIONS)
            ids = fitted.encode(ACTIONS)
            np.testing.assert_array_equal(fitted.encode(np.asfortranarray(ACTIONS)), ids)
            np.testing.assert_array_equal(
                fitted.encode(torch.from_numpy(ACTIONS)[::2]).numpy(), fitted.encode(ACTIONS[::2])
            )
            np.testing.assert_array_equal(fitted.decode(np.asfortranarray(ids)), fitted.decode(ids))
            np.testing.assert_array_equal(fitted.decode(torch.from_numpy(ids).T.contiguous().T), fitted.decode(ids))

    def test_who_takes_a_step_anew_does_not_inherit_them(self):
        class Shifted(BinningTokenizer):
            def _encode(self, chunks):
                return super()._encode(chunks).roll(1, 0)

        class Halved(BinningTokenizer):
            def _actions(self, read, key):
                return super()._actions(read, key) / 2

        plain, shifted, halved = (kind(bins=16).fit(ACTIONS) for kind in (BinningTokenizer, Shifted, Halved))
        ids = plain.encode(ACTIONS)
        np.testing.assert_array_equal(shifted.encode(ACTIONS), np.roll(ids, 1, 0))
        np.testing.assert_array_equal(shifted.decode(ids), plain.decode(ids))
        np.testing.assert_array_equal(halved.decode(ids), plain.decode(ids) / 2)
        np.testing.assert_array_equal(halved.encode(ACTIONS), ids)

    def test_who_takes_a_step_anew_in_a_mixin_does_not_inherit_them(self):
        class Backwards:
            def _encode(self, chunks):
                return super()._encode(chunks).flip(0)

        class Loud(BinningTokenizer):
            def _encode(self, chunks):
                return super()._encode(chunks).roll(1, 0)

        class Unruffled(BinningTokenizer):
            pass

        class Mixed(Backwards, BinningTokenizer):
            pass

        class Joined(Unruffled, Loud):
            pass

        class Beneath(BinningTokenizer, Backwards):
            pass

        ids = BinningTokenizer(bins=16).fit(ACTIONS).encode(ACTIONS)
        np.testing.assert_array_equal(Mixed(bins=16).fit(ACTIONS).encode(ACTIONS), ids[::-1])
        np.testing.assert_array_equal(Joined(bins=16).fit(ACTIONS).encode(ACTIONS), np.roll(ids, 1, 0))
        np.testing.assert_array_equal(Beneath(bins=16).fit(ACTIONS).encode(ACTIONS), ids)
        for kind in (Unruffled, Beneath):  # nobody before the family took anything anew
            assert kind._encode_actions is BinningTokenizer._encode_actions
            assert kind._decode_whole is BinningTokenizer._decode_whole

    def test_who_takes_a_step_anew_may_take_its_short_cut_anew_too(self):
        class Own(BinningTokenizer):
            def _encode(self, chunks):
                return super()._encode(chunks).roll(1, 0)

            def _encode_actions(self, chunks, key):
                return super()._encode_actions(chunks, key).roll(1, 0)

        class Heir(Own):
            pass

        assert Heir._encode_actions is Own._encode_actions

    def test_steps_of_a_family_count_too(self):
        class Narrow(BinningTokenizer):
            """The upper half of the ids may stand nowhere."""

            def _slots(self, horizon, action_dim):
                first, count = super()._slots(horizon, action_dim)
                return first, count // 2

        class Later(BinningTokenizer):
            """Ids begin at 5."""

            @property
            def vocab_size(self):
                return super().vocab_size + 5

            def _first_ids(self):
                return super()._first_ids() + 5

            def _encode(self, chunks):
                return super()._encode(chunks) + 5

        class Apart(BinningTokenizer):
            """Every dim has ids of its own, whatever the parameter says."""

            def _shares_ids(self):
                return False

        class Rough(FASTTokenizer):
            """Only frequency 0."""

            def _coefficients(self, chunks):
                found = super()._coefficients(chunks)
                found[:, chunks.shape[2] :] = 0
                return found

        plain = BinningTokenizer(bins=16).fit(ACTIONS)
        narrow, later, apart = (kind(bins=16).fit(ACTIONS) for kind in (Narrow, Later, Apart))
        ids = plain.encode(ACTIONS)
        with pytest.raises(TokenError):
            narrow.decode(ids)
        np.testing.assert_array_equal(later.encode(ACTIONS), ids + 5)
        np.testing.assert_array_equal(later.decode(ids + 5), plain.decode(ids))
        expected = BinningTokenizer(bins=16, shared_ids=False).fit(ACTIONS)
        np.testing.assert_array_equal(apart.encode(ACTIONS), expected.encode(ACTIONS))
        np.testing.assert_array_equal(apart.decode(expected.encode(ACTIONS)), plain.decode(ids))
        rough = Rough(horizon=5).fit(ACTIONS)
        decoded = rough.decode(rough.encode(ACTIONS))
        np.testing.assert_allclose(decoded, np.repeat(decoded[:, :1], 5, 1), atol=1e-6)

    def test_steps_of_codebook_families_count_too(self):
        class LaterWords(KMeansTokenizer):
            def _first_ids(self):
                return [first + 5 for first in super()._first_ids()]

        class FewLevels(ResidualVQTokenizer):
            def _slots(self, horizon, action_dim):
                first, count = super()._slots(horizon, action_dim)
                return first, count // 2

        words = LaterWords(codebook_size=8).fit(ACTIONS)
        ids = KMeansTokenizer(codebook_size=8).fit(ACTIONS).encode(ACTIONS)
        np.testing.assert_array_equal(words.encode(ACTIONS), ids + 5)
        np.testing.assert_array_equal(words.decode(ids + 5), words.try_decode(ids + 5)[0])
        few = FewLevels(codebook_size=8).fit(ACTIONS)
        with pytest.raises(TokenError):
            few.decode(few.encode(ACTIONS))

    @pytest.mark.parametrize("kind", [BinningTokenizer, FASTTokenizer, KMeansTokenizer, ResidualVQTokenizer])
    def test_another_range_is_followed(self, kind):
        actions = np.clip(ACTIONS, -1, 1)
        tokenizer = kind(horizon=5, range="unit").fit(actions)
        ids = tokenizer.encode(actions)
        tokenizer.range = OpenRange(2 * tokenizer.range.low, 2 * tokenizer.range.high)  # it maps nothing
        np.testing.assert_array_equal(tokenizer.encode(actions), ids)
        np.testing.assert_array_equal(tokenizer.decode(ids), tokenizer.try_decode(ids)[0])

    @pytest.mark.parametrize(("kind", "name"), [(KMeansTokenizer, "codebook_0"), (ResidualVQTokenizer, "mean")])
    def test_decoding_uses_the_buffers_as_they_are(self, kind, name):
        tokenizer = kind(horizon=5).fit(ACTIONS)
        ids = tokenizer.encode(ACTIONS)
        before = tokenizer.decode(ids)
        tokenizer.get_buffer(name).data.add_(0.25)  # no counter tells
        after = tokenizer.decode(ids)
        assert (after != before).any()
        np.testing.assert_array_equal(after, tokenizer.try_decode(ids)[0])

    def test_tables_follow_buffers_changed_in_place(self):
        """As averages of weights and broadcasts between processes change them."""
        changes = {
            "binning": lambda t: t.centres.mul_(0.5),
            "fast": lambda t: t.merges[:2].copy_(t.merges[:2].flip(0)),  # both join symbols
            "kmeans": lambda t: t.get_buffer("codebook_0").copy_(t.get_buffer("codebook_0").flip(0)),
            "residual_vq": lambda t: t.codebooks.copy_(t.codebooks.flip(1)),
        }
        seen = set()
        for tokenizer in families():
            change = changes.get(type(tokenizer).tokenizer_type)
            if change is None:
                continue
            seen.add(type(tokenizer).tokenizer_type)
            fitted = tokenizer.fit(ACTIONS)
            ids = fitted.encode(ACTIONS)
            fitted.decode(ids)
            change(fitted)
            fresh = copy.deepcopy(fitted)  # has no tables
            np.testing.assert_array_equal(fitted.encode(ACTIONS), fresh.encode(ACTIONS))
            np.testing.assert_array_equal(fitted.decode(ids), fresh.decode(ids))
            np.testing.assert_array_equal(fitted.decode(ids, errors="repair"), fresh.decode(ids, errors="repair"))
            assert not np.array_equal(fitted.encode(ACTIONS), ids) or isinstance(fitted, BinningTokenizer)
        assert seen == set(changes)

    @pytest.mark.parametrize("strategy", ["uniform", "quantile"])
    def test_centres_changed_in_place(self, strategy):
        fitted = BinningTokenizer(bins=16, strategy=strategy).fit(ACTIONS)
        ids = fitted.encode(ACTIONS)
        before = fitted.decode(ids)
        fitted.centres.mul_(0.5)
        after = fitted.decode(ids)
        assert np.abs(after - before).max() > 0.1
        np.testing.assert_array_equal(after, fitted.decode(ids, errors="repair"))
        fitted.edges.copy_(torch.sort(fitted.edges * 0.5).values)
        np.testing.assert_array_equal(fitted.encode(ACTIONS), copy.deepcopy(fitted).encode(ACTIONS))

    def test_tables_are_built_once(self):
        fitted = BinningTokenizer(bins=16).fit(ACTIONS)
        first = fitted._tables()
        fitted.decode(fitted.encode(ACTIONS))
        assert fitted._tables() is first

    def test_tensors_of_inference_mode_have_tables(self):
        with torch.inference_mode():
            for tokenizer in families()[:-1]:
                fitted = tokenizer.fit(ACTIONS)
                ids = fitted.encode(ACTIONS)
                np.testing.assert_array_equal(fitted.decode(ids), fitted.decode(ids, errors="repair"))

    def test_tables_follow_the_tensors(self):
        """A state dict loaded into a tokenizer that has already encoded, and pickles, replace what was built."""
        others = {"edges": lambda t: t / 2, "codebook_0": lambda t: t.flip(0), "codebooks": lambda t: t.flip(1)}
        for tokenizer in families()[:-1]:
            fitted = tokenizer.fit(ACTIONS)
            ids, state = fitted.encode(ACTIONS), fitted.state_dict()
            changed = {name: others.get(name, torch.clone)(tensor) for name, tensor in state.items()}
            fitted.load_state_dict(changed)
            expected = fitted.encode(ACTIONS)
            assert not np.array_equal(expected, ids)
            copied = copy.deepcopy(fitted)
            assert copied._tables_cache is None
            np.testing.assert_array_equal(copied.encode(ACTIONS), expected)


class TestProvenance:
    def test_says_what_was_fitted_on(self):
        other = smooth_episodes(4, action_dim=3, key="b", seed=5)
        sample = ChunkSample(k=50, horizon=5).add(EPISODES).add(other)
        provenance = BinningTokenizer().fit(sample).provenance
        count = sum(len(actions) - 4 for actions in EPISODES.actions)
        assert provenance["library"] == f"action-tokenizers {action_tokenizers.__version__}"
        assert provenance["sources"] == ["smooth_episodes"]
        assert provenance["keys"] == {"b": sum(len(a) - 4 for a in other.actions), "default": count}
        assert (provenance["fps"], provenance["chunks"], provenance["sample"]) == (20.0, 50, sample.digest())
        assert json.loads(json.dumps(dict(provenance))) == dict(provenance)

    def test_changes_with_the_data(self):
        one, other = (BinningTokenizer(horizon=5).fit(EPISODES[rows]).provenance for rows in ([0, 1], [0, 2]))
        assert one["sample"] != other["sample"]


class TestIds:
    def test_errors_say_where_and_why(self):
        tokenizer = BinningTokenizer(bins=4, shared_ids=False, range="minmax").fit(
            smooth_chunks(50, 2, 2, gripper=False)
        )
        ids = np.tile([0, 4, 1, 5], (3, 1))
        for row, problem in {
            (0, 4, 4, 5): "id 4 at position 2, which cannot stand there",
            (0, 4, 1, 8): "id 8 at position 3",
            (0, 4, 1, -7): "id -7 at position 3",
        }.items():
            ids[1] = row
            with pytest.raises(TokenError, match=rf"{problem}.*row 1.*try_decode"):
                tokenizer.decode(ids)
        with pytest.raises(TokenError, match=r"an end after 3"):
            tokenizer.decode([[0, 4, 1]])
        with pytest.raises(TokenError, match=r"1 more after the 4"):
            tokenizer.decode([[0, 4, 1, 5, 0]])
        for nothing in ([], [[]], np.empty((1, 0), np.int64)):
            with pytest.raises(TokenError, match="an end after 0"):
                tokenizer.decode(nothing)
        for other in ([[0.0, 4.0]], [["a"]], None, 5, [[True, False]], [[0, 4, 1, 5], "x"]):
            with pytest.raises(TokenError, match="expected"):
                tokenizer.decode(other)

    def test_of_different_lengths_are_filled_up(self):
        tokenizer = FASTTokenizer(vocab_size=256).fit(ACTIONS)
        ids = tokenizer.encode(ACTIONS)
        rows = [row[row != tokenizer.pad_id].tolist() for row in ids]
        assert len({len(row) for row in rows}) > 1
        np.testing.assert_array_equal(tokenizer.decode(rows), tokenizer.decode(ids))
        np.testing.assert_array_equal(tokenizer.decode([torch.tensor(row) for row in rows]), tokenizer.decode(ids))
        longer = np.pad(ids, ((0, 0), (0, 5)), constant_values=tokenizer.pad_id)
        np.testing.assert_array_equal(tokenizer.decode(longer), tokenizer.decode(ids))
        _, valid = BinningTokenizer(bins=4).fit(ACTIONS).try_decode([[0] * 15, [0] * 14])
        assert valid.tolist() == [True, False]

    def test_nothing_may_follow_a_pad(self):
        tokenizer = FASTTokenizer(vocab_size=256).fit(ACTIONS)
        row = tokenizer.encode(ACTIONS[:1])[0]
        pad = tokenizer.pad_id
        for damaged in ([pad, *row], [row[0], pad, *row[1:]], [*row, pad, row[0]]):
            assert not tokenizer.try_decode(damaged)[1]
            with pytest.raises(TokenError):
                tokenizer.decode(damaged)
        assert tokenizer.try_decode([*row, pad, pad])[1]

    def test_however_large_are_flagged(self):
        for tokenizer in families():
            tokenizer.fit(ACTIONS)
            for huge in (2**63 - 1, -(2**63), 2**32, 2**31, -(2**31) - 1):
                actions, valid = tokenizer.try_decode([[huge, 0, 0]])
                assert not valid.any()
                assert np.isfinite(actions).all()

    @pytest.mark.parametrize("ids", [[[2**64 - 1, 0, 0]], [[2**70, 0, 0]], np.array([[2**64 - 1, 2**63]], np.uint64)])
    def test_beyond_int64_are_flagged_too(self, ids):
        """`try_decode`: whatever integers come, it does not raise."""
        actions, valid = BinningTokenizer(bins=4).fit(ACTIONS).try_decode(ids)
        assert not valid.any()
        assert np.isfinite(actions).all()


class TestSubclasses:
    def test_register_by_name(self):
        assert tokenizer_class("toy_composite") is CompositeTokenizer
        assert CompositeTokenizer.tokenizer_type == "toy_composite"
        assert known_types()["toy_composite"] == "tests.fakes.composite:CompositeTokenizer"

    def test_without_a_name_are_not_registered(self):
        before = known_types()

        class Nameless(BinningTokenizer):
            pass

        assert known_types() == before
        assert Nameless.tokenizer_type == "binning"

    def test_may_not_take_a_name(self):
        with pytest.raises(ActionTokenizerError, match="'binning' is already"):

            class Impostor(BinningTokenizer, name="binning"):
                pass

        with pytest.raises(UnknownTokenizerError, match="toy_composite"):
            tokenizer_class("no such type")

    def test_must_write_the_hooks(self):
        class Empty(ActionTokenizer):
            pass

        with pytest.raises(TypeError, match="abstract"):
            Empty()

    def test_call_is_encode(self):
        for tokenizer in families():
            tokenizer.fit(ACTIONS)
            np.testing.assert_array_equal(tokenizer(ACTIONS), tokenizer.encode(ACTIONS))
            assert not tokenizer.encode(torch.from_numpy(ACTIONS)).requires_grad


class TestComposite:
    """Tokenizers made of tokenizers, as the toy of tests/fakes shows them."""

    def make(self):
        return CompositeTokenizer(
            parts=[FASTTokenizer(vocab_size=160), BinningTokenizer(bins=16)], dims=[[0, 1, 2], [3]]
        )

    def test_lengths_vary_with_the_first_part(self):
        actions = smooth_chunks(80, 6, 4)
        tokenizer = self.make().fit(actions)
        ids = tokenizer.encode(actions)
        lengths = tokenizer.length(ids)
        alone = FASTTokenizer(vocab_size=160).fit(actions[..., :3])
        np.testing.assert_array_equal(lengths, alone.length(alone.encode(actions[..., :3])) + 6)
        assert len(set(lengths.tolist())) > 2
        assert tokenizer.vocab_size == alone.vocab_size - 1 + 2 + 1
        np.testing.assert_array_equal(tokenizer.quantize(actions)[..., :3], alone.quantize(actions[..., :3]))
        np.testing.assert_array_equal(tokenizer.quantize(actions)[..., 3], actions[..., 3])

    def test_stores_its_parts_where_the_format_reserves_them(self, tmp_path):
        tokenizer = self.make().fit(smooth_chunks(80, 6, 4))
        folder = tokenizer.save_pretrained(tmp_path / "composite")
        config = json.loads((folder / "config.json").read_text())
        parts = config["params"]["parts"]
        assert [set(part) for part in parts] == [{"tokenizer_type", "params", "fitted"}] * 2
        assert [part["tokenizer_type"] for part in parts] == ["fast", "binning"]
        assert parts[0]["fitted"]["vocab_size"] + parts[1]["fitted"]["vocab_size"] == tokenizer.vocab_size
        assert {"parts.0.merges", "parts.1.centres", "range.low"} <= set(tokenizer.state_dict())
        loaded = ActionTokenizer.from_pretrained(folder)
        assert type(loaded) is CompositeTokenizer
        actions = smooth_chunks(20, 6, 4, seed=2)
        np.testing.assert_array_equal(loaded.encode(actions), tokenizer.encode(actions))

    def test_parts_given_stay_unfitted(self):
        parts = [FASTTokenizer(vocab_size=160), BinningTokenizer(bins=16)]
        tokenizer = CompositeTokenizer(parts=parts, dims=[[0, 1, 2], [3]]).fit(smooth_chunks(80, 6, 4))
        assert not any(part.is_fitted for part in parts)
        assert tokenizer.get_params()["parts"] is parts


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_every_family_encode_after_the_parent(start):
    actions = chunks(smooth_episodes(20, action_dim=4), 8).actions
    tokenizers = [*families(), TestComposite().make()]
    encode_in_workers([tokenizer.fit(actions) for tokenizer in tokenizers], actions[:1600], start)


def test_another_process_gives_the_same_ids(tmp_path):
    actions = smooth_chunks(500, 8, 4)
    encode_in_another_process([tokenizer.fit(actions) for tokenizer in families()], actions, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", [BinningTokenizer, KMeansTokenizer, ResidualVQTokenizer, FASTTokenizer])
def test_ten_thousand_chunks_of_a_real_robot_are_allowed_and_repaired(family):
    data = Path(__file__).resolve().parents[2] / "shared" / "data" / "g1_inspire_bottle"
    if not data.is_dir():
        pytest.skip("the recorded data beside the repository are not here")
    train, held_out = Episodes.load(data).split(0.35, seed=0)
    sample = ChunkSample(8000).add(train, 8)
    tokenizer = family(horizon=8).fit(sample)
    actions = ChunkSample(10_000).add(held_out, 8).actions
    assert len(actions) == 10_000
    accept_allowed(tokenizer, actions, samples=10_000)
    accept_repair(tokenizer, sample.actions, actions[:2000])


def test_a_key_without_a_chunk_in_the_sample_is_refused():
    many, few = (Episodes(list(ACTIONS[:n]), key=key, source=key) for n, key in ((60, "many"), (1, "few")))
    sample = ChunkSample(5).add(many, 2).add(few, 5 - 3)
    if not sample.unsampled_keys:
        pytest.fail("expected a sample that lost a key; choose another seed")
    with pytest.raises(ActionValueError, match=r"none of \['few'\]"):
        BinningTokenizer(horizon=2).fit(sample)


@pytest.mark.parametrize("tokenizer", families(), ids=ids_of(families()))
def test_a_default_device_changes_nothing(tokenizer, tmp_path):
    """transformers builds policies under torch.device("meta"), scripts set "cuda"."""
    fitted = clone(tokenizer).fit(ACTIONS)
    ids = fitted.encode(ACTIONS)
    fitted.save_pretrained(tmp_path / "t")
    with torch.device("meta"):
        under = clone(tokenizer).fit(ACTIONS)
        loaded = ActionTokenizer.from_pretrained(tmp_path / "t")
        results = [
            (t.encode(ACTIONS), t.decode(ids), t.try_decode(ids[:, :2])[0], t.allowed(ids[:, :1]), t.bits(ids))
            for t in (fitted, under, loaded)
        ]
        listed = loaded.encode([ACTIONS[0], ACTIONS[1]])
    expected = (ids, fitted.decode(ids), fitted.try_decode(ids[:, :2])[0], fitted.allowed(ids[:, :1]), fitted.bits(ids))
    for result in results:
        for a, b in zip(result, expected, strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(listed, fitted.encode([ACTIONS[0], ACTIONS[1]]))


def test_lists_may_hold_masks_for_some_chunks():
    tokenizer = BinningTokenizer(bins=16).fit(ACTIONS)
    wild = ACTIONS[1].copy()
    wild[3:] = 9
    mask = np.arange(5) >= 3
    ids = tokenizer.encode([ACTIONS[0], wild], action_is_pad=[None, mask])
    np.testing.assert_array_equal(ids[0], tokenizer.encode(ACTIONS[0]))
    np.testing.assert_array_equal(ids[1], tokenizer.encode(wild, action_is_pad=mask))
    with pytest.raises(ActionShapeError, match="one mask or None per chunk, 2, got 1"):
        tokenizer.encode([ACTIONS[0], wild], action_is_pad=[mask])
    np.testing.assert_allclose(
        tokenizer.clip_report([ACTIONS[0], ACTIONS[1]]), tokenizer.clip_report(ACTIONS[:2]), atol=1e-12
    )


def test_a_changed_parameter_list_does_not_change_a_fitted_tokenizer():
    groups = [[0, 1], [2]]
    tokenizer = KMeansTokenizer(codebook_size=8, groups=groups).fit(ACTIONS)
    before = tokenizer.quantize(ACTIONS)
    groups[0], groups[1] = [2, 1], [0]
    np.testing.assert_array_equal(tokenizer.quantize(ACTIONS), before)


class TestForPolicyAuthors:
    """What a loss, a collate function and a data loader need to know about ids."""

    @every_family
    def test_pad_mask_counts_the_ids(self, tokenizer):
        fitted = clone(tokenizer).set_params(horizon=None).fit(ACTIONS)
        ids = fitted.encode(ACTIONS)
        mask = fitted.pad_mask(ids)
        assert mask.dtype == bool
        assert (mask.sum(-1) == fitted.length(ids)).all()
        assert (fitted.pad_mask(torch.as_tensor(ids)).numpy() == mask).all()

    def test_collate_pads_to_the_longest(self):
        fitted = FASTTokenizer(vocab_size=200).fit(ACTIONS)
        rows = [fitted.encode(chunk) for chunk in ACTIONS[:7]]
        ids, mask = fitted.collate(rows)
        assert torch.equal(ids, torch.as_tensor(fitted.encode(ACTIONS[:7])))
        assert mask.sum(1).tolist() == [len(row) for row in rows]
        assert torch.equal(fitted.collate([torch.as_tensor(row) for row in rows])[0], ids)
        assert torch.equal(fitted.collate([row.tolist() for row in rows])[0], ids)

    @pytest.mark.parametrize("odd", [-1, 10**6])
    def test_collate_refuses_ids_of_another_tokenizer(self, odd):
        fitted = FASTTokenizer(vocab_size=200).fit(ACTIONS)
        rows = [fitted.encode(chunk).tolist() for chunk in ACTIONS[:3]]
        rows[2][1] = odd
        with pytest.raises(TokenError, match=f"got {odd} in row 2, place 1: are they another"):
            fitted.collate(rows)

    def test_collate_refuses_cut_rows_where_nothing_is_padded(self):
        fitted = BinningTokenizer(bins=16).fit(ACTIONS)
        ids, mask = fitted.collate(list(fitted.encode(ACTIONS[:3])))
        assert ids.shape == mask.shape == (3, 15)
        assert mask.all()
        with pytest.raises(TokenError, match="one length"):
            fitted.collate([fitted.encode(ACTIONS[0]), fitted.encode(ACTIONS[1])[:-1]])

    def test_places_of_bins(self):
        fitted = BinningTokenizer(bins=16, shared_ids=False).fit(ACTIONS)
        places = fitted.locate(fitted.encode(ACTIONS[0]))
        assert places.tolist() == [[step, dim, 0] for step in range(5) for dim in range(3)]

    def test_places_of_codewords(self):
        fitted = KMeansTokenizer(codebook_size=8, groups=[[0, 2], [1]]).fit(ACTIONS)
        places = fitted.locate(fitted.encode(ACTIONS[0]))
        assert places.tolist() == [[step, dim, 0] for step in range(5) for dim in (-1, 1)]
        whole = KMeansTokenizer(codebook_size=8, scope="chunk").fit(ACTIONS)
        assert whole.locate(whole.encode(ACTIONS[0])).tolist() == [[-1, -1, 0]]

    def test_places_of_levels(self):
        fitted = ResidualVQTokenizer(levels=3, codebook_size=8).fit(ACTIONS)
        places = fitted.locate(fitted.encode(ACTIONS[:2]))
        assert places.shape == (2, 3, 3)
        assert (places[:, :, 2] == [0, 1, 2]).all()
        assert (places[:, :, :2] == -1).all()

    @pytest.mark.parametrize("vocab_size", [60, 200])  # 60: coefficients spelled with two digits
    def test_places_of_frequencies(self, vocab_size):
        fitted = FASTTokenizer(vocab_size=vocab_size).fit(ACTIONS)
        ids = fitted.encode(ACTIONS)
        places = fitted.locate(ids)
        assert (places[~fitted.pad_mask(ids)] == -1).all()
        for row, place in zip(ids, places, strict=True):
            n = int(fitted.length(row))
            assert (place[:n, 0] == -1).all()
            level = place[:n, 2]
            assert level[0] == 0
            assert (np.diff(level) >= 0).all()
            assert level.max() < 5
            # the place where an id begins follows from how much the prefix before it says
            for p in range(n):
                said = int(fitted._tables().span[row[:p]].sum())
                assert level[p] == said // 3
                assert place[p, 1] in (-1, said % 3)

    def test_a_place_that_cannot_be(self):
        fitted = BinningTokenizer(bins=16, shared_ids=False).fit(ACTIONS)
        ids = fitted.encode(ACTIONS[0])
        ids[4] = ids[5]
        assert fitted.locate(ids)[:4].tolist() == [[0, 0, 0], [0, 1, 0], [0, 2, 0], [1, 0, 0]]
        assert (fitted.locate(ids)[4:] == -1).all()

    def test_max_tokens_for_the_fitted_shape(self):
        fitted = FASTTokenizer(vocab_size=200).fit(ACTIONS)
        assert fitted.max_tokens_for() == fitted.max_tokens_for(5) == fitted.max_tokens_for(5, 3) == fitted.max_tokens
        with pytest.raises(ActionShapeError, match="action_dim 3, got 4"):
            fitted.max_tokens_for(5, 4)


def test_range_of_is_what_a_fit_learns():
    sample = ChunkSample().add(EPISODES, 5)
    for strategy in ("quantile", "minmax", "meanstd", ["unit", "minmax", "quantile"]):
        fitted = BinningTokenizer(horizon=5, range=strategy).fit(sample)
        found = range_of(sample, strategy)
        assert torch.equal(found.low, fitted.range.low)
        assert torch.equal(found.high, fitted.range.high)


def test_a_shape_beyond_memory_is_refused():
    fitted = BinningTokenizer(bins=4, horizon=None).fit(EPISODES[:4].actions)
    with pytest.raises(ActionShapeError, match="at most"):
        fitted.try_decode([1, 2], horizon=1 << 40)


def test_provenance_tells_what_broken_files_took(tmp_path):
    sample = ChunkSample().add(Episodes([np.linspace(-1, 1, 20)[:, None]]), 4)
    assert "skipped_shards" not in BinningTokenizer().fit(sample).provenance
    sample.skipped_shards, sample.lost_episodes = ("file-3.parquet",), 2
    tokenizer = BinningTokenizer().fit(sample)
    assert tokenizer.provenance["skipped_shards"] == ["file-3.parquet"]
    assert tokenizer.provenance["lost_episodes"] == 2
    folder = tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert ActionTokenizer.from_pretrained(folder).provenance == tokenizer.provenance
