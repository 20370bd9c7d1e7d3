"""Readout: a student beside its teachers' caches, before training or after it.

In: a student, caches of a split. Out: whether both place words and regions alike, which words pretraining taught,
what a teacher adds to the student's own vectors. May not: train or score a run.
"""
