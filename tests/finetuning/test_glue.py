"""GLUE on small files in its own layout: what is read, the stages, the means, the submission."""

import collections
import itertools
import json
import pathlib

import jax.numpy as jnp
import pytest

from mosaicbert_jax import UserError
from mosaicbert_jax.data.pipeline import Position
from mosaicbert_jax.finetuning import glue
from mosaicbert_jax.finetuning.configuration import glue as glue_config
from mosaicbert_jax.finetuning.suite import origin_of, suite_results, table
from mosaicbert_jax.storage.opening import load_run
from mosaicbert_jax.training import checkpoints
from mosaicbert_jax.training.durations import Progress
from mosaicbert_jax.training.recovery import Health
from mosaicbert_jax.training.step import TrainState
from tests.finetuning.cases import finetune, metric_rows, params_of, pretrained
from tests.finetuning.glue_files import DEV, TEST, TRAIN, real_sentences, write_glue
from tests.pretraining.test_data_settings import interrupted_at

NAMES = tuple(glue.TASKS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_glue(tmp_path_factory.mktemp("glue") / "GLUE")


@pytest.mark.parametrize("name", NAMES)
def test_each_task_is_read_from_its_own_columns(folder, name):
    task, known = glue.read_glue_task(name, str(folder)), set(real_sentences())
    assert len(task.train) == TRAIN
    assert {part: len(examples) for part, examples in task.dev.items()} == dict.fromkeys(
        glue.TASKS[name].dev, DEV
    )
    examples = [*task.train, *itertools.chain(*task.dev.values())]
    numbers = numbers_of(name, folder)
    if name == "stsb":
        assert 0 <= min(numbers) < 1.1 < 3.9 < max(numbers) <= 5
    else:
        assert set(numbers) == set(range(len(task.target.labels)))
    assert {example.first for example in examples} <= known
    is_single = name in ("cola", "sst2")
    assert all((example.second is None) == is_single for example in examples)
    if not is_single:
        assert {example.second.lstrip('"') for example in examples} <= known
    for part in glue.TASKS[name].dev:
        indices, test = glue.read_test_set(name, str(folder), part)
        assert indices == [str(i) for i in range(TEST)]
        assert {example.first for example in test} <= known
        assert all(example.label is None for example in test)


def test_the_positive_class_is_the_second(folder):
    """F1 is of paraphrases and duplicates, which the files write as 1."""
    for name, positive in (("mrpc", "1"), ("qqp", "1")):
        assert glue.TASKS[name].target.labels[1] == positive


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        ("rte", "RTE/dev.tsv", "not_entailment\n", "perhaps\n", r"dev.tsv:2: unknown label 'perh"),
        ("stsb", "STS-B/dev.tsv", "0.000\n", "5.200\n", r"dev.tsv:2: the label 5.200 is outside"),
        ("mrpc", "MRPC/train.tsv", "#2 String", "two", r"train.tsv:2: no column '#2 String'"),
        ("qnli", "QNLI/train.tsv", "0\t", "0\t\t", r"train.tsv:2: 5 columns, and 4 are expected"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_its_line(tmp_path, name, file, old, new, message):
    path = write_glue(tmp_path) / file
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        numbers_of(name, tmp_path)


def test_a_test_set_without_a_column_is_refused(tmp_path):
    path = write_glue(tmp_path) / "CoLA" / "test.tsv"
    path.write_text(path.read_text().replace("sentence", "text", 1))
    with pytest.raises(UserError, match=r"test.tsv:2: no column 'sentence'"):
        glue.read_test_set("cola", str(tmp_path), "")


def numbers_of(name, folder):
    task = glue.read_glue_task(name, str(folder))
    examples = itertools.chain(task.train, *task.dev.values())
    return [task.target.number(example.label, example.place) for example in examples]


def test_the_recipe_is_the_published_one():
    recipes = glue_config().recipes
    found = {
        name: (r.epochs, r.learning_rate, r.weight_decay, r.batch_size, len(r.seeds), r.starts_from)
        for name, r in recipes.items()
    }
    assert found == {
        "mnli": (3, 5e-5, 5e-6, 48, 1, ""),
        "qqp": (5, 3e-5, 3e-6, 16, 1, ""),
        "qnli": (10, 1e-5, 1e-6, 16, 1, ""),
        "sst2": (3, 3e-5, 3e-6, 16, 3, ""),
        "cola": (10, 5e-5, 5e-6, 32, 4, ""),
        "rte": (3, 1e-5, 1e-5, 16, 5, "mnli"),
        "mrpc": (10, 8e-5, 8e-6, 32, 5, "mnli"),
        "stsb": (10, 3e-5, 3e-6, 32, 5, "mnli"),
    }
    assert recipes.rte.seeds == (19, 8364, 717, 10536, 90166)
    assert recipes.stsb.dtype == "float32"


def test_from_tensorflow_datasets(folder, tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.text import glue as tfds_glue

    class Glue(tfds_glue.Glue, skip_registration=True):
        code_path = None  # else its checksums are looked for beside it

    manager = tfds.download.DownloadManager
    monkeypatch.setattr(manager, "download_and_extract", lambda self, url: str(folder))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for name in ("rte", "stsb", "mnli"):
        builder = Glue(config=name, data_dir=tmp_path, file_format="array_record")
        builder.download_and_prepare()
        found, expected = (glue.read_glue_task(name, place) for place in ("tfds:glue", str(folder)))

        def told(examples):
            return collections.Counter((e.first, e.second, _short(e.label)) for e in examples)

        assert told(found.train) == told(expected.train)
        for part, examples in expected.dev.items():
            assert told(found.dev[part]) == told(examples)
            indices, test = glue.read_test_set(name, "tfds:glue", part)
            assert sorted(indices) == [str(i) for i in range(TEST)]
            assert told(test) == told(glue.read_test_set(name, str(folder), part)[1])


def _short(label: str | None) -> str | None:
    """A number of float32 and of text alike."""
    try:
        return f"{float(label):.2f}"
    except (ValueError, TypeError):
        return label


def fast(name: str, seeds: str = "(19,)") -> tuple[str, ...]:
    # Of one batch size, and of sentences that fill their rows: one shape, compiled in seconds; and
    # with one optimizer, so that tasks of as many classes share what is compiled.
    return tuple(
        f"recipes.{name}.{setting}"
        for setting in ("epochs=1", f"seeds={seeds}", "batch_size=8", "learning_rate=3e-5",
                        "weight_decay=3e-6")
    )  # fmt: skip


QUICK = (
    "data.max_seq_len=8", "log.every=1", "checkpoint.every=2ba", "eval.batch_size=8",
    *itertools.chain(*(fast(name) for name in NAMES if name != "rte")),
)  # fmt: skip
TWO_SEEDS = fast("rte", "(19, 717)")


@pytest.mark.one_end
def test_a_whole_suite(folder, dataset, tmp_path, capsys):
    """All eight tasks, interrupted in the first one and in one of the last; then what it left.

    One test, as several would run the suite once in each of pytest's workers.
    """
    origin, workdir = pretrained(tmp_path / "origin", dataset), tmp_path / "suite"

    def run(*overrides, workdir=workdir, rte=TWO_SEEDS):
        return finetune(workdir, origin, folder, *QUICK, *rte, *overrides, config="glue")

    for batches in (2, 18):
        with interrupted_at(batches):
            assert run() == 130
    done = {path: path.stat().st_mtime_ns for path in workdir.glob("*/*/results.json")}
    assert len(done) >= 2
    assert run() == 0
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())  # not done again
    stages_and_means(workdir)
    submission(workdir)
    other_settings_and_tasks_are_refused(run, capsys)
    side_by_side_ends_as_one_by_one(run, workdir, tmp_path / "side by side")


def stages_and_means(workdir):
    results = json.loads((workdir / "results.json").read_text())
    assert list(results["tasks"]) == list(NAMES)
    assert results["complete"]
    scores = {name: task["seeds"] for name, task in results["tasks"].items()}
    assert set(scores["rte"]) == {"19", "717"}
    expected = {
        "mnli": ("accuracy_matched", "accuracy_mismatched"), "qqp": ("accuracy", "f1"),
        "qnli": ("accuracy",), "sst2": ("accuracy",), "cola": ("matthews",), "rte": ("accuracy",),
        "mrpc": ("accuracy", "f1"), "stsb": ("spearman",),
    }  # fmt: skip
    means = []
    for name, keys in expected.items():
        values = [runs[key] for runs in scores[name].values() for key in keys]
        means.append(sum(values) / len(values))
        assert results["tasks"][name]["score"] == pytest.approx(means[-1])
    assert results["mean"] == pytest.approx(sum(means) / 8)
    assert "pearson" in scores["stsb"]["19"]

    for name in NAMES:
        for seed in scores[name]:
            config = json.loads((workdir / name / seed / "config.json").read_text())["config"]
            staged = name in ("rte", "mrpc", "stsb")
            assert config["init_from"].endswith("mnli/19" if staged else "origin")
            assert config["seed"] == int(seed)
            steps = [row["step"] for row in metric_rows(workdir / name / seed) if "loss" in row]
            assert steps == list(range(1, len(steps) + 1))  # none twice, none left out
            kept = (workdir / name / seed / "checkpoints").exists()
            assert kept == (name == "mnli")  # what others start from
    text = table(results)
    assert [line.split()[0] for line in text.splitlines()] == ["task", *NAMES, "mean"]
    assert text.splitlines()[-1].endswith("GLUE")


def side_by_side_ends_as_one_by_one(run, workdir, folder):
    assert run("tasks=mnli,rte", "processes=2", workdir=folder, rte=fast("rte")) == 0
    found, expected = (json.loads((x / "results.json").read_text()) for x in (folder, workdir))
    for name in ("mnli", "rte"):
        scores = found["tasks"][name]["seeds"]
        assert scores == {"19": expected["tasks"][name]["seeds"]["19"]}
    for name in ("MNLI-m", "MNLI-mm"):
        file = pathlib.Path("submission") / f"{name}.tsv"
        assert (folder / file).read_bytes() == (workdir / file).read_bytes()
    assert f"parameters from {folder}/mnli/19" in (folder / "rte" / "19.log").read_text()


def submission(workdir):
    """As the leaderboard wants it."""
    files = {path.name: path.read_text() for path in (workdir / "submission").iterdir()}
    assert set(files) == {
        "CoLA.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "MRPC.tsv", "QNLI.tsv", "QQP.tsv", "RTE.tsv",
        "SST-2.tsv", "STS-B.tsv",
    }  # fmt: skip
    allowed = {"MNLI": ("entailment", "neutral", "contradiction")}
    allowed |= dict.fromkeys(("QNLI", "RTE"), ("entailment", "not_entailment"))
    for name, text in files.items():
        header, *rows = [line.split("\t") for line in text.splitlines()]
        assert header == ["index", "prediction"]
        assert [index for index, _ in rows] == [str(i) for i in range(TEST)]
        for _, label in rows:
            if name == "STS-B.tsv":
                assert 0 <= float(label) <= 5
                assert len(label) == 5
            else:
                assert label in allowed.get(name[:-4].split("-")[0], ("0", "1"))
    assert glue.submission_text("stsb", ["7"], ["5.3"]) == "index\tprediction\n7\t5.000\n"


def other_settings_and_tasks_are_refused(run, capsys):
    capsys.readouterr()
    assert run("recipes.cola.epochs=2") == 2
    assert "recipes.cola.epochs: 1, now 2" in capsys.readouterr().err
    assert run("tasks=rte,wnli") == 2
    assert "tasks='rte,wnli'" in capsys.readouterr().err
    assert run("recipes.rte.seeds=(3, 717)") == 2  # which adds to those given before
    assert "recipes.rte.seeds=(19, 717, 3, 717)" in capsys.readouterr().err
    assert run("tasks=cola,rte") == 0  # done already: the table alone
    assert "mean" in capsys.readouterr().out


@pytest.mark.one_end
def test_quality_against_pretraining_time(folder, dataset, tmp_path, capsys):
    """One suite for each checkpoint of a run, in the order given."""
    origin = pretrained(tmp_path / "origin", dataset)
    params = params_of(load_run(origin))
    with checkpoints.Checkpoints(origin, keep=2) as store:
        for step in (1, 2):
            state = TrainState(params, params, jnp.int32(step))
            progress = Progress(step=step, tokens=100 * step)
            store.save(checkpoints.Snapshot(state, progress, Position(), Health()), {})
    settings = (*QUICK, "tasks=cola", "init_from_steps=(1, 2)")
    assert finetune(tmp_path / "curve", origin, folder, *settings, config="glue") == 0
    found = json.loads((tmp_path / "curve" / "results.json").read_text())["steps"]
    assert [row["step"] for row in found] == [1, 2]
    assert [row["tokens"] for row in found] == [100, 200]
    for row in found:
        suite = tmp_path / "curve" / f"step-{row['step']}"
        config = json.loads((suite / "cola" / "19" / "config.json").read_text())["config"]
        assert config["init_from_step"] == row["step"]
        assert json.loads((suite / "results.json").read_text())["mean"] == row["mean"]
    settings = (*settings, "init_from_step=1")
    assert finetune(tmp_path / "other", origin, folder, *settings, config="glue") == 2
    assert "are both set" in capsys.readouterr().err


def test_means_over_seeds_and_metrics_and_then_over_tasks(tmp_path):
    """Of runs that are done; a task whose seeds are not all done has no score yet."""
    config = glue_config()
    config.recipes.mrpc.seeds = (19, 717)

    def done(name, seed, **scores):
        (tmp_path / name / str(seed)).mkdir(parents=True)
        text = json.dumps({"scores": {"loss": 9.0, **scores}})
        (tmp_path / name / str(seed) / "results.json").write_text(text)

    done("mnli", 19, accuracy_matched=0.5, accuracy_mismatched=0.7)
    done("mrpc", 19, accuracy=0.6, f1=0.8)
    done("mrpc", 717, accuracy=0.8, f1=1.0)
    done("rte", 19, accuracy=1.0)
    results = suite_results(config, tmp_path)
    assert {name: task["score"] for name, task in results["tasks"].items()} == {
        "mnli": pytest.approx(0.6), "mrpc": pytest.approx(0.8)
    }  # fmt: skip
    assert results["mean"] == pytest.approx(0.7)
    assert not results["complete"]
    assert table(results).endswith("2 of 8 tasks")


def test_what_a_task_starts_from(tmp_path, capsys):
    config = glue_config()
    config.init_from, config.init_from_step = "pretrained", 7
    after_mnli = str(tmp_path / "mnli" / "19"), None
    assert origin_of(config, tmp_path, "rte", ["mnli", "rte"]) == after_mnli
    assert origin_of(config, tmp_path, "qqp", ["mnli", "qqp"]) == ("pretrained", 7)
    assert origin_of(config, tmp_path, "rte", ["rte"]) == ("pretrained", 7)
    assert "rte would start from mnli" in capsys.readouterr().out
    (tmp_path / "mnli" / "19").mkdir(parents=True)
    (tmp_path / "mnli" / "19" / "results.json").write_text("{}")
    assert origin_of(config, tmp_path, "rte", ["rte"]) == after_mnli  # of an earlier call
