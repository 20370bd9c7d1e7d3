"""The `imgid2idx.pkl` beside BUTD's HDF5 files, read without unpickling.

A pickle is a program; running one that a stranger wrote runs what the stranger wants. This one is a dictionary from
whole numbers to whole numbers, and the opcodes that write such a dictionary are few: they are walked, not executed,
and any other opcode is refused.
"""

from __future__ import annotations

import pickletools
from pathlib import Path

from advl_pipeline.errors import DatasetError

_NUMBERS = frozenset({"INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1"})
_STRUCTURE = frozenset(
    "PROTO FRAME MARK DICT EMPTY_DICT PUT BINPUT LONG_BINPUT MEMOIZE SETITEM SETITEMS STOP".split()
)


def read_number_dictionary(path: Path) -> dict[int, int]:
    """Read a pickled dictionary of whole numbers.

    Raises:
        DatasetError: missing, or it holds anything else.
    """
    try:
        operations = [(code.name, argument) for code, argument, _ in pickletools.genops(path.read_bytes())]
    except OSError as error:
        raise _refuse(path, error.strerror or "it cannot be read") from None
    except (ValueError, IndexError, OverflowError) as error:
        raise _refuse(path, f"not a pickle: {error}") from None
    numbers: list[int] = []
    for name, argument in operations:
        if name in _NUMBERS and isinstance(argument, int) and not isinstance(argument, bool):
            numbers.append(argument)
        elif name not in _STRUCTURE:
            raise _refuse(path, f"it holds more than whole numbers (pickle opcode {name})")
    keys, values = numbers[::2], numbers[1::2]
    if len(numbers) % 2 or len(set(keys)) != len(keys):
        raise _refuse(path, "it is not a dictionary from whole numbers to whole numbers")
    return dict(zip(keys, values, strict=True))


def _refuse(path: Path, why: str) -> DatasetError:
    return DatasetError("The index of region features cannot be used.", where=str(path), why=why)
