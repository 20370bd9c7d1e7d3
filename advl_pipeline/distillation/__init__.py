"""Distillation: docs/method.md as pure functions.

In: student states with spans, teacher signals with spans, confidences. Out: loss terms and weights.
Contents: vision and language pathways, token alignment and selection, confidence weights, adapt and finetune
objectives. Each reading of the paper is a named option. May not: do I/O, know caches or datasets.
"""
