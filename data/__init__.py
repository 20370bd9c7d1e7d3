"""Facts and fixtures: cards of benchmarks, recipes, studies, what was proven of students; and the corpus `scenes/`.

Facts are read through `advl_pipeline.base.packages`; downloads never come here (they go under `$ADVL_DATA`).
"""
