"""A hub of models on this machine: what `huggingface_hub` asks of one, answered from memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

TOKEN = "hf_tiny"


class Hub:
    """Repositories: name -> commits, oldest first; a commit is path -> bytes."""

    def __init__(self) -> None:
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.asked: list[str] = []
        self.url = ""

    def add(self, name: str, folder: Path) -> None:
        """A new commit with the files of a folder."""
        files = {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*.*")}
        self.commits.setdefault(name, []).append(files)

    def commit_of(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Id and files of a revision: "main", or an id."""
        ids = [commit_id(name, number) for number in range(len(self.commits.get(name, [])))]
        if revision == "main" and ids:
            revision = ids[-1]
        return (revision, self.commits[name][ids.index(revision)]) if revision in ids else None


def commit_id(name: str, number: int) -> str:
    """40 hex digits, as of git."""
    return hashlib.sha1(f"{name} {number}".encode()).hexdigest()


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub that answers at `hub.url` while the block runs."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args) -> None:
            pass

        def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(code)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def answer_json(self, value, code: int = 200) -> None:
            self.answer(code, json.dumps(value).encode(), Content_Type="application/json")

        def missing(self) -> None:
            self.answer(404, b"{}", X_Error_Code="RepoNotFound")

        def may_see(self, name: str) -> bool:
            allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            return name in hub.commits and (allowed or name not in hub.private)

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            read = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/(.+)", path)
            about = re.fullmatch(
                r"/api/models/([\w.-]+/[\w.-]+)(?:/(revision|tree)/([\w.-]+))?(/.*)?", path
            )
            match = read or about
            if match is None or not self.may_see(match[1]):
                return self.missing()
            found = hub.commit_of(match[1], (match[2] if read else match[3]) or "main")
            if found is None:
                return self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
            commit, files = found
            if read:
                if match[3] not in files:
                    return self.answer(404, b"{}", X_Error_Code="EntryNotFound")
                body = files[match[3]]
                etag = f'"{hashlib.sha256(body).hexdigest()}"'
                return self.answer(200, body, ETag=etag, X_Repo_Commit=commit)
            if match[2] == "tree":
                rows = [
                    {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                    for n, b in files.items()
                ]
                return self.answer_json(rows)
            siblings = [{"rfilename": name, "size": len(body)} for name, body in files.items()]
            return self.answer_json({"id": match[1], "sha": commit, "siblings": siblings})

        do_HEAD = do_GET

        def do_POST(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"POST {path}")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer(401, b'{"error": "Invalid credentials"}')
            if path == "/api/validate-yaml":
                return self.answer_json({"errors": [], "warnings": []})
            if path == "/api/repos/create":
                about = json.loads(body)
                name = f"{about.get('organization') or 'me'}/{about['name']}"
                if name in hub.commits:
                    return self.answer_json({"error": "exists"}, 409)
                hub.commits[name] = []
                if about.get("private") or about.get("visibility") == "private":
                    hub.private.add(name)
                return self.answer_json({"url": f"{hub.url}/{name}", "id": name})
            match = re.fullmatch(
                r"/api/models/([\w.-]+/[\w.-]+)/(preupload|commit|paths-info)/main", path
            )
            if match is None or match[1] not in hub.commits:
                return self.missing()
            if match[2] == "paths-info":
                return self.answer_json([])
            if match[2] == "preupload":
                asked = json.loads(body)["files"]
                answers = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in asked
                ]
                return self.answer_json({"files": answers})
            lines = [json.loads(line) for line in body.splitlines()]
            files = dict((hub.commits[match[1]] or [{}])[-1])
            for line in lines:
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            hub.commits[match[1]].append(files)
            commit = commit_id(match[1], len(hub.commits[match[1]]) - 1)
            url = f"{hub.url}/{match[1]}/commit/{commit}"
            return self.answer_json({"commitUrl": url, "commitOid": commit, "pullRequestUrl": None})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
