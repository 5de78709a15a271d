"""A host of released weights on this machine, whose every answer can be spoilt in the ways that hosts do."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

QUOTA_PAGE = b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>Sorry</body></html>"


class ReleasedHost(ThreadingHTTPServer):
    """Serves `files` (id -> bytes) at /download?id=ID, as `ways` (id -> way) says; `asked` lists the ids asked for.

    Ways: "" whole; "html", "404", "moved" (a redirect to the file), "login" (one to a page), "loop", "truncated",
    "unannounced" (truncated, without a length), "hang" (for `hang_s`, in mid-file), "mute" (before any byte), "empty".
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.ways: dict[str, str] = {}
        self.asked: list[str] = []
        self.hang_s = 2.0
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/download?id={{id}}&export=download&confirm=t"

    def handle_error(self, request, client_address):
        """Clients that hang up are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        address, host = urlsplit(self.path), self.server
        name = parse_qs(address.query).get("id", [""])[0]
        host.asked.append(name)
        way = "" if address.path == "/elsewhere" else host.ways.get(name, "")
        if way in ("moved", "login", "loop"):
            place = {"moved": f"/elsewhere?id={name}", "login": "/login", "loop": self.path}[way]
            self._answer(302, b"", {"Location": place})
        elif way == "html" or address.path == "/login":
            self._answer(200, QUOTA_PAGE, {"Content-Type": "text/html"})
        elif way == "404" or name not in host.files:
            self._answer(404, b"<html>gone</html>")
        elif way == "mute":
            time.sleep(host.hang_s)
        else:
            self._send(way, host.files[name])

    def _send(self, way, content):
        length = {} if way == "unannounced" else {"Content-Length": str(0 if way == "empty" else len(content))}
        self._answer(200, None, length)
        if way == "hang":
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            time.sleep(self.server.hang_s)
        elif way in ("truncated", "unannounced"):
            self.wfile.write(content[: len(content) // 2])
        elif way != "empty":
            self.wfile.write(content)

    def _answer(self, status, content, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        if content is not None:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if content:
            self.wfile.write(content)

    def log_message(self, *_):
        pass
