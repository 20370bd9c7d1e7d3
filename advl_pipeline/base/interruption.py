"""Signals that stop a command: Ctrl-C and SIGTERM become one error that says how to resume.

An extraction stops at once, for all that it committed is kept. A training first ends the step that it is at and
writes its checkpoint (`finishing`). Job queues preempt by SIGTERM, so it is no other than Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from advl_pipeline.base.errors import Interrupted

_STOPPING = (signal.SIGINT, signal.SIGTERM)

_SECONDS_TO_LET_GO = 0.05


class Stop(KeyboardInterrupt):
    """What a signal raises. Of `KeyboardInterrupt` itself Python remembers that an extension module met it.

    It would then end by SIGINT instead of the exit code, however the error was handled.
    """


class _Process:
    """What this process knows of signals; handlers run in its main thread only."""

    listens: bool = False
    holds_back: bool = False
    asked_by: str = ""
    """The first signal that came, in words; "" as long as none did."""

    def take(self, number: int, frame: FrameType | None) -> None:
        """Note a signal, and raise where the process does not hold it back."""
        del frame
        is_first = not self.asked_by
        if is_first:
            self.asked_by = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        # Queues and parents send SIGTERM more than once; who types Ctrl-C again does not want to wait.
        if not self.holds_back if is_first else number == signal.SIGINT:
            raise Stop


_process = _Process()


@contextmanager
def interruptible(what: str, *, kept: str) -> Iterator[None]:
    """Turn SIGTERM and Ctrl-C inside the block into `Interrupted`, at once unless a block inside is `finishing`.

    Args:
        what: of whom the message speaks, such as "The extraction".
        kept: what is not lost, a clause.
    """
    try:
        with listening(), _holding_back(False):
            if _process.asked_by:
                raise Stop
            yield
    except KeyboardInterrupt:
        raise Interrupted(f"{what} was stopped by {_process.asked_by or 'Ctrl-C'}.", why=kept) from None
    finally:
        if not _process.listens:
            _process.asked_by = ""


@contextmanager
def finishing() -> Iterator[Callable[[], bool]]:
    """Hold signals back inside the block; yields what tells whether one came, to be asked between two steps.

    Who is told so leaves the block by `Stop`, which the block raises by itself where it ends first. A
    second Ctrl-C ends it at once.
    """
    with _holding_back(True):
        yield lambda: bool(_process.asked_by)
    if _process.asked_by:
        raise Stop


@contextmanager
def listening() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C inside the block, where it runs in the main thread."""
    if _process.listens or threading.current_thread() is not threading.main_thread():
        yield
        return
    before, report = {number: signal.getsignal(number) for number in _STOPPING}, sys.unraisablehook

    def take_again(dropped: sys.UnraisableHookArgs) -> None:
        # Python drops what is raised while it lets go of an object: the signal comes once more, behind that.
        if not isinstance(dropped.exc_value, Stop):
            report(dropped)
            return
        number = signal.SIGINT if _process.asked_by == "Ctrl-C" else signal.SIGTERM
        _process.asked_by = ""
        threading.Timer(_SECONDS_TO_LET_GO, os.kill, (os.getpid(), number)).start()

    try:
        sys.unraisablehook = take_again
        _listen()
        yield
    finally:
        _process.listens = False
        sys.unraisablehook = report
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def hold_back_for_good() -> None:
    """Let no signal end this process but inside of an `interruptible` piece of work; a second Ctrl-C does.

    So a worker waits for its next piece of work, and a command that has its outcome exits with it.
    """
    _listen()
    _process.holds_back = True


def ignore_for_good() -> None:
    """Have this process, which has nothing left to do, ignore signals to its end."""
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _listen() -> None:
    _process.listens = True
    for number in _STOPPING:
        # A shell that puts a command into the background has it ignore Ctrl-C.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _process.take)


@contextmanager
def _holding_back(holds_back: bool) -> Iterator[None]:
    before, _process.holds_back = _process.holds_back, holds_back
    try:
        yield
    finally:
        _process.holds_back = before
