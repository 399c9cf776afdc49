"""Word to people when a run has ended, to a real HTTP and a real SMTP server."""

from __future__ import annotations

import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_string
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hpc import check, notify
from hpc.compose import compose
from hpc.config import Config, End
from hpc.request import resolve
from hpc.runs import Run, mark_finished, write_json

SECRET = "/hooks/s3cr3t-token"


class Hook(BaseHTTPRequestHandler):
    """Takes JSON, or answers with the status that its server was told to."""

    server: Any

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.server.delay)
        self.server.taken.append((self.path, self.headers["Content-Type"], json.loads(body)))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


class Post(socketserver.StreamRequestHandler):
    """As much of SMTP as takes a letter."""

    server: Any

    def handle(self) -> None:
        self.say("220 here")
        while line := self.rfile.readline().decode().strip():
            verb = line.split()[0].upper().split(":")[0]
            if verb == "DATA":
                self.say("354 go on")
                letter = []
                while (text := self.rfile.readline().decode()).strip("\r\n") != ".":
                    letter.append(text)
                self.server.taken.append("".join(letter))
                self.say("250 taken")
            elif verb == "QUIT":
                self.say("221 bye")
                return
            else:
                self.say("250 fine")

    def say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())


@contextmanager
def serving(server: Any, **fields: object) -> Iterator[Any]:
    for name, value in {"taken": [], "status": 200, "delay": 0.0, **fields}.items():
        setattr(server, name, value)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def hook(**fields: object):
    return serving(ThreadingHTTPServer(("127.0.0.1", 0), Hook), **fields)


def url(server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}{SECRET}"


@pytest.fixture
def run(here: Path) -> Run:
    run = Run(here / "runs" / "demo" / "20260101-000000-abcd")
    run.attempts.mkdir(parents=True)
    run.config_file.write_text("name: demo\n")
    write_json(run.state_file, {"state": "failed", "reason": "rank 3 crashed", "job_id": "17", "attempt": 2})
    return run


@pytest.fixture(scope="module")
def plain() -> Config:
    return compose(["job=hello"])


def told(run: Run, config: Config, patience: float = 5.0, **given: object) -> list[str]:
    config.notify.webhook = config.notify.mail = config.notify.smtp = config.notify.file = None
    config.notify.on = [End.finished, End.failed]
    for name, value in given.items():
        setattr(config.notify, name, value)
    said: list[str] = []
    notify.ended(run, config, said.append, patience)
    return said


def test_a_webhook_is_told_what_happened_and_what_to_type(run: Run, plain: Config) -> None:
    with hook() as server:
        assert told(run, plain, webhook=url(server)) == ["notify.webhook: sent"]
        mark_finished(run.folder, step=9, tokens=900, loss_last=2.25)
        assert told(run, plain, webhook=url(server)) == ["notify.webhook: sent"]
        (path, kind, failed), (_, _, finished) = server.taken
    assert (path, kind) == (SECRET, "application/json")
    assert failed | {"host": ""} == {
        "run": "20260101-000000-abcd",
        "name": "demo",
        "state": "failed",
        "reason": "rank 3 crashed",
        "step": None,
        "tokens": None,
        "loss": None,
        "cluster": "local",
        "emulated": False,
        "job_id": "17",
        "attempt": 2,
        "host": "",
        "folder": str(run.folder),
        "next": "hpc logs 20260101-000000-abcd; to go on: hpc resume 20260101-000000-abcd",
        "text": "demo/20260101-000000-abcd is failed on local: rank 3 crashed",
    }
    assert (finished["state"], finished["step"], finished["tokens"], finished["loss"]) == ("finished", 9, 900, 2.25)


def test_only_ends_that_were_asked_for_are_told(run: Run, plain: Config) -> None:
    with hook() as server:
        assert told(run, plain, webhook=url(server), on=[End.finished]) == []
        run.set_state("cancelled")
        assert told(run, plain, webhook=url(server)) == []
        assert told(run, plain, webhook=url(server), on=[End.cancelled]) == ["notify.webhook: sent"]
    assert told(run, plain) == []


def test_the_address_may_be_kept_elsewhere(
    run: Run, plain: Config, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hook() as server:
        monkeypatch.setenv("MY_HOOK", url(server))
        (here / "secret").write_text(url(server) + "\n")
        assert told(run, plain, webhook="env:MY_HOOK") == ["notify.webhook: sent"]
        assert told(run, plain, webhook=f"file:{here}/secret") == ["notify.webhook: sent"]
    (unset,) = told(run, plain, webhook="env:NO_SUCH_NAME")
    (missing,) = told(run, plain, webhook="file:/nowhere/secret")
    assert unset == "notify.webhook: not sent: NO_SUCH_NAME is not set in the job's environment"
    assert missing == "notify.webhook: not sent: /nowhere/secret cannot be read: No such file or directory"


def test_what_fails_is_one_line_without_the_address(run: Run, plain: Config, here: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}{SECRET}"
        lines = told(run, plain, webhook=nobody)
        lines += told(run, plain, webhook=f"http://no such host{SECRET}")
        lines += told(run, plain, webhook=f"gopher://x{SECRET}")
    with hook(status=500) as server:
        lines += told(run, plain, webhook=url(server))
    assert len(lines) == 4 and all(line.startswith("notify.webhook: not sent: ") for line in lines)
    assert "s3cr3t" not in "".join(lines)
    assert "Connection refused" in lines[0] and "status 500" in lines[3]


def test_a_server_that_does_not_answer_holds_up_nothing_for_long(run: Run, plain: Config) -> None:
    with hook(delay=2.0) as server:
        began = time.monotonic()
        (line,) = told(run, plain, patience=0.3, webhook=url(server))
        assert time.monotonic() - began < 1.5
    assert line.startswith("notify.webhook: not sent")


def test_a_mail_by_smtp(run: Run, plain: Config) -> None:
    run.set_state("failed", reason="lost\nBcc: all@example.org")
    with serving(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Post)) as server:
        place = f"127.0.0.1:{server.server_address[1]}"
        assert told(run, plain, mail="me@example.org", smtp=place) == ["notify.mail: sent"]
        (text,) = server.taken
    letter = message_from_string(text)
    assert letter["To"] == "me@example.org" and letter["Bcc"] is None
    assert letter["Subject"] == "[hpc] demo/20260101-000000-abcd: is failed"
    assert "next: hpc logs 20260101-000000-abcd" in str(letter.get_payload())


def test_a_mail_by_sendmail(run: Run, plain: Config, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = here / "bin" / "sendmail"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" > {here}/words; cat > {here}/letter\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert told(run, plain, mail="me@example.org") == ["notify.mail: sent"]
    assert (here / "words").read_text() == "-t -oi\n"
    assert "To: me@example.org" in (here / "letter").read_text()


def test_a_file_gets_a_line_of_json_for_each_message(run: Run, plain: Config, here: Path) -> None:
    for _ in range(2):
        assert told(run, plain, file="told.jsonl") == ["notify.file: sent"]
    lines = [json.loads(line) for line in (run.folder / "told.jsonl").read_text().splitlines()]
    assert [line["state"] for line in lines] == ["failed", "failed"] and lines[0]["time"] <= lines[1]["time"]
    (said,) = told(run, plain, file=f"{here}/not/there")
    assert said.startswith("notify.file: not sent") and "No such file" in said


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ({"webhook": "https://example.org/x?y=1"}, True),
        ({"webhook": "env:MY_HOOK"}, True),
        ({"webhook": "file:~/.hook"}, True),
        ({"webhook": "example.org"}, False),
        ({"webhook": "https://a b"}, False),
        ({"webhook": "env:1x;touch pwned"}, False),
        ({"mail": "me.too+hpc@example.org"}, True),
        ({"mail": "-oQ/tmp@x y"}, False),
        ({"mail": "a@b\nBcc: c@d"}, False),
        ({"smtp": "mail.example.org:25"}, True),
        ({"smtp": "mail:x"}, False),
    ],
    ids=str,
)
def test_mistakes_are_found_before_anything_is_submitted(plain: Config, given: dict[str, str], right: bool) -> None:
    for name in ("webhook", "mail", "smtp"):
        setattr(plain.notify, name, given.get(name))
    found = [str(problem) for problem in check.problems(plain, resolve(plain)) if problem.field.startswith("notify")]
    assert bool(found) is not right
    if "webhook" in given:
        assert given["webhook"] not in "".join(found)


def test_the_supervisor_of_a_run_tells(here: Path) -> None:
    with hook() as server:
        env = {**os.environ, "MY_HOOK": url(server)}
        words = ["submit", "job=hello", "job.ranks_per_node=1", "notify.webhook=env:MY_HOOK", "--wait", "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "hpc", *words], capture_output=True, text=True, env=env, timeout=60
        )
        assert done.returncode == 0, done.stderr
        end = time.monotonic() + 20
        while not server.taken and time.monotonic() < end:
            time.sleep(0.05)
        ((_, _, message),) = server.taken
    assert (message["state"], message["run"]) == ("finished", json.loads(done.stdout)["run"])
    folder = Path(message["folder"])
    assert not [file for file in folder.rglob("*") if file.is_file() and b"s3cr3t" in file.read_bytes()]
