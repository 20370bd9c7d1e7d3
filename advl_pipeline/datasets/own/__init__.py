"""Data of one's own: rows with a picture, a text and a label, checked column by column.

In: a file of JSON lines, CSV or Parquet, a folder of such files, a TOML card that names them, `hf:NAME`, rows that
    Python hands over, or a reader that another package declares (`advl.datasets`); `source.py` finds them.
Out: checked `Item` records (`fields.py`) for the index, their classes and answers, an opened split.
May not know: the official formats.
"""
