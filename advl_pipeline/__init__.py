"""ADVL: move what frozen vision and text experts know into a vision-language model while it is finetuned.

Data flows one way: datasets -> teachers -> extraction -> cache -> training -> evaluation -> reporting.
Phase 1 (`extraction`) runs each frozen teacher once over a dataset; phase 2 (`training`) streams what it wrote.
The two meet in the cache alone, which any Zarr v3 reader opens without this package.
"""

__version__ = "0.2.0"
