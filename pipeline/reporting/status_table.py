"""The status of a run as a table of at most 80 columns: a row per stage, captioner and model.

A captioner that makes several texts for each image has a row, in which each image counts once, and one for each text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lotlip_data.manifests.settings.captioners import by_captioner
from lotlip_data.manifests.wording import count, duration, plural, rate
from lotlip_data.pipeline.downloading.failures import format_text as format_failures
from lotlip_data.pipeline.reporting.status import CaptionerStatus, DownloadStatus, RunStatus, ScorerStatus
from lotlip_data.pipeline.reporting.training_status import TrainingStatus

DONE, RUNNING, STOPPED, STALE, NOT_STARTED = "done", "running", "stopped", "stale", "not started"
WAITING = "waiting"
"""A captioner that has captioned all images so far, while further ones are to be downloaded."""

_STAGE_WIDTH, _NAME_WIDTH, _PROGRESS_WIDTH, _FAILED_WIDTH = 9, 17, 31, 7


@dataclass(frozen=True)
class _Row:
    stage: str
    name: str
    progress: str
    state: str
    failed: int | None = None
    """None if the stage does not count failures."""
    details: str = ""
    """Speed and time left, on a line of their own."""

    def lines(self) -> list[str]:
        failed = "" if self.failed is None else f"{self.failed:,}"
        if len(self.name) <= _NAME_WIDTH:
            lines = [_columns(self.stage, self.name, self.progress, failed, self.state)]
        else:
            lines = [f"{self.stage:{_STAGE_WIDTH}} {self.name}", _columns("", "", self.progress, failed, self.state)]
        return [*lines, *([_columns("", "", self.details, "", "")] if self.details else [])]


def _columns(stage: str, name: str, progress: str, failed: str, state: str) -> str:
    cells = (stage.ljust(_STAGE_WIDTH), name.ljust(_NAME_WIDTH), progress.ljust(_PROGRESS_WIDTH))
    return f"{' '.join(cells)} {failed:>{_FAILED_WIDTH}}  {state}".rstrip()


def format_table(status: RunStatus) -> list[str]:
    """The lines that `status` prints, from the result of `get_status`."""
    stale = {(entry["stage"], entry["name"]) for entry in status.get("stale", [])}
    rows = [
        _lists_row(status),
        _download_row(status),
        *_captioner_rows(status, stale),
        *_scorer_rows(status, stale),
        _dataset_row(status, stale),
        *(_Row("train", name, "", STALE if ("train", name) in stale else DONE) for name in status["trained"]),
        *(_training_row(name, training) for name, training in status["trainings"].items()),
        *_not_started(status, "train"),
        *(
            _Row("eval", name, count(len(urls), "result file"), STALE if ("eval", name) in stale else DONE)
            for name, urls in status["evaluated"].items()
        ),
    ]
    lines = [_columns("stage", "name", "progress", "failed", "state")]
    lines += [line for row in rows for line in row.lines()]
    if "failures" in status:
        lines += ["", *format_failures(status["failures"])]
    if entries := status.get("stale"):
        lines += ["", "stale:"]
        for entry in entries:
            lines.append(f"  {' '.join(filter(None, (entry['stage'], entry['name'])))}: {entry['reason']}")
    if stops := _stops(status):
        lines += ["", "stopped:", *(f"  {name}: {reason}" for name, reason in stops.items())]
    if "next" in status:
        lines += ["", f"next: {status['next']}"]
    return lines


def _stops(status: RunStatus) -> dict[str, str]:
    """By stage and captioners, why the last call has stopped. Captioners with the same reason are one."""
    names_by_reason: dict[str, list[str]] = {}
    for name, captioner in status["captioners"].items():
        if captioner["stopped"]:
            names_by_reason.setdefault(captioner["stopped"], []).append(name)
    stages = {"download": status["download"], "dataset": status.get("building")}
    stops = {stage: progress["stopped"] for stage, progress in stages.items() if progress and progress["stopped"]}
    return stops | {f"recaption {', '.join(names)}": reason for reason, names in names_by_reason.items()}


def _not_started(status: RunStatus, stage: str) -> list[_Row]:
    return [_Row(stage, name, "", NOT_STARTED) for name in status.get("not_started", {}).get(stage, [])]


def _lists_row(status: RunStatus) -> _Row:
    if status["shards"] is None or status["download"] is None:
        return _Row("lists", "", "", NOT_STARTED)
    download, shards = status["download"], count(status["shards"], "shard")
    rows = "" if download["estimated"] else f"{count(download['urls'], download['unit'])}, "
    return _Row("lists", "", f"{rows}{shards}", DONE)


def _download_row(status: RunStatus) -> _Row:
    download = status["download"]
    if download is None:
        return _Row("download", "", "", NOT_STARTED)
    total = f"about {download['urls']:,}" if download["estimated"] else count(download["urls"], download["unit"])
    progress = f"{download['tried']:,} of {total}"
    shards_left = (status["shards"] or 0) - status["fetched"]
    state = STOPPED if download["stopped"] else _state(shards_left, download["tried"], download["images_per_s"])
    details = [count(status["images"], "image")]
    if state == RUNNING:
        details += [rate(download["images_per_s"], plural(2, download["unit"])), *_left(download)]
    return _Row("download", "", progress, state, download["failed"], ", ".join(details))


def _captioner_rows(status: RunStatus, stale: set[tuple[str, str]]) -> Iterator[_Row]:
    captioners, new = status["captioners"], status.get("not_started", {})
    more = status["shards"] is not None and status["fetched"] < status["shards"]
    imported, every = status.get("imported", []), [*captioners, *new.get("import", []), *new.get("recaption", [])]
    for captioner, names in by_captioner(every, status.get("texts", {})):
        if captioner is None:
            (name,) = names
            row = (
                _captioner_row(name, captioners[name], more) if name in captioners else _Row("", name, "", NOT_STARTED)
            )
            state = STALE if ("import", name) in stale else row.state
            yield replace(row, stage="import" if name in imported else "recaption", state=state)
            continue
        texts = [captioners.get(name) for name in names]
        yield _texts_row(captioner, [text for text in texts if text], len(texts), status["images"], more)
        for name, text in zip(names, texts, strict=True):
            row = _captioner_row(name, text, more) if text else _Row("recaption", name, "", NOT_STARTED)
            yield replace(row, stage="", name=f"  {name}", details="")


def _captioner_row(name: str, captioner: CaptionerStatus, more: bool) -> _Row:
    """The row of a captioner, or of one of its texts. `more`: whether images are still to be downloaded."""
    total = captioner["done"] + captioner["left"]
    progress = f"{captioner['done']:,} of {count(total, 'image')}"
    state = _state(captioner["left"], captioner["done"], captioner["images_per_s"], more)
    if captioner["stopped"]:
        state = STOPPED
    details = ""
    if state == RUNNING:
        speeds = [rate(captioner["images_per_s"], "images"), rate(captioner["tokens_per_s"], "tokens")]
        details = ", ".join([*speeds, *_left(captioner)])
    return _Row("recaption", name, progress, state, captioner["failed"], details)


def _texts_row(captioner: str, texts: Sequence[CaptionerStatus], wanted: int, images: int, more: bool) -> _Row:
    """The row of a captioner that makes several texts, in which each image counts once.

    Args:
        captioner: Its name.
        texts: Those of its texts that have started.
        wanted: Number of all its texts.
        images: Images of the run.
        more: Whether images are still to be downloaded.
    """
    if not texts:
        return _Row("recaption", captioner, f"{wanted} texts", NOT_STARTED)
    done = min(text["done"] for text in texts) if len(texts) == wanted else 0
    speed = max(text["images_per_s"] for text in texts)
    state = _state(max(0, images - done), max(text["done"] for text in texts), speed, more)
    unfinished = [text for text in texts if text["left"]]
    if unfinished and all(text["stopped"] for text in unfinished):
        state = STOPPED
    details = ""
    if state == RUNNING:
        tokens, left = sum(text["tokens_per_s"] for text in texts), [text["seconds_left"] or 0 for text in texts]
        remaining = [f"{duration(max(left))} left"] if max(left) else []
        details = ", ".join([rate(speed, "images"), rate(tokens, "tokens"), *remaining])
    return _Row("recaption", captioner, f"{done:,} of {count(images, 'image')}, {wanted} texts", state, None, details)


def _state(left: int, done: int, speed: float, more: bool = False) -> str:
    if not left:
        return WAITING if more else DONE
    if not done:
        return NOT_STARTED
    return RUNNING if speed else STOPPED


def _left(stage: DownloadStatus | CaptionerStatus | ScorerStatus | TrainingStatus) -> list[str]:
    return [] if stage["seconds_left"] is None else [f"{duration(stage['seconds_left'])} left"]


def _scorer_rows(status: RunStatus, stale: set[tuple[str, str]]) -> Iterator[_Row]:
    for name, scorer in status.get("scorers", {}).items():
        progress = f"{scorer['done']:,} of {count(scorer['done'] + scorer['left'], 'image')}"
        state = STALE if ("score", name) in stale else _state(scorer["left"], scorer["done"], scorer["images_per_s"])
        details = ", ".join([rate(scorer["images_per_s"], "images"), *_left(scorer)]) if state == RUNNING else ""
        yield _Row("score", name, progress, state, scorer["failed"], details)
    yield from _not_started(status, "score")


def _dataset_row(status: RunStatus, stale: set[tuple[str, str]]) -> _Row:
    if not status["dataset"]:
        if (building := status.get("building")) is None:
            return _Row("dataset", "", "", NOT_STARTED)
        progress = f"{building['done']:,} of {count(building['done'] + building['left'], 'shard')}"
        return _Row("dataset", "", progress, RUNNING if building["running"] else STOPPED)
    return _Row("dataset", "", "", STALE if ("dataset", "") in stale else DONE)


def _training_row(name: str, training: TrainingStatus) -> _Row:
    of = f" of {training['steps']:,}" if training["steps"] else ""
    details = [f"loss {training['loss']:.3f}"] if training["loss"] is not None else []
    if training["steps_per_s"]:
        details += [rate(training["steps_per_s"], "steps"), *_left(training)]
    state = RUNNING if training["steps_per_s"] else STOPPED
    return _Row("train", name, f"step {training['step']:,}{of}", state, details=", ".join(details))
