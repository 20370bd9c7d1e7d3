"""Signals: what a run learns from besides labels.

In: teacher caches, a control, what the student sees. Out: targets and confidences of each batch.
Start reading at `teaching.py`. May not know: losses, optimisers, the loop.
"""
