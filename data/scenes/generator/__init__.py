"""Generator of Scenes, the built-in corpus, from artwork and human annotations in packages.

In: a seed, sizes, the frozen vocabulary in this folder, two artwork packages.
Out: `<root>/scenes/` in the on-disk formats of VCR, VQA v2 and SNLI-VE, plus captions (`paths.py` names every
     file). The readers of the real datasets read it and only import `paths.py` from here.
May not know: readers, teachers, students, caches.
"""
