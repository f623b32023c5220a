"""A server on the loopback that speaks the hub's file endpoints, and can be made to fail in the ways networks do."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Files by repository and name, and what happens to those who ask for them."""

    repositories: dict[str, dict[str, bytes]]
    token: str | None = None
    """Without this token a repository is not shown."""
    cut_after: int | None = None
    """Close the connection after so many bytes of a file."""
    cuts: int = 10**9
    """How often that happens."""
    checksums: dict[str, str] = field(default_factory=dict)
    """Of files, that the hub tells wrongly; "" tells none."""
    etag: str | None = None
    """The ETag of every file, in place of its checksum."""
    commit: str = COMMIT
    """What the hub calls the commit of its files."""
    answer: bytes | None = None
    """What the hub answers when asked for its list of files, in place of that."""
    status: int | None = None
    """Answer everything with this status."""
    ranges: list[int] = field(default_factory=list)
    """The first byte of each file request, in order."""
    sent: int = 0
    """Bytes of files that went out."""
    requests: list[str] = field(default_factory=list)

    def start(self) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return server


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, status, headers=(), body=b""):
            self.send_response(status)
            for name, value in {"Content-Length": len(body), **dict(headers)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            hub.requests.append(f"{self.command} {self.path}")
            if hub.status is not None:
                return self.answer(hub.status, body=b"{}")
            if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.answer(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            if match := re.fullmatch(r"/api/models/([^/?]+/[^/?]+)(/revision/main)?(\?.*)?", self.path):
                return self.model(match[1])
            if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path):
                return self.file(match[1], match[2])
            return self.answer(404)

        def model(self, repository):
            if repository not in hub.repositories:
                return self.answer(404, {"X-Error-Code": "RepoNotFound"})
            siblings = [
                {"rfilename": n, "size": len(d), "lfs": self.lfs(n, d)} for n, d in hub.repositories[repository].items()
            ]
            body = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings, "private": False}
            answer = json.dumps(body).encode() if hub.answer is None else hub.answer
            return self.answer(200, {"Content-Type": "application/json"}, answer)

        def lfs(self, name, data):
            if hub.checksums.get(name) == "":
                return None
            return {"sha256": self.sha256(name, data), "size": len(data), "pointerSize": 1}

        def sha256(self, name, data):
            return hub.checksums.get(name) or hashlib.sha256(data).hexdigest()

        def file(self, repository, name):
            data = hub.repositories.get(repository, {}).get(name)
            if data is None:
                return self.answer(404, {"X-Error-Code": "EntryNotFound"})
            etag = f'"{hub.etag or self.sha256(name, data)}"'
            about = {"ETag": etag, "X-Linked-ETag": etag, "X-Linked-Size": len(data), "X-Repo-Commit": hub.commit}
            about["Accept-Ranges"] = "bytes"
            if self.command == "HEAD":
                return self.answer(200, about | {"Content-Length": len(data)})
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(wanted[1]) if wanted else 0
            hub.ranges.append(start)
            if wanted:
                about["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.send_response(206 if wanted else 200)
            for key, value in (about | {"Content-Length": len(data) - start}).items():
                self.send_header(key, str(value))
            self.end_headers()
            body = data[start:]
            if hub.cut_after is not None and hub.cuts > 0:
                hub.cuts -= 1
                body = body[: hub.cut_after]
                self.close_connection = True
            hub.sent += len(body)
            self.wfile.write(body)
            return None

    return Handler


def use_cache(monkeypatch, folder: Path) -> Path:
    """Let huggingface_hub keep its files in a folder, know no token, and wait for nothing between attempts."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    # files of these tests are smaller than what the library writes at once
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    return folder / "cache"


def point_to(monkeypatch, endpoint: str) -> None:
    """Let this be the hub."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
