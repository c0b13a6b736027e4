"""The page's addresses, and what each shows. Pages are rendered here; none of them needs a script.

/                            samples, a page at a time, by words and filters
/sample/FILE/ROW             one sample, and where models see a text in its image
/image/FILE/ROW  /map/MODEL/FILE/ROW
/search  /search/progress    the images that suit a text best, by each model;  POST /features: compute what it needs
/quarantine                  what could not be used, with the reasons
/report                      the page that `lotlip-data report` wrote
"""

import functools
from collections.abc import Iterable
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
from lotlip_data.manifests.dataset_index import DatasetError
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.reporting import html
from lotlip_data.pipeline.reporting.escaping import template_value, typed
from lotlip_data.pipeline.viewer import quarantine
from lotlip_data.pipeline.viewer import server as guard
from lotlip_data.pipeline.viewer.cards import Card, card_of, text_of
from lotlip_data.pipeline.viewer.paging import START, Filter, Page, Place, page_at
from lotlip_data.pipeline.viewer.samples import File, Samples, open_samples
from lotlip_data.pipeline.viewer.search_form import Query
from lotlip_data.pipeline.viewer.tar_images import NoImage, Tars, damage

if TYPE_CHECKING:
    from lotlip_data.pipeline.viewer.models import Looked, Map, Model, Models, Ranking

TEMPLATES = Path(__file__).parent / "templates"
SIZE = 24
"""Samples of a page."""
ROWS = 100
"""Rows of a page of the quarantine."""
SECONDS = 4.0
"""A page looks for so long."""


class Index(IntegerConvertor):
    """A number in an address, of no more digits than there are rows; Python's own limit is an error of its own."""

    regex = "[0-9]{1,12}"


register_url_convertor("index", Index())


class View:
    """The pages over one run. `models` are those that search and maps are made with."""

    def __init__(self, run: Run, models: "Models | None" = None, seconds: float = SECONDS) -> None:
        self._run, self._models, self._seconds = run, models, seconds
        self._tars = Tars()
        self._opened = functools.lru_cache(1)(lambda stamp: open_samples(run))
        self._pages = Environment(
            loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=template_value
        )
        self._pages.filters |= {"number": "{:,}".format, "query": urlencode, "typed": typed}
        self._pages.globals |= {"run": run.url, "searches": models is not None}

    @property
    def _sharded(self) -> bool:
        return storage.exists(self._run.dataset)

    @property
    def _samples(self) -> Samples:
        """Read again when it is written anew. Raises DatasetError where there is none."""
        return self._opened(storage.stamps_below(self._run.dataset).get(""))

    def grid(self, request: Request) -> Response:
        """Samples that a query wants; the quarantine, where there is no dataset yet."""
        if not self._sharded:
            return RedirectResponse("/quarantine")
        samples = self._samples
        query = Query.of(request.query_params, samples)
        page = _page(samples.parquets, query.filter(samples), request, SIZE, self._seconds, samples.columns)
        cards = [card_of(place, row, samples.captioners) for place, row in page.rows]
        images = request.query_params.get("show") == "images"
        show = {"show": "images"} if images else {}
        return self._html(
            "grid",
            samples=samples,
            query=query,
            cards=cards,
            page=page,
            tars=_damaged_tars(samples, cards),
            images=images,
            kept=query.asked | show,
        )

    def sample(self, request: Request) -> Response:
        """One sample."""
        samples = self._samples
        file, place, row = self._row(request)
        card, asked = card_of(place, row, samples.captioners), dict(request.query_params)
        text = text_of(row, samples.captioners, asked)
        maps, problems = self._maps(file, place, text) if text else ([], [])
        return self._html(
            "sample",
            card=card,
            file=file,
            tars=_damaged_tars(samples, [card]),
            text=text,
            maps=maps,
            problems=problems,
            asked={name: asked[name] for name in ("of", "sub", "text") if asked.get(name)},
        )

    def image(self, request: Request) -> Response:
        """The image of a sample as it is stored; always a JPEG."""
        file, place = self._place(request)
        return Response(self._tars.image(file.tar, place.row), media_type="image/jpeg")

    def map(self, request: Request) -> Response:
        """The map of a text over an image, by one model."""
        models = [] if self._models is None else self._models.all
        number = request.path_params["model"]
        file, place, row = self._row(request)
        text = text_of(row, self._samples.captioners, request.query_params)
        if number >= len(models) or not text:
            raise HTTPException(404)
        return Response(self._map(models[number], file, place, text).picture, media_type="image/png")

    def search(self, request: Request) -> Response:
        """The images that suit a text best, by each model."""
        samples, looked = self._samples, self._looked(request)
        hits = [self._hits(samples, ranking) if ranking else ([], []) for _, ranking in looked.rankings]
        tars = _damaged_tars(samples, [card for found, _ in hits for _, card in found])
        return self._html("search", looked=looked, hits=hits, tars=tars)

    def progress(self, request: Request) -> Response:
        """How far the search has come: a frame in its page, which alone asks again, so that nothing typed is lost."""
        answer = self._html("progress", looked=self._looked(request))
        answer.headers["content-security-policy"] = guard.FRAMED_POLICY
        return answer

    def compute(self, request: Request) -> Response:
        """Begin to compute the features that are missing."""
        if self._models is None:
            raise HTTPException(404)
        for one in dict.fromkeys(self._models.features(self._run, self._samples)):  # models may share them
            one.compute()
        return RedirectResponse("/search?" + urlencode(dict(request.query_params)), 303)

    def quarantine(self, request: Request) -> Response:
        """What could not be used: the stages, and a page of one of them."""
        kinds = quarantine.kinds(self._run)
        asked, words = request.query_params.get("kind", ""), request.query_params.get("reason", "").strip()
        kind = next((kind for kind in kinds if kind.name == asked), kinds[0] if kinds and not asked else None)
        if asked and kind is None:
            raise HTTPException(404)
        page = _page(kind.files if kind else (), quarantine.reason_filter(words), request, ROWS, self._seconds)
        rows = [quarantine.cells(row) for _, row in page.rows]
        columns = [name for name in quarantine.SHOWN if any(name in row for row in rows)]
        kept = {"kind": kind.name if kind else "", "reason": words}
        return self._html(
            "quarantine",
            kinds=kinds,
            kind=kind,
            page=page,
            rows=rows,
            columns=columns,
            kept=kept,
            sharded=self._sharded,
        )

    def report(self, request: Request) -> Response:
        """The report, where there is one."""
        try:
            page = storage.read_bytes(storage.join(self._run.url, "report.html"))
        except FileNotFoundError:
            raise UserError(f"There is no report yet. Run `lotlip-data report {self._run.url}`.") from None
        return HTMLResponse(page, headers={"content-security-policy": guard.REPORT_POLICY})

    def style(self, request: Request) -> Response:
        """The styles of all pages."""
        return Response(
            (html.TEMPLATES / "page.css").read_text() + (TEMPLATES / "view.css").read_text(), media_type="text/css"
        )

    def problem(self, request: Request, error: Exception) -> Response:
        """An error that a person can mend, or a page that is not there."""
        if isinstance(error, HTTPException):
            return self._html("problem", error.status_code, message=error.detail)
        return self._html("problem", 404 if isinstance(error, DatasetError | NoImage) else 400, message=str(error))

    def _html(self, name: str, status: int = 200, **content: Any) -> Response:
        return HTMLResponse(self._pages.get_template(f"{name}.html.j2").render(**content), status)

    def _place(self, request: Request) -> tuple[File, Place]:
        place = Place(request.path_params["file"], request.path_params["row"])
        files = self._samples.files
        if place.file >= len(files) or place.row >= files[place.file].samples:
            raise HTTPException(404)
        return files[place.file], place

    def _row(self, request: Request) -> tuple[File, Place, dict[str, Any]]:
        file, place = self._place(request)
        return file, place, self._row_at(self._samples, place)

    def _row_at(self, samples: Samples, place: Place) -> dict[str, Any]:
        files = samples.parquets[: place.file + 1]
        page = page_at(files, Filter(), place, 1, self._seconds, columns=samples.columns)
        if page.damaged or not page.rows:
            raise DatasetError(page.damaged[0] if page.damaged else f"{files[-1]}: has no row {place.row}")
        return page.rows[0][1]

    def _hits(self, samples: Samples, ranking: "Ranking") -> tuple[list[tuple[float, Card]], list[str]]:
        """Those of the best whose rows can be read, with their scores, and what is damaged, each line once."""
        hits, damaged = [], dict.fromkeys(ranking.damaged)
        for score, place in ranking.best:
            try:
                hits.append((score, card_of(place, self._row_at(samples, place), samples.captioners)))
            except DatasetError as error:
                damaged[str(error)] = None
        return hits, list(damaged)

    def _looked(self, request: Request) -> "Looked":
        """Go on with the search that a URL asks for, for the time of a page."""
        if self._models is None:
            raise UserError("Searching needs a model: start `lotlip-data view RUN --checkpoint RUN/train/NAME/model`.")
        return self._models.look(self._run, self._samples, request.query_params.get("text", "").strip(), self._seconds)

    def _maps(self, file: File, place: Place, text: str) -> tuple[list[tuple[int, str, "Map"]], list[str]]:
        """By each model that can draw one: its number, its name, and the map; and why others cannot, each line once."""
        maps, problems = [], dict[str, None]()
        for number, model in enumerate(self._models.all if self._models is not None else []):
            try:
                maps.append((number, model.name, self._map(model, file, place, text)))
            except UserError as error:
                problems[str(error)] = None
        return maps, list(problems)

    def _map(self, model: "Model", file: File, place: Place, text: str) -> "Map":
        from PIL.Image import DecompressionBombError

        try:
            return model.map(self._tars.image(file.tar, place.row), text)
        except (OSError, DecompressionBombError) as error:
            raise NoImage(f"{file.tar}: image {place.row} cannot be decoded ({error})") from error


def _damaged_tars(samples: Samples, cards: Iterable[Card]) -> list[str]:
    """What is wrong with the tars that have the images of these cards, a line each; one question a tar."""
    files = [samples.files[number] for number in sorted({card.place.file for card in cards})]
    return [line for file in files if (line := damage(file.tar, file.bytes))]


def _page(
    files: Any, wanted: Filter, request: Request, size: int, seconds: float, columns: pa.Schema | None = None
) -> Page:
    """The page that a URL asks for: `at` a place, or the one `before` it."""
    at, before = (Place.parse(request.query_params.get(name, "")) for name in ("at", "before"))
    if before is not None:
        return page_at(files, wanted, before, size, seconds, backwards=True, columns=columns)
    return page_at(files, wanted, at or START, size, seconds, columns=columns)


def create_app(view: View) -> Starlette:
    """The web application."""
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
            Middleware(guard.Guard),
            Middleware(TrustedHostMiddleware, allowed_hosts=guard.HOSTS, www_redirect=False),
        ],
        exception_handlers={UserError: view.problem, HTTPException: view.problem},
    )
