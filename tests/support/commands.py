"""The command line run in this process: words in, exit code and output out."""

from __future__ import annotations

import contextlib
import io
import shlex
import subprocess
from pathlib import Path

import pytest

from advl_cli.main import main


def exit_code(*words: object) -> int:
    """Run `advl` with these words and return its exit code."""
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    return int(stopped.value.code or 0)


def advl(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Run `advl`; return the exit code, stdout and stderr."""
    capsys.readouterr()
    code = exit_code(*words)
    both = capsys.readouterr()
    return code, both.out, both.err


def complaint(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Run `advl`; return the exit code and stderr."""
    code, _, messages = advl(capsys, *words)
    return code, messages


def printed(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> tuple[str, str]:
    """Run `advl`, require this exit code, and return stdout and stderr."""
    actual, out, messages = advl(capsys, *words)
    assert actual == code, messages
    assert "Traceback" not in messages
    return out, messages


def advised(message: str) -> list[list[str]]:
    """Return the words of each command that an error advises on its line `next:`."""
    line = message.partition("next:")[2].strip().splitlines()[0].partition("   (")[0]
    return [shlex.split(step) for step in line.split("&&")]


def completed(*words: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `advl` in a folder like a separate process, without the startup time of five seconds."""
    out, messages = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(messages),
    ):
        code = exit_code(*words)
    return subprocess.CompletedProcess(["advl", *map(str, words)], code, out.getvalue(), messages.getvalue())
