"""Cache: the contract between the phases. One teacher over one dataset split, in a plain Zarr v3 hierarchy.

In: encoded shards from `extraction`, an identity, commit records.
Out: memory-mapped features by unit id, streamed batches in a pure, resumable order, verify / export.
Everything is written once over a `store.Store`, a folder or an object store; `stores.open_store` alone asks which.
May not know: datasets, torch models, what the features are for. `docs/cache-format.md` specifies the bytes.
"""
