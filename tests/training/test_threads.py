"""Work in several threads of one process gives what each piece of it gives alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chaos_finetune import train_in_threads


def test_trainings_in_threads_are_those_of_processes_of_their_own(small_corpus: Any, tmp_path: Path) -> None:
    assert train_in_threads(small_corpus, tmp_path / "alone", tmp_path / "threads", offset=0.2, num_steps=6)
