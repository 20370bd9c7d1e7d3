"""Landmarks: examples that both student and teacher see, and the places of words and regions among them.

In: a student, its teachers' signals, a split. Out: landmarks, answers through the bridge, the readout before and
after the adapt stage. May not know: the terms of the loss, the loop.
"""
