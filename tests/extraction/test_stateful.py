"""Random sequences of extracting, killing, damaging, verifying, repairing and pruning keep the invariants.

Killing is SIGKILL of a real process; the rest runs here.
"""

from __future__ import annotations

import functools
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
from chaos import Job
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tiny_extraction import TinyDataset, tiny_config, tiny_extract, tiny_teacher, tree_bytes

from advl_pipeline.cache.commands import run_prune
from advl_pipeline.cache.config import PruneConfig
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.verify import verify_cache
from advl_pipeline.errors import AdvlError
from advl_pipeline.extraction.repair import repair
from advl_pipeline.extraction.run import extract

SIZE = {"num_images": 16}
SHARDS = ("text/tokens/values/c/0/0", "text/tokens/values/c/1/0")
ROOT = frozenset(
    {"identity.json", "zarr.json", "records/provenance.json", "records/plan.json", "records/complete.json"}
)
"""What says how a cache was made. Each exists twice or follows from the others; with two of them bad, one may not."""

moments = st.floats(0, 0.25)
_KEPT = tempfile.TemporaryDirectory()


@functools.cache
def reference() -> Path:
    """Folder with `data` and an uninterrupted `cache`, made once."""
    folder = Path(_KEPT.name)
    tiny_extract(folder / "data", folder / "cache", dataset=SIZE)
    return folder


class CacheMachine(RuleBasedStateMachine):
    """The model is one word and the names of the files that were damaged.

    absent; begun: nothing that says how it was made; unfinished; littered: complete, with work in progress left over;
    sound; damaged: the names are known; wounded: a repair was killed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.cache = self.folder / "cache"
        self.state = "absent"
        self.damaged: set[str] = set()
        self.reference = reference()
        self.dataset = TinyDataset(self.reference / "data", **SIZE)
        self.expected = tree_bytes(self.reference / "cache")

    @precondition(lambda self: self.state not in ("damaged", "wounded"))
    @rule()
    def extract(self) -> None:
        extract(tiny_config(self.cache), tiny_teacher(), self.dataset)
        self.state = "sound"

    @precondition(lambda self: self.state in ("absent", "begun", "unfinished"))
    @rule(moment=moments)
    def kill_extraction(self, moment: float) -> None:
        self._kill(moment, repair=False)
        if (self.cache / "records/complete.json").exists():
            self.state = "littered" if (self.cache / ".work").exists() else "sound"
        elif (self.cache / "records/provenance.json").exists():
            self.state = "unfinished"
        else:
            self.state = "begun" if self.cache.exists() else "absent"
        event(f"an extraction that was killed left: {self.state}")

    @precondition(lambda self: self.state in ("damaged", "wounded"))
    @rule(moment=moments)
    def kill_repair(self, moment: float) -> None:
        self._kill(moment, repair=True)
        event(f"a repair that was killed left a complete cache: {(self.cache / 'records/complete.json').exists()}")
        self.state = "wounded"

    @precondition(lambda self: self.state == "sound" or (self.state == "damaged" and len(self.damaged) < 3))
    @rule(data=st.data(), how=st.sampled_from(["flip", "delete", "truncate", "link"]))
    def damage(self, data: st.DataObject, how: str) -> None:
        spared = self.damaged | (ROOT if self.damaged & ROOT else set())
        name = data.draw(st.sampled_from(sorted(set(self.expected) - spared)))
        path = self.cache / name
        content = bytearray(path.read_bytes())
        if how == "flip":
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1
            path.write_bytes(content)
        elif how == "truncate":
            path.write_bytes(content[: len(content) // 2])
        else:
            path.unlink()
            if how == "link":
                path.symlink_to(self.reference / "cache" / name)
        self.damaged.add(name)
        self.state = "damaged"

    @precondition(lambda self: self.state == "sound")
    @rule()
    def swap_shards(self) -> None:
        one, two = (self.cache / name for name in SHARDS)
        one.rename(self.folder / "aside")
        two.rename(one)
        (self.folder / "aside").rename(two)
        self.damaged = set(SHARDS)
        self.state = "damaged"

    @precondition(lambda self: self.state not in ("absent", "begun"))
    @rule()
    def repair(self) -> None:
        before = {name: self._written(name) for name in self.expected} if self.state == "damaged" else {}
        result = repair(tiny_config(self.cache), tiny_teacher(), self.dataset)
        touched = {name for name, moment in before.items() if self._written(name) != moment}
        # The records of a shard that is encoded again, and the one that completes the cache, are written anew.
        assert {name for name in touched if not name.startswith("records/")} <= self.damaged
        if self.state == "damaged":
            assert result.is_identical
        self.damaged = set()
        self.state = "sound"

    @precondition(lambda self: self.state in ("sound", "littered"))
    @rule()
    def prune(self) -> None:
        run_prune(PruneConfig(cache=self.cache, all_confidences=True))
        self.state = "sound"

    @precondition(lambda self: self.state in ("sound", "littered", "unfinished"))
    @rule()
    def remove(self) -> None:
        run_prune(PruneConfig(cache=self.cache, all=True))
        self.state = "absent"

    @invariant()
    def the_cache_is_what_the_model_says(self) -> None:
        if self.state == "absent":
            assert not self.cache.exists()
        elif self.state in ("begun", "unfinished"):
            with pytest.raises(AdvlError):
                open_cache(self.cache)
        elif self.state in ("littered", "sound"):
            found = tree_bytes(self.cache)
            left_over = {name for name in found if name.startswith(".work/")}
            assert {name: found[name] for name in found.keys() - left_over} == self.expected
            assert verify_cache(self.cache).bad_paths() == {
                name for name in left_over if not name.startswith(".work/locks/")
            }
            assert open_cache(self.cache).text is not None
        elif self.state == "damaged":
            found_bad = verify_cache(self.cache).bad_paths()
            # With the complete record gone, the files of a bad record cannot be known.
            assert found_bad == self.damaged or ("records/complete.json" in self.damaged and found_bad)

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def _kill(self, moment: float, *, repair: bool) -> None:
        config = {"teacher": "tiny", "dataset": "tiny", "output": str(self.cache)}
        config |= {"batch_size": 8, "shard_rows": 64, "confidence": False}
        running = Job(
            folder=self.folder,
            settings={
                "folder": str(self.reference / "data"),
                "config": config,
                "teacher": {"delay": 0.01},
                "dataset": SIZE,
                "repair": repair,
            },
        ).start()
        complete = self.cache / "records/complete.json"
        while running.is_running() and (complete.exists() if repair else not self.cache.exists()):
            time.sleep(0.002)
        time.sleep(moment)
        running.send(signal.SIGKILL)
        running.wait()

    def _written(self, name: str) -> int | None:
        path = self.cache / name
        return path.lstat().st_mtime_ns if path.exists() else None


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=8, stateful_step_count=10, deadline=None)
