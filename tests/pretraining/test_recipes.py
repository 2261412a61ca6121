"""What a recipe may change besides sizes: schedules, masking, optimizers, averages, a teacher."""

import contextlib
import dataclasses
import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import tiny
from mosaicbert_jax import UserError
from mosaicbert_jax.conversion import export_run
from mosaicbert_jax.data.pipeline import Position
from mosaicbert_jax.planning import planner
from mosaicbert_jax.planning.training_step import abstract_state
from mosaicbert_jax.pretraining.pretraining import Pretraining
from mosaicbert_jax.storage import checkpoint_files
from mosaicbert_jax.storage import workdir as workdirs
from mosaicbert_jax.storage.opening import load_run, open_model
from mosaicbert_jax.training import loop, sharding
from mosaicbert_jax.training.flops import model_flops_per_token


def prepared(workdir, dataset, **settings) -> Pretraining:
    """A run of 16 steps of one layer, without dropout."""
    config = tiny.get_config()
    config.data.path, config.train.duration = str(dataset), "16ba"
    config.eval.every, config.checkpoint.every = "16ba", "2ba"
    config.model.num_hidden_layers, config.model.hidden_dropout_prob = 1, 0.0
    config.update_from_flattened_dict(settings)
    return Pretraining.prepare(config, workdir)


def arrays_of(workdir, step):
    """Every array of a checkpoint, as bytes, by its name."""
    folder, found = (workdir / "checkpoints" / str(step)).absolute(), {}
    with ocp.StandardCheckpointer() as checkpointer:
        for part in ("model", "optimizer", "average"):
            if (folder / part).exists():
                leaves = jax.tree_util.tree_leaves_with_path(checkpointer.restore(folder / part))
                found |= {
                    part + jax.tree_util.keystr(path): np.asarray(leaf).tobytes()
                    for path, leaf in leaves
                }
    return found


def rows(workdir, key):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if key in row]


@pytest.fixture(scope="module")
def stable(dataset, tmp_path_factory):
    """A run with a warmup over 2 steps, 6 at the peak, and a decay over 8."""
    workdir = tmp_path_factory.mktemp("runs") / "stable"
    loop.train(
        prepared(
            workdir,
            dataset,
            **{
                "optimizer.schedule": "wsd",
                "optimizer.warmup": 0.125,
                "optimizer.decay": 0.5,
                "checkpoint.keep": 1,
                "checkpoint.keep_stable": 2,
            },
        )
    )
    return workdir


class KilledError(Exception):
    """Raised where a process would be."""


def killed_after(step):
    def kill(attempt, point):
        if point.progress.step == step:
            attempt.session.store.wait()
            raise KilledError

    return kill


def test_everything_at_once_resumes_with_the_same_bits(stable, dataset, tmp_path):
    settings = {
        "optimizer.name": "muon",
        "optimizer.ema_decay": 0.9,
        "optimizer.clip_norm": 0.5,
        "optimizer.schedule": "wsd",
        "data.masking_rate": (0.4, 0.2),
        "data.masking_unit": "span",
        "train.first_batch_tokens": 512,
        "train.batch_warmup": 0.6,
        "model.num_hidden_layers": 2,
        "model.hidden_dropout_prob": 0.1,
        "model.narrow_from_layer": 0,
        "distill.teacher": str(stable),
        "distill.temperature": 2.0,
    }
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    loop.train(prepared(whole, dataset, **settings))
    with pytest.raises(KilledError):
        loop.train(prepared(killed, dataset, **settings), (*loop.ACTIONS, killed_after(9)))
    loop.train(prepared(killed, dataset, **settings))
    expected = arrays_of(whole, 16)
    assert {name.partition("[")[0] for name in expected} == {"model", "optimizer", "average"}
    assert arrays_of(killed, 16) == expected
    tokens = [row["tokens"] for row in rows(whole, "loss")]
    grown = np.diff(tokens, prepend=0)
    assert max(grown[:9]) < 520 < min(grown[10:])


def test_a_decay_from_a_stable_checkpoint_is_the_decay_of_the_run(stable, dataset, tmp_path):
    assert sorted(checkpoint_files.steps_of(stable / "checkpoints")) == [6, 8, 16]
    decay = {
        "optimizer.schedule": "decay",
        "train.duration": "8ba",
        "init_from": str(stable),
    }
    loop.train(prepared(tmp_path / "decay", dataset, **decay))
    assert arrays_of(tmp_path / "decay", 8) == arrays_of(stable, 16)
    losses = [row["loss"] for row in rows(stable, "loss")]
    assert [row["loss"] for row in rows(tmp_path / "decay", "loss")] == losses[8:]
    # From another checkpoint, with other data in front of it.
    other = prepared(tmp_path / "other", dataset, **decay, init_from_step=6, seed=3)
    with jax.set_mesh(other.mesh):
        start = loop.fresh_start(other)
    assert start.position == Position()
    assert int(jax.tree.leaves(start.state.optimizer_state)[0]) == 6  # Adam's count


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_from_step": 16}, r"no checkpoint of step 16 from which .* those of \[6, 8\]"),
        ({"optimizer.learning_rate": 1.0}, "learning_rate is 0.003 there and 1.0 here"),
        ({"optimizer.name": "muon"}, "optimizer.name is adamw there and muon here"),
    ],
)
def test_where_no_decay_can_start(settings, message, stable, dataset, tmp_path):
    start = {"optimizer.schedule": "decay", "init_from": str(stable)}
    run = prepared(tmp_path / "run", dataset, **start, **settings)
    with jax.set_mesh(run.mesh), pytest.raises(UserError, match=message):
        loop.fresh_start(run)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer.name": "adam"}, "choose adamw, stable_adamw, muon"),
        ({"optimizer.schedule": "step"}, "choose linear, cosine, wsd, constant, decay"),
        ({"optimizer.schedule": "decay"}, "give it with --config.init_from"),
        (
            {"optimizer.schedule": "wsd", "optimizer.decay": 0.95},
            "more than the whole run together",
        ),
        ({"optimizer.ema_decay": 1.0}, "optimizer.ema_decay=1.0 must be above 0 and below 1"),
        ({"data.masking_rate": (0.3, 0.0)}, "a pair of such shares"),
        ({"data.masking_rate": (0.3,)}, "a pair of such shares"),
        ({"data.masking_unit": "sentence"}, "choose token, word, span"),
        ({"train.first_batch_tokens": 256}, "set both"),
        ({"train.batch_warmup": 0.5}, "set both"),
        ({"train.first_batch_tokens": 384, "train.batch_warmup": 0.5}, "a multiple"),
        ({"distill.weight": 1.5}, "distill.weight=1.5 must be"),
        ({"distill.teacher": "nowhere"}, "nowhere"),
    ],
)
def test_settings_that_cannot_be(settings, message, dataset, tmp_path):
    with pytest.raises(UserError, match=message):
        prepared(tmp_path / "run", dataset, **settings)


NEWER = {
    "optimizer": (
        "name", "muon_beta", "clip_norm", "ema_decay", "schedule", "decay", "decay_form",
    ),
    "train": ("first_batch_tokens", "batch_warmup"),
    "data": ("masking_unit",),
}  # fmt: skip


@pytest.mark.parametrize("whole_words", [False, True])
def test_a_run_from_before_these_settings_resumes(whole_words, dataset, tmp_path):
    unit = "word" if whole_words else "token"
    record = prepared(tmp_path, dataset, **{"data.masking_unit": unit}).record
    old = json.loads(json.dumps(record))
    for group, keys in NEWER.items():
        for key in keys:
            del old["config"][group][key]
    del old["config"]["distill"]
    old["config"]["data"]["whole_words"] = whole_words
    (tmp_path / "config.json").write_text(json.dumps(old))
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    assert workdirs.claim(tmp_path, record, {}) == []
    other = prepared(tmp_path, dataset, **{"data.masking_unit": "span"}).record
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(UserError, match=f"data.masking_unit: '{unit}', now 'span'"):
        workdirs.claim(tmp_path, other, {})


def test_the_average_is_what_is_evaluated_and_exported(dataset, tmp_path):
    run = prepared(tmp_path / "run", dataset, **{"optimizer.ema_decay": 0.8})
    found = loop.train(run)
    folder = tmp_path / "run" / "checkpoints" / "16"
    abstract = run.abstract_state().params
    parts = {
        part: checkpoint_files.read_part(tmp_path / "run", part, abstract)
        for part in ("model", "average")
    }
    assert folder.exists()
    with jax.set_mesh(run.mesh):
        assert run.evaluate(parts["average"]) == found
        assert run.evaluate(parts["model"]) != found
    exported = load_run(tmp_path / "run").head.bias[...]
    np.testing.assert_array_equal(exported, parts["average"]["head"]["bias"])
    with pytest.raises(UserError, match=r"optimizer\.ema_decay: 0\.8, now None"):
        loop.train(prepared(tmp_path / "run", dataset), extend=True)


def test_the_model_card_tells_the_recipe(stable, dataset, tmp_path):
    settings = {
        "optimizer.name": "muon", "optimizer.ema_decay": 0.9, "optimizer.clip_norm": 0.5,
        "data.masking_rate": (0.4, 0.2), "data.masking_unit": "span", "train.duration": "1ba",
        "distill.teacher": str(stable),
    }  # fmt: skip
    loop.train(prepared(tmp_path / "run", dataset, **settings))
    cards = {}
    for name, run in (("taught", tmp_path / "run"), ("stable", stable)):
        export_run(run, tmp_path / name)
        cards[name] = (tmp_path / name / "README.md").read_text()
    for words in (
        "40% changing to 20% of the tokens, by span",
        "Muon for dense layers and AdamW, learning rate 0.003",
        "clipped at a norm of 0.5; the weights are their moving average with decay 0.9",
        "with a weight of 0.5 another model's guesses",
    ):
        assert words in cards["taught"]
    assert "constant, with 1-sqrt decay to 2% of the peak over the last 50%" in cards["stable"]


def test_the_batch_grows_in_multiples_of_the_first(dataset, tmp_path):
    growing = {"train.first_batch_tokens": 256, "train.batch_warmup": 0.75}
    run = prepared(tmp_path / "run", dataset, **growing)
    assert [run.batch_rows(share) for share in (0, 0.2, 0.25, 0.5, 0.7, 0.75, 1)] == [
        2, 2, 4, 6, 6, 8, 8,
    ]  # fmt: skip
    with contextlib.closing(run.batches(Position(), 2)) as stream:
        assert next(stream).arrays["tokens_BL"].shape == (2, 128)


def test_the_masking_rate_falls_over_the_run(dataset, tmp_path):
    run = prepared(tmp_path / "run", dataset, **{"data.masking_rate": (0.4, 0.1)})
    with contextlib.closing(run.batches(Position())) as stream:
        batch = next(stream)
    predicted = {share: run.arrays(batch, share)["weights_BP"].sum() for share in (0, 0.5, 1)}
    assert predicted[0] == batch.arrays["weights_BP"].sum()
    assert predicted[0.5] / predicted[0] == pytest.approx(0.25 / 0.4, abs=0.08)
    assert predicted[1] / predicted[0] == pytest.approx(0.1 / 0.4, abs=0.08)
    plain = prepared(tmp_path / "plain", dataset)
    with contextlib.closing(plain.batches(Position())) as stream:
        assert next(stream).draws_BP is None


@pytest.mark.parametrize("place", ["run", "folder"])
def test_a_model_agrees_with_itself_as_its_teacher(place, stable, dataset, tmp_path):
    """From the teacher's own weights, the divergence is 0 at the first step; divided, too."""
    teacher = stable
    if place == "folder":
        teacher = tmp_path / "exported"
        export_run(stable, teacher)
    settings = {
        "init_from": str(stable),
        "distill.teacher": str(teacher),
        "distill.weight": 0.25,
        "train.duration": "1ba",
        "train.microbatch_tokens": 256,
        "mesh.fsdp": 2 if place == "folder" else 1,
    }
    run = prepared(tmp_path / "run", dataset, **settings)
    loop.train(run)
    plain = prepared(tmp_path / "plain", dataset, **settings | {"distill.teacher": None})
    loop.train(plain)
    (taught,), (untaught,) = (rows(tmp_path / name, "loss") for name in ("run", "plain"))
    assert taught["loss"] == pytest.approx(0.75 * untaught["loss"], rel=1e-5)
    assert run.flops_per_token == pytest.approx(4 / 3 * plain.flops_per_token)


def test_a_teacher_has_the_same_tokenizer_and_predicts_tokens(stable, corpus, tmp_path):
    from mosaicbert_jax.preparation.preparation import PrepareOptions, prepare

    other = tmp_path / "other"
    prepare(PrepareOptions(inputs=(str(corpus),), output=str(other), vocab_size=128), print)
    with pytest.raises(UserError, match=r"distill\.teacher=.* with another tokenizer"):
        prepared(tmp_path / "run", other, **{"distill.teacher": str(stable)})


def test_optimizer_state_is_divided_as_the_parameters(dataset, tmp_path):
    run = prepared(tmp_path / "run", dataset, **{"optimizer.name": "muon", "mesh.fsdp": 2})
    state = run.abstract_state()
    kernel = state.params["bert"]["layers"][0]["attention"]["qkv"]["kernel"]
    momenta = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.optimizer_state)
        if "qkv" in jax.tree_util.keystr(path) and leaf.shape == kernel.shape
    ]
    assert [leaf.sharding for leaf in momenta] == [kernel.sharding]  # one, where Adam has two
    assert kernel.sharding.spec[0] == ("fsdp", "tensor")


def test_a_plan_counts_the_recipe(stable, dataset, tmp_path):
    config = prepared(tmp_path / "run", dataset).config
    model = open_model(stable).config

    def size(recipe):
        state = abstract_state(model, sharding.make_mesh(), recipe)
        return sum(leaf.size for leaf in jax.tree.leaves(state))

    adamw = size(planner._recipe(config, model))
    config.optimizer.ema_decay = 0.9
    averaged = size(planner._recipe(config, model))
    config.optimizer.name = "muon"
    assert averaged == pytest.approx(adamw * 4 / 3, rel=1e-3)
    assert size(planner._recipe(config, model)) < averaged
    config.distill.teacher, config.data.masking_rate = str(stable), (0.4, 0.2)
    taught = dataclasses.asdict(planner._recipe(config, model))
    assert (taught["masking_rate"], taught["teacher"]["hidden_size"]) == (0.4, 32)
    expected = 4 / 3 * model_flops_per_token(model, sequence_length=128, masking_rate=0.3)
    assert planner._token_flops(config, model, 128) == pytest.approx(expected)
