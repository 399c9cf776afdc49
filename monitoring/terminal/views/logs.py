"""The logs of a run: the end as it grows, any place of it, and a search; of each only what is seen is read."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from monitoring import layout
from monitoring.snapshot import Snapshot
from monitoring.terminal.pager import Pager, Search
from monitoring.terminal.screen import DIM
from monitoring.terminal.view import Key, Opens, RunView
from monitoring.terminal.watched import Watched
from monitoring.text import clean
from monitoring.words import count


class Logs(RunView):
    title = "logs"
    keys = (
        Key("/", "search", "Text to look for, in either case.", asks="search"),
        Key("n", "next", "The next place, the one before."),
        Key("N", "before", shown=False),
        Key("f", "follow", "Stay at the end as the log grows."),
        Key("[", "rank", "The log before, after: the supervisor's, then each rank's."),
        Key("]", "rank", shown=False),
        Key("a", "attempt", "The attempt before; after the first, the newest."),
        Key("up", "up", "Lines above, below; PgUp, PgDn, Home, End.", shown=False),
        Key("w", "wrap", "Fold long lines, or cut them."),
    )

    def __init__(self, watched: Watched) -> None:
        super().__init__(watched)
        self._attempt: int | None = None  # None: the newest
        self._source = 1  # of ``_sources``: rank 0, once it printed something
        self._pager: Pager | None = None
        self._search: Search | None = None
        self._page = 10
        self._wrap = False

    def gather(self) -> None:
        super().gather()
        snapshot = self.watched.snapshot
        if snapshot is None:
            return
        path = self._path(snapshot)
        if self._pager is None or self._pager.path != path:
            self._pager, self._search = Pager(path), None
        self._pager.refresh()
        self._go_on()

    def body(self, snapshot: Snapshot, width: int, height: int, *, unicode: bool) -> list[Text]:
        pager = self._pager
        if pager is None:
            return []
        self._page = max(1, height - 3)
        lines = pager.lines(height - 1)
        rows = []
        for line in lines:
            text = clean(line.text) or " "
            parts = [text[n : n + width - 1] for n in range(0, len(text), width - 1)] if self._wrap else [text]
            rows += [self._marked(part) for part in parts]
        rows = rows[-(height - 1) :] if pager.follows else rows[: height - 1]
        where = "the end, following" if pager.follows else f"{pager.share:.0%}"
        left = f" {clean(str(pager.path.relative_to(self.watched.folder)))} · {count(pager.size)} bytes · {where}"
        if pager.error:
            left += f" · {pager.error}"
        if self._search is not None:
            left += f" · {clean(self._search.said)}"
        return [Text(left, DIM), *rows]

    def _marked(self, text: str) -> Text:
        row = Text(f" {text}")
        if self._search is not None:
            begin, low, word = 0, row.plain.lower(), self._search.text.lower()
            while (begin := low.find(word, begin)) >= 0:
                row.stylize("reverse", begin, begin + len(word))
                begin += len(word)
        return row

    def press(self, key: str) -> Opens | None:
        pager = self._pager
        moves = {"up": -1, "down": 1, "pageup": -self._page, "pagedown": self._page}
        if key in ("[", "]", "a"):
            self._other(key)
        elif pager is None:
            pass
        elif key in moves:
            pager.move(moves[key], self._page + 2)
        elif key == "home":
            pager.begin()
        elif key in ("end", "f"):
            pager.follow()
        elif key == "w":
            self._wrap = not self._wrap
        elif key in ("n", "N") and self._search is not None:
            self._search.again(forward=key == "n")
            self._go_on()
        return None

    def typed(self, key: str, text: str, *, done: bool) -> None:
        if done and self._pager is not None:
            self._search = Search(self._pager, text) if text else None
            self._go_on()

    def scroll(self, x: int, y: int, by: int) -> None:
        if self._pager is not None:
            self._pager.move(3 * by, self._page + 2)

    def _go_on(self) -> None:
        """Search a little, so that keys are taken while a huge log is searched."""
        if self._search is not None:
            self._search.go_on()

    def _sources(self, snapshot: Snapshot) -> list[Path]:
        """The logs that there are, of the chosen attempt."""
        found = [self.watched.folder / layout.JOB_LOG]
        if snapshot.attempts:
            number = snapshot.attempts[-1].number if self._attempt is None else self._attempt
            folder = layout.attempt_folder(self.watched.folder, number)
            found += [layout.rank_log(folder, rank) for rank in layout.logged_ranks(folder)]
        return found

    def _path(self, snapshot: Snapshot) -> Path:
        found = self._sources(snapshot)
        return found[min(self._source, len(found) - 1)]

    def _other(self, key: str) -> None:
        snapshot = self.watched.snapshot
        if snapshot is None:
            return
        if key == "a" and snapshot.attempts:
            numbers = [attempt.number for attempt in snapshot.attempts]
            now = numbers[-1] if self._attempt is None else self._attempt
            before = [number for number in numbers if number < now]
            self._attempt = before[-1] if before else None
        elif key != "a":
            many = len(self._sources(snapshot))
            self._source = (min(self._source, many - 1) + (1 if key == "]" else -1)) % many
        self.watched.refresh()
        self.gather()
