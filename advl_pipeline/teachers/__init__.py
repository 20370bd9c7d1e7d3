"""Teachers are frozen encoders behind one small interface.

In: batches of decoded pictures (with boxes) or of texts.
Out: one global vector per unit, token vectors per word piece, grid patch or box, and statistics (`interface.py`).
     Teachers are opened by name (`registry.py`) and describe everything that changes their features.
May not: train anything, write files, or know how the features are used.
"""
