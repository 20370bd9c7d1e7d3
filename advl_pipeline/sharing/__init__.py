"""Sharing: a finished run as a folder to give away, and what goes to and comes from the hub.

In: run folders, studies, caches. Out: folders for transformers or for this package, model cards, repositories.
May not know: how anything was trained or measured; it reads what others wrote.
"""
