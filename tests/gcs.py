"""A bucket of Google Cloud Storage in this process: as much of its JSON API as the libraries under the program ask for.

Objects are whole or not there; there is no append, and no rename of anything but a single object. What the answers look
like is described at https://cloud.google.com/storage/docs/json_api/v1.
"""

import http.server
import itertools
import json
import re
import threading
import urllib.parse
from pathlib import Path
from typing import NamedTuple


class Object(NamedTuple):
    data: bytes
    generation: int


class Bucket:
    """The bucket `gs://bucket`, served for as long as the block lasts; `environment` leads programs to it."""

    def __init__(self):
        self.objects: dict[str, Object] = {}
        self.refused, self.status = "", 403  # a method, the requests of which have this answer
        self.held = ""  # a write of an object with this in its name waits for ever, and `reached` is set
        self.reached = threading.Event()
        self.uploads: dict[str, tuple[str, dict, bytearray]] = {}
        self.lock, self.numbers = threading.Lock(), itertools.count(1)

    def __enter__(self) -> "Bucket":
        handler = type("Handler", (Handler,), {"bucket": self})
        self._server = Server(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *error) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        return {
            "STORAGE_EMULATOR_HOST": self.url,  # gcsfs and Google's own client
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # TensorStore
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it would ask for the kind of the bucket elsewhere
        }

    def download(self, folder: str, to: Path) -> None:
        """The objects below `folder` as files below `to`."""
        for name, stored in list(self.objects.items()):
            if name.startswith(f"{folder}/"):
                path = to / name.removeprefix(f"{folder}/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(stored.data)


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_) -> None:
        """A client that was killed is no error."""


class Refusal(Exception):
    """An answer with this HTTP status."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        body = self._body()
        query = {key: values[0] for key, values in urllib.parse.parse_qs(url.query).items()}
        bucket, writes = self.bucket, url.path.startswith("/upload")
        about = urllib.parse.unquote(url.query) + body[:1000].decode(errors="ignore")
        if writes and bucket.held and bucket.held in about:
            bucket.reached.set()
            threading.Event().wait()
        with bucket.lock:
            try:
                if bucket.refused == self.command:
                    raise Refusal(bucket.status)
                status, headers, data = self._do(self.command, url.path, query, self.headers, body)
            except Refusal as refusal:
                status, headers, data = refusal.args[0], {}, b""
        if isinstance(data, dict):
            headers, data = headers | {"Content-Type": "application/json"}, json.dumps(data).encode()
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _do(self, method: str, path: str, query: dict, headers, body: bytes):
        match = re.fullmatch(r"(?:/upload|/download)?/storage/v1/b/bucket(?:/o(?:/(.+))?)?/?", path)
        if not match:
            raise Refusal(404)
        if path.startswith("/upload"):
            return self._upload(query, headers, body)
        if match[1] is None:
            return 200, {}, self._list(query) if path.rstrip("/").endswith("/o") else {"name": "bucket"}
        name, _, target = match[1].partition("/moveTo/o/")
        name, target = urllib.parse.unquote(name), urllib.parse.unquote(target)
        found = self._check(name, query)
        if found is None:
            raise Refusal(404)
        if method == "DELETE":
            del self.bucket.objects[name]
            return 204, {}, b""
        if target:
            del self.bucket.objects[name]
            return 200, {}, self._insert(target, found.data, {})
        if query.get("alt") != "media":
            return 200, {}, self._describe(name)
        return self._media(found, headers)

    def _check(self, name: str, query: dict) -> Object | None:
        """The object; refuses where the conditions of the request do not hold. Generation 0 is: not there."""
        found = self.bucket.objects.get(name)
        generation = found.generation if found else 0
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != generation:
            raise Refusal(412)
        if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == generation:
            raise Refusal(304)
        return found

    def _insert(self, name: str, data: bytes, query: dict) -> dict:
        self._check(name, query)
        self.bucket.objects[name] = Object(bytes(data), next(self.bucket.numbers))
        return self._describe(name)

    def _describe(self, name: str) -> dict:
        data, generation = self.bucket.objects[name]
        return {
            "name": name,
            "bucket": "bucket",
            "size": str(len(data)),
            "generation": str(generation),
            "updated": "2026-01-01T00:00:00.000Z",
        }

    def _media(self, found: Object, headers):
        data, given = found.data, {"x-goog-generation": str(found.generation)}
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("Range", ""))
        if not span:
            return 200, given, data
        first, last = span[1], span[2]
        start = int(first) if first else max(0, len(data) - int(last))
        stop = min(int(last) + 1, len(data)) if first and last else len(data)
        if start >= len(data):
            raise Refusal(416)
        return 206, given | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}, data[start:stop]

    def _list(self, query: dict) -> dict:
        """Names in order, cut at the delimiter behind the prefix; a page token is the name to go on behind."""
        prefix, delimiter, limit = query.get("prefix", ""), query.get("delimiter"), int(query.get("maxResults", 1000))
        last, items, prefixes = "", [], []
        page = {"kind": "storage#objects", "items": items, "prefixes": prefixes}
        for name in sorted(name for name in self.bucket.objects if name.startswith(prefix)):
            head, cut, _ = name.removeprefix(prefix).partition(delimiter) if delimiter else (name, "", "")
            shown = prefix + head + cut if cut else name
            if shown <= query.get("pageToken", "") or shown in prefixes:
                continue
            if len(items) + len(prefixes) == limit:
                return page | {"nextPageToken": last}
            last = shown
            if cut:
                prefixes.append(shown)
            elif query.get("startOffset", "") <= name < query.get("endOffset", "\uffff"):
                items.append(self._describe(name))
        return page

    def _upload(self, query: dict, headers, body: bytes):
        kind = query.get("uploadType")
        if kind == "media":
            return 200, {}, self._insert(query["name"], body, query)
        if kind == "multipart":
            boundary = b"--" + re.search(r'boundary="?([^";]+)', headers["Content-Type"])[1].encode()
            _, first, rest = body.split(boundary, 2)
            line = b"\r\n" if first.startswith(b"\r\n") else b"\n"
            name = json.loads(first.split(2 * line, 1)[1])["name"]
            data = rest.rsplit(line + boundary, 1)[0].split(2 * line, 1)[1]
            return 200, {}, self._insert(name, data, query)
        if "upload_id" not in query:
            name = query.get("name") or json.loads(body)["name"]
            number = str(next(self.bucket.numbers))
            self.bucket.uploads[number] = name, query, bytearray()
            where = f"{self.bucket.url}/upload/storage/v1/b/bucket/o?uploadType=resumable&upload_id={number}"
            return 200, {"Location": where}, b""
        name, first, data = self.bucket.uploads[query["upload_id"]]
        data += body
        if not headers.get("Content-Range", "/").endswith(("/", f"/{len(data)}")):  # more is to come
            return 308, {"Range": f"bytes=0-{len(data) - 1}"}, b""
        del self.bucket.uploads[query["upload_id"]]
        return 200, {}, self._insert(name, data, first)
