"""Hydra and the typed tree: registers the schemas, composes a request, and says in words what is wrong with one."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from hpc.config import JOBS, Cluster, Config
from hpc.errors import Refused

CONF = Path(__file__).resolve().parent.parent / "conf"
CONFIG_NAME = "config"


def register() -> None:
    """Tell Hydra the dataclasses that everything in ``conf/`` is checked against."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for kind, schema in JOBS.items():
        store.store(group="job", name=f"{kind}_schema", node=schema)


def compose(overrides: list[str]) -> Config:
    """Compose ``conf/`` with overrides, outside of ``hpc submit``.

    Raises:
        Refused: for a mistake in the overrides or in a YAML file.
    """
    from hydra import compose as hydra_compose

    register()
    try:
        with _composer():
            return typed(hydra_compose(CONFIG_NAME, opened(overrides)))
    except Exception as error:
        raise refused(error) from error


def compose_many(combinations: list[list[str]]) -> Iterator[Config]:
    """``compose`` of many combinations, each distinct choice of groups once.

    Raises:
        Refused: for a mistake in one of them.
    """
    from hydra import compose as hydra_compose
    from hydra.core.global_hydra import GlobalHydra

    from hpc import combinations as combining

    register()
    try:
        with _composer():
            loader = GlobalHydra.instance().config_loader()
            yield from combining.compose(
                combinations,
                lambda words: hydra_compose(CONFIG_NAME, opened(words)),
                lambda key: bool(loader.get_group_options(key)),
            )
    except Exception as error:
        raise refused(error) from error


@contextlib.contextmanager
def _composer() -> Iterator[None]:
    """Hydra for conf/, in a process that may be using it for something else."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = before


def combinations(overrides: list[str]) -> list[tuple[list[str], Config]]:
    """Every combination that overrides such as optim.lr=1e-3,1e-4 ask for: what asks for it alone, and what it is.

    Raises:
        Refused: for a mistake in the overrides or in a YAML file.
    """
    from hydra import compose as hydra_compose
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from hpc import combinations as several

    register()
    try:
        with _composer():
            loader = GlobalHydra.instance().config_loader()
            found = several.expand(OverridesParser.create(config_loader=loader).parse_overrides(opened(overrides)))
            is_group = lambda key: bool(loader.get_group_options(key))  # noqa: E731
            configs = several.compose(found, lambda words: hydra_compose(CONFIG_NAME, words), is_group)
            return list(zip(found, configs, strict=True))
    except Exception as error:
        raise refused(error) from error


def cluster(overrides: list[str]) -> Cluster:
    """The cluster that overrides such as ``cluster=noctua2`` choose; a word without "=" is refused."""
    return compose(overrides).cluster


def opened(overrides: list[str]) -> list[str]:
    """Overrides as Hydra wants to see them, from what is natural to type.

    To Hydra a key that is not there yet, as in data.mixture.weights={de: 2}, is a mistake, unless "++" says that it is
    none. A command is text with spaces, commas and equal signs, which Hydra would read as its own. And a run of a
    program is not called after the experiment that happens to be the default.
    """
    mappings = [path for path, kind in paths() if _of_values(kind)]
    words = [f"++{w}" if any(re.match(rf"{re.escape(m)}(\.[^=]*)?=", w) for m in mappings) else w for w in overrides]
    if "job=command" in words and not any(re.match(r"\+*name=|experiment=", word) for word in words):
        words.insert(0, "name=command")
    return [_quoted(word) for word in words]


def _quoted(word: str) -> str:
    """A command as one text; one that is quoted already, a list, or several to be swept over, is left to Hydra."""
    key, _, value = word.partition("=")
    if key != "command" or not value or value[0] in "'\"[" or re.match(r"(choice|glob|shuffle)\(|null$", value):
        return word
    return f"command={quoted(value)}"


def quoted(text: str) -> str:
    """A text in Hydra's notation, in which a backslash stands for itself, but before a quote."""
    escaped = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text)
    return f"'{escaped}'"


def _of_values(kind: Any) -> bool:
    return typing.get_origin(kind) is dict and not dataclasses.is_dataclass(typing.get_args(kind)[1])


def typed(config: Any) -> Config:
    """A composed configuration as dataclasses, interpolations resolved, "hydra" left out.

    Raises:
        Refused: where a mandatory value is missing or an interpolation cannot be resolved.
    """
    from omegaconf import OmegaConf

    OmegaConf.resolve(config)
    for path in _foreign(config):
        # "+key=1" adds to any tree; a key that nothing reads would be a setting silently lost.
        raise Refused(_no_such_key(path, _fields_at(path.rpartition(".")[0], None)))
    missing = sorted(k for k in OmegaConf.missing_keys(config) if not k.startswith("hydra"))
    if missing:
        raise Refused(f"no value for {', '.join(missing)}. Try: {missing[0]}=VALUE")
    value = OmegaConf.to_object(config)
    assert isinstance(value, Config), type(value)
    return value


def refused(error: BaseException) -> BaseException:
    """A composition error of Hydra or OmegaConf as ``Refused``; anything else as it is."""
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, OverrideParseException):
        return Refused(
            f"cannot read the override {error.override!r}: {_first_line(error)}\n"
            "Overrides look like group=name or path.to.value=1; quote what holds spaces or brackets."
        )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return Refused(_missing_choice(str(error.missing_cfg_file), list(error.options or [])))
    cause = _find(error, OmegaConfBaseException)
    if cause is not None:
        return Refused(_ill_typed(cause))
    if isinstance(error, HydraException):
        return Refused(_unknown_override(str(error)))
    if isinstance(error, ValueError) and "override" in str(error):  # Hydra's own, for a group that is given no name
        return Refused(_first_line(error))
    return _unreadable(error) or error


def _unreadable(error: BaseException) -> Refused | None:
    """For a YAML file that is none; the library says where in it."""
    import yaml

    said = " ".join(str(error).split())
    if isinstance(error, yaml.YAMLError | UnicodeDecodeError) or "Invalid loaded object type" in said:
        return Refused(f"a YAML file of the configuration cannot be read as one: {said}")
    return None


def _find(error: BaseException | None, kind: type[BaseException]) -> Any:
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]


def _missing_choice(file: str, options: list[str]) -> str:
    group, _, name = file.rpartition("/")
    options = sorted(o for o in options if not o.endswith("_schema"))
    text = f"{group}={name}: there is no conf/{file}.yaml" if group else f"there is no configuration {file!r}"
    if options:
        text += f". Allowed: {', '.join(options)}"
        near = difflib.get_close_matches(name, options, 1, 0.4)
        if near:
            text += f". Try: {group}={near[0]}"
    return text


def _unknown_override(message: str) -> str:
    """For Hydra's "Could not override 'clustr'" and the like: add the nearest group or value."""
    lines = [line for line in message.strip().splitlines() if line.strip()]
    text = lines[0]
    named = re.search(r"override '([^'@]+)'", text)
    if named:
        given = named.group(1)
        known = sorted(p.name for p in CONF.iterdir() if p.is_dir() and not p.name.startswith("_"))
        text = f"unknown override {given!r}. Groups: {', '.join(known)}"
        near = difflib.get_close_matches(given, [*known, *(path for path, _ in paths())], 1, 0.5)
        if near:
            text += f". Nearest: {near[0]}"
    return text


def _ill_typed(error: Any) -> str:
    """One line for a key or value that the dataclasses do not allow: full path, allowed values, nearest name."""
    path = str(error.full_key or error.key or "")
    message = _first_line(error)
    parent = path.rpartition(".")[0]
    if "not in" in message and "Key" in message:
        return _no_such_key(path, _fields_at(parent, getattr(error, "object_type", None)))
    kind = dict(paths()).get(path)
    text = f"{path}: {message[0].lower()}{message[1:]}" if path else message
    return f"{text}. Allowed: {describe(kind)}" if kind is not None and "expected one of" not in text else text


def _no_such_key(path: str, siblings: list[str]) -> str:
    parent = path.rpartition(".")[0]
    text = f"{path}: there is no such key"
    if siblings:
        text += f". Allowed{f' in {parent}' if parent else ''}: {', '.join(siblings)}"
    nearest = _nearest(path, parent, siblings)
    return f"{text}. Nearest: {nearest}" if nearest else text


def _foreign(node: Any, prefix: str = "") -> Iterator[str]:
    """Paths of keys that no dataclass has."""
    from omegaconf import DictConfig, OmegaConf

    schema = OmegaConf.get_type(node)
    known = {f.name for f in dataclasses.fields(schema)} if dataclasses.is_dataclass(schema) else None
    for key in node:
        if known is not None and key not in known:
            yield f"{prefix}{key}"
        elif not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            yield from _foreign(node[key], f"{prefix}{key}.")


def _nearest(path: str, parent: str, siblings: list[str]) -> str | None:
    """What was probably meant: the same name elsewhere in the tree, else a like name beside it or anywhere."""
    name = path.rpartition(".")[2]
    known = [p for p, _ in paths()]
    same = [p for p in known if p.rpartition(".")[2] == name and p != path]
    if same:
        return same[0]
    beside = difflib.get_close_matches(name, siblings, 1, 0.6)
    if beside:
        return f"{parent}.{beside[0]}" if parent else beside[0]
    return next(iter(difflib.get_close_matches(path, known, 1, 0.7)), None)


def _fields_at(parent: str, owner: Any) -> list[str]:
    if dataclasses.is_dataclass(owner):
        return [f.name for f in dataclasses.fields(owner)]
    prefix = f"{parent}." if parent else ""
    return sorted({p[len(prefix) :].split(".")[0] for p, _ in paths() if p.startswith(prefix)})


def describe(kind: Any) -> str:
    """A field's type in words a person can type a value from."""
    args = [a for a in typing.get_args(kind) if a is not type(None)]
    if type(None) in typing.get_args(kind):
        return f"{describe(args[0])} or null"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(member.name for member in kind)
    if len(args) > 1 and typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(describe(arg) for arg in args)
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if typing.get_origin(kind) is list:
        return f"a list [..] of {describe(args[0])}"
    if typing.get_origin(kind) is dict:
        return "a mapping {key: value}"
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def paths(schema: type = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every path of the tree with its type, such as ("optim.lr", float). All kinds of job count for "job"."""
    hints = typing.get_type_hints(schema)
    for name, kind in hints.items():
        inner = [a for a in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(a)]
        if name == "job" and not prefix:
            inner = list(JOBS.values())
        yield prefix + name, kind
        if typing.get_origin(kind) is dict:
            continue
        for part in inner:
            yield from paths(typing.cast(type, part), f"{prefix}{name}.")
