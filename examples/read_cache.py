"""The cache format in 50 lines of zarr and NumPy, without ADVL. python examples/read_cache.py CACHE"""

import json
import sys
from pathlib import Path

import numpy as np
import zarr


def open_whole(cache):
    """Return the final record of a cache after checking the size of every file against it."""
    record = cache / "records" / "complete.json"
    if not record.is_file():
        raise SystemExit(f"{cache} is no finished cache: {record.name} is missing")
    complete = json.loads(record.read_text())
    for name, (num_bytes, _) in complete["files"].items():
        if (cache / name).stat().st_size != num_bytes:  # A missing shard would read as zeros.
            raise SystemExit(f"{cache / name} does not have {num_bytes} bytes")
    return complete


class Features:
    """Features of one modality by unit id, 32 hexadecimal digits derived from a picture's or a text's content."""

    def __init__(self, cache, modality, complete):
        self.group = zarr.open_group(cache / modality, mode="r")
        ids = [bytes(row).hex() for row in self.group["unit_id"][:]]
        self.row_of = {name: row for row, name in enumerate(ids) if name not in complete["quarantined"][modality]}
        self.is_coded = (cache / modality / "tokens" / "scales").is_dir()

    def vector(self, unit_id):
        """Return the global feature of a unit, (D,)."""
        return self.group["global"][self.row_of[unit_id]]

    def tokens(self, unit_id):
        """Return the token features (word pieces, boxes or grid patches), (T, D), if the cache stores any."""
        row = self.row_of[unit_id]
        start = int(self.group["tokens/starts"][row])
        rows = slice(start, start + int(self.group["tokens/lengths"][row]))
        values = self.group["tokens/values"][rows]
        return (values * self.group["tokens/scales"][rows][:, None]).astype(np.float16) if self.is_coded else values


if __name__ == "__main__":
    complete = open_whole(cache := Path(sys.argv[1]))
    for modality in complete["quarantined"]:
        features = Features(cache, modality, complete)
        first = next(iter(features.row_of))
        print(modality, len(features.row_of), "units; the first has", features.vector(first).shape)
