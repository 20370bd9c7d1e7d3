"""Conversation rows in the formats of TRL, ms-swift and LLaMA-Factory: each question becomes an item.

A row has `messages` (or `conversations`), and its picture in `images`, in `image`, or in a part of a message. Each
question is independent: earlier turns of the conversation are not part of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from advl_pipeline.datasets.problems import Malformed, shown, unlike
from advl_pipeline.datasets.row_files import parsed_cell

TURNS = ("messages", "conversations")
"""Columns with the turns of a conversation; the second is the name in ShareGPT and LLaVA."""

_ROLES: Mapping[str, str] = {"human": "user", "gpt": "assistant"}
"""ShareGPT's names of the roles -> those of chat templates."""

_PLACEHOLDER = "<image>"
_PICTURE_KEYS = ("image", "image_path", "path")


def turns_as_questions(record: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the questions of a conversation as separate records; None for a row that is not a conversation.

    Each has `question`, `answer` if it is answered, `image` if the row has a picture, and the other columns.

    Raises:
        Malformed: the turns are invalid, or contain no question.
    """
    column = next((name for name in TURNS if name in record), "")
    if not column or {"question", "text"} & record.keys():
        return None
    turns = parsed_cell(record, column)
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise unlike(column, turns, "a list of {role, content}")
    pictures: list[Any] = []
    asked: list[str] = []
    answered: list[tuple[str, str | None]] = []
    for place, turn in enumerate(turns):
        role, texts = _read(turn, f"{column}[{place}]", pictures)
        if role == "assistant" and asked:
            answered.append((" ".join(asked), " ".join(texts)))
            asked = []
        elif role in ("user", "system"):
            asked += texts
        else:
            raise Malformed(
                f"field '{column}[{place}]' "
                + ("answers nothing" if role == "assistant" else f"is of the role {shown(role)}")
                + ", expected user and assistant in turn"
            )
    if asked:
        answered.append((" ".join(asked), None))
    if not answered:
        raise Malformed(f"field {column!r} asks nothing")
    listed = record.get("images")
    whole = [*(listed if isinstance(listed, list) else [] if listed is None else [listed]), *pictures]
    if "image" in record:
        whole.append(record["image"])
    if len(whole) > 1:
        raise Malformed(f"the conversation is about {len(whole)} pictures, and an item is about one")
    others = {name: value for name, value in record.items() if name not in (*TURNS, "images", "image")}
    picture = {"image": whole[0]} if whole else {}
    return [
        others | picture | {"question": question} | ({} if answer is None else {"answer": answer})
        for question, answer in answered
    ]


def _read(turn: Any, where: str, pictures: list[Any]) -> tuple[str, list[str]]:
    """Return the role and the text of a turn without the picture placeholder; add its pictures to the list."""
    if not isinstance(turn, Mapping):
        raise unlike(where, turn, "{role, content}")
    speaker = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts: list[str] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "image":
            pictures += [part[key] for key in _PICTURE_KEYS if part.get(key) is not None][:1]
        elif kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"].replace(_PLACEHOLDER, " ").strip())
        else:
            raise unlike(f"{where}.content", part, "a text, or parts of text and image")
    return _ROLES.get(str(speaker), str(speaker)), [text for text in texts if text]
