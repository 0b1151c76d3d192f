"""A stand-in for the Hub on this machine: as much of its HTTP interface as an upload and a download use."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Repositories by id, each a dict of files; every request is kept."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing on stderr."""

    def do_POST(self) -> None:
        """Create a repository, say how files are to come, take a commit."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self._path()
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.hub.repositories.setdefault(name, {})
            self._json({"url": f"http://{self.headers['Host']}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [item["path"] for item in json.loads(body)["files"]]
            self._json(
                {"files": [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        elif "/commit/" in path:
            files = self._repository()
            for line in body.decode().splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
                elif item["key"] == "deletedFile":
                    files.pop(item["value"]["path"], None)
            name = "/".join(path.split("/")[3:5])
            self._json({"commitUrl": f"http://{self.headers['Host']}/{name}/commit/{SHA}", "commitOid": SHA})
        else:
            self._json({"error": f"no {path}"}, status=404)

    def do_GET(self) -> None:
        """What is in a repository, and its files."""
        path = self._path()
        if path.startswith("/api/models/"):
            files = self._repository()
            if files is None:
                self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            elif "/tree/" in path:
                items = [
                    {"type": "file", "path": f, "size": len(b), "oid": _oid(b)} for f, b in files.items()
                ]
                self._json(items)
            else:
                names = [{"rfilename": name} for name in files]
                identity = "/".join(path.split("/")[3:5])
                self._json({"id": identity, "_id": "0" * 24, "sha": SHA, "siblings": names})
        elif "/resolve/" in path:
            name, _, rest = path.strip("/").partition("/resolve/")
            content = self.hub.repositories.get(name, {}).get(rest.split("/", 1)[1])
            if content is None:
                self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            else:
                self._send(200, content, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": SHA})
        else:
            self._json({"error": f"no {path}"}, status=404)

    do_HEAD = do_GET

    def _path(self) -> str:
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        return path

    def _repository(self) -> dict[str, bytes]:
        name = "/".join(self.path.partition("?")[0].split("/")[3:5])
        return self.hub.repositories.get(name)  # type: ignore[return-value]

    def _json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(
            status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})}
        )

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def local_hub(patch: pytest.MonkeyPatch, cache: str) -> Iterator[Hub]:
    """Let huggingface_hub talk to a stand-in, with a cache of its own and a token that is none."""
    from huggingface_hub import constants

    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    patch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_CACHE", cache)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in takes files within the commit
    patch.setenv("HF_TOKEN", "hf_stand_in")
    patch.setenv("NO_PROXY", "127.0.0.1")
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
