"""Push and pull with the oldest huggingface-hub that pyproject.toml allows.

    python recipes/check_oldest_hub.py

Builds a virtual environment outside the tree, or reuses the one it built before, with the pinned versions of everything
else, and runs the tests of the Hub there; further arguments go to pytest. The exit code is pytest's, or pip's where
the environment cannot be built.

Why a second environment: huggingface-hub 0.x speaks through requests, 1.x through httpx, 2.x through httpx2, and each
has errors of its own; lerobot and older transformers still ask for 0.x.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "huggingface-hub"
TESTS = [f"tests/test_{room}.py" for room in ("artifact", "hub", "download", "shim", "card")]
# pytest runs the tests, pyarrow is for those that read a data set from the Hub
BESIDE = ("pytest", "pyarrow")


def floor(pyproject: str) -> str:
    """Return the lower bound of huggingface-hub among the dependencies.

    >>> floor('[project]\\ndependencies = ["numpy>=1.26", "huggingface-hub>=0.34,<3"]')
    '0.34'
    """
    for requirement in tomllib.loads(pyproject)["project"]["dependencies"]:
        found = re.fullmatch(rf"{PACKAGE}\s*>=\s*([\d.]+)\s*(,.*)?", requirement)
        if found:
            return found[1]
    raise ValueError(f"expected a dependency {PACKAGE}>=..., got none")


def without_hub(constraints: str) -> str:
    """Return the pinned versions of all other packages.

    >>> without_hub("numpy==2.4.6\\nhuggingface-hub==2.4.0\\n")
    'numpy==2.4.6\\n'
    """
    lines = constraints.splitlines(keepends=True)
    return "".join(line for line in lines if re.split(r"[=<>~ ]", line.strip())[0] != PACKAGE)


def python_of(environment: Path) -> Path:
    """Return the interpreter of a virtual environment."""
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def build(environment: Path, oldest: str) -> None:
    """Make `environment` hold this package, editable, with huggingface-hub `oldest`."""
    if not python_of(environment).is_file():
        venv.create(environment, with_pip=True)
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text(without_hub((ROOT / "tests" / "constraints.txt").read_text()))
        pip = [str(python_of(environment)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        wanted = ["--editable", str(ROOT), f"{PACKAGE}=={oldest}", *BESIDE]
        subprocess.run([*pip, "--constraint", str(constraints), *wanted], check=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--venv",
        type=Path,
        default=Path(tempfile.gettempdir()) / "action-tokenizers-oldest-hub",
        help="the virtual environment (%(default)s)",
    )
    options, to_pytest = parser.parse_known_args(arguments)
    environment = options.venv.resolve()
    if environment.is_relative_to(ROOT):
        parser.error(f"expected a folder outside {ROOT}, got {environment}")
    oldest = floor((ROOT / "pyproject.toml").read_text())
    try:
        build(environment, oldest)
    except subprocess.CalledProcessError as error:
        return error.returncode
    print(f"{PACKAGE} {oldest} in {environment}", flush=True)
    command = [str(python_of(environment)), "-m", "pytest", *TESTS, *to_pytest]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
