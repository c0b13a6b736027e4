"""Verifies a run: every kind of file, in the order of the stages."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import dataset_index
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.dataset.verify import verify as verify_dataset_files
from lotlip_data.pipeline.verification.inputs import (
    verify_captions,
    verify_clean,
    verify_images,
    verify_lists,
    verify_scores,
)
from lotlip_data.pipeline.verification.models import verify_features, verify_trainings
from lotlip_data.pipeline.verification.tally import Tally


@dataclass(frozen=True)
class RunCheck:
    """What was read of a run."""

    tallies: list[Tally]
    """By kind of file; kinds without files are left out."""

    @property
    def problems(self) -> list[str]:
        """One line per problem, with the remedy."""
        return [problem for tally in self.tallies for problem in tally.problems]

    @property
    def notes(self) -> list[str]:
        """One line per note."""
        return [note for tally in self.tallies for note in tally.notes]

    def to_dict(self) -> dict[str, Any]:
        """The figures of `verify --json`."""
        read = {tally.kind: {"files": tally.files, "not_recorded": tally.unrecorded} for tally in self.tallies}
        return {"problems": self.problems, "notes": self.notes, "read": read}


def verify_run(run: Run) -> RunCheck:
    """Read every file of a run that a later stage reads. Memory does not grow with the number of shards.

    Errors of the storage, such as a lost connection, are raised.
    """
    checks: tuple[Callable[[Run], Tally], ...] = (
        verify_lists,
        verify_images,
        verify_captions,
        verify_scores,
        verify_clean,
        verify_dataset,
        verify_features,
        verify_trainings,
    )
    return RunCheck([tally for check in checks if (tally := check(run)).files])


def verify_dataset(run: Run) -> Tally:
    """The dataset, as `dataset.verify` does."""
    tally = Tally("dataset")
    if storage.exists(run.dataset):
        tally.files = len(storage.list_names(run.shards)) + len(storage.list_names(run.shard_markers))
        try:
            tally.problems += map(str, verify_dataset_files(run))
        except UserError as error:
            tally.problems.append(str(error))
    elif dataset_index.done_shards(run):
        remedy = f"Run `lotlip-data shard {run.url}`, which keeps them."
        tally.note_missing(run.dataset, f"but shards of a dataset are built. {remedy}")
    return tally
