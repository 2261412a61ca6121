"""Memory, time and price reckoned by hand; and one step that is really compiled."""

import dataclasses
import json
import re
import sys
import types

import jax
import pytest

from mosaicbert_jax import BertConfig
from mosaicbert_jax.commands.cli import main
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.planning import gpu_time, picture, planner, published
from mosaicbert_jax.planning.collectives import Collective, Links
from mosaicbert_jax.planning.gpu_time import Range
from mosaicbert_jax.planning.gpus import GPUS
from mosaicbert_jax.planning.plan import (
    PRICES,
    Workload,
    buy,
    gpu_hours_of,
    predict,
    run_slots,
    step_on,
)
from mosaicbert_jax.planning.profile import StepProfile, of_program
from mosaicbert_jax.training.durations import Duration

GB = 1_000_000_000
# 1,000 rows of 100 slots on 10 GPUs of one node, all in one microbatch.
WORKLOAD = Workload(
    gpu="a100-80gb",
    devices=10,
    mesh=(10, 1, 1),
    nodes=1,
    batch_rows=1000,
    row_length=100,
    slots_per_sequence=50.0,
    tokens_per_sequence=50.0,
    token_flops=312e12 * 1e-5,  # a device's 10,000 slots take 0.1 s at its peak
    links=Links(inside=100e9, between=10e9),
    price=2.0,
)
PROFILE = StepProfile(
    rows=100,
    microbatches=1,
    parameter_bytes=1 * GB,
    optimizer_bytes=2 * GB,
    other_lasting_bytes=0,
    temporary_bytes=5 * GB,
    executed_flops=1,
    matmul_bytes=0,
    other_bytes=0,
    matmul_seconds=Range(0.12, 0.15),
    row_seconds=Range(0.05, 0.06),
    step_seconds=Range(0.01, 0.02),
    microbatch_seconds=Range(),
    collectives=(Collective("all-reduce", GB, 10, 1, over_data=True, with_rows=False),),
)


def assert_range(found, fast: float, slow: float) -> None:
    assert (found.fast, found.slow) == pytest.approx((fast, slow))


def test_a_step_adds_up():
    assert PROFILE.needed == 8 * GB
    step = step_on(WORKLOAD, PROFILE, 1)
    assert step.matmul == Range(0.12, 0.15)
    assert_range(step.other, 0.06, 0.08)
    assert step.communication == pytest.approx(2 * 0.9 * 1e9 / 100e9)  # 18 ms
    assert_range(step.seconds, 0.198, 0.248)
    assert (step.rows, step.microbatches) == (100, 1)


def test_more_nodes_share_the_rows_but_not_the_update():
    step = step_on(WORKLOAD, PROFILE, 5)
    assert (step.rows, step.microbatches) == (20, 1)
    assert_range(step.matmul, 0.12 / 5, 0.15 / 5)
    assert_range(step.other, 0.05 / 5 + 0.01, 0.06 / 5 + 0.02)
    # A ring of 50 devices that crosses a link of 10 GB/s.
    assert step.communication == pytest.approx(2 * 49 / 50 * 1e9 / 10e9)
    assert step_on(WORKLOAD, PROFILE, 3) is None
    assert step_on(WORKLOAD, PROFILE, 200) is None


def test_fewer_microbatches_on_more_nodes():
    """Compiled for one of 2 nodes, in 4 microbatches of which each gathers parameters."""
    gathered = Collective("all-gather", GB, 2, 4, over_data=False, with_rows=False)
    activations = Collective("all-reduce", GB, 2, 4, over_data=False, with_rows=True)
    profile = dataclasses.replace(
        PROFILE,
        rows=10,
        microbatches=4,
        microbatch_seconds=Range(0.04, 0.08),
        collectives=(gathered, activations),
    )
    workload = dataclasses.replace(WORKLOAD, nodes=2, mesh=(5, 2, 1))
    two, four = step_on(workload, profile, 2), step_on(workload, profile, 4)
    assert (four.rows, four.microbatches) == (10, 2)
    assert_range(two.other, 0.05 + 0.01 + 0.04, 0.06 + 0.02 + 0.08)
    assert_range(four.other, 0.025 + 0.01 + 0.02, 0.03 + 0.02 + 0.04)
    assert two.communication == pytest.approx(4 * 0.5 * 0.01 + 4 * 0.01)
    assert four.communication == pytest.approx(two.communication / 2)


def test_gradients_meet_between_nodes_where_a_node_has_one_replica():
    workload = dataclasses.replace(WORKLOAD, mesh=(1, 10, 1))
    profile = dataclasses.replace(PROFILE, parameter_bytes=GB // 10, collectives=())
    assert step_on(workload, profile, 1).communication == 0
    # Ten rings of 2 devices share the node's 10 GB/s; each moves its tenth of the gradients.
    step = step_on(workload, profile, 2)
    assert step.communication == pytest.approx(2 * 0.5 * 0.1e9 / 1e9)


def test_the_run_and_its_price():
    found = predict(WORKLOAD, PROFILE, Duration(1000, "ba"), 1)
    assert_range(found.step_seconds, 0.198, 0.248)
    assert_range(found.tokens_per_second, 100_000 / 0.198, 100_000 / 0.248)
    assert_range(found.mfu, 0.1 / 0.198, 0.1 / 0.248)
    assert_range(found.hours, 198 / 3600, 248 / 3600)
    assert_range(found.dollars, 198 / 3600 * 10 * 2, 248 / 3600 * 10 * 2)
    assert_range(found.sequences, 2_000_000, 2_000_000)


def test_as_fast_as_the_published_runs():
    """A step of one node has their MFU; five nodes take it as far as the range's middle goes."""
    one, five = (predict(WORKLOAD, PROFILE, Duration(1000, "ba"), n) for n in (1, 5))
    assert one.mfu.published == pytest.approx(published.MFU)
    assert one.step_seconds.published == pytest.approx(0.1 / published.MFU)
    assert one.hours.published == pytest.approx(100 / published.MFU / 3600)
    assert one.dollars.published == pytest.approx(100 / published.MFU / 3600 * 20)
    middles = (five.step_seconds.fast + five.step_seconds.slow) / (0.198 + 0.248)
    assert five.step_seconds.published == pytest.approx(0.1 / published.MFU * middles)
    h100 = dataclasses.replace(WORKLOAD, gpu="h100")
    elsewhere = predict(h100, PROFILE, Duration(1, "ba"), 1)
    assert elsewhere.hours.published is elsewhere.mfu.published is None
    assert elsewhere.mfu.fast == pytest.approx(0.1 / 0.198 * 312 / 989.4)


def test_a_run_of_hours_reads_what_it_can():
    found = predict(WORKLOAD, PROFILE, Duration(30, "m"), 1)
    assert found.hours.fast == found.hours.slow == found.hours.published == 0.5
    assert found.dollars.slow == 10.0
    assert found.sequences.fast == pytest.approx(100_000 / 0.198 * 1800 / 50)
    assert found.sequences.published < found.sequences.slow < found.sequences.fast
    assert predict(WORKLOAD, PROFILE, Duration(10, "usd"), 1) == found  # 10 GPUs at 2 dollars


def test_what_a_budget_buys():
    found = predict(WORKLOAD, PROFILE, Duration(1, "ba"), 1)
    bought = buy(WORKLOAD, found, 20.0)
    assert bought.hours == 1.0  # 10 GPUs at 2 dollars
    assert_range(bought.tokens, 100_000 / 0.198 * 3600, 100_000 / 0.248 * 3600)
    assert bought.sequences.published == pytest.approx(bought.tokens.published / 50)


# Two microbatches in a loop; parameters of 1024x1024 are read in each of them and updated once.
STEP = """
%body (p: f32[1024,1024]) -> f32[1024,1024] {
  %p = f32[1024,1024]{1,0} parameter(0)
  %rows = f32[4096,512]{1,0} broadcast(%p)
  ROOT %sum = f32[1024,1024]{1,0} negate(%p)
}

ENTRY %main (a: f32[1024,1024]) -> f32[1024,1024] {
  %a = f32[1024,1024]{1,0} parameter(0)
  %loop = f32[1024,1024]{1,0} while(%a), body=%body, backend_config={"known_trip_count":{"n":"2"}}
  ROOT %update = f32[1024,1024]{1,0} negate(%loop)
}
"""


def test_a_profile_tells_apart_what_grows_with_what():
    gpu, parameter = GPUS["a100-80gb"], jax.numpy.zeros((1024, 1024))
    profile = of_program(
        types.SimpleNamespace(text=STEP, lasting_bytes=20 * 2**20, temporary_bytes=5),
        types.SimpleNamespace(params={"a": parameter}, optimizer_state={"b": parameter}),
        gpu=gpu, rows=4, microbatches=2, mesh=(1, 1, 1), sequence_length=128,
    )  # fmt: skip
    through_memory = gpu_time.memory_seconds(gpu, 2 * 4 * 2**20)  # a parameter read and written
    launch = gpu_time.LAUNCH_GAP
    in_each, once = (through_memory * 2 + launch * 4), through_memory + launch
    assert_range(profile.microbatch_seconds, in_each.fast, in_each.slow)
    assert_range(profile.step_seconds, once.fast, once.slow)
    rows = gpu_time.memory_seconds(gpu, 2 * 3 * 4 * 2**20)
    assert_range(profile.row_seconds, rows.fast, rows.slow)
    assert profile.matmul_seconds == Range()
    assert profile.other_bytes == (2 * 2 + 2 * 3 + 2) * 4 * 2**20
    assert profile.other_lasting_bytes == 12 * 2**20


def test_a_profile_is_read_as_it_was_written():
    assert StepProfile.from_dict(json.loads(json.dumps(PROFILE.to_dict()))) == PROFILE


@pytest.mark.parametrize(
    ("amount", "unit", "slots"),
    [(3, "ba", 300_000), (7, "sp", 1_050), (450, "tok", 675), (2, "h", None)],
)
def test_slots_of_a_run(amount, unit, slots):
    """Rows of one sequence of 100 tokens, in 150 slots."""
    padded = dataclasses.replace(WORKLOAD, slots_per_sequence=150.0, tokens_per_sequence=100.0)
    assert run_slots(padded, Duration(amount, unit)) == slots
    with pytest.raises(UserError, match=r"train\.duration=3ep: how long an epoch is"):
        run_slots(padded, Duration(3, "ep"))


def test_the_published_run_gives_the_published_efficiency():
    assert pytest.approx(0.312, abs=0.0005) == published.MFU
    assert published.model_name(BertConfig.mosaicbert_base(vocab_size=100)) == "base"
    assert published.model_name(BertConfig.mosaicbert_large()) == "large"
    assert published.model_name(BertConfig.bert_base()) is None
    # On the GPU that was measured, its sequences take its time at the published efficiency.
    workload = dataclasses.replace(
        WORKLOAD, devices=8, mesh=(8, 1, 1), batch_rows=800, slots_per_sequence=128.0,
        token_flops=737_138_073.6,
    )  # fmt: skip
    point = published.POINTS[3]
    hours = gpu_hours_of(workload, PROFILE, point)
    assert hours.published == pytest.approx(point.hours, rel=1e-3)
    steps = point.sequences / 1000 * 128 / 100 * 1000 / 800
    without_gradients = dataclasses.replace(PROFILE, collectives=())
    hours = gpu_hours_of(workload, without_gradients, point)
    assert_range(hours, steps * 0.18 / 3600, steps * 0.23 / 3600)
    assert gpu_hours_of(workload, PROFILE, published.POINTS[5]) is None  # sequences unknown


def run_plan(monkeypatch, capsys, *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["anything"])
    main(["plan", *words])
    return capsys.readouterr().out


TINY = ("--config=configs/tiny.py", "--gpu", "a100-80gb", "--config.train.batch_tokens=16384")


def test_plan_of_a_compiled_step(monkeypatch, capsys):
    """For 8 A100s: 128 rows of 128 tokens, 16 on each."""
    try:
        out = run_plan(
            monkeypatch, capsys, *TINY, "--config.model.num_hidden_layers=1", "--nodes", "1", "8",
            "--config.train.microbatch_tokens=auto", "--budget", "20", "--json",
            "--config.train.duration", "50ba",
        )  # fmt: skip
    except SystemExit:
        said = capsys.readouterr().err
        if "compiling for GPUs needs" not in said:
            raise
        pytest.skip(said)
    plan = json.loads(out)
    profile = plan["profile"]
    assert (profile["rows"], profile["microbatches"]) == (16, 1)
    assert profile["parameter_bytes"] == 4 * plan["parameters"]
    assert profile["optimizer_bytes"] == pytest.approx(8 * plan["parameters"], rel=1e-3)
    assert plan["fits"]
    assert plan["largest"] == 16
    assert plan["measured"] == {"16": plan["needed_bytes"]}  # all that there is: one program
    reduced = [c for c in profile["collectives"] if c["kind"] == "all-reduce"]
    assert {(c["members"], c["over_data"]) for c in reduced} == {(8, True)}
    # The gradients; that of the embedding, which is the head too, may be reduced in two parts.
    gradients = sum(c["bytes"] * c["times"] for c in reduced)
    assert 4 * plan["parameters"] <= gradients < 2.1 * 4 * plan["parameters"]
    assert profile["executed_flops"] > 0
    for name in ("matmul_seconds", "row_seconds", "step_seconds"):
        assert 0 < profile[name]["fast"] < profile[name]["slow"] < 0.1
    assert profile["microbatch_seconds"] == {"fast": 0, "slow": 0}  # there is one
    mfu = plan["predictions"]["1"]["mfu"]
    assert 0 < mfu["slow"] < mfu["fast"] < 0.8
    assert plan["predictions"]["8"]["gpus"] == 64
    assert plan["bought"]["hours"] == 1.0
    assert plan["predicted"] is True


def answer_of(order) -> dict:
    profile = dataclasses.replace(PROFILE, rows=16, temporary_bytes=order.limit)
    return {
        "parameters": 1_000, "largest": None, "measured": {"16": profile.needed},
        "profile": profile.to_dict(),
    }  # fmt: skip


def test_what_does_not_fit_is_said(monkeypatch, capsys):
    monkeypatch.setattr(planner, "_compiled", answer_of)
    out = run_plan(monkeypatch, capsys, *TINY, "--nodes", "1", "3", "--memory-fraction", "0.5")
    # Half of 85.10 GB, less a tenth.
    assert "| available (does NOT fit)               | 38.30 |" in out
    assert "16 rows 41.30 GB" in out
    assert "predicted" in out
    assert "rows do not divide" in out
    assert "2.50 $ a GPU-hour" in out
    assert re.search(r"\| seconds a step +\| +0\.\d{3} \| +0\.\d{3} \| +0\.\d{3} \|", out)
    assert "31.2% MFU" in out


def test_a_gpu_of_which_nothing_is_published(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(planner, "_compiled", answer_of)
    drawn = tmp_path / "plan.png"
    words = ("--gpu", "h100", "--nodes", "1", "2", "--budget", "5", "--picture", str(drawn))
    out = run_plan(monkeypatch, capsys, *TINY, *words)
    assert re.search(r"\| seconds a step +\| +0\.\d{3} \| +0\.\d{3} \|\n", out)
    assert "as fast as the published runs" not in out
    assert "31.2% MFU" not in out
    assert "published" in out
    assert drawn.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("gpu", ["a100-80gb", "h100"])
def test_the_picture_has_a_line_a_figure(gpu, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(planner, "_compiled", answer_of)
    labels = []
    plot = picture.Figure.savefig

    def look(figure, *where, **how):
        labels.extend(line.get_label() for line in figure.axes[0].lines)
        plot(figure, *where, **how)
        legend = figure.legends[0].get_window_extent()
        assert not any(axis.get_tightbbox().overlaps(legend) for axis in figure.axes)

    monkeypatch.setattr(picture.Figure, "savefig", look)
    drawn = str(tmp_path / "plan.png")
    run_plan(monkeypatch, capsys, *TINY, "--gpu", gpu, "--nodes", "1", "2", "--picture", drawn)
    assert ("as fast as the published runs" in labels) == (gpu == "a100-80gb")
    assert labels[:2] == ["fast", "slow"]


@pytest.mark.parametrize("gpu", sorted(set(GPUS) - set(PRICES)))
def test_a_gpu_without_a_default_price_needs_one(gpu, monkeypatch, capsys):
    monkeypatch.setattr(planner, "_compiled", answer_of)
    with pytest.raises(SystemExit, match="2"):
        main(["plan", *TINY, "--gpu", gpu])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for name in (gpu, "--price", "--config.train.price_per_gpu_hour"):
        assert name in error
    for price in ("--price=1.25", "--config.train.price_per_gpu_hour=1.25"):
        words = (*TINY, "--gpu", gpu, price)
        assert "1.25 $ a GPU-hour" in run_plan(monkeypatch, capsys, *words)


def test_the_help_names_every_gpu(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["plan", "--help"])
    said = capsys.readouterr().out
    for gpu in GPUS:
        assert re.search(rf"\b{gpu}\b", said)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--gpu", "a200"), "--gpu a200: there are a100-40gb, a100-80gb, h100, h200"),
        (("--nodes", "0"), "--nodes 0: it must be above 0"),
        (("--memory-fraction", "2"), "--memory-fraction 2: at most 1"),
        (("--config.train.duration=3ep",), r"train\.duration=3ep: how long"),
        (
            ("--config.mesh.tensor=8",),
            r"mesh\.tensor=8 does not divide model\.num_attention_heads=2",
        ),
        (("--config.mesh.fsdp=3",), "there are 8 devices, which these do not divide"),
        (("--gpus", "3"), "3 devices cannot share equally"),
        (("--tokens-per-sequence", "200"), r"more than a row of data\.row_length=128"),
        (("--config.trian.duration=1ba",), "there is no config key trian"),
        (("--fish",), "Unknown command line flag 'fish'"),
    ],
)
def test_mistakes_are_said_before_anything_is_compiled(words, message, monkeypatch, capsys):
    monkeypatch.setattr(planner, "_compiled", pytest.fail)
    with pytest.raises(SystemExit, match="2"):
        main(["plan", *TINY, *words])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert re.search(message, lines[0])


def test_finetuning_has_no_plan(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "--config=configs/finetune.py", "--gpu", "h100"])
    assert capsys.readouterr().err.startswith("error: a plan is for pretraining")


def test_the_answer_of_the_compiler_may_be_an_error(monkeypatch, capsys):
    monkeypatch.setattr(planner, "run_there", lambda *words: 'noise\n{"error": "too wide"}\n')
    with pytest.raises(SystemExit, match="2"):
        main(["plan", *TINY])
    assert capsys.readouterr().err == "error: too wide\n"
