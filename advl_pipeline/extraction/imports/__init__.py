"""Import of existing features into a cache, in their published formats.

In: a detector's region features (`regions.py`, a module for each format), or arrays filed under pictures
(`filed_arrays.py`).
Out: a tower (`tower.py`) that an extraction runs like a teacher's.
May not know: caches.
"""
