"""Word to people when a run has ended: JSON to a webhook or a file, a mail. Never fails or holds up a run.

A webhook's address is a secret: it may be given as env:NAME or file:PATH, and is never printed. Compute nodes often
reach nothing outside; that is one line in the run's log.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hpc.config import Config, NotifyConfig
from hpc.runs import Run
from monitoring.text import clean

if TYPE_CHECKING:
    from email.message import EmailMessage

PATIENCE = 10.0  # seconds that all of it may take
SENDMAIL = "/usr/sbin:/usr/lib:/usr/bin"  # where it lies on many systems, whatever PATH says


class NotSent(Exception):
    """Why a message was not delivered, in words without secrets."""


def ended(run: Run, config: Config, say: Callable[[str], None], patience: float = PATIENCE) -> None:
    """Tell whoever asked for it that the run has ended, as its folder says. Returns within ``patience`` seconds."""
    given = config.notify
    if not anybody(given):
        return
    try:
        message = payload(run, config)
        if message["state"] not in [end.name for end in given.on]:
            return
        send(given, message, say, patience)
    except Exception as error:  # nothing of this is worth a run
        say(f"no notification: {type(error).__name__}")


def anybody(given: NotifyConfig) -> bool:
    """Whether anybody is to be told."""
    return bool(given.webhook or given.mail or given.file)


def send(given: NotifyConfig, message: dict[str, Any], say: Callable[[str], None], patience: float = PATIENCE) -> bool:
    """Send a message everywhere that is asked for, and say what became of it. Returns within ``patience`` seconds.

    Returns whether it reached somebody.
    """
    ways: dict[str, Callable[[], None]] = {}
    if given.webhook:
        ways["notify.webhook"] = partial(post, given.webhook, message, patience)
    if given.mail:
        ways["notify.mail"] = partial(mail, given, message, patience)
    if given.file:
        ways["notify.file"] = partial(append, Path(message["folder"]) / Path(given.file).expanduser(), message)
    return _side_by_side(ways, say, patience)


def _side_by_side(ways: dict[str, Callable[[], None]], say: Callable[[str], None], patience: float) -> bool:
    results: dict[str, str] = {}

    def attempt(name: str, way: Callable[[], None]) -> None:
        try:
            way()
            results[name] = "sent"
        except NotSent as error:
            results[name] = f"not sent: {error}"
        except Exception as error:  # its text may hold the address
            results[name] = f"not sent: {type(error).__name__}"

    # Looking up a name knows no time limit, so nobody waits for the threads themselves.
    threads = [threading.Thread(target=attempt, args=each, daemon=True) for each in ways.items()]
    end = time.monotonic() + patience
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    for name in ways:
        say(f"{name}: {results.get(name, f'not sent: no answer within {patience:.0f} s')}")
    return "sent" in results.values()


def payload(run: Run, config: Config) -> dict[str, Any]:
    """What is told of a run. ``text`` is what chat services show of a webhook's message."""
    from hpc.compare import outcome

    state, known = run.state(), outcome(run)
    word = "finished" if run.finished else str(state.get("state", "unknown"))
    reason = str(state.get("reason") or "")
    following = f"hpc status {run.id}" if word == "finished" else f"hpc logs {run.id}; to go on: hpc resume {run.id}"
    emulated = bool(state.get("emulated"))
    where = config.cluster.name + (" (EMULATED)" if emulated else "")
    text = f"{run.name}/{run.id} is {word} on {where}" + (f": {reason}" if reason else "")
    if "step" in known:
        text += f". Step {known['step']}" + (f", loss {known['loss']:.4g}" if _number(known.get("loss")) else "")
    return {
        "run": run.id,
        "name": run.name,
        "state": word,
        "reason": reason,
        "step": known.get("step"),
        "tokens": known.get("tokens"),
        "loss": known["loss"] if _number(known.get("loss")) else None,
        "cluster": config.cluster.name,
        "emulated": emulated,
        "job_id": run.job_id,
        "attempt": state.get("attempt"),
        "host": socket.gethostname(),
        "folder": str(run.folder),
        "next": following,
        "text": text,
    }


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and value == value and abs(value) != float("inf")


# -- ways --------------------------------------------------------------------------------------------------------


def address(given: str) -> str:
    """A webhook's address: as it is, or from where env:NAME and file:PATH say.

    Raises:
        NotSent: if there is none.
    """
    kind, _, rest = given.partition(":")
    if kind == "env":
        found = os.environ.get(rest, "").strip()
        if not found:
            raise NotSent(f"{rest} is not set in the job's environment")
        return found
    if kind == "file":
        try:
            return Path(rest).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise NotSent(f"{rest} cannot be read: {getattr(error, 'strerror', None) or 'no text'}") from None
    return given


def post(given: str, message: dict[str, Any], timeout: float) -> None:
    """
    Raises:
        NotSent: if the webhook cannot be reached, or does not take the message.
    """
    import urllib.error
    import urllib.request

    url = address(given)
    if not url.startswith(("http://", "https://")):
        raise NotSent("what is given is no http(s) address")
    body = json.dumps(_as_taken(url, message)).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", "User-Agent": "hpc"})
    try:
        with urllib.request.urlopen(request, timeout=timeout):
            pass
    except urllib.error.HTTPError as error:
        raise NotSent(f"it answered with status {error.code}") from None
    except urllib.error.URLError as error:
        why = error.reason
        raise NotSent(f"it cannot be reached ({getattr(why, 'strerror', None) or type(why).__name__})") from None


def _as_taken(url: str, message: dict[str, Any]) -> dict[str, Any]:
    """The message as the service behind an address takes it: Slack and Mattermost show text, Discord content."""
    host = urlsplit(url).hostname or ""
    if host == "hooks.slack.com":
        return {"text": message["text"]}  # it refuses fields that it does not know
    if host in ("discord.com", "discordapp.com"):
        return {"content": message["text"][:2000]}
    return message


def append(path: Path, message: dict[str, Any]) -> None:
    """One line by one write, so that those of several runs do not mix.

    Raises:
        NotSent: if the file cannot be written.
    """
    line = json.dumps({"time": time.time(), **message}).encode() + b"\n"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            os.write(handle, line)
        finally:
            os.close(handle)
    except OSError as error:
        raise NotSent(f"{path}: {error.strerror}") from None


def mail(given: NotifyConfig, message: dict[str, Any], timeout: float) -> None:
    """
    Raises:
        NotSent: if nothing here takes mail.
    """
    letter = compose(given.mail or "", message)
    program = None if given.smtp else shutil.which("sendmail", path=f"{os.environ.get('PATH', '')}:{SENDMAIL}")
    if program:
        words = [program, "-t", "-oi"]
        try:
            done = subprocess.run(words, input=letter.as_bytes(), capture_output=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            raise NotSent("sendmail did not answer") from None
        if done.returncode:
            raise NotSent(f"sendmail ended with status {done.returncode}")
        return
    import smtplib

    host, _, port = (given.smtp or "localhost").partition(":")
    try:
        with smtplib.SMTP(host, int(port or 25), timeout=timeout) as server:
            server.send_message(letter)
    except (OSError, smtplib.SMTPException) as error:
        raise NotSent(f"{host} takes no mail ({getattr(error, 'strerror', None) or type(error).__name__})") from None


def compose(to: str, message: dict[str, Any]) -> EmailMessage:
    """The mail that says so."""
    from email.message import EmailMessage

    letter = EmailMessage()
    letter["To"] = to
    letter["From"] = f"hpc@{socket.getfqdn()}"
    what = message.get("title") or f"is {message['state']}"
    letter["Subject"] = clean(f"[hpc] {message['name']}/{message['run']}: {what}")
    shown = [f"{key}: {value}" for key, value in message.items() if key != "text" and value not in (None, "")]
    letter.set_content("\n".join([message["text"], "", *shown]) + "\n")
    return letter
