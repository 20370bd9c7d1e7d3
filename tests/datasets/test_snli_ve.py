"""SNLI-VE reads in all spellings that circulate, and never the premise."""

from __future__ import annotations

from pathlib import Path

from dataset_mirrors import write_snli_ve

from advl_pipeline.datasets.registry import open_dataset


def test_pairs_labels_and_pictures(tmp_path: Path) -> None:
    write_snli_ve(tmp_path)
    uniter, meter = (
        open_dataset("snli-ve", split="test", data_root=tmp_path, label_order=order) for order in ("uniter", "meter")
    )
    assert (len(uniter), uniter.example_ids[1]) == (12, "1000000001.jpg#1r1n")
    for dataset, names, labels in (
        (uniter, ("contradiction", "entailment", "neutral"), [1, 2, 0]),
        (meter, ("contradiction", "neutral", "entailment"), [2, 1, 0]),
    ):
        assert dataset.label_names("snli-ve") == names
        assert [dataset[index].label for index in range(3)] == labels
    assert uniter.content_digest() == meter.content_digest()
    assert uniter[1].candidates[0].text == "Two friends wait for bus 1."
    assert all("premise" not in unit.text for unit in uniter.text_units())
    # Numbers 0 and 1 spell the field differently and 2 names the picture in pairID alone: three pairs of pictures.
    shown = [uniter[index].image.path.stem for index in range(4)]
    assert shown == ["1000000001", "1000000001", "1000000002", "1000000002"]
