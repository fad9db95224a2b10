"""LeRobot's steps and ours, and the call sites of openpi, starVLA and UniVLA, with a tokenizer of every family."""

import copy
import importlib
import json
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from sklearn.base import clone

import action_tokenizers.integrations
from action_tokenizers import (
    ActionShapeError,
    ActionTokenizer,
    ActionValueError,
    BinningTokenizer,
    ChunkSample,
    FASTTokenizer,
    FormatError,
    KMeansTokenizer,
    NotFittedError,
    Relative,
    ResidualVQTokenizer,
    TokenError,
)
from action_tokenizers.data.synthetic import smooth_chunks, smooth_episodes
from action_tokenizers.integrations import lerobot as installed_or_not
from tests.fakes import lerobot as fake
from tests.fakes.call_sites import ACTION_TOKEN_MIN, LAST_UNIVLA_ID, OpenPi, StarVLA, robot_actions, univla_step
from tests.fakes.composite import CompositeTokenizer

T, D = 8, 3
ACTIONS = smooth_chunks(80, T, D)
BATCH = torch.from_numpy(ACTIONS[:6])

FAMILIES = {
    "binning": BinningTokenizer(bins=16),
    "kmeans": KMeansTokenizer(codebook_size=8),
    "kmeans of chunks": KMeansTokenizer(codebook_size=8, scope="chunk"),
    "residual_vq": ResidualVQTokenizer(levels=2, codebook_size=8),
    "fast": FASTTokenizer(vocab_size=200),
}
FITTED = {name: clone(tokenizer).fit(ACTIONS) for name, tokenizer in FAMILIES.items()}
RELEASES = pytest.mark.parametrize("release", [fake.OLD, fake.NEW], ids=["0.4.4", "0.6.2"])


@pytest.fixture(params=[*FAMILIES, *(f"{name}, loaded" for name in FAMILIES)])
def tokenizer(request, tmp_path):
    name, _, loaded = request.param.partition(", ")
    if not loaded:
        return copy.deepcopy(FITTED[name])
    return ActionTokenizer.from_pretrained(FITTED[name].save_pretrained(tmp_path / "tokenizer"))


@pytest.fixture
def fast():
    return copy.deepcopy(FITTED["fast"])


@pytest.fixture
def binning():
    return copy.deepcopy(FITTED["binning"])


def equal_ids(given, wanted):
    return torch.equal(torch.as_tensor(given), torch.as_tensor(wanted))


class TestLerobotsOwnStep:
    @RELEASES
    def test_wraps_the_ids_of_each_chunk(self, tokenizer, release):
        step = fake.ActionTokenizerProcessorStep(action_tokenizer_input_object=tokenizer, release=release)
        data = step({"action": BATCH})["complementary_data"]
        tokens, mask = data["action.tokens"], data["action.token_mask"]
        assert tokens.shape == mask.shape == (len(BATCH), 256)
        before = [2, *step.text.encode("Action: ", add_special_tokens=False)]
        after = step.text.encode("|")
        for row, used, chunk in zip(tokens, mask, BATCH, strict=True):
            given = row[used].tolist()
            assert given[: len(before)] == before
            assert given[-2:] == after
            assert not row[~used].any()
            ids = step.to_text(torch.tensor(given[len(before) : -2]))
            assert equal_ids(ids, tokenizer.encode(chunk))
            assert equal_ids(tokenizer.decode(ids), tokenizer.quantize(chunk))
        assert ("action.code_token_mask" in data) == (release >= fake.NEW)

    def test_sees_no_pad_although_the_chunks_differ_in_length(self, fast):
        step = fake.ActionTokenizerProcessorStep(action_tokenizer_input_object=fast)
        data = step({"action": BATCH})["complementary_data"]
        codes = data["action.code_token_mask"]
        assert len(codes.sum(-1).unique()) > 1
        assert not (step.to_text(data["action.tokens"][codes]) == fast.pad_id).any()
        assert (fast.encode(BATCH) == fast.pad_id).any()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_takes_any_precision(self, tokenizer, dtype):
        step = fake.ActionTokenizerProcessorStep(action_tokenizer_input_object=tokenizer)
        data = step({"action": BATCH.to(dtype)})["complementary_data"]
        ids = step.to_text(data["action.tokens"][0][data["action.code_token_mask"][0]])
        assert equal_ids(ids, tokenizer.encode(BATCH[0].to(dtype)))

    def test_cut_off_rows_are_refused_and_never_become_zeros(self, fast):
        step = fake.ActionTokenizerProcessorStep(action_tokenizer_input_object=fast, max_action_tokens=16)
        data = step({"action": BATCH})["complementary_data"]
        cut = step.to_text(data["action.tokens"][0][data["action.code_token_mask"][0]])
        with pytest.raises(TokenError, match="before the chunk is complete"):
            fast.decode(cut)
        strict = fake.ActionTokenizerProcessorStep(
            action_tokenizer_input_object=fast, max_action_tokens=16, allow_truncation=False
        )
        with pytest.raises(ValueError, match="exceed"):
            strict({"action": BATCH})

    def test_comes_back_from_a_pipeline_with_the_tokenizer(self, tokenizer, tmp_path):
        step = fake.ActionTokenizerProcessorStep(action_tokenizer_input_object=tokenizer)
        fake.Pipeline([step]).save_pretrained(tmp_path / "saved")
        again = fake.Pipeline.from_pretrained(
            tmp_path / "saved", registry={"action_tokenizer_processor": fake.ActionTokenizerProcessorStep}
        )
        assert type(again.steps[0].tokenizer) is type(tokenizer)
        wanted = step({"action": BATCH})["complementary_data"]["action.tokens"]
        assert equal_ids(again({"action": BATCH})["complementary_data"]["action.tokens"], wanted)

    def test_of_old_loses_the_object_and_takes_a_folder_instead(self, tokenizer, tmp_path):
        step = fake.ActionTokenizerProcessorStep(action_tokenizer_input_object=tokenizer, release=fake.OLD)
        fake.Pipeline([step], fake.OLD).save_pretrained(tmp_path / "saved")
        folder = tokenizer.save_pretrained(tmp_path / "beside")
        registry = {"action_tokenizer_processor": fake.ActionTokenizerProcessorStep}
        with pytest.raises(ValueError, match="a name or an object"):
            fake.Pipeline.from_pretrained(tmp_path / "saved", registry=registry, release=fake.OLD)
        named = {"action_tokenizer_processor": {"action_tokenizer_name": str(folder)}}
        again = fake.Pipeline.from_pretrained(tmp_path / "saved", named, registry, fake.OLD)
        wanted = step({"action": BATCH})["complementary_data"]["action.tokens"]
        assert equal_ids(again({"action": BATCH})["complementary_data"]["action.tokens"], wanted)

    def test_cannot_be_decoded_by_pi0_fast(self, tokenizer):
        """The limit that the module states: what that policy reaches for is no part of our tokenizers."""
        assert not any(hasattr(tokenizer, name) for name in ("bpe_tokenizer", "min_token"))


@pytest.fixture
def steps(monkeypatch):
    """Our module as it is where LeRobot can be imported."""
    package, processor = ModuleType("lerobot"), ModuleType("lerobot.processor")
    processor.ProcessorStep = fake.ProcessorStep
    monkeypatch.setitem(sys.modules, "lerobot", package)
    monkeypatch.setitem(sys.modules, "lerobot.processor", processor)
    return import_anew(monkeypatch)


def import_anew(monkeypatch):
    monkeypatch.delitem(sys.modules, installed_or_not.__name__)
    monkeypatch.setattr(action_tokenizers.integrations, "lerobot", installed_or_not)
    return importlib.import_module(installed_or_not.__name__)


class TestBothSteps:
    @RELEASES
    def test_are_found_by_class_path_with_config_and_state(self, steps, monkeypatch, tokenizer, release, tmp_path):
        made = [steps.ActionEncodeStep(tokenizer), steps.ActionDecodeStep(tokenizer, source="action.tokens")]
        pipeline = fake.Pipeline(made, release)
        pipeline.save_pretrained(tmp_path / "saved")
        entries = json.loads((tmp_path / "saved" / "pipeline.json").read_text())["steps"]
        assert [entry["class"] for entry in entries] == [
            "action_tokenizers.integrations.lerobot.ActionEncodeStep",
            "action_tokenizers.integrations.lerobot.ActionDecodeStep",
        ]
        assert {path.suffix for path in (tmp_path / "saved").iterdir()} == {".json", ".safetensors"}

        import_anew(monkeypatch)
        again = fake.Pipeline.from_pretrained(tmp_path / "saved", release=release)
        assert type(again.steps[0]) is not type(made[0])
        wanted, got = pipeline({"action": BATCH}), again({"action": BATCH})
        assert equal_ids(got["complementary_data"]["action.tokens"], tokenizer.encode(BATCH))
        assert equal_ids(got["action"], wanted["action"])
        assert equal_ids(got["action"], tokenizer.quantize(BATCH))
        assert [step.get_config() for step in again.steps] == [step.get_config() for step in made]
        features = {"action": {"action": (D,)}}
        assert again.transform_features(features) == features

    def test_carry_tokenizers_of_tokenizers(self, steps, tmp_path):
        parts = [FASTTokenizer(vocab_size=100), BinningTokenizer(bins=4)]
        whole = CompositeTokenizer(parts=parts, dims=[[0, 1], [2]]).fit(ACTIONS)
        fake.Pipeline([steps.ActionEncodeStep(whole)]).save_pretrained(tmp_path / "saved")
        again = fake.Pipeline.from_pretrained(tmp_path / "saved")
        assert equal_ids(again({"action": BATCH})["complementary_data"]["action.tokens"], whole.encode(BATCH))

    def test_keep_what_they_were_asked(self, steps, binning, tmp_path):
        decode = steps.ActionDecodeStep(
            binning, key="default", convert_relative=False, on_invalid="repair", source="x", horizon=T, action_dim=D
        )
        fake.Pipeline([decode]).save_pretrained(tmp_path / "saved")
        again = fake.Pipeline.from_pretrained(tmp_path / "saved", {"ActionDecodeStep": {"source": "y"}}).steps[0]
        assert again.get_config() == {**decode.get_config(), "source": "y"}
        assert (again.on_invalid, again.horizon, again.action_dim, again.key) == ("repair", T, D, "default")

    def test_made_from_a_config_wait_for_their_state(self, steps, binning):
        step = steps.ActionEncodeStep(**steps.ActionEncodeStep(binning).get_config())
        for use in (step.state_dict, lambda: step({"action": BATCH}), lambda: step.tokenizer):
            with pytest.raises(NotFittedError, match="load_state_dict"):
                use()
        with pytest.raises(FormatError, match="range"):
            step.load_state_dict({})
        step.load_state_dict(steps.ActionEncodeStep(binning).state_dict())
        assert equal_ids(step({"action": BATCH})["complementary_data"]["action.tokens"], binning.encode(BATCH))

    def test_refuse_the_state_of_another_tokenizer(self, steps, binning, tmp_path):
        """Also of one with the same shapes: a codebook under a foreign config would be silently wrong."""
        other = clone(binning).fit(ACTIONS * 2)
        step = steps.ActionEncodeStep(binning)
        step.load_state_dict(step.state_dict())
        with pytest.raises(FormatError, match="others"):
            step.load_state_dict(steps.ActionEncodeStep(other).state_dict())
        fake.Pipeline([step]).save_pretrained(tmp_path / "saved")
        with pytest.raises(FormatError, match="others"):
            fake.Pipeline.from_pretrained(tmp_path / "saved", {"ActionEncodeStep": {"tokenizer": other}})
        assert equal_ids(step.tokenizer.encode(BATCH), binning.encode(BATCH))

    def test_describe_the_tokenizer_as_it_is_now(self, steps, binning):
        step = steps.ActionEncodeStep(binning)
        binning.fit(ACTIONS[:40])
        again = steps.ActionEncodeStep(**step.get_config())
        again.load_state_dict(step.state_dict())
        assert equal_ids(again({"action": BATCH})["complementary_data"]["action.tokens"], binning.encode(BATCH))

    def test_refuse_what_is_no_fitted_tokenizer(self, steps):
        with pytest.raises(NotFittedError):
            steps.ActionEncodeStep(BinningTokenizer())
        with pytest.raises(ActionValueError, match="from_pretrained"):
            steps.ActionDecodeStep("some/folder")

    def test_leave_the_transition_they_were_given_alone(self, steps, binning):
        data = {"task": "pick"}
        given = {
            fake.TransitionKey.ACTION: BATCH,
            fake.TransitionKey.COMPLEMENTARY_DATA: data,
            fake.TransitionKey.OBSERVATION: None,
        }
        pipeline = fake.Pipeline(
            [steps.ActionEncodeStep(binning), steps.ActionDecodeStep(binning, source="action.tokens")]
        )
        got = pipeline(given)
        assert data == {"task": "pick"}
        assert given[fake.TransitionKey.ACTION] is BATCH
        assert set(got) == set(given)
        assert set(got[fake.TransitionKey.COMPLEMENTARY_DATA]) == {
            "task",
            "action.tokens",
            "action.token_mask",
            "action.valid",
        }

    def test_are_plain_where_lerobot_is_missing(self, monkeypatch, binning):
        monkeypatch.setitem(sys.modules, "lerobot", None)
        plain = import_anew(monkeypatch)
        step = plain.ActionEncodeStep(binning)
        assert equal_ids(step({"action": BATCH})["complementary_data"]["action.tokens"], binning.encode(BATCH))
        with pytest.raises(TypeError, match="must inherit"):
            fake.Pipeline([step])

    def test_work_in_the_lerobot_that_is_installed(self, binning, tmp_path):
        processor = pytest.importorskip("lerobot.processor")
        made = [
            installed_or_not.ActionEncodeStep(binning),
            installed_or_not.ActionDecodeStep(binning, source="action.tokens"),
        ]
        processor.DataProcessorPipeline(made, name="both").save_pretrained(tmp_path)
        again = processor.DataProcessorPipeline.from_pretrained(tmp_path, config_filename="both.json")
        got = again({"action": BATCH})
        assert equal_ids(got["action.tokens"], binning.encode(BATCH))
        assert equal_ids(got["action"], binning.quantize(BATCH))
        assert got["action.valid"].all()


class TestEncodeStep:
    def test_masks_the_pads_of_a_batch(self, steps, tokenizer):
        data = steps.ActionEncodeStep(tokenizer)({"action": BATCH})["complementary_data"]
        assert data["action.tokens"].dtype == torch.int64
        assert data["action.token_mask"].dtype == torch.bool
        for ids, mask, chunk in zip(data["action.tokens"], data["action.token_mask"], BATCH, strict=True):
            assert equal_ids(ids[mask], tokenizer.encode(chunk))
            assert set(ids[~mask].tolist()) <= {tokenizer.pad_id}

    def test_takes_one_chunk(self, steps, tokenizer):
        data = steps.ActionEncodeStep(tokenizer)({"action": BATCH[0]})["complementary_data"]
        assert equal_ids(data["action.tokens"], tokenizer.encode(BATCH[0]))
        assert data["action.token_mask"].all()

    def test_honours_padded_steps(self, steps, tokenizer):
        is_pad = torch.zeros(BATCH.shape[:2], dtype=torch.bool)
        is_pad[:, 5:] = True
        junk = torch.where(is_pad[..., None], torch.tensor(9.0), BATCH)
        step = steps.ActionEncodeStep(tokenizer)
        data = step({"action": junk, "complementary_data": {"action_is_pad": is_pad}})["complementary_data"]
        held = torch.cat([BATCH[:, :5], BATCH[:, 4:5].expand(-1, T - 5, -1)], 1)
        assert equal_ids(data["action.tokens"], tokenizer.encode(held))
        assert data["action_is_pad"] is is_pad

    def test_passes_a_transition_without_action(self, steps, binning):
        observed = {"observation": {"observation.state": torch.zeros(1, D)}, "action": None}
        assert steps.ActionEncodeStep(binning)(observed) == observed

    def test_takes_the_range_of_its_key(self, steps):
        here = smooth_episodes(6, length=(30, 60), action_dim=D, key="here")
        there = smooth_episodes(6, length=(30, 60), action_dim=D, key="there", seed=1)
        keyed = BinningTokenizer(horizon=T, bins=16).fit([here, there])
        data = steps.ActionEncodeStep(keyed, key="there")({"action": BATCH})["complementary_data"]
        assert equal_ids(data["action.tokens"], keyed.encode(BATCH, key="there"))
        with pytest.raises(ActionShapeError, match="here"):
            steps.ActionEncodeStep(keyed)({"action": BATCH})

    @pytest.mark.parametrize("action", [BATCH[0, 0], BATCH[None], {"shoulder.pos": 1.0}, BATCH.numpy()])
    def test_refuses_what_is_no_chunk(self, steps, binning, action):
        with pytest.raises(ActionShapeError, match=r"\(t, d\) or \(b, t, d\)"):
            steps.ActionEncodeStep(binning)({"action": action})

    def test_names_a_bad_value_and_a_bad_shape(self, steps, binning):
        step = steps.ActionEncodeStep(binning)
        bad = BATCH.clone()
        bad[2, 1, 0] = torch.nan
        with pytest.raises(ActionValueError, match="chunk 2, step 1, dim 0"):
            step({"action": bad})
        with pytest.raises(ActionShapeError, match=f"horizon {T}"):
            step({"action": BATCH[:, :-1]})


class TestDecodeStep:
    def test_returns_the_action_of_ids(self, steps, tokenizer):
        ids = tokenizer.encode(BATCH)
        step = steps.ActionDecodeStep(tokenizer)
        got = step({"action": ids})
        assert equal_ids(got["action"], tokenizer.decode(ids))
        assert got["complementary_data"]["action.valid"].tolist() == [True] * len(BATCH)
        one = step({"action": ids[0]})
        assert equal_ids(one["action"], tokenizer.decode(ids[0]))
        assert one["complementary_data"]["action.valid"].shape == ()

    def test_raises_on_an_undecodable_generation(self, steps, tokenizer):
        ids = tokenizer.encode(BATCH)
        ids[3, 0] = tokenizer.vocab_size + 5
        step = steps.ActionDecodeStep(tokenizer)
        with pytest.raises(TokenError, match="row 3"):
            step({"action": ids})
        assert step.valid is None
        with pytest.raises(TokenError):
            step({"action": ids[:, :0]})

    def test_repairs_and_says_so_where_asked(self, steps, tokenizer):
        ids = tokenizer.encode(BATCH)
        ids[3, 0] = tokenizer.vocab_size + 5
        step = steps.ActionDecodeStep(tokenizer, on_invalid="repair")
        got = step({"action": ids})
        wanted = [row != 3 for row in range(len(ids))]
        assert got["complementary_data"]["action.valid"].tolist() == wanted
        assert step.valid.tolist() == wanted
        assert equal_ids(got["action"], tokenizer.decode(ids, errors="repair"))
        assert bool(torch.isfinite(got["action"]).all())
        fake.Pipeline([step]).reset()
        assert step.valid is None
        empty = step({"action": ids[:, :0]})
        assert not empty["complementary_data"]["action.valid"].any()

    def test_never_keeps_the_flag_of_an_earlier_call(self, steps, binning):
        step = steps.ActionDecodeStep(binning)
        step({"action": binning.encode(BATCH)})
        assert step.valid.all()
        with pytest.raises(TokenError):
            step({"action": None})
        assert step.valid is None

    @pytest.mark.parametrize(
        ("action", "said"),
        [(None, "as a tensor"), ([[1, 2]], "as a tensor"), (torch.zeros(1, T * D), "integer ids")],
    )
    def test_refuses_what_are_no_ids(self, steps, binning, action, said):
        for policy in ("raise", "repair"):
            with pytest.raises(TokenError, match=said):
                steps.ActionDecodeStep(binning, on_invalid=policy)({"action": action})

    def test_needs_what_the_fit_left_open(self, steps):
        bare = BinningTokenizer(bins=8).fit(list(smooth_episodes(4, length=(30, 40), action_dim=D).actions))
        assert bare.horizon is None
        ids = bare.encode(BATCH)
        with pytest.raises(ActionShapeError, match="horizon="):
            steps.ActionDecodeStep(bare)({"action": ids})
        got = steps.ActionDecodeStep(bare, horizon=T)({"action": ids})
        assert equal_ids(got["action"], bare.decode(ids, horizon=T))

    def test_refuses_an_unknown_policy(self, steps, binning):
        with pytest.raises(ActionValueError, match="'raise' or 'repair'"):
            steps.ActionDecodeStep(binning, on_invalid="zeros")


STATE = torch.linspace(-1, 1, 6 * (D + 1)).reshape(6, D + 1)


def relative_tokenizer(mode):
    episodes = smooth_episodes(8, length=(30, 60), action_dim=D)
    sample = ChunkSample().add(episodes, T, relative=Relative(mode))
    return BinningTokenizer(bins=64, range="minmax").fit(sample)


class TestRelativeActions:
    def transition(self, **more):
        return {"action": BATCH, "observation": {"observation.state": STATE}, **more}

    def test_are_made_relative_to_the_state_and_absolute_again(self, steps):
        tokenizer = relative_tokenizer(("state", None, "state"))
        pipeline = fake.Pipeline(
            [steps.ActionEncodeStep(tokenizer), steps.ActionDecodeStep(tokenizer, source="action.tokens")]
        )
        reference = STATE[:, :D].numpy()
        wanted = tokenizer.relative.apply(BATCH.numpy(), reference)
        got = pipeline(self.transition())
        assert equal_ids(got["complementary_data"]["action.tokens"], tokenizer.encode(wanted))
        absolute = tokenizer.relative.invert(tokenizer.quantize(wanted), reference)
        assert np.array_equal(got["action"].numpy(), absolute)
        one = pipeline({"action": BATCH[0], "observation": {"observation.state": STATE[0]}})
        assert equal_ids(one["action"], got["action"][0])

    def test_to_the_previous_action_need_it_given(self, steps):
        tokenizer = relative_tokenizer("previous")
        step = steps.ActionEncodeStep(tokenizer)
        with pytest.raises(ActionValueError, match=r"action\.reference"):
            step(self.transition())
        before = STATE[:, 1:]
        data = step(self.transition(complementary_data={"action.reference": before}))["complementary_data"]
        wanted = tokenizer.relative.apply(BATCH.numpy(), before.numpy())
        assert equal_ids(data["action.tokens"], tokenizer.encode(wanted))

    def test_are_not_decoded_without_a_reference(self, steps):
        """As in LeRobot's post-processors, which see nothing but the action."""
        tokenizer = relative_tokenizer("state")
        ids = tokenizer.encode(BATCH)
        for policy in ("raise", "repair"):
            step = steps.ActionDecodeStep(tokenizer, on_invalid=policy)
            with pytest.raises(ActionValueError, match="convert_relative=False"):
                step({"action": ids})
            assert step.valid is None

    def test_are_left_to_other_steps_where_asked(self, steps):
        tokenizer = relative_tokenizer("state")
        encode = steps.ActionEncodeStep(tokenizer, convert_relative=False)
        ids = encode({"action": BATCH})["complementary_data"]["action.tokens"]
        assert equal_ids(ids, tokenizer.encode(BATCH))
        decode = steps.ActionDecodeStep(tokenizer, convert_relative=False)
        assert equal_ids(decode({"action": ids})["action"], tokenizer.decode(ids))

    @pytest.mark.parametrize(
        ("state", "error"),
        [
            (STATE[:, :2], ActionShapeError),
            (STATE[:5], ActionShapeError),
            (STATE[:, None], ActionShapeError),
            (torch.full((6, D), torch.inf), ActionValueError),
        ],
        ids=["narrow", "few", "history", "inf"],
    )
    def test_need_one_finite_state_per_chunk(self, steps, state, error):
        step = steps.ActionEncodeStep(relative_tokenizer("state"))
        with pytest.raises(error, match=r"observation\.state"):
            step({"action": BATCH, "observation": {"observation.state": state}})


class TestOpenPi:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_round_trip_unchanged(self, tokenizer, dtype):
        site = OpenPi(tokenizer)
        for chunk in ACTIONS[:6].astype(dtype):
            tokens, loss = site.tokenize("Pick it up", np.zeros(4), chunk)
            assert tokens.shape == loss.shape == (256,)
            got = site.extract_actions(tokens, action_horizon=T, action_dim=D)
            assert got.shape == (T, D)
            assert np.array_equal(got, tokenizer.quantize(chunk))
            generated = site.to_text(tokens[loss][len("Action: ") : -2])
            by_ids = tokenizer.decode([generated.tolist()], time_horizon=T, action_dim=D)[0]
            assert np.array_equal(by_ids, got)

    def test_one_chunk_without_a_batch(self, tokenizer):
        ids = tokenizer(ACTIONS[0])
        assert ids.ndim == 1
        assert np.array_equal(tokenizer.decode(ids, time_horizon=T, action_dim=D), tokenizer.quantize(ACTIONS[0]))

    def test_prompts_without_actions(self, fast):
        _, loss = OpenPi(fast).tokenize("go", np.zeros(2), None)
        assert not loss.any()

    def test_generations_it_would_answer_with_zeros_are_refused(self, fast):
        site = OpenPi(fast, max_len=64)
        tokens, loss = site.tokenize("Pick it up", np.zeros(4), ACTIONS[0])
        assert loss[-1], "cut off by max_len"
        with pytest.raises(TokenError, match="before the chunk is complete"):
            site.extract_actions(tokens, T, D)
        words = np.array(site.text.encode("Action: no idea|"))
        with pytest.raises(TokenError):
            site.extract_actions(words, T, D)

    def test_of_another_shape_are_refused(self, fast):
        tokens, _ = OpenPi(fast).tokenize("go", np.zeros(2), ACTIONS[0])
        with pytest.raises(ActionShapeError, match=f"horizon {T}"):
            OpenPi(fast).extract_actions(tokens, T + 1, D)
        with pytest.raises(ActionShapeError, match=f"action_dim {D}"):
            OpenPi(fast).extract_actions(tokens, T, D + 1)


class TestStarVLA:
    def test_single_chunks_round_trip(self, tokenizer):
        site = StarVLA(tokenizer)
        texts = [site.texts([chunk])[0] for chunk in ACTIONS[:6]]
        got = site.predict([[7, *robot_actions(text), 8] for text in texts])
        assert np.array_equal(got, tokenizer.quantize(ACTIONS[:6]))

    @pytest.mark.parametrize("rows", [[[]], [[], []]], ids=["one", "all"])
    def test_empty_generations_are_refused(self, tokenizer, rows):
        with pytest.raises(TokenError):
            StarVLA(tokenizer).predict([[7, 8] for _ in rows])

    def test_one_empty_generation_among_others_is_refused(self, tokenizer):
        text = StarVLA(tokenizer).texts([ACTIONS[0]])[0]
        with pytest.raises(TokenError):
            StarVLA(tokenizer).predict([robot_actions(text), [7, 8]])

    def test_empty_id_lists_are_marked(self, tokenizer):
        actions, valid = tokenizer.try_decode([[], tokenizer.encode(ACTIONS[0]).tolist()])
        assert valid.tolist() == [False, True]
        assert np.isfinite(actions).all()

    def test_writes_its_shape_onto_the_tokenizer(self, tokenizer):
        StarVLA(tokenizer).set_up(T, D)
        with pytest.raises(ActionShapeError, match=f"expected horizon {T}, got {T + 1}"):
            StarVLA(tokenizer).set_up(T + 1, D)
        assert (tokenizer.horizon, tokenizer.action_dim) == (T, D)

    def test_rows_of_different_lengths_are_told_apart_by_the_mask(self, fast):
        """A batch comes padded, as `encode` gives it; one chunk a call, or `pad_mask`, leaves the pads out."""
        alone = [robot_actions(StarVLA(fast).texts(chunk[None])[0]) for chunk in ACTIONS[:6]]
        assert alone == [[ACTION_TOKEN_MIN + i for i in fast.encode(chunk).tolist()] for chunk in ACTIONS[:6]]
        ids = fast(ACTIONS[:6])
        rows = [row[real].tolist() for row, real in zip(ids, fast.pad_mask(ids), strict=True)]
        assert alone == [[ACTION_TOKEN_MIN + i for i in row] for row in rows]


class TestUniVLA:
    def generated(self, tokenizer):
        ids = torch.as_tensor(tokenizer.encode(ACTIONS[:1]))
        return torch.cat([LAST_UNIVLA_ID - ids, torch.tensor([[151845]])], 1)

    def test_decodes_torch_ids(self, tokenizer):
        ids = LAST_UNIVLA_ID - self.generated(tokenizer)[:, :-1]
        got = tokenizer.decode(ids, time_horizon=T, action_dim=D)[0]
        assert np.array_equal(got.numpy(), tokenizer.quantize(ACTIONS[0]))

    def test_steps(self, tokenizer):
        """It assigns into the actions with numpy, so its ids go in as numpy."""
        action = univla_step(tokenizer, self.generated(tokenizer).numpy(), T, D, np.full(D, -2.0), np.full(D, 2.0))
        assert np.allclose(action[:, :-1], 2 * tokenizer.quantize(ACTIONS[0])[:, :-1], atol=1e-6)
        assert np.isin(action[:, -1], [-1, 1]).all()
