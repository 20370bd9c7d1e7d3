"""Training: phase 2, run many times.

In: a dataset, a student, teacher caches. Out: a run folder (config, environment, metrics, checkpoints, evaluation).
The loop streams cached signals from a background thread, resumes to the same result, and treats every method alike.
May not know: a task's metric, file formats below `cache/`.
"""
