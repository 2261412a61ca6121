"""docs/config.md has every config key, and is what the code makes it."""

import pytest
from ml_collections import ConfigDict

from docs import config_reference as reference
from mosaicbert_jax.commands import config_help
from tests.conftest import ROOT

SOURCE = """
def settings():
    return ConfigDict({
        # What it is,
        # at length.
        "one": 1,
        "group": {"two": 2, "three": 3},
        "four": 4,  # behind
    })
"""


def test_the_page_is_up_to_date():
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert page == reference.page(), "run `python -m docs.config_reference docs/config.md`"


@pytest.mark.parametrize("kind", config_help.KINDS)
def test_every_key_has_its_default(kind):
    config = config_help.KINDS[kind][0]()
    page = reference.page().partition(f"## {reference.TITLES[kind]}")[2]
    leaves = [(k, v) for k, v in config_help.leaves(config) if not k.startswith("recipes.")]
    assert len(leaves) > 10
    for key, value in leaves:
        assert f"| `{key}` | `{value!r}` | " in page


def test_comments_above_and_behind_a_key_are_its_meaning():
    found = config_help.meanings(SOURCE, "settings")
    assert (found["one"], found["four"]) == ("What it is, at length.", "behind")


def test_a_key_without_a_comment_is_an_error_that_names_it():
    config = ConfigDict({"one": 1, "group": {"two": 2}, "four": 4})
    with pytest.raises(ValueError, match=r"mean: group\.two$"):
        reference.table(config, config_help.meanings(SOURCE, "settings"))
