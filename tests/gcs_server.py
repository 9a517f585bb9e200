"""A server that speaks as much of Cloud Storage's JSON interface as leases need, for the real client (gcsfs) to talk to over HTTP.

Objects have generations, and an upload with `ifGenerationMatch` is refused with 412 where the generation is another, under one lock.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

OBJECTS = re.compile(r"^(?:/upload|/download)?/storage/v1/b/(?P<bucket>[^/]+)/o(?:/(?P<name>[^/]+))?$")


class Bucket(ThreadingHTTPServer):
    """The objects, (content, generation) by (bucket, name), and the requests that were refused for their generation."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[tuple[str, str], tuple[bytes, int]] = {}
        self.lock, self.generation, self.refused = threading.Lock(), 0, 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer leaves in one piece
    server: Bucket

    def log_message(self, *_):
        pass

    def _parts(self):
        url = urlsplit(self.path)
        found = OBJECTS.match(url.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        return (found["bucket"], found["name"] and unquote(found["name"])) if found else None, query

    def _answer(self, status, value, kind="application/json"):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status):
        self._answer(status, {"error": {"code": status, "message": f"refused with {status}"}})

    def _about(self, key):
        content, generation = self.server.objects[key]
        return {
            "kind": "storage#object",
            "bucket": key[0],
            "name": key[1],
            "size": str(len(content)),
            "generation": str(generation),
        }

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        key, query = self._parts()
        if key is None or query.get("uploadType") != "multipart":
            return self._refuse(400)
        parts = BytesParser().parsebytes(b"Content-Type: " + self.headers["Content-Type"].encode() + b"\n\n" + body)
        about, content = (part.get_payload(decode=True) for part in parts.get_payload())
        key = (key[0], json.loads(about)["name"])
        with self.server.lock:
            generation = self.server.objects.get(key, (b"", 0))[1]
            if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != generation:
                self.server.refused += 1
                return self._refuse(412)
            self.server.generation += 1
            self.server.objects[key] = (content, self.server.generation)
            return self._answer(200, self._about(key))

    def do_GET(self):
        key, query = self._parts()
        if key is None:
            return self._refuse(404)
        with self.server.lock:
            if key[1] is None:
                return self._answer(200, self._listing(key[0], query))
            if key not in self.server.objects:
                return self._refuse(404)
            if query.get("alt") == "media":
                return self._answer(200, self.server.objects[key][0], "application/octet-stream")
            return self._answer(200, self._about(key))

    def _listing(self, bucket, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, folders = [], set()
        for key in sorted(self.server.objects):
            if key[0] != bucket or not key[1].startswith(prefix):
                continue
            head, found, _ = key[1][len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if found:
                folders.add(prefix + head + delimiter)
            else:
                items.append(self._about(key))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)}

    def do_DELETE(self):
        key, _ = self._parts()
        with self.server.lock:
            if key is None or self.server.objects.pop(key, None) is None:
                return self._refuse(404)
            return self._answer(204, b"")


@contextlib.contextmanager
def serving() -> Iterator[tuple[str, Bucket]]:
    """The server's address, and the server."""
    with Bucket() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", server
        finally:
            server.shutdown()
