"""Where a cache lies: a folder of this machine, or a URL of an object store."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

from advl_pipeline.errors import ConfigError

SCHEMES = ("s3", "gs")
"""Object stores; `file://` is understood too and means a folder."""

_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://(.*)$", re.DOTALL)


class Url(str):
    """A prefix in a bucket, such as `s3://bucket/caches/clip-vit-l`: no credentials, no slash at the end."""

    __slots__ = ()

    @property
    def scheme(self) -> str:
        return self.partition("://")[0]

    @property
    def bucket(self) -> str:
        return self.partition("://")[2].partition("/")[0]

    @property
    def prefix(self) -> str:
        """What the names of all objects begin with, without the slash that follows it."""
        return self.partition("://")[2].partition("/")[2]


Location = Path | Url


def parse_location(text: str | os.PathLike[str]) -> Location:
    """Return the folder or the URL that a user named.

    Raises:
        ConfigError: a URL of another scheme, without bucket or prefix, or with credentials in it.
    """
    if isinstance(text, Url):
        return text
    matched = _URL.match(os.fspath(text))
    if matched is None:
        return Path(text)
    scheme, rest = matched[1].lower(), matched[2]
    if scheme == "file":
        if not rest.startswith("/"):
            raise ConfigError("A file:// URL names a folder by its absolute path.", where=f"file://{rest}")
        return Path(unquote(rest))
    if "@" in rest or "?" in rest or "#" in rest:
        # Not shown: it may hold a secret.
        raise ConfigError(
            "The URL of a cache is only scheme, bucket and prefix.",
            where=f"{scheme}://...",
            why="credentials come from the environment, never from the URL",
            next_command="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or GOOGLE_APPLICATION_CREDENTIALS",
        )
    parts = rest.rstrip("/").split("/")
    if scheme not in SCHEMES:
        raise ConfigError(
            f"Caches cannot lie in a {scheme}:// store.", where=f"{scheme}://{rest}", why="known: s3, gs, file"
        )
    if len(parts) < 2 or any(part in ("", ".", "..") for part in parts):
        raise ConfigError("The URL of a cache names a bucket and a prefix in it.", where=f"{scheme}://{rest}")
    return Url(f"{scheme}://{'/'.join(parts)}")


def local_folder(location: Location, *, what: str) -> Path:
    """Return the path, or say that the option `what` takes no URL; raises `ConfigError`."""
    if isinstance(location, Url):
        raise ConfigError(
            f"{what} must be a path of this machine.",
            where=str(location),
            next_command="copy it here first; a cache under a URL is the same files as in a folder",
        )
    return location
