"""How formats name the picture that a file of the dataset is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from advl_pipeline.errors import ConfigError

Naming = Literal["number", "stem", "uniter"]
"""number  "9": the number that ends the file's name (BUTD's TSV and HDF5).
stem    "COCO_val2014_000000000009": the file's name without its suffix (LXMERT's TSV, files per picture).
uniter  "coco_val2014_000000000009", "flickr30k_000000000009", "vcr_val_<stem>", "vcr_gt_val_<stem>"."""

_LAST_NUMBER = re.compile(r"(\d+)$")
_COCO = re.compile(r"COCO_(?P<subtype>[a-z]+\d{4})_(?P<number>\d{12})")


def name_of(picture: Path, naming: Naming, *, vcr_prefix: str = "") -> str:
    """Return a picture's name in a format.

    Args:
        picture: file of the picture.
        naming: see `Naming`.
        vcr_prefix: for UNITER's files of VCR, such as "vcr_val_" or "vcr_gt_val_".

    Raises:
        ConfigError: the file's name does not fit the naming.
    """
    stem = picture.stem
    if naming == "stem":
        return stem
    number = _LAST_NUMBER.search(stem)
    if naming == "number" and number:
        return str(int(number[1]))
    if naming == "uniter":
        if coco := _COCO.fullmatch(stem):
            return f"coco_{coco['subtype']}_{coco['number']}"
        if stem.isdecimal():
            return f"flickr30k_{int(stem):012d}"
        if vcr_prefix:
            return vcr_prefix + stem
    raise ConfigError(f"The naming {naming!r} does not fit a picture.", where=str(picture))
