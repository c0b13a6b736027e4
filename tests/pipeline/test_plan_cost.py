"""What captioning takes, against examples worked out by hand."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lotlip_data.captioners import sizing
from lotlip_data.captioners.sizing import Sizes
from lotlip_data.pipeline import ledger, plan_cost
from lotlip_data.pipeline.choice import choose
from lotlip_data.pipeline.cli import app
from lotlip_data.pipeline.plan_cost import Hardware
from tests.pipeline import fake_run


def test_a_worked_example() -> None:
    """3 million images at 10 a second are 83.33 hours; 8 GPUs need 10.42 hours of the day for them."""
    cost = plan_cost.plan_cost(
        3_000_000,
        choose([{"preset": "llava", "pool": {"num_gpus": 1}}]),
        Hardware(price=2.0),
        {"llava": (10.0, "as given")},
    )
    (one,) = cost.captioners
    assert one.gpu_hours == pytest.approx(83.333, abs=0.001) and cost.money == pytest.approx(166.667, abs=0.001)
    assert cost.days == pytest.approx(83.3333 / 8 / 24, abs=1e-5)
    assert one.tokens == 420_000_000 and one.caption_bytes == 1_500_000_000
    assert one.sequences == 128  # as docs/running.md works it out


def test_a_captioner_on_two_gpus_pays_for_both_and_has_their_memory() -> None:
    chosen = choose([{"preset": "llava", "tensor_parallel_size": 2, "pool": {"num_gpus": 2}}])
    (one,) = plan_cost.plan_cost(36_000, chosen, Hardware(), {"llava": (10.0, "as given")}).captioners
    assert one.gpu_hours == 2.0
    # (0.9 × 158.2 − 13.16 − 6) GiB / 0.5 MiB / 776 tokens = 325.1
    assert one.sequences == 320


def test_a_reckoned_speed_is_arithmetic() -> None:
    """2 × 1e9 parameters × 500 tokens = 1e12; a fifth of 100 TFLOP/s is 2e13: 20 images a second."""
    sizes = Sizes(parameters=10**9, image_tokens=300, prompt_tokens=60)
    assert plan_cost.reckoned(sizes, 1, Hardware(tflops=100, share=0.2), caption=140) == pytest.approx(20.0)
    assert plan_cost.reckoned(sizes, 4, Hardware(tflops=100, share=0.2), caption=140) == pytest.approx(80.0)


def test_the_sizes_of_a_checkpoint_are_read_from_its_config() -> None:
    """tiny-llava: 36 patches of 96 pixels; a key and a value of 3 layers × 4 heads × 32, 2 bytes each."""
    (one,) = choose(["tiny-llava"])
    found = sizing.sizes_of(one.config)
    assert found is not None and found.image_tokens == 36
    assert found.kv_bytes_a_token == 2 * 2 * found.layers * found.kv_heads * found.head_size
    assert 500_000 < found.parameters < 5_000_000
    (blip,) = choose(["tiny-instructblip"])
    queries = sizing.sizes_of(blip.config)
    assert queries is not None and queries.image_tokens < 36


def test_a_published_model_out_of_reach_has_the_known_sizes_and_any_other_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_reach(*_: object, **__: object) -> None:
        raise OSError("offline")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", out_of_reach)
    known, other = choose(["llava", {"preset": "llava", "name": "mine", "model": "me/my-llava"}])
    assert sizing.sizes_of(known.config) == sizing.LLAVA and sizing.sizes_of(other.config) is None
    cost = plan_cost.plan_cost(1000, [known, other], Hardware(), {})
    assert cost.gpu_hours is None and "give --speed" in cost.captioners[1].speed
    assert cost.captioners[0].speed.startswith("reckoned")


def test_of_a_run_only_what_is_left_counts_at_the_speed_that_it_had(tmp_path: Path) -> None:
    made = fake_run.make(tmp_path / "run", writers=[])
    name = "tiny-llava"
    fake_run.claim_captioner(made.run, name)
    images = fake_run.fetched_rows(made.run, 0)
    fake_run.write_captions(made.run, name, 0, [fake_run.caption(image, "A text.") for image in images])
    tally = ledger.Tally(rows=8, failed=0, tokens=800, started=1000, ended=1004)
    ledger.record(made.run.caption_ledger(name), 0, tally)
    (one,) = plan_cost.plan_cost(10**9, choose([name]), Hardware(), {}, made.run).captioners
    assert (one.images, one.done, one.images_per_s) == (8, 8, 2.0)
    assert one.tokens == 800 and one.speed == "the run's 1 committed shards"


def test_the_command_prints_it_and_refuses_a_speed_of_nobody(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("url,caption\n" + "".join(f"http://a.example/{i}.jpg,x\n" for i in range(36)))
    text = "name: x\nsources: [{name: a, files: [list.csv]}]\ncaptioners: [tiny-llava]\n"
    (tmp_path / "manifest.yaml").write_text(text)
    asked = ["plan", str(tmp_path / "manifest.yaml"), "--json", "--price", "3600"]
    ended = CliRunner().invoke(app, [*asked, "--speed", "tiny-llava=36"])
    found = json.loads(ended.stdout)["captioning"]
    assert ended.exit_code == 0 and found["captioners"][0]["images_per_s"] == 36
    wrong = CliRunner().invoke(app, [*asked, "--speed", "llava=36"])
    assert wrong.exit_code == 2 and "--speed llava=36: give NAME=IMAGES" in wrong.output


@pytest.mark.slow
def test_a_captioner_is_measured_here() -> None:
    (one,) = choose([{"preset": "tiny-llava", "pool": {"engine": "transformers"}}])
    assert plan_cost.timed(one, 16) > 0
