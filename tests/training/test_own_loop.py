"""The method in a loop of one's own has the losses of a run to the bit, and works in the loops that people have."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from first_step import CPU, open_run
from real_processes import side_by_side
from small_corpus import SMALL_WORDS, SmallCorpus
from tiny_reader import Loop, tokenised, train_in_step
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, TrainingArguments

from advl_pipeline import HiddenStates, LayerStates, RelationalDistillation
from advl_pipeline.base.errors import ConfigError
from advl_pipeline.cache.reader import UnknownUnit
from advl_pipeline.datasets.records import Example
from advl_pipeline.datasets.words import word_spans
from advl_pipeline.runs.results import read_log
from advl_pipeline.students.interface import StudentBatch, StudentOutput
from advl_pipeline.training import run
from advl_pipeline.training.batch_order import order_inputs
from advl_pipeline.training.batches import received
from advl_pipeline.training.landmarks.census import sampled
from advl_pipeline.training.step import StepConditions


def words_of(examples: list[Example]) -> list[str]:
    texts = [candidate.text for example in examples for candidate in example.candidates]
    return sorted({text[slice(*span)].lower() for text in texts for span in word_spans(text)})


def own_states(
    examples: list[Example], batch: StudentBatch, output: StudentOutput, relevance_NL: torch.Tensor | None = None
) -> HiddenStates:
    """Return what a student gives of some examples as a loop of one's own has it."""
    first_B = batch.first_B
    return HiddenStates(
        texts=[candidate.text for example in examples for candidate in example.candidates],
        states_NLH=output.text_states_NLH,
        offsets_NL2=batch.char_spans_NL2,
        mask_NL=batch.token_mask_NL,
        relevance_NL=relevance_NL,
        pictures=[example.image for example in examples],
        visual_states_BRH=output.visual_states_NRH[first_B],
        visual_mask_BR=batch.visual_mask_NR[first_B],
        places_BR4=batch.places_BR4,
        boxes_BR=batch.box_index_NR[first_B],
    )


def distillation_of(opened: Any, caches: Sequence[Path], **options: Any) -> RelationalDistillation:
    """Return the distillation of an opened run as a loop of one's own makes it."""
    inputs = opened.session.prepared.inputs
    student, dataset = opened.model.student, inputs.adapt_dataset

    def at_start() -> Iterator[HiddenStates]:
        chosen = [dataset[position] for position in sampled(dataset, inputs.adapt, num_texts=8192)]
        for first in range(0, len(chosen), 32):
            examples = chosen[first : first + 32]
            batch = student.collate(examples)
            yield own_states(examples, batch, student.encode_unimodal(batch))

    texts = [candidate.text for position in inputs.adapt for candidate in dataset[position].candidates]
    return RelationalDistillation(caches, texts, at_start, **options)


@pytest.mark.parametrize(("student", "knows"), [("scenes-small", False), ("scenes-smolvlm", True)])
def test_terms_are_those_of_a_run_to_the_bit(
    student: str, knows: bool, small_corpus: SmallCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Eight pictures have few regions of a name.
    monkeypatch.setattr("advl_pipeline.distillation.relational._MIN_REGIONS", 1)
    counts = dict.fromkeys(words_of(small_corpus.examples())[::2], 20) if knows else None
    changes: dict[str, Any] = {"student": student}
    if student == "scenes-small":
        changes["student_option"] = SMALL_WORDS
    if knows:
        changes["known_words"] = tmp_path / "words.json"
        changes["known_words"].write_text(json.dumps(counts), encoding="utf-8")
    opened = open_run(small_corpus.config(tmp_path / "run", **changes))
    inputs = opened.session.prepared.inputs
    model, dataset = opened.model.eval(), inputs.adapt_dataset
    distil = distillation_of(opened, small_corpus.caches, known_words=counts)
    assert bool(opened.teaching.landmarks.words) is bool(opened.teaching.landmarks.regions) is knows
    # A step further, so that the anchor has something to hold.
    with torch.no_grad():
        for value in model.student.parameters():
            value.mul_(1.01)
    by_id = {dataset[position].example_id: dataset[position] for position in inputs.adapt}
    (batch,) = received(next(run._batch_maker(opened, "adapt")(range(1))), CPU)
    examples = [by_id[name] for name in batch.example_ids]
    theirs = model(batch, StepConditions(stage="adapt", generator=torch.Generator().manual_seed(1)))
    relevance_NL = model.encode(batch.student, need_relevance=True).relevance_NL
    apart = model.student.encode_unimodal(batch.student)
    pretrained = model.references[0].encode_unimodal(batch.student)
    ours = distil(
        own_states(examples, batch.student, apart, relevance_NL), own_states(examples, batch.student, pretrained)
    )
    assert ours.raw.keys() == {"text", "vision", "drift"}
    for name, value in ours.raw.items():
        assert torch.equal(value, theirs.raw[name]), name
        assert torch.equal(ours.weighted[name], theirs.weighted[name]), name
        assert value > 0


@pytest.mark.slow
def test_a_trainer_s_loop_has_the_losses_of_every_step_of_finetune(small_corpus: SmallCorpus, tmp_path: Path) -> None:
    counts = dict.fromkeys(words_of(small_corpus.examples())[::2], 20)
    (tmp_path / "words.json").write_text(json.dumps(counts), encoding="utf-8")
    changes: dict[str, Any] = {
        "student": "scenes-smolvlm",
        # The adapt stage of a run has none.
        "student_option": ("dropout=0",),
        "known_words": tmp_path / "words.json",
        "recipe": {
            "loss": "softmax-choice",
            "optimiser": "adamw",
            "learning_rate": 1e-3,
            "weight_decay": 0.0,
            "schedule": "constant",
            "betas": [0.9, 0.98],
            "eps": 1e-6,
            "clip_norm": 0.5,
            "adapt_lr_scale": 1.0,
        },
        "adapt_steps": 5,
        "num_steps": 1,
    }
    small_corpus.run(tmp_path / "run", **changes)
    expected = [record for record in read_log(tmp_path / "run") if record["phase"] == "adapt"]
    opened = open_run(small_corpus.config(tmp_path / "again", **changes))
    inputs = opened.session.prepared.inputs
    student, dataset = opened.model.student, inputs.adapt_dataset
    distil = distillation_of(opened, small_corpus.caches, known_words=counts)
    at_start = copy.deepcopy(student).eval().requires_grad_(False)
    losses: list[dict[str, float]] = []

    class Distilling(torch.nn.Module):
        """The student with the loss, in the form that the Trainer expects."""

        def __init__(self) -> None:
            super().__init__()
            self.student = student

        def forward(self, examples: list[Example], batch: StudentBatch) -> dict[str, torch.Tensor]:
            before = own_states(examples, batch, at_start.encode_unimodal(batch))
            terms = distil(own_states(examples, batch, self.student.encode_unimodal(batch)), before)
            losses.append({name: value.item() for name, value in terms.raw.items()})
            return {"loss": terms.total}

    order = order_inputs(opened.session.prepared.run, inputs, rank=0)
    rows = [inputs.adapt[at] for step in range(5) for batch in order.micro_batches(step) for at in batch]
    arguments = TrainingArguments(
        str(tmp_path / "trained"),
        per_device_train_batch_size=opened.session.prepared.run.settings.batch_size,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        max_steps=5,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        adam_beta2=0.98,
        adam_epsilon=1e-6,
        max_grad_norm=0.5,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
    )
    Trainer(
        Distilling(),
        arguments,
        lambda examples: {"examples": examples, "batch": student.collate(examples)},
        [dataset[position] for position in rows],
    ).train()
    assert len(losses) == len(expected) == 5
    for ours, theirs in zip(losses, expected, strict=True):
        for name in ("text", "vision", "drift"):
            assert ours[name] == pytest.approx(theirs[f"raw/{name}"], abs=1e-5), name
    assert losses[4]["text"] < losses[0]["text"]


@pytest.fixture(scope="module")
def texts(small_corpus: SmallCorpus) -> list[str]:
    """Texts of the corpus, each once."""
    return list({candidate.text: 0 for example in small_corpus.examples() for candidate in example.candidates})


def near(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys() != set()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_layer_is_named_and_its_gradients_add_up_in_a_compiled_model(small_corpus: SmallCorpus, texts: Any) -> None:
    loop = Loop(small_corpus.caches[0], texts)
    loop.loss(texts[:8]).backward()
    first = loop.gradients()
    loop.loss(texts[8:16]).backward()
    both = loop.gradients()
    loop.model.zero_grad()
    compiled = torch.compile(loop.model, backend="aot_eager")
    loop.loss(texts[8:16], compiled).backward()
    near({name: first[name] + value for name, value in loop.gradients().items()}, both)
    loop.model.zero_grad()
    # The layer keeps the states of a pass that is checkpointed.
    states = checkpoint(loop.model, tokenised(texts[:8])["ids"], use_reentrant=False)
    assert states.requires_grad
    assert loop.layer.states.requires_grad
    with loop.layer:
        pass
    before = loop.layer.states
    loop.model(tokenised(texts[:8])["ids"])
    assert loop.layer.states is before


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(small_corpus: SmallCorpus, texts: list[str], tmp_path: Path) -> None:
    for running in side_by_side(train_in_step, small_corpus.caches[0], texts, tmp_path):
        running.finish()
    for knows in (True, False):
        loop = Loop(small_corpus.caches[0], texts, knows=knows)
        loop.loss(texts[:16]).backward()
        near(torch.load(tmp_path / f"{knows}.pt"), loop.gradients())


def test_what_cannot_be_learned_from_is_refused(small_corpus: SmallCorpus, texts: list[str]) -> None:
    loop = Loop(small_corpus.caches[0], texts)
    states = loop.at_start(texts[:4])
    with pytest.raises(ConfigError, match="no such layer") as refused:
        LayerStates(loop.model, "layer.1")
    assert "layers.1" in str(refused.value)
    for given, why in (
        (replace(states, states_NLH=states.states_NLH.detach()), "have no gradient"),
        (replace(states, texts=["two  spaces", *texts[1:4]]), "the form in which it was extracted"),
        (replace(states, states_NLH=None), "needs? their"),
        (replace(states, texts=[], pictures=[small_corpus.examples()[0].image] * 4), "needs? their"),
        (
            HiddenStates(pictures=[small_corpus.examples()[0].image], visual_states_BRH=torch.ones(1, 2, 3)),
            "No teacher has features of pictures",
        ),
    ):
        with pytest.raises(ConfigError, match=why):
            loop.distil(given)
    with pytest.raises(UnknownUnit, match="'of another corpus', unit "):
        loop.distil(replace(states, texts=["of another corpus", *texts[1:4]]))
    with pytest.raises(UnknownUnit, match="'of another corpus', unit "):
        RelationalDistillation(small_corpus.caches[:1], ["of another corpus"])
    with pytest.raises(ConfigError, match="one of each teacher"):
        RelationalDistillation([small_corpus.caches[0]] * 2, texts)


def test_words_that_pretraining_taught_are_estimated_from_the_states_at_the_start(
    small_corpus: SmallCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the words lie where their pictures do, as after pretraining, and the others anywhere."""
    monkeypatch.setattr("advl_pipeline.distillation.familiarity.MIN_WORDS", 8)
    examples = small_corpus.examples()
    words = words_of(examples)
    vectors = {
        word: torch.randn(64, generator=torch.Generator().manual_seed(place)) for place, word in enumerate(words)
    }

    def start() -> Iterator[HiddenStates]:
        for first in range(4):
            # Pictures next to each other are asked about in the same words.
            part = examples[first::4]
            texts = [candidate.text for example in part for candidate in example.candidates]
            spoken = [[text[slice(*span)].lower() for span in word_spans(text)] for text in texts]
            rows = [torch.stack([vectors[word] for word in text]) for text in spoken]
            seen = [
                sorted({w for text in spoken[at * 4 : at * 4 + 4] for w in text} & {*words[::2]})
                for at in range(len(part))
            ]
            yield HiddenStates(
                texts=texts,
                states_NLH=pad_sequence(rows, batch_first=True),
                offsets_NL2=tokenised(texts)["offsets"],
                pictures=[example.image for example in part],
                visual_states_BRH=pad_sequence(
                    [torch.stack([vectors[w] for w in names for _ in range(4)]) for names in seen], batch_first=True
                ),
            )

    distil = RelationalDistillation(
        small_corpus.caches[:1], [c.text for example in examples for c in example.candidates], start
    )
    assert distil.words.classes is not None
    classes = distil.words.classes
    landmarks, moved = ({word for word in classes if classes[word] == kind} for kind in ("landmark", "moved"))
    assert landmarks
    assert landmarks <= {*words[::2]}
    # Visual tokens are sampled, so a few known words are not found in them.
    assert len(moved - {*words[::2]}) > len(moved & {*words[::2]})
