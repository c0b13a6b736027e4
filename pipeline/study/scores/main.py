"""The study of scores from end to end: run what is missing, then write the page. Read `design.py` first."""

import logging

from lotlip_data.pipeline.study import cells
from lotlip_data.pipeline.study.scheduler import RunSummary, run_jobs
from lotlip_data.pipeline.study.scores.design import ScoresDesign
from lotlip_data.pipeline.study.scores.jobs import plan_jobs
from lotlip_data.pipeline.study.scores.report import write_page
from lotlip_data.pipeline.study.scores.results import ScoresResults, read_folder, read_lines

logger = logging.getLogger(__name__)


def run_scores_study(
    folder: str, out: str, minutes: float | None, seeds: int, processes: int, design: ScoresDesign | None = None
) -> RunSummary:
    """Run the missing trainings and write the page of all results.

    Args:
        folder: Folder of the study on this machine. It may be that of the reproduction study.
        out: Folder that gets study/scores.md, its plots and study/scores.jsonl.
        minutes: Time limit; None for none. The next call continues.
        seeds: Number of seeds.
        processes: Number of parallel trainings.
        design: The design; the default is that of the committed results.

    Raises:
        UserError: The folder is not on this machine, is in use, or holds a damaged result.
    """
    design, folder = design or ScoresDesign(), cells.local_folder(folder)
    read_folder(folder)  # report damaged results before an hour of training
    try:
        summary = run_jobs(
            folder, design, plan_jobs(range(seeds)), processes, None if minutes is None else 60 * minutes
        )
    finally:
        page = write_page(ScoresResults(read_folder(folder), design), design, seeds, out)
        logger.info(f"study of scores: {page}")
    counts = f"{summary.done} jobs done, {summary.left} left" if summary.done or summary.left else "nothing to do"
    logger.info(f"study of scores: {counts}")
    return summary


def rebuild_scores_page(file: str, out: str, seeds: int) -> None:
    """Write the page of a scores.jsonl file; `out` as in `run_scores_study`.

    Raises UserError if the file cannot be read, or if it has results but none of this study.
    """
    design, contents = ScoresDesign(), read_lines(file)
    results = ScoresResults(contents, design)
    cells.require_known(file, contents, results.contents)
    logger.info(f"study of scores: {write_page(results, design, seeds, out)}")
