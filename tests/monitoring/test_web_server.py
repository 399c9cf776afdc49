"""``hpc serve`` as a process: where it listens, what it prints, how it ends."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.monitoring.web import RUN, tree

Start = Callable[..., "Serving"]


class Serving:
    """The program, and the first thing that it said."""

    def __init__(self, root: Path, *words: str) -> None:
        environment = {**os.environ, "HPC_RUNS": str(root), "XDG_RUNTIME_DIR": str(root.parent)}
        command = [sys.executable, "-m", "hpc", "serve", *words]
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def said(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ended(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tree(tmp_path_factory.mktemp("serve") / "runs")


@pytest.fixture
def start(root: Path) -> Iterator[Start]:
    started: list[Serving] = []

    def starting(*words: str) -> Serving:
        started.append(Serving(root, *words))
        return started[-1]

    yield starting
    for each in started:
        each.close()


def test_it_serves_on_the_loopback_alone_and_ctrl_c_ends_it_at_once(start: Start) -> None:
    serving = start("--json")
    said = serving.said()
    port, token = said["port"], said["token"]
    assert said["url"] == f"http://localhost:{port}/?token={token}" and len(token) >= 43
    assert said["tunnel"].startswith(f"ssh -L {port}:127.0.0.1:{port} ") and socket.gethostname() in said["tunnel"]
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("GET", "/")
        assert connection.getresponse().status == 401
        connection.close()
        # A stream that is open keeps nobody.
        headers = {"Authorization": f"Bearer {token}"}
        connection.request("GET", f"/events?run={RUN}", headers=headers)
        answer = connection.getresponse()
        assert answer.status == 200 and answer.readline() == b"event: state\n"
        began = time.monotonic()
        serving.process.send_signal(signal.SIGINT)
        status, out, err = serving.ended()
    assert time.monotonic() - began < 3
    assert (status, out, err) == (0, "", "")
    other = socket.socket()
    with closing(other):
        assert other.connect_ex(("127.0.0.1", port)) != 0


def test_sigterm_ends_it_too_and_nothing_but_the_token_was_ever_printed(start: Start) -> None:
    serving = start()
    assert serving.process.stdout is not None
    printed = []
    while not (printed and "Ctrl-C" in printed[-1]):
        printed.append(serving.process.stdout.readline())
    text = "".join(printed)
    (url,) = [word for word in text.split() if word.startswith("http://")]
    found = urlsplit(url)
    with closing(http.client.HTTPConnection("127.0.0.1", found.port, timeout=20)) as connection:
        connection.request("GET", f"{found.path}?{found.query}")
        assert connection.getresponse().status == 303
    assert text.count(found.query) == 1 and "ssh -L " in text
    serving.process.send_signal(signal.SIGTERM)
    status, out, err = serving.ended()
    assert (status, out, err) == (143, "", "")  # no log of who asked for what


def test_on_a_socket_that_nobody_else_can_reach(start: Start) -> None:
    serving = start("--socket", "--json")
    said = serving.said()
    path = Path(said["socket"])
    assert said["port"] is None and f"ssh -L 8080:{path} " in said["tunnel"]
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700 and stat.S_IMODE(path.stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(f"GET /api/metrics?run={RUN} HTTP/1.0\r\nHost: localhost:8080\r\n\r\n".encode())
        assert client.recv(100).startswith(b"HTTP/1.1 401")
    serving.process.send_signal(signal.SIGINT)
    assert serving.ended()[0] == 0
    assert not path.parent.exists()


def test_a_port_in_use_is_said_in_words(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, out, err = start("--port", str(port)).ended()
    assert status == 2 and out == "" and "Traceback" not in err
    assert err == (
        f"hpc serve: --port {port}: another program on this machine uses that port. "
        "Give another one, or leave it out: hpc serve takes a free one\n"
    )


@pytest.mark.parametrize("words", [("--port", "0"), ("--port", "65536"), ("--port", "x"), ("--port", "1", "--socket")])
def test_what_makes_no_sense_is_refused(start: Start, words: tuple[str, ...]) -> None:
    status, out, err = start(*words).ended()
    assert status == 2 and out == "" and "Traceback" not in err


def test_a_job_s_code_has_all_that_the_page_needs(tmp_path: Path) -> None:
    from hpc import provenance
    from monitoring.web import pages

    provenance.snapshot(tmp_path)
    copied = tmp_path / "monitoring" / "web" / "static"
    names = sorted(path.relative_to(pages.STATIC) for path in pages.STATIC.rglob("*") if path.is_file())
    assert {"shell.html", "page.css", "uplot/uPlot.iife.min.js", "uplot/LICENSE"} <= {str(name) for name in names}
    assert all((copied / name).read_bytes() == (pages.STATIC / name).read_bytes() for name in names)


def test_the_page_asks_for_nothing_from_elsewhere() -> None:
    from monitoring.web import pages

    ours = [path for path in pages.STATIC.iterdir() if path.suffix in (".js", ".css", ".html")]
    for path in ours:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text and "innerHTML" not in text, path
