"""Text from outside (log lines, names, reasons) made safe for a terminal or a page."""

from __future__ import annotations

import re
import unicodedata

# What a terminal would act on: CSI, OSC and the other string sequences, then any remaining escape.
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
# Controls, surrogates, private use, and what turns the reading direction or hides.
_UNSAFE = {"Cc", "Cs", "Co", "Cn", "Cf", "Zl", "Zp"}


def clean(text: str, tab: int = 4) -> str:
    """One line of text in which every character is printed and none is acted on.

    Escape sequences vanish; of a line that a carriage return overwrote only the last state is left, as a
    terminal would show it; other controls, bidirectional marks and unassigned characters become U+FFFD.
    """
    if text.isascii() and text.isprintable():
        return text
    text = _SEQUENCE.sub("", text).rstrip("\r\n")
    text = text[text.rfind("\r") + 1 :].expandtabs(tab)
    if text.isprintable():
        return text
    return "".join("\ufffd" if unicodedata.category(char) in _UNSAFE else char for char in text)


def printable(text: str) -> str:
    """Several lines, each made safe."""
    return "\n".join(map(clean, text.split("\n")))
