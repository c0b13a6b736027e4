"""Reads every file of a run that a later stage reads, and compares it with its recorded digest."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.pipeline.verification.run import RunCheck, verify_run

__all__ = ["RunCheck", "verify_run"]
__getattr__ = lazy_exports(__name__, {"run": ["RunCheck", "verify_run"]})
