"""Confidence: how sure teachers are of the ground truth, per example; used by both phases.

In: teacher caches, a labelled split. Out: probabilities, cross-fitted, stored in the first cache they depend on.
May not know: teachers that run, students, run folders.
"""
