"""Numbers as people read them."""

import pytest

from mosaicbert_jax.reporting import formatting


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        (None, 3, "—"),
        (19638, 3, "19,638"),
        (15394.4, 3, "15,394"),
        (9999.7, 4, "10,000"),
        (3.84049, 4, "3.840"),
        (12.3456, 4, "12.35"),
        (0.36673, 5, "0.3667"),
        (0.0, 3, "0.00"),
        (-0.5, 3, "-0.50"),
        (0.000123, 3, "0.00012"),
    ],
)
def test_a_number_has_sensible_digits(value, digits, shown):
    assert formatting.number(value, digits) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "—"),
        (0.04, "0.0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (2841.3, "47 min 21 s"),
        (3 * 3600 + 240, "3 h 4 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_time_in_its_two_largest_units(seconds, shown):
    assert formatting.duration(seconds) == shown


def test_large_counts_and_money():
    assert formatting.large(999_999) == "999,999"
    assert formatting.large(20_000_417) == "20.00 million"
    assert formatting.large(33.5e9) == "33.50 billion"
    assert formatting.money(1234.5) == "$1,234.50"


@pytest.mark.parametrize(("value", "shown"), [(None, "—"), (1.0, "100%"), (0.366, "36.6%")])
def test_shares_in_percent(value, shown):
    assert formatting.share(value) == shown


def test_text_is_escaped_and_cannot_turn_around():
    assert (
        formatting.text("<a href='x'>&\u202e\n") == "&lt;a href=&#x27;x&#x27;&gt;&amp;\ufffd\ufffd"
    )
