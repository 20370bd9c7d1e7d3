"""Facts about datasets, not code: one TOML card per benchmark, and the vocabulary of the built-in corpus.

Read through `advl_pipeline.datasets.cards`; downloads never come here (they go under `$ADVL_DATA`).
"""
