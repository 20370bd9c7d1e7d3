"""One student for chat models: of each family a tiny model equals transformers' own, in all that a run computes."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_near
from made_examples import inverted, picture, question
from PIL import Image
from tiny_chat_models import FAMILIES, text_type, write_tiny
from transformers import AutoModelForImageTextToText

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.base.packages import read_tables
from advl_pipeline.datasets.records import Candidate, Example
from advl_pipeline.sharing.student_export import transformers_form, transformers_model
from advl_pipeline.students import generative
from advl_pipeline.students.chat_batch import ChatBatch
from advl_pipeline.students.chat_config import family_facts
from advl_pipeline.students.generative import GenerativeStudent
from advl_pipeline.students.interface import AnswerHead
from advl_pipeline.students.memory import add_lora, hold_frozen_in_bf16, merge_lora
from advl_pipeline.students.registry import build_student

# PaliGemma's processor copies tensors in a way that NumPy 2 means to drop.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


class Family:
    """A tiny repository of a family, the student of it, and transformers' own model and processor."""

    def __init__(self, name: str, folder: Path) -> None:
        self.kind, self.folder = FAMILIES[name].get("type", name), folder
        self.has_open_end = FAMILIES[name].get("template", [""])[0] == "vicuna"
        self.processor = write_tiny(name, folder)
        student = build_student("chat", weights=folder).eval()
        assert isinstance(student, GenerativeStudent)
        self.student = student
        self.model = AutoModelForImageTextToText.from_pretrained(folder).eval()

    def text(self, asked: str, answer: str | None) -> str:
        """Return a conversation as the family's authors lay it out."""
        if self.kind == "paligemma":
            return f"<image>{asked}"
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked}]},
        ]
        if answer is not None:
            turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        text: str = self.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None)
        # LLaVA's template ends an answer in no token: its authors' data end in the tokenizer's own.
        return text.rstrip() + "</s>" if self.has_open_end and answer is not None else text

    def inputs(self, example: Example, candidate: Candidate | None = None, answer: str | None = None) -> Any:
        """Return what transformers' processor makes of one conversation."""
        asked = example.candidates[0].text
        if candidate is not None:
            asked, answer = candidate.text[: candidate.context_length], candidate.answer
        elif line := self.student.instruction(example.task):
            asked = f"{asked}\n{line}"
        more = {"suffix": [answer]} if self.kind == "paligemma" and answer is not None else {}
        shown = [[Image.open(example.image.path).convert("RGB")]]
        inputs = self.processor(text=[self.text(asked, answer)], images=shown, return_tensors="pt", **more)
        inputs.pop("labels", None)
        return inputs

    @staticmethod
    def prompt(batch: ChatBatch, row: int) -> int:
        """Return how many tokens of a sequence come before its own answer."""
        return int(batch.length_N[row]) - int((batch.rows.answer_Q == row).sum())

    def expected(self, inputs: Any, model: Any = None) -> Any:
        """Return what transformers' model gives, which may be another one of the same weights."""
        with torch.no_grad():
            return (model or self.model)(**inputs, output_hidden_states=True)

    def likelihood(self, inputs: Any, output: Any, prompt: int) -> tuple[torch.Tensor, int]:
        """Return transformers' log-likelihood of what follows a prompt, as far as the token that ends it."""
        ids = inputs["input_ids"][0]
        end = ids.tolist().index(self.student.chat.end_id, prompt) + 1
        log_probabilities = output.logits[0].float().log_softmax(-1)
        return log_probabilities[prompt - 1 : end - 1].gather(1, ids[prompt:end, None]).sum(), end - prompt


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def choices(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    folder = tmp_path_factory.mktemp("pictures")
    wide, tall = picture(folder / "a.png"), picture(folder / "b.png", 90, 200, seed=2)
    return [
        question(
            wide, "Why is person1 pointing?", "vcr-q2a", ["A dog runs.", "A dog sleeps near them.", "It rains."]
        ),
        question(tall, "What is it?", "vcr-q2a", ["A lake.", "They are lost."]),
    ]


@pytest.fixture(scope="module")
def hypotheses(choices: list[Example]) -> list[Example]:
    return [
        question(choices[0].image, "A man walks his dog.", "snli-ve"),
        question(choices[1].image, "Two children are outside near a lake.", "snli-ve"),
    ]


def test_candidates_have_transformers_tokens_states_and_likelihoods(family: Family, choices: list[Example]) -> None:
    student = family.student
    batch = student.collate(choices)
    pairs = [(example, candidate) for example in choices for candidate in example.candidates]
    with torch.no_grad():
        states = {}
        for layer in range(1, student.decoder.config.num_hidden_layers + 1):
            student.align_layer = layer
            states[layer] = student.encode(batch)
    for row, (example, candidate) in enumerate(pairs):
        inputs = family.inputs(example, candidate)
        length = int(batch.length_N[row])
        assert batch.sequence_ids_NS[row, :length].tolist() == inputs["input_ids"][0, :length].tolist()
        output = family.expected(inputs)
        for layer, ours in states.items():
            for place, mask, mine in (
                (batch.text_place_NL, batch.token_mask_NL, ours.text_states_NLH),
                (batch.visual_place_NR, batch.visual_mask_NR, ours.visual_states_NRH),
            ):
                assert_near(
                    mine[row, mask[row]], output.hidden_states[layer][0, place[row, mask[row]]], name=str(layer)
                )
            wanted, number = family.likelihood(inputs, output, family.prompt(batch, row))
            assert_near(ours.answered.log_likelihood_NK[row, 0], wanted)
            assert int(ours.answered.num_tokens_NK[row, 0]) == number


def test_weights_in_bf16_give_what_transformers_computes_in_it(family: Family, choices: list[Example]) -> None:
    """With low-rank updates, which start at nothing, and under autocast as a run computes."""
    student = build_student("chat", weights=family.folder).eval()
    assert isinstance(student, GenerativeStudent)
    assert student.lora is not None
    add_lora(student, student.lora)
    hold_frozen_in_bf16(student)
    assert {value.dtype for value in student.parameters() if value.requires_grad} == {torch.float32}
    model = copy.deepcopy(family.model).to(torch.bfloat16)
    batch = student.collate(choices[:1])
    for is_mixed in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            ours = student.encode(batch)
            for row, candidate in enumerate(choices[0].candidates[:2]):
                inputs = family.inputs(choices[0], candidate)
                output = family.expected(inputs, model)
                wanted, _ = family.likelihood(inputs, output, family.prompt(batch, row))
                assert_near(ours.answered.log_likelihood_NK[row, 0], wanted, roundings=1, dtype=torch.bfloat16)
                mask = batch.token_mask_NL[row]
                states = output.hidden_states[student.align_layer][0, batch.text_place_NL[row, mask]]
                assert ours.text_states_NLH.dtype == torch.float32
                assert_near(ours.text_states_NLH[row, mask], states, roundings=4, dtype=torch.bfloat16)


LABELS = ("contradiction", "entailment", "it is neutral")


def test_labels_score_as_if_each_were_alone(family: Family, hypotheses: list[Example]) -> None:
    student = family.student
    asked = student.collate(hypotheses)
    with torch.no_grad():
        answered = student.encode(student.with_answers(asked, "snli-ve", LABELS)).answered
    for row, example in enumerate(hypotheses):
        for number, label in enumerate(LABELS):
            inputs = family.inputs(example, answer=label)
            wanted, length = family.likelihood(inputs, family.expected(inputs), int(asked.length_N[row]))
            assert_near(answered.log_likelihood_NK[row, number], wanted, name=label)
            assert int(answered.num_tokens_NK[row, number]) == length


def test_generated_tokens_are_transformers(family: Family, hypotheses: list[Example]) -> None:
    student = family.student
    expected = []
    for example in hypotheses:
        inputs = family.inputs(example)
        generated = family.model.generate(
            **inputs, max_new_tokens=10, do_sample=False, eos_token_id=student.chat.end_id,
            pad_token_id=student.chat.pad_id,
        )  # fmt: skip
        expected.append(student.chat.decode(generated[0, inputs["input_ids"].shape[1] :].tolist()))
    assert student.generate(student.collate(hypotheses)) == expected
    assert any(expected)


@pytest.fixture
def fresh(family: Family) -> Any:
    """A student of the family to train."""
    return build_student("chat", weights=family.folder)


def test_updates_lower_the_loss_and_are_merged(
    family: Family, fresh: GenerativeStudent, choices: list[Example]
) -> None:
    batch = fresh.collate(choices)
    lora = fresh.lora
    assert lora is not None
    add_lora(fresh, dataclasses.replace(lora, rank=4, alpha=8.0))
    trained = [parameter for parameter in fresh.parameters() if parameter.requires_grad]
    num_parameters = sum(parameter.numel() for parameter in fresh.parameters())
    assert 0 < sum(parameter.numel() for parameter in trained) < 0.5 * num_parameters
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(3):
        losses.append(-fresh.encode(batch).answered.scores.mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[2] < losses[1] < losses[0]
    with torch.no_grad():
        apart = fresh.encode(batch).answered.scores
        merge_lora(fresh)
        assert_near(fresh.encode(batch).answered.scores, apart)


def test_an_export_is_opened_by_transformers(family: Family, hypotheses: list[Example], tmp_path: Path) -> None:
    student = family.student
    exported = transformers_model(transformers_form(student), student, AnswerHead(), "snli-ve")
    exported.save_pretrained(tmp_path)
    student.processor.save_pretrained(tmp_path)
    opened = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    inputs = family.inputs(hypotheses[0])
    with torch.no_grad():
        assert torch.equal(opened(**inputs).logits, family.expected(inputs).logits)
    again = build_student("chat", weights=tmp_path / "model.safetensors").eval()
    assert again.chat.end_id == student.chat.end_id
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in student.state_dict().items())


def test_picture_tokens_lie_where_they_show(family: Family, choices: list[Example], tmp_path: Path) -> None:
    """A place that is painted over changes the features of the token there most, where the processor tells a grid."""
    student, shown = family.student, choices[0].image
    batch = student.collate([question(shown, "Is it so?", "vqa")])
    places = batch.places_BR4[0]
    with torch.no_grad():
        before = student.shown(batch)[:, 0]
    tokens = torch.nonzero(~places.isnan().any(1))[:, 0]
    assert len(before) == len(places)
    assert len(tokens) >= 4
    for token in tokens[[0, len(tokens) // 2, -1]].tolist():
        other = inverted(shown, places[token].numpy(), tmp_path / f"{token}.png")
        with torch.no_grad():
            after = student.shown(student.collate([question(other, "Is it so?", "vqa")]))[:, 0]
        area = (places[:, 2] - places[:, 0]) * (places[:, 3] - places[:, 1])
        alike = [number for number in tokens.tolist() if torch.isclose(area[number], area[token])]
        change = (after - before).norm(dim=1)[alike]
        assert alike[int(change.argmax())] == token


def test_no_state_of_the_text_alone_depends_on_the_picture(family: Family, choices: list[Example]) -> None:
    student = family.student
    asked, other = (
        student.collate([question(image, "A dog runs by the lake.", "vqa")])
        for image in (
            choices[0].image,
            dataclasses.replace(choices[1].image, unit_id="other"),
        )
    )
    other.pixels = (255 if other.pixels.dtype == torch.uint8 else 0.9) - asked.pixels
    other = dataclasses.replace(asked, pixels=other.pixels)
    with torch.no_grad():
        one, two = student.encode_unimodal(asked), student.encode_unimodal(other)
        longer = student.collate([question(choices[0].image, "A dog.", "vqa")])
        less = student.encode_unimodal(longer)
    assert torch.equal(one.text_states_NLH, two.text_states_NLH)
    assert not torch.allclose(one.visual_states_NRH, two.visual_states_NRH)
    assert_near(one.visual_states_NRH, less.visual_states_NRH)


def test_a_type_that_nobody_proved_is_tried_and_refused_where_it_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its row Gemma 3 would read its picture in one direction, and Qwen2.5-VL as ever."""
    usual = dataclasses.replace(family_facts("no type", ""), lora={"rank": 4, "alpha": 4.0})
    monkeypatch.setattr(generative, "family_facts", lambda *_: usual)
    write_tiny("qwen2_5_vl", tmp_path / "fits")
    fits = build_student("chat", weights=tmp_path / "fits")
    fits.require_inputs()
    assert fits.training
    write_tiny("gemma3", tmp_path / "differs")
    with pytest.raises(ConfigError, match="The type gemma3 over gemma3_text is not supported") as refused:
        build_student("chat", weights=tmp_path / "differs").require_inputs()
    assert "log-likelihood" in refused.value.why


def test_a_listed_type_over_another_language_model_is_tried_beyond_its_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conversation is shorter than the window of PaliGemma 2, and the difference is beyond it."""
    write_tiny("paligemma2", tmp_path, sliding_window=4096)
    listed = family_facts("paligemma", "gemma")
    tried = dataclasses.replace(listed, is_proven=family_facts("paligemma", "gemma3_text").is_proven)
    monkeypatch.setattr(generative, "family_facts", lambda *_: tried)
    student = build_student("chat", weights=tmp_path)
    student.require_inputs()
    assert student.model.config.text_config.sliding_window == 4096
    wrong = dataclasses.replace(tried, blocks="everywhere")
    monkeypatch.setattr(generative, "family_facts", lambda *_: wrong)
    with pytest.raises(ConfigError, match="The type paligemma over gemma2 is not supported"):
        build_student("chat", weights=tmp_path).require_inputs()


def test_every_type_and_text_type_that_is_listed_is_compared() -> None:
    table = read_tables("chat_models.toml")
    listed = {(kind, text) for kind, facts in table.items() if kind != "default" for text in facts["texts"]}
    assert listed == {text_type(name) for name in FAMILIES}


NARROW = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
BLIP_2 = {
    "model_type": "blip-2",
    "vision_config": {**NARROW, "intermediate_size": 32},
    "qformer_config": {**NARROW, "intermediate_size": 32},
    "text_config": {**NARROW, "model_type": "opt", "ffn_dim": 32, "word_embed_proj_dim": 32},
}


WITHOUT_PLACES = ("idefics2", "idefics", "blip", "instructblip", "git", "pix2struct", "udop")
MLLAMA = {
    "text_config": {**NARROW, "intermediate_size": 32, "vocab_size": 99, "pad_token_id": 0, "num_key_value_heads": 2},
    "vision_config": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "attention_heads": 2},
}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model_type": "llama"}, "the type llama is no chat model"),
        ({"model_type": "minicpmv", "auto_map": {"AutoModel": "x.py"}}, "code from its repository"),
        ({"model_type": "qwen2_5_vl", "auto_map": {"AutoModelForCausalLM": "x.Net"}}, "names x.Net for Auto"),
        ({"model_type": "qwen2_5_vl", "quantization_config": {}}, "quantised"),
        (BLIP_2, "the type blip-2 cannot be a student"),
        *(({"model_type": kind}, "does not tell where picture tokens stand") for kind in WITHOUT_PLACES),
        ({"model_type": "mllama", **MLLAMA}, "does not give the features of its pictures"),
        ({}, "--init hf:ORG/MODEL"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_by_name(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build_student("chat", overrides={"architecture": settings})
    assert said in str(refused.value)
