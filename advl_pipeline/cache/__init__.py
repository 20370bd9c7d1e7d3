"""Cache: the contract between the phases. One teacher over one dataset split, in a plain Zarr v3 hierarchy.

In: encoded shards from `extraction`, an identity, commit records.
Out: memory-mapped features by unit id, streamed batches in a pure, resumable order, verify / export.
All code is written against `store.Store`, a folder or an object store; only `stores.open_store` asks which.
May not know: datasets, torch models, the use of the features. `docs/cache-format.md` specifies the bytes.
"""
