"""A few hundred mutated inputs of each kind: accepted, or refused in one line."""

import contextlib
import io
import time

import pytest

from campaigns import fuzz
from mosaicbert_jax import UserError

pytestmark = pytest.mark.one_end


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Input that is accepted, and who reads it."""
    folder = tmp_path_factory.mktemp("fuzz") / "good"
    folder.mkdir()
    with contextlib.redirect_stdout(io.StringIO()):
        return folder, fuzz.good_input(folder)


def test_good_input_is_accepted(good, tmp_path):
    fuzz.try_targets(good[1], tmp_path)


def test_bad_input_is_refused_in_one_line(good, tmp_path):
    folder, targets = good
    found = {"words": fuzz.run_words(50, seed=0, good=folder, folder=tmp_path)}
    for target in targets:
        inputs = 10 if "report" in target.name else 30
        found[target.name] = fuzz.run_target(target, inputs, seed=0, folder=tmp_path)
    assert fuzz.failures(found) == []
    assert sum(map(len, found.values())) > 250
    for outcomes in found.values():
        assert any(what == fuzz.REFUSED for what, _, _ in outcomes)
    assert "**0 ended in anything" in fuzz.table(found, "command")


def raises(error):
    raise error


@pytest.mark.parametrize(
    ("use", "what"),
    [
        (lambda output: None, "accepted"),
        (lambda output: raises(UserError("no")), "refused"),
        (lambda output: raises(ValueError("x")), "ValueError in test_fuzz.py:"),
        (lambda output: raises(SystemExit(0)), "status 0 and 0 lines"),
        (lambda output: (output.write_text("a"), raises(UserError("no"))), "half-written output"),
        (lambda output: time.sleep(5), "no end in 1 s"),
    ],
)
def test_what_is_told_of_an_input(tmp_path, monkeypatch, use, what):
    monkeypatch.setattr(fuzz, "_SECONDS", 1)
    output = tmp_path / "output"
    assert fuzz.outcome(lambda: use(output), output)[0].startswith(what)
