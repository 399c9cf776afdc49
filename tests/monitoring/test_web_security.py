"""Who may see the page, and that no address leads out of the list of runs."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from monitoring.web.pages import QUIETEN
from monitoring.web.security import POLICY, Guard
from tests.monitoring.web import RUN, TOKEN, browser, guarded, tree

PAGES = ("/", "/run", "/compare", "/sweep")
DATA = ("curve", "metrics", "ranks", "experts", "devices", "log", "sweep", "differences")
ADDRESSES = (
    *PAGES,
    *(f"/api/{each}" for each in DATA),
    "/events",
    "/static/x/page.css",
    "/metrics",
    "/nothing",
    QUIETEN,
)
SECRET = "the secret beside the runs"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secure")
    (folder / "secret.txt").write_text(SECRET)
    return tree(folder / "runs")


@pytest.fixture(scope="module")
def stranger(root: Path) -> TestClient:
    return browser(guarded(root))


@pytest.fixture(scope="module")
def viewer(root: Path) -> TestClient:
    client = browser(guarded(root))
    client.get("/", params={"token": TOKEN})
    return client


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
def test_without_the_token_all_answers_are_the_same(stranger: TestClient, address: str, method: str) -> None:
    answer = stranger.request(method, address, params={"run": RUN})
    assert answer.status_code == 401
    assert answer.text in ("unauthorized\n", "")
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "given_token", ["", "x", TOKEN[:-1], TOKEN + "x", TOKEN.lower(), "\u00e9\u20ac", "%00", " " + TOKEN]
)
def test_a_wrong_token_is_as_good_as_none(root: Path, given_token: str) -> None:
    client = browser(guarded(root))
    missing = client.get("/")
    wrong = client.get("/", params={"token": given_token})
    assert (wrong.status_code, wrong.text, dict(wrong.headers)) == (401, missing.text, dict(missing.headers))
    for kind in ("Bearer", "bearer", "Basic", "Token"):
        headers = [(b"authorization", f"{kind} {given_token}".encode())]
        assert client.get("/api/ranks", headers=headers).status_code == 401
    assert client.get("/", params=[("token", TOKEN), ("token", TOKEN)]).status_code == 401
    assert client.get("/", headers={"authorization": f"Basic {TOKEN}"}).status_code == 401


def test_the_token_becomes_a_cookie_and_leaves_the_address(root: Path) -> None:
    client = browser(guarded(root))
    answer = client.get("/", params={"token": TOKEN})
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie
    assert TOKEN not in str(answer.headers)
    assert client.get("/").status_code == 200
    # Only the first page takes it: elsewhere it would stay in an address.
    other = browser(guarded(root))
    assert other.get("/run", params={"token": TOKEN}).status_code == 401


def test_each_server_has_a_cookie_of_its_own_which_opens_no_other(root: Path) -> None:
    one, other = browser(guarded(root)), browser(guarded(root))
    one.get("/", params={"token": TOKEN})
    (cookie,) = one.cookies.jar
    other.cookies.set(cookie.name, str(cookie.value))
    assert other.get("/").status_code == 401
    assert cookie.value != TOKEN


@pytest.mark.parametrize("other", ['prefs={"theme":"dark"}', "path=/x", 'x="unclosed', "name=M\xfcller", "lone", "=;;"])
def test_cookies_of_other_programs_at_this_machine_lock_nobody_out(root: Path, other: str) -> None:
    client = browser(guarded(root))
    client.get("/", params={"token": TOKEN})
    (cookie,) = client.cookies.jar
    own = f"{cookie.name}={cookie.value}"
    client.cookies.clear()
    for sent in (f"{other}; {own}", f"{own}; {other}", f"{own[:-1]}; {other};{own}"):
        assert client.get("/", headers=[(b"cookie", sent.encode("latin-1"))]).status_code == 200
    assert client.get("/", headers=[(b"cookie", f"{other}; {own}x".encode("latin-1"))]).status_code == 401


def test_scripts_send_the_token_with_each_request(stranger: TestClient) -> None:
    answer = stranger.get("/api/metrics", params={"run": RUN}, headers={"authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200 and "loss" in answer.json()["names"]


@pytest.mark.parametrize("address", PAGES)
def test_headers_forbid_what_the_page_does_not_need(viewer: TestClient, address: str) -> None:
    answer = viewer.get(address)
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == POLICY
    for rule in ("default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"):
        assert rule in POLICY
    assert "unsafe" not in POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in answer.headers
    assert "style=" not in answer.text and "<script>" not in answer.text and "onload" not in answer.text


@pytest.mark.parametrize("address", ["/", f"/api/metrics?run={RUN}", "/api/ranks?run=nobody", "/nothing"])
def test_data_is_never_stored(viewer: TestClient, address: str) -> None:
    assert viewer.get(address).headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "",
        "10.0.0.1",
        "localhost:99x",
    ],
)
def test_a_name_that_somebody_lets_point_here_does_not_help(viewer: TestClient, host: str) -> None:
    assert viewer.get("/", headers={"host": host}).status_code == 421
    assert viewer.get("/", params={"token": TOKEN}, headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1:41873", "[::1]:9000", "LOCALHOST:1"])
def test_a_tunnel_may_begin_at_any_port_of_the_loopback(viewer: TestClient, host: str) -> None:
    assert viewer.get("/", headers={"host": host}).status_code in (200, 401)


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://localhost", "http://localhost:1", "http://127.0.0.1"]
)
def test_another_sites_page_reads_and_writes_nothing(viewer: TestClient, origin: str) -> None:
    assert viewer.get("/", headers={"origin": origin}).status_code == 403
    body = {"run": RUN, "finding": "stall", "how": "silence"}
    assert viewer.post(QUIETEN, json=body, headers={"origin": origin}).status_code == 403
    assert viewer.options("/", headers={"origin": origin, "access-control-request-method": "POST"}).status_code == 403


def test_only_silencing_writes_and_only_from_the_page_itself(viewer: TestClient) -> None:
    own = {"origin": "http://localhost"}
    body = {"run": RUN, "finding": "no such", "how": "silence"}
    assert viewer.post(QUIETEN, json=body).status_code == 403  # who posts says from where
    assert viewer.post(QUIETEN, json=body, headers=own).status_code == 404  # it came through
    for address in ("/", "/api/curve", "/events"):
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"):
            assert viewer.request(method, address, headers=own).status_code == 405, (method, address)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"run": 1}', b'{"run":"a","finding":"b","how":1}', b"x" * 9000])
def test_what_is_posted_is_checked(viewer: TestClient, body: bytes) -> None:
    answer = viewer.post(QUIETEN, content=body, headers={"origin": "http://localhost"})
    assert answer.status_code == 400


UP = [
    *("..", ".", "../..", "../secret.txt", "../../secret.txt", "tiny/../../secret.txt", "..\\secret.txt", "./" + RUN),
    *("/etc/passwd", "//etc/passwd", "....//....//etc/passwd", "file:///etc/passwd", "~", "$HOME", "/", "", "\x00"),
    *("..%2f..%2fsecret.txt", "%2e%2e/secret.txt", "../secret.txt\x00.js"),
    *("tiny", "tiny/", RUN + "/attempts/0", RUN + "/.."),
]


@pytest.mark.parametrize("path", UP)
def test_no_run_is_a_path(viewer: TestClient, path: str) -> None:
    for address in (
        "/api/log",
        "/api/ranks",
        "/api/curve",
        "/api/experts",
        "/api/devices",
        "/api/metrics",
        "/api/differences",
        "/api/request",
        "/events",
    ):
        answer = viewer.get(address, params={"run": path})
        assert answer.status_code == 404 and SECRET not in answer.text
    answer = viewer.get("/api/sweep", params={"sweep": path})
    assert answer.status_code == 404


@pytest.mark.parametrize("path", UP)
@pytest.mark.parametrize("before", ["/static/", "/static/x/", "/", "/api/", "/run/"])
def test_no_address_is_a_path(root: Path, path: str, before: str) -> None:
    app = guarded(root)
    for written in (path, quote(path, safe=""), quote(quote(path, safe=""), safe="")):
        status, body = asked(app, before + written)
        assert status == 404 or (before + written == "/" and b"<main" in body), written


def asked(app: Guard, path: str) -> tuple[int, bytes]:
    """The answer to an address as it stands: a client would resolve its dots first."""
    said: list[dict[str, Any]] = []
    headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {TOKEN}".encode())]
    scope = {"type": "http", "method": "GET", "path": path, "raw_path": b"", "query_string": b"", "headers": headers}

    async def send(message: Any) -> None:
        said.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    asyncio.run(app(scope | {"http_version": "1.1", "scheme": "http", "root_path": ""}, receive, send))
    return said[0]["status"], b"".join(each.get("body", b"") for each in said[1:])


@pytest.mark.parametrize(
    "log",
    [
        "0",
        "0/",
        "/0",
        "-1/0",
        "0/-1",
        "0/0/..",
        "../../secret.txt",
        "0/0\x00",
        "job.log",
        "0/1e3",
        "٣/0",
        "9" * 30 + "/0",
    ],
)
def test_a_log_is_named_by_numbers(viewer: TestClient, log: str) -> None:
    answer = viewer.get("/api/log", params={"run": RUN, "log": log})
    assert answer.status_code == 400 and SECRET not in answer.text


def test_a_log_that_is_a_link_to_elsewhere_is_not_read(root: Path, viewer: TestClient) -> None:
    (root / RUN / "attempts" / "0" / "rank-77.log").symlink_to(root.parent / "secret.txt")
    answer = viewer.get("/api/log", params={"run": RUN, "log": "0/77"})
    assert answer.status_code == 503 and SECRET not in answer.text


anything = st.text(max_size=40) | st.lists(
    st.sampled_from(["..", ".", "", "tiny", RUN, "attempts", "0", "%2e", "\\"]), max_size=8
).map("/".join)


@given(anything, st.sampled_from(DATA), st.sampled_from(["run", "sweep", "log", "metric", "layer", "low", "most"]))
def test_whatever_is_asked_gets_an_answer_in_words(viewer: TestClient, value: str, data: str, name: str) -> None:
    value = value.encode("utf-8", "replace").decode()
    asked = {"run": RUN} | {name: value}
    answer = viewer.get(f"/api/{data}", params=asked)
    assert answer.status_code in (200, 400, 404) and SECRET not in answer.text


@given(st.text(max_size=60))
@example("\n")
@example("run\n")
def test_whatever_address_leads_nowhere_else(root: Path, path: str) -> None:
    status, body = asked(guarded_once(root), "/" + path)
    assert (status == 404 and body == b"Not Found") or f"/{path}" in ADDRESSES


@functools.cache
def guarded_once(root: Path) -> Guard:
    return guarded(root)


def test_a_websocket_is_refused(root: Path) -> None:
    said = []

    async def send(message: dict) -> None:
        said.append(message["type"])

    async def receive() -> dict:
        return {"type": "websocket.connect"}

    async def nowhere(*_: object) -> None:
        raise AssertionError("it came through")

    asyncio.run(Guard(nowhere, TOKEN)({"type": "websocket", "headers": [], "path": "/"}, receive, send))  # type: ignore[arg-type]
    assert said == ["websocket.close"]
