"""The reproduction study from end to end: run what is missing, then write the page. Read `design.py` first."""

import logging
from collections.abc import Sequence

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.study import cells
from lotlip_data.pipeline.study.design import ARMS, Design, plan_seeds, with_starts
from lotlip_data.pipeline.study.jobs import job_name, plan_jobs, result_url
from lotlip_data.pipeline.study.power import write_power_page
from lotlip_data.pipeline.study.report import write_page
from lotlip_data.pipeline.study.results import Results, read_folder, read_lines
from lotlip_data.pipeline.study.scheduler import RunSummary, run_jobs

logger = logging.getLogger(__name__)


def run_study(
    folder: str,
    out: str,
    minutes: float | None,
    only: Sequence[str],
    seeds: int | None,
    processes: int,
    pilot: bool = False,
    imports: Sequence[str] = (),
    design: Design | None = None,
) -> RunSummary:
    """Run the missing trainings of the study and write the page of all results.

    Args:
        folder: Folder of the study on this machine. It may be moved between calls.
        out: Folder that gets study/index.md, its plots and study/results.jsonl; or, with `pilot`, study/power.md.
        minutes: Time limit; None for none. The next call continues.
        only: Names of arms to run; all if empty. The arms that they start from run too.
        seeds: Number of seeds of every arm; None for those of `plan_seeds`.
        processes: Number of parallel trainings.
        pilot: Run development seeds, and write the power calculation instead of the page of results.
        imports: results.jsonl files, or with `pilot` pilots.jsonl files, whose trainings are not repeated.
        design: The design; the default is that of the committed results.

    Raises:
        UserError: `only` names an unknown arm; the folder is not on this machine, is in use, or holds a damaged result;
            or a file of `imports` cannot be read, or has results but none of this study.
    """
    if unknown := sorted(set(only) - set(ARMS)):
        raise UserError(f"the study has no arm {', '.join(unknown)}; choose from {', '.join(ARMS)}")
    design, folder = design or Design(), cells.local_folder(folder)
    read_folder(folder)  # report damaged results before hours of training
    planned = plan_seeds(pilot, seeds)
    for file in imports:
        _import_results(file, folder, design, seeds, pilot)
    jobs = plan_jobs(folder, design, with_starts(only or ARMS), planned)
    try:
        summary = run_jobs(folder, design, jobs, processes, None if minutes is None else 60 * minutes)
    finally:
        _write_page(Results(read_folder(folder), design, planned), design, out, pilot)
    counts = f"{summary.done} jobs done, {summary.left} left" if summary.done or summary.left else "nothing to do"
    logger.info(f"study: {counts}")
    return summary


def rebuild_page(file: str, out: str, seeds: int | None, pilot: bool = False) -> None:
    """Write the page of a results.jsonl file, or with `pilot` that of a pilots.jsonl file; `out` as in `run_study`.

    Raises UserError if the file cannot be read, or if it has results but none of this study.
    """
    design = Design()
    _write_page(_known_results(file, design, seeds, pilot), design, out, pilot)


def _known_results(file: str, design: Design, seeds: int | None, pilot: bool) -> Results:
    """The results of a file. Raises UserError if it cannot be read, or if it has results but none of this study."""
    contents = read_lines(file)
    results = Results(contents, design, plan_seeds(pilot, seeds))
    if not results.contents and Results(contents, design, plan_seeds(not pilot, None)).contents:
        remedy = "leave out --pilot" if pilot else "add --pilot"
        raise UserError(f"{file}: its results are those of {'final' if pilot else 'development'} seeds; {remedy}")
    cells.require_known(file, contents, results.contents)
    return results


def _import_results(file: str, folder: str, design: Design, seeds: int | None, pilot: bool) -> None:
    results = _known_results(file, design, seeds, pilot)
    existing = {(content["key"], content["seed"]): content for content in read_folder(folder)}
    for content in results.contents:
        training = content["key"], content["seed"]
        if existing.get(training, content) != content:
            logger.warning(
                f"{file}: {content['arm']}, seed {content['seed']}: the folder has another result, which stays"
            )
        cells.create(result_url(folder, job_name(*training)), content)
    logger.info(f"{file}: {len(results.contents)} results; {results.excluded} others are of another study")


def _write_page(results: Results, design: Design, out: str, pilot: bool) -> None:
    if results.excluded:
        logger.info(f"study: {results.excluded} results with other settings, data or evaluation are excluded")
    logger.info(f"study: {(write_power_page if pilot else write_page)(results, design, out)}")
