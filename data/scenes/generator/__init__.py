"""Scenes, the built-in corpus, is made on the spot from artwork and human annotations that packages ship.

In: a seed, sizes, the frozen vocabulary next to it, two artwork packages.
Out: `<root>/scenes/` in the on-disk formats of VCR, VQA v2 and SNLI-VE, plus captions (`paths.py` names every
     file); the readers of the real datasets read it, nothing here is imported to do so but `paths.py`.
May not know: readers, teachers, students, caches.
"""
