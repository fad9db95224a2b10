"""A Hub on the loopback interface: enough of its HTTP for huggingface_hub to read and write, and ways to fail at it.

Verbs are methods marked with `route`. Who writes brings `WRITER`, who may only read brings `READER`; every other token
is refused, except the one that a private repository asks for.
"""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Self
from urllib.parse import parse_qs, unquote, urlsplit

WRITER, READER = "hf_fake", "hf_reader"
REPO = r"(?P<repo>[^/]+/[^/]+)"
API = rf"/api/(?P<kind>models|datasets)/{REPO}"
REVISION = r"(?P<revision>[^/]+)"
Files = dict[str, bytes]


@dataclass
class Answer:
    """What one request gets."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Request:
    """What one request brings."""

    method: str
    path: str
    query: dict[str, list[str]]
    body: bytes
    token: str | None
    start: int = 0  # of a range


class Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(code or message)
        headers = {"X-Error-Code": code} if code else {}
        body = json.dumps({"error": message or code}).encode()
        self.answer = Answer(body, status, {**headers, "X-Error-Message": message or code})


class Repo:
    """Commits of one repository; `token` is asked of readers, `gated` ones refuse all."""

    def __init__(
        self,
        files: Files | None = None,
        *,
        token: str | None = None,
        gated: bool = False,
        revisions: Iterable[str] = ("main",),
    ) -> None:
        self.token, self.gated = token, gated
        self.commits: dict[str, Files] = {}
        self.refs: dict[str, str] = {}
        for revision in revisions:
            self.commit(revision, files or {}, "")

    @property
    def files(self) -> Files:
        """Of the main branch."""
        return self.at("main")

    def at(self, revision: str) -> Files:
        return self.commits[self.sha(revision)]

    def sha(self, revision: str) -> str:
        sha = self.refs.get(revision, revision)
        if sha not in self.commits:
            raise Refused(404, "RevisionNotFound")
        return sha

    def commit(self, ref: str, files: Files, parent: str | None = None) -> str:
        content = hashlib.sha1((self.refs.get(ref, "") if parent is None else parent).encode())
        for path in sorted(files):
            content.update(path.encode() + hashlib.sha1(files[path]).digest())
        sha = content.hexdigest()
        self.commits[sha] = dict(files)
        self.refs[ref] = sha
        return sha


def route(method: str, pattern: str, *, writes: bool = False) -> Callable[[Any], Any]:
    def mark(function: Any) -> Any:
        function.routes = [*getattr(function, "routes", []), (method, re.compile(pattern), writes)]
        return function

    return mark


class FakeHub:
    """`with FakeHub() as hub:` serves `hub.datasets` and `hub.models`; `hub.log` lists (method, path)."""

    def __init__(self) -> None:
        self.datasets: dict[str, Repo] = {}
        self.models: dict[str, Repo] = {}
        self.log: list[tuple[str, str]] = []
        self._faults: list[tuple[str, re.Pattern[str], Any]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._routes = [
            (*one, getattr(self, name))
            for name in dir(type(self))
            for one in getattr(getattr(type(self), name), "routes", ())
        ]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self, home: os.PathLike[str] | str, **more: str) -> dict[str, str]:
        """Return the variables a process needs before it imports huggingface_hub."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "http"))}
        return {
            **kept,
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            **more,
        }

    def requested(self) -> list[str]:
        """Return every file path that was asked for."""
        parts = (path.partition("/resolve/")[2] for _, path in self.log)
        return [part.partition("/")[2] for part in parts if part]

    @contextmanager
    def failing(self, method: str, path: str, fault: Any) -> Iterator[None]:
        """Fail requests while the block runs.

        Args:
            method: pattern of the verb.
            path: pattern of the path, to be found in it.
            fault: a status; an `Answer`; "half" of the body; "cut": the connection, while the request comes in;
                "lost": done, but the connection is cut before the answer; or a call to be made first, whose value is
                the fault or None.
        """
        self._faults.append((method, re.compile(path), fault))
        try:
            yield
        finally:
            self._faults.pop()

    def fault(self, method: str, path: str) -> Any:
        for verbs, pattern, fault in self._faults:
            if re.fullmatch(verbs, method) and pattern.search(path):
                return fault() if callable(fault) else fault
        return None

    def answer(self, request: Request) -> Answer:
        self.log.append((request.method, unquote(request.path)))
        try:
            for verb, pattern, writes, serve in self._routes:
                found = pattern.fullmatch(request.path)
                if found and request.method == verb:
                    self._know(request.token)
                    parts = {name: unquote(part) for name, part in found.groupdict().items() if part is not None}
                    if "repo" in parts:
                        kind = parts.pop("kind", "models")
                        parts["repo"] = self._repo(kind, parts["repo"], request.token, writes)
                    answer: Answer = serve(request, **parts)
                    return answer
            raise Refused(404, message="NoSuchRoute")
        except Refused as refused:
            return refused.answer

    @route("GET", API)
    @route("GET", API + f"/revision/{REVISION}")
    def info(self, request: Request, repo: Repo, revision: str = "main") -> Answer:
        siblings = [{"rfilename": path} for path in sorted(repo.at(revision))]
        private = repo.token is not None
        return _json({"id": "x/y", "sha": repo.sha(revision), "siblings": siblings, "private": private, "tags": []})

    @route("GET", API + f"/tree/{REVISION}/?")
    def tree(self, request: Request, repo: Repo, revision: str) -> Answer:
        return _json([_entry(path, data) for path, data in sorted(repo.at(revision).items())])

    @route("POST", API + f"/paths-info/{REVISION}")
    def paths_info(self, request: Request, repo: Repo, revision: str) -> Answer:
        asked = parse_qs(request.body.decode())["paths"]
        return _json([_entry(path, data) for path, data in repo.at(revision).items() if path in asked])

    @route("HEAD", rf"/((?P<kind>datasets)/)?{REPO}/resolve/{REVISION}/(?P<path>.+)")
    @route("GET", rf"/((?P<kind>datasets)/)?{REPO}/resolve/{REVISION}/(?P<path>.+)")
    def resolve(self, request: Request, repo: Repo, revision: str, path: str) -> Answer:
        files = repo.at(revision)
        if path not in files:
            raise Refused(404, "EntryNotFound")
        headers = {"X-Repo-Commit": repo.sha(revision), "ETag": f'"{_oid(files[path])}"'}
        return Answer(files[path], headers=headers)

    @route("POST", "/api/repos/create")
    def create(self, request: Request) -> Answer:
        _allow_writing(request.token)
        asked = json.loads(request.body)
        name = f"{asked['organization']}/{asked['name']}"
        url = f"{self.url}/{name}"
        if name in self.models:
            return Answer(json.dumps({"error": "You already created this model repo", "url": url}).encode(), 409)
        private = asked.get("private") or asked.get("visibility") == "private"
        self.models[name] = Repo({".gitattributes": b""}, token=request.token if private else None)
        return _json({"url": url, "name": name})

    @route("POST", API + r"/branch/(?P<branch>[^/]+)", writes=True)
    def create_branch(self, request: Request, repo: Repo, branch: str) -> Answer:
        if branch in repo.refs:
            raise Refused(409, message="Reference already exists")
        repo.refs[branch] = repo.sha(json.loads(request.body).get("startingPoint", "main"))
        return _json({})

    @route("POST", "/api/validate-yaml")
    def validate(self, request: Request) -> Answer:
        import yaml

        errors, content = [], json.loads(request.body)["content"]
        try:
            if content.startswith("---\n") and not isinstance(yaml.safe_load(content.split("---\n")[1]), dict):
                errors = [{"message": "metadata is no mapping"}]
        except yaml.YAMLError as error:
            errors = [{"message": str(error)}]
        return Answer(json.dumps({"errors": errors, "warnings": []}).encode(), 400 if errors else 200)

    @route("POST", API + f"/preupload/{REVISION}")
    def preupload(self, request: Request, repo: Repo, revision: str) -> Answer:
        _allow_commit(request)
        held, asked = repo.at(revision), json.loads(request.body)
        ignored = asked.get("gitIgnore", held.get(".gitignore", b"").decode()).split("\n")
        modes = [
            {
                "path": path,
                "uploadMode": "regular",
                "shouldIgnore": any(fnmatchcase(path, pattern) for pattern in ignored),
                "oid": _oid(held[path]) if path in held else None,
            }
            for path in (file["path"] for file in asked["files"])
        ]
        return _json({"files": modes})

    @route("POST", API + f"/commit/{REVISION}")
    def commit(self, request: Request, repo: Repo, revision: str) -> Answer:
        _allow_commit(request)
        if revision not in repo.refs:
            raise Refused(404, "RevisionNotFound")
        files = dict(repo.at(revision))
        for line in request.body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "header":
                if value.get("parentCommit") not in (None, repo.sha(revision)):
                    raise Refused(412, message="A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise Refused(404, "EntryNotFound", "A file with this name doesn't exist")
            else:
                raise Refused(400, message=f"unknown operation {key}")
        said: dict[str, Any] = {"success": True}
        target = revision
        if "create_pr" in request.query:
            number = 1 + sum(ref.startswith("refs/pr/") for ref in repo.refs)
            target = f"refs/pr/{number}"
            repo.refs[target] = repo.sha(revision)
            said["pullRequestUrl"] = f"{self.url}/x/y/discussions/{number}"
        sha = repo.commit(target, files)
        return _json({**said, "commitOid": sha, "commitUrl": f"{self.url}/x/y/commit/{sha}"})

    def _know(self, token: str | None) -> None:
        own = {repo.token for repos in (self.models, self.datasets) for repo in repos.values()}
        if token not in {None, WRITER, READER} | own:
            raise Refused(401, message="Invalid credentials in Authorization header")

    def _repo(self, kind: str, name: str, token: str | None, writes: bool) -> Repo:
        repo = {"models": self.models, "datasets": self.datasets}[kind].get(name)
        if repo is None or repo.token not in (None, token):
            # the Hub does not tell missing from private
            raise Refused(401 if token is None else 404, "RepoNotFound")
        if repo.gated:
            raise Refused(403, "GatedRepo")
        if writes:
            _allow_writing(token)
        return repo


def _allow_writing(token: str | None) -> None:
    if token is None:
        raise Refused(401, message="Invalid username or password.")
    if token == READER:
        raise Refused(403, message="You have read access but not the required permissions for this operation")


def _allow_commit(request: Request) -> None:
    """Whoever reads may open a pull request."""
    if request.token is None or "create_pr" not in request.query:
        _allow_writing(request.token)


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}


def _json(value: Any) -> Answer:
    return Answer(json.dumps(value).encode(), headers={"Content-Type": "application/json"})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet: the client would wait 40 ms for the second
    hub: ClassVar[FakeHub]

    def _serve(self) -> None:
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        fault = self.hub.fault(self.command, unquote(url.path))
        if fault == "cut":
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        query = parse_qs(url.query, keep_blank_values=True)
        asked = Request(self.command, url.path, query, self.rfile.read(length), token)
        if isinstance(fault, int):
            fault = Refused(fault, message="the test wants it so").answer
        answer = fault if isinstance(fault, Answer) else self.hub.answer(asked)
        if fault == "lost":
            self.close_connection = True
            return
        self._send(answer, half=fault == "half")

    def _send(self, answer: Answer, half: bool) -> None:
        begin = int((re.match(r"bytes=(\d+)-", self.headers.get("Range") or "") or [0, 0])[1])
        self.send_response(206 if begin and answer.status == 200 else answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(answer.body) - 1}/{len(answer.body)}")
        self.send_header("Content-Length", str(len(answer.body) - begin))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[begin : len(answer.body) // 2 if half else None])
            self.close_connection = self.close_connection or half

    do_GET = do_HEAD = do_POST = _serve

    def log_message(self, *_: object) -> None:
        """Say nothing: the hub keeps its own log."""
