"""Read an HTML page strictly enough to notice what a browser forgives."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "input", "hr", "source"}


@dataclass
class Element:
    """One element with its attributes, children and text."""

    tag: str
    attributes: dict[str, str]
    parent: Element | None = None
    children: list[Element] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)

    def find(self, tag: str, **attributes: str) -> list[Element]:
        """Descendants by tag and attribute values; `class_` finds one class among several."""
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        found = []
        for child in self.children:
            matches = all(
                value in child.attributes.get(name, "").split()
                if name == "class"
                else child.attributes.get(name) == value
                for name, value in wanted.items()
            )
            if child.tag == tag and matches:
                found.append(child)
            found += child.find(tag, **attributes)
        return found

    def everything(self) -> list[Element]:
        return [item for child in self.children for item in (child, *child.everything())]

    @property
    def text(self) -> str:
        return " ".join(" ".join([*self.pieces, *(child.text for child in self.children)]).split())


class PageReader(HTMLParser):
    """Builds the tree and fails on tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element(tag="root", attributes={})
        self._open = self.root

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> repeats an attribute: {names}"
        element = Element(tag=tag, attributes={name: value or "" for name, value in attrs}, parent=self._open)
        self._open.children.append(element)
        if tag not in VOID:
            self._open = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.tag == tag, f"</{tag}> closes <{self._open.tag}> at {self.getpos()}"
        assert self._open.parent is not None
        self._open = self._open.parent

    def handle_data(self, data: str) -> None:
        self._open.pieces.append(data)


def read_page(text: str) -> Element:
    reader = PageReader()
    reader.feed(text)
    reader.close()
    assert reader._open is reader.root, f"<{reader._open.tag}> is never closed"
    return reader.root


def drawings(element: Element, scheme: str = "img src") -> list[Element]:
    """Return the drawings in an element, in the colours of the light page, or of the dark one."""
    tag, name = scheme.split()
    images = (image.attributes[name].partition(",")[2] for image in element.find(tag))
    return [read_page(base64.b64decode(image).decode()) for image in images]


def is_beside(text: Element) -> bool:
    """Tell whether a text of a drawing names a place of its upright axis."""
    return "text-anchor: end" in text.attributes["style"]
