"""Locations: folders, URLs of object stores, regular files, and whether the model hub is reachable."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BytesIO
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies

from advl_pipeline.base.errors import ConfigError, NotAllowed, advise, again

SCHEMES = ("s3", "gs")
"""URL schemes of object stores; `file://` is accepted too and means a folder."""

TIMEOUT_SECONDS = 10.0
"""Timeout after which the hub counts as unreachable, instead of half a minute of retries."""

_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://(.*)$", re.DOTALL)


class Url(str):
    """A prefix in a bucket, such as `s3://bucket/caches/clip-vit-l`, without credentials or a trailing slash."""

    __slots__ = ()

    @property
    def scheme(self) -> str:
        return self.partition("://")[0]

    @property
    def bucket(self) -> str:
        return self.partition("://")[2].partition("/")[0]

    @property
    def prefix(self) -> str:
        """The common prefix of all object names, without the trailing slash."""
        return self.partition("://")[2].partition("/")[2]


Location = Path | Url


def user_cache() -> Path:
    """Return the user's cache folder, for files that can be regenerated."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "advl"


def parse_location(text: str | os.PathLike[str]) -> Location:
    """Return the folder or URL named by the user.

    Raises:
        ConfigError: the URL has an unsupported scheme, lacks a bucket or prefix, or contains credentials; or no path
            can have one of its characters.
    """
    if isinstance(text, Url):
        return text
    if "\0" in os.fspath(text):
        raise ConfigError("A path cannot contain the character \\0.", where=repr(os.fspath(text)))
    matched = _URL.match(os.fspath(text))
    if matched is None:
        return Path(text)
    scheme, rest = matched[1].lower(), matched[2]
    if scheme == "file":
        if not rest.startswith("/"):
            raise ConfigError("A file:// URL needs an absolute path.", where=f"file://{rest}")
        return Path(unquote(rest))
    if "@" in rest or "?" in rest or "#" in rest:
        # Not shown: it may contain a secret.
        raise ConfigError(
            "The URL of a cache is SCHEME://BUCKET/PREFIX, without credentials or parameters.",
            where=f"{scheme}://...",
            why="credentials come from the environment, never from the URL",
            next_command="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or GOOGLE_APPLICATION_CREDENTIALS",
        )
    parts = rest.rstrip("/").split("/")
    if scheme not in SCHEMES:
        raise ConfigError(
            f"Caches cannot be in a {scheme}:// store.", where=f"{scheme}://{rest}", why="known: s3, gs, file"
        )
    if len(parts) < 2 or any(part in ("", ".", "..") for part in parts):
        raise ConfigError("The URL of a cache needs a bucket and a prefix.", where=f"{scheme}://{rest}")
    return Url(f"{scheme}://{'/'.join(parts)}")


def local_folder(location: Location, *, what: str) -> Path:
    """Return the path; raises `ConfigError` if it is a URL, which the option `what` does not accept."""
    if isinstance(location, Url):
        raise ConfigError(
            f"{what} must be a path of this machine.",
            where=str(location),
            next_command="copy it here first; a cache under a URL is the same files as in a folder",
        )
    return location


def not_allowed(path: Path, needs: int = os.R_OK) -> NotAllowed:
    """Return the error of a path that this user may not use, with the owner of the file or folder that is closed.

    Args:
        needs: the permission to use the file itself, as for `os.access`.
    """
    import pwd

    path = path.absolute()
    closed = next((folder for folder in reversed(path.parents) if not os.access(folder, os.X_OK)), path)
    if closed == path and (os.access(path, needs) or not os.path.lexists(path)):
        closed = path.parent  # A new file needs a folder that can be written.
    status = closed.stat()
    try:
        owner = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        owner = f"user {status.st_uid}"
    advice = again(f"ask {owner} for access or for a copy, then run the same command again")
    if status.st_uid == os.getuid():
        advice = advise(["chmod", "u+rwX", str(closed)], again=())
    mode = stat.S_IMODE(status.st_mode)
    what = "This user has no permission for a file or folder."
    return NotAllowed(
        what, where=str(path), why=f"{closed} belongs to {owner} (mode {mode:04o})", next_command=advice
    )


@contextmanager
def allowed(path: Path) -> Iterator[None]:
    """Turn a refusal by the system inside the block into `NotAllowed`, which names the owner of the path."""
    try:
        yield
    except PermissionError as error:
        raise not_allowed(Path(error.filename or path)) from error


def status_of(path: Path) -> os.stat_result:
    """Return the status of a file.

    Raises:
        NotAllowed: this user may not look at it.
        OSError: it is missing.
    """
    with allowed(path):
        return path.stat()


def regular_file(path: Path, *, buffering: int = -1) -> BufferedReader:
    """Open a regular file for reading: opening a pipe could block, and reading a device may never end.

    A file of no length is read as empty: of the kernel's files, which have none, some never end.

    Raises:
        NotAllowed: this user may not read the file.
        OSError: the path is not a regular file, or cannot be opened.
    """
    status = status_of(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    if not status.st_size:
        return BufferedReader(BytesIO())
    with allowed(path):
        return path.open("rb", buffering)  # type: ignore[return-value]  # Never unbuffered.


def read_regular(path: Path) -> bytes:
    """Return the contents of a file; raises the errors of `regular_file`."""
    with regular_file(path) as file:
        return file.read()


def is_server(url: str) -> bool:
    """Return whether a text is the URL of a server, such as http://host:9000."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.isprintable()
    except ValueError:
        return False  # The port is no number, or a bracket is open.


def hub_obstacle() -> str:
    """Return why the hub cannot be reached, or "" if it is worth trying.

    A configured proxy is assumed to reach it.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if "https" in getproxies():
        return ""
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if not is_server(endpoint):
        return "HF_ENDPOINT is not the URL of a server, such as https://huggingface.co"
    address = urlsplit(endpoint)
    host, port = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT_SECONDS):
            return ""
    except OSError as error:
        return f"{host} cannot be reached: {error.strerror or error}"
