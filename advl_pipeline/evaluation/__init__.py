"""Evaluation: did it work?

In: predictions and annotations. Out: the official metrics, submissions, shift suites, use-of-vision probes,
paired statistics. May not: print, train, or know methods.
"""
