"""Datasets: files on disk become `Example` records.

In: annotation files, pictures and region features exactly as their owners publish them, and the built-in corpus.
Out: `Dataset` objects (`interface.py`) of `Example` records (`records.py`), opened by name (`registry.py`);
     nested low-shot subsets; digests of content, never of paths or times.
May not know: teachers, students, caches.
"""
