"""Signals: the training signals of a run besides labels.

In: teacher caches, a control, the student's inputs. Out: targets and confidences of each batch.
Start reading at `teaching.py`. May not know: losses, optimisers, the loop.
"""
