"""The command ``hpc``: one small file per verb, imported only when it is called."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from keyword import iskeyword

# Kept here so that `hpc --help` imports nothing; each verb's own --help says more.
VERBS = {
    "submit": "check a request, write its run folder, dispatch it to the cluster",
    "status": "runs and where they stand",
    "explain": "why a run waits or died, and what to type",
    "runs": "runs by state, name, tag, cluster or age; tags and notes on them",
    "watch": "runs live: Slurm, steps, tokens, loss, ranks, experts, attempts, logs, findings",
    "serve": "all runs live in a browser, here or through ssh",
    "logs": "what a run's supervisor or one of its ranks printed",
    "diff": "in what two runs differ: configuration, code, environment, data, outcome",
    "resume": "go on with a run that has ended, as it was or with changes",
    "retry": "submit a run's request once more as a new run, from its beginning",
    "fork": "a new run that begins from a checkpoint of another, with changes",
    "sweep": "the runs of a sweep: where they stand, which is best, which are to be tried again",
    "findings": "what is wrong with runs: stalls, stragglers, spikes, experts, disks; also for cron",
    "report": "a run or a sweep as one HTML file that opens anywhere; or as plots for a paper",
    "efficiency": "what a run used of what it was given, and what to ask for next time",
    "evaluate": "perplexity of a run's checkpoints on held-out text",
    "profile": "where the time of a running run's steps goes, by torch's profiler",
    "export": "runs for TensorBoard, Weights & Biases, Prometheus, or as Parquet and CSV",
    "import": "old runs beside new ones: logs of Megatron and DeepSpeed, TensorBoard's files, CSV",
    "cancel": "save and end a run, so that no attempt follows",
    "drill": "bring a fault into a run of your own, and see it survive",
    "rm": "remove runs that have ended; asks first",
    "gc": "remove old checkpoints and leftovers by policy; shows them and asks first",
    "doctor": "look over a site from here: its Slurm, its file systems, Python; with --job its nodes",
    "cluster": "detect: write the description of the site that this is called on",
    "emulate": "start a real Slurm on this machine in the shape of a cluster",
    "completion": "what makes the Tab key complete commands in bash, zsh or fish",
}
HIDDEN = ("complete",)  # what the scripts of `hpc completion` call
USAGE = """usage: hpc VERB [...]

Train language models on a Slurm cluster: submit, survive every time limit and node failure, watch.

{verbs}

hpc VERB --help says more. First steps: hpc submit --dry-run, then hpc submit --watch.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one verb. Exit status: 0 done, 1 a failure, 2 a mistake in what was typed."""
    words = sys.argv[1:] if argv is None else argv
    usage = USAGE.format(verbs="\n".join(f"  {name:<10} {text}" for name, text in VERBS.items()))
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage, end="", file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        from hpc import __version__

        print(f"hpc {__version__}")
        return 0
    verb, *rest = words
    if verb not in VERBS and verb not in HIDDEN:
        import difflib

        near = difflib.get_close_matches(verb, VERBS, 1, 0.5)
        print(
            f"hpc: there is no verb {verb!r}. Allowed: {', '.join(VERBS)}."
            + (f" Nearest: hpc {near[0]}" if near else ""),
            file=sys.stderr,
        )
        return 2
    return _call(verb, rest)


def module_of(verb: str) -> str:
    """The module of a verb; one that is a word of Python's own has an underscore at its end."""
    return f"hpc.cli.{verb}" + "_" * iskeyword(verb)


def _call(verb: str, words: list[str]) -> int:
    from hpc.errors import Failed, Refused

    try:
        return import_module(module_of(verb)).main(words)
    except (Refused, Failed) as error:
        from monitoring.text import clean

        for line in str(error).splitlines():  # it may quote names of files
            print(f"hpc {verb}: {clean(line)}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away; keep Python from complaining about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # Such as another user's run, or a folder that went away while it was read.
        from monitoring.text import clean

        where = clean(f": {error.filename}") if error.filename else ""
        print(f"hpc {verb}: {error.strerror or error}{where}", file=sys.stderr)
        return Failed.status
