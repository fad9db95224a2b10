"""A small language model that speaks actions: from demonstrations to chunks, with transformers and nothing hidden.

    python recipes/train_language_model.py --json result.json

What a vision-language-action model does, without the vision: the task and the state, written as integers of 0..255 as
pi0-FAST does, are the prompt; the ids of the next 16 actions are the answer. The model is a Llama of random weights,
its tokenizer a word-level one built here, and `ActionVocabulary.add_tokens` gives every action id a token of its own.

The demonstrations embedded in the library (three Meta-World tasks) are split by episode. Held-out chunks are generated
freely and under `ActionLogitsProcessor`, and compared with two policies that know nothing: always the mean action of
the training episodes, and always the last executed action. Errors are mean squared errors in the units of the actions,
which lie in [-1, 1].

Two things stand in for what a pretrained model brings and 60 episodes cannot teach: integers begin with embeddings that
change slowly from one to the next, and each epoch sees states and actions with a little noise.

Choices were made with `--validation`, which holds out episodes of the training part and leaves the held-out ones alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import pad
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from action_tokenizers import ActionTokenizer, BinningTokenizer, Episodes
from action_tokenizers.cli import DEMO_DATA, parse_spec
from action_tokenizers.data.chunks import Chunks, chunks
from action_tokenizers.integrations.transformers import ActionLogitsProcessor
from action_tokenizers.registry import tokenizer_class
from action_tokenizers.vocabulary import ActionVocabulary

HORIZON = 16
STATE_BINS = 256
HELD_OUT = 0.2
HAND = slice(0, 3)  # x, y, z; the gripper has two positions and gets no noise
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "top_k": 0},
    "4 beams": {"do_sample": False, "num_beams": 4},
}
IGNORED = -100  # the label transformers leaves out of the loss

Floats = NDArray[np.floating]
Integers = NDArray[np.int64]
Prompts = dict[str, torch.Tensor]


def read_tasks(folder: Path) -> dict[int, str]:
    """Return the task of every episode."""
    file = folder / "meta/episodes/chunk-000/file-000.parquet"
    return {row["episode_index"]: row["metaworld/task"] for row in pq.read_table(file).to_pylist()}


def observe(cut: Chunks, episodes: Episodes, states: BinningTokenizer) -> Integers:
    """Return the state at the beginning of each chunk as integers `(n, 14)` of 0..255."""
    at = {name: i for i, name in enumerate(episodes.names)}
    observed = [episodes.states[at[name]][frame] for name, frame in zip(cut.episode, cut.start, strict=True)]
    return states.encode(np.stack(observed)[:, None])


def write_prompts(cut: Chunks, numbers: Integers, tasks: dict[int, str]) -> list[str]:
    """Return `Task: assembly-v3 State: 12 200 ... Action:` for every chunk."""
    return [
        f"Task: {tasks[name]} State: {' '.join(map(str, row))} Action:"
        for name, row in zip(cut.episode.tolist(), numbers.tolist(), strict=True)
    ]


def build_text_tokenizer(tasks: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer that knows the words of the prompts."""
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    words = [*special.values(), "Task:", "State:", "Action:", *sorted(set(tasks)), *map(str, range(STATE_BINS))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **special)


def build_model(text: PreTrainedTokenizerFast, options: argparse.Namespace) -> LlamaForCausalLM:
    """Return a Llama of random weights."""
    torch.manual_seed(options.seed)
    config = LlamaConfig(
        vocab_size=len(text),
        hidden_size=options.width,
        intermediate_size=3 * options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=options.width // 16,
        num_key_value_heads=options.width // 16,
        rope_theta=100.0,  # lines are short
        attention_dropout=0.1,
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    rows = text.convert_tokens_to_ids([str(i) for i in range(STATE_BINS)])
    waves, phases = torch.randn(options.width) / 30, 2 * torch.pi * torch.rand(options.width)
    smooth = torch.cos(torch.arange(STATE_BINS)[:, None] * waves + phases)
    with torch.no_grad():
        model.get_input_embeddings().weight[rows] = smooth * 2**0.5 * config.initializer_range
    return model


def train(
    model: LlamaForCausalLM, epoch: Callable[[], tuple[Prompts, torch.Tensor]], count: int, options: argparse.Namespace
) -> float:
    """Teach the model the `count` prompts and answers of each epoch, and return the loss of the last."""
    steps = options.epochs * -(-count // options.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=0.1, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, total_steps=steps, pct_start=0.1)
    model.train()
    losses: list[float] = []
    for _ in range(options.epochs):
        prompts, answers = epoch()
        lines = torch.cat([prompts["input_ids"], answers], 1)
        mask = torch.cat([prompts["attention_mask"], torch.ones_like(answers)], 1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)  # as `generate` counts them behind padding on the left
        is_answer = pad(answers != model.config.pad_token_id, (lines.shape[1] - answers.shape[1], 0))
        labels = lines.where(is_answer, IGNORED)
        # lines of about one length go together, so that little is computed on padding
        batches = (is_answer.sum(1) + torch.rand(count)).argsort().split(options.batch)
        losses = []
        for i in torch.randperm(len(batches)).tolist():
            rows = batches[i]
            width = int(is_answer[rows].any(0).nonzero()[-1]) + 1
            part = [x[rows, :width].to(model.device) for x in (lines, mask, positions, labels)]
            loss = model(input_ids=part[0], attention_mask=part[1], position_ids=part[2], labels=part[3]).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return float(np.mean(losses))


@torch.no_grad()
def speak(
    model: LlamaForCausalLM, prompts: Prompts, processor: ActionLogitsProcessor, constrained: bool, way: str
) -> torch.Tensor:
    """Return what the model writes after each prompt, `(n, m)`, ended and padded."""
    model.eval()
    vocabulary, written = processor.vocabulary, []
    for begin in range(0, len(prompts["input_ids"]), 125):
        part = {name: tensor[begin : begin + 125].to(model.device) for name, tensor in prompts.items()}
        lines = model.generate(
            **part,
            logits_processor=[processor] if constrained else [],
            max_new_tokens=processor.max_new_tokens,
            eos_token_id=vocabulary.end_id,
            pad_token_id=vocabulary.pad_id,
            **WAYS[way],
        )[:, part["input_ids"].shape[1] :]
        written.append(pad(lines, (0, processor.max_new_tokens - lines.shape[1]), value=vocabulary.pad_id).cpu())
    return torch.cat(written)


def judge(written: torch.Tensor, wanted: Floats, tokenizer: ActionTokenizer, vocabulary: ActionVocabulary) -> dict:
    """Return how many chunks decode and the error of those that do."""
    actions, valid = tokenizer.try_decode(vocabulary.to_actions(written, errors="mask"))
    errors = np.square(actions.numpy().astype(np.float64) - wanted).mean(axis=(1, 2))[valid.numpy()]
    return {"decoded": int(valid.sum()), "of": len(valid), "error": float(errors.mean()) if len(errors) else None}


def last_actions(cut: Chunks, episodes: Episodes) -> Floats:
    """Return the action before each chunk, `(n, 1, d)`."""
    at = {name: i for i, name in enumerate(episodes.names)}
    return np.stack([episodes.actions[at[n]][s - 1 : s] for n, s in zip(cut.episode, cut.start, strict=True)])


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Fit, train, generate; return the report."""
    fitted, held_out = Episodes.load(DEMO_DATA).split(HELD_OUT, seed=0)
    if options.validation:
        fitted, held_out = fitted.split(HELD_OUT, seed=1)
    learned, cut = chunks(fitted, HORIZON, options.stride), chunks(held_out, HORIZON)
    # an episode's first chunk has no last action to repeat; of the others some, evenly over all episodes
    later = np.flatnonzero(cut.start > 0)
    chosen = later[np.linspace(0, len(later) - 1, min(options.chunks, len(later))).round().astype(int)]
    wanted = Chunks(cut.actions[chosen], cut.episode[chosen], cut.start[chosen], cut.key)

    kind, parameters = parse_spec(options.tokenizer)
    tokenizer = tokenizer_class(kind)(**({"horizon": HORIZON} | parameters)).fit(fitted)
    states = BinningTokenizer(horizon=1, bins=STATE_BINS).fit(list(fitted.states))
    tasks = read_tasks(DEMO_DATA)
    text = build_text_tokenizer(tasks.values())
    model = build_model(text, options)
    vocabulary = ActionVocabulary.add_tokens(text, tokenizer, end_id=text.eos_token_id, pad_id=text.pad_token_id)
    model.resize_token_embeddings(vocabulary.model_rows, mean_resizing=False)
    model.to(options.device)

    rng, numbers = np.random.default_rng(options.seed), observe(learned, fitted, states)

    def ask(cut: Chunks, numbers: Integers) -> Prompts:
        prompts = write_prompts(cut, numbers, tasks)
        return dict(text(prompts, return_tensors="pt", padding=True, return_token_type_ids=False))

    def epoch() -> tuple[Prompts, torch.Tensor]:
        blurred = (numbers + rng.normal(0, options.blur, numbers.shape).round().astype(int)).clip(0, STATE_BINS - 1)
        actions = learned.actions.copy()
        actions[..., HAND] += rng.normal(0, options.jitter, actions[..., HAND].shape)
        answers = vocabulary.to_model(tokenizer.encode(actions.clip(-1, 1)), end=True)
        return ask(learned, blurred), torch.from_numpy(answers)

    began = time.perf_counter()
    loss = train(model, epoch, len(learned), options)
    trained = time.perf_counter()
    prompts = ask(wanted, observe(wanted, held_out, states))
    processor = ActionLogitsProcessor(tokenizer, vocabulary, start=prompts["input_ids"].shape[1])
    generated = {}
    for constrained in (False, True):
        for way in WAYS:
            torch.manual_seed(options.seed)
            written = speak(model, prompts, processor, constrained, way)
            name = f"{'constrained' if constrained else 'free'}, {way}"
            generated[name] = judge(written, wanted.actions, tokenizer, vocabulary)
    truth = wanted.actions.astype(np.float64)
    errors = {
        "mean action": float(np.square(np.concatenate(fitted.actions).mean(0) - truth).mean()),
        "repeat last action": float(np.square(last_actions(wanted, held_out) - truth).mean()),
        "tokenizer alone": float(np.square(tokenizer.quantize(wanted.actions) - truth).mean()),
    }
    return {
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", "action-tokenizers")},
        "options": {name: str(value) for name, value in vars(options).items()},
        "sizes": {
            "episodes": [len(fitted), len(held_out)],
            "chunks": [len(learned), len(wanted)],
            "parameters": sum(p.numel() for p in model.parameters()),
            "text_ids": vocabulary.text_size,
            "action_ids": len(vocabulary.rows),
            "ids_per_chunk": float(tokenizer.pad_mask(tokenizer.encode(wanted.actions)).sum(1).mean()),
            "prompt_ids": prompts["input_ids"].shape[1],
        },
        "loss": loss,
        "seconds": {"training": trained - began, "generating": time.perf_counter() - trained},
        "errors": errors,
        "generated": generated,
        "holds": holds(errors, generated),
    }


def holds(errors: dict[str, float], generated: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """Return the criteria and whether they hold."""
    best = min(errors["mean action"], errors["repeat last action"])
    free, constrained = ([r for name, r in generated.items() if name.startswith(k)] for k in ("free", "constrained"))
    return {
        "error of constrained generations below both baselines": all(r["error"] < best for r in constrained),
        "more than half of the free generations decode": all(2 * r["decoded"] > r["of"] for r in free),
        "all constrained generations decode": all(r["decoded"] == r["of"] for r in constrained),
    }


def table(report: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    lines = ["| policy | decoded | mean squared error |", "|---|---|---|"]
    for name, result in report["generated"].items():
        error = "-" if result["error"] is None else f"{result['error']:.4f}"
        lines.append(f"| {name} | {result['decoded']} of {result['of']} | {error} |")
    for name, value in report["errors"].items():
        lines.append(f"| {name} | | {value:.4f} |")
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", default="fast:scale=2,vocab_size=128", help="type:name=value,...")
    parser.add_argument("--width", type=int, default=64, help="of the model, a multiple of 16")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--blur", type=float, default=3.0, help="noise of the states in training, in integers")
    parser.add_argument("--jitter", type=float, default=0.02, help="noise of the actions in training")
    parser.add_argument("--stride", type=int, default=1, help="frames between the chunks to learn")
    parser.add_argument("--chunks", type=int, default=500, help="held-out chunks to generate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of torch; more wait for each other on a busy machine")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--validation", action="store_true", help="hold out training episodes, to make choices by")
    parser.add_argument("--smoke", action="store_true", help="a few seconds: tiny model, few chunks, judged by nothing")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.width, options.layers, options.epochs, options.stride, options.chunks = 32, 1, 1, 40, 10
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; exit 1 where a criterion does not hold."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    report = run(options)
    print(table(report))
    for criterion, fine in report["holds"].items():
        print(f"{criterion}: {'yes' if fine else 'NO'}")
    print(f"trained in {report['seconds']['training']:.0f} s, generated in {report['seconds']['generating']:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if options.smoke or all(report["holds"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
