"""A loopback fake of the object store behind gs://: enough of the JSON API for the clients this project uses.

Objects live in memory with a generation each. What is modelled because it matters: an object appears whole or
not at all, conditional writes (`ifGenerationMatch`), ranged reads, listings by prefix, delimiter and page,
and the absence of directories and of appending.

    with FakeStorage(["bucket"]) as storage:
        subprocess.run([...], env={**os.environ, **storage.environment()})
"""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

PAGE_SIZE = 1000


@dataclasses.dataclass(frozen=True)
class Stored:
    """One object: its bytes, its generation and its content type."""

    data: bytes
    generation: int
    content_type: str = "application/octet-stream"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *unused: object) -> None:
        """Clients that are killed, or that hang up when they have read enough, are what tests do."""


class ApiError(Exception):
    """An answer other than success: the HTTP status and a message."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class FakeStorage:
    """The buckets, and the server thread that serves them on a free port of the loopback interface."""

    def __init__(self, buckets: list[str]):
        self.buckets: dict[str, dict[str, Stored]] = {name: {} for name in buckets}
        self.requests: list[str] = []
        self.uploads: dict[str, tuple[str, str, bytearray]] = {}
        self.lock = threading.RLock()
        self.generations = itertools.count(1)
        handler = type("Handler", (_Handler,), {"storage": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def environment(self) -> dict[str, str]:
        """The variables that point gcsfs, google-cloud-storage and TensorStore at this server."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            # Without credentials TensorStore asks the metadata server; this one answers that there is none.
            "GCE_METADATA_ROOT": self.url.removeprefix("http://"),
            "NO_GCE_CHECK": "true",
            # gcsfs would ask over gRPC, which is not faked, whether the bucket has folders.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "no_proxy": "127.0.0.1",
        }

    def __enter__(self) -> FakeStorage:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def bucket(self, name: str) -> dict[str, Stored]:
        if name not in self.buckets:
            raise ApiError(404, f"no bucket {name}")
        return self.buckets[name]

    def get(self, bucket: str, name: str) -> Stored:
        with self.lock:
            if name not in self.bucket(bucket):
                raise ApiError(404, f"no object {bucket}/{name}")
            return self.bucket(bucket)[name]

    def put(self, bucket: str, name: str, data: bytes, query: dict[str, str]) -> dict:
        with self.lock:
            objects = self.bucket(bucket)
            self.check_generation(objects.get(name), query)
            objects[name] = Stored(bytes(data), next(self.generations))
            return describe(bucket, name, objects[name])

    def delete(self, bucket: str, name: str, query: dict[str, str]) -> None:
        with self.lock:
            stored = self.get(bucket, name)
            self.check_generation(stored, query)
            del self.bucket(bucket)[name]

    @staticmethod
    def check_generation(stored: Stored | None, query: dict[str, str]) -> None:
        wanted = query.get("ifGenerationMatch")
        if wanted is not None and int(wanted) != (stored.generation if stored else 0):
            raise ApiError(412, "the generation does not match")

    def list(self, bucket: str, query: dict[str, str]) -> dict:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        start = max(query.get("startOffset", ""), query.get("pageToken", ""))
        end = query.get("endOffset")
        items, prefixes = [], []
        limit = int(query.get("maxResults", PAGE_SIZE))
        with self.lock:
            objects = dict(sorted(self.bucket(bucket).items()))
        for name, stored in objects.items():
            if not name.startswith(prefix) or name < start or (end and name >= end):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                common = prefix + rest.split(delimiter)[0] + delimiter
                if common not in prefixes:
                    prefixes.append(common)
                continue
            if len(items) == limit:
                return {"items": items, "prefixes": prefixes, "nextPageToken": name}
            items.append(describe(bucket, name, stored))
        return {"items": items, "prefixes": prefixes}


def describe(bucket: str, name: str, stored: Stored) -> dict:
    """The resource that the API returns for an object."""
    checksum = google_crc32c.Checksum(stored.data).digest()
    return {
        "kind": "storage#object",
        "bucket": bucket,
        "name": name,
        "size": str(len(stored.data)),
        "generation": str(stored.generation),
        "metageneration": "1",
        "contentType": stored.content_type,
        "crc32c": base64.b64encode(checksum).decode(),
        "timeCreated": "2026-01-01T00:00:00.000Z",
        "updated": "2026-01-01T00:00:00.000Z",
    }


class _Handler(BaseHTTPRequestHandler):
    storage: FakeStorage
    protocol_version = "HTTP/1.1"
    # Headers and body leave in one packet: in two, each answer waits for a delayed acknowledgement.
    wbufsize = -1

    def log_message(self, *unused: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_GET

    def _answer(self) -> None:
        body = self._read_body()
        self.storage.requests.append(f"{self.command} {self.path}")
        try:
            status, headers, data = self._route(self.command, self.path, body)
        except ApiError as error:
            status, headers = error.status, {"Content-Type": "application/json"}
            data = json.dumps({"error": {"code": error.status, "message": str(error)}}).encode()
        self._send(status, headers, data)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD" and status != 204:
            self.wfile.write(data)

    def _route(self, method: str, target: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        parts = urlsplit(target)
        query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        path = parts.path
        if path.startswith("/upload/"):
            return self._upload(method, path.removeprefix("/upload"), query, body)
        path = path.removeprefix("/download")
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)/o/(.+)/moveTo/o/(.+)", path):
            bucket, name, target = map(unquote, match.groups())
            resource = self.storage.put(bucket, target, self.storage.get(bucket, name).data, {})
            self.storage.delete(bucket, name, {})
            return _json(resource)
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)/o/(.+)", path):
            return self._object(method, *map(unquote, match.groups()), query)
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)/o/?", path):
            return _json(self.storage.list(unquote(match.group(1)), query))
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)", path):
            self.storage.bucket(match.group(1))
            return _json({"kind": "storage#bucket", "id": match.group(1), "name": match.group(1)})
        raise ApiError(404, f"no such address: {method} {path}")

    def _object(self, method: str, bucket: str, name: str, query: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        if method == "DELETE":
            self.storage.delete(bucket, name, query)
            return 204, {}, b""
        stored = self.storage.get(bucket, name)
        if query.get("alt") != "media":
            return _json(describe(bucket, name, stored))
        if query.get("ifGenerationNotMatch") == str(stored.generation):
            raise ApiError(304, "not modified")
        self.storage.check_generation(stored, query)
        size = len(stored.data)
        headers = {"Content-Type": stored.content_type, "x-goog-generation": str(stored.generation)}
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not match or size == 0:
            return 200, headers, stored.data
        first, last = match.groups()
        start = int(first) if first else max(0, size - int(last))
        stop = min(int(last) + 1, size) if first and last else size
        if start >= size:
            raise ApiError(416, "outside of the object")
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return 206, headers, stored.data[start:stop]

    def _upload(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        bucket = unquote(re.fullmatch(r"/storage/v1/b/([^/]+)/o/?", path).group(1))
        kind = query.get("uploadType")
        if "upload_id" in query:
            return self._continue_upload(query["upload_id"], body)
        if kind == "media":
            return _json(self.storage.put(bucket, query["name"], body, query))
        if kind == "resumable":
            identity = str(next(self.storage.generations))
            name = query.get("name") or json.loads(body)["name"]
            self.storage.uploads[identity] = (bucket, name, bytearray())
            location = f"{self.storage.url}/upload{path}?uploadType=resumable&upload_id={identity}"
            return 200, {"Location": location, "Content-Type": "application/json"}, b"{}"
        raise ApiError(400, f"unknown upload type {kind}")

    def _continue_upload(self, identity: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        bucket, name, data = self.storage.uploads[identity]
        data += body
        content_range = self.headers.get("Content-Range", "")
        if content_range.endswith("/*"):
            return 308, {"Range": f"bytes=0-{len(data) - 1}"} if data else {}, b""
        del self.storage.uploads[identity]
        return _json(self.storage.put(bucket, name, bytes(data), {}))


def _json(value: dict) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()
