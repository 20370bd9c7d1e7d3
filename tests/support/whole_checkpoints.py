"""A checkpoint must fill what it is loaded into."""

from __future__ import annotations

from advl_pipeline.students.checkpoints import LoadReport


def require_complete(report: LoadReport) -> LoadReport:
    """Return the report of a load that left nothing out."""
    assert report.complete, (report.source, report.missing, report.unexpected, report.reinitialised)
    return report
