"""What was made lately, kept up to a bound; several threads may ask at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class RecentlyUsed(Generic[Item]):
    """Items by name, the least recently used out first; `max_items` are kept."""

    def __init__(self, max_items: int) -> None:
        self._max_items = max_items
        self._kept: OrderedDict[str, Item] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str, make: Callable[[], Item]) -> Item:
        """Return the item of a name, made if it is not kept; threads that ask for one at once may each make it."""
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        item = make()
        with self._lock:
            self._kept[name] = item
            if len(self._kept) > self._max_items:
                self._kept.popitem(last=False)
        return item

    def __reduce__(self) -> tuple[object, ...]:
        # A lock does not travel between processes, nor need what can be made again.
        return RecentlyUsed, (self._max_items,)
