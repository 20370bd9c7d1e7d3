"""The readout that a run with an adapt step leaves: does the student place words and regions as its teachers do?"""

from __future__ import annotations

import json
from pathlib import Path

from small_corpus import SmallCorpus

from advl_pipeline.runs.results import read_readout


def test_a_run_reads_out_before_and_after_its_adapt_step_against_the_true_teacher(
    small_corpus: SmallCorpus, tmp_path: Path
) -> None:
    for name, changes in (("true", {}), ("shuffled", {"teacher_control": "shuffle"})):
        small_corpus.run(tmp_path / name, **changes)
    true, shuffled = (
        json.loads((tmp_path / name / "readout.json").read_text(encoding="utf-8")) for name in ("true", "shuffled")
    )
    assert true["before"] == shuffled["before"]
    assert set(true["after"]) == {"minilm-l6", "efficientnet-lite0"}
    assert true["after"]["minilm-l6"]["regions"] is None
    gathered = read_readout(tmp_path / "true")
    assert set(gathered) == {("minilm-l6", "words"), ("efficientnet-lite0", "regions")}
    words = gathered["minilm-l6", "words"]
    assert words.before == 100 * true["before"]["minilm-l6"]["words"]["share"]
    assert words.after == 100 * true["after"]["minilm-l6"]["words"]["share"]
    assert words.chance == 25.0
    small_corpus.run(tmp_path / "plain", method="plain", cache=())
    assert not (tmp_path / "plain" / "readout.json").exists()
    assert read_readout(tmp_path / "plain") == {}
