"""A batch that several processes share: what relates its items to one another needs the items of all of them.

The loss code asks `Everywhere` for the rows of the whole batch and need not know whether there are other processes.
"""

from __future__ import annotations

from typing import Protocol

import torch


class Everywhere(Protocol):
    """Gives each process the rows of all of them."""

    def rows(self, values_X: torch.Tensor) -> torch.Tensor:
        """Return the rows of all processes, in their order, with gradients to the process that each is of.

        Gradients of what the processes compute of them are added up. The rows may be of another number in each
        process; their other axes, and the type of the values, are alike.
        """
        ...

    def own(self, values_Y: torch.Tensor, like_X: torch.Tensor) -> torch.Tensor:
        """Return this process's part of rows of all processes, of as many as its `like_X` has."""
        ...


class Alone:
    """One process: its rows are all there are."""

    def rows(self, values_X: torch.Tensor) -> torch.Tensor:
        return values_X

    def own(self, values_Y: torch.Tensor, like_X: torch.Tensor) -> torch.Tensor:
        return values_Y


ALONE = Alone()
