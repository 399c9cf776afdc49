"""The parent of a supervisor: starts it again, in the same allocation, when it is killed.

A supervisor that the kernel ends for want of memory would otherwise take the whole job with it: Slurm ends a job with
its batch process, and does not queue it again. The keeper does next to nothing, so that nothing happens to it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable

from hpc.attempt import KEEPER, SUPERVISOR_DIED
from hpc.processes import end_with_parent

RESTARTS = 5
HANDED_ON = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


def keep(work: Callable[[], int]) -> int:
    """Call ``work`` in a child process, and again when a signal ends that. Returns its exit status."""
    keeper = Keeper(work)
    for number in HANDED_ON:
        signal.signal(number, keeper.hand_on)
    signal.signal(signal.SIGCONT, signal.SIG_IGN)
    return keeper.run()


class Keeper:
    def __init__(self, work: Callable[[], int]) -> None:
        self.work = work
        self.child = 0
        self.ending = False

    def hand_on(self, number: int, frame: object) -> None:
        self.ending |= number != signal.SIGUSR2
        if self.child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.child, number)

    def run(self) -> int:
        for attempt in range(RESTARTS + 1):
            status = self._wait(self._start())
            if not os.WIFSIGNALED(status):
                return os.waitstatus_to_exitcode(status)
            died = os.WTERMSIG(status)
            if self.ending or attempt == RESTARTS:
                return 128 + died
            os.environ[SUPERVISOR_DIED] = signal.Signals(died).name
            print(f"hpc: the supervisor was ended by {signal.Signals(died).name}; starting another", flush=True)
            time.sleep(1.0)
        raise AssertionError("not reached")

    def _start(self) -> int:
        # A signal between the fork and the note of the child's number would be handed to nobody.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)
        os.environ[KEEPER] = str(os.getpid())
        self.child = os.fork()
        if self.child == 0:
            self._become(before)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self.child

    def _become(self, mask: set[signal.Signals] | set[int]) -> None:
        """The child: ends with the keeper, and does the work."""
        code = 1
        try:
            end_with_parent(signal.SIGKILL)
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # until the supervisor handles it
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            code = self.work()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _wait(self, child: int) -> int:
        _, status = os.waitpid(child, 0)
        self.child = 0
        return status
