"""Synthetic features with the interface of a cache's store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class HeldFeatures:
    """Features by unit id, in half precision."""

    def __init__(
        self,
        rows: Mapping[str, Any],
        tokens: Mapping[str, Any],
        *,
        moments: tuple[float, float] | None = None,
    ) -> None:
        """Store global features and token features.

        Args:
            rows: unit -> (D,).
            tokens: unit -> (M, D).
            moments: mean and variance of every dimension; by default computed from the stored features.
        """
        self._rows = {unit: np.asarray(row, np.float16) for unit, row in rows.items()}
        self._tokens = {unit: np.asarray(rows, np.float16) for unit, rows in tokens.items()}
        self.has_tokens = bool(tokens)
        for name, held in (("global", np.stack(list(rows.values()))), ("token", [*tokens.values()])):
            if not len(held):
                continue
            every = np.asarray(held if name == "global" else np.concatenate(held), np.float32)
            mean, variance = (every.mean(0), every.var(0)) if moments is None else moments
            width = every.shape[1]
            setattr(self, f"{name}_dim", width)
            setattr(self, f"{name}_mean", np.full(width, mean, np.float32))
            setattr(self, f"{name}_variance", np.full(width, variance, np.float32))

    def global_features(self, ids: Sequence[str]) -> Any:
        return np.stack([self._rows[unit] for unit in ids])

    def token_lengths(self, ids: Sequence[str]) -> Any:
        return np.array([len(self._tokens[unit]) for unit in ids], np.int32)

    def token_features(self, ids: Sequence[str]) -> Any:
        return np.concatenate([self._tokens[unit] for unit in ids]), self.token_lengths(ids)

    def stored_tokens(self, ids: Sequence[str]) -> Any:
        rows, lengths = self.token_features(ids)
        return rows, None, lengths

    def begin_epoch(self) -> None: ...

    def announce(self, ids: Sequence[str]) -> None: ...
