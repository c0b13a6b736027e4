"""The pages of the dataset: the list of samples, one sample, its image and its maps, and exports."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats.dataset_index import ShardFile
from lotlip_data.pipeline.dataset.tar_images import ImageUnavailableError, tar_problem
from lotlip_data.pipeline.reporting.escaping import escape_invisible
from lotlip_data.pipeline.viewer.cards import Card, make_card, select_text
from lotlip_data.pipeline.viewer.list_options import PAGE_SIZES, SHOWN, ListOptions, Parameters, orders, sort_key
from lotlip_data.pipeline.viewer.paging import Filter, Page, Position, Row, iter_matches, read_page
from lotlip_data.pipeline.viewer.samples import Samples
from lotlip_data.pipeline.viewer.scans import SORTED_ROWS, Matches
from lotlip_data.pipeline.viewer.scoring import TINTS
from lotlip_data.pipeline.viewer.search_form import Query
from lotlip_data.pipeline.viewer.site import Site, page_links

if TYPE_CHECKING:
    from lotlip_data.pipeline.viewer.models import Model, SaliencyMap

SENTENCES = {
    "q": "the words {}",
    "text": "in {} only",
    "flag": "the flag {}",
    "source": "the source {}",
    "least": "at least {} words",
    "most": "at most {} words",
    "low": "a score of at least {}",
    "high": "a score of at most {}",
}
"""The conditions of a query, for a list without samples."""


@dataclass(frozen=True)
class SampleList:
    """A list of samples, as its URL describes it."""

    samples: Samples
    query: Query
    options: ListOptions

    @classmethod
    def parse(cls, parameters: QueryParams, samples: Samples) -> "SampleList":
        """Return the list of a URL. Raises UserError if a value is not one of the allowed values."""
        return cls(samples, Query.parse(parameters, samples), ListOptions.parse(parameters, samples))

    @property
    def parameters(self) -> Parameters:
        """The URL parameters of the list, without those at their defaults."""
        return [*self.query.parameters.items(), *self.options.parameters]

    @property
    def filter(self) -> Filter:
        """The filter of the query."""
        return self.query.filter(self.samples)

    @property
    def needs_scan(self) -> bool:
        """Whether the number or the order of the samples is known only after all of them have been read."""
        return bool(self.query.conditions or self.options.sort)

    def start_scan(self) -> Matches:
        """Return a scan that counts the samples and, if the list has an order, sorts them."""
        columns, key = sort_key(self.options.sort, self.query, self.samples) if self.options.sort else ([], None)
        return Matches(self.samples.parquets, self.filter, self.samples.columns, columns, key)

    def conditions(self) -> list[tuple[str, str]]:
        """Return a sentence for each condition of the query, and the parameters of the list without it."""
        return [
            (SENTENCES[name].format(value), urlencode([pair for pair in self.parameters if pair[0] != name]))
            for name, value in self.query.conditions.items()
        ]


class SamplePages:
    """The pages of the dataset."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def grid(self, request: Request) -> Response:
        """The samples that match a query; the quarantine if there is no dataset yet."""
        if not self._site.has_dataset:
            return RedirectResponse("/quarantine")
        samples = self._site.samples
        shown = SampleList.parse(request.query_params, samples)
        is_sorted = bool(shown.options.sort)
        matches = self._advance_scan(shown, self._site.seconds if is_sorted else self._site.count_seconds)
        if matches is not None and is_sorted:
            page, links, first = self._sorted_page(request, shown, matches)
        else:
            page, links, first = self._page(request, shown)
        captioners = shown.options.shown_captioners(samples)
        cards = [
            make_card(position, row, captioners, samples.texts, samples.scoring, shown.query.score)
            for position, row in page.rows
        ]
        return self._site.render(
            "grid",
            samples=samples,
            query=shown.query,
            options=shown.options,
            captioners=captioners,
            scoring=samples.scoring,
            tints=TINTS,
            choices={"show": SHOWN, "size": PAGE_SIZES, "sort": orders(samples), "sorted_rows": SORTED_ROWS},
            cards=cards,
            page=page,
            links=links,
            first=first,
            matches=matches,
            conditions=shown.conditions(),
            tar_problems=tar_problems(samples, cards),
            images_only=shown.options.show == "images",
            short=shown.options.shortens_texts(samples),
            parameters=shown.parameters,
            list_query=_list_query(shown.parameters),
        )

    def sample(self, request: Request) -> Response:
        """One sample, with its maps if a text is selected."""
        samples = self._site.samples
        file, position, row = self._requested_row(request)
        parameters = dict(request.query_params)
        text = select_text(row, samples.captioners, parameters)
        maps, problems = self._draw_maps(file, position, text) if text else ([], [])
        shown = SampleList.parse(QueryParams(parse_qsl(parameters.get("list", ""))), samples)
        card = make_card(position, row, samples.captioners, samples.texts, samples.scoring, shown.query.score)
        previous, following = self._neighbours(shown, position)
        return self._site.render(
            "sample",
            card=card,
            scoring=samples.scoring,
            score=shown.query.score,
            tints=TINTS,
            file=file,
            number=_number_of(samples, position),
            total=samples.total,
            tar_problems=tar_problems(samples, [card]),
            text=text,
            maps=maps,
            problems=problems,
            map_parameters={name: parameters[name] for name in ("of", "sub", "text") if parameters.get(name)},
            previous=previous,
            following=following,
            list_parameters=shown.parameters,
            list_query=_list_query(shown.parameters),
        )

    def image(self, request: Request) -> Response:
        """The image of a sample as it is stored; always a JPEG."""
        file, position = self._requested_position(request)
        return Response(self._site.tars.image(file.tar_url, position.row), media_type="image/jpeg")

    def map(self, request: Request) -> Response:
        """The map of a text over an image, by one model."""
        models = [] if self._site.models is None else self._site.models.all
        number = request.path_params["model"]
        file, position, row = self._requested_row(request)
        text = select_text(row, self._site.samples.captioners, request.query_params)
        if number >= len(models) or not text:
            raise HTTPException(404)
        return Response(self._draw_map(models[number], file, position, text).picture, media_type="image/png")

    def json(self, request: Request) -> Response:
        """All columns of a sample, as a file."""
        _, _, row = self._requested_row(request)
        return download(json.dumps(row, indent=2), "sample.json", "application/json")

    def uids(self, request: Request) -> Response:
        """The uids of all samples that match a query, in the order of the dataset, as a file."""
        samples = self._site.samples
        shown = SampleList.parse(request.query_params, samples)
        rows = iter_matches(samples.parquets, shown.filter, ["uid"], samples.columns)
        return uid_file(rows)

    def _advance_scan(self, shown: SampleList, seconds: float) -> Matches | None:
        """Continue to count and sort the samples of a list; None if nothing needs to be counted."""
        if not shown.needs_scan:
            return None
        key = (self._site.dataset_stamp, shown.query, shown.options.sort)
        matches = self._site.scans.matches(key, shown.start_scan)
        matches.scan.advance(seconds)
        return matches

    def _page(self, request: Request, shown: SampleList) -> tuple[Page, dict[str, str | None], int | None]:
        """Return a page in the order of the dataset, its links, and the number of its first sample if it is known."""
        samples = shown.samples
        page = self._site.read_page(request, samples.parquets, shown.filter, shown.options.size, samples.columns)
        is_known = bool(page.rows) and not shown.needs_scan
        first = _number_of(samples, page.rows[0][0]) if is_known else None
        return page, page_links(page, shown.parameters), first

    def _sorted_page(
        self, request: Request, shown: SampleList, matches: Matches
    ) -> tuple[Page, dict[str, str | None], int | None]:
        """Return a page of a sorted list, as `_page` does. It has what has been scanned so far."""
        start, size = _rank(request.query_params.get("rank", "")), shown.options.size
        positions = matches.positions
        start = min(start, max(0, len(positions) - 1))
        page = Page(damaged=list(matches.scan.damaged), complete=matches.scan.complete, scanned=matches.scan.rows)
        page.rows = [
            (position, self._site.read_row(shown.samples, position)) for position in positions[start : start + size]
        ]

        def link(rank: int) -> str:
            return urlencode([*shown.parameters, ("rank", str(rank))])

        links = {
            "previous": link(max(0, start - size)) if start else None,
            "first": urlencode(shown.parameters) if start else None,
            "next": link(start + size) if start + size < len(positions) else None,
        }
        return page, links, start + 1 if page.rows else None

    def _neighbours(self, shown: SampleList, position: Position) -> tuple[Position | None, Position | None]:
        """Return the positions of the previous and of the next sample of a list; None at its ends.

        A search for them may end at the time limit of a page; then there is no link either.
        """
        samples = shown.samples
        if shown.options.sort:
            matches = self._advance_scan(shown, self._site.seconds)
            positions = [] if matches is None else matches.positions
            if position in positions:
                rank = positions.index(position)
                return positions[rank - 1] if rank else None, next(iter(positions[rank + 1 :]), None)
        if not shown.query.conditions:
            return _previous(samples, position), _next(samples, position)
        seconds, files, filter_ = self._site.seconds / 2, samples.parquets, shown.filter
        after = _next(samples, position)
        before = read_page(files, filter_, position, 1, seconds, backwards=True, columns=samples.columns)
        following = None if after is None else read_page(files, filter_, after, 1, seconds, columns=samples.columns)
        return _first_position(before), None if following is None else _first_position(following)

    def _requested_position(self, request: Request) -> tuple[ShardFile, Position]:
        position = Position(request.path_params["file"], request.path_params["row"])
        files = self._site.samples.files
        if position.file >= len(files) or position.row >= files[position.file].samples:
            raise HTTPException(404)
        return files[position.file], position

    def _requested_row(self, request: Request) -> tuple[ShardFile, Position, Row]:
        file, position = self._requested_position(request)
        return file, position, self._site.read_row(self._site.samples, position)

    def _draw_maps(
        self, file: ShardFile, position: Position, text: str
    ) -> tuple[list[tuple[int, str, "SaliencyMap"]], list[str]]:
        """Return the maps that can be drawn, with number and name of the model, and the problems without repeats."""
        maps, problems = [], dict[str, None]()
        for number, model in enumerate(self._site.models.all if self._site.models is not None else []):
            try:
                maps.append((number, model.name, self._draw_map(model, file, position, text)))
            except UserError as error:
                problems[str(error)] = None
        return maps, list(problems)

    def _draw_map(self, model: "Model", file: ShardFile, position: Position, text: str) -> "SaliencyMap":
        from PIL.Image import DecompressionBombError

        try:
            return model.map(self._site.tars.image(file.tar_url, position.row), text)
        except (OSError, DecompressionBombError) as error:
            raise ImageUnavailableError(f"{file.tar_url}: image {position.row} cannot be decoded ({error})") from error


def tar_problems(samples: Samples, cards: Iterable[Card]) -> list[str]:
    """Return the problems of the tars that hold the images of these cards; makes one storage request per tar."""
    files = [samples.files[number] for number in sorted({card.position.file for card in cards})]
    return [problem for file in files if (problem := tar_problem(file.tar_url, file.tar.bytes))]


def download(content: str, name: str, media_type: str) -> Response:
    """Return a text that the browser saves as a file."""
    return Response(content, media_type=media_type, headers={"content-disposition": f'attachment; filename="{name}"'})


def uid_file(rows: Iterable[Row | str]) -> Response:
    """Return a file with one uid per line; files that cannot be read are named in lines that start with `#`.

    Args:
        rows: What `iter_matches` yields.
    """

    def lines() -> Iterator[str]:
        for row in rows:
            text = f"# not complete: {row}" if isinstance(row, str) else str(row.get("uid") or "")
            if text:
                yield escape_invisible(text).replace("\n", " ").replace("\r", " ") + "\n"

    headers = {"content-disposition": 'attachment; filename="uids.txt"'}
    return StreamingResponse(_batches(lines()), media_type="text/plain", headers=headers)


def _batches(lines: Iterable[str], characters: int = 1 << 16) -> Iterator[str]:
    """Yield the lines in pieces of about this many characters."""
    piece: list[str] = []
    size = 0
    for line in lines:
        piece.append(line)
        size += len(line)
        if size >= characters:
            yield "".join(piece)
            piece, size = [], 0
    yield "".join(piece)


def _list_query(parameters: Parameters) -> str:
    """Return the query, with its question mark, by which the page of a sample knows the list that it belongs to."""
    return "?" + urlencode({"list": urlencode(parameters)}) if parameters else ""


def _rank(value: str) -> int:
    return int(value) if value.isascii() and value.isdigit() and len(value) < 10 else 0


def _number_of(samples: Samples, position: Position) -> int:
    """Return the number of a sample in the dataset, counted from 1."""
    return sum(file.samples for file in samples.files[: position.file]) + position.row + 1


def _previous(samples: Samples, position: Position) -> Position | None:
    if position.row:
        return Position(position.file, position.row - 1)
    files = (file for file in range(position.file - 1, -1, -1) if samples.files[file].samples)
    file = next(files, None)
    return None if file is None else Position(file, samples.files[file].samples - 1)


def _next(samples: Samples, position: Position) -> Position | None:
    if position.row + 1 < samples.files[position.file].samples:
        return Position(position.file, position.row + 1)
    files = (file for file in range(position.file + 1, len(samples.files)) if samples.files[file].samples)
    file = next(files, None)
    return None if file is None else Position(file, 0)


def _first_position(page: Page) -> Position | None:
    return page.rows[0][0] if page.rows else None
