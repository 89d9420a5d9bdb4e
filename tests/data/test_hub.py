"""A dataset of the Hub, from a server on this machine that answers as the Hub does.

In a process of its own, because `huggingface_hub` decides once where the Hub is.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from .test_load import rows

REPOSITORY, COMMIT = "someone/streets", "0" * 39 + "1"

PROGRAM = """
import json, sys
from corrmatch_hf.data import Augmentation, load_semi_dataset, training_batches
from corrmatch_hf.errors import InputError
for streaming in (False, True):
    semi = load_semi_dataset("someone/streets", labeled_count=3, streaming=streaming)
    batches = training_batches(semi, Augmentation(crop_size=9), labeled_batch=2, unlabeled_batch=2, seed=0)
    batch = next(batches)
    print(json.dumps([len(semi.labeled), len(semi.validation), semi.id2label[3], batch.unlabeled_files]))
try:
    load_semi_dataset("someone/strets")
except InputError as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture
def hub(tmp_path):
    """Its address."""
    root = tmp_path / "repository"
    (root / "data").mkdir(parents=True)
    rows(8).to_parquet(str(root / "data/train-00000-of-00001.parquet"))
    rows(3, first=20).to_parquet(str(root / "data/validation-00000-of-00001.parquet"))
    (root / "id2label.json").write_text(json.dumps({str(i): f"class {i}" for i in range(4)}))
    files = {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def reply(self, body: bytes, status: int = 200, **headers):
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            api = f"/api/datasets/{REPOSITORY}"
            if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
                siblings = [{"rfilename": name} for name in files]
                info = {"id": REPOSITORY, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
                self.reply(json.dumps(info).encode())
            elif path.startswith(f"{api}/tree/"):
                inside = "/".join(path.removeprefix(f"{api}/tree/").split("/")[1:])
                entries = [
                    {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                    for name, body in files.items()
                    if name.startswith(inside)
                ]
                if not inside:
                    entries.append({"type": "directory", "path": "data", "size": 0, "oid": "0"})
                self.reply(
                    json.dumps(entries).encode(), 200 if entries else 404, X_Error_Code="EntryNotFound"
                )
            elif path.startswith(f"/datasets/{REPOSITORY}/resolve/"):
                name = "/".join(path.removeprefix(f"/datasets/{REPOSITORY}/resolve/").split("/")[1:])
                body = files.get(name)
                if body is None:
                    self.reply(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
                    return
                tag = f'"{hashlib.sha1(body).hexdigest()}"'
                span = self.headers.get("Range", "").removeprefix("bytes=").split("-")
                if len(span) == 2:
                    first, last = int(span[0]), min(int(span[1] or len(body) - 1), len(body) - 1)
                    where = f"bytes {first}-{last}/{len(body)}"
                    self.reply(
                        body[first : last + 1], 206, ETag=tag, X_Repo_Commit=COMMIT, Content_Range=where
                    )
                else:
                    self.reply(body, ETag=tag, X_Repo_Commit=COMMIT, Accept_Ranges="bytes")
            else:
                self.reply(b"", 404, X_Error_Code="RepoNotFound")

        do_HEAD = do_POST = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_dataset_of_the_hub(hub, tmp_path):
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    listed, streamed, missing = (json.loads(line) for line in result.stdout.splitlines())
    for found in (listed, streamed):
        assert found[:3] == [3, 3, "class 3"]
        assert all(file.startswith("train[") for file in found[3])
    assert missing.startswith("The dataset 'someone/strets' cannot be loaded")
