"""Signals that stop a command: Ctrl-C and SIGTERM raise a `KeyboardInterrupt` that says what was stopped.

It is no `AdvlError`, so that a loop over runs that goes on after an error ends. The command line adds how to resume.
An extraction stops immediately, since its commits are kept. A training first finishes the current step and writes a
checkpoint (`finishing`). Job queues preempt with SIGTERM, so it is handled like Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_STOPPING = (signal.SIGINT, signal.SIGTERM)

_SECONDS_TO_LET_GO = 0.05


class Stop(KeyboardInterrupt):
    """The exception raised by a signal; outside of `interruptible`, its arguments are what was stopped and is kept.

    After a plain `KeyboardInterrupt` in an extension module, Python would exit by SIGINT instead of with the exit
    code, even if the error was handled.
    """

    def __str__(self) -> str:
        return ": ".join(self.args)


class _Process:
    """The signal state of this process; handlers run in its main thread only."""

    listens: bool = False
    holds_back: bool = False
    asked_by: str = ""
    """The first signal received, in words; "" if none was."""

    def take(self, number: int, frame: FrameType | None) -> None:
        """Record a signal, and raise unless signals are held back."""
        del frame
        is_first = not self.asked_by
        if is_first:
            self.asked_by = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        # Queues and parents send SIGTERM more than once; a user who types Ctrl-C again does not want to wait.
        if not self.holds_back if is_first else number == signal.SIGINT:
            raise Stop


_process = _Process()


@contextmanager
def interruptible(what: str, *, kept: str) -> Iterator[None]:
    """Turn SIGTERM and Ctrl-C inside the block into `Stop`, immediately unless a nested block is `finishing`.

    Args:
        what: the subject of the message, such as "The extraction".
        kept: a clause that states what is preserved.
    """
    try:
        with listening(), _holding_back(False):
            if _process.asked_by:
                raise Stop
            yield
    except KeyboardInterrupt as stopped:
        if isinstance(stopped, Stop) and stopped.args:
            raise
        raise Stop(f"{what} was stopped by {_process.asked_by or 'Ctrl-C'}", kept) from None
    finally:
        if not _process.listens:
            _process.asked_by = ""


@contextmanager
def finishing() -> Iterator[Callable[[], bool]]:
    """Hold signals back inside the block; yields a function to call between steps, which tells whether one arrived.

    The caller then leaves the block by raising `Stop`; the block raises it itself if it ends first. A second Ctrl-C
    ends the block immediately.
    """
    with _holding_back(True):
        yield lambda: bool(_process.asked_by)
    if _process.asked_by:
        raise Stop


@contextmanager
def listening() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C inside the block, if it runs in the main thread."""
    if _process.listens or threading.current_thread() is not threading.main_thread():
        yield
        return
    before, report = {number: signal.getsignal(number) for number in _STOPPING}, sys.unraisablehook

    def take_again(dropped: sys.UnraisableHookArgs) -> None:
        # Python drops exceptions raised while an object is finalised, so the signal is sent again afterwards.
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
    """Let signals end this process only inside `interruptible` work; a second Ctrl-C always does.

    A worker thus waits for its next task, and a finished command exits with its own exit code.
    """
    _listen()
    _process.holds_back = True


def ignore_for_good() -> None:
    """Make this process, which has nothing left to do, ignore signals until it exits."""
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _listen() -> None:
    _process.listens = True
    for number in _STOPPING:
        # A shell makes background commands ignore Ctrl-C.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _process.take)


@contextmanager
def _holding_back(holds_back: bool) -> Iterator[None]:
    before, _process.holds_back = _process.holds_back, holds_back
    try:
        yield
    finally:
        _process.holds_back = before
