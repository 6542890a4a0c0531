"""The explorer's server: this machine only, one token, fixed files, bounded work.

It listens on 127.0.0.1 and answers a request only if the Host is loopback (a name that an attacker points here is
refused: DNS rebinding), the cookie that the printed link sets is there, and a POST comes from the page itself (Origin).
No CORS header is ever sent, so no other page can read an answer.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from functools import cache
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from simulator.errors import InputError, Problem, ShardwiseError

ADDRESS = "127.0.0.1"
MAX_BODY_BYTES = 64 * 1024
MAX_WORK = 4
"""Requests that compute at the same time."""
MAX_CONNECTIONS = 32
WORK_S, PLAN_WORK_S = 2.0, 30.0
"""Seconds after which a request is given up (the planner bounds its own search)."""
READY_S = 60.0
"""Seconds that the first question waits for what it needs to be loaded."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_STATIC = (
    "index.html", "explorer.css", "main.js", "state.js", "dials.js", "picture.js", "panels.js", "icon.svg",
)  # fmt: skip

View = Callable[[Mapping[str, Any]], dict[str, Any]]


@cache
def static_files() -> Mapping[str, tuple[str, bytes]]:
    """Path -> (content type, content): all that can be asked for, read once."""
    here = files("simulator.web").joinpath("static")
    found = {f"/{name}": (_type(name), here.joinpath(name).read_bytes()) for name in _STATIC}
    shared = files("simulator.report").joinpath("page.css").read_bytes()
    return {**found, "/": found["/index.html"], "/page.css": (_type("page.css"), shared)}


def _type(name: str) -> str:
    return f"{_TYPES[name.rsplit('.', maxsplit=1)[1]]}; charset=utf-8"


@cache
def views() -> Mapping[str, tuple[View, float]]:
    """Path of a POST -> (what answers it, seconds it may take)."""
    from simulator.web.views import catalogue_view, estimate_view, plan_view, scatter_view

    return {
        "/api/catalogue": (lambda _: catalogue_view(), WORK_S),
        "/api/estimate": (estimate_view, WORK_S),
        "/api/scatter": (scatter_view, WORK_S),
        "/api/plan": (plan_view, PLAN_WORK_S),
    }


class Explorer(ThreadingHTTPServer):
    """The server. `url` is the link that opens the page; whoever has it may use it."""

    daemon_threads = True
    allow_reuse_address = False

    def __init__(self, port: int = 0, *, token: str = "") -> None:
        super().__init__((ADDRESS, port), _Handler)
        self.token = token or secrets.token_urlsafe(24)
        self.work = threading.BoundedSemaphore(MAX_WORK)
        self.connections = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self.ready = threading.Event()
        self.ready.set()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.port}/?token={self.token}"

    @property
    def cookie(self) -> str:
        """Cookies do not know ports: the name does, so that two explorers can run beside each other."""
        return f"shardwise-{self.port}"

    def warm_up(self) -> None:
        """Load, beside the browser's start, what the first answer needs; no clock of `run` starts before that."""
        self.ready.clear()

        def load() -> None:
            from simulator.web.state import START

            static_files()
            _attempt(lambda: views()["/api/estimate"][0]({"state": dict(START)}))
            self.ready.set()

        threading.Thread(target=load, daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts a thread for a connection; beyond the limit the connection is closed at once."""
        if not self.connections.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answers one connection and gives its place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is the browser's business; nothing is printed."""

    def run(self, work: Callable[[], dict[str, Any]], limit_s: float) -> tuple[HTTPStatus, dict[str, Any]]:
        """Status and answer of `work`, given up after `limit_s` seconds; its place is free only when it has ended."""
        if not self.work.acquire(blocking=False):
            return HTTPStatus.SERVICE_UNAVAILABLE, _problems(f"{MAX_WORK} requests are being answered: try again.")
        box: list[tuple[HTTPStatus, dict[str, Any]]] = []

        def answer() -> None:
            try:
                box.append(_attempt(work))
            finally:
                self.work.release()

        self.ready.wait(READY_S)
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        thread.join(limit_s)
        late = _problems(f"this took longer than {limit_s:g} s and was given up.")
        return box[0] if box else (HTTPStatus.SERVICE_UNAVAILABLE, late)


def _attempt(work: Callable[[], dict[str, Any]]) -> tuple[HTTPStatus, dict[str, Any]]:
    try:
        return HTTPStatus.OK, work()
    except ShardwiseError as error:
        rows = [{"message": p.message, "where": p.where, "hint": p.hint} for p in error.problems]
        return HTTPStatus.UNPROCESSABLE_ENTITY, {"problems": rows}
    except Exception as error:  # noqa: BLE001 (whatever went wrong, the page says so and the server lives on)
        return HTTPStatus.INTERNAL_SERVER_ERROR, _problems(f"a defect of shardwise: {type(error).__name__}: {error}")


def _problems(*messages: str) -> dict[str, Any]:
    return {"problems": [{"message": message, "where": "", "hint": ""} for message in messages]}


class _Handler(BaseHTTPRequestHandler):
    """One request. Every refusal says why in one line."""

    server: Explorer
    server_version = "shardwise"
    sys_version = ""
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged: the library does not print."""

    def do_GET(self) -> None:
        """Answers a static file, or sets the cookie and leaves the token out of the address."""
        if not self._host_is_ours():
            return
        parts = urlsplit(self.path)
        given = parse_qs(parts.query).get("token", [""])[0]
        if parts.path == "/" and given and self._is_token(given):
            self.send_response(HTTPStatus.SEE_OTHER)
            self.send_header("Set-Cookie", f"{self.server.cookie}={given}; Path=/; HttpOnly; SameSite=Strict")
            self.send_header("Location", "/")
            self._end(b"")
        elif not self._is_token(self._cookie()):
            self._say(HTTPStatus.FORBIDDEN, "Open the link that `shardwise explore` printed: it holds a token.")
        elif parts.path in static_files():
            kind, content = static_files()[parts.path]
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self._end(content)
        else:
            self._say(HTTPStatus.NOT_FOUND, "There is nothing here.")

    def do_POST(self) -> None:
        """Answers a question of the page in JSON."""
        if not self._host_is_ours():
            return
        path = urlsplit(self.path).path
        if self.headers.get("Origin") not in self._origins():
            self._say(HTTPStatus.FORBIDDEN, "Only the page itself may ask.")
        elif not self._is_token(self._cookie()):
            self._say(HTTPStatus.FORBIDDEN, "Open the link that `shardwise explore` printed: it holds a token.")
        elif path not in views():
            self._say(HTTPStatus.NOT_FOUND, "There is nothing here.")
        elif self.headers.get_content_type() != "application/json":
            self._say(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Questions are JSON.")
        elif (length := self._length()) is not None:
            self._answer(path, self.rfile.read(length))

    def _answer(self, path: str, body: bytes) -> None:
        try:
            question = json.loads(body)
        except (ValueError, RecursionError):
            question = None
        if not isinstance(question, dict):
            status, answer = HTTPStatus.BAD_REQUEST, _problems("the question is no JSON object.")
        else:
            view, limit_s = views()[path]
            status, answer = self.server.run(lambda: view(question), limit_s)
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self._end(json.dumps(answer, allow_nan=False, separators=(",", ":")).encode())

    def _length(self) -> int | None:
        """Bytes of the body; None after having refused it."""
        text = self.headers.get("Content-Length", "")
        if not (text.isascii() and text.isdigit()):
            self._say(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing.")
        elif len(text) > 8 or int(text) > MAX_BODY_BYTES:
            self._say(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"At most {MAX_BODY_BYTES} bytes.")
        else:
            return int(text)
        return None

    def _origins(self) -> tuple[str, ...]:
        return tuple(f"http://{host}:{self.server.port}" for host in (ADDRESS, "localhost"))

    def _host_is_ours(self) -> bool:
        ours = [origin.removeprefix("http://") for origin in self._origins()]
        if self.headers.get_all("Host", []) in [[host] for host in ours]:
            return True
        self._say(HTTPStatus.MISDIRECTED_REQUEST, "This server answers to 127.0.0.1 and localhost only.")
        return False

    def _cookie(self) -> str:
        try:
            cookies = SimpleCookie(self.headers.get("Cookie", ""))
        except CookieError:
            return ""
        found = cookies.get(self.server.cookie)
        return found.value if found else ""

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.server.token.encode())

    def _say(self, status: HTTPStatus, words: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self._end(f"{words}\n".encode())

    def _end(self, content: bytes) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def open_explorer(port: int = 0) -> Explorer:
    """An explorer that listens on `port` (0: any free one); `serve_forever` runs it, `server_close` ends it.

    Raises InputError where the port is taken or not allowed.
    """
    try:
        return Explorer(port)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not from 0 to 65535"
        if isinstance(error, socket.gaierror):
            reason = "no such address"
        raise InputError([Problem(f"port {port} cannot be used: {reason}.", "--port", "0 takes a free one.")]) from None
