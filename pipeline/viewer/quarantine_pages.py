"""The pages of the quarantine: what could not be used, with reasons and pictures."""

import time

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats.dataset_index import DatasetError
from lotlip_data.manifests.formats.schema import SUB_SUFFIX
from lotlip_data.pipeline.dataset.join import RAW, SAMPLE
from lotlip_data.pipeline.viewer import quarantine
from lotlip_data.pipeline.viewer.list_options import PAGE_SIZES, Parameters, parse_size
from lotlip_data.pipeline.viewer.paging import iter_matches
from lotlip_data.pipeline.viewer.quarantine import Category, reason_filter
from lotlip_data.pipeline.viewer.sample_pages import uid_file
from lotlip_data.pipeline.viewer.samples import Samples
from lotlip_data.pipeline.viewer.scans import ReasonCounts
from lotlip_data.pipeline.viewer.site import Site, page_links

DEFAULT_SIZE = 48
MENU_REASONS = 100
"""Number of reasons in the menu, the most frequent first."""


class QuarantinePages:
    """The pages of the quarantine."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def page(self, request: Request) -> Response:
        """The categories, and one page of one category."""
        categories = quarantine.list_categories(self._site.run)
        category = _requested(request, categories)
        words, reason = (request.query_params.get(name, "").strip() for name in ("reason", "is"))
        whats = self._whats(category)
        what = _requested_what(request, whats)
        size = parse_size(request.query_params, DEFAULT_SIZE)
        files = category.files if category else ()
        page = self._site.read_page(request, files, reason_filter(words, reason, what), size)
        deadline = time.monotonic() + self._site.seconds
        entries = [
            quarantine.make_entry(row, category, files[position.file], self._site.images, deadline)
            for position, row in page.rows
            if category is not None
        ]
        parameters: Parameters = [("kind", category.name)] if category else []
        parameters += [(name, value) for name, value in (("reason", words), ("is", reason), ("what", what)) if value]
        parameters += [("size", str(size))] if size != DEFAULT_SIZE else []
        counts = self._count(category)
        return self._site.render(
            "quarantine",
            categories=categories,
            category=category,
            counts=counts,
            menu=counts.counts.most_common(MENU_REASONS) if counts else [],
            page=page,
            links=page_links(page, parameters),
            entries=entries,
            columns=[name for name in quarantine.COLUMNS if any(name in entry.cells for entry in entries)],
            short_characters=quarantine.SHORT_CHARACTERS,
            sizes=PAGE_SIZES,
            size=size,
            words=words,
            reason=reason,
            what=what,
            whats={each: quarantine.what_label(each) for each in whats},
            what_label=quarantine.what_label,
            limits=self._limits(category),
            parameters=parameters,
            has_dataset=self._site.has_dataset,
        )

    def picture(self, request: Request) -> Response:
        """A downloaded image by its shard and key; always a JPEG."""
        shard, key = request.path_params["shard"], request.path_params["key"]
        return Response(self._site.images.image(shard, key), media_type="image/jpeg")

    def uids(self, request: Request) -> Response:
        """The uids of all rows of a category with a reason, as a file."""
        category = _requested(request, quarantine.list_categories(self._site.run))
        what = _requested_what(request, self._whats(category))
        words, reason = (request.query_params.get(name, "").strip() for name in ("reason", "is"))
        files = category.files if category else ()
        return uid_file(iter_matches(files, reason_filter(words, reason, what), ["uid"], None))

    def _whats(self, category: Category | None) -> list[str]:
        """What may have been left out of a dataset with scores: the values of `what` that can be chosen."""
        samples = self._scored_samples(category)
        if samples is None:
            return []
        names = [part for name in samples.captioners for part in (name, name + SUB_SUFFIX)]
        return [SAMPLE, RAW, *names]

    def _limits(self, category: Category | None) -> list[str]:
        """The limits of scores, as sentences."""
        samples = self._scored_samples(category)
        return [] if samples is None else list(dict.fromkeys(samples.scoring.reasons().values()))

    def _scored_samples(self, category: Category | None) -> Samples | None:
        """The dataset, if it has scores and the category is about it."""
        if category is None or category.stage != "shard" or not self._site.has_dataset:
            return None
        try:
            samples = self._site.samples
        except DatasetError:  # the quarantine of a damaged dataset can be read
            return None
        return samples if samples.scoring.names else None

    def _count(self, category: Category | None) -> ReasonCounts | None:
        """Continue to count the reasons of a category."""
        if category is None:
            return None
        key = (category.name, category.files, category.stamps)
        counts = self._site.scans.reasons(key, lambda: ReasonCounts(category.files, quarantine.REASON_COLUMNS))
        counts.scan.advance(self._site.count_seconds)
        return counts


def _requested_what(request: Request, whats: list[str]) -> str:
    """Return what a URL asks for, or nothing in a dataset without scores."""
    what = request.query_params.get("what", "").strip() if whats else ""
    if what and what not in whats:
        raise UserError(f"what: {what!r} is unknown; choose one of {', '.join(whats)}")
    return what


def _requested(request: Request, categories: list[Category]) -> Category | None:
    """Return the category that a URL names, or the first one."""
    name = request.query_params.get("kind", "")
    if not name:
        return categories[0] if categories else None
    category = next((each for each in categories if each.name == name), None)
    if category is None:
        raise HTTPException(404)
    return category
