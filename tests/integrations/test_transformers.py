"""Constrained generation, and AutoProcessor: with the real transformers where it is installed."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from action_tokenizers import (
    ActionShapeError,
    ActionTokenizer,
    ActionValueError,
    BinningTokenizer,
    FASTTokenizer,
    KMeansTokenizer,
    ResidualVQTokenizer,
    TokenError,
)
from action_tokenizers.data.synthetic import smooth_chunks
from action_tokenizers.errors import MissingExtraError
from action_tokenizers.integrations.transformers import ActionLogitsProcessor, ActionProcessor, register
from action_tokenizers.vocabulary import ActionVocabulary

TEXT, END, PAD, BEGIN = 50, 2, 1, 3
ACTIONS = smooth_chunks(60, 4, 3)
FIXED = BinningTokenizer(bins=8).fit(ACTIONS)
OPEN = BinningTokenizer(bins=8, shared_ids=False).fit(list(ACTIONS))  # any horizon, so it has a pad
FAST = FASTTokenizer(vocab_size=150).fit(ACTIONS)
FAMILIES = [
    FIXED,
    OPEN,
    FAST,
    KMeansTokenizer(codebook_size=8).fit(ACTIONS),
    ResidualVQTokenizer(levels=2, codebook_size=8).fit(ACTIONS),
]
every_family = pytest.mark.parametrize("tokenizer", FAMILIES, ids=lambda t: f"{t.tokenizer_type}{t.vocab_size}")
ROWS = 300


def vocabulary_of(tokenizer, pad_id=PAD):
    return ActionVocabulary.append(TEXT, tokenizer, model_rows=ROWS, end_id=END, pad_id=pad_id)


def shape_of(tokenizer):
    return {} if tokenizer.horizon else {"horizon": 4}


def processor_of(tokenizer, **where):
    return ActionLogitsProcessor(tokenizer, vocabulary_of(tokenizer), **(where or {"start": 0}), **shape_of(tokenizer))


def open_rows(processor, lines, scores=None):
    """The rows each line may go on with."""
    lines = torch.as_tensor(lines)
    scores = torch.zeros(len(lines), ROWS) if scores is None else scores
    out = processor(lines, scores)
    assert out.shape == scores.shape
    kept = out > -torch.inf
    assert torch.equal(out[kept], scores[kept])
    return [row.nonzero()[:, 0].tolist() for row in kept]


class TestProcessor:
    @every_family
    def test_leaves_what_allowed_leaves_at_every_position(self, tokenizer):
        ids = torch.from_numpy(tokenizer.encode(ACTIONS[:5]))
        vocabulary, shape = vocabulary_of(tokenizer), shape_of(tokenizer)
        processor = processor_of(tokenizer, start=2)
        written = vocabulary.to_model(ids, end=True)
        lines = torch.cat([torch.tensor([[7, 9]]).expand(5, 2), written], 1)
        for n in range(2, lines.shape[1] + 1):
            found = open_rows(processor, lines[:, :n])
            for row in range(5):
                said = written[row, : n - 2]
                if END in said:
                    assert found[row] == [PAD]
                    continue
                allowed = torch.as_tensor(tokenizer.allowed(ids[row, : n - 2], **shape))[: len(vocabulary.rows)]
                assert found[row] == (vocabulary.rows[allowed].tolist() or [END])
        assert found == [[PAD]] * 5

    def test_rows_that_ended_wait_for_the_others(self):
        short, long = sorted(FAST.encode(ACTIONS), key=lambda row: int((row != FAST.pad_id).sum()))[:: len(ACTIONS) - 1]
        vocabulary = vocabulary_of(FAST)
        lines = torch.from_numpy(vocabulary.to_model(np.stack([short, long])[:, :-1], end=True))
        n = int((short != FAST.pad_id).sum())
        assert n < int((long != FAST.pad_id).sum())
        processor = processor_of(FAST)
        assert open_rows(processor, lines[:, :n])[0] == [END]
        ended, going = open_rows(processor, lines[:, : n + 1])
        assert ended == [PAD]
        assert going == vocabulary.rows[torch.as_tensor(FAST.allowed(long[: n + 1]))[:-1]].tolist()
        alone = ActionLogitsProcessor(FAST, vocabulary_of(FAST, pad_id=None), start=0)
        assert open_rows(alone, lines[:1, : n + 1]) == [[END]]

    def test_the_action_part_begins_after_the_last_begin_id(self):
        processor = processor_of(FIXED, begin_id=BEGIN)
        first, *others = FIXED.encode(ACTIONS[:3]) + TEXT
        lines = [[1, 7, BEGIN, 9, BEGIN, *others[0][:3]], [7, 7, 7, BEGIN, *others[1][:4]], [7, BEGIN, *first[:6]]]
        assert open_rows(processor, lines) == [list(range(TEXT, TEXT + 8))] * 3
        assert open_rows(processor, [[1, 7, BEGIN, *first], [BEGIN, *first, END, PAD]]) == [[END], [PAD]]
        with pytest.raises(TokenError, match="begin_id 3 in every row, got none in row 1"):
            processor(torch.tensor([[BEGIN, TEXT], [5, TEXT]]), torch.zeros(2, ROWS))

    def test_only_lowers_scores(self):
        scores = torch.randn(2, ROWS, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
        before = scores.clone()
        assert open_rows(processor_of(FIXED), [[TEXT], [TEXT + 7]], scores) == [list(range(TEXT, TEXT + 8))] * 2
        assert torch.equal(scores, before)
        assert processor_of(FIXED)(torch.tensor([[TEXT]]), scores[:1].bfloat16()).dtype == torch.bfloat16
        assert open_rows(processor_of(FIXED), torch.zeros(2, 0, dtype=torch.int64)) == [list(range(TEXT, TEXT + 8))] * 2

    def test_foreign_ids_where_generation_begins(self):
        for line in ([TEXT, 7, TEXT], [TEXT, ROWS - 1, TEXT], [PAD, TEXT, TEXT]):
            with pytest.raises(TokenError, match=r"which begins at 0: .* in row 1, position"):
                open_rows(processor_of(FIXED), [[TEXT] * 3, line])

    def test_action_ids_that_begin_no_chunk(self):
        other_dims = [TEXT + 8, TEXT]  # ids of dim 1, then of dim 0
        with pytest.raises(TokenError, match=r"got the ids \[8, 0\] in row 1, .* where the prompt ends"):
            open_rows(processor_of(OPEN), [[TEXT, TEXT + 8], other_dims])
        with pytest.raises(TokenError, match="begins a chunk"):  # an end before the chunk is complete
            open_rows(processor_of(OPEN), [[TEXT, TEXT + 8, END]])
        with pytest.raises(TokenError, match="begins a chunk"):
            open_rows(processor_of(FIXED), [[TEXT, END]])
        with pytest.raises(TokenError, match="after the 12 ids of a chunk"):
            open_rows(processor_of(FIXED), [[TEXT] * 13])

    @every_family
    def test_beams_without_hope_do_not_stop_the_search(self, tokenizer):
        """Beam search keeps beams of probability 0, and what they hold nobody allowed."""
        processor = processor_of(tokenizer, start=1)
        good = int(
            torch.as_tensor(tokenizer.allowed(torch.zeros(1, 0, dtype=torch.int64), **shape_of(tokenizer)))
            .int()
            .argmax()
        )
        open_rows(processor, [[5]] * 3)
        for foreign in (7, ROWS - 1, END):
            found = open_rows(processor, [[5, TEXT + good], [5, foreign], [5, TEXT + good]])
            assert found[1] == [PAD if foreign == END else END]
            assert found[0] == found[2] != found[1]
            processor = processor_of(tokenizer, start=1)
            open_rows(processor, [[5]] * 3)

    def test_a_new_generation_is_checked_again(self):
        processor = processor_of(FIXED, start=1)
        for _ in range(2):
            open_rows(processor, [[5]])
            open_rows(processor, [[5, TEXT]])
            assert open_rows(processor, [[5, TEXT, 7]]) == [[END]]
        with pytest.raises(TokenError, match="id 7"):
            open_rows(processor, [[5, 7]])

    def test_a_model_smaller_than_the_table(self):
        processor = processor_of(FIXED)
        with pytest.raises(ActionValueError, match=r"at least 58 rows, got 57.*resize_token_embeddings\(58\)"):
            processor(torch.tensor([[TEXT]]), torch.zeros(1, 57))
        assert processor(torch.tensor([[TEXT]]), torch.zeros(1, 58)).shape == (1, 58)

    def test_nothing_left_to_say(self):
        """A chunk made of an id that was forbidden is worse than an error."""
        scores = torch.zeros(2, ROWS)
        scores[1, TEXT : TEXT + 8] = -torch.inf
        with pytest.raises(ActionValueError, match="got none in row 1: another processor"):
            processor_of(FIXED)(torch.tensor([[TEXT], [TEXT]]), scores)
        with pytest.raises(ActionValueError, match=r"got none in row 0.* NaN"):
            processor_of(FIXED)(torch.tensor([[TEXT]]), torch.full((1, ROWS), torch.nan))

    def test_arguments(self):
        vocabulary = vocabulary_of(FIXED)
        for where in ({}, {"start": 1, "begin_id": BEGIN}):
            with pytest.raises(ActionValueError, match="start= or begin_id="):
                ActionLogitsProcessor(FIXED, vocabulary, **where)
        with pytest.raises(ActionValueError, match="start >= 0"):
            ActionLogitsProcessor(FIXED, vocabulary, start=-1)
        for begin in (END, TEXT):
            with pytest.raises(ActionValueError, match="no action and no end mark"):
                ActionLogitsProcessor(FIXED, vocabulary, begin_id=begin)
        with pytest.raises(ActionValueError, match="build it anew"):
            ActionLogitsProcessor(FAST, vocabulary, start=0)
        with pytest.raises(ActionShapeError, match="horizon"):
            ActionLogitsProcessor(OPEN, vocabulary_of(OPEN), start=0)
        with pytest.raises(ActionValueError, match="at least start=5 ids, got 2"):
            processor_of(FIXED, start=5)(torch.tensor([[1, 2]]), torch.zeros(1, ROWS))
        assert ActionLogitsProcessor(FIXED, vocabulary, start=0).max_new_tokens == 13
        assert ActionLogitsProcessor.supports_continuous_batching is False


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture(scope="module")
def model(transformers):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=ROWS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    return transformers.LlamaForCausalLM(config).eval()


PROMPTS = torch.tensor([[PAD, PAD, 0, 7, BEGIN], [0, 5, 6, 7, BEGIN], [PAD, 0, 5, 6, BEGIN]])
WAYS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 3.0},
    "beams": {"do_sample": False, "num_beams": 4, "num_return_sequences": 4},
    "beam sampling": {"do_sample": True, "num_beams": 3},
}


class TestGenerate:
    @pytest.fixture(autouse=True)
    def _one_thread(self):
        """A model this small only waits for its threads."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)

    @every_family
    @pytest.mark.parametrize("way", WAYS)
    def test_every_chunk_of_an_untrained_model_decodes(self, tokenizer, way, model):
        torch.manual_seed(1)
        processor = processor_of(tokenizer, start=5)
        lines = model.generate(
            PROMPTS,
            attention_mask=(PROMPTS != PAD).long(),
            logits_processor=[processor],
            max_new_tokens=processor.max_new_tokens,
            eos_token_id=END,
            pad_token_id=PAD,
            **WAYS[way],
        )
        ids = processor.vocabulary.to_actions(lines[:, 5:])
        assert len(ids) == 3 * WAYS[way].get("num_return_sequences", 1)
        assert tokenizer.try_decode(ids, **shape_of(tokenizer))[1].all()
        tokenizer.decode(ids, **shape_of(tokenizer))

    def test_begin_id_says_the_same_as_start(self, model):
        lines = []
        for where in ({"start": 5}, {"begin_id": BEGIN}):
            processor = processor_of(FAST, **where)
            options = {"max_new_tokens": processor.max_new_tokens, "eos_token_id": END, "pad_token_id": PAD}
            mask = (PROMPTS != PAD).long()
            lines.append(model.generate(PROMPTS, attention_mask=mask, logits_processor=[processor], **options))
        assert torch.equal(*lines)

    def test_the_wrong_start_is_noticed(self, model):
        with pytest.raises(TokenError, match="begins at 3"):
            model.generate(PROMPTS, logits_processor=[processor_of(FAST, start=3)], max_new_tokens=5, pad_token_id=PAD)

    def test_a_contradicting_option_is_noticed(self, model):
        processor = processor_of(FIXED, start=5)
        with pytest.raises(ActionValueError, match="min_new_tokens"):
            model.generate(
                PROMPTS,
                logits_processor=[processor],
                max_new_tokens=20,
                min_new_tokens=18,
                eos_token_id=END,
                pad_token_id=PAD,
            )

    def test_a_published_fast_folder(self, model):
        folder = Path(__file__).resolve().parents[3] / "shared" / "pretrained" / "univla-calvin-fast"
        if not folder.is_dir():
            pytest.skip("../shared/pretrained is not here")
        tokenizer, shape = ActionTokenizer.from_pretrained(folder), {"horizon": 5, "action_dim": 4}
        model = type(model)(type(model.config)(**model.config.to_dict() | {"vocab_size": 2000})).eval()
        vocabulary = ActionVocabulary.append(TEXT, tokenizer, model_rows=2000, end_id=END, pad_id=PAD)
        processor = ActionLogitsProcessor(tokenizer, vocabulary, start=5, **shape)
        options = {"max_new_tokens": processor.max_new_tokens, "eos_token_id": END, "pad_token_id": PAD}
        lines = model.generate(PROMPTS, logits_processor=[processor], do_sample=True, **options)
        assert tokenizer.decode(vocabulary.to_actions(lines[:, 5:]), **shape).isfinite().all()


class TestAutoProcessor:
    @every_family
    def test_finds_the_tokenizer_without_its_code(self, tokenizer, transformers, tmp_path):
        tokenizer.save_pretrained(tmp_path)
        register()
        register()
        for remove in ((), ("processor_config.json", "processing_action_tokenizer.py")):
            for name in remove:
                os.remove(tmp_path / name)
            found = transformers.AutoProcessor.from_pretrained(tmp_path)
            assert type(found) is type(tokenizer)
            assert np.array_equal(found.encode(ACTIONS), tokenizer.encode(ACTIONS))

    def test_a_real_text_tokenizer_takes_the_tokens(self, transformers):
        tokenizers = pytest.importorskip("tokenizers")
        words = {word: i for i, word in enumerate(["<unk>", "<pad>", "<eos>", "pick", "place", "Action:"])}
        backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        text = transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>"
        )
        with pytest.raises(ActionValueError, match="special token"):
            ActionVocabulary.tail(text, BinningTokenizer(bins=4).fit(ACTIONS), model_rows=6, end_id=2)
        vocabulary = ActionVocabulary.add_tokens(text, FAST, end_id=text.eos_token_id, pad_id=text.pad_token_id)
        m = FAST.vocab_size - 1
        assert text.convert_ids_to_tokens(vocabulary.rows.tolist()) == [f"<action_{i}>" for i in range(m)]
        assert (len(text), text.vocab_size, vocabulary.model_rows) == (6 + m, 6, 6 + m)
        assert ActionVocabulary.add_tokens(text, FAST, end_id=2, pad_id=1).to_json() == vocabulary.to_json()
        assert ActionVocabulary.append(text, FAST, model_rows=600, end_id=2).rows[0] == len(text)


def test_what_auto_processor_passes_on(tmp_path):
    FIXED.save_pretrained(tmp_path)
    found = ActionProcessor.from_pretrained(
        str(tmp_path), revision=None, token=None, trust_remote_code=None, _from_auto=True
    )
    assert isinstance(found, ActionTokenizer)
    assert np.array_equal(found.encode(ACTIONS), FIXED.encode(ACTIONS))


def test_registering_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"action-tokenizers\[transformers\]"):
        register()


def test_another_prompt_of_one_id_more_is_a_new_generation():
    """Its action part is checked, although the call looks like the next of the generation before."""
    processor = processor_of(FIXED, begin_id=BEGIN)
    open_rows(processor, [[BEGIN, TEXT, TEXT]])
    with pytest.raises(TokenError, match="action part"):
        processor(torch.tensor([[BEGIN, 7, 7, 7]]), torch.zeros(1, ROWS))


@pytest.mark.parametrize("where", [{"start": 1.5}, {"start": True}, {"begin_id": -1}, {"begin_id": [1, 2]}])
def test_a_place_that_is_no_place(where):
    with pytest.raises(ActionValueError, match=">= 0, an integer"):
        processor_of(FIXED, **where)
