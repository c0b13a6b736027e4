"""The pages of the image search: the images most similar to a text, by each model."""

from typing import TYPE_CHECKING
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from lotlip_data.manifests import storage
from lotlip_data.manifests.formats.dataset_index import DatasetError
from lotlip_data.pipeline.viewer import server
from lotlip_data.pipeline.viewer.cards import Card, make_card
from lotlip_data.pipeline.viewer.paging import START, Filter, read_page
from lotlip_data.pipeline.viewer.sample_pages import tar_problems
from lotlip_data.pipeline.viewer.samples import Samples
from lotlip_data.pipeline.viewer.site import Site

if TYPE_CHECKING:
    from lotlip_data.pipeline.viewer.models import Models, Ranking, SearchState

EXAMPLES = 6
"""Number of texts of the dataset that an empty search page offers."""
EXAMPLE_CHARACTERS = 200


class SearchPages:
    """The pages of the image search."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def page(self, request: Request) -> Response:
        """The images most similar to a text, by each model; without a model or a text, what to do."""
        if self._site.models is None:
            return self._site.render("no_models", trained=self._trained_models())
        samples, search = self._site.samples, self._continue_search(request, self._site.models)
        results = [self._results(samples, ranking) if ranking else ([], []) for _, ranking in search.rankings]
        cards = [card for hits, _ in results for _, card in hits]
        return self._site.render(
            "search",
            search=search,
            results=results,
            examples=[] if search.text else self._examples(samples),
            tar_problems=tar_problems(samples, cards),
        )

    def progress(self, request: Request) -> Response:
        """The progress of a search: a frame that reloads itself, so that the page around it keeps what is typed."""
        if self._site.models is None:
            raise HTTPException(404)
        response = self._site.render("progress", search=self._continue_search(request, self._site.models))
        response.headers["content-security-policy"] = server.FRAMED_POLICY
        return response

    def compute(self, request: Request) -> Response:
        """Start to compute the missing image features."""
        if self._site.models is None:
            raise HTTPException(404)
        features = self._site.models.features(self._site.run, self._site.samples)
        for each in dict.fromkeys(features):  # models may share them
            each.compute()
        return RedirectResponse("/search?" + urlencode(dict(request.query_params)), 303)

    def _continue_search(self, request: Request, models: "Models") -> "SearchState":
        """Continue the search that a URL asks for, for the time limit of one page."""
        text = request.query_params.get("text", "").strip()
        return models.search(self._site.run, self._site.samples, text, self._site.seconds)

    def _results(self, samples: Samples, ranking: "Ranking") -> tuple[list[tuple[float, Card]], list[str]]:
        """Return the readable cards of a ranking with their scores, and the problems without repeats."""
        hits, problems = [], dict.fromkeys(ranking.damaged)
        for score, position in ranking.best:
            try:
                hits.append(
                    (
                        score,
                        make_card(position, self._site.read_row(samples, position), samples.captioners, samples.texts),
                    )
                )
            except DatasetError as error:
                problems[str(error)] = None
        return hits, list(problems)

    def _examples(self, samples: Samples) -> list[str]:
        """Return texts of the first samples: a sub-caption of each captioner in turn, or the raw text."""
        page = read_page(samples.parquets, Filter(), START, EXAMPLES, self._site.seconds, columns=samples.columns)
        texts = []
        for number, (_, row) in enumerate(page.rows):
            names = samples.captioners or ("raw",)
            name = names[number % len(names)]
            sub_captions = row.get(f"{name}_sub") or [row[name] or row["raw"] or ""]
            texts.append(sub_captions[number % len(sub_captions)].strip())
        return [text for text in dict.fromkeys(texts) if 0 < len(text) <= EXAMPLE_CHARACTERS]

    def _trained_models(self) -> list[str]:
        """Return the folders of the finished models of this run."""
        names = storage.list_names(self._site.run.trainings)
        is_done = {name: storage.exists(self._site.run.training_done(name)) for name in names}
        return [self._site.run.trained_model(name) for name in names if is_done[name]]
