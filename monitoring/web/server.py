"""The page as a server on this machine: on the loopback, or on a unix socket that only its owner can reach."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

LOOPBACK = "127.0.0.1"
BACKLOG = 128
FORWARDED = 8080  # the port that a tunnel to a unix socket is given at the other end


@dataclass(frozen=True)
class Place:
    """Where the page is served; ``port`` or ``path``."""

    listening: socket.socket
    port: int | None = None
    path: Path | None = None

    def url(self, token: str) -> str:
        """What opens the page in a browser, here or at the near end of the tunnel."""
        return f"http://localhost:{self.port or FORWARDED}/?token={token}"

    def tunnel(self, host: str, user: str) -> str:
        """What is typed on one's own machine to reach it."""
        near, far = (self.port, f"{LOOPBACK}:{self.port}") if self.port else (FORWARDED, str(self.path))
        return f"ssh -L {near}:{far} {user}@{host}"


@contextlib.contextmanager
def on_port(port: int = 0) -> Iterator[Place]:
    """The loopback; 0: a free port that the system chooses.

    Raises:
        OSError: if the port is in use, or this user's may not be.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((LOOPBACK, port))
        listening.listen(BACKLOG)
        yield Place(listening, port=listening.getsockname()[1])


@contextlib.contextmanager
def on_socket() -> Iterator[Place]:
    """A unix socket in a folder of its own that nobody else can enter; both are gone afterwards."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    base = base if base and len(base) < 60 and os.access(base, os.W_OK) else None  # a socket's name is short
    folder = Path(tempfile.mkdtemp(prefix="hpc-serve-", dir=base))  # of mode 0700
    path = folder / f"{secrets.token_hex(4)}.sock"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
            listening.bind(str(path))
            path.chmod(0o600)
            listening.listen(BACKLOG)
            yield Place(listening, path=path)
    finally:
        path.unlink(missing_ok=True)
        folder.rmdir()


class _Server(uvicorn.Server):
    """Signals are ours: the first one ends all, open streams too."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(make: Callable[[asyncio.Event], ASGIApp], place: Place, ready: Callable[[], None] = lambda: None) -> int:
    """Serve until SIGINT or SIGTERM; returns which of them it was.

    Args:
        make: makes the application, which ends its streams when the event is set.
        ready: called once connections are taken.
    """
    return asyncio.run(_serve(make, place, ready))


async def _serve(make: Callable[[asyncio.Event], ASGIApp], place: Place, ready: Callable[[], None]) -> int:
    loop, closing, came = asyncio.get_running_loop(), asyncio.Event(), list[int]()
    config = uvicorn.Config(
        make(closing),
        access_log=False,  # it would have the token in it
        log_level="critical",
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=1 << 15,
    )
    server = _Server(config)

    def end(number: int) -> None:
        came.append(number)
        closing.set()
        server.should_exit = True
        server.force_exit = len(came) > 1

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end, number)
    loop.call_soon(ready)
    await server.serve(sockets=[place.listening])
    return came[0] if came else signal.SIGTERM
