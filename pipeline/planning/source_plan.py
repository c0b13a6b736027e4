"""What `plan` finds out about one source."""

from dataclasses import dataclass, field


@dataclass
class SourcePlan:
    """What the sample of one source shows, as `plan --json` prints it. All counts are of the sample, unless noted."""

    name: str
    use: str | None
    files: int = 0
    """Files of the source."""
    containers: int = 0
    """Containers of images that exist: each becomes a shard. 0 for a list of URLs."""
    columns: list[str] = field(default_factory=list)
    seen: int = 0
    """Rows read."""
    invalid: dict[str, int] = field(default_factory=dict)
    """Unusable rows, by reason."""
    filtered: dict[str, int] = field(default_factory=dict)
    """Rows that the filter removes, by rule."""
    taken: int = 0
    """Rows with a usable URL that the filter keeps."""
    duplicates: int = 0
    """Taken rows that repeat the URL of an earlier row, in this source or one before it."""
    repeats: int = 0
    """Taken rows that repeat the URL of an earlier row of this source."""
    hosts: int = 0
    top_hosts: dict[str, float] = field(default_factory=dict)
    """The most frequent hosts with their share of the taken rows."""
    private: int = 0
    """Taken rows that will not be downloaded, because their URL names this machine or a private network and
    `download.allow_hosts` does not list the host. No host name is resolved."""
    private_hosts: list[str] = field(default_factory=list)
    garbled: int = 0
    """Taken rows whose text is not valid UTF-8."""
    not_texts: dict[str, int] = field(default_factory=dict)
    """Taken rows whose cell of texts holds something else, by what it is."""
    blank: int = 0
    """Taken rows without a text."""
    signs: dict[str, int] = field(default_factory=dict)
    """Texts that look as if they were encoded or missing, by sign."""
    texts: int = 0
    """Texts that are not blank."""
    remarks: list[str] = field(default_factory=list)
    """How files are read that deviate from their format."""
    rows: int | None = None
    """Rows of the whole source; None if the storage reports no sizes."""
    rows_exact: bool = False
    """Whether `rows` is exact, not an estimate."""
    read_whole: bool = False
    """Whether all files were read to the end."""
    images: int | None = None
    """Estimated images of the whole source, limited to its `sample`, without the share of `duplicates`."""
