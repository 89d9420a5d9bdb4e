"""A Hub on this machine: what huggingface_hub, transformers, datasets, evaluate and timm ask of the real one, and the
trouble it can make, in memory and in the standard library. Tests drive it with the real clients."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".parquet", ".bin", ".png", ".jpg")
API = r"/api/(model|dataset|space)s/([^/]+/[^/]+)(?:/([\w-]+)(?:/([^/]+)(?:/(.*))?)?)?"
LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "other")  # the real one knows more
PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/"}
TOKEN, OTHER_TOKEN = "hf_" + "loopback" * 4, "hf_" + "stranger" * 4


@dataclass
class Repository:
    """Commits are whole snapshots; branches are names of commits."""

    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, tuple[str, dict[str, bytes]]] = field(default_factory=dict)

    def commit(self, branch: str, message: str, files: dict[str, bytes]) -> str:
        sha = secrets.token_hex(20)  # never seen before, or a cache may hold it
        self.commits[sha] = (message, files)
        self.branches[branch] = sha
        return sha


class LoopbackHub:
    """The server, in a thread of its own; `url` is what HF_ENDPOINT must be.

    Attributes for tests: `requests`, every (method, path) so far; `cut_uploads_after` and `cut_downloads_after`, the
    number of bytes after which the connection breaks, or None; `fail`, a dict from part of a path to the HTTP status it
    is answered with.
    """

    def __init__(self):
        self.users = {TOKEN: "user", OTHER_TOKEN: "stranger"}
        self.connections: set[socket.socket] = set()
        self.reset()
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def reset(self) -> None:
        """Empty, and in working order."""
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.cut_uploads_after: int | None = None
        self.cut_downloads_after: int | None = None
        self.fail: dict[str, int] = {}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        for connection in list(self.connections):  # that clients keep for their next request
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def add(
        self, repo_id: str, files: dict[str, bytes], repo_type: str = "model", private: bool = False
    ) -> None:
        """A repository that is simply there."""
        repository = self.repositories.setdefault((repo_type, repo_id), Repository(private))
        repository.commit("main", "initial commit", dict(files))

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        repository = self.repositories[repo_type, repo_id]
        return repository.commits[repository.branches.get(revision, revision)][1]

    def messages(self, repo_id: str, repo_type: str = "model") -> list[str]:
        """Of all commits, oldest first."""
        return [message for message, _ in self.repositories[repo_type, repo_id].commits.values()]


class _Answer(Exception):
    """Ends a request: the status, body and headers of the answer."""

    def __init__(self, status: int, body: Any = None, code: str | None = None, **headers: str):
        self.status, self.body, self.headers = status, body, headers
        if code:
            self.headers["X-Error-Code"] = code
        if isinstance(body, dict) and "error" in body:
            self.headers["X-Error-Message"] = body["error"].encode("ascii", "replace").decode()


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.hub.connections.discard(self.connection)
        super().finish()

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        self.hub.requests.append((self.command, self.path))
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        try:
            if self.command == "PUT" and self.hub.cut_uploads_after is not None:
                self.rfile.read(self.hub.cut_uploads_after)
                return self._hang_up()
            self.payload = self._read()
            for part, status in self.hub.fail.items():
                if part in self.path:
                    raise _Answer(status, {"error": "made to fail"})
            self._authorize()
            with self.hub.lock:
                self._route(parts.path)
            raise _Answer(404, {"error": f"no such route: {self.command} {parts.path}"})
        except _Answer as answer:
            self._send(answer)

    def _send(self, answer: _Answer) -> None:
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **answer.headers}
        self.send_response(answer.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        cut = self.hub.cut_downloads_after if "/resolve/" in self.path else None
        if self.command == "HEAD":
            return
        self.wfile.write(body if cut is None else body[:cut])
        if cut is not None and cut < len(body):
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _authorize(self) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.user = self.hub.users.get(token)
        if token and self.user is None:
            raise _Answer(401, {"error": "Invalid credentials in Authorization header"})

    # -------------------------------------------------------------------------------------------------- routes

    def _route(self, path: str) -> None:
        if path == "/api/repos/create":
            self._create()
        if path == "/api/validate-yaml":
            self._validate_card()
        if path == "/api/whoami-v2":
            raise _Answer(
                *((200, {"name": self.user, "type": "user", "orgs": []}) if self.user else (401, {}))
            )
        if match := re.fullmatch(r"/lfs/(\w+)(/verify)?", path):
            self._store(match[1], verify=bool(match[2]))
        if match := re.fullmatch(r"/(?:(dataset|space)s/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._open(match[1] or "model", match[2], write=True)
            self._lfs_batch()
        if match := re.fullmatch(r"/(?:(dataset|space)s/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._open(match[1] or "model", match[2])
            self._resolve(unquote(match[3]), unquote(match[4]))
        if match := re.fullmatch(
            r"/api/(model|dataset|space)s/([^/]+/[^/]+)(?:/([\w-]+)(?:/([^/]+)(?:/(.*))?)?)?", path
        ):
            kind, repo_id, verb, revision, rest = match.groups()
            writes = verb in ("preupload", "commit", "branch")
            self._open(kind, repo_id, write=writes)
            revision = unquote(revision or "main")
            if verb in (None, "revision"):
                self._info(revision)
            if verb == "tree":
                self._tree(revision, unquote(rest or ""))
            if verb == "paths-info":
                self._paths_info(revision)
            if verb == "preupload":
                self._preupload(revision)
            if verb == "commit":
                self._commit(revision)
            if verb == "branch":
                if revision in self.repository.branches:
                    raise _Answer(409, {"error": "Reference already exists"})
                start = json.loads(self.payload or b"{}").get("startingPoint", "main")
                self.repository.branches[revision] = self._commit_of(start)
                raise _Answer(200, {})

    def _validate_card(self) -> None:
        front = re.match(r"---\n(.*?)\n---", json.loads(self.payload)["content"], re.S)
        license = yaml.safe_load(front[1]).get("license") if front else None
        if license not in (None, *LICENSES):
            raise _Answer(400, {"errors": [{"message": f'"license" must be one of {", ".join(LICENSES)}'}]})
        raise _Answer(200, {"errors": [], "warnings": []})

    def _create(self) -> None:
        asked = json.loads(self.payload)
        if self.user is None:
            raise _Answer(401, {"error": "Invalid username or password."})
        owner = asked.get("organization") or self.user
        kind, repo_id = asked.get("type") or "model", f"{owner}/{asked['name']}"
        url = f"{self.hub.url}/{PREFIX[kind]}{repo_id}"
        if owner != self.user:
            raise _Answer(403, {"error": f"You don't have the rights to create a {kind} under {owner}"})
        if (kind, repo_id) in self.hub.repositories:
            raise _Answer(409, {"error": "You already created this repo", "url": url})
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.add(repo_id, {".gitattributes": b"*.safetensors filter=lfs\n"}, kind, private)
        raise _Answer(200, {"url": url, "id": repo_id, "name": repo_id})

    def _open(self, kind: str, repo_id: str, write: bool = False) -> None:
        """The repository of the request, if whoever asks may see and, where needed, write it."""
        self.kind, self.repo_id = kind, unquote(repo_id)
        found = self.hub.repositories.get((kind, self.repo_id))
        mine = self.user == self.repo_id.split("/")[0]
        if found is None or (found.private and not mine):
            raise _Answer(404 if self.user else 401, {"error": "Repository not found"}, "RepoNotFound")
        if write and not mine:
            raise _Answer(403 if self.user else 401, {"error": "Forbidden: no write access"})
        self.repository = found

    def _commit_of(self, revision: str) -> str:
        sha = self.repository.branches.get(revision, revision)
        if sha not in self.repository.commits:
            raise _Answer(404, {"error": f"Invalid rev id: {revision}"}, "RevisionNotFound")
        return sha

    def _info(self, revision: str) -> None:
        sha = self._commit_of(revision)
        files = self.repository.commits[sha][1]
        card = re.match(r"---\n(.*?)\n---", files.get("README.md", b"").decode(), re.S)
        data = yaml.safe_load(card[1]) if card else {}
        raise _Answer(200, {
            "_id": sha[:24], "id": self.repo_id, "modelId": self.repo_id, "author": self.repo_id.split("/")[0],
            "sha": sha, "private": self.repository.private, "gated": False, "disabled": False, "downloads": 0,
            "likes": 0, "tags": data.get("tags") or [], "cardData": data, "lastModified": "2026-01-01T00:00:00.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z", "siblings": [{"rfilename": name} for name in sorted(files)],
            "pipeline_tag": data.get("pipeline_tag"), "library_name": data.get("library_name"),
        })  # fmt: skip

    def _entries(self, files: dict[str, bytes]) -> dict[str, dict]:
        """Files and folders: path -> the entry of the answer."""
        entries: dict[str, dict] = {}
        for path, content in sorted(files.items()):
            for i in [m.start() for m in re.finditer("/", path)]:
                entries[path[:i]] = {
                    "type": "directory",
                    "oid": _blob(path[:i].encode()),
                    "size": 0,
                    "path": path[:i],
                }
            entries[path] = {"type": "file", "oid": _blob(content), "size": len(content), "path": path}
            if _mode(path, len(content)) == "lfs":
                oid = hashlib.sha256(content).hexdigest()
                entries[path]["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
        return entries

    def _tree(self, revision: str, folder: str) -> None:
        entries = self._entries(self.repository.commits[self._commit_of(revision)][1])
        if folder and entries.get(folder, {}).get("type") != "directory":
            raise _Answer(404, {"error": f"{folder} does not exist"}, "EntryNotFound")
        inside = [e for p, e in entries.items() if not folder or p.startswith(f"{folder}/")]
        if self.query.get("recursive", ["false"])[0].lower() != "true":
            inside = [e for e in inside if "/" not in e["path"].removeprefix(f"{folder}/" if folder else "")]
        raise _Answer(200, inside)

    def _paths_info(self, revision: str) -> None:
        entries = self._entries(self.repository.commits[self._commit_of(revision)][1])
        text = self.payload.decode()
        paths = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text).get("paths", [])
        raise _Answer(200, [entries[path] for path in paths if path in entries])

    def _preupload(self, revision: str) -> None:
        there = self._entries(self.repository.commits[self._commit_of(revision)][1])
        answer = []
        for file in json.loads(self.payload)["files"]:
            entry = there.get(file["path"], {})
            oid = entry.get("lfs", entry).get("oid")
            mode = _mode(file["path"], file["size"])
            answer.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        raise _Answer(200, {"files": answer})

    def _lfs_batch(self) -> None:
        objects = []
        for each in json.loads(self.payload)["objects"]:
            url = f"{self.hub.url}/lfs/{each['oid']}"
            actions = {"upload": {"href": url}, "verify": {"href": f"{url}/verify"}}
            known = each["oid"] in self.hub.large
            objects.append(
                {"oid": each["oid"], "size": each["size"], **({} if known else {"actions": actions})}
            )
        raise _Answer(200, {"transfer": "basic", "objects": objects})

    def _store(self, oid: str, verify: bool) -> None:
        if verify:
            raise _Answer(*((200, {}) if oid in self.hub.large else (404, {"error": "not uploaded"})))
        if hashlib.sha256(self.payload).hexdigest() != oid:
            raise _Answer(400, {"error": "the contents do not have this hash"})
        self.hub.large[oid] = self.payload
        raise _Answer(200, {})

    def _commit(self, revision: str) -> None:
        if revision not in self.repository.branches:
            raise _Answer(404, {"error": f"Invalid rev id: {revision}"}, "RevisionNotFound")
        files = dict(self.repository.commits[self._commit_of(revision)][1])
        message = ""
        for line in self.payload.decode().splitlines():
            key, value = (entry := json.loads(line))["key"], entry["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.hub.large:
                    raise _Answer(400, {"error": f"{value['path']} was not uploaded"})
                files[value["path"]] = self.hub.large[value["oid"]]
            elif key == "deletedFile":
                files.pop(value["path"])
            elif key == "deletedFolder":
                files = {p: c for p, c in files.items() if not p.startswith(value["path"].rstrip("/") + "/")}
        sha = self.repository.commit(revision, message, files)
        url = f"{self.hub.url}/{PREFIX[self.kind]}{self.repo_id}/commit/{sha}"
        raise _Answer(200, {"success": True, "commitUrl": url, "commitOid": sha, "pullRequestUrl": None})

    def _resolve(self, revision: str, path: str) -> None:
        sha = self._commit_of(revision)
        content = self.repository.commits[sha][1].get(path)
        if content is None:
            raise _Answer(404, {"error": "Entry not found"}, "EntryNotFound", **{"X-Repo-Commit": sha})
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        headers["ETag"] = f'"{_blob(content)}"'
        if _mode(path, len(content)) == "lfs":
            headers["X-Linked-Etag"] = headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(content))
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not wanted or self.command == "HEAD":
            raise _Answer(200, content, **headers)
        first, last = wanted.groups()
        start = int(first) if first else max(len(content) - int(last), 0)
        end = min(int(last) + 1 if first and last else len(content), len(content))
        if start >= len(content):
            raise _Answer(416, b"", **{"Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        raise _Answer(206, content[start:end], **headers)


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _mode(path: str, size: int) -> str:
    return "lfs" if path.endswith(LFS_SUFFIXES) or size > 10_000_000 else "regular"
