"""The manifest's `shard` and `clean` sections: what a sample looks like, and what is left out of the dataset."""

import ipaddress
import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from lotlip_data.manifests.subcaptions import SplitMode

MAX_DISTANCE = 8
"""The largest Hamming distance of two 64-bit perceptual hashes that can be asked for."""

Distance = Annotated[int, Field(ge=0, le=MAX_DISTANCE)]


class ShardSettings(BaseModel):
    """What a sample of the dataset looks like, and how samples are laid out in files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sub_captions: SplitMode = "punkt"
    min_long_texts: Annotated[int, Field(ge=0)] = 1
    """Samples with fewer long texts than this are left out, and counted."""
    validation: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """The share of samples that goes to the validation split, by their uid: a sample never changes sides."""
    max_samples: Annotated[int, Field(ge=1)] | None = None
    """Samples in a tar at most; a shard with more becomes several tars."""
    max_bytes: Annotated[int, Field(ge=1)] | None = None
    """The same in bytes of a tar. A sample that is larger by itself gets a tar of its own."""


class CleanSettings(BaseModel):
    """What is left out of the dataset: everything is off unless it is asked for, counted and listed with its reason."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    duplicates: bool = False
    """Leave out images whose fetched bytes an earlier image of the run has (equal sha256)."""
    near_duplicates: Distance | None = None
    """Leave out images whose perceptual hash is within this Hamming distance of an earlier image's; 4 is usual."""
    evaluation_sets: tuple[str, ...] = ()
    """Images that must not be in the dataset: folders, tars, images, or `.txt` lists of images; paths or URLs."""
    evaluation_distance: Distance = 4
    """Leave out images whose perceptual hash is within this distance of an evaluation image's, or that equal one."""
    min_side: Annotated[int, Field(ge=1)] | None = None
    """Of the shorter side of the fetched image, in pixels."""
    max_aspect: Annotated[float, Field(ge=1)] | None = None
    """Of the longer side to the shorter one."""
    min_words: Annotated[int, Field(ge=1)] | None = None
    """Of a raw text. A sample that several sources list keeps the raw texts that pass, and is left out without any."""
    max_words: Annotated[int, Field(ge=1)] | None = None
    language: Literal["english"] | None = None
    """Of a raw text: ASCII letters nearly all, and in longer texts some English function words."""
    drop_flags: tuple[str, ...] = ()
    """Leave out long texts with any of these flags of the captioners, such as `repetition`."""

    @model_validator(mode="after")
    def _words_in_order(self) -> "CleanSettings":
        if self.min_words and self.max_words and self.min_words > self.max_words:
            raise ValueError(f"`min_words` is {self.min_words}, above `max_words`, {self.max_words}: no text can pass")
        return self

    @property
    def looks_at_pixels(self) -> bool:
        """Whether perceptual hashes are needed."""
        return self.near_duplicates is not None or bool(self.evaluation_sets)

    @property
    def compares_images(self) -> bool:
        """Whether an image can be left out because of another one."""
        return self.duplicates or self.looks_at_pixels


def _host_alone(given: str) -> str:
    """A host as a URL's host is compared with it. Raises ValueError with what to write in place of anything else."""
    bare = given.strip().strip("[]")
    try:
        host: str | None = str(ipaddress.ip_address(bare))  # an IPv6 address has colons of its own
    except ValueError:
        host = _host_within(given.strip())
    if host is None:
        raise ValueError(f"{given!r} is no host; write the name or the address of each one, such as 'images.intra'")
    if host.lower() != given.lower():
        raise ValueError(f"{given!r} is more than a host, or another spelling of one; write {host!r}")
    return given


def _host_within(text: str) -> str | None:
    """The host of a URL, or of one that lacks its scheme, in ASCII as it is asked for; None where there is no one."""
    if re.fullmatch(r"[\da-fA-F.:]+/\d+", text):
        return None  # a network
    try:
        host = (urlsplit(text if "://" in text else f"//{text}").hostname or "").rstrip(".").encode("idna").decode()
    except ValueError:
        return None
    return host if re.fullmatch(r"[\w.:%-]+", host) else None


class Settings(BaseModel):
    """Settings that a manifest may hold: none unknown, none changed later."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DownloadSettings(Settings):
    """How images are fetched and stored."""

    image_size: Annotated[int, Field(ge=16)] = 512
    """The shorter side at most, in pixels; the aspect is kept and nothing is enlarged."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    threads: Annotated[int, Field(ge=1)] = 64
    """Fetches under way in one shard."""
    timeout: Annotated[float, Field(gt=0)] = 10.0
    """Seconds that one socket operation may take."""
    total_timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds that one fetch may take, redirects and body included."""
    retries: Annotated[int, Field(ge=0)] = 1
    """Further attempts at what may pass, after a pause that grows, or the one that the server asks for."""
    per_host: Annotated[int, Field(ge=1)] = 8
    """Fetches under way from one host in one shard."""
    host_failures: Annotated[int, Field(ge=1)] = 16
    """So many failures of one host in a row, and the rest of its images in a shard is not tried any more."""
    shard_tries: Annotated[int, Field(ge=1)] = 3
    """In so many downloads a shard of which nothing comes is tried before it is done without an image."""
    max_bytes: Annotated[int, Field(ge=1)] = 50_000_000
    max_pixels: Annotated[int, Field(ge=1)] = 100_000_000
    allow_hosts: tuple[Annotated[str, AfterValidator(_host_alone)], ...] = ()
    """Hosts, on any port, that may be fetched from although their address is private or loopback: tests, intranets."""
    user_agent: str | None = "lotlip-data"
    respect_robots_tag: bool = True
