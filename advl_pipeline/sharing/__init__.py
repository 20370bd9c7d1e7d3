"""Export of finished runs as folders to share, and transfers to and from the hub.

In: run folders, studies, caches. Out: folders for transformers or for this package, model cards, repositories.
May not know: how anything was trained or measured; it only reads recorded files.
"""
