"""What people write on a run: tags and a note, in notes.json in its folder. Nothing here changes what the run does."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from hpc.errors import Refused
from hpc.runs import Run, disk_failure, read_json, write_json

# A tag is typed in lists with commas and in shells.
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
LONGEST = 2000  # characters of a note


@dataclass(frozen=True)
class Notes:
    """Tags in alphabetical order, and a text on one or more lines."""

    tags: tuple[str, ...] = ()
    note: str = ""


def read(run: Run) -> Notes:
    """What is written on a run; nothing where nothing can be read."""
    found = read_json(run.notes_file) or {}
    tags, note = found.get("tags"), found.get("note")
    known = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    return Notes(tuple(sorted(set(known))), note if isinstance(note, str) else "")


def tag(run: Run, add: Iterable[str], remove: Iterable[str] = ()) -> Notes:
    """Add and remove tags; one that is there already, or is not there, stays so.

    Raises:
        Refused: if one is no tag.
        Failed: if it cannot be written.
    """
    added, removed = set(add), set(remove)
    for each in sorted(added | removed):
        if not TAG.fullmatch(each):
            allowed = "a tag has letters, digits, dot, dash and underscore, begins with a letter or digit"
            raise Refused(f"{each!r}: {allowed}, and has at most 32 of them. Try: hpc runs tag {run.id} baseline")
    if both := sorted(added & removed):
        raise Refused(f"{both[0]}: either added or removed")
    before = read(run)
    return _write(run, Notes(tuple(sorted((set(before.tags) | added) - removed)), before.note))


def note(run: Run, text: str) -> Notes:
    """Replace the note; an empty one removes it.

    Raises:
        Refused: if it is too long.
        Failed: if it cannot be written.
    """
    if len(text) > LONGEST:
        raise Refused(f"a note of {len(text)} characters: at most {LONGEST}. Longer text belongs into a file beside it")
    return _write(run, Notes(read(run).tags, text.strip()))


def _write(run: Run, notes: Notes) -> Notes:
    try:
        write_json(run.notes_file, asdict(notes))
    except OSError as error:
        raise disk_failure(error, "write the run's notes") from error
    return notes
