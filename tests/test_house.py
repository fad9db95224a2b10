"""The house rules that no linter knows: which way imports go, which tests exist, what is public, what is forbidden."""

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import action_tokenizers

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "action_tokenizers"
MODULES = sorted(PACKAGE.rglob("*.py"))

# from the ground up; a module imports what lies below its layer, or in its own
LAYERS = [
    {"errors", "extras", "codecs", "folder", "warn"},
    {"download"},
    {"registry", "ranges", "data", "artifact"},
    {"hub", "card", "shim"},
    {"slots", "base", "reading", "doors"},
    {"tokenizers", "vocabulary"},
    {"diagnostics", "testing"},
    {"cloning"},
    {"integrations"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
# within one layer, who may import whom (a room always its own modules)
BESIDE = {
    ("reading", "doors"),
    ("base", "reading"),
    ("base", "doors"),
    ("slots", "base"),
    ("slots", "doors"),
    ("artifact", "registry"),
    ("artifact", "ranges"),
    ("hub", "card"),
    ("hub", "shim"),
    ("testing", "diagnostics"),
    ("codecs", "errors"),
    ("extras", "errors"),
    ("codecs", "extras"),
}
HUB_CLIENTS = {"download.py"}


def ids(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(PACKAGE)) for path in paths]


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[tuple[int, str, str | None]]:
    """Every import of a module, at any depth: (line, module, name taken from it)."""
    package = [*path.relative_to(PACKAGE.parent).parent.parts]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            yield from ((node.lineno, module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in (
            "import_module",
            "__import__",
        ):
            named = node.args[0] if node.args else None
            if isinstance(named, ast.Constant) and isinstance(named.value, str):
                yield node.lineno, named.value, None


def own_imports(path: Path) -> Iterator[tuple[int, str, str | None]]:
    """The imports from this package: (line, room, name); the room is `` where it is the front door itself."""
    for line, module, name in imports(path):
        parts = module.split(".")
        if parts[0] != "action_tokenizers":
            continue
        if len(parts) > 1:
            yield line, parts[1], name
        elif name is not None and name in LEVEL:
            yield line, name, None
        else:
            yield line, "", name


# ---- layers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MODULES, ids=ids(MODULES))
def test_imports_go_one_way(path):
    room = room_of(path)
    wrong = []
    for line, asked, name in own_imports(path):
        if room == "__init__" or asked == room:
            continue
        if asked == "":
            # the version lives at the front door; nothing else may be fetched through it from inside
            if name != "__version__":
                wrong.append(f"line {line}: {name} through the front door")
        elif not {asked, room} <= set(LEVEL):
            wrong.append(f"line {line}: {room} imports {asked}, and one of them is in no layer")
        elif LEVEL[asked] > LEVEL[room] or (LEVEL[asked] == LEVEL[room] and (room, asked) not in BESIDE):
            wrong.append(f"line {line}: {room} imports {asked}")
    assert not wrong, f"{path.relative_to(PACKAGE)}: {wrong}"


def test_every_room_has_a_layer():
    rooms = {room_of(path) for path in MODULES} - {"__init__", "__main__"}
    assert rooms <= set(LEVEL), f"in no layer: {sorted(rooms - set(LEVEL))}"


def test_the_layer_test_sees_imports_of_every_kind(tmp_path, monkeypatch):
    """A test that finds nothing must not be one that looks nowhere."""
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path / "action_tokenizers")
    path = tmp_path / "action_tokenizers" / "codecs" / "bad.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        textwrap.dedent(
            """
            from typing import TYPE_CHECKING
            import action_tokenizers.hub
            from action_tokenizers import base
            from ..cli import main
            from . import dct
            if TYPE_CHECKING:
                from action_tokenizers.data.sample import ChunkSample
            def late():
                from action_tokenizers.tokenizers.fast import FASTTokenizer
                importlib.import_module("action_tokenizers.diagnostics.error")
            """
        )
    )
    assert {room for _, room, _ in own_imports(path)} == {
        "hub",
        "base",
        "cli",
        "codecs",
        "data",
        "tokenizers",
        "diagnostics",
    }


@pytest.mark.parametrize("path", MODULES, ids=ids(MODULES))
def test_only_one_module_knows_the_hub_client(path):
    if str(path.relative_to(PACKAGE)) in HUB_CLIENTS:
        return
    clients = [line for line, module, _ in imports(path) if module.split(".")[0] == "huggingface_hub"]
    assert not clients


def test_only_the_command_line_draws():
    for path in MODULES:
        drawn = [line for line, module, _ in imports(path) if module.split(".")[0] in ("rich", "tqdm", "argparse")]
        assert not drawn or room_of(path) == "cli", f"{path}: lines {drawn}"


# ---- mirror -----------------------------------------------------------------------------------------------------


def test_every_module_has_its_test_file():
    missing = []
    for path in MODULES:
        place = path.relative_to(PACKAGE)
        if place.stem not in ("__init__", "__main__") and not (TESTS / place.parent / f"test_{place.name}").is_file():
            missing.append(str(Path("tests") / place.parent / f"test_{place.name}"))
    assert not missing, f"no test file: {missing}"


# tests of no module in particular
OF_THE_WHOLE = {"test_house.py", "test_readme.py"}


def test_every_mirrored_test_file_has_its_module():
    """Beside the mirror stand only the fakes, the golden files, the recipes and the tests of the whole."""
    strangers = []
    for path in sorted(TESTS.rglob("test_*.py")):
        place = path.relative_to(TESTS)
        if place.parts[0] in ("fakes", "golden", "recipes") or str(place) in OF_THE_WHOLE:
            continue
        if not (PACKAGE / place.parent / place.name.removeprefix("test_")).is_file():
            strangers.append(str(place))
    assert not strangers


def test_tests_are_no_package():
    assert not list(TESTS.rglob("__init__.py"))


# ---- the front door ---------------------------------------------------------------------------------------------

PROMISED = [
    "ActionShapeError",
    "ActionTokenizer",
    "ActionTokenizerError",
    "ActionValueError",
    "ActionVocabulary",
    "BinningTokenizer",
    "ChunkSample",
    "Episodes",
    "FASTTokenizer",
    "FormatError",
    "HubError",
    "KMeansTokenizer",
    "NotFittedError",
    "Range",
    "Relative",
    "ResidualVQTokenizer",
    "TokenError",
    "UnknownTokenizerError",
    "__version__",
]


def test_the_public_names_are_the_promised_ones():
    """Adding one is a decision, taking one away a broken promise: both change this list."""
    assert action_tokenizers.__all__ == PROMISED == sorted(PROMISED)
    assert 16 <= len(PROMISED) <= 20
    for name in PROMISED:
        assert getattr(action_tokenizers, name) is not None


def test_no_error_that_users_meet_is_missing_at_the_front_door():
    from action_tokenizers import errors

    assert set(errors.__all__) - set(PROMISED) == {"MissingExtraError"}


def test_the_version_is_one():
    parts = action_tokenizers.__version__.split(".")
    assert len(parts) >= 3
    assert all(part.isdigit() for part in parts[:2])


@pytest.mark.parametrize("path", MODULES, ids=ids(MODULES))
def test_all_is_true(path):
    module = tree(path)
    listed = [
        ast.literal_eval(node.value)
        for node in module.body
        if isinstance(node, ast.Assign) and [getattr(t, "id", "") for t in node.targets] == ["__all__"]
    ]
    if not listed:
        # a module of nothing but a docstring has no names to list
        assert all(isinstance(node, ast.Expr) for node in module.body), "no __all__"
        return
    assert len(set(listed[0])) == len(listed[0])  # ruff keeps them sorted
    defined = {
        name
        for node in ast.walk(module)
        for name in (
            [node.name]
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            else [alias.asname or alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom)
            else [t.id for t in node.targets if isinstance(t, ast.Name)]
            if isinstance(node, ast.Assign)
            else [node.target.id]
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
            else []
        )
    }
    assert set(listed[0]) <= defined


def public_definitions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node.body, f"{prefix}{node.name}.")


@pytest.mark.parametrize("path", MODULES, ids=ids(MODULES))
def test_everything_public_is_documented(path):
    module = tree(path)
    assert ast.get_docstring(module), "the module itself"
    bare = [name for name, node in public_definitions(module.body) if not ast.get_docstring(node)]
    assert not bare


def test_every_public_class_shows_an_example():
    """Of one's own class, not inherited; errors need none, and the contract itself cannot be instantiated."""
    silent = []
    for name in PROMISED:
        value = getattr(action_tokenizers, name)
        if not inspect.isclass(value) or issubclass(value, Exception) or inspect.isabstract(value):
            continue
        if not doctest.DocTestParser().get_examples(vars(value).get("__doc__") or ""):
            silent.append(name)
    assert not silent


# ---- what is forbidden ------------------------------------------------------------------------------------------

PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


@pytest.mark.parametrize("path", MODULES, ids=ids(MODULES))
def test_nothing_forbidden(path):
    room = room_of(path)
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Assert) and room != "testing":
            found.append(f"line {node.lineno}: assert")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"line {node.lineno}: bare except")
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called == "print" and room != "cli":
            found.append(f"line {node.lineno}: print")
        if called in ("eval", "exec", "torch.load", "torch.save"):
            found.append(f"line {node.lineno}: {called}")
        if called.endswith(".load") and keywords.get("allow_pickle", "False") != "False":
            found.append(f"line {node.lineno}: allow_pickle")
        if keywords.get("trust_remote_code", "False") != "False":
            found.append(f"line {node.lineno}: trust_remote_code")
    if room != "testing":  # where it is checked that tokenizers can be sent to workers
        found += [f"line {line}: {module}" for line, module, _ in imports(path) if module.split(".")[0] in PICKLES]
    assert not found


@pytest.mark.parametrize("path", MODULES, ids=ids(MODULES))
def test_numbers_are_drawn_from_seeded_generators(path):
    """The global generators of numpy, torch and Python belong to the user: torch's may be forked and given back."""
    drawn = []
    whole = tree(path)
    forks = [n for n in ast.walk(whole) if isinstance(n, ast.With) and "fork_rng" in ast.unparse(n.items[0])]
    forked = {id(node) for fork in forks for node in ast.walk(fork)}
    for node in ast.walk(whole):
        if isinstance(node, ast.Call) and id(node) not in forked:
            called = ast.unparse(node.func)
            if any(keyword.arg == "generator" for keyword in node.keywords):
                continue
            if called.startswith("np.random.") and not called.startswith(("np.random.default_rng", "np.random.Gen")):
                drawn.append(f"line {node.lineno}: {called}")
            if called == "np.random.default_rng" and not (node.args or node.keywords):
                drawn.append(f"line {node.lineno}: {called} without a seed")
            if called in ("torch.manual_seed", "torch.seed", "torch.rand", "torch.randn", "torch.randperm"):
                drawn.append(f"line {node.lineno}: {called}")
    drawn += [f"line {line}: random" for line, module, _ in imports(path) if module == "random"]
    assert not drawn


# ---- importing --------------------------------------------------------------------------------------------------

IMPORTING = """
    import json, socket, sys, time, warnings
    warnings.simplefilter("error")

    def refuse(*args, **kwargs):
        raise RuntimeError("the network was touched")

    import numba, torch  # what the user pays for anyway
    socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
    before = set(sys.modules)
    began = time.perf_counter()
    import action_tokenizers
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "new": sorted(set(sys.modules) - before), "all": sorted(sys.modules)}))
"""
# each costs start-up time and is imported where it is used
LATE = [
    "huggingface_hub",
    "sklearn",
    "scipy",
    "pyarrow",
    "h5py",
    "zarr",
    "tfrecord",
    "transformers",
    "matplotlib",
    "rich",
    "pandas",
    "ray",
    "requests",
    "httpx",
]


@pytest.fixture(scope="module")
def importing() -> dict:
    import json

    command = [sys.executable, "-c", textwrap.dedent(IMPORTING)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_is_quick(importing):
    assert importing["seconds"] < 2


def test_importing_brings_nothing_that_can_wait(importing):
    tops = {name.split(".")[0] for name in importing["new"]}
    assert not tops & set(LATE)


def test_importing_does_not_import_the_upper_floors(importing):
    """Whoever loads a tokenizer on a robot needs no audit, no command line and no reader of data sets."""
    rooms = {name.split(".")[1] for name in importing["all"] if name.startswith("action_tokenizers.")}
    assert not rooms & {"cli", "integrations", "cloning", "diagnostics", "testing"}
    assert not [name for name in importing["all"] if name.startswith("action_tokenizers.data.readers.")]


def test_type_checkers_are_told():
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize("path", MODULES, ids=ids(MODULES))
def test_every_module_can_be_imported_first(path):
    """Without optional packages in sight only their users may fail, and then in our words."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    if parts[-1] != "__main__":
        assert importlib.import_module(name).__doc__
