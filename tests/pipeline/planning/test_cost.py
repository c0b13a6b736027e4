"""The estimated cost of captioning equals examples worked out by hand."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lotlip_data.captioners.sizing import ModelSizes
from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.cli.main import app
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.planning import throughput
from lotlip_data.pipeline.planning.cost import CostPlan, format_text, plan_cost
from lotlip_data.pipeline.planning.hardware import Hardware
from lotlip_data.pipeline.planning.throughput import Speed
from lotlip_data.pipeline.recaptioning.config import resolve_captioners
from lotlip_data.pipeline.url_lists.partition import Partition
from tests.pipeline import run_fixture

HARDWARE = Hardware(gpus=8)


def estimate(
    images: int, speed: float | None, hardware: Hardware = HARDWARE, preset: str = "llava", **settings: Any
) -> CostPlan:
    """Return the plan of one captioner.

    Args:
        images: Number of images.
        speed: Images per second of one actor, or None to estimate it.
        hardware: The cluster.
        preset: The captioner.
        settings: Its settings; `pool` is its pool.
    """
    speeds = {preset: Speed(speed, "as given")} if speed else {}
    return plan_cost(images, resolve_captioners([{"preset": preset} | settings]), hardware, speeds)


def test_a_worked_example_with_all_its_assumptions() -> None:
    """3 million images at 10 per second are 83.33 GPU-hours, or 10.42 hours on 8 GPUs."""
    cost = estimate(3_000_000, 10.0, Hardware(gpus=8, price=2.0))
    (captioner,) = cost.captioners
    assert captioner.gpu_hours == pytest.approx(83.333, abs=0.001) and cost.money == pytest.approx(166.667, abs=0.001)
    assert cost.days == pytest.approx(83.3333 / 8 / 24, abs=1e-5)
    assert captioner.tokens == 420_000_000 and captioner.caption_bytes == 1_500_000_000
    assert captioner.sequences == 128  # as computed in docs/guides/gpu-sizing.md
    assert cost.assumes == [
        "llava: 140 tokens per caption (assumed), after 576 image tokens and 60 prompt tokens",
        "llava: 8 concurrent actors with 1 GPU each",
        "llava: memory: 1 × (0.9 (gpu_memory_utilization) × 79.1 GiB − 6 GiB of working memory) − 13.2 "
        "GiB of 16-bit weights; 0.5 MiB of 16-bit KV cache per token, 776 tokens per caption",
        "hours, cost and days cover captioning only, without download, dataset, training, engine start-up and work "
        "that is lost to kills",
        "8 GPUs that are busy as long as there are actors for them; the actors of a captioner share its images evenly; "
        "captioners without a GPU run at the same time",
        "500 bytes per stored caption",
        "a price of 2 per GPU-hour; other machines and the fees of endpoints are not included",
    ]


def test_without_a_number_of_gpus_there_are_gpu_hours_and_no_days() -> None:
    cost = estimate(3_000_000, 10.0, Hardware(price=2.0))
    assert cost.gpu_hours == pytest.approx(83.333, abs=0.001) and cost.money == pytest.approx(166.667, abs=0.001)
    assert cost.days is None and cost.gpus is None
    assert format_text(cost)[-1] == (
        "captioning   83.33 GPU-hours, cost 166.67; the days depend on the number of GPUs: give --gpus"
    )
    assert "llava: as many actors as there are GPUs for them, with 1 GPU each" in cost.assumes
    assert format_text(estimate(3_000_000, 10.0))[-1] == "captioning   83.33 GPU-hours, 0.43 days on 8 GPUs"
    assert estimate(864, 0.01, Hardware(), pool={"num_gpus": 0}).days == pytest.approx(1)  # needs none


@pytest.mark.parametrize("preset", ["tiny-llava", "tiny-sharegpt4v", "tiny-instructblip"])
def test_the_estimated_speed_of_a_tiny_model_is_that_of_preparing_its_images(preset: str) -> None:
    (captioner,) = estimate(1000, None, preset=preset, pool={"num_cpus": 2}).captioners
    assert captioner.images_per_s == 2 / throughput.PREPARE_SECONDS
    assert "CPUs prepare images" in captioner.speed


def test_an_estimated_speed_states_the_peak_and_the_utilisation() -> None:
    """2 × 7,063,427,072 parameters × 776 tokens = 10.96 TFLOP; half of 200 TFLOP/s: 9.12 images per second."""
    cost = estimate(1000, None, Hardware(gpus=8, tflops=200, mfu=0.5))
    assert cost.captioners[0].images_per_s == pytest.approx(9.122, abs=0.001)
    assert [line for line in cost.assumes if line.startswith("estimated")] == [
        "estimated speeds: GPUs with a peak of 200 TFLOP/s, a model FLOPs utilisation of 0.5, and 2 FLOP per parameter "
        "and token; measure with --time, or set --speed"
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # (0.45 × 79.1 − 6 − 13.16) GiB / 0.5 MiB / 776 tokens = 43.4
        ({"pool": {"engine_options": {"gpu_memory_utilization": 0.45}}}, 32),
        # the same: another actor uses the other half of 0.9
        ({"pool": {"num_gpus": 0.5}}, 32),
        # (2 × (0.9 × 79.1 − 6) − 13.16) GiB / 0.5 MiB / 776 tokens = 309.4
        ({"tensor_parallel_size": 2}, 304),
        ({"tensor_parallel_size": 2, "pool": {"num_gpus": 2}}, 304),
        # (0.9 × 79.1 − 6 − 6.88) GiB / 0.25 MiB / 776 tokens = 307.7
        ({"preset": "llava-fp8"}, 304),
        # (0.9 × 79.1 − 6 − 26.31) GiB / 1 MiB / 776 tokens = 51.3
        ({"dtype": "float32"}, 48),
        # 24.25 GiB / 0.5 MiB / 776 tokens = 64
        ({"pool": {"engine_options": {"kv_cache_gib": 24.25}}}, 64),
        ({"pool": {"engine_options": {"gpu_memory_utilization": 0.1}}}, 0),
        ({"pool": {"engine": "transformers"}}, None),
        ({"pool": {"num_gpus": 0}}, None),
    ],
)
def test_concurrent_captions_follow_from_the_pool(settings: dict[str, Any], expected: int | None) -> None:
    assert estimate(1000, 10.0, **settings).captioners[0].sequences == expected


def test_concurrent_captions_state_the_limiting_setting() -> None:
    def memory(**pool: Any) -> str:
        (line,) = (line for line in estimate(1000, 10.0, pool=pool).assumes if "memory:" in line)
        return line

    assert "1 × (0.45 (limited by num_gpus) × 79.1 GiB" in memory(num_gpus=0.5)
    assert "1 × (0.4 (gpu_memory_utilization) ×" in memory(num_gpus=0.5, engine_options={"gpu_memory_utilization": 0.4})
    assert "1 × 20 GiB of KV cache (kv_cache_gib);" in memory(engine_options={"kv_cache_gib": 20})


def test_two_gpus_per_actor_count_twice_and_half_a_gpu_counts_half() -> None:
    """36,000 images at 10 per second take one actor-hour."""
    assert estimate(36_000, 10.0, tensor_parallel_size=2).gpu_hours == 2.0
    assert estimate(36_000, 10.0, pool={"num_gpus": 0.5}).gpu_hours == 0.5


def test_fewer_actors_than_fit_on_the_cluster_take_longer() -> None:
    """240 actor-hours take 10 days with one actor and 5 with two.

    8 GPUs fit 16 actors with half a GPU each: 0.625 days.
    """
    assert estimate(8_640_000, 10.0, pool={"max_actors": 1}).days == pytest.approx(10)
    assert estimate(8_640_000, 10.0, pool={"max_actors": 2}).days == pytest.approx(5)
    assert estimate(8_640_000, 10.0, pool={"num_gpus": 0.5}).days == pytest.approx(0.625)
    assert estimate(8_640_000, 10.0, pool={"max_actors": 32}).days == pytest.approx(240 / 8 / 24)
    with pytest.raises(UserError, match="--gpus 1: one actor of llava needs 2"):
        estimate(1000, 10.0, Hardware(gpus=1), tensor_parallel_size=2)


def test_a_captioner_without_a_gpu_takes_days_but_no_gpu_hours_or_money_and_has_no_estimated_speed() -> None:
    """864 images at 0.01 per second are 24 actor-hours: one day with one actor, half a day with two."""
    cost = estimate(864, 0.01, Hardware(gpus=8, price=2.0), pool={"num_gpus": 0, "max_actors": 2})
    assert (cost.gpu_hours, cost.money, cost.days) == (0, None, pytest.approx(0.5))
    assert cost.captioners[0].money is None and cost.captioners[0].actor_hours == pytest.approx(24)
    assert any(": 24.00 hours without a GPU" in line for line in format_text(cost))
    assert estimate(864, 0.01, Hardware(gpus=0)).days == pytest.approx(1)
    assert format_text(cost)[-1] == "captioning   0.00 GPU-hours, 0.50 days"
    unknown = estimate(864, None, pool={"num_gpus": 0})
    assert (unknown.gpu_hours, unknown.days, unknown.captioners[0].images_per_s) == (None, None, None)
    assert "unknown" in unknown.captioners[0].speed


def test_there_are_no_more_concurrent_actors_than_shards() -> None:
    """10,000 images at one per second take one actor 2.78 hours, also on 64 GPUs; four actors take 0.69 hours."""

    def estimate_for(shards: int | None, **pool: Any) -> CostPlan:
        speeds = {"llava": Speed(1.0, "as given")}
        jobs = resolve_captioners([{"preset": "llava", "pool": pool}])
        return plan_cost(10_000, jobs, Hardware(gpus=64), speeds, shards=shards)

    cost = estimate_for(1)
    assert (cost.captioners[0].actors, cost.days) == (1, pytest.approx(10_000 / 3600 / 24))
    assert cost.assumes[1] == (
        "llava: 1 concurrent actor with 1 GPU each, because each actor needs its own shard and 1 shard is left; "
        "smaller shards (`samples_per_shard`) would occupy up to 64 actors"
    )
    assert cost.gpu_hours == pytest.approx(10_000 / 3600)
    assert (
        estimate_for(4).days == pytest.approx(10_000 / 3600 / 4 / 24)
        and "and 4 shards are left;" in estimate_for(4).assumes[1]
    )
    assert estimate_for(2, num_gpus=0, max_actors=8).days == pytest.approx(10_000 / 3600 / 2 / 24)
    for shards in (64, 1000, None):  # limited by the GPUs
        assert estimate_for(shards).days == pytest.approx(10_000 / 3600 / 64 / 24)
        assert estimate_for(shards).assumes[1] == "llava: 64 concurrent actors with 1 GPU each"


def test_gpus_that_the_model_does_not_use_do_not_increase_the_speed_and_are_paid_for() -> None:
    """A model uses `tensor_parallel_size` GPUs; further GPUs of the actor do not make it faster."""

    def speed(**settings: Any) -> float:
        return estimate(1000, None, **settings).captioners[0].images_per_s or 0

    one_gpu = speed()
    assert speed(pool={"num_gpus": 2}) == one_gpu and speed(pool={"num_gpus": 0.5}) == pytest.approx(one_gpu / 2)
    assert speed(tensor_parallel_size=2) == pytest.approx(2 * one_gpu)
    assert speed(tensor_parallel_size=2, pool={"num_gpus": 4}) == pytest.approx(2 * one_gpu)
    cost = estimate(36_000, 10.0, pool={"num_gpus": 2})
    assert cost.gpu_hours == 2.0 and cost.assumes[2] == (
        "llava: 1 of the 2 GPUs per actor (`num_gpus`) is idle, but reserved and paid for: the model uses 1 "
        "(`tensor_parallel_size`)"
    )
    four_gpus = estimate(36_000, 10.0, tensor_parallel_size=2, pool={"num_gpus": 4})
    assert "2 of the 4 GPUs per actor (`num_gpus`) are idle, but reserved" in four_gpus.assumes[2]
    for settings in ({}, {"tensor_parallel_size": 2}, {"pool": {"num_gpus": 0.5}}):
        assert not any("idle" in line for line in estimate(1000, 10.0, **settings).assumes)


def test_storage_of_captions_is_shown_with_units() -> None:
    """One caption takes 500 bytes."""
    assert format_text(estimate(10_000, 1.0))[0].endswith("1,400,000 tokens, 5 MB of captions")
    assert format_text(estimate(60_000_000, 1.0))[0].endswith("30 GB of captions")


def test_speeds_and_hours_are_shown_as_plain_numbers() -> None:
    """There are no exponents, and a number above zero is never 0.00."""
    assert "115,518 images/s per actor (as given): less than 0.01 GPU-hours" in format_text(estimate(9, 115_517.8))[1]
    assert "0.02 images/s per actor (as given): 2,777.78 GPU-hours" in format_text(estimate(200_000, 0.02))[1]


def test_a_speed_measured_on_a_cpu_gives_no_gpu_hours() -> None:
    speeds = {"llava": Speed(0.01, "measured", on_cpu=True)}
    cost = plan_cost(864, resolve_captioners(["llava"]), Hardware(gpus=8, price=2.0), speeds)
    assert (cost.gpu_hours, cost.days) == (0, pytest.approx(1)) and cost.captioners[0].sequences is None


def test_several_captioners_take_the_days_of_all_gpu_hours_or_of_the_slowest_captioner() -> None:
    """96 + 96 GPU-hours on 8 GPUs are one day; the single actor of an endpoint takes 2 days at the same time."""
    remote = {"name": "remote", "kind": "openai", "model": "x"}
    jobs = resolve_captioners(["llava", "instructblip", remote])
    speeds = {name: Speed(10, "as given") for name in ("llava", "instructblip")}
    assert plan_cost(3_456_000, jobs[:2], HARDWARE, speeds).days == pytest.approx(1)
    speeds["remote"] = Speed(20, "as given")
    assert plan_cost(3_456_000, jobs, HARDWARE, speeds).days == pytest.approx(2)


def test_an_estimated_speed_follows_the_formula() -> None:
    """2 × 1e9 parameters × 500 tokens = 1e12; a fifth of 100 TFLOP/s is 2e13: 20 images per second."""
    sizes = ModelSizes(parameters=10**9, image_tokens=300, prompt_tokens=60)
    assert throughput.estimate_images_per_s(
        sizes, 1, Hardware(tflops=100, mfu=0.2), caption_tokens=[140]
    ) == pytest.approx(20.0)
    assert throughput.estimate_images_per_s(
        sizes, 4, Hardware(tflops=100, mfu=0.2), caption_tokens=[140]
    ) == pytest.approx(80.0)


def test_the_texts_of_an_image_share_its_tokens_in_vllm_only() -> None:
    """300 image tokens and 3 × 60 + 320 tokens of prompts and captions are 800 tokens; without sharing, 1,400."""
    sizes = ModelSizes(parameters=10**9, image_tokens=300, prompt_tokens=60)
    hardware, lengths = Hardware(tflops=100, mfu=0.2), [140, 140, 40]
    assert throughput.estimate_images_per_s(sizes, 1, hardware, lengths) == pytest.approx(20 * 500 / 800)
    assert throughput.estimate_images_per_s(sizes, 1, hardware, lengths, False) == pytest.approx(20 * 500 / 1400)


PROMPTS = {"long": "Describe it.", "title": "Name it.", "tags": {"prompt": "Tag it.", "max_new_tokens": 48}}


def test_a_captioner_with_several_texts_is_planned_as_one_with_all_its_tokens() -> None:
    """36,000 images at 10 per second with three texts each take one actor-hour, and have 108,000 captions."""
    cost = estimate(36_000, 10.0, prompts=PROMPTS)
    (captioner,) = cost.captioners
    assert (captioner.texts, captioner.gpu_hours, captioner.tokens) == (3, 1.0, 36_000 * (140 + 140 + 48))
    assert captioner.caption_bytes == 108_000 * 500
    assert format_text(cost)[0] == "llava        36,000 images × 3 texts, 11,808,000 tokens, 54 MB of captions"
    assert "10 images/s per actor with all 3 texts (as given): 1.00 GPU-hours" in format_text(cost)[1]
    assert cost.assumes[0] == (
        "llava: 140 tokens per caption (assumed) of 'long', 140 tokens per caption (assumed) of 'title', 48 tokens per "
        "caption (assumed) of 'tags', after 576 image tokens that all texts share and 60 prompt tokens"
    )
    estimated = [estimate(1, None, **settings).captioners[0].images_per_s for settings in ({}, {"prompts": PROMPTS})]
    one, three = map(float, filter(None, estimated))
    assert three == pytest.approx(one * (576 + 60 + 140) / (576 + 3 * 60 + 328))


def test_a_text_that_was_added_later_is_what_remains(tmp_path: Path) -> None:
    """Of 20 images, all have two texts and 10 the third one: a third of the time of 10 images remains."""
    run = run_fixture.make(tmp_path, shards=2, images=10, writers=()).run
    storage.create(run.plan, json.dumps(asdict(Partition(22, 2, 11, 22, 0, {}, {}))).encode())
    for name, shards in (("llava_long", (0, 1)), ("llava_title", (0, 1)), ("llava_tags", (0,))):
        run_fixture.claim_captioner(run, name)
        for shard in shards:
            run_fixture.write_captions(run, name, shard, run_fixture.captions_of(run, "llava", shard))
            ledger.record(run.caption_ledger(name), shard, ledger.WorkRecord(10, 0, 400, 0, 10, 2_000, 2_000))
    jobs = resolve_captioners([{"preset": "llava", "prompts": PROMPTS}])
    (captioner,) = plan_cost(20, jobs, HARDWARE, {}, run).captioners
    assert (captioner.images, captioner.done, captioner.tokens) == (10, 10, 400)
    assert captioner.speed == "measured in the run, 20 images"
    assert captioner.images_per_s == pytest.approx(10 / 6)  # of which each text takes 2 of 6 s
    assert captioner.actor_hours == pytest.approx(10 * 0.2 / 3600)


def test_without_the_hub_published_models_are_estimated_and_other_models_need_a_speed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    known, other = resolve_captioners(["llava", {"preset": "llava", "name": "mine", "model": "me/my-llava"}])
    cost = plan_cost(1000, [known, other], Hardware(), {})
    assert cost.gpu_hours is None and "use --speed" in cost.captioners[1].speed
    assert cost.captioners[0].speed.startswith("estimated")


def partial_run(folder: Path, gpus: int = 1) -> Run:
    """Return a run with two downloaded shards of 8 images and one failure each, and a third shard of 9 rows.

    An actor with `gpus` GPUs has captioned 8 images in 4 seconds. The third shard is expected to have 8 images.
    """
    run = run_fixture.make(folder, writers=[]).run
    storage.create(run.plan, json.dumps(asdict(Partition(27, 3, 9, 27, 0, {}, {}))).encode())
    name = "tiny-llava"
    run_fixture.claim_captioner(run, name)
    images = run_fixture.fetched_rows(run, 0)
    run_fixture.write_captions(run, name, 0, [run_fixture.caption(image, "A text.") for image in images])
    record = ledger.WorkRecord(rows=8, failed=0, tokens=800, started=1000, ended=1009, spent=4000, gpu=4000 * gpus)
    ledger.record(run.caption_ledger(name), 0, record)
    return run


def test_only_the_remaining_images_of_a_run_count_at_its_measured_speed(tmp_path: Path) -> None:
    run = partial_run(tmp_path / "run")
    cost = plan_cost(10**9, resolve_captioners(["tiny-llava"]), Hardware(gpus=8, price=3600), {}, run, shards=10**6)
    (captioner,) = cost.captioners
    assert (captioner.images, captioner.done, captioner.images_per_s) == (16, 8, 2.0)
    assert captioner.tokens == 1600
    assert any(line.startswith("9 rows are not downloaded yet; 88.9%") for line in cost.assumes)
    assert captioner.speed == "measured in the run, 8 images"
    assert captioner.actors == 2  # one of three shards is done
    assert cost.gpu_hours == pytest.approx(8 / 3600) and cost.money == pytest.approx(8)


@pytest.mark.parametrize("pool", [{}, {"num_gpus": 1}])
def test_a_run_without_gpus_gives_no_gpu_hours_or_money(tmp_path: Path, pool: dict[str, Any]) -> None:
    """16 images at 2 per second take 8 seconds; without GPUs there is one actor."""
    run = partial_run(tmp_path / "run", gpus=0)
    jobs = resolve_captioners([{"preset": "tiny-llava", "pool": pool}])
    cost = plan_cost(0, jobs, Hardware(gpus=8, price=2.0), {}, run)
    (captioner,) = cost.captioners
    assert (cost.gpu_hours, cost.money, captioner.gpus, captioner.sequences) == (0, None, 0, None)
    assert cost.days == pytest.approx(8 / 3600 / 24) and captioner.actors == 1
    assert format_text(cost)[1].endswith("(measured in the run, 8 images): less than 0.01 hours without a GPU")


def test_the_command_prints_the_cost_and_rejects_invalid_settings(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("url,caption\n" + "".join(f"http://a.example/{i}.jpg,x\n" for i in range(36)))
    text = "name: x\nsources: [{name: a, files: [list.csv]}]\ncaptioners: [tiny-llava]\n"
    (tmp_path / "manifest.yaml").write_text(text)
    command = ["plan", str(tmp_path / "manifest.yaml"), "--json", "--price", "3600"]
    result = CliRunner().invoke(app, [*command, "--speed", "tiny-llava=36"])
    captioning = json.loads(result.stdout)["captioning"]
    assert result.exit_code == 0 and captioning["captioners"][0]["images_per_s"] == 36
    large_cluster = CliRunner().invoke(app, [*command, "--speed", "tiny-llava=36", "--gpus", "64"])
    assert json.loads(large_cluster.stdout)["captioning"]["days"] == pytest.approx(
        1 / 3600 / 24
    )  # all images are in one shard
    wrong = CliRunner().invoke(app, [*command, "--speed", "llava=36"])
    assert wrong.exit_code == 2 and "--speed llava=36: give NAME=IMAGES" in wrong.output
    for value in ("inf", "nan", "0", "1e-320", "x"):
        assert CliRunner().invoke(app, [*command, "--speed", f"tiny-llava={value}"]).exit_code == 2
    for option in ("--price", "--tflops", "--gpu-gib", "--mfu"):
        rejected = CliRunner().invoke(app, [*command, option, "inf"])
        assert rejected.exit_code == 2 and f"{option} inf: " in rejected.output


def test_lists_with_an_unknown_number_of_images_have_no_cost(tmp_path: Path) -> None:
    (tmp_path / "manifest.yaml").write_text("name: x\nsources: [{name: a, files: [gone.csv]}]\ncaptioners: [llava]\n")
    result = CliRunner().invoke(app, ["plan", str(tmp_path / "manifest.yaml"), "--json"])
    assert result.exit_code == 1 and json.loads(result.stdout)["captioning"] is None
