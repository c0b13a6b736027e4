"""The study from end to end: what is left of it, run; what there is, as a page. Read `rows.ROWS` first."""

import logging
from collections.abc import Sequence

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.study.experiments import ROWS, Design, distinct
from lotlip_data.pipeline.study.jobs import all_of
from lotlip_data.pipeline.study.report import write_page
from lotlip_data.pipeline.study.results import Results, read_folder, read_lines
from lotlip_data.pipeline.study.scheduler import Ran, run

logger = logging.getLogger(__name__)


def study(
    folder: str,
    out: str,
    minutes: float | None,
    only: Sequence[str],
    seeds: int,
    processes: int,
    design: Design | None = None,
) -> Ran:
    """Run what is left of these tables and figures (all, where `only` is empty), and write the page of what there is.

    Raises UserError for a table that is none, and for a folder that is not on this machine, in use, or holds what is
    no result of a training.
    """
    if unknown := sorted(set(only) - set(ROWS)):
        raise UserError(f"there is no {', '.join(unknown)} in the study; one of {', '.join(ROWS)}")
    if not storage.is_local(folder):
        raise UserError(f"{folder}: the study runs on this machine; give it a local folder")
    design, folder = design or Design(), storage.normalise(folder)
    read_folder(folder, design)  # what is damaged is told before hours are spent
    tasks = all_of(distinct(only or ROWS), range(seeds))
    try:
        ran = run(folder, design, tasks, processes, None if minutes is None else 60 * minutes)
    finally:
        _write(Results(read_folder(folder, design), design, seeds), design, seeds, out)
    logger.info(f"study: {ran.done} tasks done, {ran.left} left" if ran.done or ran.left else "study: nothing to do")
    return ran


def write_again(file: str, out: str, seeds: int) -> None:
    """The page of a results.jsonl. Raises UserError where that is none, or none of its results is of this study."""
    design = Design()
    contents = read_lines(file, design)
    results = Results(contents, design, seeds)
    if contents and not results.contents:
        raise UserError(
            f"{file}: all of its {len(contents)} results are of another study: its settings, its data or its "
            "evaluation were other ones. Take the release that wrote it."
        )
    _write(results, design, seeds, out)


def _write(results: Results, design: Design, seeds: int, out: str) -> None:
    if results.left_out:
        logger.info(f"study: {results.left_out} results of other settings, data or evaluations are left out")
    logger.info(f"study: {write_page(results, design, seeds, out)}")
