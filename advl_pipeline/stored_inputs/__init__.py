"""Stored inputs: what a student reads from caches in place of pictures, in training and after it.

In: caches of a detector's regions or of squeezed pictures, a student. Out: the student with these as its source.
May not know: teachers' features, training, scores.
"""
