"""The reproduction study from end to end: run what is missing, then write the page. Read `design.py` first."""

import logging
from collections.abc import Sequence

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.study import cells
from lotlip_data.pipeline.study.design import ARMS, PILOT_SEEDS, SEEDS, Design, with_starts
from lotlip_data.pipeline.study.jobs import plan_jobs
from lotlip_data.pipeline.study.power import write_power_page
from lotlip_data.pipeline.study.report import write_page
from lotlip_data.pipeline.study.results import DEVELOPMENT, FINAL, Results, read_folder, read_lines
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
    design: Design | None = None,
) -> RunSummary:
    """Run the missing trainings of the study and write the page of all results.

    Args:
        folder: Folder of the study on this machine. It may be moved between calls.
        out: Folder that gets study/index.md, its plots and study/results.jsonl; or, with `pilot`, study/power.md.
        minutes: Time limit; None for none. The next call continues.
        only: Names of arms to run; all if empty. The arms that they start from run too.
        seeds: Number of seeds; None for SEEDS, or with `pilot` PILOT_SEEDS.
        processes: Number of parallel trainings.
        pilot: Run development seeds, and write the power calculation instead of the page of results.
        design: The design; the default is that of the committed results.

    Raises:
        UserError: `only` names an unknown arm; or the folder is not on this machine, is in use, or holds a damaged
            result.
    """
    if unknown := sorted(set(only) - set(ARMS)):
        raise UserError(f"the study has no arm {', '.join(unknown)}; choose from {', '.join(ARMS)}")
    design, folder = design or Design(), cells.local_folder(folder)
    read_folder(folder)  # report damaged results before hours of training
    kind, seeds = _seeds(seeds, pilot)
    jobs = plan_jobs(with_starts(only or ARMS), kind[:seeds])
    try:
        summary = run_jobs(folder, design, jobs, processes, None if minutes is None else 60 * minutes)
    finally:
        results = Results(read_folder(folder), design, kind)
        _log_excluded(results)
        page = write_power_page(results, design, out) if pilot else write_page(results, design, seeds, out)
        logger.info(f"study: {page}")
    counts = f"{summary.done} jobs done, {summary.left} left" if summary.done or summary.left else "nothing to do"
    logger.info(f"study: {counts}")
    return summary


def rebuild_page(file: str, out: str, seeds: int | None, pilot: bool = False) -> None:
    """Write the page of a results.jsonl file, or with `pilot` that of a pilots.jsonl file; `out` as in `run_study`.

    Raises UserError if the file cannot be read, or if it has results but none of this study.
    """
    design, contents = Design(), read_lines(file)
    kind, seeds = _seeds(seeds, pilot)
    results = Results(contents, design, kind)
    cells.require_known(file, contents, results.contents)
    _log_excluded(results)
    logger.info(
        f"study: {write_power_page(results, design, out) if pilot else write_page(results, design, seeds, out)}"
    )


def _seeds(seeds: int | None, pilot: bool) -> tuple[range, int]:
    """All seeds of a kind, and how many of them to use."""
    return (DEVELOPMENT, seeds or PILOT_SEEDS) if pilot else (FINAL, seeds or SEEDS)


def _log_excluded(results: Results) -> None:
    if results.excluded:
        logger.info(f"study: {results.excluded} results with other settings, data or evaluation are excluded")
