"""Reporting: say it plainly.

In: a gathered study. Out: one self-contained HTML page, tables as CSV, JSON or Markdown.
May not: compute a metric. Every figure carries the run folders that it came from and a text alternative.
"""
