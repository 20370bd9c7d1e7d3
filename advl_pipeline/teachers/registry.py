"""Teachers by name, with their metadata: the catalogue, the prefixes `hf:`, `timm:` and `random:`, and plug-ins.

Only `open_teacher` imports a model library or accesses the network. A plug-in is an entry point of group
`advl.teachers` whose object is called with `OpenOptions` and returns a `Teacher`. A `DescribedTeacher` is listed like
a built-in one (`docs/adding-a-teacher.md`). Metadata are plain JSON types.
"""

from __future__ import annotations

import dataclasses
import logging
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any, Literal

from advl_pipeline.base.compute import drawing
from advl_pipeline.base.configuration import build_config
from advl_pipeline.base.errors import AdvlError, ConfigError, advise, unknown_name
from advl_pipeline.base.packages import entry_points, load_plugin, plugin_error, read_data
from advl_pipeline.base.repositories import HUB_PREFIX, is_at_hand
from advl_pipeline.teachers.open_options import OpenOptions

if TYPE_CHECKING:
    from advl_pipeline.teachers.interface import Teacher

_log = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "advl.teachers"

BYTES_PER_VALUE = 2
"""Features are stored as float16 by default."""

BYTES_PER_SPAN = 8
"""Two int32 character offsets per word piece."""

DOORS: dict[str, str] = {
    "hf:ORG/MODEL": "any supported model on the Hugging Face hub; hf:ORG/MODEL@REVISION pins it",
    "timm:MODEL": "any image model of timm",
    "random:NAME": "the architecture of another teacher with random weights: a control; random:NAME@SEED",
    "pictures:SIZE": "no network: the pictures squeezed to SIZE x SIZE pixels, as `advl prepare` stores them",
}
"""Name prefixes that open teachers outside the catalogue."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherCard:
    """Metadata of a teacher, available without its weights.

    `source_id` is a repository ORG/MODEL, a timm model, or a plug-in's source of the weights. `model_type` is the
    model type in transformers, "" for timm. `architecture` is the timm model of the weights.
    Widths: `image_dim` and `text_dim` of the global features, `grid_dim` of a patch of the `grid_shape` map,
    `token_dim` of a word piece. They describe the published weights, and `advl teachers check` verifies them.
    `max_length` counts word pieces with special tokens. `megabytes` is the size of the download in fp32 or as
    published. `prompt` is the text prefix documented on the model's page, if its files do not define one.
    """

    name: str
    source: Literal["transformers", "timm", "plug-in"]
    source_id: str
    modalities: tuple[Literal["image", "text"], ...]
    about: str
    licence: str
    megabytes: int
    image_dim: int = 0
    grid_dim: int = 0
    grid_shape: tuple[int, int] = (0, 0)
    text_dim: int = 0
    token_dim: int = 0
    max_length: int = 0
    model_type: str = ""
    global_feature: str = ""
    architecture: str = ""
    prompt: str = ""

    @property
    def states_sizes(self) -> bool:
        """Whether the card states the rows and widths of all picture features and the widths of all text features."""
        sizes = {"image": (self.image_dim, self.grid_dim, *self.grid_shape), "text": (self.text_dim, self.token_dim)}
        return bool(self.modalities) and all(all(sizes[modality]) for modality in self.modalities)

    @property
    def repository(self) -> str:
        """The hub repository with its weights."""
        return f"timm/{self.source_id}" if self.source == "timm" else self.source_id


@dataclass(frozen=True, kw_only=True)
class DescribedTeacher:
    """An opener with metadata, which a teacher's entry point may name instead of a bare opener.

    `is_at_hand` tells whether the weights are on this machine; `how_to_get` is the command that downloads them.
    """

    card: TeacherCard
    open: Callable[[OpenOptions], Teacher]
    is_at_hand: Callable[[], bool]
    how_to_get: str

    def __call__(self, options: OpenOptions) -> Teacher:
        return self.open(options)


def read_teacher_cards(text: str) -> dict[str, TeacherCard]:
    """Return the cards of a TOML file by name, in file order."""
    return {name: build_config(TeacherCard, {"name": name}, facts) for name, facts in tomllib.loads(text).items()}


CATALOGUE: dict[str, TeacherCard] = read_teacher_cards(read_data("teachers.toml"))
"""Cards by name, in the order of `advl teachers list`."""


def open_teacher(name: str, **settings: Any) -> Teacher:
    """Open a frozen teacher.

    Args:
        name: a catalogue name, `hf:ORG/MODEL[@REVISION]`, `timm:MODEL`, `random:NAME[@SEED]`, or a plug-in's name.
        settings: other fields of `OpenOptions`.

    Raises:
        ConfigError: the name (similar ones are listed), device or model type is unknown.
        WeightsUnavailable: the weights are missing; the error says what to install or where to put them.
    """
    door, inner, seed = _resolved(name)
    options = OpenOptions(name=name, random_seed=seed, **settings)
    card = None if door else CATALOGUE.get(inner)
    with drawing():
        if door == "pictures":
            from advl_pipeline.teachers.image_tower import open_squares

            return open_squares(inner)
        if door == "timm" or (card is not None and card.source == "timm"):
            from advl_pipeline.teachers.timm_family import open_timm

            return open_timm(card.architecture if card else inner, options, weights=options.weights)
        if door == "hf" or card is not None:
            from advl_pipeline.teachers.transformers_family import open_transformers

            if card is None:
                return open_transformers(inner, options)
            return open_transformers(card.source_id, options, model_type=card.model_type, prompt=card.prompt)
        return _open_plugin(teacher_plugins()[inner], options)


def _resolved(name: str) -> tuple[str, str, int | None]:
    """Return the prefix of a name ("" for a named teacher), the name without it, and the seed of `random:`.

    Raises:
        ConfigError: the name opens no teacher.
    """
    door, _, rest = name.partition(":")
    seed = None
    if rest and door == "random":
        name, _, digits = rest.partition("@") if not rest.startswith(HUB_PREFIX) else (rest, "", "")
        if digits and not digits.isdigit():
            raise ConfigError(f"The seed of 'random:{rest}' is no number.", where="--teacher")
        seed = int(digits or 0)
        door, _, rest = name.partition(":")
    if rest and door in ("hf", "timm", "pictures"):
        return door, rest, seed
    if name in known_names():
        return "", name, seed
    raise _unknown(name)


def _unknown(name: str) -> ConfigError:
    listing = advise(["advl", "teachers", "list"])
    return unknown_name(f"There is no teacher {name!r}.", name, [*known_names(), *DOORS], next_command=listing)


def teacher_plugins() -> dict[str, EntryPoint]:
    """Return the installed plug-ins by name."""
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def known_names() -> list[str]:
    """Return every name of the catalogue and of installed plug-ins, in listing order."""
    return [*CATALOGUE, *sorted(teacher_plugins())]


def require_teacher(name: str) -> None:
    """Refuse a name that opens no teacher, before anything is loaded; `hf:` names are not looked up on the hub.

    Raises:
        ConfigError: no teacher has that name.
    """
    _resolved(name)


def is_of_hub(name: str) -> bool:
    """Return whether a teacher comes from a hub repository at a revision that its name does not pin.

    A teacher passed from Python has no repository and may have any name.
    """
    if ":" not in name and name not in known_names():
        return False
    door, inner, _ = _resolved(name)
    return door == "timm" or (door == "hf" and "@" not in inner) or (not door and inner in CATALOGUE)


def _open_plugin(point: EntryPoint, options: OpenOptions) -> Teacher:
    """Open a plug-in and verify that its random control is a different teacher."""
    opener = load_plugin(point, "teacher")
    try:
        teacher: Teacher = opener(options)
    except (AdvlError, PermissionError):
        raise
    except Exception as error:
        raise plugin_error(point, "teacher", error) from error
    if options.random_seed is None:
        return teacher
    try:
        # Building a network draws random numbers; later code must not be affected.
        with drawing(0):
            usual: Teacher = opener(dataclasses.replace(options, random_seed=None))
    except Exception as error:  # A plug-in may raise anything; its teacher is then unavailable.
        _log.warning(
            "The control %r is not compared with %r, which cannot be opened: %s: %s",
            *(options.name, point.name, type(error).__name__, error),
        )
        return teacher
    drawn, known = (
        [tower.describe() for tower in (compared.image, compared.text) if tower is not None]
        for compared in (teacher, usual)
    )
    if drawn == known:
        raise ConfigError(
            f"The control teacher {options.name!r} must have random weights, and has those of {point.name!r}.",
            where=f"entry point {point.value}",
            why="its plug-in ignores `random_seed` of its options",
            next_command="leave out the control, or make the plug-in obey it (docs/adding-a-teacher.md)",
        )
    return teacher


def described(name: str) -> DescribedTeacher | None:
    """Return a plug-in's teacher that has metadata; None for any other name.

    Raises:
        ConfigError: as `load_plugin`.
    """
    plugins = teacher_plugins()
    plugin = load_plugin(plugins[name], "teacher") if name in plugins else None
    return plugin if isinstance(plugin, DescribedTeacher) else None


def card_of(name: str) -> TeacherCard | None:
    """Return the card of a catalogue or plug-in name; None if it has no card.

    Raises:
        ConfigError: as `load_plugin`.
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    plugin = described(name)
    return plugin.card if plugin else None


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherSummary:
    """An entry of the list of teachers. `at_hand`: its weights are on this machine; None if only a plug-in knows."""

    name: str
    at_hand: bool | None = None
    modalities: tuple[str, ...] = ()
    megabytes: int = 0
    licence: str = ""
    about: str = "plug-in"


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureSize:
    """The width of an array of a cache, and its bytes per unit, such as per "picture"."""

    feature: str
    width: int
    num_bytes: int
    per: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherDetails:
    """The metadata of a teacher and the features it would extract.

    `features` is empty if they are known only after the teacher is opened, `how_to_get` if its weights are at hand.
    """

    summary: TeacherSummary
    source: str
    global_feature: str
    long_texts: str
    features: tuple[FeatureSize, ...]
    how_to_get: str


def list_teachers() -> list[TeacherSummary]:
    """Return one entry per named teacher, plug-ins last; the entry of an unusable teacher says so."""
    lines = []
    for name in known_names():
        try:
            lines.append(_summary(name, card_of(name)))
        except ConfigError as error:
            lines.append(TeacherSummary(name=name, about=error.what))
    return lines


def show_teacher(name: str) -> TeacherDetails:
    """Return the metadata of a teacher, by any name that opens one.

    Raises:
        ConfigError: the name is unknown; similar ones are listed.
    """
    door, inner, seed = _resolved(name)
    if door == "pictures":
        raise _unknown(name)
    card = None if door else card_of(inner)
    if door:
        card = TeacherCard(
            name=name,
            source="transformers" if door == "hf" else "timm",
            source_id=inner,
            modalities=("image",) if door == "timm" else (),
            about=f"any model: {inner}",
            licence="see its page",
            megabytes=0,
        )
    summary = _summary(name, card)
    if seed is not None:
        summary = dataclasses.replace(summary, about=f"random weights (control): {summary.about}")
    if card is None:
        return TeacherDetails(
            summary=summary,
            source=f"plug-in {teacher_plugins()[inner].value}",
            global_feature="as the plug-in has it",
            long_texts="as the plug-in has it",
            features=(),
            how_to_get="",
        )
    plugin = described(card.name)
    windows = f"{card.max_length} word pieces" if card.max_length else "the model's longest input"
    how_to_get = f"fetched when first used; or: hf download {card.repository} --local-dir DIR, then --weights DIR"
    return TeacherDetails(
        summary=summary,
        source=f"{card.source}: {card.source_id}",
        global_feature=card.global_feature or "by the model's type, known once it is opened",
        long_texts=f"overlapping windows of {windows}, nothing is cut" if "text" in card.modalities else "",
        features=_sizes(card),
        how_to_get="" if summary.at_hand else plugin.how_to_get if plugin else how_to_get,
    )


def _summary(name: str, card: TeacherCard | None) -> TeacherSummary:
    if card is None:
        return TeacherSummary(name=name)
    return TeacherSummary(
        name=name,
        at_hand=is_teacher_at_hand(card),
        modalities=card.modalities,
        megabytes=card.megabytes,
        licence=card.licence,
        about=card.about,
    )


def is_teacher_at_hand(card: TeacherCard) -> bool:
    """Return whether a teacher's weights are installed or in the hub's cache; nothing is fetched."""
    if plugin := described(card.name):
        try:
            return plugin.is_at_hand()
        except Exception as error:
            raise plugin_error(teacher_plugins()[card.name], "teacher", error) from error
    return is_at_hand(card.repository)


def _sizes(card: TeacherCard) -> tuple[FeatureSize, ...]:
    rows, columns = card.grid_shape
    sizes = [
        ("image global", card.image_dim, 1, "picture"),
        ("image tokens, boxes", card.image_dim, 1, "box"),
        (f"image tokens, grid {rows} x {columns}", card.grid_dim, rows * columns, "picture"),
        ("text global", card.text_dim, 1, "text"),
        ("text tokens", card.token_dim, 1, "word piece"),
    ]
    return tuple(
        FeatureSize(
            feature=feature,
            width=width,
            num_bytes=width * number * BYTES_PER_VALUE + (BYTES_PER_SPAN if per == "word piece" else 0),
            per=per,
        )
        for feature, width, number, per in sizes
        if width
    )
