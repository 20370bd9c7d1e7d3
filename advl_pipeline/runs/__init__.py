"""Runs: the run folder, the second contract of the project.

Training writes it, evaluation adds to it, studies and reporting read it; every name in it stands in `names.py`.
May not know: models, datasets, how anything is computed.
"""
