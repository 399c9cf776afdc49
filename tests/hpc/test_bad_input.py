"""Whatever a person types: one clear message, exit status 2 (or 1), nothing submitted, nothing written, no shell."""

from __future__ import annotations

import contextlib
import io
import string
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hpc.cli import main
from hpc.runs import NAME
from tests.hpc.conftest import everything

quick = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SHELL = (
    "a;touch pwned",
    "$(touch pwned)",
    "`touch pwned`",
    "a\ntouch pwned",
    "a'b",
    'a"b',
    "a b",
    "größe/ü",
    "-rf",
    "..",
    "a|b",
    "a&b",
)
text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30)
awkward = st.text(string.ascii_letters + string.punctuation + " \n\t", min_size=1, max_size=20)


def typed(*words: str) -> tuple[int, str, str]:
    """Exit status, output and errors of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(list(words))
        except SystemExit as leaving:
            status = leaving.code if isinstance(leaving.code, int) else 1
    return status, out.getvalue(), err.getvalue()


@pytest.fixture
def untouched(here: Path) -> Iterator[Path]:
    """A working folder in which nothing may appear."""
    before = everything(here)
    yield here
    assert everything(here) == before


def refused(status: int, err: str) -> None:
    assert status == 2, (status, err)
    assert err.startswith("hpc ") or err.startswith("usage: "), err
    assert "Traceback" not in err
    assert 0 < len(err) < 4000


@quick
@given(name=awkward | st.sampled_from(SHELL))
@example(name="a;touch pwned")
def test_a_name_is_a_name_or_is_refused(untouched: Path, name: str) -> None:
    quoted = "'" + name.replace("\\", "\\\\").replace("'", "\\'") + "'"
    status, out, err = typed("submit", "job=hello", f"name={quoted}", "--dry-run")
    if NAME.fullmatch(name.strip()) and status == 0:
        assert "pwned" not in out or "touch" not in out
        return
    refused(status, err)


@quick
@given(word=awkward | text)
@example(word="optim.lr=")
@example(word="optim.lr=[1,2")
@example(word="=")
@example(word="a=b=c")
@example(word="+job.nodes=1")
@example(word="~optim")
@example(word="optim@train=adamw")
@example(word="job.nodes=${oc.env:HOME}")
@example(word="${")
def test_an_override_that_means_nothing_is_refused(untouched: Path, word: str) -> None:
    if word.startswith("-"):
        return
    status, _, err = typed("submit", "job=hello", word, "--dry-run")
    if status != 0:  # some mean something
        refused(status, err)


@quick
@given(
    key=st.sampled_from(["job.nodes", "job.grace", "optim.lr", "train.tokens", "job.time", "parallel.engine"]),
    value=text,
)
def test_a_value_of_another_kind_is_refused(untouched: Path, key: str, value: str) -> None:
    quoted = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    status, _, err = typed("submit", "job=hello", f"{key}={quoted}", "--dry-run")
    if status != 0:
        refused(status, err)


@quick
@given(run=awkward | st.sampled_from(SHELL) | text)
@pytest.mark.parametrize("verb", ["status", "logs", "cancel", "explain", "watch"])
def test_a_run_that_is_not_there_is_refused_by_every_verb(untouched: Path, verb: str, run: str) -> None:
    if run.startswith("-") or run in (".", "/"):
        return
    status, _, err = typed(verb, run)
    refused(status, err)


@quick
@given(
    words=st.lists(
        st.sampled_from(["optim.lr=1e-4,", "optim.lr=1,x", "job.nodes=range(0)", "a=1,2", ",", "=1,2"]),
        min_size=1,
        max_size=3,
    )
)
def test_a_sweep_with_one_mistake_submits_nothing(untouched: Path, words: list[str]) -> None:
    status, _, err = typed("submit", "-m", "job=hello", *words, "--dry-run")
    refused(status, err)


@pytest.mark.parametrize("value", SHELL)
@pytest.mark.parametrize("field", ["job.account", "job.constraint", "cluster.environment.NOTE", "cluster.python"])
def test_what_goes_into_the_script_stays_one_word(untouched: Path, field: str, value: str) -> None:
    quoted = "'" + value.replace("'", "\\'") + "'"
    status, out, err = typed("submit", "cluster=noctua2", "job=hello", f"++{field}={quoted}", "--dry-run")
    if status == 0:
        shell = "\n".join(line for line in out.splitlines() if not line.startswith("#"))
        assert_parses_as_words(shell, value)
    else:
        refused(status, err)


def assert_parses_as_words(script: str, value: str) -> None:
    """A shell that reads the script sees the value as one word, and nothing of it as a command."""
    import shlex

    for line in script.splitlines():
        if "pwned" in line:
            words = shlex.split(line)
            assert any(value in word for word in words), (line, value)


@pytest.mark.parametrize(
    "limit", ["job.nodes=25", "job.nodes=0", "job.ranks_per_node=5", "job.time=7-00:00:01", "job.memory_gb=481"]
)
def test_a_limit_crossed_by_one_is_refused_with_what_to_type(untouched: Path, limit: str) -> None:
    status, _, err = typed("submit", "cluster=noctua2", "job=hello", limit, "--dry-run")
    refused(status, err)
    assert "Try: job." in err
    assert limit.split("=")[0] in err


@quick
@given(content=st.binary(max_size=60) | text.map(str.encode))
def test_a_yaml_file_that_is_none_is_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("conf")
    (folder / "experiment").mkdir()
    (folder / "experiment" / "mine.yaml").write_bytes(b"# @package _global_\n" + content)
    status, _, err = typed("submit", "job=hello", "experiment=mine", f"--config-dir={folder}", "--dry-run")
    if status != 0:
        refused(status, err)
