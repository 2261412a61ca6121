"""What happens after a step is a list of actions, in their order."""

import pytest

from configs import tiny
from mosaicbert_jax.errors import Interrupted
from mosaicbert_jax.pretraining.pretraining import Pretraining
from mosaicbert_jax.storage.checkpoint_files import steps_of
from mosaicbert_jax.training import loop


def prepared(folder, dataset, duration="3ba"):
    config = tiny.get_config()
    config.data.path, config.train.duration = str(dataset), duration
    config.checkpoint.every, config.model.num_hidden_layers = "2ba", 1
    return Pretraining.prepare(config, folder)


def test_actions_see_every_step(dataset, tmp_path):
    seen = []

    def note(attempt, point):
        seen.append((point.before.step, point.progress.step, point.finished, point.stopping))

    loop.train(prepared(tmp_path / "run", dataset), [note])
    assert seen == [(0, 1, False, False), (1, 2, False, False), (2, 3, True, False)]
    # Nothing else was to be done, so nothing was saved.
    assert steps_of(tmp_path / "run" / "checkpoints") == []


def test_saving_needs_no_evaluation(dataset, tmp_path):
    evaluation = loop.train(prepared(tmp_path / "run", dataset), [loop.save_when_due])
    assert evaluation is None
    assert sorted(steps_of(tmp_path / "run" / "checkpoints")) == [2, 3]


def test_an_action_may_end_the_run(dataset, tmp_path):
    def stop(attempt, point):
        loop.save_when_due(attempt, point)
        if point.progress.step == 2:
            raise Interrupted("enough")

    run = prepared(tmp_path / "run", dataset)
    with pytest.raises(Interrupted, match="enough"):
        loop.train(run, [stop])
    assert steps_of(tmp_path / "run" / "checkpoints") == [2]
