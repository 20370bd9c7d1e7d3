"""Your own data: rows with a picture, a text and a label, checked column by column.

In: a file of JSON lines, CSV or Parquet, a folder of such files, a TOML card that names them, `hf:NAME`, rows from
    Python, or a reader of another package (`advl.datasets`); `registry.py` finds them.
Out: checked `Item` records (`columns.py`) for the index.
May not know: the official formats.
"""
