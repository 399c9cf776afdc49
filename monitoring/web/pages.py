"""The addresses of the page: a shell for each kind of page, data as JSON, and a stream that sends what changed."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from monitoring.curves import AXES
from monitoring.device_metrics import METRICS
from monitoring.export import openmetrics
from monitoring.findings import Quiet
from monitoring.ranks import PARTS
from monitoring.web import logs, views, watched
from monitoring.web.encode import dumps
from monitoring.web.hub import Hub, Unknown
from monitoring.web.source import Source
from monitoring.web.threads import Shared, in_thread
from monitoring.web.watched import Gone

STATIC = Path(__file__).with_name("static")
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
EVERY = 2.0  # seconds between two looks for what changed
ALIVE = 15.0  # seconds after which a stream that has nothing to say says so: who went away is noticed by it
IDLE = 60.0  # seconds after which what nobody asked for is forgotten
POINTS = 4000  # of a curve, at most
COMPARED = 12  # runs, at most
QUIETEN = "/api/findings"  # all that may be posted to
LONGEST = 4096  # bytes of what is posted
CURVE = ("run", "metric", "axis", "low", "high", "most", "smoothing", "history", "first", "since", "place")

Handler = Callable[[Request], Awaitable[Response]]


class Mistake(Exception):
    """A question that makes no sense, in words."""


class Pages:
    """
    Args:
        closing: set when the program ends; no stream outlives it.
    """

    def __init__(self, source: Source, closing: asyncio.Event) -> None:
        self.hub = Hub(source)
        self.closing = closing
        self._states: dict[str | None, Shared[dict[str, bytes]]] = {}
        self._files, self._shell = _static()

    def routes(self) -> list[Route]:
        shells = ("/", "/run", "/compare", "/sweep")
        return [
            *(Route(path, self.shell) for path in shells),
            Route("/static/{version}/{name:path}", self.static),
            Route("/events", _told(self.events, "run", "log")),
            Route("/api/curve", _told(self.curve, *CURVE)),
            Route("/api/metrics", _told(self.metrics, "run")),
            Route("/api/ranks", _told(self.ranks, "run", "part", "low", "high")),
            Route("/api/experts", _told(self.experts, "run", "layer", "low", "high")),
            Route("/api/devices", _told(self.devices, "run", "metric")),
            Route("/api/log", _told(self.log, "run", "log", "before", "search")),
            Route("/api/sweep", _told(self.sweep, "sweep")),
            Route("/api/differences", _told(self.differences, "run")),
            Route("/api/request", _told(self.request, "run")),
            Route("/metrics", _told(self.openmetrics)),
            Route(QUIETEN, _told(self.quieten), methods=["POST"]),
        ]

    # -- files --

    async def shell(self, request: Request) -> Response:
        return Response(self._shell, media_type="text/html")

    async def static(self, request: Request) -> Response:
        """A file of ours: looked up by name among those read at the start, so that no path leads elsewhere."""
        found = self._files.get(f"{request.path_params['version']}/{request.path_params['name']}")
        if found is None:
            return PlainTextResponse("not found\n", 404)
        content, kind = found
        return Response(content, media_type=kind, headers={"cache-control": "private, max-age=31536000, immutable"})

    # -- what changes --

    async def events(self, request: Request) -> Response:
        """The overview's stream, or that of the run called ``run`` with the log called ``log``."""
        name = request.query_params.get("run")
        if name is not None:
            await in_thread(self.hub.folder, name)
        follow = await self._follow(name, request.query_params.get("log"))
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        headers = {"x-accel-buffering": "no"}
        return StreamingResponse(self._stream(name, follow), media_type="text/event-stream", headers=headers)

    async def _stream(self, name: str | None, follow: _Follow | None) -> AsyncIterator[bytes]:
        sent: dict[str, bytes] = {}
        said = 0.0
        while not self.closing.is_set():
            try:
                state = await self._state(name).get()
            except (Gone, Unknown):
                state = {"gone": b"true"}
            except Exception as error:  # whatever is wrong with a run's files, whoever looks at it is told and stays
                state = {**sent, "trouble": dumps(f"{type(error).__name__}: {error}")}
            lines = await in_thread(follow.read) if follow is not None and "gone" not in state else None
            if message := _changes(sent, state):
                yield _event("state", message)
                sent, said = state, time.monotonic()
            if lines:
                yield _event("log", lines)
                said = time.monotonic()
            if time.monotonic() - said > ALIVE:
                yield b": nothing new\n\n"
                said = time.monotonic()
            try:
                await asyncio.wait_for(self.closing.wait(), EVERY)
            except TimeoutError:
                continue

    def _state(self, name: str | None) -> Shared[dict[str, bytes]]:
        now = asyncio.get_running_loop().time()
        for old in [key for key, each in self._states.items() if each.asked and now - each.asked > IDLE]:
            del self._states[old]
        if name not in self._states:
            make = self.hub.overview if name is None else lambda: self.hub.run(name)

            def encoded() -> dict[str, bytes]:
                return {section: dumps(value) for section, value in make().items()}

            self._states[name] = Shared(lambda: in_thread(encoded), EVERY / 2)
        return self._states[name]

    async def _follow(self, name: str | None, log: str | None) -> _Follow | None:
        if name is None or not log:
            return None
        return _Follow(await self._log_path(name, log))

    # -- data --

    async def curve(self, request: Request) -> Response:
        """One metric of a run; of a curve that the asker has the beginning of, what is new at its end."""
        query = request.query_params
        axis = query.get("axis", "step")
        if axis not in AXES:
            raise Mistake(f"axis: must be one of {', '.join(AXES)}")
        low, high = _number(query, "low", -math.inf), _number(query, "high", math.inf)
        most = int(min(POINTS, max(1, _number(query, "most", 1000))))
        smoothing = _number(query, "smoothing", 0.0)
        if not 0 <= smoothing < 1:
            raise Mistake("smoothing: must be at least 0 and below 1")
        metric = query.get("metric", "loss")
        run = await in_thread(self.hub.watched, query.get("run", ""))
        found = await in_thread(run.curve, metric, axis, low, high, most, smoothing)
        shown, place = found["envelope"], 0
        if query.get("history") == found["history"] and "since" in query:
            had = int(_number(query, "place", 0))
            place = views.tail(shown.x, _number(query, "first"), _number(query, "since"), had)
        curve = {
            "place": place,
            "x": shown.x[place:],
            "low": shown.low[place:],
            "high": shown.high[place:],
            "bad": [int(each) + place for each in shown.nan[place:].nonzero()[0]],
        }
        return _json({"curve": curve, "ghosts": found["ghosts"], "history": found["history"]})

    async def metrics(self, request: Request) -> Response:
        run = await in_thread(self.hub.watched, request.query_params.get("run", ""))
        return _json({"names": await in_thread(run.metrics)})

    async def ranks(self, request: Request) -> Response:
        low, high = _number(request.query_params, "low", -math.inf), _number(request.query_params, "high", math.inf)
        run = await in_thread(self.hub.watched, request.query_params.get("run", ""))
        part = request.query_params.get("part") or None
        if part not in (None, *PARTS):
            raise Mistake(f"part: one of {', '.join(PARTS)}")
        return _json(await in_thread(lambda: watched.heat(*run.ranks(part), low, high)))

    async def experts(self, request: Request) -> Response:
        low, high = _number(request.query_params, "low", -math.inf), _number(request.query_params, "high", math.inf)
        run = await in_thread(self.hub.watched, request.query_params.get("run", ""))
        if "layer" not in request.query_params:
            return _json({"layers": await in_thread(run.layers)})
        layer = int(_number(request.query_params, "layer"))
        return _json(await in_thread(lambda: watched.loads(run.experts(layer), low, high)))

    async def devices(self, request: Request) -> Response:
        """The newest of each rank; or of one ``metric``, which may be empty, what it was over the time of the run."""
        run = await in_thread(self.hub.watched, request.query_params.get("run", ""))
        if (metric := request.query_params.get("metric")) is None:
            return _json({"ranks": await in_thread(run.summaries)})
        if metric and metric not in METRICS:
            raise Mistake(f"metric: one of {', '.join(METRICS)}")
        return _json(await in_thread(lambda: watched.over_time(*run.devices(metric or None))))

    async def log(self, request: Request) -> Response:
        """The end of a log, what comes before a place in it, or the lines that contain a text."""
        query = request.query_params
        path = await self._log_path(query.get("run", ""), query.get("log", "job"))
        end = int(_number(query, "before")) if "before" in query else None
        wanted = query.get("search", "")
        return _json(await in_thread(lambda: logs.search(path, wanted, end) if wanted else logs.before(path, end)))

    async def _log_path(self, name: str, log: str) -> Path:
        folder = await in_thread(self.hub.folder, name)
        if (path := logs.path(folder, log)) is None:
            raise Mistake('log: must be "job", or attempt and rank as in 2/0')
        return path

    async def sweep(self, request: Request) -> Response:
        return _json(await in_thread(self.hub.sweep, request.query_params.get("sweep", "")))

    async def request(self, request: Request) -> Response:
        return _json(await in_thread(self.hub.request, request.query_params.get("run", "")))

    async def differences(self, request: Request) -> Response:
        names = request.query_params.getlist("run")
        if not 0 < len(names) <= COMPARED:
            raise Mistake(f"run: 1 to {COMPARED} of them")
        return _json(await in_thread(self.hub.differences, names))

    async def openmetrics(self, request: Request) -> Response:
        """Where the runs stand that have not ended, for Prometheus."""
        return Response(await in_thread(lambda: openmetrics.render(self.hub.snapshots())), media_type=openmetrics.TYPE)

    async def quieten(self, request: Request) -> Response:
        """Say no more of a finding, or say it again: ``{"run", "finding", "how"}``."""
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > LONGEST:
                raise Mistake(f"more than {LONGEST} bytes")
        try:
            said = orjson.loads(body)
            run, finding, how = said["run"], said["finding"], said["how"]
        except (ValueError, TypeError, KeyError):
            raise Mistake('must be JSON: {"run": TEXT, "finding": TEXT, "how": TEXT}') from None
        if not (isinstance(run, str) and isinstance(finding, str)):
            raise Mistake("run and finding: must be text")
        if how not in get_args(Quiet):
            raise Mistake(f"how: one of {', '.join(get_args(Quiet))}")
        await in_thread(self.hub.quieten, run, finding, how)
        return _json({"how": how})


class _Follow:
    """What a log gained, for one viewer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place: int | None = None

    def read(self) -> bytes | None:
        try:
            part = logs.before(self.path) if self.place is None else logs.after(self.path, self.place)
        except OSError as error:
            return dumps({"trouble": error.strerror or str(error)}) if self.place is None else None
        anew = part.begin != self.place
        self.place = part.end
        return dumps({"anew": anew, **vars(part)}) if part.lines or anew else None


def application(source: Source, closing: asyncio.Event | None = None) -> Starlette:
    """The page without its guard."""
    app = Starlette(routes=Pages(source, closing or asyncio.Event()).routes())
    app.router.redirect_slashes = False  # an address is right or there is nothing at it
    return app


def _static() -> tuple[dict[str, tuple[bytes, str]], bytes]:
    """Our files by version and name, and the shell that names that version: a browser keeps them for good."""
    found = {path.relative_to(STATIC).as_posix(): path.read_bytes() for path in STATIC.rglob("*") if path.is_file()}
    version = hashlib.sha256(b"".join(found[name] for name in sorted(found))).hexdigest()[:12]
    shell = found.pop("shell.html").replace(b"{{static}}", f"/static/{version}".encode())
    files = {f"{version}/{name}": (each, TYPES.get(Path(name).suffix, "text/plain")) for name, each in found.items()}
    return files, shell


def _changes(sent: Mapping[str, bytes], state: Mapping[str, bytes]) -> bytes:
    """Sections that are new or changed, and the names of those that are gone; empty if nothing changed."""
    new = [dumps(name) + b":" + value for name, value in state.items() if sent.get(name) != value]
    old = [name for name in sent if name not in state]
    if not new and not old:
        return b""
    return b'{"now":%s,"set":{%s},"gone":%s}' % (dumps(time.time()), b",".join(new), dumps(old))


def _event(name: str, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)


def _json(value: Any) -> Response:
    return Response(dumps(value), media_type="application/json")


def _number(query: Mapping[str, str], name: str, default: float | None = None) -> float:
    given = query.get(name)
    if given is None and default is not None:
        return default
    try:
        value = float(given or "")
    except ValueError:
        raise Mistake(f"{name}: must be a number") from None
    if not math.isfinite(value):
        raise Mistake(f"{name}: must be a finite number")
    return value


def _told(handler: Handler, *allowed: str) -> Handler:
    """A handler whose failures are answers.

    Args:
        allowed: names of parameters; where there are any, another one is a mistake, as one that is misspelled would
            be answered as if it were not there.
    """

    async def answering(request: Request) -> Response:
        try:
            unknown = [name for name in request.query_params if name not in allowed] if allowed else []
            if unknown:
                raise Mistake(f"{unknown[0]}: there is no such parameter. Allowed: {', '.join(allowed)}")
            return await handler(request)
        except Mistake as error:
            return PlainTextResponse(f"{error}\n", 400)
        except Unknown:
            return PlainTextResponse("there is no such run or sweep\n", 404)
        except Gone:
            return PlainTextResponse("the run's folder is gone\n", 410)
        except OSError as error:
            return PlainTextResponse(f"{error.strerror or error}\n", 503)
        except Exception as error:  # of files that make no sense
            return PlainTextResponse(f"cannot be read: {type(error).__name__}: {error}\n", 503)

    return answering
