"""Captions of samples that have changed since: their images, or the columns of them that a prompt has."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from lotlip_data.manifests.formats.schema import IMPORTED_KIND
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.curation.filters import IMAGE_CHANGED, PROMPT_CHANGED
from lotlip_data.pipeline.recaptioning.importing.claims import import_command
from lotlip_data.pipeline.recaptioning.prompts import fields_digest

OUTDATED = {
    IMAGE_CHANGED: "their images were downloaded again since and have changed",
    PROMPT_CHANGED: "their images were downloaded again since, and columns that the prompt has, such as the raw text, "
    "have changed",
}
"""The reasons why a caption is outdated, and their explanations."""

LISTED = 5
"""Names that a message lists; of the others it has the number."""


def outdated_reason(
    sha256: str, fields_sha256: str | None, image: Mapping[str, Any], fields: tuple[str, ...]
) -> str | None:
    """Why a caption is outdated; None if it is of the image and the prompt that its sample has now.

    Args:
        sha256: Of the image, as the caption's row has it.
        fields_sha256: Of the columns that its prompt had; None if the row has none.
        image: The columns of the image now.
        fields: Names of the fields in the captioner's prompt.
    """
    if sha256 != image["sha256"]:
        return IMAGE_CHANGED
    if fields and fields_sha256 is not None and fields_sha256 != fields_digest(fields, image):
        return PROMPT_CHANGED
    return None


class OutdatedCaptions:
    """Counts outdated captions by reason, captioner and shard."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, int]] = Counter()

    def add(self, captioner: str, shard: int, reasons: Mapping[str, int]) -> None:
        """Count captions of a shard by reason; other reasons than `OUTDATED` do not count."""
        for reason in OUTDATED.keys() & reasons.keys():
            self._counts[reason, captioner, shard] += reasons[reason]

    def messages(self, run: Run, state: str, further: str = "", command: str | None = None) -> Iterable[str]:
        """One line per reason: how many captions, and what to do.

        Args:
            run: The run.
            state: What happens with the captions, such as `are left out`.
            further: Where the files are named that the line does not list.
            command: The command line that then takes the new captions. Default: `shard`.
        """
        command = command or f"lotlip-data shard {run.url}"
        for reason, explanation in OUTDATED.items():
            shards = sorted((name, shard) for (each, name, shard) in self._counts if each == reason)
            if not shards:
                continue
            total = sum(self._counts[reason, *key] for key in shards)
            files = [run.caption_shard(*key) for key in shards]
            others = len(files) - LISTED
            more = f" (and {others} more{further})" if others > 0 else ""
            commands = dict.fromkeys(caption_command(run, name) for name, _ in shards)
            yield (
                f"{total:,} captions {state} ({reason}): {explanation}. To caption them again, remove "
                f"{', '.join(files[:LISTED])}{more}, run {' and '.join(commands)}, then `{command}`"
            )


def caption_command(run: Run, name: str) -> str:
    """The command that makes missing captions by a captioner."""
    return import_command(run, name) if is_imported(run, name) else f"`lotlip-data recaption {run.url}`"


def is_imported(run: Run, name: str) -> bool:
    """Whether a captioner's captions come from a table."""
    return ledger.captioner_settings(run, name).get("kind") == IMPORTED_KIND
