"""The demo: the whole pipeline on synthetic scenes from a local HTTP server, with tiny captioners and three models.

Only the scenes and the size of the models differ from a real run. No stage knows that it runs in the demo. At the end,
`summary_lines` makes a table of what the stages committed.
"""

import logging
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.manifest import Manifest, load
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core.ledger import captioned_shards
from lotlip_data.pipeline.core.outcome import Outcome
from lotlip_data.pipeline.stages import run_pipeline

logger = logging.getLogger(__name__)


@with_config(ConfigDict(extra="allow"))
class _Scores(TypedDict):
    """The results on synthetic scenes, as far as the demo needs them."""

    retrieval: dict[str, dict[str, Any]]


_AGAIN = "Remove it and run `lotlip-data demo` again."

CAPTIONERS = ("tiny-instructblip", "tiny-llava", "tiny-sharegpt4v")
METHODS = ("lit", "lit_long", "lotlip")
FAULTS = {  # number of URLs per kind of fault
    "dead": 20,
    "gone": 4,
    "error": 4,
    "html": 6,
    "truncated": 6,
    "short": 4,
    "empty": 4,
    "loop": 2,
    "slow": 4,
    "robots": 4,
    "redirect": 20,
}
TIMEOUT_SECONDS = 2.0
"""Time limit of one download. The slow responses take twice as long."""
PORT = 29753
"""Port of a new run's server, if it is free. The URLs decide the order of the samples, and so all figures."""


def demo(run: Run, images: int) -> Outcome:
    """Run the pipeline over `images` scenes and the faults of a real list. Writes demo.json into the run's folder.

    Raises UserError if the folder is not on this machine, or if the server's port of an earlier call is in use.
    """
    if not storage.is_local(run.url):
        raise UserError(f"{run.url}: the demo works on this machine only; give it a local folder")
    from lotlip_data.synthetic.http_server import SceneServer

    began = time.monotonic()
    folder = Path(run.url) / "input"
    with SceneServer(delay=2 * TIMEOUT_SECONDS, port=_port_of(folder)) as server:
        logger.info(
            f"serving {images} scenes, and {sum(FAULTS.values())} URLs with typical faults of the web, at {server.url}"
        )
        manifest = _write_input(folder, server.url, images)
        outcome = replace(run_pipeline(manifest, run), stage="demo")
    result = run.demo
    if outcome.failed:
        return outcome
    if outcome.did_something or not storage.exists(result):
        figures = {**_figures(run), "seconds": round(time.monotonic() - began, 1)}
        storage.replace(result, artifacts.encode_json(figures, indent=1))
    outcome.figures = artifacts.read_json(result, _AGAIN, artifacts.JsonObject)
    outcome.lines = summary_lines(outcome.figures, run)
    return outcome


def _port_of(folder: Path) -> int:
    """The port of an earlier call, whose URLs the run holds. For a new run, PORT, or 0 (any port) if PORT is in use."""
    known = folder / "server.url"
    if not known.exists():
        return PORT if _is_free(PORT) else 0
    port = urlsplit(known.read_text()).port or 0
    if not _is_free(port):
        raise UserError(
            f"{known}: this run's images are served at port {port}, which another process uses now, perhaps another "
            "demo. Wait until it ends, or give another folder."
        )
    return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _write_input(folder: Path, base_url: str, images: int) -> Manifest:
    """Write what a user would provide: a list of URLs as CSV, and the manifest."""
    from lotlip_data.synthetic.scenes import SPLITS
    from lotlip_data.synthetic.url_list import write_list, write_manifest

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "server.url").write_text(base_url)
    write_list(str(folder / "images.csv"), base_url, SPLITS["images"][:images], FAULTS)
    write_manifest(
        str(folder / "manifest.yaml"),
        "images.csv",
        name="demo",
        samples_per_shard=100,
        download={
            "allow_hosts": ["127.0.0.1"],
            "threads": 16,
            "timeout": TIMEOUT_SECONDS,
            "total_timeout": TIMEOUT_SECONDS,
            "retries": 0,
        },
        captioners=list(CAPTIONERS),
        train=[{"method": method, "preset": "demo"} for method in METHODS],
        evaluate=["synthetic"],
    )
    return load(str(folder / "manifest.yaml"))


def _figures(run: Run) -> dict[str, Any]:
    """The content of demo.json without the duration, read from what the stages committed."""
    from lotlip_data.pipeline.dataset.stats import dataset_stats
    from lotlip_data.pipeline.downloading.stage import read_summary

    download = read_summary(run)
    return {
        "download": {
            "asked": download.requested,
            "fetched": download.fetched,
            "failed": download.failed,
            "failed_by_reason": dict(download.reasons),
        },
        "captions": {name: _accuracy(run, name) for name in CAPTIONERS},
        "stats": dataset_stats(run),
        "retrieval": {method: _recall(run, method) for method in METHODS},
        "gains": {method: _gain(run, method, base) for method, base in _BASES.items()},
    }


STUDY_ON_LOTLIP = "is undecided"
"""The study's verdict on LoTLIP and LiT + long texts on long texts. The demo has one seed, which decides nothing."""
_BASES = {"lit_long": "lit", "lotlip": "lit_long"}
"""The method that each method is compared with."""


def _gain(run: Run, method: str, base: str) -> dict[str, Any]:
    """The gain of R@1 on long texts over another method in percentage points, with its interval, by direction."""
    from lotlip_data.training.evaluation.compare import UNDECIDED, compare
    from lotlip_data.training.evaluation.evaluate import read_results
    from lotlip_data.training.evaluation.results import group_by_model

    first, second = (
        next(iter(group_by_model([read_results(run.evaluation(name))]).values())) for name in (base, method)
    )
    return {
        difference.path[0]: {
            "points": 100 * difference.difference,
            "interval": [100 * bound for bound in difference.interval],
            "is_decided": difference.verdict != UNDECIDED,
        }
        for difference in compare(first, second, (base, method)).differences
        if difference.task == "long" and difference.path[1:] == ("R@1",)
    }


def _recall(run: Run, method: str) -> dict[str, dict[str, float]]:
    """R@1 in % on long and short texts, in both directions."""
    scores = artifacts.read_json(run.evaluation(method), _AGAIN, _Scores)["retrieval"]
    return {name: {way: 100 * scores[name][way]["R@1"] for way in ("t2i", "i2t")} for name in ("long", "short")}


def _accuracy(run: Run, captioner: str) -> dict[str, Any]:
    """Number of captions, and the precision and recall of their facts about the scenes that their URLs name."""
    from lotlip_data.pipeline.caption_accuracy import score
    from lotlip_data.synthetic.http_server import seed_from_url
    from lotlip_data.synthetic.scenes import sample_scene

    pairs = []
    for shard in captioned_shards(run, captioner):
        urls = dict(_columns(run.list_shard(shard), "uid", "url"))
        for uid, text in _columns(run.caption_shard(captioner, shard), "uid", "text"):
            seed = seed_from_url(urls[uid])
            if text is not None and seed is not None:
                pairs.append((text, sample_scene(seed)))
    facts = score(pairs)
    return {"count": len(pairs), "facts_precision": facts.precision, "facts_recall": facts.recall}


def _columns(url: str, *names: str) -> list[tuple[Any, ...]]:
    table = artifacts.read_parquet(url, _AGAIN, names)
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


_METHODS = {"lit": "LiT", "lit_long": "LiT + long texts", "lotlip": "LoTLIP"}


def summary_lines(figures: dict[str, Any], run: Run) -> list[str]:
    """The figures of demo.json as a table, the paths of the results, and the next command to run."""
    return ["", *_download(figures), *_captions(figures), *_dataset(figures), *_retrieval(figures), "", *_next(run)]


def _rule(title: str) -> str:
    return f"-- {title} ".ljust(86, "-")


def _download(figures: dict[str, Any]) -> list[str]:
    counts = figures["download"]
    rows = {"URLs": counts["asked"], "downloaded": counts["fetched"], "failed": counts["failed"]}
    lines = [_rule("images"), *(f"{name:<24}{count:>8}" for name, count in rows.items())]
    reasons = sorted(counts["failed_by_reason"].items(), key=lambda pair: (-pair[1], pair[0]))
    return lines + [f"  {reason:<22}{count:>8}" for reason, count in reasons]


def _captions(figures: dict[str, Any]) -> list[str]:
    lines = [_rule("captions"), f"{'captioner':<24}{'captions':>8}{'facts: precision':>20}{'recall':>10}"]
    for name, facts in figures["captions"].items():
        lines.append(f"{name:<24}{facts['count']:>8}{facts['facts_precision']:>20.1%}{facts['facts_recall']:>10.1%}")
    return lines


def _dataset(figures: dict[str, Any]) -> list[str]:
    stats = figures["stats"]
    return [
        _rule("dataset"),
        f"{'images':>10}{'long texts':>14}{'sub-captions per text':>24}{'tokens per text':>18}",
        f"{stats['images']:>10}{stats['texts']:>14}"
        f"{stats['sub_captions_per_text']:>24.2f}{stats['tokens_per_text']:>18.2f}",
    ]


def _retrieval(figures: dict[str, Any]) -> list[str]:
    lines = [
        _rule("retrieval on unseen scenes, R@1 in %"),
        f"{'':<24}{'long texts':>24}{'short texts':>26}",
        f"{'method':<24}{'text→image':>13}{'image→text':>12}{'text→image':>14}{'image→text':>12}",
    ]
    for method, scores in figures["retrieval"].items():
        long, short = scores["long"], scores["short"]
        lines.append(
            f"{_METHODS.get(method, method):<24}{long['t2i']:>13.1f}{long['i2t']:>12.1f}"
            f"{short['t2i']:>14.1f}{short['i2t']:>12.1f}"
        )
    return [*lines, *_gains(figures), "-" * 86, f"took {figures['seconds']} s"]


def _gains(figures: dict[str, Any]) -> list[str]:
    """What one method gains over another on long texts, and what that says. Earlier releases recorded no gains."""
    lines = []
    for method, by_direction in figures.get("gains", {}).items():
        gains = [
            f"{gain['points']:+.1f} [{gain['interval'][0]:+.1f}, {gain['interval'][1]:+.1f}]"
            f"{'' if gain['is_decided'] else ' (not decided)'}"
            for gain in by_direction.values()
        ]
        lines.append(f"{_METHODS[method]} minus {_METHODS[_BASES[method]]}, long texts: {', '.join(gains)}")
    if lines:
        lines += [
            "The intervals (95%) are over these scenes. Another seed of a training moves a method by several points.",
            f"Over the seeds of the study, LoTLIP's lead over LiT + long texts {STUDY_ON_LOTLIP}: docs/study/index.md.",
        ]
    return lines


def _next(run: Run) -> list[str]:
    return [
        "Results:",
        f"  {run.shards}/train-*.tar and .parquet   the dataset, which dataset.json describes",
        f"  {run.captions}/                          the captions, one folder per captioner",
        f"  {run.quarantine()}/                        what failed, with the reason",
        f"  {run.train('lotlip')}/                      the trained model",
        f"  {run.url}/demo.json                         the figures above",
        "Next, with real captioners and your own list of URLs (see the README):",
        "  lotlip-data run my-images.yaml runs/mine",
    ]
