"""A hub on loopback: the endpoints that datasets and huggingface_hub ask for data sets, their errors, and its faults.

Facts, trees (in pages), paths-info, and files, of which large ones are redirected to a store as the hub does. Run
clients with HF_ENDPOINT at `Hub.endpoint`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from support.servers.stumbling import Handler, Server, served

PAGE = 2
# Files of these suffixes are stored apart, as Git LFS does.
_STORED = (".parquet", ".arrow", ".tar", ".png", ".wav")
Answer = tuple[int, Mapping[str, str], bytes]


@dataclass
class Repo:
    """A data set: `commits` maps a revision to its files; the last one is main.

    private: the token without which nobody sees it. gated: its terms are not accepted.
    """

    commits: dict[str, dict[str, bytes]]
    private: str | None = None
    gated: bool = False
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, revision: str) -> str | None:
        """The commit that a revision names; None if there is none."""
        last = list(self.commits)[-1]
        found = self.tags.get(revision, last if revision == "main" else revision)
        return found if found in self.commits else None


def repo(files: Mapping[str, bytes], **options: Any) -> Repo:
    """A data set of one commit."""
    return Repo({"a" * 40: dict(files)}, **options)


class Hub(Server):
    """The server; `repos` are its data sets by id, `asked` the requests that it answered."""

    def __init__(self, repos: dict[str, Repo], **options: Any) -> None:
        super().__init__({}, handler=_Hub, **options)
        self.repos = repos
        self.asked: list[str] = []

    @property
    def endpoint(self) -> str:
        return self.url("").rstrip("/")

    def answer(self, method: str, target: str, token: str | None, body: bytes) -> Answer:
        """Status, headers and body of a request."""
        parts = urlsplit(target)
        path, query = parts.path, parse_qs(parts.query)
        self.asked.append(f"{method} {path}")
        if path.startswith("/store/"):
            return self._stored(path.removeprefix("/store/"))
        found = re.fullmatch(r"/(api/)?datasets/([^/]+/[^/]+)(?:/([a-z-]+)(?:/([^/]+)(?:/(.*))?)?)?", path)
        if found is None:
            return refused(404, "RepoNotFound", "Not found")
        _, name, what, revision, inner = found.groups()
        dataset = self.repos.get(name)
        if dataset is None or (dataset.private is not None and token != dataset.private):
            # The hub does not tell what is private from what is not there.
            return refused(404 if token and dataset is None else 401, "RepoNotFound", "Repository not found")
        commit = dataset.commit(unquote(revision or "main"))
        if commit is None:
            return refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if dataset.gated and what == "resolve":
            return refused(403 if token else 401, "GatedRepo", f"Access to dataset {name} is restricted")
        files = dataset.commits[commit]
        if what in (None, "revision"):
            return answered(facts(name, commit, files, dataset))
        if what == "tree":
            return self._tree(path, files, unquote(inner or ""), query)
        if what == "paths-info":
            return answered(paths_info(files, parse_qs(body.decode())["paths"]))
        return self._resolved(files, unquote(inner or ""), commit)

    def _tree(self, path: str, files: Mapping[str, bytes], folder: str, query: dict[str, list[str]]) -> Answer:
        recursive = query.get("recursive", ["False"])[0].lower() == "true"
        entries = tree(files, folder, recursive=recursive)
        if not entries and folder:
            return refused(404, "EntryNotFound", f"{folder} does not exist")
        first = int(query.get("cursor", ["0"])[0])
        headers = {}
        if first + PAGE < len(entries):
            more = f"{self.endpoint}{path}?recursive={recursive}&cursor={first + PAGE}"
            headers["Link"] = f'<{more}>; rel="next"'
        return answered(entries[first : first + PAGE], **headers)

    def _resolved(self, files: Mapping[str, bytes], path: str, commit: str) -> Answer:
        data = files.get(path)
        if data is None:
            status, headers, body = refused(404, "EntryNotFound", "Entry not found")
            return status, {**headers, "X-Repo-Commit": commit}, body
        etag = f'"{digest(data)}"'
        headers = {"X-Repo-Commit": commit, "ETag": etag}
        if not path.endswith(_STORED):
            return 200, headers, data
        linked = {"X-Linked-Etag": etag, "X-Linked-Size": str(len(data))}
        return 302, {**headers, **linked, "Location": f"{self.endpoint}/store/{digest(data)}?Signature=secret"}, b""

    def _stored(self, name: str) -> Answer:
        every = (data for one in self.repos.values() for files in one.commits.values() for data in files.values())
        data = next((data for data in every if digest(data) == name), None)
        return refused(404, "", "") if data is None else (200, {"ETag": f'"{name}"'}, data)


class _Hub(Handler):
    server: Hub

    def do_POST(self) -> None:  # noqa: N802
        self.posted = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self._answer(body=True)

    def _file(self, *, body: bool, cut: bool) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        status, headers, data = self.server.answer(self.command, self.path, token, getattr(self, "posted", b""))
        self.send_content(data, body=body, cut=cut, status=status, headers=headers)


def digest(data: bytes) -> str:
    """The SHA-256 of a file, its name in the store."""
    return hashlib.sha256(data).hexdigest()


def answered(value: Any, **headers: str) -> Answer:
    """An answer in JSON."""
    return 200, {"Content-Type": "application/json", **headers}, json.dumps(value).encode()


def refused(status: int, code: str, message: str) -> Answer:
    """A refusal as the hub words it."""
    headers = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
    return status, headers, json.dumps({"error": message}).encode()


def facts(name: str, commit: str, files: Mapping[str, bytes], dataset: Repo) -> dict[str, Any]:
    """What the hub says of a data set."""
    siblings = [{"rfilename": path} for path in files]
    said = {"_id": digest(name.encode())[:24], "id": name, "author": name.split("/")[0], "sha": commit}
    return {**said, "private": dataset.private is not None, "gated": "manual" if dataset.gated else False,
            "disabled": False, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings}  # fmt: skip


def tree(files: Mapping[str, bytes], folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    """Files and folders below a folder."""
    start = f"{folder}/" if folder else ""
    found: dict[str, dict[str, Any]] = {}
    for path, data in files.items():
        if not path.startswith(start):
            continue
        names = path[len(start) :].split("/")
        for depth in range(1, len(names)):
            if recursive or depth == 1:
                at = start + "/".join(names[:depth])
                found[at] = {"type": "directory", "path": at, "size": 0, "oid": digest(at.encode())[:40]}
        if recursive or len(names) == 1:
            found[path] = _entry(path, data)
    return list(found.values())


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(data), "oid": digest(data)[:40]}
    if path.endswith(_STORED):
        entry["lfs"] = {"oid": digest(data), "size": len(data), "pointerSize": 130}
    return entry


def paths_info(files: Mapping[str, bytes], paths: list[str]) -> list[dict[str, Any]]:
    """The entries of some paths that are there."""
    every = {entry["path"]: entry for entry in tree(files, "", recursive=True)}
    return [every[path] for path in paths if path in every]


@contextmanager
def hub(repos: dict[str, Repo], **options: Any) -> Iterator[Hub]:
    """The hub, while the `with` block runs."""
    with served(Hub(repos, **options)) as server:
        yield server


def quoted(path: str) -> str:
    """A path as it stands in a URL."""
    return quote(path, safe="")
