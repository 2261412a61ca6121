"""Bad input: configs, data sets, tokenizers, models, tables and logs, mutated by hypothesis.

    python -m campaigns.fuzz [--inputs 5500] [--seed 0] [--output campaigns/results/fuzz]

Whatever the input, a command may do its work or refuse with one line and status 2. A traceback, a
hang, more or less than a line, or something half-written in the place of the output is a failure.
Files are changed in their bytes (bits flipped, parts cut, doubled, exchanged for others) and, where
they are JSON, in their values (of other types, sizes and signs, missing, named otherwise); what is
sealed by a digest is sealed again half of the time, so that what reads it behind the digest is
reached too. Writes OUTPUT.md; the first inputs that fail are kept in OUTPUT-failures.json.
"""

import argparse
import base64
import collections
import contextlib
import datetime
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import math
import os
import pathlib
import platform
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
from hypothesis import strategies as st
from tqdm import tqdm

from benchmarks.preparation import processor
from campaigns.fuzz_targets import ROOT, Target, good_input, prepare_run
from mosaicbert_jax.commands import config_line
from mosaicbert_jax.errors import explained

ACCEPTED, REFUSED = "accepted", "refused"
_SECONDS = 120
_KEPT_FAILURES = 50


class Hang(BaseException):
    """An input that took too long; no Exception, so that nothing takes it for one of its own."""


# Values of a JSON file that nobody meant.
_ODD = st.one_of(
    st.sampled_from(
        [None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 0.5, -0.0, 1e308, math.nan, math.inf]
    ),
    st.sampled_from(["", "0", "-1", "nan", "../../etc/passwd", "/dev/zero", "\u0000", "é" * 300]),
    st.builds(list),
    st.builds(dict),
    st.builds(lambda: [[[]]]),
    st.text(max_size=8),
    st.integers(),
)
_PIECES = st.sampled_from(
    [b"\x00", b"\xff\xfe", b"\n", b"\r\n", b"\t", b'"', b",", b"{", b"]", b"NaN", b"-1", b"\\u"]
)
# Values on a command line that nobody meant.
_SETTING = st.one_of(
    st.sampled_from(
        ["0", "-1", "1", "7", "1e999", "nan", "inf", "None", "True", "()", "{}", "(1,"]
    ),
    st.sampled_from(["('a',)", "(('a',1),)", "1ba", "0ba", "1e30tok", "-3ep", "1ep", "5usd", ""]),
    st.sampled_from(["auto", "float16", "float64", "bfloat16", "é", "../x", "/", "9" * 20, "0x10"]),
    st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12),
    st.integers(-5, 3000).map(str),
    st.floats().map(str),
)


@st.composite
def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """The bytes of a file after one to three changes."""
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        # Most of a large file is alike; what tells what it is stands at its ends.
        if draw(st.booleans()):
            place = min(place, draw(st.integers(0, 300)))
        length = draw(st.sampled_from([1, 2, 7, 64, 1000, len(data)]))
        part = data[place : place + length]
        data = draw(
            st.sampled_from(
                [
                    data[:place] + bytes([(data[place] if data else 0) ^ 16]) + data[place + 1 :],
                    data[:place] + bytes(len(part)) + data[place + length :],
                    data[:place],
                    data[:place] + data[place + length :],
                    data[:place] + part + part[:5000] + data[place + length :],
                    data[:place] + draw(_PIECES) + data[place:],
                    data[:place] + draw(st.binary(min_size=1, max_size=9)) + data[place + 1 :],
                ]
            )
        )
    return data


@st.composite
def mutated_json(draw: st.DrawFn, data: bytes) -> bytes:
    """A JSON file with one to three values replaced, removed, or renamed."""
    record = json.loads(data)
    for _ in range(draw(st.integers(1, 3))):
        holders = [holder for holder in _holders(record) if holder]
        if not holders:
            break
        holder = draw(st.sampled_from(holders))
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = draw(st.sampled_from(keys))
        match draw(st.sampled_from(["replace", "replace", "leave out", "rename", "copy"])):
            case "replace":
                holder[key] = draw(_ODD)
            case "leave out":
                del holder[key]
            case "rename" if isinstance(holder, dict):
                holder[draw(st.text(max_size=5))] = holder.pop(key)
            case _:
                other = draw(st.sampled_from(keys))
                holder[key] = json.loads(json.dumps(holder[other]))
    return json.dumps(record).encode()


def _holders(value: Any) -> Iterator[dict | list]:
    """The objects and arrays in a JSON value; of long ones a few entries."""
    if isinstance(value, dict):
        yield value
        for one in list(value.values())[:50]:
            yield from _holders(one)
    elif isinstance(value, list):
        yield value
        for one in value[:3]:
            yield from _holders(one)


def outcome(use: Callable[[], None], output: pathlib.Path) -> tuple[str, str]:
    """ACCEPTED or REFUSED, and what was said; else what is wrong, and where it came from."""
    said = io.StringIO()

    def end(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(_SECONDS)
    try:
        with (
            contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(io.StringIO()),
            explained("interrupted"),
        ):
            use()
    except SystemExit as ended:
        lines = said.getvalue().splitlines()
        if ended.code != 2 or len(lines) != 1 or not lines[0].startswith("error: "):
            return f"status {ended.code} and {len(lines)} lines", said.getvalue()[-2000:]
        if output.exists() and (output.is_file() or any(output.iterdir())):
            return "half-written output", lines[0]
        return REFUSED, lines[0]
    except Hang:
        return f"no end in {_SECONDS} s", "".join(traceback.format_exc()[-1500:])
    except BaseException as error:  # a panic of Rust is no Exception
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} in {pathlib.Path(place.filename).name}:{place.lineno}"
        return where, traceback.format_exc()[-1500:]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return ACCEPTED, ""


def _drawn(one: Callable[[st.DataObject], None], inputs: int, seed: int) -> None:
    """Calls `one` for each input, always with the same draws for the same seed."""
    settings = hypothesis.settings(
        max_examples=inputs,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.seed(seed)(settings(hypothesis.given(st.data())(one)))()


def run_target(
    target: Target, inputs: int, *, seed: int, folder: pathlib.Path, bar: tqdm | None = None
) -> list[tuple[str, str, dict[str, str]]]:
    """What became of each input, what was said, and the input."""
    found: list[tuple[str, str, dict[str, str]]] = []
    files = sorted({p for pattern in target.patterns for p in target.folder.glob(pattern)})
    copy, output = folder / "input", folder / "output.html"

    def one(draws: st.DataObject) -> None:
        if len(found) >= inputs:
            return
        path = draws.draw(st.sampled_from(files))
        kind = mutated
        if path.suffix == ".json" and draws.draw(st.sampled_from([True, True, False])):
            kind = mutated_json
        data = draws.draw(kind(path.read_bytes()))
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(target.folder, copy)
        relative = path.relative_to(target.folder)
        (copy / relative).write_bytes(data)
        if (copy / "dataset.json").exists() and draws.draw(st.booleans()):
            _seal(copy, relative)
        what, told = outcome(lambda: target.use(copy, output), output)
        if output.is_dir():
            shutil.rmtree(output)
        output.unlink(missing_ok=True)
        text = base64.b64encode(data[:20_000]).decode()
        found.append((what, told, {"file": str(relative), "base64": text}))
        if bar is not None:
            bar.update()

    _drawn(one, inputs, seed)
    return found


def run_words(
    inputs: int, *, seed: int, good: pathlib.Path, folder: pathlib.Path, bar: tqdm | None = None
) -> list[tuple[str, str, dict[str, str]]]:
    """The same for overrides of configs on train.py's command line."""
    found: list[tuple[str, str, dict[str, str]]] = []
    words = {
        "tiny": [f"--config.data.path={good / 'set'}"],
        "finetune": [
            f"--config.data.path={good / 'tables' / 'reviews.csv'}",
            f"--config.init_from={good / 'run'}",
        ],
    }
    keys = {}
    for name, given in words.items():
        config, _, _ = config_line.read_flags(["x", f"--config={ROOT}/configs/{name}.py", *given])
        keys[name] = sorted(_flat_keys(config.to_dict()))
    output = folder / "run"

    def one(draws: st.DataObject) -> None:
        if len(found) >= inputs:
            return
        name = draws.draw(st.sampled_from(sorted(words)))
        line = ["train.py", f"--config={ROOT}/configs/{name}.py", f"--workdir={output}"]
        line += words[name]
        for _ in range(draws.draw(st.integers(1, 2))):
            key = draws.draw(st.one_of(st.sampled_from(keys[name]), st.text(max_size=6)))
            line.append(f"--config.{key}={draws.draw(_SETTING)}")

        what, told = outcome(lambda: prepare_run(line), output)
        if output.exists():
            shutil.rmtree(output)
        found.append((what, told, {"words": " ".join(line[3:])}))
        if bar is not None:
            bar.update()

    _drawn(one, inputs, seed)
    return found


def _flat_keys(tree: dict[str, Any], before: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat_keys(value, f"{before}{key}.")
        yield before + key


def _seal(folder: pathlib.Path, changed: pathlib.Path) -> None:
    """Gives dataset.json the digest of the changed file, if it can still be read."""
    path = folder / "dataset.json"
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        record = json.loads(path.read_text())
        record.pop("digest", None)
        digest = hashlib.sha256((folder / changed).read_bytes()).hexdigest()
        if changed.name == record["tokenizer"]["file"]:
            record["tokenizer"]["sha256"] = digest
        for split in record["splits"].values():
            for shard in split["shards"]:
                for kind in ("tokens", "offsets"):
                    if changed.name == f"{shard['name']}.{kind}.npy":
                        shard[f"{kind}_sha256"] = digest
        path.write_text(json.dumps(record))


def campaign(inputs: int, *, seed: int, folder: pathlib.Path) -> dict[str, list]:
    """At least `inputs` inputs, and what became of them, by kind."""
    good = folder / "good"
    good.mkdir()
    with contextlib.redirect_stdout(io.StringIO()):
        targets = good_input(good)
    try_targets(targets, folder)
    each = inputs / (1 + sum(target.share for target in targets))
    found: dict[str, list] = {}
    with tqdm(total=inputs, desc="inputs") as bar:
        found["overrides of configs"] = run_words(
            math.ceil(each), seed=seed, good=good, folder=folder, bar=bar
        )
        for target in targets:
            count = math.ceil(each * target.share)
            found[target.name] = run_target(target, count, seed=seed, folder=folder, bar=bar)
    return found


def try_targets(targets: list[Target], folder: pathlib.Path) -> None:
    """Good input is accepted, or nothing that follows means anything."""
    for target in targets:
        output = folder / "output.html"
        copy = shutil.copytree(target.folder, folder / "input", dirs_exist_ok=True)
        what, told = outcome(lambda t=target, c=copy, o=output: t.use(c, o), output)
        if what != ACCEPTED:
            raise RuntimeError(f"{target.name}: good input is not accepted: {what}: {told}")
        for path in (copy, output):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def failures(found: dict[str, list]) -> list[dict[str, Any]]:
    """What was neither accepted nor refused in one line."""
    return [
        {"kind": kind, "what": what, "told": told, **given}
        for kind, outcomes in found.items()
        for what, told, given in outcomes
        if what not in (ACCEPTED, REFUSED)
    ]


def table(found: dict[str, list], line: str) -> str:
    """Outcomes by kind, with machine, versions and command."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("jax", "hypothesis", "tokenizers", "safetensors", "ml-collections")
    )
    total = sum(map(len, found.values()))
    bad = failures(found)
    lines = [
        "# Bad input",
        "",
        f"{datetime.date.today()}, {processor()}, Python {platform.python_version()}, {versions}",
        f"`{line}`",
        "",
        f"{total:,} mutated inputs; **{len(bad)} ended in anything but acceptance or a refusal in "
        "one line** with status 2 and nothing half-written.",
        "",
        "| input | accepted | refused | different refusals | wrong |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind, outcomes in found.items():
        counts = collections.Counter(what for what, _, _ in outcomes)
        # Refusals by their words, without the numbers and names in them.
        kinds = {" ".join(told.split()[-4:]) for what, told, _ in outcomes if what == REFUSED}
        wrong = len(outcomes) - counts[ACCEPTED] - counts[REFUSED]
        lines.append(
            f"| {kind} | {counts[ACCEPTED]:,} | {counts[REFUSED]:,} | {len(kinds)} | {wrong} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=5500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("campaigns/results/fuzz")
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = campaign(options.inputs, seed=options.seed, folder=pathlib.Path(folder))
    line = f"python -m campaigns.fuzz --inputs {options.inputs} --seed {options.seed}"
    text = table(found, line)
    options.output.with_suffix(".md").write_text(text)
    print(text)
    bad = failures(found)
    if bad:
        path = options.output.with_name(f"{options.output.name}-failures.json")
        path.write_text(json.dumps(bad[:_KEPT_FAILURES], indent=1) + "\n")
        raise SystemExit(f"{path} has the first of {len(bad)}")


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
