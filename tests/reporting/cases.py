"""Runs made of rows alone, and what a page must be."""

import html.parser
import json
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from configs import tiny
from mosaicbert_jax import __main__ as commands
from mosaicbert_jax.reporting.script import SCRIPT, SCRIPT_HASH

CONFIG = json.loads(tiny.get_config().to_json())
DIGEST = "0123456789abcdef" * 4
_VOID = {"meta", "input"}


def row(step: int, **values: Any) -> dict[str, Any]:
    """A training row of a run of 100 steps of a thousand tokens and two seconds each."""
    return {
        "step": step, "samples": 10 * step, "tokens": 1000 * step, "loss": 9.0 - 0.01 * step,
        "masked_accuracy": 0.002 * step, "learning_rate": 1e-3, "tokens_per_second": 500.0,
        "data_wait_fraction": 0.01, "mfu": 0.3, "mfu_6n": 0.4, "packing_efficiency": 0.98,
        "grad_norm": 1.5, "seconds": 2.0 * step, "share": step / 100, **values,
    }  # fmt: skip


def evaluation(step: int) -> dict[str, Any]:
    return {
        "step": step, "eval_loss": 7.125, "eval_masked_accuracy": 0.2125,
        "eval_commonest_accuracy": 0.05, "eval_predictions": 12345,
    }  # fmt: skip


def event(step: int, kind: str, **details: str) -> dict[str, Any]:
    return {"step": step, "event": kind, "time": "2026-11-22T16:06:00Z", **details}


def write_run(
    folder: pathlib.Path, rows: Iterable[dict[str, Any]], config: dict[str, Any] = CONFIG
) -> pathlib.Path:
    """A workdir with these rows of metrics.jsonl."""
    folder.mkdir(parents=True)
    model = config["model"] | {"vocab_size": 64, "dtype": "float32"}
    record = {"config": config, "model": model, "dataset": {"digest": DIGEST}}
    (folder / "config.json").write_text(json.dumps(record))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return folder


def report(*arguments) -> int:
    """The command; returns its exit status."""
    try:
        commands.main(["report", *map(str, arguments)])
    except SystemExit as ended:
        return ended.code
    return 0


class Page(html.parser.HTMLParser):
    """A page that has been checked: all closed, nothing fetched, one known script, no id twice.

    Attributes:
      text: what is read, all on one line.
      tags: how often each occurs.
      data: what the script is given; None without charts.
      charts: the attributes of each svg element.
    """

    def __init__(self, source: str):
        super().__init__()
        self._open, self._read, ids = [], [], re.findall(r'\bid="([^"]*)"', source)
        self.tags: dict[str, int] = {}
        self.charts: list[dict[str, str]] = []
        self._scripts: list[str] = []
        assert len(ids) == len(set(ids))
        links = re.findall(r"url\(([^)]*)\)", source)
        assert all(link.startswith("#") and link[1:] in ids for link in links)
        self.feed(source)
        self.close()
        assert self._open == []
        assert not {"img", "link", "iframe", "object"} & self.tags.keys()
        assert f"script-src '{SCRIPT_HASH}'" in source
        assert self._scripts[1:] in ([], [SCRIPT])
        self.data = json.loads(self._scripts[0]) if self._scripts else None
        self.text = " ".join(" ".join(self._read).split())

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        if tag == "svg":
            self.charts.append(dict(attrs))
        for name, value in attrs:
            assert not name.startswith("on")
            assert name not in ("src", "href", "xlink:href") or value.startswith("#")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] == ["script"]:
            self._scripts.append(data)
        elif self._open[-1:] != ["style"]:
            self._read.append(data)
