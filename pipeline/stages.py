"""The pipeline: one function per stage, from lists of URLs to an evaluated model. Read this file first.

    partition   lists of URLs, containers → shards, in seeded random order     pipeline/url_lists/partition.py
    download    rows → images, with img2dataset on Ray; containers → checked   pipeline/downloading/stage.py
    import      captions that a source's list carries → long texts             pipeline/recaptioning/importing/stage.py
    recaption   images → long texts, on pools of Ray actors                    pipeline/recaptioning/stage.py
    score       images + texts → scores of texts, sub-captions and images      pipeline/scoring/stage.py
    shard       images + texts → the dataset                                   pipeline/dataset/stage.py
    features    the dataset → features of a locked image tower (optional)      pipeline/model_stages/features.py
    train       the dataset → LoTLIP, or a method that it is compared with     training/trainer.py
    evaluate    a trained model → recall and accuracy                          training/evaluation/evaluate.py
    publish     the dataset → a repository on the Hugging Face Hub (optional)  pipeline/hub/publication.py

Each stage reads what the stage before it committed, skips what it has committed itself, and can be called on its own.
Download, recaption and shard also work at the same time: `run_pipeline` starts them together, and `recaption` and
`shard` follow a download that runs elsewhere (`follow`).
The commands of `lotlip-data` and the Python API (docs/guides/notebook.md) both call these functions.

A manifest is given as a path or URL of a YAML file, as a mapping with the same content, or as a `Manifest`. A run is
given as its folder's path or URL, or as a `Run`. `download` stores the manifest in the run's folder. All stages read
their settings there, so they are edited there, or replaced with `update_manifest`. Every function raises UserError,
with what is wrong and how to fix it, for wrong arguments or a missing input; a unit that fails is a line in
`Outcome.failed` instead.
"""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lotlip_data.manifests import storage, wording
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.manifest import Manifest, freeze, frozen, load, parse, with_absolute_paths
from lotlip_data.manifests.progress import SUMMARY_LINE
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core.outcome import Outcome
from lotlip_data.pipeline.core.ray_cluster import cluster, ray_session
from lotlip_data.pipeline.core.upstream import Upstream

if TYPE_CHECKING:
    from lotlip_data.pipeline.dataset.stage import StagesBefore

logger = logging.getLogger(__name__)

ManifestLike = Manifest | Mapping[str, Any] | str | PathLike[str]
RunLike = Run | str | PathLike[str]


def load_manifest(manifest: ManifestLike) -> Manifest:
    """The manifest, with the captioners, scorers and trainings checked too, so that no later stage stops at a typo.

    Relative paths start at the YAML file's folder; those of a mapping, at the working folder. Raises UserError.
    """
    from lotlip_data.pipeline.dataset.score_rules import check_columns, check_rules
    from lotlip_data.pipeline.model_stages.train import check_trainings
    from lotlip_data.pipeline.recaptioning.config import resolve_captioners
    from lotlip_data.pipeline.scoring.registry import load_scorer

    if isinstance(manifest, Manifest):
        content, where = manifest, "manifest"
    elif isinstance(manifest, Mapping):
        content, where = _from_mapping(manifest), "manifest"
    else:
        content, where = load(fspath(manifest)), fspath(manifest)
    try:
        if content.captioners:  # none where all captions are imported
            resolve_captioners(content.captioners)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    check_trainings(content.train, where)
    try:
        scorers = {entry.label: load_scorer(entry) for entry in content.scores}
        check_rules(content, scorers)
        check_columns(content, scorers, [*content.captioner_names, *content.imported_names])
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return content


def _from_mapping(content: Mapping[str, Any]) -> Manifest:
    text = json.dumps(dict(content), default=_plain)  # JSON is YAML
    return with_absolute_paths(parse(text, "manifest"), str(Path.cwd()))


def _plain(value: Any) -> Any:
    """A value of a manifest that JSON does not know, in types that it knows."""
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise UserError(f"manifest: {value!r} is of type {type(value).__name__}; use text, numbers, lists and mappings")


def open_run(run: RunLike) -> Run:
    """The run in this folder, which may not exist yet. Raises UserError where a file is in its place."""
    return run if isinstance(run, Run) else Run.at(fspath(run))


def fetch_models(manifest: ManifestLike, *, ray: bool = False) -> Outcome:
    """Download, convert and export the models of a manifest. Later commands on this machine need no hub for them.

    The files go to the hub's cache (HF_HOME, HF_HUB_CACHE); what is there already stays as it is.

    Args:
        manifest: The manifest.
        ray: Do it on every node of the cluster in RAY_ADDRESS, with the same commits.
    """
    from lotlip_data.pipeline.readiness.fetch import Fetched, Fetcher, fetch_everywhere, needs_of, pinned

    needs = needs_of(load_manifest(manifest))
    by_machine = fetch_everywhere(pinned(needs)) if ray else {"here": Fetcher(needs)()}
    figures: dict[str, Any] = {}
    lines, failed = [], []
    for machine, models in by_machine.items():
        place = "" if machine == "here" else f"{machine}: "
        lines += [place + model.line() for model in models if isinstance(model, Fetched)]
        failed += [place + reason for reason in models if isinstance(reason, str)]
        figures[machine] = [asdict(model) for model in models if isinstance(model, Fetched)]
    return Outcome(bool(lines), failed, figures, "fetch-models", lines)


def download(
    manifest: ManifestLike,
    run: RunLike,
    *,
    retry_failed: bool = False,
    accept_failures: bool = False,
    update_manifest: bool = False,
) -> Outcome:
    """Partition the manifest's sources into shards, once, and download every shard that is not downloaded yet.

    A shard of images that exist is scanned in place of a download.

    Args:
        manifest: The manifest. It is stored in the run's folder, where the other stages read it.
        run: The run's folder. It is created where it does not exist.
        retry_failed: Download images again that failed for transient reasons.
        accept_failures: Mark shards complete even if none of their images downloaded.
        update_manifest: Replace the run's manifest if this one has other settings. Without it, that is an error.
    """
    from lotlip_data.pipeline.downloading.failures import format_text
    from lotlip_data.pipeline.downloading.stage import download as download_shards

    manifest, run = load_manifest(manifest), open_run(run)
    _freeze_if_started(manifest, run, update_manifest)
    summary = download_shards(manifest, run, retry_failed=retry_failed, accept_failures=accept_failures)
    figures = summary.to_dict()
    lines = [] if summary.nothing_to_do else [f"download: {summary.fetched:,} of {summary.requested:,} images"]
    lines += format_text(summary.failures.to_dict())
    return Outcome(not summary.nothing_to_do, summary.failed_shards, figures, "download", _logged(lines))


def _freeze_if_started(manifest: Manifest, run: Run, update: bool) -> None:
    """Compare the manifest with the run's. A new run gets its manifest once the lists are read."""
    if storage.exists(run.manifest) or storage.exists(run.plan):
        freeze(manifest, run, update)


def recaption(
    run: RunLike,
    captioners: Iterable[str | Mapping[str, Any]] = (),
    *,
    pool: Mapping[str, Any] | None = None,
    follow: bool = False,
) -> Outcome:
    """Caption the downloaded images with each captioner.

    Args:
        run: The run's folder.
        captioners: Names of captioners, or of single texts of captioners that make several: those of the run's
            manifest before presets. Or settings as in a manifest. Default: all captioners of the run's manifest.
        pool: Settings of every captioner's pool, such as `max_actors`; they override the manifest's.
        follow: Caption each shard as soon as it is downloaded, until the download is complete. It may run in another
            process or on another machine, and may start later.
    """
    from lotlip_data.pipeline.downloading.remaining import missing_images

    run = open_run(run)
    upstream = None
    if follow:
        _wait_for_run(run, "recaption")
        if missing_images(run):
            upstream = Upstream(partial(missing_images, run), "recaption")
    return _recaption(run, captioners, pool, upstream)


def _wait_for_run(run: Run, stage: str) -> None:
    """Wait until the run has a manifest."""

    def find_missing() -> str:
        return "" if storage.exists(run.manifest) else f"{run.manifest}, which `lotlip-data download` writes"

    Upstream(find_missing, stage).wait()


def _recaption(
    run: Run,
    captioners: Iterable[str | Mapping[str, Any]] = (),
    pool: Mapping[str, Any] | None = None,
    upstream: Upstream | None = None,
) -> Outcome:
    from lotlip_data.pipeline.recaptioning.config import select_captioners
    from lotlip_data.pipeline.recaptioning.stage import recaption as caption_shards

    summary = caption_shards(run, select_captioners(frozen(run).captioners, captioners, pool), upstream)
    lines = [
        f"recaption: {name}: {summary.captions[name]:,} images captioned, {summary.rejected[name]:,} rejected"
        for name in summary.units
    ]
    return Outcome(not summary.nothing_to_do, summary.failed, summary.to_dict(), "recaption", _logged(lines))


def import_captions(
    run: RunLike,
    table: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
    columns: Sequence[str] = (),
    *,
    url_column: str | None = None,
    table_format: str | None = None,
    column_names: Sequence[str] = (),
    replace: bool = False,
    dry_run: bool = False,
) -> Outcome:
    """Join existing captions to the run's images by URL: those of a table, or those that the manifest's sources carry.

    Args:
        run: The run's folder.
        table: CSV, TSV, JSON lines or Parquet, one file or several; `*` in a name stands for many. Default: the lists
            of the sources that carry captions, which a list that has changed since replaces.
        columns: A captioner's name and its column, as NAME=COLUMN. Not needed for `dreamlip` and `recap-long`.
        url_column: The column of the URLs. Default: `url`, `Image Path` for `dreamlip`, found for `recap-long`.
        table_format: `dreamlip`; `recap-long`, whose columns are found by their names; or `csv`, `tsv`, `jsonl` or
            `parquet` where the file name does not end so.
        column_names: Names of all columns, for CSV and TSV without a header.
        replace: Replace captions that were imported before, such as those of a table that was corrected since.
        dry_run: Only say what is taken from each column.
    """
    from lotlip_data.pipeline.recaptioning.importing import stage
    from lotlip_data.pipeline.recaptioning.importing.caption_table import open_caption_table, open_source_captions

    run = open_run(run)
    manifest = frozen(run)
    tables = [fspath(path) for path in ([table] if isinstance(table, str | PathLike) else table)]
    if not tables and (columns or url_column or table_format or column_names):
        raise UserError("these options describe a table: name its file before the run")
    if not tables and not manifest.imported_names:
        raise UserError(f"{run.manifest}: no source carries captions (`captions`); name a table of captions")
    opened = open_caption_table(tables, columns, url_column, table_format, column_names) if tables else None
    if dry_run:
        lines = (opened or open_source_captions(manifest)).describe()
        return Outcome(True, [], {"columns": lines}, "import", lines)
    if opened is None and not replace:
        summary = stage.import_source_captions(manifest, run)
    else:
        summary = stage.import_captions(run, opened or open_source_captions(manifest), replace)
    lines = stage.format_text(summary) if summary.shards else []
    return Outcome(bool(summary.shards), [], summary.to_dict(), "import", _logged(lines))


def score(run: RunLike, scorers: Sequence[str] = (), *, gpus: float | None = None) -> Outcome:
    """Score the images and texts with each scorer of the manifest's `scores` section.

    Args:
        run: The run's folder.
        scorers: Names of the scorers. Default: all of the run's manifest.
        gpus: GPUs that Ray reserves per task of a scorer with a model. Default: each entry's `gpus`, otherwise half a
            GPU where the cluster has GPUs.
    """
    from lotlip_data.pipeline.scoring.stage import score as score_shards

    run = open_run(run)
    with ray_session():
        summary = score_shards(frozen(run), run, scorers, gpus)
    return Outcome(not summary.nothing_to_do, summary.failed, summary.to_dict(), "score", _logged(summary.lines()))


def shard(run: RunLike, captioners: Sequence[str] = (), *, follow: bool = False) -> Outcome:
    """Join images and captions, split the captions into sub-captions, and write the dataset.

    Args:
        run: The run's folder.
        captioners: Captioners whose texts the dataset has, in the order of its columns. Default: `shard.captioners` of
            the run's manifest, otherwise all that the run has captions by and those of the manifest that have started.
        follow: Write each shard as soon as it has all captions, until the download and the captioners are complete.
            They may run in other processes or on other machines, and may start later.
    """
    from lotlip_data.pipeline.dataset.inputs import missing_captions
    from lotlip_data.pipeline.dataset.score_limits import missing_scores
    from lotlip_data.pipeline.dataset.stage import StagesBefore
    from lotlip_data.pipeline.downloading.remaining import missing_images

    run = open_run(run)
    before = None
    if follow:
        _wait_for_run(run, "shard")
        manifest = frozen(run)

        def find_missing() -> str:
            return missing_captions(run, manifest, captioners) or missing_scores(run, manifest, captioners)

        before = StagesBefore(Upstream(partial(missing_images, run), "shard"), Upstream(find_missing, "shard"))
    return _shard(run, captioners, before)


def _shard(run: Run, captioners: Sequence[str] = (), before: "StagesBefore | None" = None) -> Outcome:
    from lotlip_data.pipeline.dataset.stage import shard as build_dataset

    with ray_session():
        summary = build_dataset(frozen(run), run, captioners, before)
    shards, samples = wording.count(summary.built, "shard"), wording.count(summary.samples, "sample")
    lines = [f"shard: {shards} with {samples}"] if summary.built else []
    return Outcome(not summary.nothing_to_do, summary.failed, summary.to_dict(), "shard", _logged(lines))


def publish(
    run: RunLike,
    repository: str,
    *,
    private: bool = False,
    captions_only: bool = False,
    branch: str = "main",
    message: str | None = None,
    stats: bool = True,
    dry_run: bool = False,
) -> Outcome:
    """Publish the dataset on the Hugging Face Hub: what differs is uploaded, and the last commit makes it visible.

    Args:
        run: The run's folder.
        repository: The dataset repository as ORG/NAME. It is created where it does not exist.
        private: Create the repository as a private one. It is an error if it exists and is public.
        captions_only: Publish the Parquet files without the tars, which hold the images.
        branch: The branch to publish on. It is created where it does not exist.
        message: The message of the commits. Default: one that names the dataset.
        stats: Also publish the statistics of the dataset, for which all of its texts are read.
        dry_run: Only compare: change nothing.

    Raises:
        ConnectionError: The Hub does not answer, or asks to wait. The next call continues.
    """
    from lotlip_data.pipeline.hub import publish as publish_dataset

    publication = publish_dataset(
        open_run(run),
        repository,
        images=not captions_only,
        private=private,
        branch=branch,
        message=message,
        with_statistics=stats,
        dry_run=dry_run,
    )
    return Outcome(publication.has_changes, [], publication.to_dict(), "publish", _logged(publication.lines()))


def publish_progress(
    run: RunLike, repository: str, *, private: bool = False, branch: str = "main", every: float | None = None
) -> Outcome:
    """Show the progress of a run on the card of its repository on the Hugging Face Hub, while the run goes on.

    Args:
        run: The run's folder.
        repository: The dataset repository as ORG/NAME. It is created where it does not exist.
        private: Create the repository as a private one. It is an error if it exists and is public.
        branch: The branch. It is created where it does not exist.
        every: Minutes after which the card is written again, until the dataset exists. Default: once.
    """
    from lotlip_data.pipeline.hub import publish_progress as write_progress

    url, progress = write_progress(open_run(run), repository, private=private, branch=branch, every=every)
    figures = {"url": url, "stage": progress.stage, "share": progress.share}
    lines = [f"publish: the card of {url} shows the progress: {progress.message}"]
    return Outcome(True, [], figures, "publish", _logged(lines))


def export(
    run: RunLike, out: str | PathLike[str], file_format: str = "parquet", *, captioners: Sequence[str] = ()
) -> Outcome:
    """Write the captions of a run as plain files, one for each image shard. It needs no dataset.

    Args:
        run: The run's folder.
        out: The folder to write to: a path or URL. It is created where it does not exist.
        file_format: `parquet`, `jsonl`, `csv`, `dreamlip` or `webdataset`.
        captioners: Captioners whose texts are exported, in the order of their columns: NAME, or NAME=COLUMN for another
            name of the column. Default: those of the dataset.
    """
    from lotlip_data.pipeline.exporting.stage import export as export_captions

    run = open_run(run)
    with ray_session():
        summary = export_captions(frozen(run), run, fspath(out), file_format, captioners)
    return Outcome(not summary.nothing_to_do, summary.failed, summary.to_dict(), "export", _logged(summary.lines()))


def remove_captioner(run: RunLike, name: str, *, captions: bool = False) -> Outcome:
    """Remove a captioner and its captions from a run. The dataset changes with the next `shard`.

    Args:
        run: The run's folder.
        name: Name of the captioner. A captioner with several texts for each image is removed with all of them, a text
            of it alone.
        captions: Also remove captions. Without it, only a captioner without any caption is removed.
    """
    from lotlip_data.pipeline.recaptioning.stored_captioners import remove_all

    run = open_run(run)
    lines = remove_all(run, frozen(run), name, captions)
    return Outcome(True, [], {"removed": name}, "captioners remove", lines)


def features(
    run: RunLike, image_tower: str | None = None, *, image_size: int | None = None, gpus: float | None = None
) -> Outcome:
    """Compute the features of the dataset's images by a locked image tower, on Ray. A training computes missing ones.

    Args:
        run: The run's folder.
        image_tower: A folder or hub id. Default: the towers of the manifest's trainings, otherwise the paper's.
        image_size: Side of the square images in pixels. Default: the tower's.
        gpus: GPUs per task. Default: half a GPU where the cluster has GPUs, else none.
    """
    from lotlip_data.pipeline.model_stages.features import features as compute

    run = open_run(run)
    with ray_session():
        outcome = compute(frozen(run), run, image_tower, image_size, gpus)
    lines = [f"features: {name}: {counts['computed']} shards computed" for name, counts in outcome.figures.items()]
    return replace(outcome, stage="features", lines=_logged(lines if outcome.did_something else []))


def train(
    run: RunLike,
    method: str | None = None,
    *,
    preset: str | None = None,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: bool = True,
    on_ray: Mapping[str, Any] | None = None,
) -> Outcome:
    """Train LoTLIP, or a method that it is compared with, on the run's dataset.

    Args:
        run: The run's folder. The model goes to RUN/train/NAME/model.
        method: `lit`, `lit_long`, `lit_longclip`, `register`, `lotlip`, `clip`, `lotlip_scratch`, `longclip`, `debias`
            or `multi_positive`. Default: every training of the run's manifest.
        preset: The paper's settings at a scale: `3m`, `12m`, `30m` or `100m`; or `demo`. Needs `method`.
        name: Name of the folder in RUN/train. Default: the method.
        settings: Settings of `TrainConfig`, such as {"lr": 1e-3}. Needs `method`.
        resume: Continue from the last checkpoint. If False, the folder must be new.
        on_ray: Train on workers of a Ray cluster: `workers`, and the `gpus` and `cpus` of each.
    """
    from lotlip_data.manifests.settings.training import TrainingEntry, Workers
    from lotlip_data.pipeline.model_stages.train import train as train_models

    if method is None and (preset or settings or name):
        raise UserError("a preset, a name and settings are those of one method: give the method too")
    run = open_run(run)
    entry = {} if method is None else {"method": method, "name": name or method, **(settings or {})}
    if preset:
        entry["preset"] = preset
    entries = [TrainingEntry.parse(entry)] if entry else []
    workers = None if on_ray is None else Workers.parse(dict(on_ray))
    return replace(train_models(frozen(run), run, entries, resume, workers), stage="train")


def evaluate_run(run: RunLike) -> Outcome:
    """Evaluate each model of the manifest's `train` section on the tasks of its `evaluate` section."""
    from lotlip_data.pipeline.model_stages.evaluate import evaluate as evaluate_models

    run = open_run(run)
    return replace(evaluate_models(frozen(run), run), stage="evaluate")


def _logged(lines: list[str]) -> list[str]:
    """The lines of a summary, logged as the last messages of the stage."""
    for line in lines:
        logger.info(line, extra=SUMMARY_LINE)
    return lines


STAGES: dict[str, Callable[[Run], Outcome]] = {
    "import": import_captions,
    "recaption": recaption,
    "score": score,
    "shard": shard,
    "train": train,
    "evaluate": evaluate_run,
}
"""The stages after the download, in their order. The first three are called as far as the manifest has captions and
scorers."""


def run_pipeline(manifest: ManifestLike, run: RunLike, *, update_manifest: bool = False) -> Outcome:
    """Call every stage. If a stage fails in part, the next stages use what was completed.

    Download, recaption and shard work at the same time: a shard is captioned as soon as it is downloaded, and written
    as soon as it has all captions. Training and evaluation follow.

    Args:
        manifest: The manifest.
        run: The run's folder. It is created where it does not exist.
        update_manifest: Replace the run's manifest if this one has other settings. Without it, that is an error.
    """
    from lotlip_data.pipeline.core.findings import require
    from lotlip_data.pipeline.downloading.stage import cut_into_shards
    from lotlip_data.pipeline.readiness.manifest_checks import check_models

    manifest, run = load_manifest(manifest), open_run(run)

    def start(run: Run) -> Outcome:
        return download(manifest, run)

    require(check_models(manifest, run))  # before hours of downloads
    with ray_session():  # stages that use Ray share one
        _freeze_if_started(manifest, run, update_manifest)
        if not storage.exists(run.plan):
            cut_into_shards(manifest, run)
        every = {"download": start, **_stages_of(manifest)}
        return _run_stages(every, run, _stream(every, manifest, run))


def _stages_of(manifest: Manifest) -> dict[str, Callable[[Run], Outcome]]:
    """The stages after the download that the manifest asks for: captions may be imported, made, scored, or not."""
    unused = {
        "import": not manifest.imported_names,
        "recaption": not manifest.captioners,
        "score": not manifest.scores,
    }
    return {name: stage for name, stage in STAGES.items() if not unused.get(name)}


def _stream(
    stages: Mapping[str, Callable[[Run], Outcome]], manifest: Manifest, run: Run
) -> dict[str, Outcome | UserError]:
    """Run the stages up to `shard` at the same time. Returns their results; empty if only `shard` has work left.

    Tables of captions are imported once all images are there: each import reads the whole table. A dataset with scores
    is written after the stage that makes them, since its limits depend on all scores.
    """
    from lotlip_data.pipeline.core.stage_threads import StageThreads
    from lotlip_data.pipeline.dataset.inputs import absent_captions
    from lotlip_data.pipeline.dataset.stage import StagesBefore
    from lotlip_data.pipeline.downloading.remaining import missing_images

    downloads = bool(missing_images(run))
    names = [*manifest.captioner_names, *manifest.imported_names]
    if not downloads and not any(absent_captions(run, names).values()):
        return {}
    before_shard = [name for name in stages if name in ("download", "import", "recaption")]
    together = before_shard if manifest.scores else [*before_shard, "shard"]
    logger.info(f"== {', '.join(together[:-1])} and {together[-1]}, at the same time", extra=SUMMARY_LINE)

    def after(*names: str) -> Upstream:
        return Upstream(lambda: " and ".join(name for name in names if not threads.has_ended(name)))

    def import_after_download() -> Outcome:
        after("download").wait()
        return stages["import"](run)

    with cluster(), StageThreads[Outcome]() as threads:  # the main thread starts Ray, and gets the signals
        threads.start("download", partial(stages["download"], run))
        if "import" in stages:
            threads.start("import", import_after_download)
        if "recaption" in stages:
            threads.start("recaption", partial(_recaption, run, upstream=after("download") if downloads else None))
        if "shard" in together:
            threads.start("shard", partial(_shard, run, before=StagesBefore(after("download"), after(*before_shard))))
        return threads.results()


def _run_stages(
    stages: Mapping[str, Callable[[Run], Outcome]], run: Run, ended: Mapping[str, Outcome | UserError]
) -> Outcome:
    """The outcome of all stages, in their order.

    Args:
        stages: The stages.
        run: The run.
        ended: Results of stages that have run already.
    """
    total = Outcome(did_something=False, stage="run")
    for name, stage in stages.items():
        try:
            outcome = _call(name, stage, run) if name not in ended else _returned(ended[name])
        except UserError as error:
            if not total.failed:
                raise
            total.failed.append(f"{name}: {error}")  # the failures before it are the cause
            break
        if not outcome.did_something and not outcome.failed:
            logger.info(f"{name}: nothing to do")
        total.did_something |= outcome.did_something
        total.lines += outcome.lines
        total.failed += [f"{name}: {line}" for line in outcome.failed]
        total.figures[name] = outcome.figures
    return total


def _call(name: str, stage: Callable[[Run], Outcome], run: Run) -> Outcome:
    logger.info(f"== {name}", extra=SUMMARY_LINE)
    return stage(run)


def _returned(result: Outcome | UserError) -> Outcome:
    """The result of a stage. Raises it if it is an error."""
    if isinstance(result, UserError):
        raise result
    return result
