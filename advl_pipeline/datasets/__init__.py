"""Datasets: rows become `Example` records.

In: sources of rows (`rows.py`): published annotation files exactly as their owners publish them, own data
    (`own/`), and what plug-ins read; pictures and region features.
Out: `Dataset` objects of `Example` records (`records.py`), opened by name (`registry.py`), all read
     by one class (`indexed.py`) through one index (`index.py`); nested low-shot subsets; digests of content.
May not know: teachers, students, caches.
"""
