"""The command line in this process: what a test types, and what it gets."""

from __future__ import annotations

import contextlib
import io
import subprocess
from pathlib import Path

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
    both = capsys.readouterr()
    return code, both.out, both.err


def complaint(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Return the exit code, and what was printed on stderr."""
    code, _, messages = advl(capsys, *words)
    return code, messages


def printed(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> tuple[str, str]:
    """Return what was printed on stdout and on stderr by a command that must end with this code, in words."""
    actual, out, messages = advl(capsys, *words)
    assert actual == code, messages
    assert "Traceback" not in messages
    return out, messages


def completed(*words: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `advl` with these words in a folder as a process of its own would, without its start of five seconds."""
    out, messages = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(messages),
    ):
        code = exit_code(*words)
    return subprocess.CompletedProcess(["advl", *map(str, words)], code, out.getvalue(), messages.getvalue())
