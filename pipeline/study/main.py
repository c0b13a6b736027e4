"""The reproduction study from end to end: run what is missing, then write the page. Read `experiments.py` first."""

import logging
from collections.abc import Sequence

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.study.experiments import EXPERIMENTS, Design, distinct_experiments
from lotlip_data.pipeline.study.jobs import plan_jobs
from lotlip_data.pipeline.study.report import write_page
from lotlip_data.pipeline.study.results import Results, read_folder, read_lines
from lotlip_data.pipeline.study.scheduler import RunSummary, run_jobs

logger = logging.getLogger(__name__)


def run_study(
    folder: str,
    out: str,
    minutes: float | None,
    only: Sequence[str],
    seeds: int,
    processes: int,
    design: Design | None = None,
) -> RunSummary:
    """Run the missing trainings of the study and write the page of all results.

    Args:
        folder: Folder of the study on this machine.
        out: Folder that gets study/index.md, its plots and study/results.jsonl.
        minutes: Time limit; None for none. The next call continues.
        only: Tables and figures to run, such as "table-2"; all if empty.
        seeds: Number of seeds.
        processes: Number of parallel trainings.
        design: The design; the default is that of the committed results.

    Raises:
        UserError: `only` names an unknown table; or the folder is not on this machine, is in use, or holds a damaged
            result.
    """
    if unknown := sorted(set(only) - set(EXPERIMENTS)):
        raise UserError(f"the study has no {', '.join(unknown)}; choose from {', '.join(EXPERIMENTS)}")
    if not storage.is_local(folder):
        raise UserError(f"{folder}: the study runs on this machine; name a local folder")
    design, folder = design or Design(), storage.normalise(folder)
    read_folder(folder, design)  # report damaged results before hours of training
    jobs = plan_jobs(distinct_experiments(only or EXPERIMENTS), range(seeds))
    try:
        summary = run_jobs(folder, design, jobs, processes, None if minutes is None else 60 * minutes)
    finally:
        _write_page(Results(read_folder(folder, design), design, seeds), design, seeds, out)
    counts = f"{summary.done} jobs done, {summary.left} left" if summary.done or summary.left else "nothing to do"
    logger.info(f"study: {counts}")
    return summary


def rebuild_page(file: str, out: str, seeds: int) -> None:
    """Write the page of a results.jsonl file; `out` as in `run_study`.

    Raises UserError if the file cannot be read, or if it has results but none of this study.
    """
    design = Design()
    contents = read_lines(file, design)
    results = Results(contents, design, seeds)
    if contents and not results.contents:
        raise UserError(
            f"{file}: all of its {len(contents)} results belong to a study with other settings, data or evaluation; "
            "use the release that wrote it"
        )
    _write_page(results, design, seeds, out)


def _write_page(results: Results, design: Design, seeds: int, out: str) -> None:
    if results.excluded:
        logger.info(f"study: {results.excluded} results with other settings, data or evaluation are excluded")
    logger.info(f"study: {write_page(results, design, seeds, out)}")
