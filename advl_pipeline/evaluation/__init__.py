"""Evaluation: did it work?

In: predictions and annotations. Out: official metrics, submissions, shift suites, use-of-vision probes and paired
statistics. May not: print, train, or know methods.
"""
