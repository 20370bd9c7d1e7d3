"""Import of existing features into a cache, in their published formats.

In: a detector's region features (`region_formats.py`) or arrays filed under pictures (`filed_arrays.py`).
Out: a tower (`tower.py`) that an extraction runs like a teacher's.
May not know: caches.
"""
