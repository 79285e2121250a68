"""A server on this machine that speaks the Hub's language, or a plain file server's, and misbehaves on demand.

`FakeHub({"owner/name": folder})` serves the files of each folder under /owner/name/resolve/REVISION/FILE, with ranges, and
tells its commit under /api/models/owner/name. `hub.fault(kind, which)` meets the next answers that carry a .safetensors or
.gguf file, of the numbers in `which`, or all of them.
"""

import hashlib
import json
import re
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"

BIG = (".safetensors", ".gguf")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that has hung up is no news."""


class FakeHub:
    """On loopback, at a port that is free; stops when the block ends."""

    def __init__(self, repositories, *, gated=(), token="hf_fake", redirect=False, lists=True):
        self.repositories = {name: Path(folder) for name, folder in repositories.items()}
        self.gated, self.token, self.redirect, self.lists = set(gated), token, redirect, lists
        self.commit, self.log, self._lock = COMMIT, [], threading.Lock()
        self.meeting = None
        """A barrier at which requests for a commit wait for one another."""
        self.fault(None)

    def __enter__(self):
        self._servers = [
            _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self, "cdn": cdn})) for cdn in (False, True)
        ]
        self._threads = [threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True) for server in self._servers]
        for thread in self._threads:
            thread.start()
        self.endpoint, self.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)
        return self

    def __exit__(self, *exc):
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()

    def fault(self, kind, which=None):
        """From now on: the answers of these numbers, counted from 0, get this fault."""
        with self._lock:
            self._kind, self._which, self._seen = kind, which, 0

    def taken(self):
        """The fault that the next answer gets."""
        with self._lock:
            number, self._seen = self._seen, self._seen + 1
            return self._kind if self._which is None or number in self._which else None

    def sent(self, ending=""):
        """Bytes of answers that are no refusals, for paths with this ending."""
        return sum(entry["sent"] for entry in self.log if entry["path"].endswith(ending) and entry["status"] < 300)

    def folder(self, name):
        """The address of a repository's folder, as a plain file server has it."""
        return f"{self.endpoint}/{name}/resolve/main"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits for the acknowledgement of its headers
    hub: FakeHub
    cdn: bool

    def log_message(self, *args):
        """The hub has a log of its own."""

    def do_HEAD(self):
        self._route()

    def do_GET(self):
        self._route()

    def _route(self):
        path, hub = unquote(urlsplit(self.path).path), self.hub
        match = re.fullmatch(r"/(api/models/)?([^/]+/[^/]+?)(?:/(?:resolve|revision)/([^/]+)(?:/(.+))?)?", path)
        if not match or match[2] not in hub.repositories:
            return self._error(401, "RepoNotFound")  # as to anyone without a token
        if match[3] not in (None, "main", hub.commit):
            return self._error(404, "RevisionNotFound")
        if match[1]:
            if hub.meeting:
                hub.meeting.wait()
            names = [{"rfilename": path.name} for path in hub.repositories[match[2]].iterdir()] if hub.lists else []
            return self._json({"id": match[2], "sha": hub.commit, "siblings": names, "tags": []})
        if match[2] in hub.gated and not self.cdn and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._error(403 if "Authorization" in self.headers else 401, "GatedRepo")
        file = hub.repositories[match[2]] / (match[4] or "")
        if not file.is_file():
            return self._error(404, "EntryNotFound")
        return self._file(file)

    def _file(self, file):
        data, hub = file.read_bytes(), self.hub
        headers = {"X-Repo-Commit": hub.commit, "ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        big = file.name.endswith(BIG)
        if big and hub.redirect and not self.cdn:
            linked = {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(data)), "Location": hub.cdn + self.path}
            return self._answer(302, headers | linked)
        fault = hub.taken() if big and self.command == "GET" else None
        if fault in ("429", "503"):
            return self._error(int(fault), None, {"Retry-After": "7"})
        if fault in ("401", "403", "404", "500"):
            return self._error(int(fault), {"401": "GatedRepo", "404": "EntryNotFound"}.get(fault))
        if fault == "loop":
            return self._answer(302, {"Location": self.path})
        if fault == "changed":
            headers |= {"ETag": '"other"'}
        if fault == "other-commit":
            headers |= {"X-Repo-Commit": "f" * 40}
        if fault == "compressed":
            headers |= {"Content-Encoding": "gzip"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not asked or fault == "ignore-range":
            return self._answer(200, headers, data)
        return self._part(data, int(asked[1]), min(int(asked[2]), len(data) - 1), fault, headers)

    def _part(self, data, first, last, fault, headers):
        if first > last:
            return self._answer(416, headers | {"Content-Range": f"bytes */{len(data)}"})
        if fault == "short":
            last = first + (last - first) // 2
        body = data[first : last + 1]
        if fault == "other-part":
            first, last, body = first + 1, last + 1, data[first + 1 : last + 2]
        if fault == "corrupt":
            body = bytes(byte ^ 0x40 for byte in body)
        if fault == "huge-header":
            body = (2**62).to_bytes(8, "little") + body[8:]
        if fault != "no-content-range":
            headers |= {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
        if fault not in ("cut", "reset"):
            return self._answer(206, headers, body)
        self._answer(206, headers, body[: len(body) // 2], len(body))
        self.close_connection = True
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            for end in (self.wfile, self.rfile, self.connection):
                end.close()
        return None

    def _error(self, status, code, headers=None):
        self._answer(status, (headers or {}) | ({"X-Error-Code": code} if code else {}), b"{}")

    def _json(self, content):
        self._answer(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _answer(self, status, headers, body=b"", length=None):
        entry = {
            "path": urlsplit(self.path).path,
            "query": urlsplit(self.path).query,
            "status": status,
            "sent": 0,
            "cdn": self.cdn,
        }
        entry |= {
            "method": self.command,
            "range": self.headers.get("Range"),
            "authorization": self.headers.get("Authorization"),
        }
        self.hub.log.append(entry)  # before the client can have its answer
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            entry["sent"] = len(body)
            self.wfile.write(body)
