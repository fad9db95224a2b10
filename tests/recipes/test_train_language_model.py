"""The smoke form of the language-model recipe, and the rules by which it judges."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="the recipe trains a model of transformers")
pytest.importorskip("pyarrow", reason="the demonstrations are parquet files")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes"))

import train_language_model as recipe

from action_tokenizers import BinningTokenizer, Episodes
from action_tokenizers.cli import DEMO_DATA
from action_tokenizers.data.chunks import chunks
from action_tokenizers.data.synthetic import smooth_chunks
from action_tokenizers.vocabulary import ActionVocabulary


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model this small only waits for its threads, and Rayon's pool must not be alive when a later test forks."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("tokenizer", [None, "residual_vq:codebook_size=32"])
def test_smoke(tokenizer: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "result.json"
    asked = [] if tokenizer is None else ["--tokenizer", tokenizer]
    assert recipe.main(["--smoke", "--json", str(file), *asked]) == 0
    report = json.loads(file.read_text())

    assert set(report["generated"]) == {f"{k}, {way}" for k in ("free", "constrained") for way in recipe.WAYS}
    for name, result in report["generated"].items():
        assert result["of"] == 10
        assert not name.startswith("constrained") or result["decoded"] == 10
    assert report["holds"]["all constrained generations decode"] is True
    assert report["errors"]["tokenizer alone"] < report["errors"]["repeat last action"] < 0.5
    assert report["sizes"]["episodes"] == [60, 15]
    assert report["sizes"]["text_ids"] == 4 + 3 + 3 + 256
    assert report["sizes"]["prompt_ids"] == 18
    assert "| constrained, greedy | 10 of 10 |" in capsys.readouterr().out


def test_validation_leaves_the_held_out_episodes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    cut = recipe.chunks
    monkeypatch.setattr(
        recipe, "chunks", lambda episodes, *rest: seen.append(set(episodes.names)) or cut(episodes, *rest)
    )
    for asked in ([], ["--validation"]):
        recipe.run(recipe.parse(["--smoke", *asked]))
    fitted, held_out, fitted_less, validation = seen
    assert not fitted & held_out
    assert fitted_less | validation == fitted
    assert not fitted_less & validation


def result(decoded: int, error: float) -> dict[str, Any]:
    return {"decoded": decoded, "of": 500, "error": error}


def test_judges() -> None:
    errors = {"mean action": 0.3, "repeat last action": 0.2, "tokenizer alone": 0.01}
    good = {"free, greedy": result(251, 0.5), "constrained, greedy": result(500, 0.19)}
    assert list(recipe.holds(errors, good).values()) == [True, True, True]
    assert list(recipe.holds(errors, good | {"constrained, x": result(500, 0.2)}).values()) == [False, True, True]
    assert list(recipe.holds(errors, good | {"free, x": result(250, 0.1)}).values()) == [True, False, True]
    assert list(recipe.holds(errors, good | {"constrained, x": result(499, 0.1)}).values()) == [True, True, False]


def test_a_failed_criterion_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    report = {
        "generated": {"free, greedy": {"decoded": 0, "of": 5, "error": None}},
        "errors": {},
        "holds": {"x": False},
        "seconds": {"training": 1.0, "generating": 1.0},
    }
    monkeypatch.setattr(recipe, "run", lambda options: report)
    assert recipe.main([]) == 1
    report["holds"]["x"] = True
    assert recipe.main([]) == 0


def test_what_does_not_decode_has_no_error() -> None:
    actions = smooth_chunks(6, 4, 3)
    tokenizer = BinningTokenizer(bins=8, range="minmax").fit(actions)
    vocabulary = ActionVocabulary.append(10, tokenizer, model_rows=20, end_id=2)
    written = torch.from_numpy(vocabulary.to_model(tokenizer.encode(actions), end=True))
    assert recipe.judge(written, actions, tokenizer, vocabulary)["decoded"] == 6
    written[1, 3], written[2, 5] = 9, 2  # a word, and an end too early
    judged = recipe.judge(written, actions, tokenizer, vocabulary)
    assert (judged["decoded"], judged["of"]) == (4, 6)
    kept = [0, 3, 4, 5]
    assert judged["error"] == pytest.approx(np.square(tokenizer.quantize(actions[kept]) - actions[kept]).mean())
    written[:, 0] = 9
    assert recipe.judge(written, actions, tokenizer, vocabulary) == {"decoded": 0, "of": 6, "error": None}


def test_prompts_and_baseline_belong_to_their_chunks() -> None:
    episodes = Episodes.load(DEMO_DATA)[[3, 40]]
    cut = chunks(episodes, recipe.HORIZON, 30)
    tasks = recipe.read_tasks(DEMO_DATA)
    states = BinningTokenizer(horizon=1, bins=256).fit(list(episodes.states))
    numbers = recipe.observe(cut, episodes, states)
    assert numbers.shape == (len(cut), 14)
    second = int(np.flatnonzero(cut.episode == 40)[1])
    assert np.array_equal(numbers[second], states.encode(episodes.states[1][30:31]))
    prompt = recipe.write_prompts(cut, numbers, tasks)[second]
    assert prompt == f"Task: peg-insert-side-v3 State: {' '.join(map(str, numbers[second]))} Action:"
    later = cut.start > 0
    picked = type(cut)(cut.actions[later], cut.episode[later], cut.start[later], cut.key)
    last = recipe.last_actions(picked, episodes)
    at = int(np.flatnonzero(picked.episode == 40)[0])
    assert np.array_equal(last[at, 0], episodes.actions[1][29])
