"""Runs at equal time: what becomes of a budget, what is done again, and the tables and pictures."""

import json
import sys
from unittest import mock

import jax
import numpy as np
import pytest

from benchmarks.peer_worker import padded_to_longest
from benchmarks.peers import HF_BERT, OURS, ratios_to
from experiments import ablation, comparison, modernbert, pareto
from experiments.configs import ablation as ablation_config
from experiments.configs import modernbert as modernbert_config
from mosaicbert_jax import UserError
from mosaicbert_jax.storage import workdir
from mosaicbert_jax.training.step import MASKED_LM
from tests.conftest import ROOT
from tests.finetuning.cases import sentences, write_csv
from tests.training.test_step import make_batch, small_model


def test_a_budget_of_time_becomes_steps():
    assert comparison.steps_of("20s", 0.04) == "500ba"
    assert comparison.steps_of("1.5m", 0.04) == "2250ba"
    assert comparison.steps_of("300ba", None) == "300ba"
    assert comparison.steps_of("1s", 60.0) == "1ba"


def call(module, *words: str) -> int:
    with mock.patch.object(sys, "argv", ["benchmark", *words]):
        try:
            module.main()
        except SystemExit as ended:
            return ended.code
    return 0


def test_modernberts_table_has_means_and_deviations(tmp_path):
    config = modernbert_config.get_config()
    seconds = comparison.StepSeconds(dict.fromkeys(config.variants, 0.05), "a test's")
    rows = {"eval_masked_accuracy": 0.2, "steps": 1200}
    todo = [*comparison.jobs(config), *modernbert.without_jobs(config, seconds)]
    assert {job.budget for job in todo} == {"60s", "1200ba"}
    found = {job: rows | {"eval_loss": job.seed / 10} for job in todo if job.variant != "window"}
    lines = modernbert.table(config, found, seconds, "picture").splitlines()
    assert "| RMSNorm | 20.0 | 1,200 | 3 | 1.800 ± 0.100 | 0.200 ± 0.000 |" in lines
    assert "| ALiBi for RoPE | 3 | 1.800 ± 0.100 | 0.200 ± 0.000 |" in lines
    assert not any(line.startswith("| window") for line in lines)
    comparison.draw_changes(list(config.variants), "60s", found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


@pytest.mark.one_end
def test_pareto(dataset, tmp_path, capsys, monkeypatch):
    """Both models at two budgets, finetuned; nothing is done twice, nor what another one does."""
    reviews = write_csv(tmp_path / "reviews.csv", sentences(60))
    folder = tmp_path / "runs"
    folder.mkdir()
    found = {"seconds": {"mosaicbert": 0.5, "bert": 0.25}, "machine": "a test's"}
    (folder / comparison.STEP_SECONDS_FILE).write_text(json.dumps(found))
    words = [
        f"--config={ROOT}/experiments/configs/pareto.py", f"--workdir={folder}",
        f"--output={tmp_path}/pareto", f"--config.data.path={dataset}",
        f"--config.finetune.data.path={reviews}", "--config.finetune.train.duration=1ep",
        "--config.budgets=('1s',)", "--config.seeds=(17,)", "--config.finetune_rates=(3e-4, 1e-3)",
    ]  # fmt: skip
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # the tests' own cache stays
    other = folder / comparison.Job("bert", "1s", 17).folder
    with workdir.locked(other):
        assert call(pareto, *words) == 0
    assert "it is left to that one" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "pareto.json").read_text())) == 1
    done = folder / "mosaicbert-1s-17" / workdir.RESULTS_FILE
    before = done.stat().st_mtime_ns

    assert call(pareto, *words) == 0
    assert done.stat().st_mtime_ns == before
    records = json.loads((tmp_path / "pareto.json").read_text())
    assert [(row["model"], row["seconds"], row["steps"]) for row in records] == [
        ("MosaicBERT", 1.0, [2]), ("BERT", 1.0, [4])
    ]  # fmt: skip
    assert all(0 < row["finetuned"][0] <= 1 and row["eval_loss"][0] > 4 for row in records)
    text = (tmp_path / "pareto.md").read_text()
    assert "| BERT | 1s | 1 | 4 |" in text
    assert "MosaicBERT 500.0 ms, BERT 250.0 ms" in text
    assert (tmp_path / "pareto.png").stat().st_size > 10_000

    assert call(pareto, *words, "--config.budgets=('1x',)") == 2
    assert "budgets='1x' is not a duration" in capsys.readouterr().err


def test_step_times_are_measured_once(dataset, tmp_path, monkeypatch):
    config = ablation_config.get_config().unlock()
    config.data.path = str(dataset)
    config.variants = {name: config.variants[name] for name in ("nothing", "packing")}
    monkeypatch.setattr(comparison, "_ROUNDS", 2)
    monkeypatch.setattr(comparison, "_ROUND_SECONDS", 0.1)
    found = comparison.step_seconds(config, tmp_path / "runs", ablation.prepare_variant)
    assert set(found.seconds) == {"nothing", "packing"}
    assert all(0 < seconds < 10 for seconds in found.seconds.values())
    monkeypatch.setattr(comparison, "median_step_seconds", None)
    assert comparison.step_seconds(config, tmp_path / "runs", ablation.prepare_variant) == found
    config.variants = {"packing": config.variants["packing"]}
    with pytest.raises(UserError, match="is of other variants: nothing, packing"):
        comparison.step_seconds(config, tmp_path / "runs", ablation.prepare_variant)


def test_each_ablation_differs_from_the_recipe_in_one_thing():
    config = ablation_config.get_config()
    recipe = config.variants["nothing"]
    for name, off in ablation_config.OFF.items():
        changed = workdir.differences(
            json.loads(recipe.to_json()), json.loads(config.variants[name].to_json())
        )
        assert len(changed) == len(off) == (name not in ("nothing", "masked-only last layer"))


@pytest.mark.one_end
def test_the_whole_last_layer_gives_the_same_loss():
    model, batch = small_model(), make_batch()
    found = ablation.whole_last_layer_sums(model, batch, None)
    np.testing.assert_allclose(found, MASKED_LM.sums(model, batch, None), rtol=1e-5)


def test_peers_get_the_same_labels_and_ratios_are_within_a_round():
    batch = {
        "tokens_BL": np.array([[5, 6, 7, 0], [8, 9, 0, 0]], np.int32),
        "segment_ids_BL": np.array([[1, 1, 1, 0], [1, 1, 0, 0]], np.int32),
        "positions_BP": np.array([[2, 0], [0, 0]], np.int32),
        "labels_BP": np.array([[17, 0], [18, 0]], np.int32),
        "weights_BP": np.array([[1, 0], [1, 0]], np.float32),
    }
    found = padded_to_longest(batch)
    np.testing.assert_array_equal(found["input_ids"], [[5, 6, 7], [8, 9, 0]])
    np.testing.assert_array_equal(found["attention_mask"], [[1, 1, 1], [1, 1, 0]])
    np.testing.assert_array_equal(found["labels"], [[-100, -100, 17], [18, -100, -100]])

    def one(ours, other):
        return {
            (OURS, "train", "real"): {"tokens": 100, "seconds": ours},
            (HF_BERT, "train", "real"): {"tokens": 60, "seconds": other},
        }

    assert ratios_to([one(1, 1), one(4, 2)], HF_BERT, "train", "real") == pytest.approx(
        [100 / 60, 25 / 30]
    )
