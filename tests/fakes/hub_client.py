"""A process that talks to a fake Hub: huggingface_hub reads its environment when it is imported."""

import json
import selectors
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

WORKER = """
import ast, json, sys, time, traceback, warnings
warnings.simplefilter("error")
time.sleep = lambda seconds: None  # between the client's tries; the fake Hub fails on purpose
from pathlib import Path
import numpy as np
import action_tokenizers
from action_tokenizers import *
from action_tokenizers.errors import ActionTokenizerError

def run(code, given):
    names = {**globals(), **given}
    *steps, last = ast.parse(code).body
    exec(compile(ast.Module(steps, []), "<test>", "exec"), names)
    return eval(compile(ast.Expression(last.value), "<test>", "eval"), names)

for line in sys.stdin:
    try:
        answer = {"value": run(**json.loads(line))}
        text = json.dumps(answer)
    except ActionTokenizerError as error:
        text = json.dumps({"refused": f"{type(error).__name__}: {error}"})
    except Exception:
        text = json.dumps({"crashed": traceback.format_exc()})
    print(text, flush=True)
"""


@contextmanager
def hub_client(environment: Mapping[str, str]) -> Iterator["HubClient"]:
    """Run a `HubClient` in another process under `environment`."""
    command = [sys.executable, "-c", WORKER]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, env=dict(environment), stdin=pipe, stdout=pipe, stderr=errors, text=True) as process,
    ):
        try:
            yield HubClient(process, errors)
        finally:
            process.kill()  # it waits for the next line; unwinding torch would take a second


class HubClient:
    """`client("code")` runs statements in another process and returns what the last one is; `names` are JSON."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[bytes]) -> None:
        self._process, self._errors = process, errors

    def _ask(self, code: str, given: Mapping[str, Any]) -> dict[str, Any]:
        print(json.dumps({"code": textwrap.dedent(code), "given": given}), file=self._process.stdin, flush=True)
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline() if waiting.select(120) else ""
        if not line:
            self._process.kill()
            self._errors.seek(0)
            raise AssertionError(f"the client died or hangs: {self._errors.read().decode()[-2000:]}")
        return json.loads(line)

    def __call__(self, code: str, **names: Any) -> Any:
        answer = self._ask(code, names)
        if "value" not in answer:
            raise AssertionError(answer.get("crashed") or answer["refused"])
        return answer["value"]

    def refused(self, code: str, **names: Any) -> str:
        """Return the error of this library that the code must end in, as `Type: message`."""
        answer = self._ask(code, names)
        if "refused" not in answer:
            raise AssertionError(answer.get("crashed") or f"not refused: {answer['value']}")
        return answer["refused"]
