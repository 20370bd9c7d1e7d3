"""Confidence: the probability that teachers give to the ground truth, per example; used by both phases.

In: teacher caches, a labelled split. Out: cross-fitted probabilities, stored in the first cache they depend on.
May not know: running teachers, students, run folders.
"""
