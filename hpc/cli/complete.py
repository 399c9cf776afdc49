"""``hpc complete [--quoted] -- WORDS``: what the last word may become, for the scripts of ``hpc completion``.

One candidate a line, with what it is after a tab. Whatever is wrong, nothing is printed: a person is typing.
"""

from __future__ import annotations


def main(argv: list[str]) -> int:
    try:
        for line in lines(argv):
            print(line)
    except Exception:
        return 1
    return 0


def lines(argv: list[str]) -> list[str]:
    """
    Args:
        argv: the words after ``hpc``, behind "--"; with --quoted before it as they were typed, quotes included.
    """
    from hpc import runs
    from hpc.cli import VERBS
    from hpc.completion import complete
    from hpc.provenance import ROOT

    options, words = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    if "--quoted" in options:
        words = [unquoted(word) for word in words]
    found = complete(words, VERBS, runs.root(), ROOT / "conf")
    return [f"{each.text}\t{each.about.splitlines()[0] if each.about else ''}" for each in found]


def unquoted(word: str) -> str:
    """A word as the shell would read it, a quote that is still open included. Nothing is expanded."""
    out: list[str] = []
    quote = ""
    letters = iter(word)
    for letter in letters:
        if letter == "\\" and quote != "'":
            out.append(next(letters, ""))
        elif quote:
            quote = "" if letter == quote else quote
            if quote:
                out.append(letter)
        elif letter in "'\"":
            quote = letter
        else:
            out.append(letter)
    return "".join(out)
