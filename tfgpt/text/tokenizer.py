"""Text to token ids and back, by the `tokenizers` library; saved as Hugging Face saves them."""

import functools
import hashlib
import itertools
import json
import pathlib
import re

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from tfgpt.atomic import write_text
from tfgpt.errors import UserError
from tfgpt.text.byte_level import byte_of_character, token_bytes

END_OF_TEXT = "<|endoftext|>"
PAD, BOS, EOS = "<pad>", "<s>", "</s>"  # of sequence-to-sequence models (see `tfgpt.text.joint_tokenizer`)

# About how many characters of a long text are encoded at once: enough to keep every core busy, few enough that the
# library's records of each token (strings, offsets) stay small beside the text.
PIECE_LENGTH = 2**16

# Where a text can be cut with no effect on GPT-2's tokens: before a space or line feed that follows something visible.
# None of its pre-tokens holds white space after anything else, so one ends there, whatever follows. U+180E was white
# space in older versions of Unicode.
SAFE_CUT = re.compile(r"(?<=[^\s\u180e])(?=[ \n])")


class Tokenizer:
    """A tokenizer of the `tokenizers` library, without its padding, truncation and added special tokens.

    Args:
        backend: a `tokenizers.Tokenizer`.
    """

    # What Hugging Face's `AutoTokenizer` makes of the saved files.
    hugging_face_class = "PreTrainedTokenizerFast"

    def __init__(self, backend):
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        if None not in (self.pad_token_id, self.bos_token_id, self.eos_token_id):
            # The three are put around sentences; text that looks like one of them is text.
            backend.encode_special_tokens = True

    # === Text and ids ===

    def pieces(self, text):
        """Cuts a long text into pieces whose tokens, one piece after the other, are exactly the whole text's."""
        return [text]

    def stream_pieces(self, blocks):
        """Cuts a text that comes in blocks of any size, in the memory of a few.

        Yields:
            Pairs (piece, whether it is the last one); there is always a last one.
        """
        text = ""
        for block in blocks:
            *pieces, text = self.pieces(text + block)  # the last one may go on in the next block
            yield from ((piece, False) for piece in pieces)
        yield text, True

    def encode(self, text):
        """The token ids of a text, a list of int; "<|endoftext|>" in the text is the end token, if there is one.

        Raises:
            UserError: if the text cannot be encoded.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts):
        """The token ids of each of several texts; on several cores where there is enough to do.

        Raises:
            UserError: if a text cannot be encoded.
        """
        parts = [self.pieces(text) for text in texts]
        encoded = iter(self._encode_pieces(list(itertools.chain.from_iterable(parts))))
        return [[token_id for _ in range(len(part)) for token_id in next(encoded)] for part in parts]

    def _encode_pieces(self, pieces):
        try:
            if len(pieces) == 1:  # without the library's thread pool, which complains when the process forks later
                return [self._backend.encode(pieces[0], add_special_tokens=False).ids]
            return [encoding.ids for encoding in self._backend.encode_batch_fast(pieces, add_special_tokens=False)]
        except TypeError as error:  # what the library says of a lone surrogate, left by a decoder of broken UTF-8
            for piece in pieces:
                try:
                    piece.encode("utf-8")
                except UnicodeEncodeError as bad:
                    raise UserError(
                        f"the text holds {piece[bad.start]!r} at character {bad.start}, which is no Unicode character; "
                        "expected text decoded from valid UTF-8"
                    ) from error
            raise

    def decode(self, token_ids):
        """The text of token ids, the end token as "<|endoftext|>"; bytes that are not UTF-8 become U+FFFD.

        Ids past the vocabulary, which a model gives whose embedding was padded, are no text, as in the library.

        Raises:
            UserError: for a negative id.
        """
        token_ids = [int(token_id) for token_id in token_ids]
        if token_ids and min(token_ids) < 0:
            raise UserError(
                f"token id {min(token_ids)} is not in the vocabulary; expected 0 to {self.vocabulary_size - 1}"
            )
        return self._backend.decode(token_ids, skip_special_tokens=False)

    def token_texts(self, token_ids):
        """What each token stands for, a list of str; bytes that are no whole character as in `\\xe4`.

        Example:

        >>> tokenizer = BytePairTokenizer.train(["a"], vocabulary_size=257)
        >>> tokenizer.token_texts(tokenizer.encode("é a"))
        ['\\\\xc3', '\\\\xa9', ' ', 'a']
        """
        return [piece.decode("utf-8", "backslashreplace") for piece in self.token_bytes(token_ids)]

    def token_bytes(self, token_ids):
        """The bytes of each token, a list; those of ids past the vocabulary are empty."""
        tokens = [self._backend.id_to_token(int(token_id)) or "" for token_id in token_ids]
        if not isinstance(self._backend.decoder, decoders.ByteLevel):
            return [token.encode() for token in tokens]
        return [token_bytes(token, self._byte_of_character) for token in tokens]

    # === Properties ===

    @functools.cached_property
    def _byte_of_character(self):
        return byte_of_character()

    @functools.cached_property
    def vocabulary_size(self):
        """V; ids are 0 to V - 1."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @functools.cached_property
    def end_token_id(self):
        """The id of "<|endoftext|>", or None without one."""
        return self._backend.token_to_id(END_OF_TEXT)

    @functools.cached_property
    def pad_token_id(self):
        """The id of "<pad>", or None without one."""
        return self._backend.token_to_id(PAD)

    @functools.cached_property
    def bos_token_id(self):
        """The id of "<s>", the beginning of a sentence, or None without one."""
        return self._backend.token_to_id(BOS)

    @functools.cached_property
    def eos_token_id(self):
        """The id of "</s>", the end of a sentence, or None without one."""
        return self._backend.token_to_id(EOS)

    @property
    def lowercases(self):
        """Whether text is lower-cased before it is encoded."""
        return isinstance(self._backend.normalizer, normalizers.Lowercase)

    @functools.cached_property
    def fingerprint(self):
        """The SHA-256, in hexadecimal, of the tokenizer's canonical JSON: equal for equal tokenizers."""
        state = json.dumps(self._state, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(state.encode("utf-8")).hexdigest()

    @property
    def _state(self):
        return json.loads(self._backend.to_str())

    # === Files ===

    def save(self, directory, model_max_length=None, pads=False):
        """Writes tokenizer.json, vocab.json, merges.txt and tokenizer_config.json, as Hugging Face names them.

        Args:
            directory: a model directory, made if it is missing.
            model_max_length: the longest sequence that the model takes, for those who truncate to it.
            pads: name the end token as padding, as classifiers need to read several texts at once.

        Raises:
            UserError: if a file cannot be written.
        """
        directory = pathlib.Path(directory)
        state = self._state
        write_text(directory / "tokenizer.json", self._backend.to_str(pretty=True))
        if state["model"]["type"] == "BPE":
            vocabulary = sorted(state["model"]["vocab"].items(), key=lambda item: item[1])
            merges = ["#version: 0.2", *(" ".join(pair) for pair in state["model"]["merges"])]
            write_text(directory / "vocab.json", json.dumps(dict(vocabulary), ensure_ascii=False) + "\n")
            write_text(directory / "merges.txt", "\n".join(merges) + "\n")
        config = {"tokenizer_class": self.hugging_face_class, **self._hugging_face_config()}
        if model_max_length is not None:
            config["model_max_length"] = model_max_length
        if pads and self.end_token_id is not None:
            config["pad_token"] = END_OF_TEXT
        write_text(directory / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")

    def _hugging_face_config(self):
        config = {
            "clean_up_tokenization_spaces": False,  # else decoded text loses the space before punctuation
            "model_input_names": ["input_ids", "attention_mask"],  # else transformers 4 adds token types
        }
        if self.end_token_id is not None:
            config |= {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
        elif self.pad_token_id is not None and self.eos_token_id is not None:
            config |= {"pad_token": PAD, "bos_token": BOS, "eos_token": EOS}
        return config


class BytePairTokenizer(Tokenizer):
    """Byte-level byte-pair encoding, GPT-2's (Radford et al. 2019, section 2.2): any text, and no unknown token.

    Example:

    >>> tokenizer = BytePairTokenizer.train(["the cat sat on the mat, the cat ate"], vocabulary_size=262)
    >>> tokenizer.vocabulary_size, tokenizer.end_token_id
    (262, 261)
    >>> tokenizer.decode(tokenizer.encode("the naïve cat"))
    'the naïve cat'
    """

    hugging_face_class = "GPT2Tokenizer"

    @classmethod
    def train(cls, documents, vocabulary_size, show_progress=False):
        """Learns the merges from documents.

        Args:
            documents: an iterable of str, read once.
            vocabulary_size: V: 256 bytes, the merges, and "<|endoftext|>" last. Fewer, where the documents hold too
                few pairs that occur twice.
            show_progress: whether the library draws its progress bar.

        Raises:
            UserError: if `vocabulary_size` is less than 257, or if there is no text.
        """
        if vocabulary_size < 257:
            raise UserError(
                f"a vocabulary size of {vocabulary_size} is too small; expected at least 257, 256 bytes and "
                f"{END_OF_TEXT}"
            )
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        # The library gives special tokens the first ids; GPT-2's has the last one, so it is added afterwards.
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size - 1,
            min_frequency=2,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=[],
            show_progress=show_progress,
        )
        backend.train_from_iterator(_some_text(documents), trainer)
        vocabulary = backend.get_vocab()
        vocabulary[END_OF_TEXT] = len(vocabulary)
        merges = [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
        return cls(_byte_level_backend(vocabulary, merges))

    @classmethod
    def from_files(cls, vocabulary_path, merges_path):
        """Opens GPT-2's two files: Hugging Face's vocab.json and merges.txt, or OpenAI's encoder.json and vocab.bpe.

        Raises:
            UserError: if one is missing or malformed, or if the two do not belong together.
        """
        vocabulary = _read_vocabulary(pathlib.Path(vocabulary_path))
        merges = _read_merges(pathlib.Path(merges_path), vocabulary, vocabulary_path)
        return cls(_byte_level_backend(vocabulary, merges))

    def pieces(self, text):
        pieces, start = [], 0
        while len(text) - start > PIECE_LENGTH and (cut := SAFE_CUT.search(text, start + PIECE_LENGTH)):
            pieces.append(text[start : cut.start()])
            start = cut.start()
        return [*pieces, text[start:]]

    def _hugging_face_config(self):
        config = super()._hugging_face_config() | {"add_prefix_space": False}
        if self.end_token_id is None:  # else Hugging Face's GPT-2 class adds its own, past the end of the vocabulary
            config |= {"bos_token": None, "eos_token": None, "unk_token": None}
        return config


class CharacterTokenizer(Tokenizer):
    """One token a character, numbered in the characters' order, without special tokens (nanoGPT's shakespeare_char).

    To the `tokenizers` library it is a BPE model without merges, so that its tokenizer.json works everywhere.

    Example:

    >>> tokenizer = CharacterTokenizer.train(["hello"])
    >>> tokenizer.encode("hole"), tokenizer.vocabulary_size
    ([1, 3, 2, 0], 4)
    """

    def __init__(self, backend):
        super().__init__(backend)
        # A look-up of our own, since the library takes half a second a megabyte here and drops unknown characters.
        self._ids = backend.get_vocab()

    @classmethod
    def train(cls, documents):
        """Takes every character that the documents hold.

        Raises:
            UserError: if there is no text.
        """
        characters = sorted(set().union(*map(set, _some_text(documents))))
        backend = tokenizers.Tokenizer(models.BPE({character: i for i, character in enumerate(characters)}, []))
        backend.decoder = decoders.Fuse()  # without one, decoding puts spaces between tokens
        return cls(backend)

    def pieces(self, text):
        return [text[i : i + PIECE_LENGTH] for i in range(0, len(text), PIECE_LENGTH)] or [text]

    def encode_batch(self, texts):
        try:
            return [[self._ids[character] for character in text] for text in texts]
        except KeyError as error:
            raise UserError(
                f"the character {error.args[0]!r} is not in the vocabulary; expected text made of the "
                f"{self.vocabulary_size} characters that the tokenizer was trained on"
            ) from None


def load_tokenizer(directory):
    """Opens the tokenizer of a model directory: its tokenizer.json, or its vocab.json and merges.txt.

    Returns:
        A `BytePairTokenizer`, a `CharacterTokenizer`, or for others' tokenizer.json a plain `Tokenizer`.

    Raises:
        UserError: if the files are missing or malformed.
    """
    directory = pathlib.Path(directory)
    path = directory / "tokenizer.json"
    if path.exists():
        text = _read(path, "a tokenizer of the tokenizers library")
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises no narrower class
            raise UserError(f"{path} is not a tokenizer of the tokenizers library: {error}") from error
        return _class_of(backend)(backend)
    if (directory / "vocab.json").exists() or (directory / "merges.txt").exists():
        return BytePairTokenizer.from_files(directory / "vocab.json", directory / "merges.txt")
    raise UserError(f"{directory} holds no tokenizer; expected tokenizer.json, or vocab.json and merges.txt")


# === How a backend is made and recognized ===


def _byte_level_backend(vocabulary, merges):
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    if END_OF_TEXT in vocabulary:
        backend.add_special_tokens([END_OF_TEXT])
    return backend


def _class_of(backend):
    """The class whose shortcuts (`pieces`, the look-up of characters) hold for this backend."""
    if not isinstance(backend.model, models.BPE) or backend.normalizer is not None:
        return Tokenizer
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    split = backend.pre_tokenizer
    if isinstance(split, pre_tokenizers.ByteLevel):
        gpt2s = split.use_regex and not split.add_prefix_space and added <= {END_OF_TEXT}
        return BytePairTokenizer if gpt2s else Tokenizer
    if split is None and isinstance(backend.decoder, decoders.Fuse):
        characters = not added and all(len(token) == 1 for token in backend.get_vocab())
        return CharacterTokenizer if characters else Tokenizer
    return Tokenizer


def _some_text(documents):
    empty = True
    for document in documents:
        empty = empty and not document
        yield document
    if empty:
        raise UserError("there is no text to train a tokenizer on; expected at least one character")


# === GPT-2's files ===


def _read(path, expected):
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; expected {expected}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text at byte {error.start}; expected {expected}") from error


def _read_vocabulary(path):
    expected = "a JSON object from tokens to ids (vocab.json or encoder.json)"
    try:
        vocabulary = json.loads(_read(path, expected))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}; expected {expected}") from error
    if not isinstance(vocabulary, dict) or not all(type(i) is int for i in vocabulary.values()):
        raise UserError(f"{path} holds other things than token ids; expected {expected}")
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise UserError(
            f"{path} does not number its {len(vocabulary)} tokens from 0 to {len(vocabulary) - 1}; "
            "expected each id once"
        )
    missing = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(vocabulary))
    if missing:
        raise UserError(
            f"{path} lacks {missing[0]!r}, the token of a single byte; expected a byte-level vocabulary with all 256"
        )
    return vocabulary


def _read_merges(path, vocabulary, vocabulary_path):
    lines = _read(path, "a merge a line (merges.txt or vocab.bpe)").removesuffix("\n").split("\n")
    merges, products = [], set()
    for number, line in enumerate(lines, start=1):
        line = line.removesuffix("\r")
        if (number == 1 and line.startswith("#version")) or (not line and number == len(lines)):
            continue
        pair = tuple(line.split(" "))
        if len(pair) != 2 or not all(pair):
            raise UserError(f"{path}, line {number}: found {line!r}; expected two tokens with one space between them")
        for token in (*pair, "".join(pair)):
            if token not in vocabulary:
                raise UserError(
                    f"{path}, line {number}: {line!r} needs the token {token!r}, which {vocabulary_path} does not "
                    "hold; expected two files of one vocabulary"
                )
        merges.append(pair)
        products.add("".join(pair))
    bytes_ = set(pre_tokenizers.ByteLevel.alphabet())
    for token in vocabulary.keys() - products - bytes_:
        if not re.fullmatch("<.*>|\\[.*\\]", token):  # special tokens need no merge
            raise UserError(
                f"{path} has {len(merges)} merges, none of which makes the token {token!r} of {vocabulary_path}; "
                "expected two files of one vocabulary"
            )
    return merges
