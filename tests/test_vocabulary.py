"""Action ids in a language model: every wrong table is refused, and every right one can be undone."""

import json

import numpy as np
import pytest
import torch

from action_tokenizers import (
    ActionTokenizer,
    ActionValueError,
    BinningTokenizer,
    FASTTokenizer,
    FormatError,
    KMeansTokenizer,
    NotFittedError,
    ResidualVQTokenizer,
    TokenError,
)
from action_tokenizers.data.synthetic import smooth_chunks
from action_tokenizers.vocabulary import ActionVocabulary

ACTIONS = smooth_chunks(60, 5, 3)
FIXED = BinningTokenizer(bins=16).fit(ACTIONS)  # no pad, 15 ids per chunk
OPEN = FASTTokenizer(vocab_size=200).fit(ACTIONS)
FAMILIES = [
    FIXED,
    BinningTokenizer(bins=16, shared_ids=False).fit(list(ACTIONS)),
    KMeansTokenizer(codebook_size=8).fit(ACTIONS),
    ResidualVQTokenizer(levels=2, codebook_size=8).fit(ACTIONS),
    OPEN,
]


class Text:
    """A language model's tokenizer, as much of it as is used."""

    unk_token_id = 3

    def __init__(self, size: int, added: int = 0, special: tuple[int, ...] = (0, 1, 2)) -> None:
        self.vocab_size = size
        self.all_special_ids = list(special)
        self.names = {f"word{i}": i for i in range(size + added)}

    def __len__(self) -> int:
        return len(self.names)

    def add_tokens(self, names: list[str]) -> int:
        new = [name for name in names if name not in self.names]
        self.names.update({name: len(self.names) + i for i, name in enumerate(new)})
        return len(new)

    def convert_tokens_to_ids(self, names: list[str]) -> list[int]:
        return [self.names.get(name, self.unk_token_id) for name in names]


LLAMA = Text(32_000, added=1)  # as in OpenVLA, which added a padding token
MODEL = {"model_rows": 32_064, "end_id": 2}
SMALL = {"model_rows": 1000, "end_id": 2}


class TestConstructors:
    @pytest.mark.parametrize("tokenizer", FAMILIES, ids=lambda t: f"{t.tokenizer_type}{t.vocab_size}")
    def test_every_action_id_has_a_row_and_comes_back(self, tokenizer):
        m = tokenizer.vocab_size - (tokenizer.pad_id is not None)
        text = Text(500)
        shape = {} if tokenizer.horizon else {"horizon": 5}
        tables = [
            ActionVocabulary.append(text, tokenizer, **SMALL),
            ActionVocabulary.tail(text, tokenizer, **SMALL),
            ActionVocabulary.reserved(text, tokenizer, range(600, 900), **SMALL),
            ActionVocabulary.table(text, tokenizer, np.random.default_rng(0).permutation(400)[:m] + 520, **SMALL),
            ActionVocabulary.add_tokens(text, tokenizer, end_id=2),
        ]
        ids = tokenizer.encode(ACTIONS)
        for vocabulary in tables:
            assert vocabulary.rows.shape == (m,)
            assert vocabulary.rows.dtype == torch.int64
            for end in (True, False):
                written = vocabulary.to_model(ids, end=end)
                assert written.shape == (len(ids), ids.shape[1] + end)
                back = vocabulary.to_actions(written)
                assert np.array_equal(tokenizer.decode(back, **shape), tokenizer.decode(ids, **shape))

    def test_append(self):
        rows = ActionVocabulary.append(Text(500, added=7), FIXED, **SMALL).rows
        assert rows.tolist() == list(range(507, 523))
        assert ActionVocabulary.append(507, FIXED, **SMALL).rows.tolist() == rows.tolist()

    def test_tail_of_openvla(self):
        tokenizer = BinningTokenizer(bins=256).fit(ACTIONS)
        vocabulary = ActionVocabulary.tail(LLAMA, tokenizer, size=32_000, **MODEL)
        assert vocabulary.rows.tolist() == list(range(31_999, 31_743, -1))
        assert (vocabulary.text_size, vocabulary.model_rows, vocabulary.overwrite) == (32_001, 32_064, True)

    def test_tail_of_pi0_fast(self):
        tokenizer = BinningTokenizer(bins=2048).fit(ACTIONS)
        vocabulary = ActionVocabulary.tail(
            257_152, tokenizer, skip=128, size=257_152, model_rows=257_152, end_id=1, pad_id=0
        )
        assert vocabulary.rows[[0, 1023, 1024, 2047]].tolist() == [257_023, 256_000, 255_999, 254_976]

    def test_reserved_takes_what_it_needs(self):
        rows = ActionVocabulary.reserved(500, FIXED, range(540, 700, 3), **SMALL).rows
        assert rows.tolist() == list(range(540, 540 + 48, 3))
        assert ActionVocabulary.reserved(500, FIXED, range(100, 400), overwrite=True, **SMALL).rows[0] == 100
        with pytest.raises(ActionValueError, match="at least 16 reserved rows"):
            ActionVocabulary.reserved(500, FIXED, range(600, 615), **SMALL)

    def test_added_tokens_are_those_of_the_tokenizer(self):
        text = Text(500, added=4)
        vocabulary = ActionVocabulary.add_tokens(text, OPEN, end_id=2, template="<ACT_{}>")
        m = OPEN.vocab_size - 1
        assert vocabulary.rows.tolist() == [text.names[f"<ACT_{i}>"] for i in range(m)]
        assert (vocabulary.text_size, vocabulary.model_rows, len(text)) == (504, 504 + m, 504 + m)
        text.add_tokens(["<image>"])
        again = ActionVocabulary.add_tokens(text, OPEN, end_id=2, template="<ACT_{}>")
        assert again.rows.tolist() == vocabulary.rows.tolist()
        assert (again.text_size, again.model_rows) == (504, 505 + m)

    def test_added_tokens_leave_the_tokenizer_alone_where_they_cannot_be(self):
        text = Text(500)
        with pytest.raises(ActionValueError, match=r"resize_token_embeddings\(516\)"):
            ActionVocabulary.add_tokens(text, FIXED, end_id=2, model_rows=512)
        with pytest.raises(ActionValueError, match="got 16 that it knows; give another template"):
            ActionVocabulary.add_tokens(text, FIXED, end_id=2, template="word1{}")
        with pytest.raises(ActionValueError, match="template with braces"):
            ActionVocabulary.add_tokens(text, FIXED, end_id=2, template="<action>")
        assert len(text) == 500
        text.add_tokens(["<action_3>"])
        with pytest.raises(ActionValueError, match="got 1 that it knows"):
            ActionVocabulary.add_tokens(text, FIXED, end_id=2)

    def test_added_tokens_that_got_no_id_are_noticed(self, monkeypatch):
        text = Text(500)
        monkeypatch.setattr(text, "add_tokens", lambda names: 0)
        with pytest.raises(ActionValueError, match="got row 3 for both ids"):
            ActionVocabulary.add_tokens(text, FIXED, end_id=2)

    def test_inside_a_policy_under_construction(self):
        with torch.device("meta"):
            vocabulary = ActionVocabulary.append(500, FIXED, **SMALL)
            assert ActionVocabulary.tail(500, FIXED, **SMALL).rows[0] == 499
            assert vocabulary.to_actions(vocabulary.to_model(np.arange(5))).tolist() == [0, 1, 2, 3, 4]

    def test_an_unfitted_tokenizer(self):
        with pytest.raises(NotFittedError):
            ActionVocabulary.append(500, BinningTokenizer(), **SMALL)


class TestRefusals:
    @pytest.mark.parametrize("rows", [[f"<{i}>" for i in range(16)], [500.0 + i for i in range(16)], [True] * 16])
    def test_other_than_integers(self, rows):
        for bad in (rows, np.array(rows)):
            with pytest.raises(TokenError, match="integer"):
                ActionVocabulary.table(500, FIXED, bad, **SMALL)
        with pytest.raises(TokenError, match="integer rows, got '5'"):
            ActionVocabulary.table(500, FIXED, "520", **SMALL)
        with pytest.raises(TokenError, match="integer rows"):
            ActionVocabulary.table(500, FIXED, np.arange(16).reshape(4, 4) + 500, **SMALL)

    @pytest.mark.parametrize("name", ["end_id", "pad_id", "model_rows"])
    @pytest.mark.parametrize("value", [-1, 2.0, "2", True])
    def test_marks_that_are_no_ids(self, name, value):
        with pytest.raises(ActionValueError, match=f"{name} an integer"):
            ActionVocabulary.append(500, FIXED, **{**SMALL, name: value})

    def test_rows_given_twice(self):
        with pytest.raises(ActionValueError, match=r"row 515 for both ids \[0, 15\]"):
            ActionVocabulary.table(500, FIXED, [515, *range(501, 516)], **SMALL)

    def test_marks_inside_the_table(self):
        with pytest.raises(ActionValueError, match="end_id outside the table, got 507, the row of action id 7"):
            ActionVocabulary.append(500, FIXED, model_rows=1000, end_id=507)
        with pytest.raises(ActionValueError, match="pad_id outside the table"):
            ActionVocabulary.append(500, FIXED, model_rows=1000, end_id=2, pad_id=515)
        with pytest.raises(ActionValueError, match="end_id outside the table"):
            ActionVocabulary.tail(500, FIXED, model_rows=1000, end_id=499)

    def test_rows_of_the_text(self):
        with pytest.raises(ActionValueError, match=r"got 4 rows of the text.*overwrite=True"):
            ActionVocabulary.reserved(500, FIXED, range(496, 600), **SMALL)
        with pytest.raises(ActionValueError, match="got 16 rows of the text"):
            ActionVocabulary.table(500, FIXED, range(16, 32), **SMALL)

    def test_a_table_of_another_length(self):
        for n in (15, 17):
            with pytest.raises(ActionValueError, match=f"expected 16 rows, one per action id, got {n}"):
                ActionVocabulary.table(500, FIXED, range(500, 500 + n), **SMALL)

    def test_a_model_smaller_than_the_table(self):
        with pytest.raises(ActionValueError, match=r"at least 516 rows.*model.resize_token_embeddings\(516\)"):
            ActionVocabulary.append(500, FIXED, model_rows=515, end_id=2)
        with pytest.raises(ActionValueError, match="at least 501 rows"):
            ActionVocabulary.tail(500, FIXED, model_rows=500, size=500, end_id=500)
        with pytest.raises(ActionValueError, match="at least 900 rows"):
            ActionVocabulary.append(500, FIXED, model_rows=600, end_id=2, pad_id=899)

    def test_the_padded_size_instead_of_the_tokenizers(self):
        """32,064 rows hold 32,000 words: rows counted from the wrong one are other words, without an error."""
        with pytest.raises(ActionValueError, match="unless text_size counts the model's padding rows"):
            ActionVocabulary.append(32_064, FIXED, **MODEL)
        with pytest.raises(ActionValueError, match=r"size= 32064 to say where.*rows may be padded"):
            ActionVocabulary.tail(32_064, FIXED, **MODEL)
        with pytest.raises(ActionValueError, match=r"size= 32000 or 32001 .* has added tokens"):
            ActionVocabulary.tail(LLAMA, FIXED, **MODEL)
        with pytest.raises(ActionValueError, match="size= 32000 or 32001, as the text has, got 32064"):
            ActionVocabulary.tail(LLAMA, FIXED, size=32_064, **MODEL)
        assert ActionVocabulary.append(LLAMA, FIXED, **MODEL).rows[0] == 32_001
        assert ActionVocabulary.tail(32_001, FIXED, size=32_000, **MODEL).rows[0] == 31_999
        assert ActionVocabulary.tail(32_001, FIXED, **MODEL).rows[0] == 32_000

    def test_a_tail_longer_than_the_text_or_with_special_tokens(self):
        with pytest.raises(ActionValueError, match="at least 16 words before row 10, got 10"):
            ActionVocabulary.tail(12, FIXED, skip=2, **SMALL)
        chat = Text(500, special=(0, 1, 2, 497))
        with pytest.raises(ActionValueError, match=r"special token .*\[497\]; skip them"):
            ActionVocabulary.tail(chat, FIXED, **SMALL)
        assert ActionVocabulary.tail(chat, FIXED, skip=3, **SMALL).rows[0] == 496

    @pytest.mark.parametrize("text", ["gpt2", ["a", "b"], None, 500.0])
    def test_no_language_model_tokenizer(self, text):
        with pytest.raises(ActionValueError, match="tokenizer object, or its length"):
            ActionVocabulary.append(text, FIXED, **SMALL)

    def test_the_vocabulary_of_another_tokenizer(self):
        vocabulary = ActionVocabulary.append(500, FIXED, **SMALL)
        vocabulary.check(FIXED)
        others = [
            OPEN,
            BinningTokenizer(bins=15).fit(ACTIONS),
            BinningTokenizer(bins=16).fit(ACTIONS[:, :4]),
            BinningTokenizer(bins=15).fit(list(ACTIONS)),
        ]
        for other in others:
            with pytest.raises(ActionValueError, match="build it anew"):
                vocabulary.check(other)


class TestToModel:
    vocabulary = ActionVocabulary.append(500, OPEN, model_rows=1000, end_id=2)
    pad = OPEN.vocab_size - 1

    def test_the_first_pad_is_the_end_and_further_ones_the_padding(self):
        ids = [[4, 5, 6], [4, self.pad, self.pad], [self.pad] * 3]
        assert self.vocabulary.to_model(ids).tolist() == [[504, 505, 506], [504, 2, 2], [2, 2, 2]]
        padded = ActionVocabulary.append(500, OPEN, model_rows=1000, end_id=2, pad_id=0)
        assert padded.to_model(ids, end=True).tolist() == [[504, 505, 506, 2], [504, 2, 0, 0], [2, 0, 0, 0]]
        assert padded.to_model([[4, 5, 6], [4]], end=True).tolist() == [[504, 505, 506, 2], [504, 2, 0, 0]]

    def test_without_a_pad_the_end_comes_when_asked(self):
        vocabulary = ActionVocabulary.append(500, FIXED, **SMALL)
        assert vocabulary.to_model([1, 2]).tolist() == [501, 502]
        assert vocabulary.to_model([1, 2], end=True).tolist() == [501, 502, 2]

    def test_form_and_leading_dims_are_kept(self):
        ids = np.arange(24).reshape(2, 3, 4)
        for given, kind in ((ids, np.ndarray), (ids.tolist(), np.ndarray), (torch.from_numpy(ids), torch.Tensor)):
            for convert in (self.vocabulary.to_model, self.vocabulary.to_actions):
                out = convert(given if convert == self.vocabulary.to_model else given_rows(given))
                assert isinstance(out, kind)
                assert tuple(out.shape) == (2, 3, 4)
                assert out.dtype in (np.int64, torch.int64)
        assert self.vocabulary.to_model(np.zeros((0, 4), np.int64)).shape == (0, 4)
        assert self.vocabulary.to_actions(np.zeros((0, 4), np.int64)).shape == (0, 0)

    @pytest.mark.parametrize("bad", [-1, 10_000])
    def test_foreign_ids(self, bad):
        with pytest.raises(TokenError, match=f"id {bad} in row 1, position 2"):
            self.vocabulary.to_model([[1, 2, 3], [1, 2, bad]])
        with pytest.raises(TokenError, match=r"in 0\.\.15, got id 16"):
            ActionVocabulary.append(500, FIXED, **SMALL).to_model([16], end=True)

    @pytest.mark.parametrize("bad", ["<action_1>", ["<action_1>"], [1.0, 2.0], np.array([True, False])])
    def test_other_than_integers(self, bad):
        for convert in (self.vocabulary.to_model, self.vocabulary.to_actions):
            with pytest.raises(TokenError, match="expected"):
                convert(bad)

    def test_an_id_after_a_pad(self):
        with pytest.raises(TokenError, match=r"nothing but pads .* id 5 in row 0, position 2"):
            self.vocabulary.to_model([4, self.pad, 5])


def given_rows(ids):
    return np.asarray(ids).__add__(500).tolist() if isinstance(ids, list) else ids + 500


class TestToActions:
    vocabulary = ActionVocabulary.append(500, OPEN, model_rows=1000, end_id=2, pad_id=0)
    pad = OPEN.vocab_size - 1

    def test_stops_at_the_first_end(self):
        written = [[504, 505, 2, 0], [504, 2, 77, 506], [2, 0, 0, 0]]
        pad = self.pad
        assert self.vocabulary.to_actions(written).tolist() == [[4, 5], [4, pad], [pad, pad]]
        assert self.vocabulary.to_actions([[504, 505, 506], [504]]).tolist() == [[4, 5, 6], [4, pad, pad]]

    def test_foreign_ids_are_named(self):
        with pytest.raises(TokenError, match=r"end mark 2, got id 77 in row 1, position 2 .*errors='mask'"):
            self.vocabulary.to_actions([[504, 505, 506, 2], [504, 505, 77, 2]])
        with pytest.raises(TokenError, match="id 0 in row 0"):  # padding where no end has come
            self.vocabulary.to_actions([504, 0])
        with pytest.raises(ActionValueError, match="'strict' or 'mask'"):
            self.vocabulary.to_actions([504], errors="ignore")

    def test_masked_they_are_flagged_and_never_decoded_in_silence(self):
        ids = OPEN.encode(ACTIONS)
        written = self.vocabulary.to_model(ids, end=True)
        rng = np.random.default_rng(0)
        damaged = written.copy()
        length = (ids != self.pad).sum(1)
        for row in range(0, len(ids), 2):
            damaged[row, rng.integers(length[row])] = rng.choice([-1, 0, 3, 499, 999, 10**9])
        back = self.vocabulary.to_actions(damaged, errors="mask")
        assert back.shape[1] <= written.shape[1]
        actions, valid = OPEN.try_decode(back)
        assert valid.tolist() == [row % 2 == 1 for row in range(len(ids))]
        assert np.isfinite(actions).all()
        assert np.array_equal(actions[1::2], OPEN.decode(ids)[1::2])

    def test_every_row_of_integers_has_an_answer(self):
        written = np.random.default_rng(1).integers(-3, 1100, (300, 30))
        ids = self.vocabulary.to_actions(written, errors="mask")
        _, valid = OPEN.try_decode(ids)
        assert not valid.any()
        assert set(np.unique(ids)) <= set(range(-1, OPEN.vocab_size))

    def test_without_a_pad_a_row_does_not_depend_on_its_neighbours(self):
        vocabulary = ActionVocabulary.append(500, FIXED, **SMALL)
        ids = FIXED.encode(ACTIONS[:4])
        written = [row.tolist() for row in vocabulary.to_model(ids, end=True)]
        written[1] = [*written[1][:15], 501, 2]  # an id too many
        written[2] = [*written[2][:9], 2]
        back = vocabulary.to_actions(written, errors="mask")
        assert back.shape == (4, 15)
        assert FIXED.try_decode(back)[1].tolist() == [True, False, False, True]
        assert np.array_equal(back[[0, 3]], ids[[0, 3]])
        with pytest.raises(
            TokenError, match="end mark 2 after the 15 ids of a chunk, got id 501 in row 1, position 15"
        ):
            vocabulary.to_actions(written)
        assert vocabulary.to_actions(written[2]).tolist() == ids[2, :9].tolist()

    def test_any_order_of_rows(self):
        rows = np.random.default_rng(2).permutation(16) + 600
        vocabulary = ActionVocabulary.table(500, FIXED, rows, **SMALL)
        assert vocabulary.to_actions(vocabulary.to_model(np.arange(15))).tolist() == list(range(15))
        assert vocabulary.to_model(np.arange(15)).tolist() == rows[:15].tolist()


class TestFile:
    vocabulary = ActionVocabulary.append(500, OPEN, model_rows=1000, end_id=2, pad_id=0)

    @pytest.mark.parametrize("tokenizer", [FIXED, OPEN], ids=["fixed", "open"])
    def test_comes_back(self, tokenizer):
        for vocabulary in (
            ActionVocabulary.append(500, tokenizer, **SMALL),
            ActionVocabulary.tail(500, tokenizer, pad_id=0, **SMALL),
        ):
            data = json.loads(json.dumps(vocabulary.to_json()))
            again = ActionVocabulary.from_json(data)
            again.check(tokenizer)
            assert again.to_json() == vocabulary.to_json() == data
            assert data["format_version"] == 1

    def test_travels_with_the_tokenizer(self, tmp_path):
        OPEN.save_pretrained(tmp_path / "a", vocabulary=self.vocabulary)
        ActionTokenizer.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
        for folder in ("a", "b"):
            assert ActionVocabulary.from_pretrained(tmp_path / folder).to_json() == self.vocabulary.to_json()
        with pytest.raises(ActionValueError, match="build it anew"):
            FIXED.save_pretrained(tmp_path / "c", vocabulary=self.vocabulary)
        OPEN.save_pretrained(tmp_path / "d")
        with pytest.raises(FormatError, match=r"vocabulary\.json"):
            ActionVocabulary.from_pretrained(tmp_path / "d")
        with pytest.raises(FormatError, match="owner/name"):
            ActionVocabulary.from_pretrained(tmp_path / "nowhere")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"format_version": 2}, "a newer one"),
            ({"format_version": True}, "format_version"),
            ({"format_version": None}, "format_version"),
            ({"surprise": 1}, "the keys"),
            ({"rows": None}, "rows as a list"),
            ({"rows": "500"}, "rows as a list"),
            ({"rows": []}, "a row for each"),
            ({"rows": ["500", "501"]}, "integer rows, got '500'"),
            ({"rows": [500.0, 501.0]}, "integer rows"),
            ({"rows": [10**30]}, "integer rows"),
            ({"rows": [500, 500]}, "row 500 for both"),
            ({"rows": [-5, 500]}, "rows >= 0"),
            ({"rows": [400, 500]}, "rows of the text"),
            ({"rows": [500, 1000]}, "at least 1001 rows"),
            ({"end_id": 500}, "end_id outside the table"),
            ({"end_id": None}, "end_id an integer"),
            ({"pad_id": -1}, "pad_id an integer"),
            ({"text_size": "500"}, "text_size an integer"),
            ({"has_pad": 1}, "true or false"),
            ({"fixed_length": 15}, "without a pad"),
            ({"has_pad": False, "fixed_length": 0}, "fixed_length only"),
        ],
    )
    def test_damage_is_named(self, change, message, tmp_path):
        data = self.vocabulary.to_json() | change
        (tmp_path / "vocabulary.json").write_text(json.dumps(data))
        with pytest.raises(FormatError, match=message) as caught:
            ActionVocabulary.from_pretrained(tmp_path)
        assert str(tmp_path / "vocabulary.json") in str(caught.value)

    @pytest.mark.parametrize("text", ["", "[1]", '{"rows": [5', "nonsense"])
    def test_what_is_no_json_object(self, text, tmp_path):
        (tmp_path / "vocabulary.json").write_text(text)
        with pytest.raises(FormatError, match=r"vocabulary\.json"):
            ActionVocabulary.from_pretrained(tmp_path)

    def test_a_missing_key(self):
        data = self.vocabulary.to_json()
        del data["pad_id"]
        with pytest.raises(FormatError, match="the keys"):
            ActionVocabulary.from_json(data)
