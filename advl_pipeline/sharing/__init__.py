"""Sharing: a finished run as a folder that loads without this project, and what goes to and comes from the hub.

In: run folders, studies, caches. Out: folders for transformers, programs for torch alone, model cards, repositories.
May not know: how anything was trained or measured; it reads what others wrote.
"""
