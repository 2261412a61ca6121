"""The race: its table, its rules, and an entry's way from config to log."""

import dataclasses
import json

import pytest

from benchmarks.race import __main__ as race
from configs import tiny
from mosaicbert_jax.data.dataset import TokenDataset
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.training import loop
from tests.training.test_pretrain import status_of


@pytest.fixture
def track(tmp_path, monkeypatch):
    """The track mini with logs of its own."""
    monkeypatch.setattr(race, "_LOGS", tmp_path / "logs")
    (tmp_path / "logs" / "mini").mkdir(parents=True)
    return race.MINI


def write_log(track, name, losses, tokens, steps=1000):
    rows = [
        {"seed": 17 + i, "loss": loss, "masked_accuracy": 0.2, "tokens": tokens, "steps": steps,
         "parameters": 800_000}
        for i, loss in enumerate(losses)
    ]  # fmt: skip
    path = track.logs / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_table_has_who_reaches_the_target_first(track):
    assert race.table(track) == ["No entry has raced on this track yet."]
    write_log(track, "mosaicbert", (4.0, 4.1, 4.2), 5_000_000)
    write_log(track, "faster", (4.2, 4.0, 4.05), 2_000_000, steps=400)
    write_log(track, "worse", (4.0, 4.2, 4.2), 1_000_000)
    times = {"machine": "a CPU", "date": "today", "seconds": {"mosaicbert": 0.02, "faster": 0.03}}
    (track.logs / "step_seconds.json").write_text(json.dumps(times))
    lines = race.table(track)
    assert lines[0] == "Target: 4.100, the mean of `mosaicbert`."
    entries = [line.split("](")[0].removeprefix("| [") for line in lines if "](" in line]
    assert entries == ["faster", "mosaicbert", "worse"]
    assert "| 2,000,000 | 4.083 (4.200, 4.000, 4.050) | 0.200 | yes | 0.40 | 0.60 |" in lines[4]
    assert "| no | 0.20 | not measured |" in lines[6]


def test_an_entry_runs_and_is_judged_on_the_same_masks(track, dataset, tmp_path, monkeypatch):
    def configured(name, seed, data):
        config = tiny.get_config()
        config.seed, config.data.path, config.train.duration = seed, data, "3ba"
        config.model.num_hidden_layers = 1
        return config

    monkeypatch.setattr(race, "configured", configured)
    small = dataclasses.replace(track, parameters=20_000)
    race.race("mosaicbert", 17, small, str(dataset), tmp_path)
    (row,) = track.results()["mosaicbert"]
    assert (row["seed"], row["steps"], row["parameters"]) == (17, 3, 18_112)
    run = race.Pretraining.prepare(configured("", 17, str(dataset)), tmp_path / "mosaicbert-17")
    assert race.judge(run, small).loss == row["loss"]
    assert race.judge(run, dataclasses.replace(small, evaluation_seed=1)).loss != row["loss"]
    monkeypatch.setattr(loop, "train", pytest.fail)
    race.race("mosaicbert", 17, small, str(dataset), tmp_path)  # it is in the log already
    with pytest.raises(UserError, match="at most 18,000 may race"):
        race.race(
            "mosaicbert", 18, dataclasses.replace(track, parameters=18_000), str(dataset), tmp_path
        )


def test_other_data_and_unknown_entries_are_refused(track, dataset, monkeypatch, capsys):
    for words, message in (
        (["--entry", "mosaicbert", "--data", str(dataset)], "is not the track's data"),
        (["--entry", "mosaicbert"], "give --data DIR"),
    ):
        monkeypatch.setattr("sys.argv", ["race", *words])
        assert status_of(race.main) == 2
        assert message in capsys.readouterr().err
    digest = TokenDataset(dataset).metadata.digest
    monkeypatch.setitem(race.TRACKS, "mini", dataclasses.replace(track, digest=digest))
    monkeypatch.setattr("sys.argv", ["race", "--entry", "none", "--data", str(dataset)])
    assert status_of(race.main) == 2
    assert "--entry none: there are bert, " in capsys.readouterr().err


def test_the_committed_table_is_that_of_the_logs():
    text = race._README.read_text()
    for track in race.TRACKS.values():
        begin, end = f"<!-- {track.name} -->\n", f"\n<!-- end of {track.name} -->"
        assert text.partition(begin)[2].partition(end)[0] == "\n".join(race.table(track))
