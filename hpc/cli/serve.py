"""``hpc serve``: all runs live in a browser, here or through ssh."""

from __future__ import annotations

import argparse
import contextlib
import errno
import getpass
import json
import secrets
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc import runs, sweep
from hpc.errors import Refused
from hpc.runs import Run

if TYPE_CHECKING:
    from monitoring.findings import Finding, Quiet
    from monitoring.job import JobState
    from monitoring.web.server import Place
    from monitoring.web.source import Source, Sweep

HELP = "all runs live in a browser, here or through ssh"
PORTS = range(1, 1 << 16)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hpc serve", description=HELP)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--port", type=int, metavar="P", help="on 127.0.0.1; a free one is chosen if left out")
    where.add_argument("--socket", action="store_true", help="on a unix socket that only you can reach, for ssh -L")
    parser.add_argument("--json", action="store_true", help="where it is, and the token, as JSON")
    args = parser.parse_args(argv)
    if args.port is not None and args.port not in PORTS:
        raise Refused(f"--port {args.port}: there is no such port. Allowed: 1 to {PORTS[-1]}; left out, a free one")

    from monitoring.web.pages import QUIETEN, application
    from monitoring.web.security import Guard
    from monitoring.web.server import serve

    root = runs.root().resolve()
    token = secrets.token_urlsafe(32)
    with _place(args) as place:
        ended_by = serve(
            lambda closing: Guard(application(source(root), closing), token, written=(QUIETEN,)),
            place,
            ready=lambda: _tell(place, token, root, as_json=args.json),
        )
    return 0 if ended_by == signal.SIGINT else 128 + ended_by


def _place(args: argparse.Namespace) -> AbstractContextManager[Place]:
    from monitoring.web.server import on_port, on_socket

    if args.socket:
        return on_socket()
    found = on_port(args.port or 0)
    return _Bound(found, args.port)


class _Bound(AbstractContextManager["Place"]):
    """A place whose refusal says what to type."""

    def __init__(self, place: AbstractContextManager[Place], port: int | None) -> None:
        self._place, self._port = place, port

    def __enter__(self) -> Place:
        try:
            return self._place.__enter__()
        except OSError as error:
            why = {
                errno.EADDRINUSE: "another program on this machine uses that port",
                errno.EACCES: "ports below 1024 are the system's",
            }.get(error.errno or 0, error.strerror or str(error))
            raise Refused(
                f"--port {self._port}: {why}. Give another one, or leave it out: hpc serve takes a free one"
            ) from error

    def __exit__(self, *raised: Any) -> bool | None:
        return self._place.__exit__(*raised)


def _tell(place: Place, token: str, root: Path, *, as_json: bool) -> None:
    url = place.url(token)
    tunnel = place.tunnel(socket.gethostname(), getpass.getuser())
    if as_json:
        found = {"url": url, "token": token, "tunnel": tunnel, "port": place.port, "runs": str(root)}
        print(json.dumps({**found, "socket": None if place.path is None else str(place.path)}), flush=True)
        return
    print(f"runs      {root}\n")
    if place.path is None:
        print(f"here      {url}\n\nFrom your own machine type\n\n    {tunnel}\n\nand open the same address there.")
    else:
        print(f"socket    {place.path}\n\nFrom your own machine type\n\n    {tunnel}\n\nand open there\n\n    {url}\n")
    print("Whoever has the token sees all that you see here. Ctrl-C ends.", flush=True)


def source(root: Path) -> Source:
    """What the page is made from: the runs under ``root``."""
    from hpc.departed import Departed
    from hpc.queue import states
    from monitoring.web.source import Source

    departed = Departed()

    def jobs(folders: Sequence[Path], known: Mapping[Path, JobState]) -> Mapping[Path, JobState]:
        return states([Run(folder) for folder in folders], known, departed=departed)

    return Source(
        runs=lambda: [run.folder for run in runs.every(root)],
        rows=_rows,
        jobs=jobs,
        sweeps=lambda: list(_sweeps(root)),
        configuration=_configuration,
        quieten=_quieten,
    )


def _rows(folders: Sequence[Path], jobs: Mapping[Path, JobState]) -> Sequence[Any]:
    from hpc.listing import read

    return read([Run(folder) for folder in folders], jobs)


def _configuration(folder: Path) -> Mapping[str, Any]:
    from hpc.compare import flat, read_config
    from monitoring.request import shown

    try:
        return {path: shown(path, value) for path, value in flat(read_config(Run(folder))).items()}
    except Refused as error:
        raise ValueError(str(error)) from error


def _quieten(folder: Path, finding: Finding, how: Quiet) -> None:
    from hpc import findings

    findings.quieten(Run(folder), finding, how)


def _sweeps(root: Path) -> Iterator[Sweep]:
    from monitoring.web.source import Member, Sweep

    for found in sweep.every(root):
        with contextlib.suppress(Refused):  # of another version, or removed just now
            members = [
                Member(n, each.name, found.run(n).folder, found.settings(n)) for n, each in enumerate(found.members)
            ]
            yield Sweep(found.folder, found.cancelled, members)
