"""Landmarks: examples that student and teacher both see, and where words and regions are.

In: a student, its teachers' signals, a split. Out: landmarks, answers through the bridge, the readout before and
after the adapt step. May not know: losses, the loop.
"""
