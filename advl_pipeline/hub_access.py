"""Whether the model hub can be reached, found out in a moment instead of through half a minute of retries."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

TIMEOUT_SECONDS = 10.0


def hub_obstacle() -> str:
    """Return why the hub cannot be reached from here, or "" when nothing speaks against trying.

    A proxy is trusted to reach it.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if "https" in getproxies():
        return ""
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    host, port = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT_SECONDS):
            return ""
    except OSError as error:
        return f"{host} cannot be reached: {error.strerror or error}"
