"""The Python interface: every function as a user calls it, and the page that documents it."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from own_rows import COLOURS, answer_row, choice_row, class_row, write_json_lines, write_pictures
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

import advl_pipeline as advl

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADVL_DATA", raising=False)
    write_pictures(tmp_path / "pictures")
    return tmp_path


def shown(path: Path, kind: str) -> Any:
    """Return a picture in one of the forms in which Python holds it."""
    with Image.open(path) as image:
        return {"bytes": path.read_bytes(), "path": path, "image": image.copy()}[kind]


def own_loop() -> dict[str, Any]:
    """Return what a person has who adds the method to a loop: a chat model of the pages' layers, and its batch."""
    texts = ["Which colour is it? red", "Which colour is it? blue"]
    words = Tokenizer(models.WordLevel({"Which": 0, "colour": 1, "red": 2, "blue": 3, "?": 4}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    config = LlamaConfig(
        vocab_size=5, hidden_size=8, intermediate_size=8, num_hidden_layers=17, num_attention_heads=2
    )
    model = torch.nn.Module()
    model.model = torch.nn.Module()
    model.model.text_model = LlamaModel(config)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="?")
    return {"model": model, "tokenizer": tokenizer, "texts": texts, "loss": torch.zeros(())}


def test_the_code_of_the_pages_runs(here: Path) -> None:
    row = {"image": "pictures/red.png", "question": "Which colour is it?", "choices": ["red", "blue"], "label": 0}
    write_json_lines(here / "mine.jsonl", [row | {"split": "train"}, *(choice_row(number) for number in range(20))])
    namespace: dict[str, Any] = {"__name__": "__main__", **own_loop()}
    for page in ("README.md", "docs/python.md"):
        blocks = re.findall(
            r"^```python\n(.*?)^```$", (REPOSITORY / page).read_text("utf-8"), re.MULTILINE | re.DOTALL
        )
        code = "\n".join(blocks).replace('output="runs/mine"', 'num_steps=2, adapt_steps=2, output="runs/mine"')
        exec(compile(code, page, "exec"), namespace)
    assert namespace["loss"].requires_grad
    assert namespace["terms"].raw.keys() == {"text"}
    assert namespace["run"].summary.num_labelled == 16
    assert 0 <= namespace["scores"].sets["test"].metrics["choice"] <= 100
    loaded, answer = namespace["loaded"], namespace["answer"]
    assert answer.text in answer.logits.keys() == {"red", "blue"}
    assert answer.text == max(answer.logits, key=answer.logits.__getitem__)
    for kind in ("bytes", "path", "image"):
        picture = shown(here / "pictures" / "red.png", kind)
        assert loaded.answer(picture, "Which colour is it?", ["red", "blue"]) == answer
    with pytest.raises(advl.AdvlError, match="at least two distinct"):
        loaded.answer("pictures/red.png", "Which colour is it?")
    with pytest.raises(advl.AdvlError, match="at least two distinct"):
        loaded.answer("pictures/red.png", "Which colour is it?", "ab")


def test_values_that_nothing_can_be_done_with_are_errors_in_words(here: Path) -> None:
    data = write_json_lines(here / "mine.jsonl", [choice_row(number) for number in range(20)])
    huge = [choice_row(number, label=10**5_000) for number in range(20)]
    calls: list[Callable[[], object]] = [
        lambda: advl.extract(teacher=123, data=data),  # type: ignore[arg-type]
        lambda: advl.extract(teacher="minilm-l6", data=data, output="a\0"),
        lambda: advl.finetune(data=data, output="a\0", method="plain"),
        lambda: advl.finetune(data="a\0", output="run", method="plain"),
        lambda: advl.finetune(data=huge, output="run", method="plain"),
        lambda: advl.open_cache("a\0"),
        lambda: advl.load_run("a\0"),
    ]
    for call in calls:
        with pytest.raises(advl.AdvlError):
            call()
    assert not (here / "run").exists()


def test_an_answer_is_what_evaluation_scores(here: Path) -> None:
    """One question of the file, asked by hand, has the same answer as in the file of predictions."""
    data = write_json_lines(here / "mine.jsonl", [class_row(number) for number in range(20)])
    run = advl.finetune(data=data, method="plain", student="scenes-small", output="run", num_steps=2, batch_size=4)
    lines = advl.predict(run.output, on="test").path.read_text(encoding="utf-8").splitlines()[1:]
    loaded = advl.load_run(run.output)
    assert set(loaded.answers) == {"yes", "no"}
    asked = [row for row in map(class_row, range(20)) if row["split"] == "test"]
    answers = [loaded.answer(row["image"], row["text"]).text for row in asked]
    assert [line.split(",")[-1] for line in lines] == answers
    with pytest.raises(advl.AdvlError, match="takes no `choices`"):
        loaded.answer("pictures/red.png", "It is red.", ["yes", "no"])


def test_pictures_in_memory_are_kept_once(here: Path) -> None:
    kinds = itertools.cycle(["bytes", "path", "image", "path", "bytes"])
    rows = [row | {"image": shown(here / row["image"], next(kinds))} for row in map(answer_row, range(20))]
    first = advl.extract(teacher="minilm-l6", data=rows, confidence="none")
    again = advl.extract(teacher="minilm-l6", data=iter(rows), confidence="none")
    assert (again.path, again.encoded_units) == (first.path, 0)
    assert len([*Path("datasets/given/pictures").iterdir()]) == len(COLOURS)
    assert len([*Path("datasets/given").glob("*.toml")]) == 1


def test_a_dataset_of_the_library_is_read_with_its_classes(here: Path, datasets_library: Any) -> None:
    datasets = datasets_library
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["yes", "no"]),
        }
    )

    def part(wanted: str) -> Any:
        rows = [row for row in map(class_row, range(20)) if row.pop("split") == wanted]
        return datasets.Dataset.from_list(rows, features=features)

    data = datasets.DatasetDict({"test": part("test"), "train": part("train")})
    run = advl.finetune(data=data, method="plain", student="scenes-small", output="run", num_steps=1, batch_size=4)
    # In the library's order, not in that of the alphabet.
    assert advl.load_run(run.output).answers == ("yes", "no")
    assert advl.evaluate(run.output, on="test", probe="none").sets["test"].num_items == {"classes": 5}


def test_what_cannot_be_kept_is_refused_before_anything_is_written(here: Path) -> None:
    row = choice_row(0)
    mixed = [row, row | {"image": here / row["image"]}]
    for data, why in (
        ([], "no row"),
        ([row | {"more": object()}], "not JSON serializable"),
        (mixed, "others are in memory"),
    ):
        with pytest.raises(advl.AdvlError, match=why):
            advl.extract(teacher="minilm-l6", data=data)
    assert not [*Path().glob("datasets/given/rows*")]
    with pytest.raises(advl.AdvlError, match="lora_rnak"):
        advl.finetune(data=[row], output="run", lora_rnak=8)


def test_importing_loads_nothing_heavy() -> None:
    program = "import sys, advl_pipeline; print(sorted({'torch', 'numpy', 'PIL', 'click'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    for name in advl.__all__:
        assert getattr(advl, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'extrakt'"):
        advl.extrakt  # noqa: B018
