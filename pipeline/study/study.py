"""The study from end to end: what is left of it, run; what there is, as a page. Read `rows.ROWS` first."""

from collections.abc import Callable, Sequence

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.study.page import write_page
from lotlip_data.pipeline.study.results import Results, read_folder
from lotlip_data.pipeline.study.rows import ROWS, Design, distinct
from lotlip_data.pipeline.study.runner import Ran, run
from lotlip_data.pipeline.study.work import all_of

Say = Callable[[str], None]


def study(
    folder: str,
    out: str,
    minutes: float | None,
    only: Sequence[str],
    seeds: int,
    processes: int,
    say: Say,
    design: Design | None = None,
) -> Ran:
    """Run what is left of these tables and figures (all, where `only` is empty), and write the page of what there is.

    Raises UserError for a table that is none, and for a folder that is not on this machine or in use.
    """
    if unknown := sorted(set(only) - set(ROWS)):
        raise UserError(f"there is no {', '.join(unknown)} in the study; one of {', '.join(ROWS)}")
    if not storage.is_local(folder):
        raise UserError(f"{folder}: the study runs on this machine; give it a local folder")
    design, folder = design or Design(), storage.normalise(folder)
    tasks = all_of(distinct(only or ROWS), range(seeds))
    try:
        ran = run(folder, design, tasks, processes, None if minutes is None else 60 * minutes, say)
    finally:
        say(f"study: {write_page(Results(read_folder(folder), design), design, seeds, out)}")
    say(f"study: {ran.done} tasks done, {ran.left} left" if ran.done or ran.left else "study: nothing to do")
    return ran
