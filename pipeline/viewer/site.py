"""What all pages share: the run, its dataset, the templates, and pages of rows."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pyarrow as pa
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from lotlip_data.manifests import storage
from lotlip_data.manifests.formats.dataset_index import DatasetError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.dataset.score_stats import score_title
from lotlip_data.pipeline.dataset.tar_images import TarImages
from lotlip_data.pipeline.reporting.escaping import form_value, template_value
from lotlip_data.pipeline.viewer.downloaded_images import DownloadedImages
from lotlip_data.pipeline.viewer.list_options import Parameters
from lotlip_data.pipeline.viewer.paging import START, Filter, Page, Position, Row, read_page
from lotlip_data.pipeline.viewer.samples import Samples, open_samples
from lotlip_data.pipeline.viewer.scans import ScanCache
from lotlip_data.pipeline.viewer.scoring import score_number, score_sentence

if TYPE_CHECKING:
    from lotlip_data.pipeline.viewer.models import Models

TEMPLATES = Path(__file__).parent / "templates"
COUNT_SHARE = 0.25
"""Share of the time limit of a page that is spent on counting all rows; the next page continues."""


class Site:
    """The run that the pages show.

    Args:
        run: The run.
        models: The models for searches and maps; without them, the pages offer neither.
        seconds: Time limit for searching on one page.
    """

    def __init__(self, run: Run, models: "Models | None", seconds: float) -> None:
        self.run, self.models, self.seconds = run, models, seconds
        self.count_seconds = COUNT_SHARE * seconds
        self.tars, self.images, self.scans = TarImages(), DownloadedImages(run), ScanCache()
        self._open_samples = functools.lru_cache(1)(lambda stamp: open_samples(run))
        self._templates = Environment(
            loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=template_value
        )
        self._templates.filters |= {
            "number": "{:,}".format,
            "query": urlencode,
            "form_value": form_value,
            "score": score_number,
            "score_title": score_title,
            "score_sentence": score_sentence,
            "plural": lambda count, unit: f"{count:,} {unit}" + "s" * (count != 1),
        }
        self._templates.globals |= {"run": run.url, "has_models": models is not None}

    @property
    def has_dataset(self) -> bool:
        """Whether the run has a dataset."""
        return storage.exists(self.run.dataset)

    @property
    def dataset_stamp(self) -> str | None:
        """Changes when dataset.json does."""
        return storage.stamps_below(self.run.dataset).get("")

    @property
    def samples(self) -> Samples:
        """The dataset; it is opened again when dataset.json changes. Raises DatasetError if there is none."""
        return self._open_samples(self.dataset_stamp)

    def render(self, template: str, status: int = 200, **content: Any) -> Response:
        """Return a page."""
        return HTMLResponse(self._templates.get_template(f"{template}.html.j2").render(**content), status)

    def read_page(
        self,
        request: Request,
        files: Sequence[str],
        filter_: Filter,
        size: int,
        columns: pa.Schema | None = None,
    ) -> Page:
        """Return the page of rows that a URL asks for: the one `at` a position, or the one `before` it."""
        at, before = (Position.parse(request.query_params.get(name, "")) for name in ("at", "before"))
        position = before if before is not None else at or START
        backwards = before is not None
        return read_page(files, filter_, position, size, self.seconds, backwards=backwards, columns=columns)

    def read_row(self, samples: Samples, position: Position) -> Row:
        """Return one row of the dataset. Raises DatasetError if it cannot be read."""
        files = samples.parquets[: position.file + 1]
        page = read_page(files, Filter(), position, 1, self.seconds, columns=samples.columns)
        if page.damaged or not page.rows:
            raise DatasetError(page.damaged[0] if page.damaged else f"{files[-1]}: has no row {position.row}")
        return page.rows[0][1]


def page_links(page: Page, parameters: Parameters) -> dict[str, str | None]:
    """Return the queries of the neighbouring pages: `previous`, `first` and `next`; None where there is no page."""
    previous = None if page.before is None else urlencode([*parameters, ("before", str(page.before))])
    following = None if page.after is None else urlencode([*parameters, ("at", str(page.after))])
    return {"previous": previous, "first": urlencode(parameters) if previous else None, "next": following}
