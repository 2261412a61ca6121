"""The messages that docs/troubleshooting.md explains are those of the code."""

import re

import pytest

from tests.conftest import ROOT

_ROW = re.compile(r"^\| `([^`]+)` \|", re.M)
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = _ROW.findall(PAGE)


@pytest.fixture(scope="module")
def strings() -> str:
    """All code, with strings that are broken over lines joined."""
    paths = sorted((ROOT / "mosaicbert_jax").rglob("*.py"))
    return "\n".join(re.sub(r'"\s*\n\s*f?"', "", path.read_text("utf-8")) for path in paths)


def test_there_are_messages():
    assert len(MESSAGES) > 30


@pytest.mark.parametrize("message", MESSAGES)
def test_the_code_has_the_message(message, strings):
    fixed = [part for part in re.split(r"'?…'?", message) if part.strip(" ';,()")]
    # In f-strings, … stands for whatever is in braces.
    pattern = r".{0,200}?".join(map(re.escape, fixed))
    assert re.search(pattern, strings), message
