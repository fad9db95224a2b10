"""A Hub on the loopback interface: enough of its HTTP for huggingface_hub to read models and data sets.

Verbs are methods marked with `route`; writing (create, preupload, commit) can be added as further routes.
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Self
from urllib.parse import unquote, urlsplit

REPO = r"(?P<repo>[^/]+/[^/]+)"
API = rf"/api/(?P<kind>models|datasets)/{REPO}"


@dataclass
class Repo:
    """Files of one repository; `token` is asked of readers, `gated` ones refuse all."""

    files: dict[str, bytes] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False
    revisions: tuple[str, ...] = ("main",)

    @property
    def sha(self) -> str:
        content = hashlib.sha1()
        for path in sorted(self.files):
            content.update(path.encode() + hashlib.sha1(self.files[path]).digest())
        return content.hexdigest()


@dataclass
class Answer:
    """What one request gets."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Refused(Exception):
    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.answer = Answer(b"{}", status, {"X-Error-Code": code, "X-Error-Message": code})


def route(method: str, pattern: str) -> Callable[[Any], Any]:
    def mark(function: Any) -> Any:
        function.routes = [*getattr(function, "routes", []), (method, re.compile(pattern))]
        return function

    return mark


class FakeHub:
    """`with FakeHub() as hub:` serves `hub.datasets` and `hub.models`; `hub.log` lists (method, path)."""

    def __init__(self) -> None:
        self.datasets: dict[str, Repo] = {}
        self.models: dict[str, Repo] = {}
        self.log: list[tuple[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._routes = [
            (method, pattern, getattr(self, name))
            for name in dir(type(self))
            for method, pattern in getattr(getattr(type(self), name), "routes", ())
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

    def answer(self, method: str, path: str, token: str | None) -> Answer:
        self.log.append((method, path))
        try:
            for verb, pattern, serve in self._routes:
                found = pattern.fullmatch(path)
                if found and method == verb:
                    parts = found.groupdict()
                    repo = self._repo(parts.pop("kind", None) or "models", parts.pop("repo"), token)
                    answer: Answer = serve(repo, **parts)
                    return answer
            raise Refused(404, "NoSuchRoute")
        except Refused as refused:
            return refused.answer

    @route("GET", API)
    @route("GET", API + "/revision/(?P<revision>[^/]+)")
    def info(self, repo: Repo, revision: str = "main") -> Answer:
        _check_revision(repo, revision)
        siblings = [{"rfilename": path} for path in sorted(repo.files)]
        return _json({"id": "x/y", "sha": repo.sha, "siblings": siblings, "private": False, "tags": []})

    @route("GET", API + "/tree/(?P<revision>[^/]+)/?")
    def tree(self, repo: Repo, revision: str) -> Answer:
        _check_revision(repo, revision)
        return _json(
            [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in sorted(repo.files.items())
            ]
        )

    @route("HEAD", rf"/((?P<kind>datasets)/)?{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    @route("GET", rf"/((?P<kind>datasets)/)?{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def resolve(self, repo: Repo, revision: str, path: str) -> Answer:
        _check_revision(repo, revision)
        if path not in repo.files:
            raise Refused(404, "EntryNotFound")
        data = repo.files[path]
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        return Answer(data, headers={"X-Repo-Commit": repo.sha, "ETag": etag})

    def _repo(self, kind: str, name: str, token: str | None) -> Repo:
        repo = {"models": self.models, "datasets": self.datasets}[kind].get(name)
        if repo is None or repo.token not in (None, token):
            raise Refused(401, "RepoNotFound")  # the Hub does not tell missing from private
        if repo.gated:
            raise Refused(403, "GatedRepo")
        return repo


def _check_revision(repo: Repo, revision: str) -> None:
    if revision not in (*repo.revisions, repo.sha):
        raise Refused(404, "RevisionNotFound")


def _json(value: Any) -> Answer:
    return Answer(json.dumps(value).encode(), headers={"Content-Type": "application/json"})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: ClassVar[FakeHub]

    def _serve(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        answer = self.hub.answer(self.command, unquote(urlsplit(self.path).path), token)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_HEAD = do_POST = _serve

    def log_message(self, *_: object) -> None:
        """Say nothing: the hub keeps its own log."""
