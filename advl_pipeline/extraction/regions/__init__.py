"""Region features: what a detector computed for a picture, in the files of the published models.

In: TSV of BUTD and LXMERT, BUTD's HDF5, `.npz` per picture, UNITER's LMDB (plain, compressed), VL-BERT's JSON.
Out: `RegionFeatures` per picture (`interface.py`), for the import into a cache (`registry.found_features`).
May not know: students, teachers, caches.
"""
