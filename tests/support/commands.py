"""The command line in this process: what a test types, and what it gets."""

from __future__ import annotations

import pytest

from advl_cli.main import main


def exit_code(*words: object) -> int:
    """Run `advl` with these words; return its exit code."""
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    return int(stopped.value.code or 0)


def advl(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Return the exit code, and what was printed on stdout and on stderr."""
    capsys.readouterr()
    code = exit_code(*words)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def complaint(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Return the exit code, and what was printed on stderr."""
    code, _, told = advl(capsys, *words)
    return code, told
