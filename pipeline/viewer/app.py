"""The pages of `lotlip-data view`. They are rendered on the server; each of them works without its script.

/                            samples, one page at a time, by words and filters
/uids                        the uids of these samples, as a file
/sample/FILE/ROW             one sample, with maps of a text over its image
/sample/FILE/ROW.json        all columns of a sample, as a file
/image/FILE/ROW              the image of a sample
/map/MODEL/FILE/ROW          the map of a text over an image, by one model
/search                      the images most similar to a text, by each model
/search/progress             the progress of a search, in a frame of its page
POST /features               compute the image features that a search needs
/quarantine                  what could not be used, with the reasons
/quarantine/uids             the uids of these rows, as a file
/picture/SHARD/KEY           a downloaded image, in the dataset or not
/report                      the page that `lotlip-data report` wrote
"""

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.convertors import IntegerConvertor, StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats.dataset_index import DatasetError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.dataset.tar_images import ImageUnavailableError
from lotlip_data.pipeline.reporting import html
from lotlip_data.pipeline.viewer import server
from lotlip_data.pipeline.viewer.quarantine_pages import QuarantinePages
from lotlip_data.pipeline.viewer.sample_pages import SamplePages
from lotlip_data.pipeline.viewer.search_pages import SearchPages
from lotlip_data.pipeline.viewer.site import TEMPLATES, Site

if TYPE_CHECKING:
    from lotlip_data.pipeline.viewer.models import Models

PAGE_SECONDS = 4.0
"""Time limit for searching on one page."""


class RowNumberConvertor(IntegerConvertor):
    """A number in a URL, of at most 12 digits, because Python refuses to parse numbers of thousands of digits."""

    regex = "[0-9]{1,12}"


class KeyConvertor(StringConvertor):
    """The key of an image in a URL."""

    regex = "[0-9]{1,24}"


register_url_convertor("index", RowNumberConvertor())
register_url_convertor("key", KeyConvertor())


class View:
    """The pages of one run.

    Args:
        run: The run.
        models: The models for searches and maps; without them, the pages offer neither.
        seconds: Time limit for searching on one page.
    """

    def __init__(self, run: Run, models: "Models | None" = None, seconds: float = PAGE_SECONDS) -> None:
        self._site = Site(run, models, seconds)
        self.samples = SamplePages(self._site)
        self.search = SearchPages(self._site)
        self.quarantine = QuarantinePages(self._site)

    def report(self, request: Request) -> Response:
        """The report, if it has been written."""
        try:
            page = storage.read_bytes(self._site.run.report)
        except FileNotFoundError:
            raise UserError(f"There is no report yet. Run `lotlip-data report {self._site.run.url}`.") from None
        return HTMLResponse(page, headers={"content-security-policy": server.REPORT_POLICY})

    def style(self, request: Request) -> Response:
        """The styles of all pages."""
        styles = (html.TEMPLATES / "page.css").read_text() + (TEMPLATES / "view.css").read_text()
        return Response(styles, media_type="text/css")

    def script(self, request: Request) -> Response:
        """The script of all pages: keyboard shortcuts and copy buttons."""
        return Response((TEMPLATES / "view.js").read_text(), media_type="text/javascript")

    def problem(self, request: Request, error: Exception) -> Response:
        """The page for an error that the user can fix, or for a URL that does not exist."""
        if isinstance(error, HTTPException):
            message = "This page does not exist." if error.status_code == 404 else f"{error.detail}."
            return self._site.render("problem", error.status_code, message=message)
        is_missing = isinstance(error, DatasetError | ImageUnavailableError)
        return self._site.render("problem", 404 if is_missing else 400, message=str(error))


def create_app(view: View) -> Starlette:
    """Return the web application."""
    routes = [
        Route("/", view.samples.grid),
        Route("/uids", view.samples.uids),
        Route("/sample/{file:index}/{row:index}", view.samples.sample),
        Route("/sample/{file:index}/{row:index}.json", view.samples.json),
        Route("/image/{file:index}/{row:index}", view.samples.image),
        Route("/map/{model:index}/{file:index}/{row:index}", view.samples.map),
        Route("/search", view.search.page),
        Route("/search/progress", view.search.progress),
        Route("/features", view.search.compute, methods=["POST"]),
        Route("/quarantine", view.quarantine.page),
        Route("/quarantine/uids", view.quarantine.uids),
        Route("/picture/{shard:index}/{key:key}", view.quarantine.picture),
        Route("/report", view.report),
        Route("/style.css", view.style),
        Route("/view.js", view.script),
        Route("/favicon.ico", lambda request: Response(status_code=204)),
    ]
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(server.RequestGuard),
            Middleware(TrustedHostMiddleware, allowed_hosts=server.ALLOWED_HOSTS, www_redirect=False),
        ],
        exception_handlers={UserError: view.problem, HTTPException: view.problem},
    )
