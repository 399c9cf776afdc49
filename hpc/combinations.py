"""The combinations of a sweep as typed configurations, without composing each of them.

Hydra composes a configuration in about 0.1 s, and a sweep of a thousand runs differs in a few values only. So it is
asked once for each distinct choice of groups; the other combinations are that configuration with values set in it,
checked against the same dataclasses, and with everything recomputed that refers to other values. What this cannot
do safely (keys that are added or deleted, mappings, a key within another) counts as a choice of its own.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from hpc.compose import typed
from hpc.config import Config

Compose = Callable[[list[str]], Any]  # Hydra's: from overrides to an unresolved configuration
IsGroup = Callable[[str], bool]


def expand(overrides: Sequence[Any]) -> list[list[str]]:
    """Every combination of parsed overrides, in Hydra's order: the last one typed varies fastest."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    (combinations,) = BasicSweeper.split_arguments(list(overrides), None)
    return combinations


def compose(combinations: Sequence[Sequence[str]], compose: Compose, is_group: IsGroup) -> Iterator[Config]:
    """A typed configuration for each combination, in order; parts that are equal are shared between them.

    Raises:
        whatever composing a combination by itself raises.
    """
    bases: dict[tuple[str, ...], _Base] = {}
    split = _Split(combinations, is_group)
    for words in combinations:
        choices, values = split(words)
        base = bases.get(choices)
        if base is None:
            base = bases[choices] = _Base(compose(list(words)))
            yield base.plain()
            continue
        config = base.changed(values)
        # Whatever stands in the way, Hydra says it better.
        yield typed(compose(list(words))) if config is None else config


def spelled(value: Any) -> str:
    """A value as an override has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if not isinstance(value, str) or re.fullmatch(r"[A-Za-z0-9_./@:+-]+", value):
        return str(value)
    text = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


class _Split:
    """Parts a combination into what decides the tree and plain values of it."""

    def __init__(self, combinations: Sequence[Sequence[str]], is_group: IsGroup) -> None:
        self.is_group = functools.cache(is_group)
        self.parsed: dict[str, Any] = {}
        self.varying = _varying(combinations)

    def __call__(self, words: Sequence[str]) -> tuple[tuple[str, ...], dict[str, Any]]:
        choices: list[str] = []
        values: dict[str, Any] = {}
        overrides = [self._parse(word) for word in words]
        keys = [override.key_or_group for override in overrides if not self.is_group(override.key_or_group)]
        for word, override in zip(words, overrides, strict=True):
            if word in self.varying and self._is_value(override, keys):
                values[override.key_or_group] = override.value()
            else:
                choices.append(word)
        return tuple(choices), values

    def _parse(self, word: str) -> Any:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        if word not in self.parsed:
            self.parsed[word] = OverridesParser.create().parse_override(word)
        return self.parsed[word]

    def _is_value(self, override: Any, keys: Sequence[str]) -> bool:
        key, value = override.key_or_group, override.value()
        plain = not (override.is_add() or override.is_force_add() or override.is_delete() or override.package)
        apart = sum(_within(key, other) or _within(other, key) for other in keys) == 1  # itself
        simple = isinstance(value, bool | int | float | str) or value is None
        fixed = not (isinstance(value, str) and ("${" in value or value == "???"))
        return plain and apart and simple and fixed and key in keys and not key.startswith("hydra.")


def _varying(combinations: Sequence[Sequence[str]]) -> set[str]:
    """Overrides that not all combinations have."""
    common = set(combinations[0]).intersection(*combinations[1:]) if combinations else set()
    return {word for words in combinations for word in words} - common


def _within(key: str, other: str) -> bool:
    return key == other or key.startswith(f"{other}.")


class _Base:
    """A composed tree, in which values are set, and its typed configuration."""

    def __init__(self, tree: Any) -> None:
        self.tree = tree
        self.config = typed(copy.deepcopy(tree))
        self.referring = dict(_referring(tree))
        self.affected = functools.cache(self._affected)

    def plain(self) -> Config:
        return dataclasses.replace(self.config)

    def changed(self, values: dict[str, Any]) -> Config | None:
        """The configuration with other values; None if they do not fit."""
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        try:
            for key, value in values.items():
                OmegaConf.update(self.tree, key, value, merge=True)
            config: Any = self.config
            for path in (*values, *self.affected(tuple(values))):
                value = OmegaConf.select(self.tree, path)
                value = OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
                config = _with(config, path.split("."), value)
        except (OmegaConfBaseException, _Unknown):
            return None
        return dataclasses.replace(config)  # never the base itself: whoever takes it may put other parts in

    def _affected(self, keys: tuple[str, ...]) -> list[str]:
        """Paths of the values that may be others when those of ``keys`` are; to resolve all would take most of the
        time."""
        found: set[str] = set()
        changed = set(keys)
        while True:
            more = {path for path, names in self.referring.items() if names is None or _touch(names, changed)} - found
            if not more:
                return sorted(found)
            found |= more
            changed |= more


class _Unknown(Exception):
    """A path leads to nothing that can be replaced."""


def _touch(names: Iterable[str], keys: Iterable[str]) -> bool:
    return any(_within(name, key) or _within(key, name) for name in names for key in keys)


def _names(text: str) -> set[str] | None:
    """The paths that ``${path}`` in a text names; None where that cannot be told."""
    if re.search(r"\$\{(?!\s*oc\.env\s*:)[^{}]*:", text):  # oc.select:path and the like
        return None
    names = {name.strip() for name in re.findall(r"\$\{([^{}:]*)\}", text)}
    return names if all(re.fullmatch(r"\w+(\.\w+)*", name) for name in names) else None


def _referring(node: Any, prefix: str = "") -> Iterator[tuple[str, set[str] | None]]:
    """Paths of values that are computed from others, with the paths of these; those in a list count as the list's."""
    from omegaconf import DictConfig, ListConfig, OmegaConf

    for key in node:
        path = f"{prefix}{key}"
        if path == "hydra":
            continue
        if OmegaConf.is_interpolation(node, key):
            yield path, _names(str(OmegaConf.to_container(node, resolve=False)[key]))  # pyright: ignore
        elif OmegaConf.is_missing(node, key):
            continue
        elif isinstance(node[key], DictConfig):
            yield from _referring(node[key], f"{path}.")
        elif isinstance(node[key], ListConfig) and "${" in OmegaConf.to_yaml(node[key]):
            yield path, _names(OmegaConf.to_yaml(node[key]))


def _with(owner: Any, path: Sequence[str], value: Any) -> Any:
    """``owner`` with another value at ``path``; what is not on the way is shared, as is all where it is the same."""
    if not path:
        return owner if type(owner) is type(value) and owner == value else value
    name, *rest = path
    if dataclasses.is_dataclass(owner) and not isinstance(owner, type) and hasattr(owner, name):
        old = getattr(owner, name)
        new = _with(old, rest, value)
        return owner if new is old else dataclasses.replace(owner, **{name: new})
    if isinstance(owner, dict) and name in owner:
        old = owner[name]
        new = _with(old, rest, value)
        return owner if new is old else {**owner, name: new}
    raise _Unknown(name)
