"""Asking a site's Slurm what it allows: all questions at once, and early, so that `hpc submit` hardly waits.

A program that fails or is late leaves a gap in the ``Site``; where the controller itself does not answer there is none.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from hpc import site_answers as parse
from hpc import site_text, slurm
from hpc.site import Site

PATIENCE = 2.0  # seconds until what has not answered counts as silent
FRESH = 30.0  # seconds for which an answer is taken again: for all runs of a sweep, not for a notebook's whole day

_asked: dict[str | None, Asking] = {}  # by SLURM_CONF


class Asking:
    """The questions to one Slurm, on their way."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.began = time.monotonic()
        self.seconds: float | None = None  # until the controller had answered
        self.silent: list[str] = []  # why there are gaps
        self._site: Site | None = None
        self._done = False
        self._user = _user()
        self._questions = {name: self._ask(argv) for name, argv in self._argvs().items()}

    def _argvs(self) -> dict[str, list[str]]:
        # "user=" with nothing behind it lists the accounts themselves.
        table = ["sacctmgr", "--parsable2", "--noheader", "show"]
        return {
            "config": ["scontrol", "show", "config"],
            "partitions": ["scontrol", "show", "partition", "-o"],
            "nodes": ["scontrol", "show", "node", "-o"],
            "associations": [*table, "user", self._user, "withassoc", "format=" + ",".join(parse.USER_COLUMNS)],
            "accounts": [*table, "assoc", "user=", "format=" + ",".join(parse.ACCOUNT_COLUMNS)],
            "qos": [*table, "qos", "format=" + ",".join(parse.QOS_COLUMNS)],
        }

    def _ask(self, argv: list[str]) -> slurm.Question | None:
        try:
            return slurm.Question(argv, self.environment)
        except slurm.SlurmError as error:
            self.silent.append(str(error))
            return None

    def _answer(self, question: slurm.Question | None, patience: float) -> str | None:
        if question is None:
            return None
        try:
            return question.answer(patience)
        except slurm.SlurmError as error:
            self.silent.append(str(error))
            return None

    def site(self, patience: float = PATIENCE) -> Site | None:
        """What was answered; None if the controller did not."""
        if not self._done:
            self._done = True
            self._site = self._collect(patience)
        return self._site

    def _collect(self, patience: float) -> Site | None:
        questions = self._questions
        config = self._answer(questions["config"], patience)
        partitions = self._answer(questions["partitions"], patience)
        if config is None or partitions is None:
            self.drop()
            return None
        self.seconds = time.monotonic() - self.began
        site = Site(site_text.config(config), parse.partitions(partitions), self._user, _groups())
        if (text := self._answer(questions["nodes"], patience)) is not None:
            nodes, down = parse.nodes(text)
            site = replace(site, nodes=nodes, down=down)
        if not site.config.get("AccountingStorageType", "").endswith("slurmdbd"):
            self.drop()
            return site
        return self._accounting(site, patience)

    def _accounting(self, site: Site, patience: float) -> Site:
        associations, accounts, qos = (
            self._answer(self._questions[name], patience) for name in ("associations", "accounts", "qos")
        )
        if associations is None or qos is None:
            return site
        return replace(
            site,
            associations=parse.associations(associations, site.name),
            accounts=parse.accounts(accounts or "", site.name),
            qos=parse.all_qos(qos),
        )

    def drop(self) -> None:
        """End what was asked and is not needed."""
        for question in self._questions.values():
            if question is not None:
                question.drop()

    def with_reservations(self, site: Site) -> Site:
        """The site with its reservations, if they are told."""
        return self._more(site, ["scontrol", "show", "reservation", "-o"], "reservations", parse.reservations)

    def with_queue(self, site: Site) -> Site:
        """The site with this user's jobs counted, if they are told."""
        return self._more(site, ["squeue", "--me", "--noheader", "--array", "-o", "%a|%q"], "queued", parse.queued)

    def _more(self, site: Site, argv: list[str], name: str, read: Callable[[str], object]) -> Site:
        if getattr(site, name) is None and (text := self._answer(self._ask(argv), PATIENCE)) is not None:
            self._site = site = replace(site, **{name: read(text)})
        return site


def ahead(environment: Mapping[str, str]) -> Asking:
    """Begin to ask; what was asked a moment ago is not asked again."""
    key = environment.get("SLURM_CONF")
    known = _asked.get(key)
    if known is None or time.monotonic() - known.began > FRESH:
        known = _asked[key] = Asking(environment)
    return known


def ahead_of(words: Sequence[str]) -> None:
    """Begin to ask the Slurm of the ``cluster=NAME`` that was typed, so that it has answered when all is composed."""
    names = [word.removeprefix("cluster=") for word in words if word.startswith("cluster=")]
    if len(names) != 1 or names[0] == "local" or not re.fullmatch(r"[\w.-]+", names[0]) or not slurm.available():
        return
    from hpc import emulate

    emulation = emulate.find(names[0])
    ahead(emulation.environment if emulation is not None else {})


def site(environment: Mapping[str, str], *, reservations: bool = False) -> Site | None:
    """What the Slurm that answers in ``environment`` says of its site; None if it does not answer.

    Args:
        reservations: they are needed too.
    """
    asking = ahead(environment)
    found = asking.site()
    if found is None:
        return None
    if reservations:
        found = asking.with_reservations(found)
    if found.enforces("limits") and found.associations is not None:
        found = asking.with_queue(found)
    return found


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _groups() -> tuple[str, ...]:
    names = []
    for number in os.getgroups():
        with suppress(KeyError):  # a group without a name
            names.append(grp.getgrgid(number).gr_name)
    return tuple(names)
