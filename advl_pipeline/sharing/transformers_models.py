"""Students as models of transformers. A family is one entry of `FAMILIES`: its classes, its names, and a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import (
    BridgeTowerModel,
    LxmertForQuestionAnswering,
    ModernVBertForSequenceClassification,
    PreTrainedModel,
    ViltForQuestionAnswering,
    VisualBertConfig,
    VisualBertForMultipleChoice,
    VisualBertForQuestionAnswering,
    VisualBertForVisualReasoning,
)

from advl_pipeline.errors import ConfigError
from advl_pipeline.students.bridgetower import bridgetower_config
from advl_pipeline.students.interface import Student
from advl_pipeline.students.lxmert import lxmert_config
from advl_pipeline.students.modernvbert import ModernVBert, modernvbert_config
from advl_pipeline.students.registry import door_of, family_of
from advl_pipeline.students.vilt import vilt_config

PICTURE_CALL = """\
processor = AutoProcessor.from_pretrained(folder, backend="pil")
picture = Image.open("picture.png").convert("RGB")  # Lay transparent pixels over white first.
inputs = processor(
    images=[picture] * len(texts), text=texts, text_pair=answers, padding=True, truncation=True, return_tensors="pt"
)
"""

REGION_CALL = """\
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer(texts, answers, padding=True, truncation=True, return_tensors="pt")
regions = load_file("regions.safetensors")  # One picture: features (R, F); places (R, 4), x1 y1 x2 y2 as shares.
features, places = (regions[name].expand(len(texts), -1, -1) for name in ("features", "places"))
"""


ANSWER_CALL = """\
processor = AutoProcessor.from_pretrained(folder)
pictures = [[Image.open("picture.png").convert("RGB")]]
asked = [{"type": "image"}, {"type": "text", "text": texts[0] + CLOSING}]
prompt = processor.apply_chat_template([{"role": "user", "content": asked}], add_generation_prompt=True)
start = processor(text=prompt, images=pictures, add_special_tokens=False, return_tensors="pt")
logits = []
for answer in answers:
    whole = prompt + LEAD + answer + processor.tokenizer.eos_token
    inputs = processor(text=whole, images=pictures, add_special_tokens=False, return_tensors="pt")
    ids, first = inputs["input_ids"][0], start["input_ids"].shape[1]
    words = model(**inputs).logits[0, first - 1 : -1].log_softmax(-1)
    logits.append(words.gather(1, ids[first:, None]).MEAN())
logits = torch.stack(logits)
"""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one family of students is laid out in transformers.

    `build(student, task, num_classes)` gives the empty model. `body` replaces "model." in the student's names;
    `head` maps starts of the head's names to theirs, and is empty where transformers has no such head: it is kept in
    a file beside the model. `call` is what a user types after `texts`, `answers` and `folder`, up to `logits`; of a
    student and its head, where it depends on them.
    """

    build: Callable[[Any, str, int], PreTrainedModel]
    body: str
    head: Mapping[str, str]
    call: str | Callable[[Any, str], str]
    types: bool = True


def family_for(student: Student) -> Family | None:
    """Return how a student becomes a model of transformers; None where transformers has no such model."""
    return None if door_of(student.name) else FAMILIES.get(family_of(student.name))


def transformers_model(family: Family, student: Student, head: nn.Module, task: str) -> PreTrainedModel:
    """Return the model with the weights of the student and of its head.

    Raises:
        ConfigError: the weights do not fill it.
    """
    weights = {family.body + key.removeprefix("model."): value for key, value in student.state_dict().items()}
    for key, value in head.state_dict().items():
        weights |= {
            theirs + key.removeprefix(ours): value for ours, theirs in family.head.items() if key.startswith(ours)
        }
    model = family.build(student, task, num_classes_of(head))
    try:
        model.load_state_dict({key: value.float() for key, value in weights.items()})
    except RuntimeError as error:
        raise ConfigError(f"{student.name} does not fill its model of transformers.", why=str(error)) from None
    return model.eval()


def num_classes_of(head: nn.Module) -> int:
    """Return the width of what a head gives: that of its last layer; 0 where answers are words."""
    return next((int(part.out_features) for part in reversed([*head.modules()]) if isinstance(part, nn.Linear)), 0)


def image_tokens_of(student: Student) -> tuple[int, ...]:
    """Return the ids that stand for a picture among those of a text; most models take none."""
    return (student.config.vocab_size - 1,) * student.num_visual if isinstance(student, ModernVBert) else ()


def _empty(kind: Callable[[Any], PreTrainedModel], config: Any, **sizes: int) -> PreTrainedModel:
    """Return a model of a configuration in which some sizes are other ones."""
    config.update(sizes)
    return kind(config)


_VISUALBERT = {
    "vcr": VisualBertForMultipleChoice,
    "vqa": VisualBertForQuestionAnswering,
    "snli-ve": VisualBertForVisualReasoning,
}


def _visualbert(student: Any, task: str, num_classes: int) -> PreTrainedModel:
    config = student.config
    return _VISUALBERT[task](
        VisualBertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.intermediate_size,
            visual_embedding_dim=config.feature_size,
            max_position_embeddings=config.max_positions,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            layer_norm_eps=1e-12,
            num_labels=num_classes,
        )
    )


def _chat_call(student: Any, task: str) -> str:
    closing = "".join(f"\n{line}" for line in [student.instruction(task)] if line)
    normalised = student.config.length_normalised
    summed = normalised == "none" or (normalised == "choices" and task != "vcr")
    call = ANSWER_CALL.replace("CLOSING", repr(closing)).replace("LEAD", repr(student.chat.lead))
    return call.replace("MEAN", "sum" if summed else "mean")


FAMILIES: Mapping[str, Family] = {
    "vilt": Family(
        build=lambda student, task, num_classes: _empty(
            ViltForQuestionAnswering, vilt_config(student.config), num_labels=num_classes
        ),
        body="vilt.",
        head={"": "classifier."},
        call=PICTURE_CALL + "logits = model(**inputs).logits\n",
    ),
    "bridgetower": Family(
        build=lambda student, task, num_classes: BridgeTowerModel(
            bridgetower_config(student.config, pad_id=student.tokenizer.pad_id)
        ),
        body="",
        head={},
        types=False,
        call=PICTURE_CALL
        + """\
weights = load_file(f"{folder}/head.safetensors")
width, num_classes = weights["0.bias"].numel(), weights["3.bias"].numel()
head = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, num_classes))
head.load_state_dict(weights)
logits = head(model(**inputs).pooler_output)
""",
    ),
    "modernvbert": Family(
        build=lambda student, task, num_classes: _empty(
            ModernVBertForSequenceClassification,
            modernvbert_config(student.config, student.tokenizer),
            num_labels=num_classes,
        ),
        body="model.",
        head={"0.": "head.dense.", "2.": "head.norm.", "3.": "classifier."},
        types=False,
        call=PICTURE_CALL
        + """\
inputs["pixel_values"] = inputs["pixel_values"][:, None]
logits = model(**inputs).logits
""",
    ),
    "visualbert": Family(
        build=_visualbert,
        body="visual_bert.",
        head={"1.": "cls."},
        call=REGION_CALL
        + """\
inputs |= {"visual_embeds": features, "visual_token_type_ids": torch.zeros(features.shape[:2], dtype=torch.long)}
if "MultipleChoice" in type(model).__name__:
    inputs = {name: value[None] for name, value in inputs.items()}
logits = model(**inputs).logits
""",
    ),
    "lxmert": Family(
        build=lambda student, task, num_classes: _empty(
            LxmertForQuestionAnswering, lxmert_config(student.config), num_qa_labels=num_classes
        ),
        body="lxmert.",
        head={"": "answer_head.logit_fc."},
        call=REGION_CALL
        + "logits = model(**inputs, visual_feats=features, visual_pos=places).question_answering_score\n",
    ),
    **dict.fromkeys(
        ("smolvlm", "qwen3-vl"),
        Family(
            build=lambda student, task, num_classes: type(student.model)(student.model.config),
            body="",
            head={},
            call=_chat_call,
        ),
    ),
}
"""Family of students -> how it becomes a model of transformers. One more family is one more entry."""
