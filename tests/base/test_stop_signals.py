"""A signal stops a piece of work wherever it comes, once."""

from __future__ import annotations

import signal
import time

import pytest

from advl_pipeline.base.errors import Interrupted
from advl_pipeline.base.interruption import interruptible


class LetGo:
    """Is sent a signal while Python lets go of it, and drops whatever that raises."""

    def __init__(self, number: signal.Signals) -> None:
        self._number = number

    def __del__(self) -> None:
        signal.raise_signal(self._number)


def work(number: signal.Signals) -> None:
    with interruptible("The work", kept="all is kept"):
        LetGo(number)
        time.sleep(30)


@pytest.mark.parametrize(("number", "named"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_signal_is_not_lost_where_python_lets_go_of_an_object(number: signal.Signals, named: str) -> None:
    with pytest.raises(Interrupted, match=f"The work was stopped by {named}"):
        work(number)
