"""The live screen in a real pseudo-terminal: it updates, and leaves the terminal as it found it."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyte
import pytest
from rich.console import Console

from monitoring import layout
from monitoring.reader import Reader
from monitoring.recorder import Recorder
from monitoring.terminal.watch import watch
from tests.monitoring.generate import BATCH, Shape, Try, finish, generate

PROGRAM = """
import sys
from pathlib import Path
from monitoring.reader import Reader
from monitoring.terminal.watch import watch
reader = Reader(Path(sys.argv[1]))
last = watch(reader.read, interval=0.05, until_done=sys.argv[2] == "done")
sys.exit(7 if last.done else 0)
"""


class Person:
    """Somebody at a terminal in which the watch screen runs."""

    def __init__(self, run: Path, mode: str = "", size: tuple[int, int] = (80, 24), **environment: str) -> None:
        self.terminal = pyte.Screen(*size)
        self.stream = pyte.ByteStream(self.terminal)
        self.master, slave = pty.openpty()
        self.resize(*size)
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        # Who runs the tests may have exported a size of its own, such as pytest-xdist.
        inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(run), mode],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={**inherited, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **environment},
        )
        self.sent = b""

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.terminal.resize(height, width)

    def look(self, seconds: float = 0.05) -> str:
        """What stands on the terminal after what came within some seconds."""
        while select.select([self.master], [], [], seconds)[0]:
            data = os.read(self.master, 1 << 16)
            self.sent += data
            self.stream.feed(data)
        return "\n".join(row.rstrip() for row in self.terminal.display)

    def sees(self, text: str) -> bool:
        ends = time.monotonic() + 20
        while time.monotonic() < ends:
            if text in self.look():
                return True
        return False

    def ended(self) -> int:
        """The exit status, with all that was printed taken in."""
        ends = time.monotonic() + 20
        while self.process.poll() is None and time.monotonic() < ends:
            self.look()
        self.look()
        return self.process.wait(1)

    def as_found(self) -> bool:
        """The screen, the cursor, wrapping and the keyboard are as before."""
        modes = [self.sent.rfind(code) for code in (b"\x1b[?1049l", b"\x1b[?25h", b"\x1b[?7h")]
        taken = [self.sent.rfind(code) for code in (b"\x1b[?1049h", b"\x1b[?25l", b"\x1b[?7l")]
        back = all(last > first for last, first in zip(modes, taken, strict=True))
        return back and termios.tcgetattr(self.slave) == self.before

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(5)
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def people() -> Iterator[list[Person]]:
    started: list[Person] = []
    yield started
    for person in started:
        person.close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return generate(tmp_path / "tiny_moe" / "20251122-1f2e")


def test_the_screen_follows_the_run_sending_only_what_changed(run: Path, people: list[Person]) -> None:
    person = Person(run)
    people.append(person)
    assert person.sees("step 290 of 500")
    person.look(0.3)
    before = len(person.sent)
    recorder = Recorder(layout.attempt_folder(run, 2), 0, 4, "tiny_moe", 2)
    recorder.step(step=291, tokens=291 * BATCH, loss=3.125)
    recorder.close()
    assert person.sees("step 291 of 500") and person.sees("loss 3.125")
    assert len(person.sent) - before < 12_000
    assert person.sees("step 290 of 500  loss 3.4835")  # the log stands where it stood
    person.resize(120, 40)
    assert person.sees("validation_loss") and person.sees("node failure")


@pytest.mark.parametrize("how", ["q", "ctrl-c", "sigterm"])
def test_whoever_leaves_finds_the_terminal_as_it_was(run: Path, people: list[Person], how: str) -> None:
    person = Person(run)
    people.append(person)
    assert person.sees("step 290 of 500")
    if how == "sigterm":
        person.process.send_signal(signal.SIGTERM)
        assert person.ended() == 143
    else:
        os.write(person.master, b"q" if how == "q" else b"\x03")
        assert person.ended() == 0
        assert "running on noctua2 (EMULATED), step 290 of 500" in person.look().replace("\n", "")
    assert person.as_found()


def test_the_last_frame_and_the_summary_stay_when_the_run_ends(run: Path, people: list[Person]) -> None:
    person = Person(run, "done")
    people.append(person)
    assert person.sees("step 290 of 500")
    finish(run, Shape())
    assert person.ended() == 7
    rows = person.look().split("\n")
    assert any(row.startswith(" tiny_moe/20251122-1f2e") and row.endswith("FINISHED") for row in rows)
    assert any("┤" in row for row in rows) and any("sample    The installer" in row for row in rows)
    assert any("attempts  3 (time limit, node failure, finished), 51 lost steps" in row for row in rows)
    assert person.as_found()


def test_a_terminal_without_unicode_gets_ascii(run: Path, people: list[Person]) -> None:
    person = Person(run, PYTHONIOENCODING="ascii")
    people.append(person)
    assert person.sees("step 290 of 500")
    assert all(row.isascii() for row in person.terminal.display)
    assert person.sees("10.35+")


def test_a_pipe_gets_lines_and_the_summary(tmp_path: Path) -> None:
    run = generate(tmp_path / "run", Shape((Try(0, 20),), steps=20))
    reader = Reader(run)
    looks = iter(["queued", "running", "running", "finished"])
    output = io.StringIO()
    last = watch(
        lambda: replace(reader.read(), state=next(looks)), interval=0.0, until_done=True, console=Console(file=output)
    )
    lines = output.getvalue().splitlines()
    assert last.done and lines[0].startswith("tiny_moe/run, queued on noctua2 (EMULATED), step 20 of 20")
    assert lines[1].startswith("tiny_moe/run, running") and lines[2] == "tiny_moe/run: finished on noctua2 (EMULATED)"
    assert "\x1b" not in output.getvalue()
    watch(reader.read, until_done=False, console=Console(file=output))
    assert output.getvalue().splitlines()[-1].strip().startswith("step 20 of 20")
