"""BERT's WordPiece tokenizer: trained here, or read from a vocab.txt or tokenizer.json.

Normalization, splitting and matching are those of the original BERT, as the `tokenizers` library
implements them. https://arxiv.org/abs/1810.04805
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import WordPiece

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.files import how_to_download, is_hub_name
from mosaicbert_jax.text.vocabulary import MAX_VOCAB_SIZE, SpecialTokenIds

# In the order of their ids in a vocabulary trained here, and of SpecialTokenIds' fields.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MIN_VOCAB_SIZE = 32
# Rarer characters become [UNK], as in the vocabularies that Google trained.
_ALPHABET_LIMIT = 1000
_MIN_FREQUENCY = 2
_MAX_CHARS_PER_WORD = 100
_COUNTED_CHARS = 2**20
_REMEMBERED_CHARS = 2**21
# Of tokenizer_config.json: BertNormalizer's names for them.
_NORMALIZER_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def train_tokenizer(texts: Iterable[str], vocab_size: int, lowercase: bool = True) -> Tokenizer:
    """Train a WordPiece vocabulary of at most `vocab_size` entries; the same one on every run.

    Args:
      texts: iterated twice, so a collection, or an object whose __iter__ starts over; one pass
        counts characters, the other words. Neither holds the texts.
      vocab_size: entries asked for, special tokens included. Little text yields fewer.
      lowercase: lower-case and strip accents first, as bert-base-uncased does.

    Raises:
      UserError: see `check_vocab_size`.
      ValueError: `texts` is an iterator, which can't be read twice.
    """
    check_vocab_size(vocab_size)
    if iter(texts) is texts:
        raise ValueError("texts must be iterable twice; an iterator is not")
    blank = _bert_tokenizer({token: i for i, token in enumerate(SPECIAL_TOKENS)}, lowercase)
    alphabet = _alphabet(blank, texts, min(_ALPHABET_LIMIT, (vocab_size - 5) // 2))
    # The library numbers ##x as it meets them in a hash map, another order on each run, and breaks
    # ties between merges by these numbers. Named as special tokens they are numbered in our order;
    # only the vocabulary of this trainer is used. As in BERT's own, x and ##x come together.
    continuing = [f"##{char}" for char in alphabet if _can_continue(blank, char)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=_MIN_FREQUENCY,
        special_tokens=[*SPECIAL_TOKENS, *continuing],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix="##",
        show_progress=False,
    )
    learner = Tokenizer(WordPiece(unk_token="[UNK]"))
    learner.normalizer, learner.pre_tokenizer = blank.normalizer, blank.pre_tokenizer
    learner.train_from_iterator(texts, trainer)
    return _bert_tokenizer(learner.get_vocab(with_added_tokens=False), lowercase)


def check_vocab_size(entries: int) -> None:
    """Raises UserError for a size that no tokenizer can be trained to."""
    if entries < MIN_VOCAB_SIZE:
        raise UserError(f"vocab_size {entries}: at least {MIN_VOCAB_SIZE} entries are needed")
    if entries > MAX_VOCAB_SIZE:
        raise UserError(f"vocab_size {entries}: at most {MAX_VOCAB_SIZE:,} entries are allowed")


def load_tokenizer(path: str | os.PathLike, lowercase: bool | None = None) -> Tokenizer:
    """Read a WordPiece tokenizer; truncation and padding that the file asks for are ignored.

    Args:
      path: a vocab.txt, a tokenizer.json, or a Hugging Face folder with a tokenizer.json, or with
        a vocab.txt and a tokenizer_config.json that says `do_lower_case`.
      lowercase: for a vocab.txt alone, whether text is lower-cased. None: it is, unless the
        vocabulary has upper-case entries.

    Raises:
      UserError: a file is missing or damaged, it is no WordPiece tokenizer, a special token or
        the token for unknown words is missing from it, or an id is far too large.
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
    try:
        special_token_ids(tokenizer)
    except KeyError as error:
        raise UserError(
            f"{path}: the vocabulary lacks {error.args[0]}; BERT needs {' '.join(SPECIAL_TOKENS)}"
        ) from None
    unknown = tokenizer.model.unk_token
    if tokenizer.model.token_to_id(unknown) is None:  # an added token doesn't do
        raise UserError(
            f"{path}: the model's vocabulary lacks its unk_token {unknown!r}, so no unknown word "
            "could be encoded; add it"
        )
    if vocab_size(tokenizer) > MAX_VOCAB_SIZE:
        raise UserError(
            f"{path}: an entry has id {vocab_size(tokenizer) - 1}; number them from 0 on"
        )
    return tokenizer


def special_token_ids(tokenizer: Tokenizer) -> SpecialTokenIds:
    """The ids of the special tokens, looked up by name. Raises KeyError for one that is missing."""
    ids = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    if None in ids:
        raise KeyError(SPECIAL_TOKENS[ids.index(None)])
    return SpecialTokenIds(*ids)


def of_plain_text(tokenizer: Tokenizer) -> Tokenizer:
    """A copy to encode text with: "[SEP]" and BERT's other special tokens in it are text.

    Special tokens beyond these, such as markers of entities, stay whole, as everywhere.
    """
    settings = json.loads(tokenizer.to_str())
    for token in settings["added_tokens"]:
        token["special"] = token["content"] in SPECIAL_TOKENS
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
    return tokenizer.normalizer is not None and tokenizer.normalizer.normalize_str("A") == "a"


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Int[np.ndarray, "T"]]:
    """The ids of each text, int32[T], without [CLS] and [SEP]; on all cores, without the GIL."""
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [np.array(encoding.ids, np.int32) for encoding in encodings]


class WordEncoder:
    """`encode_texts` by a table of words that were met before: several times as fast.

    In BERT's tokenization nothing reaches across a space, so the ids of a text are those of its
    words one after another, and most words of a text are common ones. A tokenizer.json that works
    in another way is asked for whole texts.

    Args:
      tokenizer: used as it is set, and not to be changed afterwards.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._is_wordwise = _is_wordwise(tokenizer)
        self.ids_of_word: dict[str, bytes] = {}
        self._chars = 0

    def __call__(self, texts: Sequence[str]) -> list[Int[np.ndarray, "T"]]:
        """The ids of each text, int32[T], without [CLS] and [SEP]; not to be written to."""
        if not self._is_wordwise:
            return encode_texts(self._tokenizer, texts)
        if self._chars > _REMEMBERED_CHARS:
            self.ids_of_word, self._chars = {}, 0
        known = self.ids_of_word.get
        words_of_text = [_words(text) for text in texts]
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


def _words(text: str) -> list[str]:
    """Cut at what BERT takes for white space whatever stands beside it; other kinds stay inside."""
    return text.replace("\n", " ").replace("\t", " ").replace("\r", " ").split(" ")


def _is_wordwise(tokenizer: Tokenizer) -> bool:
    """Whether it is BERT's own tokenization, and no added token can hold a space."""
    settings = json.loads(tokenizer.to_str())
    return (
        (settings["normalizer"] or {}).get("type") == "BertNormalizer"
        and (settings["pre_tokenizer"] or {}).get("type") == "BertPreTokenizer"
        and all(token["special"] for token in settings["added_tokens"])
        and (tokenizer.encode_special_tokens or not settings["added_tokens"])
    )


def vocab_text(tokenizer: Tokenizer) -> str:
    """The contents of a vocab.txt: the entry with id i on line i."""
    entry_of_id = {i: entry for entry, i in tokenizer.get_vocab(with_added_tokens=True).items()}
    # An id that nothing has keeps its line, so that line numbers stay ids.
    entries = (entry_of_id.get(i, f"[unused_id_{i}]") for i in range(vocab_size(tokenizer)))
    return "".join(f"{entry}\n" for entry in entries)


def _bert_tokenizer(
    vocab: dict[str, int],
    lowercase: bool,
    strip_accents: bool | None = None,
    handle_chinese_chars: bool = True,
) -> Tokenizer:
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


def _alphabet(tokenizer: Tokenizer, texts: Iterable[str], limit: int) -> list[str]:
    """The `limit` most frequent characters after normalisation, in the order of their code points.

    The trainer has a limit of its own, but which of equally rare characters it keeps is chance.
    """
    raw = np.zeros(sys.maxunicode + 1, np.int64)
    for text in _joined(texts, _COUNTED_CHARS):
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        raw += np.bincount(codes, minlength=len(raw))
    counts: Counter[str] = Counter()
    for code in np.flatnonzero(raw):
        for normalized in tokenizer.normalizer.normalize_str(chr(code)).split():
            for part in normalized:
                counts[part] += int(raw[code])
    ranked = sorted(counts, key=lambda char: (-counts[char], char))
    return sorted(ranked[:limit])


def _joined(texts: Iterable[str], chars: int) -> Iterator[str]:
    """The same characters in fewer texts, of about `chars`."""
    parts: list[str] = []
    found = 0
    for text in texts:
        parts.append(text)
        found += len(text)
        if found >= chars:
            yield "".join(parts)
            parts, found = [], 0
    yield "".join(parts)


def _can_continue(tokenizer: Tokenizer, char: str) -> bool:
    """Whether a word can continue with `char`: not with punctuation or a Chinese character."""
    text = tokenizer.normalizer.normalize_str(f"a{char}")
    return len(tokenizer.pre_tokenizer.pre_tokenize_str(text)) == 1


def _load_json(path: Path) -> Tokenizer:
    try:
        text = path.read_text(encoding="utf-8")
        kind = json.loads(text)["model"].get("type", "of no stated type")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: not a tokenizer.json of the `tokenizers` library") from None
    if kind != "WordPiece":
        raise UserError(f"{path}: the tokenizer is {kind}, and BERT's is WordPiece; give another")
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{path}: not a tokenizer.json that can be read ({error})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


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
    return _bert_tokenizer(vocab, lowercase, **options)


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
        return tokenizer
    if not (path / "vocab.txt").is_file():
        raise UserError(f"{path}: neither tokenizer.json nor vocab.txt is in this folder")
    return _load_vocab(
        path / "vocab.txt",
        settings.get("do_lower_case") if lowercase is None else lowercase,
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
