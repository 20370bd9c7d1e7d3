"""Region features: what a detector computed for a picture, in the files of the published models.

In: TSV of BUTD and LXMERT, BUTD's HDF5, `.npz` per picture, UNITER's LMDB (plain, compressed), VL-BERT's JSON.
Out: `RegionFeatures` per picture (`interface.py`), read when asked for, opened by `registry.open_regions`.
May not know: students, teachers, caches, which dataset a picture belongs to.
"""
