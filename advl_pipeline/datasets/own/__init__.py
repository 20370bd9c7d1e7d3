"""Data of one's own: rows with a picture, a text and a label become the examples that benchmarks give.

In: a file of JSON lines, CSV or Parquet, a folder of such files, a TOML card that names them, `hf:NAME`, or the rows
    of a reader that another package declares (entry points `advl.datasets`); `source.py` finds them.
Out: an `OwnDataset` (`dataset.py`), read through an index (`index.py`) that is built once per content.
May not know: the official formats.
"""
