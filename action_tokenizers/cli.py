"""The command line: `action-tokenizers demo | fit | encode | decode | info | audit | compare | sweep | push | ...`.

The only module that draws. Results go to standard output, progress and warnings to standard error. Exit codes: 0
fine, 1 a condition fails under --strict, 2 wrong usage or unusable input (one line, no traceback).
"""

import argparse
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from action_tokenizers import __version__
from action_tokenizers.base import ActionTokenizer, Progress
from action_tokenizers.data import (
    ChunkSample,
    Episodes,
    Relative,
    Shards,
    chunks,
    default_horizon,
)
from action_tokenizers.data.episodes import locate
from action_tokenizers.data.readers.detect import layout_of
from action_tokenizers.data.shards import STREAMED
from action_tokenizers.data.streaming import complete, count_left_out, empty_sample, is_large, opened, sample_files
from action_tokenizers.diagnostics.along import two_valued
from action_tokenizers.diagnostics.audit import audit
from action_tokenizers.diagnostics.compare import COLUMNS, Comparison, compare
from action_tokenizers.diagnostics.frontier import SWEEP, Frontier, frontier
from action_tokenizers.diagnostics.pages import sweep_html
from action_tokenizers.diagnostics.report import AuditReport, Status
from action_tokenizers.diagnostics.tables import SWEEP_COLUMNS, front_page, sweep_markdown, sweep_rows
from action_tokenizers.errors import ActionTokenizerError, ActionValueError, FormatError, HubError, MissingExtraError
from action_tokenizers.integrations.token_shards import MANIFEST, MARK, encode_shards, read_manifest
from action_tokenizers.registry import FAMILIES, known_types, tokenizer_class
from action_tokenizers.tokenizers.published_fast import PublishedFASTTokenizer
from action_tokenizers.warn import warn

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
            options.code = 0
            options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # whoever read our output has seen enough; keep the interpreter from complaining at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return getattr(options, "code", 0)
    except (ActionTokenizerError, OSError) as error:
        print(f"action-tokenizers: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    code: int = options.code
    return code


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
    out = _output_folder(options.out)
    episodes = Episodes.load(DEMO_DATA)
    tokenizers = {name: _unfitted(name, {"horizon": options.horizon}) for name in FAMILIES}
    with _progress() as progress:
        comparison = compare(tokenizers, episodes, stride=DEMO_STRIDE, progress=progress)
    for name, tokenizer in comparison.tokenizers.items():
        tokenizer.save_pretrained(out / "tokenizers" / name)
    _write_report(comparison, out, page=False)  # it shall run without any extra
    _show(comparison, options.json)
    if not options.json:
        print(f"\nreport: {out / 'comparison.md'}\ntokenizers: {out / 'tokenizers'}/{{{','.join(tokenizers)}}}")


def _fit(options: argparse.Namespace) -> None:
    if options.angles and not options.relative_to:
        raise ActionValueError("expected --relative-to beside --angles: only relative dims wrap around; got none")
    out = _output_folder(options.out)
    kept = None if options.resume is None else _output_folder(options.resume)
    if kept is not None and kept.resolve() == out.resolve():
        raise ActionValueError(f"expected --resume another folder than --out, got {options.out} for both")
    kind, params = parse_spec(options.spec)
    tokenizer = _unfitted(kind, {"horizon": options.horizon} | params)
    sources = _load_several(options)
    sample = ChunkSample(options.max_chunks, options.seed)
    first = sources[0]
    horizon = tokenizer.asked_horizon or (default_horizon(first) if isinstance(first, Episodes) else first.horizon)
    if horizon is None:
        raise ActionValueError(f"expected --horizon, because {first.source} does not say its fps")
    relative = Relative(options.relative_to, options.angles) if options.relative_to else None
    with _progress() as progress:
        for number, data in enumerate(sources):
            if isinstance(data, Shards) and options.test is not None and data.episodes == 1:
                # a single recording is split in time, which needs all of it
                count_left_out(sample, data)
                data = data.load()
            if isinstance(data, Episodes):
                part = data if options.test is None else data.split(options.test, seed=options.seed, horizon=horizon)[0]
                sample.add(part, horizon, options.stride, relative)
                continue
            shards = data if options.test is None else data.split(options.test, seed=options.seed)[0]
            found = empty_sample(shards, options.max_chunks, options.seed, None, horizon, options.stride)
            file = None if kept is None else kept / f"sample-{number}.safetensors"
            files = range(len(shards))
            sample_files(shards, files, found, options.stride, relative, file, progress=progress, whole=True)
            # one that is empty may still be one of several
            sample.merge(complete(found, shards) if len(found) or len(sources) == 1 else found)
    with _progress() as progress, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*shorter than the horizon")  # printed below
        tokenizer.fit(sample, progress=progress)
    folder = tokenizer.save_pretrained(options.out)
    facts = _facts_of(tokenizer) | {"skipped_episodes": sample.skipped, "folder": str(folder)}
    if options.skip_broken and (options.json or sample.skipped_shards or sample.lost_episodes):
        facts |= {"skipped_files": list(sample.skipped_shards), "lost_episodes": sample.lost_episodes}
    _print_facts(facts, options.json)


def _encode(options: argparse.Namespace) -> None:
    if options.shards is not None:
        _encode_shards(options)
        return
    _output_file(options.out)
    tokenizer = _tokenizer(options.tokenizer)
    episodes = _load(options.data, options)
    horizon = options.horizon or tokenizer.horizon or default_horizon(episodes)
    if horizon is None:
        raise ActionValueError(f"expected --horizon, because neither {options.tokenizer} nor the data say one")
    # to the end of every episode: the last chunk repeats its last step, and the mask says so
    found = chunks(episodes, horizon, options.stride or horizon, tokenizer.relative, pad_tail=True)
    key = options.key or (tokenizer.range_keys[0] if len(tokenizer.range_keys) == 1 else None)
    ids = tokenizer.encode(found.actions, key=key, action_is_pad=found.action_is_pad)
    lengths = tokenizer.length(ids, horizon=horizon, action_dim=episodes.action_dim)
    # decode needs what relative actions are relative to
    reference = {} if found.reference is None else {"reference": found.reference}
    where = {
        "episode": found.episode,
        "start": found.start,
        "horizon": horizon,
        "action_dim": episodes.action_dim,
        "action_is_pad": found.padding,
    }
    _save_arrays(options.out, ids=ids, length=lengths, key=np.array(key or ""), **where, **reference)
    facts = {
        "chunks": len(ids),
        "tokens": round(float(lengths.mean()), 2),
        "clipped": float(tokenizer.clip_report(found.actions, key=key).mean()),
        "file": str(options.out),
    }
    _print_facts(facts, options.json)


def _encode_shards(options: argparse.Namespace) -> None:
    _output_folder(options.shards)
    tokenizer = _tokenizer(options.tokenizer)
    # the key says whose range, and is no name of these data
    opening = {name: value for name, value in _opening(options).items() if name != "key"}
    how = {"horizon": options.horizon, "stride": options.stride, "key": options.key}
    with _progress() as progress:
        manifest = encode_shards(tokenizer, options.data, options.shards, **how, progress=progress, **opening)
    facts = {
        "files": len(manifest["files"]),
        "episodes": manifest["episodes"],
        "chunks": manifest["chunks"],
        "tokens": round(manifest["tokens"] / manifest["chunks"], 2),
        "folder": options.shards,
    }
    if manifest["skipped_shards"] or options.skip_broken:
        facts |= {"skipped_files": manifest["skipped_shards"], "lost_episodes": manifest["lost_episodes"]}
    _print_facts(facts, options.json)


def _decode(options: argparse.Namespace) -> None:
    tokenizer = _tokenizer(options.tokenizer)
    _output_file(options.out)
    ids, horizon, action_dim, reference, key = _load_ids(Path(options.ids))
    if tokenizer.relative is not None and reference is None:
        raise FormatError(
            f"expected `reference` in {options.ids}, because the tokenizer's actions are relative; got none"
        )
    where: dict[str, Any] = {
        "horizon": horizon if tokenizer.horizon is None else None,
        "action_dim": action_dim if tokenizer.action_dim is None else None,
        "key": options.key or key,
    }
    if options.repair:
        actions, valid = tokenizer.try_decode(ids, **where)
    else:
        actions = tokenizer.decode(ids, **where)
        valid = np.ones(np.shape(ids)[:-1], bool)
    if tokenizer.relative is not None:
        actions = tokenizer.relative.invert(actions, reference)
    _save_arrays(options.out, actions=actions, valid=valid)
    _print_facts({"chunks": len(actions), "repaired": int((~valid).sum()), "file": str(options.out)}, options.json)


def _info(options: argparse.Namespace) -> None:
    if any((Path(options.path) / name).is_file() for name in (MANIFEST, MARK)):
        manifest = read_manifest(options.path)
        _print_facts({name: said for name, said in manifest.items() if name != "files"}, options.json)
        return
    try:
        facts = _facts_of(_tokenizer(options.path))
    except (FormatError, HubError) as no_tokenizer:
        try:
            facts = _facts_of_data(_load(options.path, options))
        except (FormatError, HubError) as no_data:
            if _holds_tokenizer(options.path):
                raise no_tokenizer from None
            raise FormatError(
                f"expected a tokenizer or a data set; as tokenizer: {no_tokenizer}; as data: {no_data}"
            ) from no_data
    _print_facts(facts, options.json)


def _facts_of_data(episodes: Episodes) -> dict[str, Any]:
    joined = np.concatenate(episodes.actions)
    lengths = sorted(episodes.lengths)
    return {
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


def _push(options: argparse.Namespace) -> None:
    address = ActionTokenizer.from_pretrained(options.folder).push_to_hub(
        options.repo,
        revision=options.revision,
        private=options.private or None,
        commit_message=options.message,
        create_pr=options.create_pr,
        license=options.license,
    )
    _print_facts({"repository": options.repo, "address": address}, options.json)


def _import(options: argparse.Namespace) -> None:
    _output_folder(options.out)
    tokenizer = _tokenizer(options.source)
    if options.range_from:
        if not isinstance(tokenizer, PublishedFASTTokenizer):
            raise ActionValueError(
                f"expected a published FAST tokenizer beside --range-from, got a {tokenizer.tokenizer_type} "
                "tokenizer, which has a range of its own"
            )
        episodes = _load(options.range_from, options)
        tokenizer = tokenizer.with_range(ChunkSample().add(episodes, options.horizon or 1))
    if options.limit is not None:
        if not isinstance(tokenizer, PublishedFASTTokenizer):
            raise ActionValueError(
                f"expected a published FAST tokenizer beside --limit, got {tokenizer.tokenizer_type}"
            )
        tokenizer = tokenizer.with_limit(options.limit)
    folder = tokenizer.save_pretrained(options.out)
    _print_facts(_facts_of(tokenizer) | {"folder": str(folder)}, options.json)


def _export(options: argparse.Namespace) -> None:
    tokenizer = _tokenizer(options.tokenizer)
    if not isinstance(tokenizer, PublishedFASTTokenizer):
        raise ActionValueError(
            f"expected an imported FAST tokenizer to export, got a {tokenizer.tokenizer_type} tokenizer; other tools "
            "load its folder as it is, through AutoProcessor"
        )
    folder = tokenizer.to_published(_output_folder(options.out))
    _print_facts({"folder": str(folder), "files": sorted(p.name for p in folder.iterdir())}, options.json)


def _compare(options: argparse.Namespace) -> None:
    if options.strict and not options.audit:
        raise ActionValueError("expected --audit beside --strict: only an audit has conditions; got none")
    if options.out:
        _output_folder(options.out)
    episodes = _load(options.data, options)
    tokenizers: dict[str, ActionTokenizer] = {}
    for spec in options.tokenizers or list(FAMILIES):
        saved = Path(spec).is_dir() or "/" in spec.partition(":")[0]
        name = Path(spec).name if saved else spec
        name = spec if name in tokenizers else name
        if name in tokenizers:
            raise ActionValueError(f"expected every tokenizer once, got {name!r} twice")
        if saved:
            tokenizers[name] = _tokenizer(spec)
        else:
            kind, params = parse_spec(spec)
            tokenizers[name] = _unfitted(kind, {"horizon": options.horizon} | params)
    with _progress() as progress:
        comparison = compare(
            tokenizers,
            episodes,
            test=options.test,
            stride=options.stride,
            max_chunks=options.max_chunks,
            seed=options.seed,
            allow_single_episode=options.allow_single_episode,
            audits=options.audit,
            progress=progress,
        )
    written = _write_report(comparison, Path(options.out), page=True) if options.out else []
    options.code = _strictly(options, list(comparison.audits.values()))
    _show(comparison, options.json)
    if not options.json:
        _name_files(written)


def _audit(options: argparse.Namespace) -> None:
    if options.save and not (Path(options.tokenizer) / "model.safetensors").is_file():
        raise ActionValueError(f"expected a folder that we saved, to --save the audit in, got {options.tokenizer!r}")
    if options.out:
        _output_folder(options.out)
    tokenizer = _tokenizer(options.tokenizer)
    episodes = _load(options.data, options)
    if options.test is not None:
        _, episodes = episodes.split(options.test, seed=options.seed, horizon=tokenizer.horizon or options.horizon)
    with _progress() as progress:
        report = audit(
            tokenizer,
            episodes,
            states=False if options.no_states else None,
            seed=options.seed,
            horizon=options.horizon,
            unit=np.ones(episodes.action_dim) if options.normalised else None,
            budget=options.budget,
            progress=progress,
        )
    # what took minutes is written before anybody can close the pipe
    written = _write_audit(report, Path(options.out)) if options.out else []
    if options.save:
        written.append(tokenizer.save_pretrained(options.tokenizer, audit=report) / "README.md")
    options.code = _strictly(options, [report])
    if options.json:
        print(report.to_json_text(), end="")
        return
    _show_audit(report)
    _name_files(written)


def _sweep(options: argparse.Namespace) -> None:
    if options.out:
        _output_folder(options.out)
    episodes = _load(options.data, options)
    asked = {}
    for spec in options.tokenizers:
        kind, params = parse_spec(spec)
        asked[spec] = _unfitted(kind, {"horizon": options.horizon} | params)
    with _progress() as progress:
        found = frontier(
            episodes,
            asked or None,
            horizon=options.horizon,
            tokens=options.tokens,
            bits=options.bits,
            test=options.test,
            stride=options.stride,
            seed=options.seed,
            allow_single_episode=options.allow_single_episode,
            progress=progress,
        )
    written = []
    if options.out:
        folder = Path(options.out)
        pages = {"json": found.to_json_text, "md": lambda: sweep_markdown(found), "html": lambda: sweep_html(found)}
        written = _write_pages(folder, "sweep", pages)
        if found.recommended is not None:
            written.append(found.tokenizers[found.recommended].save_pretrained(folder / "recommended"))
    options.code = int(options.strict and found.recommended is None)
    if options.json:
        print(found.to_json_text(), end="")
        return
    _show_sweep(found)
    _name_files(written)


def _strictly(options: argparse.Namespace, reports: Sequence[AuditReport]) -> int:
    """Return the exit code of --strict: 1 where a condition fails."""
    return int(options.strict and any(report.failing for report in reports))


def _tokenizer(name: str) -> ActionTokenizer:
    """Load a tokenizer from a folder, or from `owner/name` or `owner/name@revision` on the Hub."""
    if Path(name).exists() or "@" not in name:
        return ActionTokenizer.from_pretrained(name)
    repo, _, revision = name.rpartition("@")
    return ActionTokenizer.from_pretrained(repo, revision=revision)


def _holds_tokenizer(path: str) -> bool:
    return any((Path(path) / name).is_file() for name in ("config.json", "processor_config.json"))


def _opening(options: argparse.Namespace) -> dict[str, Any]:
    """Return what is said of a data set, for `open_shards`."""
    said = {name: getattr(options, name) for name in ("action", "state", "episode", "key", "fps")}
    return {name: value for name, value in said.items() if value is not None} | {"skip_broken": options.skip_broken}


def _load(source: str, options: argparse.Namespace) -> Episodes:
    opening = _opening(options)
    if opening.pop("skip_broken"):
        if layout_of(locate(source, None, None)[0]) in STREAMED:
            return opened(source, None, opening | {"skip_broken": True}).load()
        warn(f"{source} is read as a whole: no file of it is left out")
    return Episodes.load(source, **opening)


def _load_or_open(source: str, options: argparse.Namespace) -> Episodes | Shards:
    """Load a data set of a fit, or index it where it is large or asked to be: then it is read file by file."""
    path, asked = locate(source, None, None)[0], options.skip_broken or options.resume is not None
    if (asked and layout_of(path) in STREAMED) or is_large(path):
        return opened(source, None, _opening(options), states=options.relative_to is not None)
    if options.resume is not None:
        warn(f"{source} is read as a whole: nothing of it is kept in {options.resume}")
    return _load(source, options)


def _load_several(options: argparse.Namespace) -> list[Episodes | Shards]:
    """Load the data sets of a fit; several get a range key each, as much of their paths as tells them apart."""
    loaded = [_load_or_open(source, options) for source in options.data]
    if len(loaded) == 1 or options.key is not None:
        return loaded
    parts = [
        Path(source).resolve().parts if Path(source).exists() else tuple(source.split("/")) for source in options.data
    ]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return [replace(data, key=name, source=name) for data, name in zip(loaded, names, strict=True)]
    raise ActionValueError(f"expected every data set once, got {options.data}")


def _unfitted(kind: str, params: dict[str, Any]) -> ActionTokenizer:
    try:
        tokenizer: ActionTokenizer = tokenizer_class(kind)(**params)
    except TypeError as error:
        raise ActionValueError(f"expected parameters of {kind}, got {error}") from error
    _ = tokenizer.asked_horizon  # refused now, not after the data are read
    return tokenizer


def _load_ids(file: Path) -> tuple[Any, int | None, int | None, Any, str | None]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            t, d = (int(arrays[name]) if name in arrays else None for name in ("horizon", "action_dim"))
            return arrays["ids"], t, d, arrays.get("reference"), str(arrays.get("key", "")) or None
    except (ValueError, TypeError, LookupError, EOFError, BadZipFile) as error:
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
        # the fingerprints are for the audit to recognise data by, not for people to read
        "provenance": {name: value for name, value in tokenizer.provenance.items() if name != "fingerprints"},
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


def _plain(text: str) -> str:
    """Return text that rich prints as it is, brackets included."""
    from rich.markup import escape

    return escape(text)


def _show(comparison: Comparison, as_json: bool) -> None:
    if as_json:
        print(comparison.to_json_text(), end="")
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
    for name, report in comparison.audits.items():
        console.print(f"[bold]{_plain(name)}[/]: {_plain(report.verdict)}", highlight=False)


def _show_audit(report: AuditReport) -> None:
    """Print the first screen: verdict, notes, what to do, the numbers in their order, and the conditions."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=140)
    colours = {Status.HOLDS: "green", Status.FAILS: "red", Status.NOT_SHOWN: "yellow"}
    console.print(f"[bold]{_plain(report.verdict)}[/]")
    console.print(_plain(report.caption))
    for note in report.notes:
        console.print(f"[yellow]note: {_plain(note)}[/]")
    for number, advice in enumerate(report.advice, 1):
        console.print(f"{number}. {_plain(advice)}")
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading, justify in (
        ("at a glance", "left"),
        ("value", "right"),
        ("95 %", "right"),
        ("unit", "left"),
        ("kind", "left"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for group in front_page(report):
        table.add_row(f"[bold]{group.title}[/]\n  [dim]{group.remark}[/]")
        for row in group.rows:
            beside = f"\n    [dim]{_plain(row.beside)}[/]" if row.beside else ""
            table.add_row(f"  {_plain(row.heading)}{beside}", row.value, row.interval, row.unit, row.kind)
    console.print(table)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("condition", "", "evidence"):
        table.add_column(heading)
    for c in report.conditions:
        needs = f" (needs {c.needs})" if c.needs else ""
        status = f"[{colours[c.status]}]{c.status.value}[/]"
        table.add_row(c.name.replace("_", " "), status, _plain(c.evidence + needs))
    console.print(table)
    console.print(_plain(f"How losses grow with the horizon: {report.regime}"))


def _show_sweep(found: Frontier) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    # a name cut short is no name: as wide as it takes, also on a narrow terminal
    wide = 100 + max(len(p.name) for p in found.points)
    console = Console(highlight=False)
    console = console if console.width >= wide else Console(highlight=False, width=wide)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in SWEEP_COLUMNS:
        text = heading in ("tokenizer", "fails", "")
        table.add_column(heading, justify="left" if text else "right", overflow="fold", no_wrap=heading != "fails")
    for cells in sweep_rows(found):
        table.add_row(*map(_plain, cells))
    console.print(table)
    for note in found.notes:
        console.print(f"note: {_plain(note)}")
    console.print(f"[bold]recommended: {_plain(found.recommended or 'none')}[/]\n{_plain(found.why)}")


def _write_audit(report: AuditReport, folder: Path, name: str = "audit") -> list[Path]:
    return _write_pages(folder, name, {"json": report.to_json_text, "md": report.to_markdown, "html": report.to_html})


def _write_pages(folder: Path, name: str, pages: dict[str, Callable[[], str]]) -> list[Path]:
    """Write one report in several forms; without matplotlib say what HTML takes, and leave the others standing."""
    written = []
    for suffix, page in pages.items():
        file = folder / f"{name}.{suffix}"
        try:
            file.write_text(page(), encoding="utf-8")
            written.append(file)
        except MissingExtraError as error:
            print(f"warning: {file.name} was not written: {error}", file=sys.stderr)
    return written


def _name_files(written: Sequence[Path]) -> None:
    for file in written:
        print(f"written: {file}")


def _write_report(comparison: Comparison, folder: Path, *, page: bool) -> list[Path]:
    pages = {"json": comparison.to_json_text, "md": comparison.to_markdown}
    written = _write_pages(folder, "comparison", pages | {"html": comparison.to_html} if page else pages)
    for name, report in comparison.audits.items():
        written += _write_audit(report, folder, f"audit-{re.sub(r'[^A-Za-z0-9._=-]+', '-', name)}")
    return written


def _output_folder(out: str) -> Path:
    """Make the folder before the work, so that no result is lost to a folder that cannot be written."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(f"expected a folder or a new name, got {out}, where a file is") from error
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"expected a folder that can be written, got {out}")
    return folder


def _output_file(out: str) -> None:
    if not out.endswith(".npz"):
        raise ActionValueError(f"expected --out to end in .npz, got {out!r}")
    _output_folder(str(Path(out).parent))


def _save_arrays(out: str, **arrays: Any) -> None:
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
    verb.add_argument("--test", type=float, metavar="SHARE", help="keep this share of the episodes out, for an audit")
    verb.add_argument("--resume", metavar="DIR", help="keep there what was sampled of parquet data, and go on from it")
    verb.add_argument("--angles", type=int, nargs="*", default=(), metavar="DIM", help="relative dims that wrap around")
    _sampling(verb, max_chunks=32768)
    _columns(verb)

    verb = _verb(verbs, "encode", _encode, "write the ids of a data set's chunks to an .npz, or to parquet files")
    verb.add_argument("tokenizer", metavar="DIR|REPO")
    verb.add_argument("data", metavar="DATA")
    place = verb.add_mutually_exclusive_group(required=True)
    place.add_argument("--out", metavar="FILE.npz", help="of a data set that fits the memory")
    place.add_argument("--shards", metavar="DIR", help="file by file: of parquet data of any size; goes on with DIR")
    verb.add_argument("--horizon", type=_positive, help="where the tokenizer leaves it open")
    verb.add_argument("--stride", type=_positive, help="between chunk starts (the horizon)")
    _columns(verb)

    verb = _verb(verbs, "decode", _decode, "write the actions of an .npz of ids to an .npz")
    verb.add_argument("tokenizer", metavar="DIR|REPO")
    verb.add_argument("ids", metavar="FILE.npz")
    verb.add_argument("--out", required=True, metavar="FILE.npz")
    verb.add_argument("--key", help="whose range (the one that encode used)")
    verb.add_argument("--repair", action="store_true", help="repair undecodable rows and flag them in `valid`")

    verb = _verb(verbs, "info", _info, "show what a tokenizer, a data set or a folder of tokens holds")
    verb.add_argument("path", metavar="DIR|REPO|DATA")
    _columns(verb)

    verb = _verb(verbs, "audit", _audit, "measure on held-out episodes whether a tokenizer is safe to clone with")
    verb.add_argument("tokenizer", metavar="DIR|REPO")
    verb.add_argument("data", metavar="DATA", help="episodes it was not fitted on")
    verb.add_argument("--out", metavar="DIR", help="also write audit.json, audit.md and audit.html there")
    verb.add_argument("--save", action="store_true", help="keep the audit beside the tokenizer and in its card")
    verb.add_argument("--test", type=float, metavar="SHARE", help="audit only this share: what fit --test held out")
    verb.add_argument("--horizon", type=_positive, help="where the tokenizer leaves it open")
    verb.add_argument("--no-states", action="store_true", help="do not use the states of the data")
    verb.add_argument(
        "--normalised", action="store_true", help="the range of every dim is [-1, 1], not what the data span"
    )
    verb.add_argument("--budget", type=_seconds, metavar="SECONDS", help="begin no further stage after this time")
    verb.add_argument("--seed", type=_whole, default=0)
    _strict(verb)
    _columns(verb)

    verb = _verb(verbs, "compare", _compare, "measure tokenizers side by side on held-out episodes")
    verb.add_argument("data", metavar="DATA")
    verb.add_argument("tokenizers", nargs="*", metavar="SPEC|DIR|REPO", help=f"default: {' '.join(FAMILIES)}")
    verb.add_argument("--out", metavar="DIR", help="also write comparison.{json,md,html} there, and the audits")
    verb.add_argument("--horizon", type=_positive, help="steps per chunk (one second of data)")
    verb.add_argument("--test", type=float, default=0.2, help="share of episodes held out (%(default)s)")
    verb.add_argument("--allow-single-episode", action="store_true", help="split a single recording in time")
    verb.add_argument("--audit", action="store_true", help="audit each as well")
    _strict(verb)
    _sampling(verb, max_chunks=4096)
    _columns(verb)

    verb = _verb(verbs, "sweep", _sweep, "fit families from coarse to fine and recommend one for a budget")
    verb.add_argument("data", metavar="DATA")
    verb.add_argument(
        "tokenizers", nargs="*", metavar="SPEC", help=f"what to try (default: {len(SWEEP)} of all families)"
    )
    verb.add_argument("--tokens", type=float, help="most ids per chunk, on average")
    verb.add_argument("--bits", type=float, help="most bits per chunk")
    verb.add_argument(
        "--out", metavar="DIR", help="also write sweep.{json,md,html} and the recommended tokenizer there"
    )
    verb.add_argument("--horizon", type=_positive, help="steps per chunk (one second of data)")
    verb.add_argument("--test", type=float, default=0.2, help="share of episodes held out (%(default)s)")
    verb.add_argument("--allow-single-episode", action="store_true", help="split a single recording in time")
    verb.add_argument("--stride", type=_positive, default=1, help="between chunk starts in the fit (%(default)s)")
    verb.add_argument("--seed", type=_whole, default=0)
    verb.add_argument("--strict", action="store_true", help="exit with 1 if none can be recommended")
    _columns(verb)

    verb = _verb(verbs, "push", _push, "save a tokenizer folder to the Hub, in one commit")
    verb.add_argument("folder", metavar="DIR")
    verb.add_argument("repo", metavar="OWNER/NAME")
    verb.add_argument("--revision", metavar="BRANCH", help="commit there (the main branch)")
    verb.add_argument("--message", default="Push action tokenizer", help="of the commit (%(default)s)")
    verb.add_argument("--private", action="store_true", help="if the repository is created")
    verb.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    verb.add_argument("--license", metavar="ID", help="told in the card, such as apache-2.0")

    verb = _verb(verbs, "import", _import, "save a published FAST tokenizer in our format")
    verb.add_argument("source", metavar="DIR|REPO", help="such as physical-intelligence/fast")
    verb.add_argument("--out", required=True, metavar="DIR")
    verb.add_argument("--range-from", metavar="DATA", help="give it the q01-q99 range of this data set")
    verb.add_argument("--horizon", type=_positive, help="steps per chunk of --range-from (1)")
    verb.add_argument("--limit", type=float, help="largest |action| to expect, in normalised units (5)")
    _columns(verb)

    verb = _verb(verbs, "export", _export, "write an imported FAST tokenizer back as the published files")
    verb.add_argument("tokenizer", metavar="DIR|REPO")
    verb.add_argument("--out", required=True, metavar="DIR")
    return parser


def _verb(verbs: Any, name: str, run: Callable[[argparse.Namespace], None], summary: str) -> Any:
    verb = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(run=run)
    return verb


def _strict(verb: Any) -> None:
    verb.add_argument("--strict", action="store_true", help="exit with 1 if a condition fails")


def _sampling(verb: Any, max_chunks: int) -> None:
    verb.add_argument("--stride", type=_positive, default=1, help="between chunk starts (%(default)s)")
    verb.add_argument("--max-chunks", type=_positive, default=max_chunks, help="most chunks used (%(default)s)")
    verb.add_argument("--seed", type=_whole, default=0)


def _columns(verb: Any) -> None:
    verb.add_argument("--action", metavar="COLUMN", help="where the actions are, if not under a common name")
    verb.add_argument("--state", metavar="COLUMN")
    verb.add_argument("--episode", metavar="COLUMN", help="which rows of a flat parquet file belong together")
    verb.add_argument("--key", help="range key of this data set: whose range, where several were fitted")
    verb.add_argument("--fps", type=float, help="where the data do not say")
    verb.add_argument(
        "--skip-broken", action="store_true", help="leave parquet files out that cannot be read, and say so"
    )


def _whole(text: str) -> int:
    value = int(text)
    if not 0 <= value < 1 << 31:
        raise argparse.ArgumentTypeError(f"expected an integer from 0 to 2**31 - 1, got {text}")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"expected seconds >= 0, got {text}")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text}")
    return value
