"""SmolVLM equals transformers' own model and processor: tokens, pictures, states, losses, generated text."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_near
from conversations import labels_on_answers, pairs_of, processed, theirs, turns
from made_examples import inverted, picture, question
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Idefics3ImageProcessor, Idefics3Processor, PreTrainedTokenizerFast

from advl_pipeline.base.errors import ConfigError, DatasetError, WeightsUnavailable
from advl_pipeline.datasets.records import Example, ImageUnit
from advl_pipeline.runs import names
from advl_pipeline.students import answers as answers_module
from advl_pipeline.students.embedded_chat import MAX_SPLITS, TILES_TEMPLATE
from advl_pipeline.students.generative import GenerativeStudent
from advl_pipeline.students.registry import build_student
from advl_pipeline.training.targets import TaskTargets, score_task

PUBLISHED_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""As SmolVLM's processor has it."""

LABELS = ("contradiction", "entailment", "it is neutral")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageUnit, ImageUnit]:
    folder = tmp_path_factory.mktemp("pictures")
    return picture(folder / "a.png"), picture(folder / "b.png", 90, 200, seed=2)


@pytest.fixture(scope="module")
def choices(pictures: tuple[ImageUnit, ImageUnit]) -> list[Example]:
    wide, tall = pictures
    answers = ["Because it's raining in 1987.", "A dog.", "They are lost, café."]
    return [
        question(wide, "Why is person1 pointing?", "vcr-q2a", answers),
        question(tall, "What is it?", "vcr-q2a", answers[:2]),
    ]


@pytest.fixture(scope="module")
def hypotheses(pictures: tuple[ImageUnit, ImageUnit]) -> list[Example]:
    wide, tall = pictures
    return [
        question(wide, "A man walks his dog.", "snli-ve"),
        question(tall, "Two children are outside near a lake.", "snli-ve"),
    ]


def byte_level_processor(
    folder: Path, *, edge: int = 64, tokens: int = 16, template: str = PUBLISHED_TEMPLATE
) -> Path:
    """Write a processor as SmolVLM's is made: single digits, byte-level word pieces, pad and end as published."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    words.decoder = decoders.ByteLevel()
    numbers = range(1, MAX_SPLITS + 1)
    special = "<|im_start|> <|im_end|> <end_of_utterance> <fake_token_around_image> <image> <global-img>".split()
    special += [f"<row_{row}_col_{column}>" for row in numbers for column in numbers]
    text = ["Why is person1 pointing? Because it's raining.", "User: Assistant: the dog and the man are outside\n\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator(text, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        additional_special_tokens=special,
    )
    pictures = Idefics3ImageProcessor(size={"longest_edge": 4 * edge}, max_image_size={"longest_edge": edge})
    Idefics3Processor(pictures, tokenizer, image_seq_len=tokens, chat_template=template).save_pretrained(folder)
    return folder


def tiny(folder: Path | None = None, **overrides: Any) -> GenerativeStudent:
    """Return a SmolVLM with weights far enough from zero to tell answers apart."""
    preset = GenerativeStudent.presets["smolvlm-tiny"]["architecture"]
    table = {**preset, "text_config": {**preset["text_config"], "initializer_range": 0.2}}
    if folder is not None:
        processor = Idefics3Processor.from_pretrained(folder)
        table |= {"image_token_id": processor.image_token_id}
        table["text_config"] |= {"vocab_size": len(processor.tokenizer), "pad_token_id": 1}
        overrides |= {"tokenizer": str(folder)}
    return seeded("smolvlm-tiny", architecture=table, **overrides)


def tiny_qwen() -> GenerativeStudent:
    """Return a Qwen3-VL with weights far enough from zero to tell answers apart."""
    preset = GenerativeStudent.presets["qwen3-vl-tiny"]["architecture"]
    table = {**preset, "text_config": {**preset["text_config"], "initializer_range": 0.2}}
    return seeded("qwen3-vl-tiny", architecture=table)


def seeded(name: str, **overrides: Any) -> GenerativeStudent:
    torch.manual_seed(0)
    return build_student(name, overrides=overrides).eval()


@pytest.fixture(scope="module")
def bytes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level_processor(tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="module", params=["words", "bytes, split", "qwen"])
def student(request: pytest.FixtureRequest, bytes_folder: Path) -> GenerativeStudent:
    """SmolVLM over the embedded vocabulary, over byte-level pieces with pictures cut into tiles; and Qwen3-VL."""
    if request.param == "qwen":
        return tiny_qwen()
    return tiny() if request.param == "words" else tiny(bytes_folder, image_splitting=True, longest_edge=128)


@pytest.fixture(scope="module")
def words() -> GenerativeStudent:
    return tiny()


def test_rows_have_the_processors_tokens_and_pictures(student: GenerativeStudent, choices: list[Example]) -> None:
    batch = student.collate(choices)
    expected = processed(student, pairs_of(choices))
    for row, ids in enumerate(expected["input_ids"]):
        length = int(batch.length_N[row])
        assert torch.equal(batch.sequence_ids_NS[row, :length], ids[:length])
        # The template's last line break is no part of what is learned.
        assert student.chat.end_id not in ids[length:].tolist()
    if student.facts.patches:
        # One picture after the other, as often as there are candidates.
        wide, tall = expected["pixel_values"].split([2 * 48 + 48, 2 * 40])
        assert_near((batch.pixels / 255 - 0.5) / 0.5, torch.cat([wide[:48], tall[:40]]))
        return
    first = [0, len(choices[0].candidates)]
    tiles = [pixels[mask.flatten(1).any(1)] for pixels, mask in zip(
        expected["pixel_values"][first], expected["pixel_attention_mask"][first], strict=True
    )]  # fmt: skip
    assert [len(picture_tiles) for picture_tiles in tiles] == list(batch.num_pixels)
    pixels = (batch.pixels / 255 - 0.5) / 0.5
    assert_near(pixels, torch.cat(tiles))


def test_the_built_in_template_renders_as_the_published_one(words: GenerativeStudent, choices: list[Example]) -> None:
    student = words
    assert student.processor.chat_template == TILES_TEMPLATE
    for pair in pairs_of(choices):
        for prompt in (True, False):
            ours, published = (
                student.processor.apply_chat_template(
                    turns(student, *pair), chat_template=template, add_generation_prompt=prompt, tokenize=False
                )
                for template in (None, PUBLISHED_TEMPLATE)
            )
            assert ours == published


def test_states_are_those_of_the_chosen_layer(student: GenerativeStudent, choices: list[Example]) -> None:
    batch = student.collate(choices)
    output = theirs(student)(**processed(student, pairs_of(choices)), output_hidden_states=True)
    chosen = student.align_layer
    for layer in (1, 3):
        student.align_layer = layer
        ours, hidden = student.encode(batch), student.encode_unimodal(batch)
        states = output.hidden_states[layer]
        for row in range(len(states)):
            for place, mask, mine in (
                (batch.text_place_NL, batch.token_mask_NL, ours.text_states_NLH),
                (batch.visual_place_NR, batch.visual_mask_NR, ours.visual_states_NRH),
            ):
                assert_near(mine[row, mask[row]], states[row, place[row, mask[row]]])
            assert_near(ours.pooled_NP[row], states[row, batch.length_N[row] - 1])
        # A hidden picture leaves its own states alone.
        assert_near(hidden.visual_states_NRH, ours.visual_states_NRH)
        assert hidden.answered is None
    student.align_layer = chosen


def test_candidates_have_transformers_likelihoods_and_loss(
    student: GenerativeStudent, choices: list[Example]
) -> None:
    batch = student.collate(choices)
    output = student.encode(batch)
    prompts = [int(answers.source_NQ[row, 0]) + 1 for answers in batch.answers for row in range(batch.num_sequences)]
    inputs = processed(student, pairs_of(choices))
    labels = labels_on_answers(student, inputs, prompts)
    model = theirs(student)
    logits = model(**inputs).logits[:, :-1].log_softmax(-1)
    wanted = labels[:, 1:]
    token = logits.gather(2, wanted.clamp(min=0)[..., None])[..., 0].masked_fill(wanted == -100, 0.0)
    assert_near(output.answered.log_likelihood_NK[:, 0], token.sum(1))
    assert_near(output.answered.scores[:, 0], token.sum(1) / (wanted != -100).sum(1))
    # The loss is of the right candidates alone, the second of each.
    kept = [1, 4]
    expected = model(**inputs).logits[kept]
    expected = torch.nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), wanted[kept].flatten())
    targets = TaskTargets(is_choice=True, label_B=torch.tensor([1, 1]), scores_BK=None)
    head = student.build_head("vcr", 1)
    assert_near(score_task("answer-lm", head, output, (3, 2), targets).loss, expected)
    alone = processed(student, [pairs_of(choices)[row] for row in kept])
    loss = model(**alone, labels=labels[kept][:, : alone["input_ids"].shape[1]]).loss
    assert_near(loss, expected)


def test_candidates_lie_in_one_row_behind_their_picture(student: GenerativeStudent, choices: list[Example]) -> None:
    """Every layer sees a picture once, one mask of the type that it computes in, and no state of it is kept."""
    batch = student.collate(choices)
    seen: list[tuple[torch.Size, torch.Tensor]] = []
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, inputs, options: seen.append((inputs[0].shape, options["attention_mask"])), with_kwargs=True
        )
        for layer in student.decoder.layers
    ]
    # torch's fused attention in bfloat16 fails where it is told to do without AVX-512 on a processor that has it.
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        pooled = student.encode_pooled(batch)
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(student.decoder.layers)
    widths = {tuple(shape[:2]) for shape, _ in seen}
    assert len(widths) == 1
    (num_rows, width), *_ = widths
    pictures = batch.visual_mask_NR.sum(1)
    assert num_rows == 2
    # A row is as long as its sequences without the pictures that they would repeat, and what fills it up to eights.
    lengths = batch.length_N.split(list(batch.num_candidates))
    repeated = [
        int(pictures[first]) * (len(example_lengths) - 1)
        for first, example_lengths in zip((0, 3), lengths, strict=True)
    ]
    most = max(int(example_lengths.sum()) - again for example_lengths, again in zip(lengths, repeated, strict=True))
    assert width % 8 == 0
    assert width <= most + 7
    masks = [mask for _, mask in seen]
    assert all(mask is masks[0] for mask in masks)
    assert masks[0].dtype == torch.bfloat16
    assert pooled.text_states_NLH.numel() == 0
    assert pooled.answered is not None


def test_labels_behind_a_sequence_score_as_if_each_were_alone(
    student: GenerativeStudent, hypotheses: list[Example]
) -> None:
    asked = student.collate(hypotheses)
    batch = student.with_answers(asked, "snli-ve", LABELS)
    output = student.encode(batch)
    model = theirs(student)
    for number, label in enumerate(LABELS):
        inputs = processed(student, [(example, example.candidates[0], label) for example in hypotheses])
        labels = labels_on_answers(student, inputs, asked.length_N.tolist())
        log_probabilities = model(**inputs).logits[:, :-1].log_softmax(-1)
        wanted = labels[:, 1:]
        token = log_probabilities.gather(2, wanted.clamp(min=0)[..., None])[..., 0].masked_fill(wanted == -100, 0.0)
        assert_near(output.answered.log_likelihood_NK[:, number], token.sum(1))
        assert output.answered.num_tokens_NK[:, number].tolist() == (wanted != -100).sum(1).tolist()
    # Labels are not divided by their length unless that is asked for.
    assert torch.equal(output.answered.scores, output.answered.log_likelihood_NK)
    # What lies behind a sequence changes none of its states.
    assert_near(output.text_states_NLH, student.encode(asked).text_states_NLH)


def test_a_long_list_is_scored_in_parts(
    words: GenerativeStudent, hypotheses: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = words
    names = [f"{word} {other}" for word in ("red", "green", "two") for other in ("dogs", "children", "of them")]
    asked = student.collate(hypotheses)
    whole = student.encode(student.with_answers(asked, "vqa", names)).answered
    monkeypatch.setattr(answers_module, "TOKENS_AT_ONCE", 5)
    monkeypatch.setattr(answers_module, "ROWS_AT_ONCE", 7)
    parts = student.with_answers(asked, "vqa", names)
    assert len(parts.answers) > 3
    in_parts = student.encode(parts).answered
    assert_near(in_parts.log_likelihood_NK, whole.log_likelihood_NK)
    assert torch.equal(in_parts.num_tokens_NK, whole.num_tokens_NK)


def test_training_scores_the_answers_that_annotators_gave(
    words: GenerativeStudent, hypotheses: list[Example]
) -> None:
    student = words
    names = ("yes", "no", "two dogs", "red")
    asked = student.collate(hypotheses)
    every = student.encode(student.with_answers(asked, "vqa", names)).answered
    scores = torch.tensor([[0.0, 0.3, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    output = student.encode(student.with_answers(asked, "vqa", names, scores > 0))
    assert_near(output.answered.scores[0, 1:3], every.scores[0, 1:3])
    assert output.answered.scores[scores == 0].eq(-torch.inf).all()
    targets = TaskTargets(is_choice=False, label_B=None, scores_BK=scores)
    scored = score_task("answer-lm", student.build_head("vqa", 4), output, (1, 1), targets)
    share = torch.tensor([0.3 / 1.3, 1.0 / 1.3])
    likelihood, number = every.log_likelihood_NK[0, 1:3], every.num_tokens_NK[0, 1:3]
    torch.testing.assert_close(scored.loss, -(share * likelihood).sum() / (share * number).sum())


def test_generated_tokens_are_transformers(student: GenerativeStudent, hypotheses: list[Example]) -> None:
    batch = student.collate(hypotheses)
    inputs = processed(student, pairs_of(hypotheses), "left")
    settings = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": student.chat.pad_id}
    generated = theirs(student).generate(**inputs, **settings, eos_token_id=student.chat.end_id)
    expected = [student.chat.decode(row) for row in generated[:, inputs["input_ids"].shape[1] :].tolist()]
    assert student.generate(batch) == expected
    assert any(expected)


def test_every_tile_token_lies_where_its_tile_shows(tmp_path: Path) -> None:
    """A place that is painted over changes the state of the tile's token there most."""
    student = tiny(image_splitting=True, longest_edge=128)
    unit = picture(tmp_path / "a.png")
    batch = student.collate([question(unit, "Is it so?", "vqa")])
    places = batch.places_BR4[0]
    side = 4  # 64 pixels in patches of 8, shuffled two by two.
    assert places.shape == (5 * side**2, 4)
    x1, y1, x2, y2 = places.unbind(1)
    areas = ((x2 - x1) * (y2 - y1)).split([4 * side**2, side**2])
    torch.testing.assert_close(torch.stack([area.sum() for area in areas]), torch.ones(2))
    before = student.encode_unimodal(batch).visual_states_NRH[0]
    for token in (5, 2 * side**2 + 7):
        other = inverted(unit, places[token].numpy(), tmp_path / f"{token}.png")
        after = student.encode_unimodal(student.collate([question(other, "Is it so?", "vqa")])).visual_states_NRH[0]
        change = (after - before).norm(dim=1)[: 4 * side**2]
        assert int(change.argmax()) == token


def test_lengths_are_normalised_as_asked(
    words: GenerativeStudent, choices: list[Example], hypotheses: list[Example]
) -> None:
    config = words.config
    for kind, divided in (("choices", (True, False)), ("all", (True, True)), ("none", (False, False))):
        words.config = dataclasses.replace(config, length_normalised=kind)
        asked = words.collate(choices), words.with_answers(words.collate(hypotheses), "snli-ve", LABELS)
        for batch, is_divided in zip(asked, divided, strict=True):
            answered = words.encode(batch).answered
            number = answered.num_tokens_NK if is_divided else 1
            torch.testing.assert_close(answered.scores, answered.log_likelihood_NK / number)
    words.config = config


@pytest.mark.parametrize("name", ["smolvlm-256m", "qwen3-vl-2b"])
def test_published_files_fill_the_student(
    name: str, tmp_path: Path, bytes_folder: Path, choices: list[Example]
) -> None:
    """A folder as the hub has it, of any size: config, weights under transformers' names, processor."""
    is_qwen = name.startswith("qwen")
    settings = {} if is_qwen else {"image_splitting": False}
    source = tiny_qwen() if is_qwen else tiny(bytes_folder, **settings)
    theirs(source).save_pretrained(tmp_path / "published")
    source.processor.save_pretrained(tmp_path / "published")
    filled = build_student(name, weights=tmp_path / "published", overrides=settings).eval()
    assert filled.hidden_size == source.hidden_size
    with torch.no_grad():
        ours, expected = (student.encode(student.collate(choices)) for student in (filled, source))
    assert torch.equal(ours.pooled_NP, expected.pooled_NP)


def test_tied_words_are_loaded_and_saved_once(tmp_path: Path) -> None:
    preset = GenerativeStudent.presets["smolvlm-tiny"]["architecture"]
    text = {**preset["text_config"], "tie_word_embeddings": True}
    table = {**preset, "tie_word_embeddings": True, "text_config": text}
    student = build_student("smolvlm-tiny", overrides={"architecture": table})
    student.model.save_pretrained(tmp_path / "hub")
    again = build_student("smolvlm-tiny", weights=tmp_path / "hub", overrides={"tokenizer": "minilm-l6"})
    assert torch.equal(again.model.lm_head.weight, student.model.lm_head.weight)


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no layer 4") as refused:
        tiny(align_layer=4)
    assert refused.value.why == "its language model has 3"


@pytest.mark.parametrize("changed", [{}, {"edge": 32}, {"tokens": 4}], ids=["words", "tile", "tokens"])
def test_a_processor_of_another_model_is_refused(
    changed: dict[str, int], tmp_path: Path, bytes_folder: Path, hypotheses: list[Example]
) -> None:
    folder = byte_level_processor(tmp_path / "other", **changed) if changed else bytes_folder
    student = tiny(bytes_folder) if changed else tiny()
    stranger = build_student(
        "smolvlm-tiny",
        overrides={"architecture": dict(student.config.architecture), "tokenizer": str(folder)},
    )
    with pytest.raises(ConfigError, match="does not belong to these weights") as refused:
        stranger.collate(hypotheses)
    assert refused.value.where == str(folder)
    with pytest.raises(ConfigError, match="does not belong"):
        stranger.require_inputs()


@pytest.mark.parametrize("name", ["smolvlm-tiny", "qwen3-vl-tiny"])
def test_a_folder_without_a_processor_is_named(name: str, tmp_path: Path) -> None:
    student = build_student(name, overrides={"tokenizer": str(tmp_path)})
    with pytest.raises(WeightsUnavailable, match="processor is not at hand") as missing:
        student.require_inputs()
    assert missing.value.where == str(tmp_path)


@pytest.mark.parametrize("template", ["", "{{ messages[0]['content'][1]['text'] }}"])
def test_a_template_that_cannot_chat_is_refused(template: str, tmp_path: Path) -> None:
    student = tiny(byte_level_processor(tmp_path / "mute", template=template))
    with pytest.raises(ConfigError, match="cannot lay out a conversation"):
        student.require_inputs()


def test_a_text_that_names_the_pictures_token_is_refused(words: GenerativeStudent, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="stands for the picture"):
        words.collate([question(picture(tmp_path / "a.png"), "What is <image> here?", "vqa")])


@pytest.mark.parametrize(
    ("name", "settings", "option"),
    [
        ("smolvlm-tiny", {"image_splitting": True, "longest_edge": 64 * 6}, "image_splitting=false"),
        ("qwen3-vl-tiny", {"max_pixels": 1 << 19}, "max_pixels="),
    ],
)
def test_a_picture_of_too_many_tokens_is_refused(
    name: str, settings: dict[str, Any], option: str, tmp_path: Path
) -> None:
    student = build_student(name, overrides=settings)
    with pytest.raises(DatasetError, match="has 1024 positions") as refused:
        student.collate([question(picture(tmp_path / "a.png", 900, 700), " ".join(["word"] * 600), "vqa")])
    assert option in refused.value.next_command


def test_a_picture_of_more_tiles_than_the_model_names_is_refused(tmp_path: Path) -> None:
    wide = tiny(image_splitting=True, longest_edge=64 * 8)
    with pytest.raises(ConfigError, match="names 6 x 6"):
        wide.collate([question(picture(tmp_path / "b.png", 200, 200), "Is it?", "vqa")])


def test_texts_are_cut_as_the_published_file_says(tmp_path: Path) -> None:
    """transformers makes the tokenizer of SmolVLM's class anew, and leaves out that digits stand alone."""
    folder = byte_level_processor(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "GPT2Tokenizer"}))
    text = "How  many   12 dogs  1984?"
    published = Tokenizer.from_file(str(folder / "tokenizer.json"))
    student = tiny(folder)
    student.save_inputs(tmp_path / "saved")
    for opened in (student, tiny(tmp_path / "saved" / names.PROCESSOR)):
        tokenizer = opened.processor.tokenizer
        assert str(tokenizer.backend_tokenizer.pre_tokenizer) == str(published.pre_tokenizer)
        expected = published.encode(text, add_special_tokens=False).ids
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected
