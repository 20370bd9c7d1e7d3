"""Reporting: say it plainly.

In: a gathered study. Out: one self-contained HTML page, tables as CSV, JSON or Markdown.
May not: compute a metric. Every figure names the run folders of its numbers and has a text alternative.
"""
