"""`advl cache repair`: the cache's own repair with the teacher and the dataset that the cache came from."""

from __future__ import annotations

from dataclasses import replace

from advl_pipeline.cache.checks import require_cache
from advl_pipeline.cache.parts import holding
from advl_pipeline.cache.provenance import IMPORTED, renew_command
from advl_pipeline.cache.repair import RepairResult, recover_provenance, repair_cache, require_own_records
from advl_pipeline.cache.stores import open_store
from advl_pipeline.compute import resolved
from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.errors import ConfigError
from advl_pipeline.extraction.config import ExtractConfig, RepairConfig
from advl_pipeline.extraction.planned_identity import build_identity
from advl_pipeline.extraction.planning import make_plan
from advl_pipeline.extraction.recorded import recorded_extraction
from advl_pipeline.extraction.run import extract_held, open_inputs, store_of
from advl_pipeline.extraction.sources import open_sources
from advl_pipeline.interruption import interruptible
from advl_pipeline.teachers.interface import Teacher


def run_repair(config: RepairConfig) -> RepairResult:
    """Restore a damaged or unfinished cache with the teacher and the dataset that it came from.

    Raises:
        ConfigError: there is no cache, too little is left of it to know how it was made, or its record names paths
            that were not given.
        IdentityMismatch: the teacher or the dataset is not what it was.
        CorruptCache: the cache is still not sound afterwards.
        InUse: another process writes the cache.
    """
    with interruptible("The repair", kept="every committed shard is kept"):
        store = open_store(config.cache)
        require_cache(store)
        require_own_records(store)
        settings = recover_provenance(store)["config"]
        if str(settings.get("teacher", "")).startswith(IMPORTED):
            raise ConfigError(
                "An imported cache has no teacher that could encode anything again.",
                where=str(config.cache),
                next_command=renew_command(settings, config.cache),
            )
        extraction = recorded_extraction(settings, config, command="cache repair")
        extraction = resolved(replace(extraction, output=config.cache))
        teacher, dataset = open_inputs(extraction)
        return repair(extraction, teacher, dataset)


def repair(config: ExtractConfig, teacher: Teacher, dataset: Dataset) -> RepairResult:
    """As `run_repair`, with the teacher and dataset open and `config.output` the cache."""
    sources = open_sources(config, teacher, dataset)
    identity = build_identity(config, teacher, dataset, sources)
    store = store_of(config)
    with holding(store):
        return repair_cache(
            store,
            identity,
            {source.modality: len(source.unit_ids()) for source in sources},
            plan=lambda provenance: make_plan(config, store, sources, identity, provenance=provenance, is_begun=True),
            extract=lambda: extract_held(config, store, sources, identity, dataset).encoded_units,
        )
