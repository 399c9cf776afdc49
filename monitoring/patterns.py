"""What other programs print of their training, as steps and metrics. Pure: lines in, ``Found`` out.

A pattern is known by a name; ``readers`` makes one reader of each for one log. The metrics that several programs have
in common carry one name: ``loss``, ``validation_loss``, ``lr``, ``grad_norm``, ``step_s`` (seconds of a step),
``tokens_per_s``. The others keep their own in lower case, such as ``loss_scale``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Found:
    """What one line tells."""

    step: int | None = None  # None: of the newest step known
    tokens: int | None = None  # consumed since the first attempt; None: the line does not say
    steps: int | None = None  # that the program will do in all
    metrics: Mapping[str, float] = field(default_factory=dict)


Reader = Callable[[str], Found | None]
"""Takes the lines of one log in order, without escape sequences; a progress bar's every state is a line."""

_NUMBER = r"[-+]?(?:\d[\d,]*\.?\d*(?:[eE][-+]?\d+)?|\.\d+|(?i:nan|inf(?:inity)?)\b)"


def readers(names: Sequence[str]) -> list[Reader]:
    """A reader for each of the names; what is no name of ``SHIPPED`` is a regular expression of one's own.

    Raises:
        ValueError: if an expression cannot be read, or names neither a step nor a metric.
    """
    return [SHIPPED[name]() if name in SHIPPED else own(name) for name in names]


def number(text: str) -> float | None:
    """A number as programs print it, such as 1,234.5 or 1E-4 or nan; None if it is none."""
    try:
        return float(text.strip().replace(",", "").rstrip("%"))
    except ValueError:
        return None


def own(expression: str) -> Reader:
    """A regular expression with named groups: ``step``, ``tokens``, ``steps`` as above, any other one is a metric."""
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from None
    if not pattern.groupindex:
        raise ValueError("it names no group: (?P<step>\\d+) and (?P<loss>\\S+), for example")

    def read(line: str) -> Found | None:
        match = pattern.search(line)
        return _found(match.groupdict()) if match else None

    return read


def _found(given: Mapping[Any, str | None]) -> Found | None:
    """Text by name as what it stands for; what is no number is left out."""
    values = {name: value for name, text in given.items() if text is not None and (value := number(text)) is not None}
    counts = {name: _count(values.pop(name, None)) for name in ("step", "tokens", "steps")}
    return Found(**counts, metrics=values) if values or counts["step"] is not None else None


def _count(value: float | None) -> int | None:
    return int(value) if value is not None and 0 <= value < 1 << 63 else None


def _slug(text: str) -> str:
    return re.sub(r"\W+", "_", text.strip().lower()).strip("_")


# -- Megatron ----------------------------------------------------------------------------------------------------

_MEGATRON = {
    "lm_loss": "loss",
    "learning_rate": "lr",
    "consumed_tokens": "tokens",
    "lm_loss_value": "validation_loss",
    "lm_loss_ppl": "validation_perplexity",
    "throughput_per_gpu_tflop_s_gpu": "tflops",
    "elapsed_time_per_iteration_ms": "step_ms",
}
_ITERATION = re.compile(
    r"\b(?:iteration\s+(?P<step>\d+)/\s*(?P<steps>\d+)|validation loss at iteration (?P<of>\d+)\b[^|/]*)\s*\|"
)
_FIELD = re.compile(rf"\s*([^:|]+?)\s*:\s*({_NUMBER})\s*(?:\||$)")


def megatron() -> Reader:
    """Megatron-LM, Megatron-DeepSpeed and GPT-NeoX: `` iteration 10/ 100 | consumed samples: 160 | lm loss: ... |``.

    The lines of ``training_log`` and ``evaluate_and_print_results`` in megatron/training/training.py
    (NVIDIA/Megatron-LM) and megatron/training.py (deepspeedai/Megatron-DeepSpeed), which the last rank prints.
    """

    def read(line: str) -> Found | None:
        line = last_of(line)
        if not (match := _ITERATION.search(line)):
            return None
        fields = ((_slug(name), value) for name, value in _FIELD.findall(line[match.end() :]))
        given = {_MEGATRON.get(name, name): value for name, value in fields}
        ms = number(given.pop("step_ms", ""))
        found = _found({**given, "steps": match["steps"], "step": match["step"] or match["of"]})
        if found and ms is not None:
            return Found(found.step, found.tokens, found.steps, {**found.metrics, "step_s": ms / 1000})
        return found

    return read


def last_of(line: str) -> str:
    """The line, or where others of Megatron's were torn and it stands right behind them, the last one's own part.

    What is left of a torn one must not take the numbers of the next one, which are another step's.
    """
    begins = [match.start() for match in _ITERATION.finditer(line)]
    return line[begins[-1] :] if len(begins) > 1 else line


# -- DeepSpeed ---------------------------------------------------------------------------------------------------

_DEEPSPEED = re.compile(rf"\[Rank 0\] step=(?P<step>\d+), skipped=(?P<skipped_steps>\d+), lr=\[(?P<lr>{_NUMBER})[,\]]")
_DEEPSPEED_SPEED = re.compile(
    rf"/global_step=(?P<step>\d+), RunningAvgSamplesPerSec={_NUMBER}, CurrSamplesPerSec=(?P<samples_per_s>{_NUMBER}),"
    rf"(?: MemAllocated=(?P<memory_gib>{_NUMBER})GB,)?(?: MaxMemAllocated=(?P<peak_memory_gib>{_NUMBER})GB)?"
)
_TIMES = re.compile(r"\btime \(ms\) \| ")
_TIME = re.compile(rf"([A-Za-z0-9][\w -]*): ({_NUMBER})")


def deepspeed() -> Reader:
    """DeepSpeed's engine: ``[Rank 0] step=10, skipped=0, lr=[0.0001], mom=[(0.9, 0.95)]``. It prints no loss.

    The lines of ``_report_progress`` in deepspeed/runtime/engine.py and of ``ThroughputTimer`` in
    deepspeed/utils/timer.py (deepspeedai/DeepSpeed).
    """

    def read(line: str) -> Found | None:
        match = _DEEPSPEED.search(line) or _DEEPSPEED_SPEED.search(line)
        return _found(match.groupdict()) if match else None

    return read


def deepspeed_times() -> Reader:
    """DeepSpeed's breakdown of the newest step: ``rank=0 time (ms) | forward: 1655.18 (forward_moe: 1687.46) | ...``.

    It becomes seconds: ``forward_s``, ``forward_moe_s``. ``SynchronizedWallClockTimer`` in deepspeed/utils/timer.py.
    """

    def read(line: str) -> Found | None:
        if not (match := _TIMES.search(line)):
            return None
        times = {f"{_slug(name)}_s": number(ms) for name, ms in _TIME.findall(line[match.end() :])}
        metrics = {name: ms / 1000 for name, ms in times.items() if ms is not None}
        return Found(metrics=metrics) if metrics else None

    return read


# -- Hugging Face ------------------------------------------------------------------------------------------------

_HUGGINGFACE = {
    "learning_rate": "lr",
    "eval_loss": "validation_loss",
    "num_input_tokens_seen": "tokens",
    "train_tokens_per_second": "tokens_per_s",
}
_DICT = re.compile(r"\{'\w+': .*'epoch': .*\}")
_PAIR = re.compile(rf"'([\w/]+)': '?({_NUMBER})'?(?=[,}}])")
_BAR = re.compile(r"^\s*\d+%\|[^|]*\| (\d+)/(\d+) \[")


class HuggingFace:
    """The Trainer of transformers, and what is built on it (TRL, Axolotl, LLaMA-Factory).

    ``{'loss': 2.1, 'grad_norm': 0.7, 'learning_rate': 5e-05, 'epoch': 0.2}``, values in quotes since version 5, as
    ``ProgressCallback`` in src/transformers/trainer_callback.py prints it. The step is not in it: it is that of the
    progress bar, which is drawn anew right after. Without the bar (``disable_tqdm``) nothing tells the step.
    """

    def __init__(self) -> None:
        self.steps: int | None = None  # of the training's bar, which is the first; evaluations have bars too
        self.waiting: Found | None = None

    def __call__(self, line: str) -> Found | None:
        if bar := _BAR.search(line):
            return self._at(int(bar[1]), int(bar[2]))
        if not (match := _DICT.search(line)):
            return None
        given = dict(_PAIR.findall(match[0]))
        if "train_loss" not in given:  # of the summary at the end, an average
            self.waiting = _found({_HUGGINGFACE.get(name, name): value for name, value in given.items()})
        return None

    def _at(self, step: int, steps: int) -> Found | None:
        self.steps = self.steps or steps
        found, told = self.waiting, steps == self.steps
        if not told or found is None:
            return None
        self.waiting = None
        return Found(step, found.tokens, steps, found.metrics)


# -- Lightning ---------------------------------------------------------------------------------------------------

_LITGPT = re.compile(
    rf"\biter (?P<iter>\d+)(?: \||) step (?P<step>\d+)(?::| \|) loss(?: train:)? (?P<loss>{_NUMBER}),"
    rf"(?: val: (?:{_NUMBER}|n/a) \|)? iter time: (?P<iter_ms>{_NUMBER}) ?ms"
)
_LITGPT_VALIDATION = re.compile(rf"\b(?:iter|step) \d+: val loss (?P<validation_loss>{_NUMBER}), val time:")


def litgpt() -> Reader:
    """litgpt, lit-gpt and TinyLlama: ``Epoch 1 | iter 8 step 2 | loss train: 10.1, val: n/a | iter time: 9 ms (step)``.

    The lines of litgpt/pretrain.py and litgpt/finetune/*.py (Lightning-AI/litgpt), of lit-gpt's pretrain/tinyllama.py
    and finetune/*.py, and of pretrain/tinyllama.py (jzhang38/TinyLlama). An iteration is a micro-batch; the validation
    loss counts for the newest step.
    """

    def read(line: str) -> Found | None:
        if match := _LITGPT.search(line):
            given = match.groupdict()
            del given["iter"]
            ms = number(given.pop("iter_ms") or "")
            found = _found(given)
            if found and ms is not None:
                return Found(found.step, metrics={**found.metrics, "iter_s": ms / 1000})
            return found
        match = _LITGPT_VALIDATION.search(line)
        return _found(match.groupdict()) if match else None

    return read


# -- torchtitan --------------------------------------------------------------------------------------------------

_TITAN = re.compile(r"\b(validate )?step:\s*(\d+)\s+(?=loss:)")
_TITAN_FIELD = re.compile(rf"\b(\w+):\s*({_NUMBER})(?=%|GiB|\s|$)")
_TITAN_NAMES = {"tps": "tokens_per_s_per_gpu", "memory": "memory_gib"}


def torchtitan() -> Reader:
    """torchtitan: ``step: 10  loss:  7.1  grad_norm:  0.9  memory: 1.2GiB(3.1%)  tps: 1,234  tflops: 9  mfu: 3.1%``.

    The lines of ``MetricsProcessor`` in torchtitan/components/metrics.py (pytorch/torchtitan).
    """

    def read(line: str) -> Found | None:
        match = _TITAN.search(line)
        if not match:
            return None
        fields = _TITAN_FIELD.findall(line[match.end() :])
        given = {_TITAN_NAMES.get(name, name): value for name, value in fields}
        if match[1]:
            given = {"validation_loss": given.get("loss", "")}
        given["step"] = match[2]
        return _found(given)

    return read


SHIPPED: Mapping[str, Callable[[], Reader]] = {
    "megatron": megatron,
    "huggingface": HuggingFace,
    "litgpt": litgpt,
    "torchtitan": torchtitan,
}
