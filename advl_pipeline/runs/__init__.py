"""Runs: the run folder, the second contract of the project.

Training writes it, evaluation adds to it, studies and reporting read it. `names.py` lists every name in it.
May not know: models, datasets, how anything is computed.
"""
