"""What the Tab key offers, in Python and in the shells themselves; and that nothing that was typed is ever executed."""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc import completion
from hpc.cli import VERBS
from hpc.cli.complete import lines, unquoted
from hpc.compose import CONF

ROOT = Path(__file__).resolve().parent.parent.parent
ODD = "2099 a'b\"c$(touch pwned)`touch pwned`;&"


@pytest.fixture
def root(here: Path) -> Path:
    """Three runs of two names, and a sweep."""
    root = here / "runs"
    for name, identity, mark in (
        ("demo", "20260101-000000-aaaa", "config.yaml"),
        ("demo", "20260102-000000-bbbb", "config.yaml"),
        ("other", "20260103-000000-cccc", "config.yaml"),
        ("grid", "20260104-000000-dddd", "sweep.json"),
        ("demo", ".20260105-000000-eeee.tmp", "config.yaml"),
        ("demo", "checkpoints-of-mine", "notes.txt"),
    ):
        (root / name / identity).mkdir(parents=True)
        (root / name / identity / mark).touch()
    return root


def offered(root: Path, *words: str) -> list[str]:
    return [each.text for each in completion.complete(words, VERBS, root, CONF)]


def test_verbs_come_first(root: Path) -> None:
    assert offered(root, "") == [*VERBS, "--help", "--version"]
    assert offered(root, "su") == ["submit"]
    assert offered(root, "nope", "") == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_flags_and_none_is_called(verb: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    before = sorted(root.rglob("*"))
    subverbs = offered(root, verb, "") if verb in ("emulate", "sweep") else []
    words = [verb, *subverbs[:1]]
    assert any(text in ("--json", "--help") for text in offered(root, *words, "--")), verb
    assert sorted(root.rglob("*")) == before


def test_flags_are_those_of_the_verb(root: Path) -> None:
    assert offered(root, "emulate", "up", "--acc") == ["--accounting"]
    assert offered(root, "logs", "last", "--ra") == ["--rank"]
    assert offered(root, "resume", "last", "--wa") == ["--wait", "--watch"]
    assert offered(root, "submit", "--cfg", "") == ["job", "hydra", "all"]
    assert "--json" not in offered(root, "emulate", "down", "--")


def test_runs_are_offered_newest_first(root: Path) -> None:
    ids = ["20260103-000000-cccc", "20260102-000000-bbbb", "20260101-000000-aaaa"]
    for verb in ("status", "logs", "cancel", "resume"):
        assert offered(root, verb, "")[:6] == [*ids, "last", "other", "demo"], verb
    assert offered(root, "status", "20260102") == ["20260102-000000-bbbb"]
    assert offered(root, "status", "demo/2026") == ["demo/20260102-000000-bbbb", "demo/20260101-000000-aaaa"]
    assert offered(root, "status", "de") == ["demo"]


def test_sweeps_are_offered_where_they_are_meant(root: Path) -> None:
    assert offered(root, "sweep", "status", "2") == ["20260104-000000-dddd"]
    for verb in ("efficiency", "watch"):
        assert "20260104-000000-dddd" in offered(root, verb, "2")
    assert "20260104-000000-dddd" not in offered(root, "status", "2")


def test_of_a_thousand_runs_the_newest_are_offered(root: Path) -> None:
    for number in range(1000):
        folder = root / "many" / f"20270101-000000-{number:04d}"
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
    found = offered(root, "status", "2027")
    assert len(found) == completion.RUNS
    assert found[0] == "20270101-000000-0999"


def test_where_there_are_no_runs_nothing_is_wrong(tmp_path: Path) -> None:
    assert offered(tmp_path / "none", "status", "") == ["last"]


def test_groups_keys_and_values_of_overrides(root: Path) -> None:
    assert "cluster=noctua2" in offered(root, "submit", "cluster=")
    assert offered(root, "submit", "cluster=noc") == ["cluster=noctua2"]
    assert offered(root, "submit", "model.mo") == ["model.moe."]
    assert offered(root, "submit", "model.moe.sco") == ["model.moe.score=", "model.moe.scope="]
    assert offered(root, "submit", "model.moe.score=") == ["model.moe.score=softmax", "model.moe.score=sigmoid"]
    assert offered(root, "submit", "cluster.exclusive=") == ["cluster.exclusive=true", "cluster.exclusive=false"]
    assert offered(root, "submit", "job.time=") == ["job.time=null"]
    assert offered(root, "submit", "+experiment=tiny") == ["+experiment=tiny_moe"]
    assert offered(root, "submit", "cluster=noctua2", "job=he") == ["job=hello"]
    assert offered(root, "resume", "demo", "job.nod") == ["job.nodes="]
    assert offered(root, "submit", "optim.nothing=") == []


def test_of_a_multirun_the_last_value_is_completed(root: Path) -> None:
    assert offered(root, "submit", "-m", "train.device=cpu,cu") == ["train.device=cpu,cuda"]


def test_choices_of_ones_own_count(root: Path, tmp_path: Path) -> None:
    (tmp_path / "mine/cluster").mkdir(parents=True)
    (tmp_path / "mine/cluster/ours.yaml").touch()
    for words in (["--config-dir", str(tmp_path / "mine")], [f"--config-dir={tmp_path}/mine"]):
        assert offered(root, "submit", *words, "cluster=ou") == ["cluster=ours"]


def test_emulate_completes_clusters(root: Path) -> None:
    assert offered(root, "emulate", "") == ["up", "status", "down"]
    assert offered(root, "emulate", "up", "cluster=noc") == ["cluster=noctua2"]


def test_a_name_with_control_characters_is_not_offered(root: Path) -> None:
    (root / "demo" / "2099\x1b[2J\nstatus").mkdir()
    (root / "demo" / "2099\x1b[2J\nstatus" / "config.yaml").touch()
    assert offered(root, "status", "2099") == []


@given(st.lists(st.text(max_size=12) | st.sampled_from([*VERBS, "--json", "cluster=", "last"]), max_size=5))
def test_whatever_was_typed_nothing_breaks(words: list[str]) -> None:
    completion.complete(words, VERBS, Path("/nonexistent"), CONF)


@given(st.text(max_size=20))
def test_a_quoted_word_is_read_as_the_shell_reads_it(text: str) -> None:
    assert unquoted(shlex.quote(text)) == text


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("'open two", "open two"),
        ('"open', "open"),
        (r"a\ b", "a b"),
        (r"'a\'b", r"a\b"),
        ("$(x)`y`", "$(x)`y`"),
        ("\\", ""),
    ],
)
def test_what_is_half_typed_is_read_as_far_as_it_goes(typed: str, meant: str) -> None:
    assert unquoted(typed) == meant


def test_neither_hydra_nor_omegaconf_nor_numpy_is_imported(root: Path) -> None:
    heavy = ("hydra", "omegaconf", "numpy", "pandas", "torch", "rich", "submitit")
    code = (
        "import sys; from hpc.cli import VERBS, main\n"
        "for verb in VERBS: main(['complete', '--', verb, '-'])\n"
        "main(['complete', '--', 'submit', 'model.moe.'])\n"
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("words", [["submit", "model.moe."], ["cancel", "2"], ["submit", "cluster="]])
def test_a_tab_is_answered_at_once(words: list[str], root: Path) -> None:
    # Of the processor: on a machine that others use, a clock on the wall says little.
    fastest = 9.0
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "hpc", "complete", "--", *words], stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        fastest = min(fastest, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert fastest < 0.25


# -- in the shells -----------------------------------------------------------------------------------------------


@pytest.fixture
def shell_environment(root: Path, tmp_path: Path) -> dict[str, str]:
    """``hpc`` is found in PATH, as it is where it is installed."""
    command = tmp_path / "bin/hpc"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m hpc "$@"\n')
    command.chmod(0o755)
    return {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def bash(shell_environment: dict[str, str], here: Path) -> Callable[..., list[str]]:
    """bash(*words): what stands in COMPREPLY when the last of COMP_WORDS is to be completed."""

    def complete(*words: str, breaks: str = " \t\n\"'><=;|&(:") -> list[str]:
        code = (
            "source <(hpc completion bash); "
            f"COMP_WORDBREAKS={shlex.quote(breaks)}; COMP_WORDS=({shlex.join(words)}); "
            'COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _hpc; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "--norc", "-c", code], capture_output=True, text=True, env=shell_environment, timeout=30, cwd=here
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return [line for line in done.stdout.splitlines() if line]

    return complete


def test_bash_completes_words_that_it_has_parted(bash: Callable[..., list[str]]) -> None:
    assert bash("hpc", "sub") == ["submit"]
    assert bash("hpc", "submit", "cluster", "=", "noc") == ["noctua2"]
    assert bash("hpc", "submit", "cluster", "=") == [
        "a100_4x8",
        "a100_8x8",
        "h100_32x8",
        "l40_16x2",
        "local",
        "noctua2",
    ]
    assert bash("hpc", "submit", "cluster", "=", "noctua2", "job.nod") == ["job.nodes="]
    assert bash("hpc", "submit", "train.device", "=", "cpu,cu") == ["cpu,cuda"]
    assert bash("hpc", "submit", "cluster=noc", breaks=" \t\n") == ["cluster=noctua2"]
    assert bash("hpc", "submit", "cluster", "=", "local", "") != []


def test_bash_executes_nothing_of_what_is_typed_or_named(
    bash: Callable[..., list[str]], root: Path, here: Path
) -> None:
    (root / "demo" / ODD).mkdir()
    (root / "demo" / ODD / "config.yaml").touch()
    (completed,) = bash("hpc", "status", "2099")
    assert shlex.split(completed) == [ODD]
    assert bash("hpc", "status", "'2099") == []  # it could end the quote
    for word in ("$(touch pwned)", "`touch pwned`", "'; touch pwned; '", '"$(touch pwned)', "a\ntouch pwned"):
        bash("hpc", "status", word)
        bash("hpc", "submit", "name", "=", word)
    assert not list(here.rglob("pwned"))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_can_read_its_script(shell: str, shell_environment: dict[str, str]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = subprocess.run(
        ["hpc", "completion", shell], capture_output=True, text=True, env=shell_environment, check=True, timeout=30
    ).stdout
    done = subprocess.run([shell, "-n"], input=script, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


def test_fish_offers_what_is_there(shell_environment: dict[str, str], root: Path, here: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    (root / "demo" / ODD).mkdir()
    (root / "demo" / ODD / "config.yaml").touch()
    for typed, expected in (
        ("hpc sub", "submit"),
        ("hpc submit cluster=noc", "cluster=noctua2"),
        ("hpc status 2099", ODD),
        ("hpc status $(touch pwned", None),
    ):
        code = f"hpc completion fish | source; complete --do-complete {shlex.quote(typed)}"
        command = ["fish", "--no-config", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, env=shell_environment, timeout=30, cwd=here)
        assert expected is None or expected in [line.split("\t")[0] for line in done.stdout.splitlines()], done.stdout
    assert not list(here.rglob("pwned"))


def test_what_the_shells_are_given_is_one_line_each(root: Path) -> None:
    for line in lines(["--", ""]):
        assert line.count("\t") == 1
        assert line.isprintable() or "\t" in line


def test_a_shell_that_is_not_known_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hpc.cli import main

    with pytest.raises(SystemExit) as stopped:
        main(["completion", "tcsh"])
    assert stopped.value.code == 2
    assert "bash" in capsys.readouterr().err
