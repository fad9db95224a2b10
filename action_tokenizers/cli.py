"""The command line: `action-tokenizers demo | fit | encode | decode | info | compare`.

The only module that draws. Results go to standard output, progress and warnings to standard error. Exit codes: 0
fine, 2 wrong usage or unusable input (one line, no traceback).
"""

import argparse
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from action_tokenizers import __version__
from action_tokenizers.base import ActionTokenizer, Progress
from action_tokenizers.data import ChunkSample, Episodes, Relative, chunks, default_horizon
from action_tokenizers.diagnostics.compare import COLUMNS, Comparison, compare
from action_tokenizers.diagnostics.error import two_valued
from action_tokenizers.errors import ActionTokenizerError, ActionValueError, FormatError
from action_tokenizers.registry import BUILT_IN, known_types, tokenizer_class

__all__ = ["main", "parse_spec"]

DEMO_DATA = Path(__file__).parent / "data" / "demo"
# 0.2 s at 80 Hz; one second would be longer than a third of the episodes
DEMO_HORIZON = 16
DEMO_STRIDE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        with _one_line_warnings():
            options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # whoever read our output has seen enough; keep the interpreter from complaining at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ActionTokenizerError, OSError) as error:
        print(f"action-tokenizers: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Return type and parameters of `type` or `type:name=value,name=value`; values are JSON, else text.

    Raises:
        ActionValueError: not of that form.

    Example:
        >>> parse_spec("binning:bins=[256,256,2],strategy=quantile")
        ('binning', {'bins': [256, 256, 2], 'strategy': 'quantile'})
    """
    kind, _, rest = spec.partition(":")
    params: dict[str, Any] = {}
    # a comma that begins the next name=, not one inside a list
    for item in filter(None, re.split(r",(?=\w+=)", rest)):
        name, equals, value = item.partition("=")
        if not equals:
            raise ActionValueError(f"expected type:name=value,..., got {spec!r}")
        try:
            params[name] = json.loads(value)
        except ValueError:
            params[name] = value
    return kind, params


def _demo(options: argparse.Namespace) -> None:
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    episodes = Episodes.load(DEMO_DATA)
    tokenizers = {name: _unfitted(name, {"horizon": options.horizon}) for name in BUILT_IN}
    with _progress() as progress:
        comparison = compare(tokenizers, episodes, stride=DEMO_STRIDE, progress=progress)
    for name, tokenizer in tokenizers.items():
        tokenizer.save_pretrained(out / "tokenizers" / name)
    _write(out / "comparison.md", comparison.to_markdown())
    _write(out / "comparison.json", comparison.to_json() + "\n")
    _show(comparison, options.json)
    if not options.json:
        print(f"\nreport: {out / 'comparison.md'}\ntokenizers: {out / 'tokenizers'}/{{{','.join(tokenizers)}}}")


def _fit(options: argparse.Namespace) -> None:
    kind, params = parse_spec(options.spec)
    if options.horizon is not None:
        params["horizon"] = options.horizon
    tokenizer = _unfitted(kind, params)
    sources = [_load(source, options, several=len(options.data) > 1) for source in options.data]
    sample = ChunkSample(options.max_chunks, options.seed)
    horizon = params.get("horizon") or default_horizon(sources[0])
    if horizon is None:
        raise ActionValueError(f"expected --horizon, because {sources[0].source} does not say its fps")
    relative = Relative(options.relative_to, options.angles) if options.relative_to else None
    for episodes in sources:
        sample.add(episodes, horizon, options.stride, relative)
    with _progress() as progress:
        tokenizer.fit(sample, progress=progress)
    folder = tokenizer.save_pretrained(options.out)
    facts = _facts_of(tokenizer) | {"skipped_episodes": sample.skipped, "folder": str(folder)}
    _print_facts(facts, options.json)


def _encode(options: argparse.Namespace) -> None:
    tokenizer = ActionTokenizer.from_pretrained(options.tokenizer)
    episodes = _load(options.data, options)
    horizon = options.horizon or tokenizer.horizon or default_horizon(episodes)
    if horizon is None:
        raise ActionValueError(f"expected --horizon, because neither {options.tokenizer} nor the data say one")
    found = chunks(episodes, horizon, options.stride or horizon, tokenizer.relative)
    key = options.range_key or (episodes.key if episodes.key in tokenizer.range_keys else None)
    ids = tokenizer.encode(found.actions, key=key)
    lengths = tokenizer.length(ids, horizon=horizon)
    # decode needs what relative actions are relative to
    references = {} if found.reference is None else {"reference": found.reference}
    where = {"episode": found.episode, "start": found.start, "horizon": horizon}
    _save_arrays(options.out, ids=ids, length=lengths, **where, **references)
    facts = {
        "chunks": len(ids),
        "tokens": float(lengths.mean()),
        "skipped_episodes": found.skipped,
        "clipped": float(tokenizer.clip_report(found.actions, key=key).mean()),
        "file": str(options.out),
    }
    _print_facts(facts, options.json)


def _decode(options: argparse.Namespace) -> None:
    tokenizer = ActionTokenizer.from_pretrained(options.tokenizer)
    ids, horizon, reference = _load_ids(Path(options.ids))
    if tokenizer.relative is not None and reference is None:
        raise FormatError(
            f"expected `reference` in {options.ids}, because the tokenizer's actions are relative; got none"
        )
    where = {"horizon": horizon if tokenizer.horizon is None else None, "key": options.range_key}
    if options.repair:
        actions, valid = tokenizer.try_decode(ids, **where)
    else:
        actions = tokenizer.decode(ids, **where)
        valid = np.ones(len(actions), bool)
    if tokenizer.relative is not None:
        actions = tokenizer.relative.invert(actions, reference)
    _save_arrays(options.out, actions=actions, valid=valid)
    _print_facts({"chunks": len(actions), "repaired": int((~valid).sum()), "file": str(options.out)}, options.json)


def _info(options: argparse.Namespace) -> None:
    path = Path(options.path)
    if (path / "config.json").is_file():
        _print_facts(_facts_of(ActionTokenizer.from_pretrained(path)), options.json)
        return
    episodes = _load(options.path, options)
    joined = np.concatenate(episodes.actions)
    lengths = sorted(episodes.lengths)
    facts = {
        "source": episodes.source,
        "episodes": len(episodes),
        "frames": episodes.frames,
        "episode_length": f"{lengths[0]} / {lengths[len(lengths) // 2]} / {lengths[-1]} (min / median / max)",
        "fps": episodes.fps,
        "default_horizon": default_horizon(episodes),
        "action_dim": episodes.action_dim,
        "action_names": list(episodes.action_names) if episodes.action_names else None,
        "minimum": joined.min(0).astype(float).round(5).tolist(),
        "maximum": joined.max(0).astype(float).round(5).tolist(),
        "constant_dims": np.flatnonzero(joined.min(0) == joined.max(0)).tolist(),
        "two_valued_dims": two_valued(episodes.actions),
    }
    _print_facts(facts, options.json)


def _compare(options: argparse.Namespace) -> None:
    episodes = _load(options.data, options)
    tokenizers: dict[str, ActionTokenizer] = {}
    for spec in options.tokenizers or list(BUILT_IN):
        kind, params = parse_spec(spec)
        if Path(spec).is_dir():
            tokenizers[Path(spec).name if Path(spec).name not in tokenizers else spec] = (
                ActionTokenizer.from_pretrained(spec)
            )
        else:
            tokenizers[spec] = _unfitted(kind, {"horizon": options.horizon} | params)
    with _progress() as progress:
        comparison = compare(
            tokenizers,
            episodes,
            test=options.test,
            stride=options.stride,
            max_chunks=options.max_chunks,
            seed=options.seed,
            allow_single_episode=options.allow_single_episode,
            progress=progress,
        )
    if options.out:
        out = Path(options.out)
        out.mkdir(parents=True, exist_ok=True)
        _write(out / "comparison.md", comparison.to_markdown())
        _write(out / "comparison.json", comparison.to_json() + "\n")
    _show(comparison, options.json)


def _load(source: str, options: argparse.Namespace, *, several: bool = False) -> Episodes:
    columns = {"action": options.action, "state": options.state, "fps": options.fps}
    episodes = Episodes.load(source, key=options.key, **columns)
    # several robots or data sets get a range each, named after them
    return Episodes.load(source, key=episodes.source, **columns) if several and options.key is None else episodes


def _unfitted(kind: str, params: dict[str, Any]) -> ActionTokenizer:
    try:
        tokenizer: ActionTokenizer = tokenizer_class(kind)(**params)
    except TypeError as error:
        raise ActionValueError(f"expected parameters of {kind}, got {error}") from error
    return tokenizer


def _load_ids(file: Path) -> tuple[Any, int | None, Any]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            horizon = int(arrays["horizon"]) if "horizon" in arrays else None
            return arrays["ids"], horizon, arrays.get("reference")
    except (ValueError, KeyError, EOFError, BadZipFile) as error:
        raise FormatError(f"expected an .npz written by encode, got {file}: {error}") from error


def _facts_of(tokenizer: ActionTokenizer) -> dict[str, Any]:
    return {
        "tokenizer_type": tokenizer.tokenizer_type,
        "horizon": tokenizer.horizon,
        "action_dim": tokenizer.action_dim,
        "vocab_size": tokenizer.vocab_size,
        "max_tokens": tokenizer.max_tokens,
        "pad_id": tokenizer.pad_id,
        "range_keys": list(tokenizer.range_keys),
        "prefix_decodable": tokenizer.prefix_decodable,
        "params": {name: str(value) for name, value in tokenizer.get_params().items()},
        "provenance": dict(tokenizer.provenance),
    }


def _print_facts(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k}={v}" for k, v in value.items())
        print(f"{name:<{width}}  {'-' if value is None else value}")


def _show(comparison: Comparison, as_json: bool) -> None:
    if as_json:
        print(comparison.to_json())
        return
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("held out")
    for name in comparison.rows:
        table.add_column(name, justify="right", no_wrap=True)
    for column in COLUMNS:
        table.add_row(column.heading, *comparison.cells(column))
    console = Console()
    # in a pipe there is no width to fit, and a cut number is no number
    wide = 24 + sum(max(len(name), 9) + 3 for name in comparison.rows)
    print(comparison.caption())
    Console(width=max(console.width, wide)).print(table)
    for note in comparison.notes:
        print(f"note: {note}")


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")


def _save_arrays(out: str, **arrays: Any) -> None:
    if not out.endswith(".npz"):
        raise ActionValueError(f"expected --out to end in .npz, got {out!r}")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    partial = Path(f"{out}.partial")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """Draw bars on a terminal, nothing in a pipe."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield update


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="action-tokenizers",
        description="Fit, compare and use tokenizers of robot actions.",
        epilog=f"Tokenizer types: {', '.join(known_types())}. A SPEC is a type, or type:name=value,name=value.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    verb = _verb(verbs, "demo", _demo, "fit all families on the embedded demonstrations and compare them")
    verb.add_argument("--out", default="demo_output", help="folder for report and tokenizers (%(default)s)")
    verb.add_argument("--horizon", type=_positive, default=DEMO_HORIZON, help="steps per chunk (%(default)s)")

    verb = _verb(verbs, "fit", _fit, "fit a tokenizer and save it")
    verb.add_argument("spec", metavar="SPEC")
    verb.add_argument("data", nargs="+", metavar="DATA", help="folder, file or Hub id; several get a range key each")
    verb.add_argument("--out", required=True, metavar="DIR")
    verb.add_argument("--horizon", type=_positive, help="steps per chunk (one second of data)")
    verb.add_argument("--relative-to", choices=("state", "previous"), help="code actions relative to that")
    verb.add_argument("--angles", type=int, nargs="*", default=(), metavar="DIM", help="relative dims that wrap around")
    _sampling(verb, max_chunks=32768)
    _columns(verb)

    verb = _verb(verbs, "encode", _encode, "write the ids of a data set's chunks to an .npz")
    verb.add_argument("tokenizer", metavar="DIR")
    verb.add_argument("data", metavar="DATA")
    verb.add_argument("--out", required=True, metavar="FILE.npz")
    verb.add_argument("--horizon", type=_positive, help="where the tokenizer leaves it open")
    verb.add_argument("--stride", type=_positive, help="between chunk starts (the horizon)")
    verb.add_argument("--range-key", metavar="KEY", help="whose range, where several were fitted")
    _columns(verb)

    verb = _verb(verbs, "decode", _decode, "write the actions of an .npz of ids to an .npz")
    verb.add_argument("tokenizer", metavar="DIR")
    verb.add_argument("ids", metavar="FILE.npz")
    verb.add_argument("--out", required=True, metavar="FILE.npz")
    verb.add_argument("--range-key", metavar="KEY", help="whose range, where several were fitted")
    verb.add_argument("--repair", action="store_true", help="repair undecodable rows and flag them in `valid`")

    verb = _verb(verbs, "info", _info, "show what a tokenizer folder or a data set holds")
    verb.add_argument("path", metavar="DIR|DATA")
    _columns(verb)

    verb = _verb(verbs, "compare", _compare, "measure tokenizers side by side on held-out episodes")
    verb.add_argument("data", metavar="DATA")
    verb.add_argument("tokenizers", nargs="*", metavar="SPEC|DIR", help=f"default: {' '.join(BUILT_IN)}")
    verb.add_argument("--out", metavar="DIR", help="also write comparison.md and comparison.json there")
    verb.add_argument("--horizon", type=_positive, help="steps per chunk (one second of data)")
    verb.add_argument("--test", type=float, default=0.2, help="share of episodes held out (%(default)s)")
    verb.add_argument("--allow-single-episode", action="store_true", help="split a single recording in time")
    _sampling(verb, max_chunks=4096)
    _columns(verb)
    return parser


def _verb(verbs: Any, name: str, run: Callable[[argparse.Namespace], None], summary: str) -> Any:
    verb = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(run=run)
    return verb


def _sampling(verb: Any, max_chunks: int) -> None:
    verb.add_argument("--stride", type=_positive, default=1, help="between chunk starts (%(default)s)")
    verb.add_argument("--max-chunks", type=_positive, default=max_chunks, help="most chunks used (%(default)s)")
    verb.add_argument("--seed", type=int, default=0)


def _columns(verb: Any) -> None:
    verb.add_argument("--action", metavar="COLUMN", help="where the actions are, if not under a common name")
    verb.add_argument("--state", metavar="COLUMN")
    verb.add_argument("--key", help="range key of this data set")
    verb.add_argument("--fps", type=float, help="where the data do not say")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text}")
    return value
