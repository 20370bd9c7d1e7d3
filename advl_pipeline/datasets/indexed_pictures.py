"""The pictures of a split, by the names in its rows: checks of the files, and their image units.

The code in the index identifies a picture. Legend: R boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.errors import DatasetError, advise
from advl_pipeline.datasets.boxes import TOLERANCE, read_vcr_boxes
from advl_pipeline.datasets.fingerprint import Depth, FileDigests, FileFacts
from advl_pipeline.datasets.index import Index
from advl_pipeline.datasets.index_files import PICTURES_FOLDER
from advl_pipeline.datasets.own.hub_files import lies_inside
from advl_pipeline.datasets.pictures import decode_picture, read_file, require_content
from advl_pipeline.datasets.problems import Malformed, Problem, refuse
from advl_pipeline.datasets.reading import Reading
from advl_pipeline.datasets.records import ImageUnit, image_unit_id
from advl_pipeline.datasets.rows import HELD


class IndexedPictures:
    """Pictures of a split.

    Args:
        index: index of all rows.
        rows: positions of the split's rows.
        split: name for error messages.
        reading: locates pictures.
    """

    def __init__(self, index: Index, rows: npt.NDArray[np.int64], *, split: str, reading: Reading) -> None:
        self.rows = rows
        self._index, self._split = index, split
        self._reading = reading
        self._fetched = reading.held
        self._home = index.source.pictures
        self._files = FileDigests(self._home, index.folder)
        self._units: dict[int, ImageUnit] = {}

    @cached_property
    def used(self) -> dict[int, int]:
        """Used pictures, in order of first appearance -> the first row that uses each."""
        images, places = np.unique(self._index.file.numbers("image")[self.rows], return_index=True)
        order = np.argsort(places)
        return dict(zip(images[order].tolist(), self.rows[places[order]].tolist(), strict=True))

    @cached_property
    def held(self) -> dict[int, str]:
        """Used pictures inside files of the hub -> their names."""
        names = ((image, self._index.picture(image).name) for image in self.used)
        return {image: name for image, name in names if name.startswith(HELD)}

    def require_room(self) -> None:
        """Refuse the pictures of the split if the disk has no space for those to download."""
        if self._fetched is not None:
            self._fetched.require_room(self.held.values())

    def file_names(self, image: int) -> tuple[str, ...]:
        """Return the picture's file and the other files of its unit, relative to the pictures folder."""
        picture = self._index.picture(image)
        if picture.name.startswith(HELD) and self._fetched is not None:
            return (str(self._fetched.file_of(picture.name)),)
        if picture.name.startswith("/"):
            return (str(self._index.folder.absolute() / PICTURES_FOLDER / picture.name[1:]),)
        name = self._reading.locate(self._home, picture.name)
        return (name, picture.boxes_file) if picture.boxes_file else (name,)

    def facts(self, image: int, depth: Depth = Depth.BYTES) -> FileFacts:
        """Return the facts of a picture's file.

        Raises:
            Malformed: the file is not a readable picture, or a link in others' data that leaves the dataset.
            DatasetError: a picture stored with the index is missing or changed.
        """
        name = self.file_names(image)[0]
        path = self._home / name
        is_in_index = self._index.picture(image).name.startswith("/")
        if self._index.source.is_confined and not is_in_index and not lies_inside(path, self._home):
            raise Malformed(f"{name} is a link that leads out of the dataset")
        problem: Malformed | None = None
        try:
            facts = self._files.facts(name, depth)
        except Malformed as error:
            problem = error
        if is_in_index and (not path.is_file() or self._files.facts(name).digest.hex() != path.name):
            raise DatasetError(
                "A picture in the index of the dataset has changed since it was stored.",
                where=str(path),
                why="its name is the digest of its bytes",
                next_command=advise(["rm", "-r", str(self._index.folder)], note="it is built again", again=()),
            )
        if problem is not None:
            raise problem
        return facts

    def digests(self) -> Iterator[bytes]:
        """Yield the identity of each used picture: the digests of its files, or its location on the hub.

        Raises:
            DatasetError: a picture is missing or malformed.
        """
        names = {image: () if image in self.held else self.file_names(image) for image in self.used}
        self._files.warm([*chain.from_iterable(names.values())])
        for image, files in names.items():
            yield self.held.get(image, "").encode()
            with self._naming_users(image):
                if files:
                    yield self.facts(image).digest
                for name in files[1:]:
                    yield self._files.facts(name).digest

    def unit(self, image: int) -> ImageUnit:
        """Return the unit of a picture.

        Raises:
            DatasetError: the picture or its boxes are missing or malformed; the message names a row with it.
        """
        if image not in self._units:
            with self._naming_users(image):
                self._units[image] = self._make_unit(image)
        return self._units[image]

    def units(self) -> tuple[ImageUnit, ...]:
        """Return the used units, each once; raises what `unit` does."""
        self.require_room()
        self._files.warm([self.file_names(image)[0] for image in self.used], Depth.HEADER)
        units: dict[str, ImageUnit] = {}
        for unit in map(self.unit, self.used):
            units.setdefault(unit.unit_id, unit)
        return tuple(units.values())

    def _make_unit(self, image: int) -> ImageUnit:
        name, picture = self.file_names(image)[0], self._index.picture(image)
        facts = self.facts(image, Depth.HEADER)
        boxes: Sequence[Sequence[float]] = picture.boxes
        size = facts.width, facts.height
        stated = size if picture.size is None else tuple(picture.size)
        if picture.boxes_file:
            names, (stated, boxes) = read_vcr_boxes(self._home / picture.boxes_file, picture.boxes_file)
            if list(names) != list(picture.box_labels):
                raise Malformed(f"{picture.boxes_file}: its names are not the objects of the annotations")
        if stated != size:
            raise Malformed(
                f"{name}: its boxes are for a picture of {stated[0]}x{stated[1]}, the picture is {size[0]}x{size[1]}"
            )
        for place, (x1, y1, x2, y2) in enumerate(boxes):
            if min(x1, y1) < -TOLERANCE or x2 > facts.width + TOLERANCE or y2 > facts.height + TOLERANCE:
                box = [x1, y1, x2, y2]
                raise Malformed(f"field 'boxes[{place}]' is {box}, the picture is {facts.width}x{facts.height}")
        boxes_R4 = np.array(boxes, dtype=np.float32).reshape(-1, 4)
        return ImageUnit(
            unit_id=image_unit_id(facts.digest, boxes_R4),
            path=self._home / name,
            file_digest=facts.digest,
            width=facts.width,
            height=facts.height,
            boxes_R4=boxes_R4,
            box_labels=tuple(picture.box_labels),
        )

    def row_that_shows(self, path: Path) -> int | None:
        """Return the first row with a picture; None without one."""
        return next((row for image, row in self.used.items() if self._home / self.file_names(image)[0] == path), None)

    @contextmanager
    def _naming_users(self, image: int) -> Iterator[None]:
        """Convert a problem of a picture to an error that names a row with it."""
        try:
            yield
        except Malformed as error:
            raise refuse(
                self._index.dataset, self._split, [self._problem(image, error)], next_command=self.command_for(image)
            ) from None

    def is_missing(self, image: int) -> bool:
        """Return whether a picture that lies beside the rows is not there."""
        name = self._index.picture(image).name
        return not name.startswith("/") and not (self._home / name).is_file()

    def command_for(self, image: int) -> str:
        """Return the command that brings a missing picture beside the rows; "" if it is there, or without one."""
        command_for = self._index.source.command_for
        if command_for is None or not self.is_missing(image):
            return ""
        return command_for(self._index.picture(image).name)

    def _problem(self, image: int, error: Malformed) -> Problem:
        used_by = self._index.where(self.used[image])
        file = self._home / self.file_names(image)[0]
        return Problem(file=str(file), line=0, why=f"{error} (used by {used_by})")

    def problems(self, images: Iterable[int], look: Callable[[int], object]) -> dict[int, Problem]:
        """Return the problems of pictures that fail a check."""
        problems = {}
        for image in images:
            try:
                look(image)
            except Malformed as error:
                problems[image] = self._problem(image, error)
        self._files.flush()
        return problems

    def require_content(self, image: int) -> None:
        """Require that the files of a picture exist and are not empty; raises `Malformed`."""
        for file in self.file_names(image):
            require_content(self._home / file, file)

    def decode(self, image: int) -> bool:
        """Decode a picture and check its boxes; return whether it is an animation. Raises `Malformed`."""
        self._make_unit(image)
        name = self.file_names(image)[0]
        return decode_picture(read_file(self._home / name, name), name)

    def drop_bad(self) -> list[Problem]:
        """Leave out the rows of pictures that cannot be decoded; return the problems of these pictures."""

        def look(image: int) -> None:
            self.facts(image, Depth.PIXELS)
            self._units[image] = self._make_unit(image)

        self.require_room()
        # A truncated picture has a valid header, and both phases must skip it.
        self._files.warm([self.file_names(image)[0] for image in self.used], Depth.PIXELS)
        problems = self.problems(self.used, look)
        self.rows = self.rows[~np.isin(self._index.file.numbers("image")[self.rows], list(problems))]
        for name in ("used", "held"):
            self.__dict__.pop(name, None)
        return list(problems.values())

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_units": {}}
