"""AutoProcessor on a folder saved by this library, in the newest transformers 4.x and 5.x.

    python recipes/check_transformers.py
    python recipes/check_transformers.py --keep ~/.cache/check_transformers    # the environments serve again

One tokenizer of every family is fitted here and saved. Then, in a virtual environment for each transformers, in a fresh
process for each route, `AutoProcessor.from_pretrained(folder)` must return our object with identical ids and actions:

* shim: `trust_remote_code=True`, as unmodified policy code calls it; the module in the folder only imports our library;
* registration: `action_tokenizers.integrations.transformers.register()` first, and no code from the folder is run;
* generation: a small untrained Llama generates chunks under `ActionLogitsProcessor`, and every one decodes.

torch is installed in the version that runs here. Exit code 1: a check fails; 2: an environment cannot be made.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RELEASES = {"4": "transformers>=4.57,<5", "5": "transformers>=5,<6"}
ROUTES = ("shim", "registration", "generation")
WAYS = ({"do_sample": False}, {"do_sample": True}, {"do_sample": False, "num_beams": 3})
TEXT_SIZE, END, PAD, ROWS = 50, 2, 1, 400


def save_tokenizers(folder: Path) -> None:
    """Fit and save a tokenizer of every family, with the ids and actions that it gives here."""
    import numpy as np

    from action_tokenizers.data.synthetic import smooth_chunks
    from action_tokenizers.registry import FAMILIES, tokenizer_class

    actions = smooth_chunks(64, 8, 3)
    small = {"binning": {"bins": 16}, "fast": {"vocab_size": 256}}
    for name in FAMILIES:
        tokenizer = tokenizer_class(name)(**small.get(name, {"codebook_size": 16})).fit(actions)
        tokenizer.save_pretrained(folder / name)
        ids = tokenizer.encode(actions)
        np.savez(folder / f"{name}.npz", chunks=actions, ids=ids, decoded=tokenizer.decode(ids))


def prepare(folder: Path, release: str, python: str) -> Path:
    """Return the interpreter of an environment with that transformers and this library; make it where it is missing."""
    from importlib.metadata import version

    home = folder / f"transformers-{release}"
    interpreter = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    ready = home / "ready"
    if ready.is_file():
        return interpreter
    print(f"making {home}", flush=True)
    subprocess.run([python, "-m", "venv", "--clear", home], check=True)
    pip = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, f"torch=={version('torch').partition('+')[0]}"], check=True)
    subprocess.run([*pip, RELEASES[release], "-e", ROOT], check=True)
    ready.touch()
    return interpreter


def check(interpreter: Path, route: str, folder: Path) -> list[dict[str, Any]]:
    """Run one route in a fresh process of `interpreter` and return what it found, one result per tokenizer."""
    # no network, and nothing imported from an older run
    home = tempfile.mkdtemp(prefix="hf-", dir=folder)
    surroundings = os.environ | {"HF_HOME": home, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    surroundings.pop("PYTHONPATH", None)
    command = [interpreter, Path(__file__).resolve(), "--inside", route, "--keep", folder]
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=600)
    try:
        results: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        why = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return [{"transformers": "?", "tokenizer": "all", "route": route, "fine": False, "found": why}]
    return results


def inside(route: str, folder: Path) -> list[dict[str, Any]]:
    """Check every saved tokenizer in this process."""
    import transformers

    results = []
    for file in sorted(folder.glob("*.npz")):
        try:
            found = generate(file) if route == "generation" else load(file, route)
            fine = True
        except Exception as error:  # whatever it is, it belongs into the table
            found, fine = f"{type(error).__name__}: {' '.join(str(error).split())}", False
        result = {"transformers": transformers.__version__, "tokenizer": file.stem, "route": route}
        results.append(result | {"fine": fine, "found": found})
    return results


def load(file: Path, route: str) -> str:
    """Load the folder beside `file` with AutoProcessor and compare; return what was found."""
    import numpy as np
    from transformers import AutoProcessor

    from action_tokenizers import ActionTokenizer
    from action_tokenizers.integrations.transformers import register

    if route == "registration":
        register()
    options = {"trust_remote_code": True} if route == "shim" else {}
    tokenizer = AutoProcessor.from_pretrained(str(file.with_suffix("")), **options)
    if not isinstance(tokenizer, ActionTokenizer) or tokenizer.tokenizer_type != file.stem:
        raise TypeError(f"expected our {file.stem}, got {type(tokenizer)}")
    executed = [name for name in sys.modules if name.startswith("transformers_modules.")]
    if route == "registration" and executed:
        raise RuntimeError(f"expected no code of the folder to run, got {executed}")
    with np.load(file) as wanted:
        if not np.array_equal(tokenizer(wanted["chunks"]), wanted["ids"]):
            raise ValueError("expected identical ids, got others")
        if not np.array_equal(tokenizer.decode(wanted["ids"]), wanted["decoded"]):
            raise ValueError("expected identical actions, got others")
        return f"{type(tokenizer).__name__}, {wanted['ids'].size} ids identical"


def generate(file: Path) -> str:
    """Let an untrained model generate chunks under `ActionLogitsProcessor`; return how many decode."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from action_tokenizers import ActionTokenizer
    from action_tokenizers.integrations.transformers import ActionLogitsProcessor
    from action_tokenizers.vocabulary import ActionVocabulary

    torch.manual_seed(0)
    tokenizer = ActionTokenizer.from_pretrained(file.with_suffix(""))
    vocabulary = ActionVocabulary.append(TEXT_SIZE, tokenizer, model_rows=ROWS, end_id=END, pad_id=PAD)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    marks = {"bos_token_id": 0, "eos_token_id": END, "pad_token_id": PAD}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=ROWS, **sizes, **marks)).eval()
    prompts = torch.tensor([[PAD, PAD, 0, 7], [0, 5, 6, 7], [PAD, 0, 9, 8]])
    count = 0
    for way in WAYS:
        processor = ActionLogitsProcessor(tokenizer, vocabulary, start=prompts.shape[1])
        lines = model.generate(
            prompts,
            attention_mask=(prompts != PAD).long(),
            logits_processor=[processor],
            max_new_tokens=processor.max_new_tokens,
            eos_token_id=END,
            pad_token_id=PAD,
            **way,
        )
        count += len(tokenizer.decode(vocabulary.to_actions(lines[:, prompts.shape[1] :])))
    return f"{count} of {count} chunks decode"


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """Return the results as a table."""
    lines = ["| transformers | route | tokenizer | found | |", "|---|---|---|---|---|"]
    for r in results:
        verdict = "ok" if r["fine"] else "FAILS"
        lines.append(f"| {r['transformers']} | {r['route']} | {r['tokenizer']} | {r['found']} | {verdict} |")
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="folder for the environments, outside this checkout; kept")
    parser.add_argument("--python", default=sys.executable, help="interpreter to make the environments with")
    parser.add_argument("--releases", nargs="+", choices=sorted(RELEASES), default=sorted(RELEASES))
    parser.add_argument("--inside", choices=ROUTES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.keep is not None:
        options.keep = options.keep.expanduser().resolve()
        if options.keep.is_relative_to(ROOT):
            parser.error(f"expected --keep outside {ROOT}, got {options.keep}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Make or reuse the environments, check, print the table; return the exit code."""
    options = parse(arguments)
    if options.inside:
        print(json.dumps(inside(options.inside, options.keep)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        saved = Path(temporary) / "saved"
        save_tokenizers(saved)
        try:
            interpreters = [prepare(folder, release, options.python) for release in options.releases]
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"cannot make an environment: {error}", file=sys.stderr)
            return 2
        results = [result for one in interpreters for route in ROUTES for result in check(one, route, saved)]
    print(markdown(results))
    fine = bool(results) and all(result["fine"] for result in results)
    print(f"\nAutoProcessor returns our object with identical ids: {'yes' if fine else 'NO'}")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
