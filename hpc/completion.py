"""What may come next on a command line of ``hpc``: verbs, their flags, runs, sweeps, clusters, overrides.

Called at each press of the Tab key, so it imports neither Hydra nor OmegaConf, asks no Slurm, and keeps nothing: what
is offered is what is there now. Flags are read off each verb's own parser.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import re
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from keyword import iskeyword
from pathlib import Path
from typing import Any

RUNS = 100  # newest ones that are offered
FILES = ("--config-dir", "-cd", "--config-path", "-cp")
HYDRA_FLAGS = ("--multirun", "--cfg", "--info", "--resolve", "--config-dir", "--config-name", "--hydra-help", "--help")
_OVERRIDES, _RUN, _SWEEP = "overrides", "run", "sweep"


@dataclass(frozen=True)
class Candidate:
    """What the last word may become, whole; unfinished where more of the same word follows."""

    text: str
    about: str = ""

    @property
    def unfinished(self) -> bool:
        return self.text.endswith(("=", ".", ","))


@dataclass(frozen=True)
class Grammar:
    """What a verb understands."""

    flags: dict[str, str]  # with what each is for
    valued: dict[str, tuple[str, ...]]  # flags that take a value: its choices, where these are known
    positional: tuple[tuple[str, ...], ...]  # of each place what may stand there; the last may repeat
    verbs: dict[str, argparse.ArgumentParser]


def complete(words: Sequence[str], verbs: dict[str, str], root: Path, conf: Path) -> list[Candidate]:
    """What the last of the words typed after ``hpc`` may become.

    Args:
        root: where runs are.
        conf: the configuration tree.
    """
    *before, word = words or [""]
    if not before:
        return _matching(
            word, [*(Candidate(*pair) for pair in verbs.items()), Candidate("--help"), Candidate("--version")]
        )
    verb, *before = before
    if verb not in verbs:
        return []
    grammar = grammar_of(verb)
    if before and before[0] in grammar.verbs:
        grammar = _grammar(grammar.verbs[before.pop(0)])
    elif grammar.verbs and not word.startswith("-"):
        return _matching(word, [Candidate(name, parser.description or "") for name, parser in grammar.verbs.items()])
    if before and before[-1] in grammar.valued:
        return _matching(word, map(Candidate, grammar.valued[before[-1]]))
    if before and before[-1] in FILES:
        return []
    if word.startswith("-"):
        return _matching(word, [Candidate(*pair) for pair in grammar.flags.items()])
    return _matching(word, _at(grammar, before, word, [conf, *_config_dirs(before)], root))


def _matching(word: str, candidates: Iterable[Candidate]) -> list[Candidate]:
    # A name with a line break or an escape sequence in it would garble the terminal, or be taken for two.
    found = {each.text: each for each in candidates if each.text.startswith(word) and each.text.isprintable()}
    return list(found.values())


def _at(grammar: Grammar, before: list[str], word: str, confs: list[Path], root: Path) -> Iterator[Candidate]:
    """What may stand at the place of the word, by what stands before it."""
    place, value_follows = 0, False
    for each in before:
        if value_follows or each.startswith("-"):
            value_follows = not value_follows and (each in grammar.valued or each in FILES)
        elif not (_OVERRIDES in _kinds(grammar, -1) and "=" in each):
            place += 1
    kinds = _kinds(grammar, place)
    if _RUN in kinds:
        yield from runs(root, word, sweeps=_SWEEP in kinds)
    elif _SWEEP in kinds:
        yield from runs(root, word, sweeps=True, single=False)
    if _OVERRIDES in kinds:
        yield from overrides(word, confs)
    for kind in kinds:
        if kind not in (_RUN, _SWEEP, _OVERRIDES):
            yield from clusters(kind, confs) if kind.startswith("cluster=") else [Candidate(kind)]


def _kinds(grammar: Grammar, place: int) -> tuple[str, ...]:
    if not grammar.positional:
        return ()
    return grammar.positional[min(place, len(grammar.positional) - 1)]


def _config_dirs(before: list[str]) -> list[Path]:
    """Folders with choices of one's own, as --config-dir names them."""
    pairs = [(each.partition("=")[0], each.partition("=")[2]) for each in before]
    pairs += list(itertools.pairwise(before))
    return [Path(value).expanduser() for name, value in pairs if name in ("--config-dir", "-cd") and value]


# -- what a verb understands -------------------------------------------------------------------------------------


class _Found(BaseException):
    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def grammar_of(verb: str) -> Grammar:
    """What a verb understands, from its own parser or, where it has none, from the usage it prints."""
    module = import_module(f"hpc.cli.{verb}" + "_" * iskeyword(verb))
    if hasattr(module, "argparse"):
        parser = _parser(module)
        if parser is not None:
            return _grammar(parser)
    usage = getattr(module, "HELP", "").partition("\n")[0]
    flags = dict.fromkeys([*getattr(module, "FLAGS", ()), *re.findall(r"--[a-z-]+", usage)], "")
    if verb == "submit":
        flags |= dict.fromkeys(HYDRA_FLAGS, "")
        return Grammar(flags, {"--cfg": ("job", "hydra", "all")}, ((_OVERRIDES,),), {})
    places = [(kind,) for kind in (_RUN, _SWEEP, _OVERRIDES) if re.search(rf"\b{kind.upper()}\b", usage)]
    return Grammar(flags, {}, tuple(places), {})


def _parser(module: Any) -> argparse.ArgumentParser | None:
    """The parser that a verb makes, caught when it is about to be used: --help is all that the verb is told."""

    def stop(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise _Found(parser)

    names = ("parse_args", "parse_intermixed_args")
    originals = {name: getattr(argparse.ArgumentParser, name) for name in names}
    for name in names:
        setattr(argparse.ArgumentParser, name, stop)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            module.main(["--help"])
    except _Found as found:
        return found.parser
    finally:
        for name, original in originals.items():
            setattr(argparse.ArgumentParser, name, original)
    return None


def _grammar(parser: argparse.ArgumentParser) -> Grammar:
    flags: dict[str, str] = {}
    valued: dict[str, tuple[str, ...]] = {}
    places: list[tuple[str, ...]] = []
    verbs: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        choices = tuple(map(str, action.choices or ()))
        if isinstance(action, argparse._SubParsersAction):
            verbs = dict(action.choices)
        elif action.option_strings:
            flags |= {name: action.help or "" for name in action.option_strings if name.startswith("--")}
            if action.nargs != 0:
                valued |= dict.fromkeys(action.option_strings, choices)
        else:
            place = choices or _kinds_of(action)
            places += [place] * (action.nargs if isinstance(action.nargs, int) else 1)
    return Grammar(flags, valued, tuple(places), verbs)


def _kinds_of(action: argparse.Action) -> tuple[str, ...]:
    """What a positional argument is, by its name and its help."""
    words = f"{action.dest} {action.metavar or ''}".lower()
    if "cluster=" in words:
        return ("cluster=",)
    if _OVERRIDES in words:
        return (_OVERRIDES,)
    if _SWEEP in words:
        return (_SWEEP,)
    if _RUN in words or "run" in (action.help or "").partition(":")[0].split():
        return (_RUN, _SWEEP) if _SWEEP in (action.help or "") else (_RUN,)
    return ()


# -- runs --------------------------------------------------------------------------------------------------------


def runs(root: Path, word: str, *, sweeps: bool = False, single: bool = True) -> Iterator[Candidate]:
    """Ids of runs and names of theirs, newest first, so many that a person can read them.

    Args:
        sweeps: those of sweeps, too.
        single: those of runs.
    """
    marks = (["config.yaml"] if single else []) + (["sweep.json"] if sweeps else [])
    offered, names = 0, dict.fromkeys(["last"], "the newest")
    for identity, name in sorted(_folders(root), reverse=True):
        whole = f"{name}/{identity}" if "/" in word else identity
        if offered == RUNS:
            break
        if not (whole.startswith(word) or name.startswith(word)):
            continue
        if any((root / name / identity / mark).exists() for mark in marks):
            if whole.startswith(word):
                offered += 1
                yield Candidate(whole, name)
            names.setdefault(name, f"its newest: {identity}")
    yield from (Candidate(*pair) for pair in names.items())


def _folders(root: Path) -> Iterator[tuple[str, str]]:
    """(id, name) of every folder that may be a run's, hidden ones left out."""
    for name in _listed(root):
        for identity in _listed(root / name):
            yield identity, name


def _listed(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    except OSError:
        return []


# -- overrides ---------------------------------------------------------------------------------------------------


def clusters(prefix: str, confs: Sequence[Path]) -> list[Candidate]:
    """``cluster=NAME`` for each that is described."""
    return [Candidate(prefix + name) for name in choices("cluster", confs)]


def choices(group: str, confs: Sequence[Path]) -> list[str]:
    """What may be chosen of a group of the configuration."""
    found = [file.stem for conf in confs for file in (conf / group).glob("*.yaml")]
    return sorted(dict.fromkeys(found))


def overrides(word: str, confs: Sequence[Path]) -> Iterator[Candidate]:
    """What an override may become: a group, a key level by level, or after "=" one of the values that are known."""
    mark = re.match(r"[+~]*", word)
    head = mark[0] if mark else ""
    key, equals, value = word[len(head) :].partition("=")
    if equals:
        done, comma, _ = value.rpartition(",")  # of a multirun's values the last one
        for each in _values(key, confs):
            yield Candidate(f"{head}{key}={done}{comma}{each}")
        return
    from hpc.compose import describe, paths

    groups = {name for conf in confs for name in _listed(conf) if not name.startswith("_")}
    for group in sorted(groups):
        yield Candidate(f"{head}{group}=", "choose one")
    kinds = dict(paths())
    level = key.count(".")
    for path, kind in kinds.items():
        if not path.startswith(key) or path.rpartition(".")[2].startswith("_"):
            continue
        parts = path.split(".")
        if len(parts) > level + 1:
            yield Candidate(f"{head}{'.'.join(parts[: level + 1])}.")
        elif path not in groups and not any(other.startswith(f"{path}.") for other in kinds):
            yield Candidate(f"{head}{path}=", describe(kind))


def _values(key: str, confs: Sequence[Path]) -> list[str]:
    if found := choices(key, confs):
        return found
    from hpc.compose import paths

    return list(_values_of(dict(paths()).get(key)))


def _values_of(kind: Any) -> Iterator[str]:
    if isinstance(kind, type) and issubclass(kind, Enum):
        yield from (member.name for member in kind)
    elif kind is bool:
        yield from ("true", "false")
    elif kind is type(None):
        yield "null"
    elif typing.get_origin(kind) not in (list, dict):
        for part in typing.get_args(kind):
            yield from _values_of(part)
