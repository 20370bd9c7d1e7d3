"""Datasets: read rows as `Example` records.

In: sources of rows (`rows.py`): unmodified published annotation files, your own data (`own/`), rows from
    plug-ins; pictures and region features.
Out: `Dataset` objects of `Example` records (`records.py`), opened by name (`registry.py`), all read
     by one class (`indexed.py`) through one index (`index.py`); nested low-shot subsets; content digests.
May not know: teachers, students, caches.
"""
