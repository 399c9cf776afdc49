"""``hpc status``: runs and where they stand, from their own folders and one squeue a cluster.

Of one run alone also what it was trained on: its newest checkpoint, samples that were left out, tokens by source.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from hpc import runs
from hpc.listing import Row, read
from hpc.trained import trained

if TYPE_CHECKING:
    from rich.console import Console

HELP = "runs and where they stand"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hpc status", description=HELP)
    parser.add_argument("run", nargs="?", help="id or its beginning, name, folder, or last; all runs if left out")
    parser.add_argument("--json", action="store_true", help="a JSON list")
    parser.add_argument("-n", type=runs.count, default=20, metavar="N", help="the newest N runs (20)")
    args = parser.parse_args(argv)
    root = runs.root()
    found = [runs.find(root, args.run)] if args.run else list(runs.every(root))[: args.n]
    rows = read(found)
    if args.run:
        checkpoint, sources = trained(found[0])
        rows = [replace(rows[0], checkpoint=checkpoint, sources=sources)]
    if args.json:
        print(json.dumps([asdict(row) for row in rows]))
    elif not rows:
        print(f"no runs under {root.resolve()}. Start one: hpc submit")
    else:
        table(rows)
    return 0


def table(rows: list[Row]) -> None:
    """Print a line a run."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from monitoring.text import clean, printable

    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = ["run", "id", "state", "job", "cluster", "attempt", "step", "tokens", "why"]
    written = any(row.tags or row.note for row in rows)
    for column in [*columns, "notes"] if written else columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("id", "state"))
    colours = {
        "running": "green",
        "finished": "cyan",
        "failed": "red",
        "cancelled": "yellow",
        "pending": "yellow",
    }
    for row in rows:
        share = f" {row.tokens / row.target_tokens:.0%}" if row.tokens and row.target_tokens else ""
        where = row.cluster + (" EMULATED" if row.emulated else "")
        cells = [
            row.name,
            row.id,
            Text(row.state, colours.get(row.state, "")),
            row.job_id,
            where,
            "" if row.attempt is None else str(row.attempt),
            "" if row.step is None else str(row.step),
            f"{row.tokens:,}{share}" if row.tokens else "",
            row.reason,
        ]
        if written:
            # The first line says what it is about; all of it: hpc runs note RUN
            cells.append(" ".join([*(f"#{tag}" for tag in row.tags), clean(row.note.partition("\n")[0])]).strip())
        table.add_row(*[cell if isinstance(cell, Text) else Text(printable(cell)) for cell in cells])
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)
    for row in rows:
        _trained(console, row)
    console.print(Text(time.strftime("%H:%M:%S")), style="dim")


def _trained(console: Console, row: Row) -> None:
    """What one run was trained on, under its row."""
    from rich.table import Table
    from rich.text import Text

    if saved := row.checkpoint:
        console.print(Text(f"\ncheckpoint: step {saved.step}; the next sample is {saved.next_sample}"))
        for each in saved.skipped:
            why = f": {each.why}" if each.why else ""
            console.print(Text(f"skipped: samples {each.first} to {each.last - 1}{why}"))
    if row.sources:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("source", overflow="fold")
        for column in ("tokens", "share", "epochs"):
            table.add_column(column, justify="right")
        for source in row.sources:
            cells = (source.source, f"{source.tokens:,}", f"{source.share:.2%}", f"{source.epochs:.2f}")
            table.add_row(*map(Text, cells))
        console.print()
        console.print(table)
