"""Tokenizers: BERT's WordPiece, and any BPE or Unigram of the `tokenizers` library.

WordPiece's normalization, splitting and matching are those of the original BERT
(https://arxiv.org/abs/1810.04805). Special tokens are known by their names; see `SPECIAL_NAMES`.
"""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.files import how_to_download, is_hub_name
from mosaicbert_jax.text.vocabulary import MAX_VOCAB_SIZE, SPECIAL_NAMES, SpecialTokenIds

# In the order of their ids in a vocabulary trained here, and of SpecialTokenIds' fields.
SPECIAL_TOKENS = tuple(names[0] for names in SPECIAL_NAMES.values())
_SINGLE_SPACE = re.compile(r"(?<=\S) (?=\S)")
_KINDS = ("WordPiece", "BPE", "Unigram")
_MAX_CHARS_PER_WORD = 100
SPACE_MARKS = ("\u0120", "\u2581")  # what byte-level BPE and Metaspace write for a space
_REMEMBERED_CHARS = 2**21
# Of tokenizer_config.json: BertNormalizer's names for them.
_NORMALIZER_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def load_tokenizer(
    path: str | os.PathLike,
    lowercase: bool | None = None,
    *,
    special_tokens: Mapping[str, str] | None = None,
) -> Tokenizer:
    """Read a tokenizer; truncation and padding that the file asks for are ignored.

    Args:
      path: a vocab.txt, a tokenizer.json, or a Hugging Face folder with a tokenizer.json, or with
        a vocab.txt and a tokenizer_config.json that says `do_lower_case`.
      lowercase: for a vocab.txt alone, whether text is lower-cased. None: it is, unless the
        vocabulary has upper-case entries.
      special_tokens: by role, such as "mask", entries that have none of the names of
        SPECIAL_NAMES; they are given the first of these.

    Raises:
      UserError: a file is missing or damaged, it is of another kind, a special token or the token
        for unknown words is missing from it, or an id is far too large.
    """
    path = Path(path)
    if path.is_dir():
        tokenizer = _load_folder(path, lowercase)
    elif path.suffix == ".json":
        tokenizer = _load_json(path)
    elif not path.exists() and not path.suffix and is_hub_name(str(path)):
        raise UserError(f"{path}: no such file. {how_to_download(str(path))}")
    else:
        tokenizer = _load_vocab(path, lowercase)
    if special_tokens:
        tokenizer = _renamed(tokenizer, special_tokens, path)
    try:
        special_token_ids(tokenizer)
    except KeyError as error:
        role = error.args[0]
        raise UserError(
            f"{path}: the vocabulary lacks {SPECIAL_NAMES[role][0]} by any of the names "
            f"{' '.join(SPECIAL_NAMES[role])}; BERT needs {' '.join(SPECIAL_TOKENS)} "
            f"(`prepare --special-tokens {role}=ENTRY` names another)"
        ) from None
    if vocab_size(tokenizer) > MAX_VOCAB_SIZE:  # first, as its JSON would have as many entries
        raise UserError(
            f"{path}: an entry has id {vocab_size(tokenizer) - 1}; number them from 0 on"
        )
    if why := _loses_text(tokenizer):
        raise UserError(f"{path}: {why}, so no unknown word could be encoded; add it")
    return tokenizer


def special_token_ids(tokenizer: Tokenizer) -> SpecialTokenIds:
    """The ids of the special tokens, looked up by name. Raises KeyError for a role without one."""
    ids: dict[str, int] = {}
    for role, names in SPECIAL_NAMES.items():
        found = [i for name in names if (i := tokenizer.token_to_id(name)) is not None]
        if found:
            ids[role] = found[0]
        elif role == "unk" and not is_wordpiece(tokenizer):
            ids[role] = ids["pad"]
        else:
            raise KeyError(role)
    return SpecialTokenIds(**ids)


def special_token_names(tokenizer: Tokenizer) -> dict[str, str]:
    """The name of each special token that there is, by role."""
    ids = dataclasses.asdict(special_token_ids(tokenizer))
    if ids["unk"] == ids["pad"]:
        del ids["unk"]
    return {role: tokenizer.id_to_token(number) for role, number in ids.items()}


def is_wordpiece(tokenizer: Tokenizer) -> bool:
    """Whether the model is WordPiece, whose words are the same whatever stands before them."""
    return type(tokenizer.model).__name__ == "WordPiece"


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, str]:
    """The text of each file, by name: tokenizer.json, and for WordPiece vocab.txt."""
    files = {"tokenizer.json": tokenizer.to_str(pretty=True)}
    return files | ({"vocab.txt": vocab_text(tokenizer)} if is_wordpiece(tokenizer) else {})


def words_in_text(tokenizer: Tokenizer, words: Sequence[str]) -> list[str]:
    """Words as they stand in a text; the space before one counts, but for WordPiece."""
    if is_wordpiece(tokenizer):
        return list(words)
    return [word if not index else f" {word}" for index, word in enumerate(words)]


def first_piece(tokenizer: Tokenizer, ids_T: Int[np.ndarray, "T"]) -> int:
    """Where the first piece of a word is that holds more than the space before it."""
    if not is_wordpiece(tokenizer):
        for place, number in enumerate(ids_T.tolist()):
            if tokenizer.id_to_token(number) not in SPACE_MARKS:
                return place
    return 0


def shown_token(tokenizer: Tokenizer, number: int) -> str:
    """An entry for people: bytes as text, and without the space before a word."""
    entry = tokenizer.id_to_token(number) or ""
    if is_wordpiece(tokenizer):
        return entry
    return tokenizer.decode([number], skip_special_tokens=False).strip() or entry


def of_plain_text(tokenizer: Tokenizer) -> Tokenizer:
    """A copy to encode text with: "[SEP]" and BERT's other special tokens in it are text.

    Special tokens beyond these, such as markers of entities, stay whole, as everywhere.
    """
    own = {*special_token_names(tokenizer).values()}
    settings = json.loads(tokenizer.to_str())
    model = settings["model"]
    if model["type"] == "Unigram":
        # Its special tokens are pieces too, which text would match: no text has a name with NUL.
        model["vocab"] = [
            [f"\0{piece}" if piece in own else piece, score] for piece, score in model["vocab"]
        ]
        settings["added_tokens"] = [t for t in settings["added_tokens"] if t["content"] not in own]
    for token in settings["added_tokens"]:
        token["special"] = token["content"] in own
    copy = Tokenizer.from_str(json.dumps(settings))
    copy.encode_special_tokens = True
    return copy


def vocab_size(tokenizer: Tokenizer) -> int:
    """The number of entries: one more than the largest id."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())


def check_vocabulary(tokenizer: Tokenizer, rows: int, where: str | os.PathLike) -> None:
    """Raises UserError if a tokenizer has more entries than a model's embedding table rows."""
    if vocab_size(tokenizer) > rows:
        raise UserError(
            f"{where}: the tokenizer has {vocab_size(tokenizer):,} entries and the model {rows:,}; "
            "use the tokenizer that the model was trained with"
        )


def padded_vocab_size(entries: int) -> int:
    """The multiple of 64 at or above `entries`: a size that matrix units divide evenly."""
    return -(-entries // 64) * 64


def is_lowercase(tokenizer: Tokenizer) -> bool:
    """Whether text is lower-cased before it is matched."""
    return tokenizer.normalizer is not None and "A" not in tokenizer.normalizer.normalize_str("A")


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Int[np.ndarray, "T"]]:
    """The ids of each text, int32[T], without [CLS] and [SEP]; on all cores, without the GIL."""
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [np.array(encoding.ids, np.int32) for encoding in encodings]


class WordEncoder:
    """`encode_texts` by a table of words that were met before: several times as fast.

    In BERT's tokenization nothing reaches across a space, and in byte-level BPE nothing across the
    beginning of a single space, so the ids of a text are those of its words one after another, and
    most words of a text are common ones. A tokenizer.json that works in another way is asked for
    whole texts.

    Args:
      tokenizer: used as it is set, and not to be changed afterwards.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._cut = _word_cutter(tokenizer)
        self.ids_of_word: dict[str, bytes] = {}
        self._chars = 0

    def __call__(self, texts: Sequence[str]) -> list[Int[np.ndarray, "T"]]:
        """The ids of each text, int32[T], without [CLS] and [SEP]; not to be written to."""
        if self._cut is None:
            return encode_texts(self._tokenizer, texts)
        if self._chars > _REMEMBERED_CHARS:
            self.ids_of_word, self._chars = {}, 0
        known = self.ids_of_word.get
        words_of_text = [self._cut(text) for text in texts]
        ids_of_text = [list(map(known, words)) for words in words_of_text]
        some_new = [i for i, ids in enumerate(ids_of_text) if None in ids]
        self._learn({word for i in some_new for word in words_of_text[i]} - self.ids_of_word.keys())
        for i in some_new:
            ids_of_text[i] = list(map(known, words_of_text[i]))
        return [np.frombuffer(b"".join(ids), np.int32) for ids in ids_of_text]

    def _learn(self, new: set[str]) -> None:
        words = list(new)
        for word, ids in zip(words, encode_texts(self._tokenizer, words), strict=True):
            self.ids_of_word[word] = ids.tobytes()
            self._chars += len(word)


def _bert_words(text: str) -> list[str]:
    """Cut at what BERT takes for white space whatever stands beside it; other kinds stay inside."""
    return text.replace("\n", " ").replace("\t", " ").replace("\r", " ").split(" ")


def _spaced_words(text: str) -> list[str]:
    """Cut before each single space, which belongs to the word behind it."""
    first, *others = _SINGLE_SPACE.split(text)
    return [first, *(f" {word}" for word in others)]


def _word_cutter(tokenizer: Tokenizer) -> Callable[[str], list[str]] | None:
    """What cuts a text into words that can be encoded one by one; None: they can't."""
    settings = json.loads(tokenizer.to_str())
    normalizer, cut = (settings[name] or {} for name in ("normalizer", "pre_tokenizer"))
    # Special tokens are text to those who set this; others are found before words are.
    added = settings["added_tokens"]
    if tokenizer.encode_special_tokens:
        added = [token for token in added if not token["special"]]
    if normalizer.get("type") == "BertNormalizer" and cut.get("type") == "BertPreTokenizer":
        return None if added else _bert_words
    normalizers = normalizer.get("normalizers", [normalizer] if normalizer else [])
    is_plain = all(one.get("type") in ("NFC", "Lowercase") for one in normalizers)
    by_bytes = cut.get("type") == "ByteLevel" and cut["use_regex"] and not cut["add_prefix_space"]
    reaches = any(
        token["lstrip"] or token["rstrip"] or _SINGLE_SPACE.search(token["content"])
        for token in added
    )
    return _spaced_words if is_plain and by_bytes and not reaches else None


def vocab_text(tokenizer: Tokenizer) -> str:
    """The contents of a vocab.txt: the entry with id i on line i."""
    entry_of_id = {i: entry for entry, i in tokenizer.get_vocab(with_added_tokens=True).items()}
    # An id that nothing has keeps its line, so that line numbers stay ids.
    entries = (entry_of_id.get(i, f"[unused_id_{i}]") for i in range(vocab_size(tokenizer)))
    return "".join(f"{entry}\n" for entry in entries)


def bert_tokenizer(
    vocab: dict[str, int],
    lowercase: bool,
    strip_accents: bool | None = None,
    handle_chinese_chars: bool = True,
) -> Tokenizer:
    """BERT's WordPiece with these entries."""
    tokenizer = Tokenizer(
        WordPiece(
            vocab,
            unk_token="[UNK]",
            continuing_subword_prefix="##",
            max_input_chars_per_word=_MAX_CHARS_PER_WORD,
        )
    )
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=handle_chinese_chars,
        strip_accents=strip_accents,
        lowercase=lowercase,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    present = [token for token in SPECIAL_TOKENS if token in vocab]
    tokenizer.add_special_tokens(present)
    if "[CLS]" in vocab and "[SEP]" in vocab:
        # For those who call the tokenizer themselves; `encode_texts` skips it.
        tokenizer.post_processor = processors.BertProcessing(
            ("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"])
        )
    return tokenizer


def _load_json(path: Path) -> Tokenizer:
    try:
        text = path.read_text(encoding="utf-8")
        kind = json.loads(text)["model"].get("type", "of no stated type")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: not a tokenizer.json of the `tokenizers` library") from None
    if kind not in _KINDS:
        raise UserError(f"{path}: the tokenizer is {kind}, none of {', '.join(_KINDS)}")
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{path}: not a tokenizer.json that can be read ({error})") from None
    vocabulary = json.loads(text)["model"]["vocab"]
    if isinstance(vocabulary, dict) and len(set(vocabulary.values())) < len(vocabulary):
        # The library keeps one of them, now the one and now the other.
        raise UserError(f"{path}: two entries of the vocabulary have one id; number them from 0 on")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _loses_text(tokenizer: Tokenizer) -> str | None:
    """Why an unknown word would have no token; None: it has one."""
    settings = json.loads(tokenizer.to_str())
    model = settings["model"]
    if model.get("byte_fallback") or '"ByteLevel"' in json.dumps(settings["pre_tokenizer"]):
        return None
    if model["type"] == "Unigram":
        return "the Unigram model has no unk_id" if model.get("unk_id") is None else None
    unknown = model.get("unk_token")
    if unknown is None or tokenizer.model.token_to_id(unknown) is None:  # not an added token
        return f"the model's vocabulary lacks its unk_token {unknown!r}"
    return None


def _named_in(settings: dict[str, Any], tokenizer: Tokenizer) -> dict[str, str]:
    """The special tokens, by role, that tokenizer_config.json alone knows."""
    found = {}
    for role, names in SPECIAL_NAMES.items():
        entry = settings.get(f"{role}_token")
        if isinstance(entry, dict):
            entry = entry.get("content")
        known = any(tokenizer.token_to_id(name) is not None for name in names)
        if isinstance(entry, str) and not known and tokenizer.token_to_id(entry) is not None:
            found[role] = entry
    return found


def _renamed(tokenizer: Tokenizer, special_tokens: Mapping[str, str], path: Path) -> Tokenizer:
    """With the first of a role's names in place of what the role's entry is called."""
    settings = json.loads(tokenizer.to_str())
    new_names = {}
    for role, entry in special_tokens.items():
        if role not in SPECIAL_NAMES:
            raise UserError(f"special token {role!r} is not one of {', '.join(SPECIAL_NAMES)}")
        name = SPECIAL_NAMES[role][0]
        if tokenizer.token_to_id(entry) is None:
            raise UserError(f"{path}: no entry {entry!r}, which is given for {role}")
        if entry != name and tokenizer.token_to_id(name) is not None:
            raise UserError(f"{path}: {role} is {name}, and {entry!r} is given for it")
        new_names[entry] = name
    model, rename = settings["model"], lambda entry: new_names.get(entry, entry)
    if isinstance(model["vocab"], dict):
        model["vocab"] = {rename(entry): number for entry, number in model["vocab"].items()}
    else:
        model["vocab"] = [[rename(entry), score] for entry, score in model["vocab"]]
    if "unk_token" in model:
        model["unk_token"] = rename(model["unk_token"])
    for token in settings["added_tokens"]:
        token["content"] = rename(token["content"])
    settings["post_processor"] = None  # which names them too; ours is set where a folder is written
    return Tokenizer.from_str(json.dumps(settings))


def _load_vocab(path: Path, lowercase: bool | None, **options) -> Tokenizer:
    try:
        entries = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error}), so not a vocab.txt") from None
    vocab: dict[str, int] = {}
    for line, entry in enumerate(entries, 1):
        if not entry:
            raise UserError(f"{path}:{line}: an empty line; a vocab.txt has one entry a line")
        if entry in vocab:
            raise UserError(f"{path}:{line}: {entry!r} is already on line {vocab[entry] + 1}")
        vocab[entry] = line - 1
    if lowercase is None:
        lowercase = not any(entry != entry.lower() for entry in entries if entry[0] != "[")
    return bert_tokenizer(vocab, lowercase, **options)


def _apply_settings(tokenizer: Tokenizer, settings: dict[str, Any]) -> None:
    """Applies the settings of tokenizer_config.json, which override tokenizer.json.

    As in transformers' BertTokenizer.
    """
    normalizer = tokenizer.normalizer
    is_berts = str(settings.get("tokenizer_class", "Bert")).startswith("Bert")
    if is_berts and isinstance(normalizer, normalizers.BertNormalizer):
        for name, attribute in _NORMALIZER_SETTINGS.items():
            if name in settings:
                setattr(normalizer, attribute, settings[name])


def tokenizer_settings(folder: Path) -> dict[str, Any]:
    """What a Hugging Face folder's tokenizer_config.json holds; nothing if there is none.

    Raises:
      UserError: it is no JSON object, or has a value of another type.
    """
    path = folder / "tokenizer_config.json"
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON object ({error})") from None
    for name in _NORMALIZER_SETTINGS:
        kinds = (bool, type(None)) if name == "strip_accents" else (bool,)
        if name in found and not isinstance(found[name], kinds):
            raise UserError(f"{path}: {name} must be true or false, not {found[name]!r}")
    return found


def _load_folder(path: Path, lowercase: bool | None) -> Tokenizer:
    settings = tokenizer_settings(path)
    if (path / "tokenizer.json").is_file():
        tokenizer = _load_json(path / "tokenizer.json")
        _apply_settings(tokenizer, settings)
        named = _named_in(settings, tokenizer)
        return _renamed(tokenizer, named, path) if named else tokenizer
    if not (path / "vocab.txt").is_file():
        raise UserError(f"{path}: neither tokenizer.json nor vocab.txt is in this folder")
    return _load_vocab(
        path / "vocab.txt",
        settings.get("do_lower_case") if lowercase is None else lowercase,
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
