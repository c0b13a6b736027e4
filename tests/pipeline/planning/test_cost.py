"""What captioning takes, against examples worked out by hand."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lotlip_data.captioners.gpu_memory import Sizes
from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.cli.main import app
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.planning import cost as plan_cost
from lotlip_data.pipeline.planning import throughput
from lotlip_data.pipeline.planning.cost import CostPlan
from lotlip_data.pipeline.planning.throughput import Hardware, Speed
from lotlip_data.pipeline.recaptioning.config import resolve_captioners
from lotlip_data.pipeline.url_lists.partition import Partition
from tests.captioners.test_gpu_memory import out_of_reach
from tests.pipeline import run_fixture as fake_run

HARDWARE = Hardware()


def of(
    images: int, speed: float | None, hardware: Hardware = HARDWARE, preset: str = "llava", **settings: Any
) -> CostPlan:
    """The plan of one captioner with these settings; `pool` among them is its pool."""
    speeds = {preset: Speed(speed, "as given")} if speed else {}
    return plan_cost.plan_cost(images, resolve_captioners([{"preset": preset} | settings]), hardware, speeds)


def test_a_worked_example_and_all_that_it_assumes() -> None:
    """3 million images at 10 a second are 83.33 hours; 8 GPUs need 10.42 hours of the day for them."""
    cost = of(3_000_000, 10.0, Hardware(price=2.0))
    (one,) = cost.captioners
    assert one.gpu_hours == pytest.approx(83.333, abs=0.001) and cost.money == pytest.approx(166.667, abs=0.001)
    assert cost.days == pytest.approx(83.3333 / 8 / 24, abs=1e-5)
    assert one.tokens == 420_000_000 and one.caption_bytes == 1_500_000_000
    assert one.sequences == 128  # as docs/guides/gpu-sizing.md works it out
    assert cost.assumes == [
        "llava: captions of 140 tokens (assumed), behind 576 of the image and 60 of the prompt",
        "llava: 8 actors at a time, with 1 GPU each",
        "llava: memory: 1 × (0.9 (gpu_memory_utilization) of 79.1 GiB − 6 GiB of working memory) − 13.2 GiB of weights "
        "in 16 bit; 0.5 MiB of cache a token in 16 bit, 776 tokens each",
        "hours, money and days are of captioning alone: not of download, dataset and training, nor of starts of "
        "engines and work that is lost to kills",
        "8 GPUs, busy as long as there are actors for them, which share the images evenly; captioners without a GPU "
        "work beside them",
        "500 bytes of a caption as stored",
        "2 for an hour of a GPU; other machines, and what an endpoint asks, not priced",
    ]


def test_a_reckoned_plan_says_which_peak_and_share_of_it() -> None:
    """2 × 7,063,427,072 parameters × 776 tokens = 10.96 TFLOP; half of 200 TFLOP/s: 9.12 images a second."""
    cost = of(1000, None, Hardware(tflops=200, mfu=0.5))
    assert cost.captioners[0].images_per_s == pytest.approx(9.122, abs=0.001)
    assert [line for line in cost.assumes if line.startswith("reckoned")] == [
        "reckoned speeds: GPUs of 200 TFLOP/s used to 0.5 of it, 2 FLOP a parameter and token; measure yours with "
        "--time, or give --speed"
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # (0.45 × 79.1 − 6 − 13.16) GiB / 0.5 MiB / 776 tokens = 43.4
        ({"pool": {"engine_options": {"gpu_memory_utilization": 0.45}}}, 32),
        # (0.5 × 79.1 − 6 − 13.16) GiB / 0.5 MiB / 776 tokens = 53.8: another actor has the other half
        ({"pool": {"num_gpus": 0.5}}, 48),
        # (2 × (0.9 × 79.1 − 6) − 13.16) GiB / 0.5 MiB / 776 tokens = 309.4
        ({"tensor_parallel_size": 2}, 304),
        ({"tensor_parallel_size": 2, "pool": {"num_gpus": 2}}, 304),
        # 24.25 GiB / 0.5 MiB / 776 tokens = 64
        ({"pool": {"engine_options": {"kv_cache_gib": 24.25}}}, 64),
        ({"pool": {"engine_options": {"gpu_memory_utilization": 0.1}}}, 0),
        ({"pool": {"engine": "transformers"}}, None),
        ({"pool": {"num_gpus": 0}}, None),
    ],
)
def test_what_fits_is_by_the_pool(settings: dict[str, Any], expected: int | None) -> None:
    assert of(1000, 10.0, **settings).captioners[0].sequences == expected


def test_what_fits_says_which_setting_bounds_it() -> None:
    def memory(**pool: Any) -> str:
        (line,) = (line for line in of(1000, 10.0, pool=pool).assumes if "memory:" in line)
        return line

    assert "1 × (0.5 (num_gpus leaves no more) of 79.1 GiB" in memory(num_gpus=0.5)
    assert "1 × (0.4 (gpu_memory_utilization) of" in memory(
        num_gpus=0.5, engine_options={"gpu_memory_utilization": 0.4}
    )
    assert "a cache of 1 × 20 GiB (kv_cache_gib);" in memory(engine_options={"kv_cache_gib": 20})


def test_a_captioner_on_two_gpus_pays_for_both_and_one_on_half_a_gpu_for_half() -> None:
    """36,000 images at 10 a second are an hour."""
    assert of(36_000, 10.0, tensor_parallel_size=2).gpu_hours == 2.0
    assert of(36_000, 10.0, pool={"num_gpus": 0.5}).gpu_hours == 0.5


def test_fewer_actors_than_the_cluster_has_gpus_for_take_longer() -> None:
    """240 hours of an actor: 10 days of one, 5 of two; 8 GPUs have room for 16 of half a GPU: 0.625 days."""
    assert of(8_640_000, 10.0, pool={"max_actors": 1}).days == pytest.approx(10)
    assert of(8_640_000, 10.0, pool={"max_actors": 2}).days == pytest.approx(5)
    assert of(8_640_000, 10.0, pool={"num_gpus": 0.5}).days == pytest.approx(0.625)
    assert of(8_640_000, 10.0, pool={"max_actors": 32}).days == pytest.approx(240 / 8 / 24)
    with pytest.raises(UserError, match="--gpus 1: an actor of llava takes 2"):
        of(1000, 10.0, Hardware(gpus=1), tensor_parallel_size=2)


def test_a_captioner_without_a_gpu_takes_days_but_no_gpu_hours_or_money_and_nothing_is_reckoned_of_it() -> None:
    """864 images at 0.01 a second are 24 hours of an actor: a day of one, half a day of two."""
    cost = of(864, 0.01, Hardware(price=2.0), pool={"num_gpus": 0, "max_actors": 2})
    assert (cost.gpu_hours, cost.money, cost.days) == (0, None, pytest.approx(0.5))
    assert cost.captioners[0].money is None and cost.captioners[0].actor_hours == pytest.approx(24)
    assert any(": 24.00 hours without a GPU" in line for line in plan_cost.format_text(cost))
    assert of(864, 0.01, Hardware(gpus=0)).days == pytest.approx(1)
    assert plan_cost.format_text(cost)[2] == "captioning   0.00 GPU-hours, 0.50 days"
    unknown = of(864, None, pool={"num_gpus": 0})
    assert (unknown.gpu_hours, unknown.days, unknown.captioners[0].images_per_s) == (None, None, None)
    assert "unknown" in unknown.captioners[0].speed


def test_no_more_actors_work_at_a_time_than_there_are_shards() -> None:
    """10,000 images at one a second are 2.78 hours of one actor, whatever 64 GPUs could do; of four, 0.69."""

    def cut(shards: int | None, **pool: Any) -> CostPlan:
        speeds = {"llava": Speed(1.0, "as given")}
        chosen = resolve_captioners([{"preset": "llava", "pool": pool}])
        return plan_cost.plan_cost(10_000, chosen, Hardware(gpus=64), speeds, shards=shards)

    one = cut(1)
    assert (one.captioners[0].actors, one.days) == (1, pytest.approx(10_000 / 3600 / 24))
    assert one.assumes[1] == (
        "llava: 1 actor at a time, with 1 GPU each: an actor needs a shard of its own, of which 1 is left; "
        "smaller ones (`samples_per_shard`) would occupy up to 64"
    )
    assert one.gpu_hours == pytest.approx(10_000 / 3600)
    assert cut(4).days == pytest.approx(10_000 / 3600 / 4 / 24) and "of which 4 are left;" in cut(4).assumes[1]
    assert cut(2, num_gpus=0, max_actors=8).days == pytest.approx(10_000 / 3600 / 2 / 24)
    for shards in (64, 1000, None):  # the GPUs bound it
        assert cut(shards).days == pytest.approx(10_000 / 3600 / 64 / 24)
        assert cut(shards).assumes[1] == "llava: 64 actors at a time, with 1 GPU each"


def test_gpus_that_the_model_is_not_spread_over_speed_nothing_up_and_are_paid_for() -> None:
    """A model spread over one or two GPUs, as `tensor_parallel_size` says, is as fast on those with others beside."""

    def speed(**settings: Any) -> float:
        return of(1000, None, **settings).captioners[0].images_per_s or 0

    alone = speed()
    assert speed(pool={"num_gpus": 2}) == alone and speed(pool={"num_gpus": 0.5}) == pytest.approx(alone / 2)
    assert speed(tensor_parallel_size=2) == pytest.approx(2 * alone)
    assert speed(tensor_parallel_size=2, pool={"num_gpus": 4}) == pytest.approx(2 * alone)
    cost = of(36_000, 10.0, pool={"num_gpus": 2})
    assert cost.gpu_hours == 2.0 and cost.assumes[2] == (
        "llava: 1 of the 2 GPUs of an actor (`num_gpus`) idles, reserved and paid for: the model is on 1 "
        "(`tensor_parallel_size`)"
    )
    four = of(36_000, 10.0, tensor_parallel_size=2, pool={"num_gpus": 4})
    assert "2 of the 4 GPUs of an actor (`num_gpus`) idle, reserved" in four.assumes[2]
    for fits in ({}, {"tensor_parallel_size": 2}, {"pool": {"num_gpus": 0.5}}):
        assert not any("idle" in line for line in of(1000, 10.0, **fits).assumes)


def test_captions_are_told_in_bytes_as_all_storage_is() -> None:
    """Of 500 bytes each."""
    assert plan_cost.format_text(of(10_000, 1.0))[0].endswith("1,400,000 tokens, 5 MB of captions")
    assert plan_cost.format_text(of(60_000_000, 1.0))[0].endswith("30 GB of captions")


def test_speeds_and_hours_are_told_in_plain_numbers() -> None:
    """Without exponents, and what is more than nothing is never 0.00."""
    assert (
        "115,518 images/s an actor (as given): less than 0.01 GPU-hours" in plan_cost.format_text(of(9, 115_517.8))[1]
    )
    assert "0.02 images/s an actor (as given): 2,777.78 GPU-hours" in plan_cost.format_text(of(200_000, 0.02))[1]


def test_a_speed_that_was_measured_on_a_cpu_gives_no_gpu_hours() -> None:
    speeds = {"llava": Speed(0.01, "measured", on_cpu=True)}
    cost = plan_cost.plan_cost(864, resolve_captioners(["llava"]), Hardware(price=2.0), speeds)
    assert (cost.gpu_hours, cost.days) == (0, pytest.approx(1)) and cost.captioners[0].sequences is None


def test_the_days_of_several_are_those_of_all_their_gpu_hours_or_of_the_slowest_alone() -> None:
    """96 + 96 GPU-hours on 8 GPUs are a day; beside them, an endpoint's single actor takes 2 days."""
    far = {"name": "far", "kind": "openai", "model": "x"}
    chosen = resolve_captioners(["llava", "instructblip", far])
    speeds = {name: Speed(10, "as given") for name in ("llava", "instructblip")}
    assert plan_cost.plan_cost(3_456_000, chosen[:2], HARDWARE, speeds).days == pytest.approx(1)
    speeds["far"] = Speed(20, "as given")
    assert plan_cost.plan_cost(3_456_000, chosen, HARDWARE, speeds).days == pytest.approx(2)


def test_a_reckoned_speed_is_arithmetic() -> None:
    """2 × 1e9 parameters × 500 tokens = 1e12; a fifth of 100 TFLOP/s is 2e13: 20 images a second."""
    sizes = Sizes(parameters=10**9, image_tokens=300, prompt_tokens=60)
    assert throughput.estimated_speed(sizes, 1, Hardware(tflops=100, mfu=0.2), caption=140) == pytest.approx(20.0)
    assert throughput.estimated_speed(sizes, 4, Hardware(tflops=100, mfu=0.2), caption=140) == pytest.approx(80.0)


def test_a_published_model_out_of_reach_is_reckoned_and_of_any_other_a_speed_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("transformers.PretrainedConfig.get_config_dict", out_of_reach)
    known, other = resolve_captioners(["llava", {"preset": "llava", "name": "mine", "model": "me/my-llava"}])
    cost = plan_cost.plan_cost(1000, [known, other], Hardware(), {})
    assert cost.gpu_hours is None and "give --speed" in cost.captioners[1].speed
    assert cost.captioners[0].speed.startswith("reckoned")


def run_under_way(folder: Path, gpus: int = 1) -> Run:
    """Two shards of 8 images and a failure; of a third, of 9 rows, 8 more are to come. 8 are captioned, in 4 seconds.

    gpus: of the actor that did.
    """
    run = fake_run.make(folder, writers=[]).run
    storage.create(run.plan, json.dumps(asdict(Partition(27, 3, 9, 27, 0, {}, {}))).encode())
    name = "tiny-llava"
    fake_run.claim_captioner(run, name)
    images = fake_run.fetched_rows(run, 0)
    fake_run.write_captions(run, name, 0, [fake_run.caption(image, "A text.") for image in images])
    tally = ledger.WorkRecord(rows=8, failed=0, tokens=800, started=1000, ended=1009, spent=4000, gpu=4000 * gpus)
    ledger.record(run.caption_ledger(name), 0, tally)
    return run


def test_of_a_run_only_what_is_left_counts_at_the_speed_that_it_had(tmp_path: Path) -> None:
    run = run_under_way(tmp_path / "run")
    cost = plan_cost.plan_cost(10**9, resolve_captioners(["tiny-llava"]), Hardware(price=3600), {}, run, shards=10**6)
    (one,) = cost.captioners
    assert (one.images, one.done, one.images_per_s) == (16, 8, 2.0)
    assert one.tokens == 1600 and any(line.startswith("9 rows are not fetched yet; 88.9%") for line in cost.assumes)
    assert one.speed == "the run's, of 8 images"
    assert one.actors == 2  # of three shards one is done
    assert cost.gpu_hours == pytest.approx(8 / 3600) and cost.money == pytest.approx(8)


@pytest.mark.parametrize("pool", [{}, {"num_gpus": 1}])
def test_a_run_without_gpus_gives_no_gpu_hours_or_money(tmp_path: Path, pool: dict[str, Any]) -> None:
    """16 images at 2 a second are 8 seconds of an actor, of which there is one without GPUs."""
    run = run_under_way(tmp_path / "run", gpus=0)
    chosen = resolve_captioners([{"preset": "tiny-llava", "pool": pool}])
    cost = plan_cost.plan_cost(0, chosen, Hardware(price=2.0), {}, run)
    (one,) = cost.captioners
    assert (cost.gpu_hours, cost.money, one.gpus, one.sequences) == (0, None, 0, None)
    assert cost.days == pytest.approx(8 / 3600 / 24) and one.actors == 1
    assert plan_cost.format_text(cost)[1].endswith("(the run's, of 8 images): less than 0.01 hours without a GPU")


def test_the_command_prints_it_and_refuses_a_speed_of_nobody(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("url,caption\n" + "".join(f"http://a.example/{i}.jpg,x\n" for i in range(36)))
    text = "name: x\nsources: [{name: a, files: [list.csv]}]\ncaptioners: [tiny-llava]\n"
    (tmp_path / "manifest.yaml").write_text(text)
    asked = ["plan", str(tmp_path / "manifest.yaml"), "--json", "--price", "3600"]
    ended = CliRunner().invoke(app, [*asked, "--speed", "tiny-llava=36"])
    found = json.loads(ended.stdout)["captioning"]
    assert ended.exit_code == 0 and found["captioners"][0]["images_per_s"] == 36
    alone = CliRunner().invoke(app, [*asked, "--speed", "tiny-llava=36", "--gpus", "64"])
    assert json.loads(alone.stdout)["captioning"]["days"] == pytest.approx(1 / 3600 / 24)  # all in one shard
    wrong = CliRunner().invoke(app, [*asked, "--speed", "llava=36"])
    assert wrong.exit_code == 2 and "--speed llava=36: give NAME=IMAGES" in wrong.output
    for value in ("inf", "nan", "0", "1e-320", "x"):
        assert CliRunner().invoke(app, [*asked, "--speed", f"tiny-llava={value}"]).exit_code == 2
    for option in ("--price", "--tflops", "--gpu-gib", "--mfu"):
        refused = CliRunner().invoke(app, [*asked, option, "inf"])
        assert refused.exit_code == 2 and f"{option} inf: " in refused.output


def test_lists_of_an_unknown_number_of_images_have_no_cost(tmp_path: Path) -> None:
    (tmp_path / "manifest.yaml").write_text("name: x\nsources: [{name: a, files: [gone.csv]}]\ncaptioners: [llava]\n")
    ended = CliRunner().invoke(app, ["plan", str(tmp_path / "manifest.yaml"), "--json"])
    assert ended.exit_code == 1 and json.loads(ended.stdout)["captioning"] is None
