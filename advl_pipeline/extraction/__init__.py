"""Extraction: phase 1, run once per teacher and dataset.

In: a dataset, a teacher. Out: a committed cache with confidence statistics.
How: plan (pure: units, order, shards) -> encode (length-bucketed, prepared ahead) -> write behind -> commit.
May not know: file formats below `cache/`, students, losses.
"""
