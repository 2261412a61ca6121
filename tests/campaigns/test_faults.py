"""A part of the fault campaign: runs that are killed, damaged, starved end with the same bits."""

import collections
import random

import pytest

from campaigns import faults
from campaigns.fault_worker import Fault

pytestmark = pytest.mark.one_end


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    scenarios = (faults.PLAIN, faults.Scenario("two bad batches", poisoned=(7, 15)))
    made = faults.Campaign(tmp_path_factory.mktemp("faults"), scenarios)
    made.prepare()
    return made


def test_no_fault_ends_wrongly(made, tmp_path):
    disks = [tmp_path / "0", tmp_path / "1"]
    for disk in disks:
        disk.mkdir()
    outcomes = faults.campaign(made, 9, seed=3, disks=disks)
    assert [outcome for outcome in outcomes if outcome.found == faults.WRONG] == []
    assert len(outcomes) >= 9
    kinds = collections.Counter(outcome.kind for outcome in outcomes)
    assert len(kinds) >= 4
    table = faults.table(outcomes, "command")
    assert "**0 ended wrongly**" in table


def test_other_bits_and_errors_are_found(made, tmp_path, monkeypatch):
    """What the campaign would say if nothing were well."""
    monkeypatch.setitem(made.expected, "plain", ["others"])
    (tmp_path / "0").mkdir()
    plain = [number for number in range(6) if _scenario(made, number) == "plain"]
    outcomes = made.chain(plain[0], 1, 3, tmp_path / "0")
    assert [(one.found, one.told) for one in outcomes] == [
        (faults.WRONG, "the run ended with other bits")
    ]
    broken = faults.Scenario("broken", settings=("recovery.spike=-1.0",))
    status, told = made.start(broken, tmp_path / "run", tmp_path / "none", Fault())
    assert (status, told.split(":")[0]) == (2, "error")


def _scenario(made, number) -> str:
    rng = random.Random(f"3 {number}")
    return rng.choices(made.scenarios, weights=(4, 1))[0].name
