"""Random sequences of extracting, stopping, damaging, verifying, repairing and pruning keep the invariants."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tiny_extraction import TinyDataset, tiny_config, tiny_extract, tiny_teacher, tree_bytes

from advl_pipeline.cache.config import PruneConfig
from advl_pipeline.cache.prune import run_prune
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.verify import verify_cache
from advl_pipeline.errors import CorruptCache
from advl_pipeline.extraction.repair import repair
from advl_pipeline.extraction.run import extract
from advl_pipeline.teachers.interface import EncodedBatch, Teacher


class StoppedError(Exception):
    """Stands for whatever ends a process between two batches."""


class _StoppingTower:
    """A tower that ends the run after some batches."""

    def __init__(self, tower: Any, batches: int) -> None:
        self._tower, self._left = tower, batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tower, name)

    def encode(self, units: Any) -> EncodedBatch:
        self._left -= 1
        if self._left < 0:
            raise StoppedError
        return self._tower.encode(units)


class CacheMachine(RuleBasedStateMachine):
    """The model is one word: absent, unfinished, sound or damaged."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.cache = self.folder / "cache"
        self.state = "absent"
        self.expected: dict[str, bytes] = {}

    @initialize()
    def make_reference(self) -> None:
        tiny_extract(self.folder / "data", self.folder / "reference", dataset={"num_images": 8})
        self.dataset = TinyDataset(self.folder / "data", num_images=8)
        self.expected = tree_bytes(self.folder / "reference")

    @precondition(lambda self: self.state != "damaged")
    @rule()
    def extract(self) -> None:
        extract(tiny_config(self.cache), tiny_teacher(), self.dataset)
        self.state = "sound"

    @precondition(lambda self: self.state in ("absent", "unfinished"))
    @rule(batches=st.integers(2, 6))
    def stop(self, batches: int) -> None:
        plain = tiny_teacher()
        stopping: Any = _StoppingTower(plain.text, batches)
        # With most of the texts committed before, too few batches are left to be stopped.
        with suppress(StoppedError):
            extract(tiny_config(self.cache), Teacher(name="tiny", image=plain.image, text=stopping), self.dataset)
        self.state = "sound" if (self.cache / "records/complete.json").exists() else "unfinished"
        if not self.cache.exists():
            self.state = "absent"

    @precondition(lambda self: self.state == "sound")
    @rule(data=st.data(), how=st.sampled_from(["flip", "delete", "truncate"]))
    def damage(self, data: st.DataObject, how: str) -> None:
        path = self.cache / data.draw(st.sampled_from(sorted(self.expected)))
        content = bytearray(path.read_bytes())
        if how == "flip":
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1
            path.write_bytes(content)
        elif how == "truncate":
            path.write_bytes(content[: len(content) // 2])
        else:
            path.unlink()
        self.state = "damaged"

    @precondition(lambda self: self.state in ("damaged", "sound", "unfinished"))
    @rule()
    def repair(self) -> None:
        repair(tiny_config(self.cache), tiny_teacher(), self.dataset)
        self.state = "sound"

    @precondition(lambda self: self.state == "sound")
    @rule()
    def prune(self) -> None:
        run_prune(PruneConfig(cache=self.cache, all_confidences=True))

    @precondition(lambda self: self.state in ("sound", "unfinished"))
    @rule()
    def remove(self) -> None:
        run_prune(PruneConfig(cache=self.cache, all=True))
        self.state = "absent"

    @invariant()
    def state_is_what_verification_says(self) -> None:
        if self.state == "sound":
            assert tree_bytes(self.cache) == self.expected
            assert verify_cache(self.cache).is_sound
        elif self.state == "absent":
            assert not self.cache.exists()
        elif self.state == "unfinished":
            with pytest.raises(CorruptCache):
                open_cache(self.cache)
        else:
            assert not verify_cache(self.cache).is_sound

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=4, stateful_step_count=8, deadline=None)
