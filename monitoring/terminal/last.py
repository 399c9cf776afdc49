"""What is left on the terminal when nobody watches any more."""

from __future__ import annotations

from rich.console import Console

from monitoring.snapshot import Snapshot
from monitoring.terminal.plain import line, summary
from monitoring.terminal.screen import header, loss, progress

# For terminals without Unicode.
_ASCII = str.maketrans("─━╸│┤└┴·–×▁▂▃▄▅▆▇█░▒▓…↑↓←→⏎", "-=-|+++.-x12345678.:%~^v<>>")


def ascii_only(text: str) -> str:
    """The text as a terminal without Unicode can show it."""
    return text.translate(_ASCII).encode("ascii", "replace").decode()


def print_last(snapshot: Snapshot, *, unicode: bool) -> None:
    """What stays on the terminal: a line, or of a run that has ended its curve and the summary."""
    console = Console()
    shown = str if unicode else ascii_only
    if not snapshot.done:
        print(shown(line(snapshot)))
        return
    width, height = console.size
    rows = [*header(snapshot, width), *progress(snapshot, width)]
    room = min(16, height - len(rows) - len(summary(snapshot, width).splitlines()) - 3)
    rows += loss(snapshot, width, room, unicode=unicode) if room >= 5 else []
    for row in rows:
        with console.capture() as captured:
            console.print(row, no_wrap=True, overflow="crop", crop=True)
        print(shown(captured.get()), end="")
    print(shown("\n" + summary(snapshot, width)))
