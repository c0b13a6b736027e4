"""The pages of `lotlip-data view`. They are rendered on the server; none of them needs a script.

/                            samples, one page at a time, by words and filters
/sample/FILE/ROW             one sample, with maps of a text over its image
/image/FILE/ROW              the image of a sample
/map/MODEL/FILE/ROW          the map of a text over an image, by one model
/search                      the images most similar to a text, by each model
/search/progress             the progress of a search, in a frame of its page
POST /features               compute the image features that a search needs
/quarantine                  what could not be used, with the reasons
/report                      the page that `lotlip-data report` wrote
"""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pyarrow as pa
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.convertors import IntegerConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from lotlip_data.manifests import storage
from lotlip_data.manifests.dataset_index import DatasetError, ShardFile
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.reporting import html
from lotlip_data.pipeline.reporting.escaping import form_value, template_value
from lotlip_data.pipeline.viewer import quarantine, server
from lotlip_data.pipeline.viewer.cards import Card, make_card, select_text
from lotlip_data.pipeline.viewer.paging import START, Filter, Page, Position, read_page
from lotlip_data.pipeline.viewer.samples import Samples, open_samples
from lotlip_data.pipeline.viewer.search_form import Query
from lotlip_data.pipeline.viewer.tar_images import ImageUnavailableError, TarImages, tar_problem

if TYPE_CHECKING:
    from lotlip_data.pipeline.viewer.models import Model, Models, Ranking, SaliencyMap, SearchState

TEMPLATES = Path(__file__).parent / "templates"
SAMPLES_PER_PAGE = 24
QUARANTINE_ROWS_PER_PAGE = 100
PAGE_SECONDS = 4.0
"""Time limit for searching on one page."""


class RowNumberConvertor(IntegerConvertor):
    """A number in a URL, of at most 12 digits, because Python refuses to parse numbers of thousands of digits."""

    regex = "[0-9]{1,12}"


register_url_convertor("index", RowNumberConvertor())


class View:
    """The pages of one run.

    Args:
        run: The run.
        models: The models for searches and maps; without them, the pages offer neither.
        seconds: Time limit for searching on one page.
    """

    def __init__(self, run: Run, models: "Models | None" = None, seconds: float = PAGE_SECONDS) -> None:
        self._run, self._models, self._seconds = run, models, seconds
        self._tars = TarImages()
        self._open_samples = functools.lru_cache(1)(lambda stamp: open_samples(run))
        self._templates = Environment(
            loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=template_value
        )
        self._templates.filters |= {"number": "{:,}".format, "query": urlencode, "form_value": form_value}
        self._templates.globals |= {"run": run.url, "has_models": models is not None}

    @property
    def _has_dataset(self) -> bool:
        return storage.exists(self._run.dataset)

    @property
    def _samples(self) -> Samples:
        """The dataset; it is opened again when dataset.json changes. Raises DatasetError if there is none."""
        return self._open_samples(storage.stamps_below(self._run.dataset).get(""))

    def grid(self, request: Request) -> Response:
        """The samples that match a query; the quarantine if there is no dataset yet."""
        if not self._has_dataset:
            return RedirectResponse("/quarantine")
        samples = self._samples
        query = Query.parse(request.query_params, samples)
        page = self._page(request, samples.parquets, query.filter(samples), SAMPLES_PER_PAGE, columns=samples.columns)
        cards = [make_card(position, row, samples.captioners) for position, row in page.rows]
        images_only = request.query_params.get("show") == "images"
        return self._render(
            "grid",
            samples=samples,
            query=query,
            cards=cards,
            page=page,
            tar_problems=_tar_problems(samples, cards),
            images_only=images_only,
            parameters=query.parameters | ({"show": "images"} if images_only else {}),
        )

    def sample(self, request: Request) -> Response:
        """One sample, with its maps if a text is selected."""
        samples = self._samples
        file, position, row = self._requested_row(request)
        card, parameters = make_card(position, row, samples.captioners), dict(request.query_params)
        text = select_text(row, samples.captioners, parameters)
        maps, problems = self._draw_maps(file, position, text) if text else ([], [])
        return self._render(
            "sample",
            card=card,
            file=file,
            tar_problems=_tar_problems(samples, [card]),
            text=text,
            maps=maps,
            problems=problems,
            map_parameters={name: parameters[name] for name in ("of", "sub", "text") if parameters.get(name)},
        )

    def image(self, request: Request) -> Response:
        """The image of a sample as it is stored; always a JPEG."""
        file, position = self._requested_position(request)
        return Response(self._tars.image(file.tar_url, position.row), media_type="image/jpeg")

    def map(self, request: Request) -> Response:
        """The map of a text over an image, by one model."""
        models = [] if self._models is None else self._models.all
        number = request.path_params["model"]
        file, position, row = self._requested_row(request)
        text = select_text(row, self._samples.captioners, request.query_params)
        if number >= len(models) or not text:
            raise HTTPException(404)
        return Response(self._draw_map(models[number], file, position, text).picture, media_type="image/png")

    def search(self, request: Request) -> Response:
        """The images most similar to a text, by each model."""
        samples, search = self._samples, self._continue_search(request)
        results = [self._results(samples, ranking) if ranking else ([], []) for _, ranking in search.rankings]
        cards = [card for hits, _ in results for _, card in hits]
        return self._render("search", search=search, results=results, tar_problems=_tar_problems(samples, cards))

    def progress(self, request: Request) -> Response:
        """The progress of a search: a frame that reloads itself, so that the page around it keeps what is typed."""
        response = self._render("progress", search=self._continue_search(request))
        response.headers["content-security-policy"] = server.FRAMED_POLICY
        return response

    def compute(self, request: Request) -> Response:
        """Start to compute the missing image features."""
        if self._models is None:
            raise HTTPException(404)
        for features in dict.fromkeys(self._models.features(self._run, self._samples)):  # models may share them
            features.compute()
        return RedirectResponse("/search?" + urlencode(dict(request.query_params)), 303)

    def quarantine(self, request: Request) -> Response:
        """What could not be used: the categories, and one page of one category."""
        categories = quarantine.list_categories(self._run)
        name, words = request.query_params.get("kind", ""), request.query_params.get("reason", "").strip()
        category = next((each for each in categories if each.name == name), None)
        if name and category is None:
            raise HTTPException(404)
        if categories and not name:
            category = categories[0]
        files = category.files if category else ()
        page = self._page(request, files, quarantine.reason_filter(words), QUARANTINE_ROWS_PER_PAGE)
        rows = [quarantine.row_cells(row) for _, row in page.rows]
        return self._render(
            "quarantine",
            categories=categories,
            category=category,
            page=page,
            rows=rows,
            columns=[column for column in quarantine.COLUMNS if any(column in row for row in rows)],
            parameters={"kind": category.name if category else "", "reason": words},
            has_dataset=self._has_dataset,
        )

    def report(self, request: Request) -> Response:
        """The report, if it has been written."""
        try:
            page = storage.read_bytes(self._run.report)
        except FileNotFoundError:
            raise UserError(f"There is no report yet. Run `lotlip-data report {self._run.url}`.") from None
        return HTMLResponse(page, headers={"content-security-policy": server.REPORT_POLICY})

    def style(self, request: Request) -> Response:
        """The styles of all pages."""
        styles = (html.TEMPLATES / "page.css").read_text() + (TEMPLATES / "view.css").read_text()
        return Response(styles, media_type="text/css")

    def problem(self, request: Request, error: Exception) -> Response:
        """The page for an error that the user can fix, or for a URL that does not exist."""
        if isinstance(error, HTTPException):
            message = "This page does not exist." if error.status_code == 404 else f"{error.detail}."
            return self._render("problem", error.status_code, message=message)
        is_missing = isinstance(error, DatasetError | ImageUnavailableError)
        return self._render("problem", 404 if is_missing else 400, message=str(error))

    def _render(self, template: str, status: int = 200, **content: Any) -> Response:
        return HTMLResponse(self._templates.get_template(f"{template}.html.j2").render(**content), status)

    def _page(
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
        return read_page(files, filter_, position, size, self._seconds, backwards=backwards, columns=columns)

    def _requested_position(self, request: Request) -> tuple[ShardFile, Position]:
        position = Position(request.path_params["file"], request.path_params["row"])
        files = self._samples.files
        if position.file >= len(files) or position.row >= files[position.file].samples:
            raise HTTPException(404)
        return files[position.file], position

    def _requested_row(self, request: Request) -> tuple[ShardFile, Position, dict[str, Any]]:
        file, position = self._requested_position(request)
        return file, position, self._read_row(self._samples, position)

    def _read_row(self, samples: Samples, position: Position) -> dict[str, Any]:
        files = samples.parquets[: position.file + 1]
        page = read_page(files, Filter(), position, 1, self._seconds, columns=samples.columns)
        if page.damaged or not page.rows:
            raise DatasetError(page.damaged[0] if page.damaged else f"{files[-1]}: has no row {position.row}")
        return page.rows[0][1]

    def _results(self, samples: Samples, ranking: "Ranking") -> tuple[list[tuple[float, Card]], list[str]]:
        """Return the readable cards of a ranking with their scores, and the problems without repeats."""
        hits, problems = [], dict.fromkeys(ranking.damaged)
        for score, position in ranking.best:
            try:
                hits.append((score, make_card(position, self._read_row(samples, position), samples.captioners)))
            except DatasetError as error:
                problems[str(error)] = None
        return hits, list(problems)

    def _continue_search(self, request: Request) -> "SearchState":
        """Continue the search that a URL asks for, for the time limit of one page."""
        if self._models is None:
            raise UserError("Search needs a model. Start `lotlip-data view RUN --checkpoint RUN/train/NAME/model`.")
        text = request.query_params.get("text", "").strip()
        return self._models.search(self._run, self._samples, text, self._seconds)

    def _draw_maps(
        self, file: ShardFile, position: Position, text: str
    ) -> tuple[list[tuple[int, str, "SaliencyMap"]], list[str]]:
        """Return the maps that can be drawn, with number and name of the model, and the problems without repeats."""
        maps, problems = [], dict[str, None]()
        for number, model in enumerate(self._models.all if self._models is not None else []):
            try:
                maps.append((number, model.name, self._draw_map(model, file, position, text)))
            except UserError as error:
                problems[str(error)] = None
        return maps, list(problems)

    def _draw_map(self, model: "Model", file: ShardFile, position: Position, text: str) -> "SaliencyMap":
        from PIL.Image import DecompressionBombError

        try:
            return model.map(self._tars.image(file.tar_url, position.row), text)
        except (OSError, DecompressionBombError) as error:
            raise ImageUnavailableError(f"{file.tar_url}: image {position.row} cannot be decoded ({error})") from error


def _tar_problems(samples: Samples, cards: Iterable[Card]) -> list[str]:
    """Return the problems of the tars that hold the images of these cards; makes one storage request per tar."""
    files = [samples.files[number] for number in sorted({card.position.file for card in cards})]
    return [problem for file in files if (problem := tar_problem(file.tar_url, file.tar.bytes))]


def create_app(view: View) -> Starlette:
    """Return the web application."""
    routes = [
        Route("/", view.grid),
        Route("/sample/{file:index}/{row:index}", view.sample),
        Route("/image/{file:index}/{row:index}", view.image),
        Route("/map/{model:index}/{file:index}/{row:index}", view.map),
        Route("/search", view.search),
        Route("/search/progress", view.progress),
        Route("/features", view.compute, methods=["POST"]),
        Route("/quarantine", view.quarantine),
        Route("/report", view.report),
        Route("/style.css", view.style),
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
