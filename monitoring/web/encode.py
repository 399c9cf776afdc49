"""Values as the page gets them: JSON in which nothing is lost, and text in which nothing is acted on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from monitoring.recorder import number
from monitoring.text import clean


def dumps(value: Any) -> bytes:
    """JSON of a value made of dataclasses, mappings, sequences, arrays, text and numbers.

    What is not finite is a string, as in the records: NaN is not the same as missing. Text went through ``clean``,
    line by line; what it means in HTML is left to the page, which shows all text as text.
    """
    return orjson.dumps(plain(value))


def plain(value: Any) -> Any:
    """The same value in types that JSON has."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str | Path):
        return text(str(value.value) if isinstance(value, Enum) else str(value))
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 63 else str(value)
    if isinstance(value, float):
        return number(value)
    if isinstance(value, np.ndarray):
        return numbers(value)
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Mapping):
        return {text(str(key)): plain(each) for key, each in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    assert isinstance(value, Iterable)
    return [plain(each) for each in value]


def text(value: str) -> str:
    """Text in which every character is printed and none is acted on; lines stay lines."""
    value = value.encode("utf-8", "replace").decode()
    return value if value.isascii() and value.isprintable() else "\n".join(map(clean, value.split("\n")))


def numbers(array: np.ndarray, digits: int = 7) -> list[Any]:
    """An array as nested lists, to so many significant digits: a page shows no more, and the line carries less."""
    if array.dtype.kind in "iub":
        return array.tolist()
    finite = np.isfinite(array)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scale = 10.0 ** (digits - 1 - np.floor(np.log10(np.where(finite & (array != 0), np.abs(array), 1.0))))
        rounded = np.where(finite & np.isfinite(scale) & (scale > 0), np.round(array * scale) / scale, array)
    if finite.all():
        return rounded.tolist()
    return _named(rounded.tolist())


def _named(value: Any) -> Any:
    return [_named(each) for each in value] if isinstance(value, list) else number(value)
