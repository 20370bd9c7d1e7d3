"""TOML from untrusted sources: input that would crash the parser, or take it hours, is refused."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.base.locations import read_regular

_MOST_KEY_PARTS = 64
_LONG_NUMBER = re.compile(r"\b0[box]\w{1000}")
_LONG_KEY = re.compile(rf"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){{{_MOST_KEY_PARTS}}}""")


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML from an untrusted source.

    Raises:
        ValueError: the text is not TOML, is nested too deeply, has a key with more parts than the parser handles in
            reasonable time, or a number with more digits than Python prints.
    """
    if _LONG_NUMBER.search(text):
        raise ValueError("a number has too many digits")
    if _LONG_KEY.search(text):
        raise ValueError(f"a key has more than {_MOST_KEY_PARTS} parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; a parse error names the file and position."""
    try:
        return parse_toml(read_regular(path).decode("utf-8"))
    except OSError as error:
        what, why = "The configuration file cannot be read.", error.strerror or ""
    except ValueError as error:
        what, why = "The configuration file is not valid TOML.", str(error)
    raise ConfigError(what, where=str(path), why=why)
