"""Scenes, the built-in corpus, is with its students and teachers a plug-in like any user's.

In: a seed and sizes; artwork and weights that packages ship (the extra `demo`).
Out: what the entry points of pyproject.toml name: datasets (`datasets.py`), students, teachers whose weights install
     from the package index, the commands `advl scenes`; its card, recipes and studies are TOML files here.
May not be: imported by `advl_pipeline/` or `cli/`, which know it through its entry points alone.
"""
