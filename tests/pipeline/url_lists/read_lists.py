"""Reads a list as the stages do, and collects everything that is reported about it."""

from collections import Counter
from dataclasses import dataclass, field

from lotlip_data.manifests.settings.source import Source
from lotlip_data.manifests.sources.sample_id import uid_from_url
from lotlip_data.pipeline.url_lists.reader import read_source
from lotlip_data.pipeline.url_lists.rows import BadRow


@dataclass
class ReadList:
    """What became of the rows of a list."""

    texts: list[tuple[str, list[str]]] = field(default_factory=list)
    """URL and texts of each usable row."""
    bad: list[BadRow] = field(default_factory=list)
    filtered: Counter[str] = field(default_factory=Counter)
    defects: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)

    @property
    def rows(self) -> list[tuple[str, str]]:
        """URL and text of each usable row; several texts are joined with `|`."""
        return [(url, "|".join(texts)) for url, texts in self.texts]

    @property
    def reasons(self) -> list[tuple[int, str]]:
        """Number and reason of each unusable row."""
        return [(row.row, row.reason) for row in self.bad]


def read_list(*files: object, **settings: object) -> ReadList:
    """Read files as a source with these settings."""
    result = ReadList()
    source = Source.model_validate({"name": "mine", "files": [str(file) for file in files]} | settings)
    for batch in read_source(
        source,
        result.bad.append,
        lambda rule, rows: result.filtered.update({rule: rows}),
        lambda defect, rows: result.defects.update({defect: rows}),
        result.remarks.append,
    ):
        for row in batch.to_pylist():
            assert row["uid"] == uid_from_url(row["url"])
            result.texts.append((row["url"], row["texts"]))
    return result
