"""The HTML of a report, from values. Pure; all that came from outside is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import Any


def page(title: str, body: Iterable[str]) -> str:
    """A whole document. It may load nothing, which its own policy says too."""
    style = files("monitoring.report").joinpath("report.css").read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>{''.join(body)}</body></html>\n"
    )


def section(title: str, *parts: str, level: int = 2) -> str:
    """A heading and what is under it; nothing where there is nothing."""
    inside = "".join(parts)
    return f"<section><h{level}>{escape(title)}</h{level}>{inside}</section>" if inside else ""


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Labels and values; those without a value are left out."""
    items = [f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in rows if value]
    return f"<dl>{''.join(items)}</dl>" if items else ""


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], *, numbers: Iterable[int] = ()) -> str:
    """
    Args:
        numbers: the columns that are numbers.
    """
    if not rows:
        return ""
    right = set(numbers)

    def cells(values: Sequence[Any], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=n' if place in right else ''}>{escape(str(value))}</{tag}>"
            for place, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{cells(head, "th")}</tr></thead><tbody>{body}</tbody></table></div>'


def folded(title: str, text: str) -> str:
    """Long text that opens when asked for."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>" if text else ""
