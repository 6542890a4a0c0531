"""The explorer's server refuses what does not come from its own page on this machine."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from simulator.errors import InputError
from simulator.web.server import MAX_BODY_BYTES, MAX_WORK, Explorer, open_explorer, static_files
from simulator.web.state import START

pytestmark = pytest.mark.loopback


@pytest.fixture(scope="module")
def server() -> Iterator[Explorer]:
    with open_explorer() as found:
        found.warm_up()
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def ask(
    server: Explorer, method: str, path: str, body: bytes | str | None = None, **changed: str | None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and content; headers as the page sends them unless changed (None leaves one out)."""
    headers: dict[str, str | None] = {
        "Host": f"127.0.0.1:{server.port}",
        "Origin": f"http://127.0.0.1:{server.port}",
        "Cookie": f"{server.cookie}={server.token}",
        "Content-Type": "application/json",
        **{name.replace("_", "-"): value for name, value in changed.items()},
    }
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.putrequest(method, path, skip_host=True)
    for name, value in headers.items():
        if value is not None:
            connection.putheader(name, value)
    content = body.encode() if isinstance(body, str) else body
    if content is not None and "Content_Length" not in changed:
        connection.putheader("Content-Length", str(len(content)))
    connection.endheaders(content)
    answer = connection.getresponse()
    found = answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    connection.close()
    return found


def post(server: Explorer, path: str, question: Any, **changed: str | None) -> tuple[int, Any]:
    status, _, content = ask(server, "POST", path, json.dumps(question), **changed)
    return status, json.loads(content)


def test_it_listens_on_loopback_only(server: Explorer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.socket.getsockname()[0] == "127.0.0.1"


def test_the_link_sets_a_cookie_and_leaves_the_token_out_of_the_address(server: Explorer) -> None:
    status, headers, _ = ask(server, "GET", f"/?token={server.token}", Cookie=None)
    assert (status, headers["location"]) == (303, "/")
    assert headers["set-cookie"] == f"{server.cookie}={server.token}; Path=/; HttpOnly; SameSite=Strict"


@pytest.mark.parametrize("path", ["/", "/main.js", "/?token=", "/?token=wrong", "/?token=%00%ff"])
def test_without_the_token_there_is_nothing_to_see(server: Explorer, path: str) -> None:
    status, _, content = ask(server, "GET", path, Cookie=None)
    assert status == 403
    assert server.token.encode() not in content


@pytest.mark.parametrize("cookie", ["", "shardwise=1", 'x="', "\x80", "a" * 4000])
def test_a_strange_cookie_is_no_token(server: Explorer, cookie: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("GET", "/", headers={"Cookie": cookie.encode("latin-1")})
    assert connection.getresponse().status == 403
    connection.close()


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "127.0.0.1:1", "0.0.0.0", "", None])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_another_host_name_is_misdirected(server: Explorer, method: str, host: str | None) -> None:
    status, _, _ = ask(server, method, "/api/catalogue" if method == "POST" else "/", b"{}", Host=host)
    assert status == 421


def test_two_host_names_are_one_too_many(server: Explorer) -> None:
    text = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nHost: evil.example\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(text.encode())
        assert b" 421 " in raw.makefile("rb").readline()


def test_localhost_is_loopback_too(server: Explorer) -> None:
    host = f"localhost:{server.port}"
    assert ask(server, "POST", "/api/catalogue", b"{}", Host=host, Origin=f"http://{host}")[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:1", None])
def test_only_the_page_itself_may_ask(server: Explorer, origin: str | None) -> None:
    assert ask(server, "POST", "/api/catalogue", b"{}", Origin=origin)[0] == 403


def test_a_question_needs_the_cookie(server: Explorer) -> None:
    assert ask(server, "POST", "/api/catalogue", b"{}", Cookie=None)[0] == 403
    assert ask(server, "POST", "/api/catalogue", b"{}", Cookie=f"{server.cookie}=guess")[0] == 403


def test_every_answer_forbids_what_it_does_not_need(server: Explorer) -> None:
    answers = [ask(server, "GET", "/"), ask(server, "GET", "/nothing"), ask(server, "POST", "/api/catalogue", b"{}")]
    for _, headers, _ in answers:
        assert headers["content-security-policy"].startswith("default-src 'self';")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert not [name for name in headers if name.startswith("access-control")]
        assert "python" not in headers["server"].lower()


@pytest.mark.parametrize(
    "path", ["/../server.py", "/..%2fserver.py", "/static/main.js", "//etc/passwd", "/main.js/", "/%6dain.js", "/.git"]
)
def test_only_the_fixed_files_are_there(server: Explorer, path: str) -> None:
    assert ask(server, "GET", path)[0] == 404


def test_every_static_file_is_served_as_what_it_is(server: Explorer) -> None:
    for path, (kind, content) in static_files().items():
        status, headers, found = ask(server, "GET", path)
        assert (status, headers["content-type"], found) == (200, kind, content)


def test_static_files_name_no_other_machine() -> None:
    for path, (_, content) in static_files().items():
        text = content.decode().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, path
        assert "innerHTML" not in text
        assert " style=" not in text
        assert "onclick=" not in text


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "HEAD", "TRACE"])
def test_other_methods_are_not_there(server: Explorer, method: str) -> None:
    assert ask(server, method, "/")[0] == 501


def test_a_body_is_small_and_its_length_is_said(server: Explorer) -> None:
    assert ask(server, "POST", "/api/estimate", None)[0] == 411
    too_long = str(MAX_BODY_BYTES + 1)
    for length in (too_long, "9" * 30):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        headers = {"Origin": f"http://127.0.0.1:{server.port}", "Cookie": f"{server.cookie}={server.token}",
                   "Content-Type": "application/json", "Content-Length": length}  # fmt: skip
        connection.request("POST", "/api/estimate", headers=headers)
        assert connection.getresponse().status == 413
        connection.close()


def test_a_question_is_json(server: Explorer) -> None:
    assert ask(server, "POST", "/api/estimate", b"{}", Content_Type="text/plain")[0] == 415
    for body in (b"{", b"[]", b"1", b"\xff", b"[" * 60_000):
        status, _, content = ask(server, "POST", "/api/estimate", body)
        assert (status, json.loads(content)["problems"][0]["message"]) == (400, "the question is no JSON object.")


@pytest.mark.parametrize("path", ["/api/nothing", "/", "/api/estimate/", "/main.js"])
def test_only_the_four_questions_are_answered(server: Explorer, path: str) -> None:
    assert ask(server, "POST", path, b"{}")[0] == 404


def test_an_estimate_is_answered(server: Explorer) -> None:
    status, answer = post(server, "/api/estimate", {"state": dict(START), "width": 500})
    assert status == 200
    assert answer["document"]["title"] == "gpt3-175b on 1,024 devices of dgx-a100"
    assert [picture["name"] for picture in answer["pictures"]] == ["waterfall", "memory", "timeline", "topology"]


def test_a_wrong_setting_is_answered_with_its_place_and_fix(server: Explorer) -> None:
    status, answer = post(server, "/api/estimate", {"state": {**START, "tp": 7}})
    assert status == 422
    assert any(p["where"] == "tp" and p["hint"] for p in answer["problems"])


def test_no_more_work_at_once_than_allowed(server: Explorer) -> None:
    held = [server.work.acquire(blocking=False) for _ in range(MAX_WORK)]
    try:
        status, answer = post(server, "/api/catalogue", {})
        assert (all(held), status) == (True, 503)
        assert "try again" in answer["problems"][0]["message"]
    finally:
        for _ in held:
            server.work.release()
    assert post(server, "/api/catalogue", {})[0] == 200


def test_work_that_takes_too_long_is_given_up_and_keeps_its_place_until_it_ends() -> None:
    with open_explorer() as server:
        free, ended = threading.Event(), threading.Event()

        def slow() -> dict[str, Any]:
            free.wait(20)
            ended.set()
            return {}

        status, answer = server.run(slow, 0.01)
        assert (status, "given up" in answer["problems"][0]["message"]) == (503, True)
        held = [server.work.acquire(blocking=False) for _ in range(MAX_WORK)]
        assert held == [True] * (MAX_WORK - 1) + [False]
        free.set()
        assert ended.wait(20)
        for _ in range(2000):
            if server.work.acquire(blocking=False):
                return
            time.sleep(0.01)
        pytest.fail("the place was not given back")


def test_the_clock_starts_when_everything_is_loaded() -> None:
    with open_explorer() as server:
        server.ready.clear()
        threading.Timer(0.2, server.ready.set).start()
        assert server.run(lambda: {"ready": server.ready.is_set()}, 5.0) == (200, {"ready": True})


def test_a_defect_is_said_and_survived() -> None:
    with open_explorer() as server:
        status, answer = server.run(lambda: {"x": 1 // 0}, 5.0)
        assert (status, "ZeroDivisionError" in answer["problems"][0]["message"]) == (500, True)
        assert server.run(lambda: {"x": 1}, 5.0) == (200, {"x": 1})


def test_a_taken_port_is_bad_input(server: Explorer) -> None:
    with pytest.raises(InputError, match="cannot be used"):
        open_explorer(server.port)


def test_tokens_are_long_and_differ() -> None:
    with open_explorer() as one, open_explorer() as other:
        assert len(one.token) >= 32
        assert one.token != other.token
        assert one.cookie != other.cookie
