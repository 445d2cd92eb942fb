"""What a run learns from: text that it tokenizes itself, or directories that `tfgpt prepare` has made."""

from __future__ import annotations

import json
import pathlib

from tfgpt.atomic import write_text
from tfgpt.checksum import sha256_of_file
from tfgpt.errors import UserError
from tfgpt.models.gpt2.model_directory import read_json
from tfgpt.text import (
    TokenMixture,
    TokenShards,
    TokenSplit,
    find_documents,
    load_tokenizer,
    make_tokenizer,
    write_token_shards,
)
from tfgpt.text.shards import INDEX

# Bytes of prepared shards up to which their checksums are compared when a run begins, which takes about a second;
# beyond that, sizes are, and `tfgpt prepare --verify` reads everything.
CHECKED_BYTES = 2**30


def open_run_data(config):
    """The data of a run: a `TextData`, or `PreparedData` where every name is a directory of token shards.

    Raises:
        UserError: if there is none.
    """
    prepared = [source for source in config.data if (pathlib.Path(source) / INDEX).exists()]
    if not prepared:
        if config.data_weights is not None:
            raise UserError(
                "data_weights are for directories that `tfgpt prepare` has made, expected data to be some of those"
            )
        return TextData(config)
    if len(prepared) < len(config.data):
        [text, *_] = [source for source in config.data if source not in prepared]
        raise UserError(f"data is text ({text}) and prepared tokens ({prepared[0]}), expected one or the other")
    return PreparedData(config)


class TextData:
    """Text, which a run tokenizes into its model directory."""

    def __init__(self, config):
        self._config = config
        self._documents = find_documents(config.data, max_bytes=config.max_bytes)

    def tokenizer(self, vocabulary_size):
        """The run's tokenizer, trained on the text if it is one of those that are."""
        return make_tokenizer(self._config.tokenizer, self._documents, vocabulary_size)

    def splits(self, tokenizer, directory):
        """What to train on and what to validate on; writes token shards to a directory that is not there yet."""
        config = self._config
        shards = write_token_shards(directory, self._documents, tokenizer, config.validation_fraction, config.seed)
        return shards.split("train"), shards.split("validation")

    def remember(self, training):
        """The run's tokens are a part of it and have checksums."""


class PreparedData:
    """One or more directories of token shards, whose text has been tokenized before."""

    def __init__(self, config):
        self._config = config
        if config.max_bytes is not None:
            raise UserError(
                f"max_bytes is {config.max_bytes}, expected none with prepared tokens, which are read whole"
            )
        self._shards = [TokenShards.open(source) for source in config.data]
        if sum(shards.size for shards in self._shards) <= CHECKED_BYTES:
            for shards in self._shards:
                shards.check_contents()

    def tokenizer(self, vocabulary_size):
        """The tokenizer of the shards, which must be the one that the run names, if it names a certain one."""
        config, own = self._config, load_tokenizer(self._shards[0].directory)
        kinds = {"bpe": "BytePairTokenizer", "character": "CharacterTokenizer"}
        if config.tokenizer not in kinds:
            own = make_tokenizer(config.tokenizer, [], vocabulary_size)
        elif config.tokenizer == "character" and type(own).__name__ != kinds["character"]:
            raise UserError(
                f"tokenizer is 'character', but {self._shards[0].directory} was prepared with a {type(own).__name__}, "
                "expected the same"
            )
        if config.vocabulary_size not in (None, own.vocabulary_size):
            raise UserError(
                f"vocabulary_size is {config.vocabulary_size}, expected none or the {own.vocabulary_size} of "
                f"{self._shards[0].directory}, which was prepared with it"
            )
        self.check_tokenizer(own)
        return own

    def check_tokenizer(self, tokenizer):
        """Raises a `UserError` if another tokenizer made some of the tokens."""
        for shards in self._shards:
            shards.check_tokenizer(tokenizer)

    def splits(self, tokenizer, directory):
        """What to train on, mixed by weight, and what to validate on, one after the other.

        Makes a link to the first data set, by which the export finds text that was held out.
        """
        try:
            directory = pathlib.Path(directory)
            directory.parent.mkdir(parents=True, exist_ok=True)
            directory.symlink_to(self._shards[0].directory.resolve())
        except OSError as error:
            raise UserError(f"cannot write {directory}: {(error.strerror or str(error)).lower()}") from error
        return self.parts()

    def remember(self, training):
        """Writes by what to tell, when the run is continued, that its data are still the same."""
        write_text(pathlib.Path(training) / "data.json", json.dumps(self._checksums(), indent=2) + "\n")

    def check_unchanged(self, training):
        """Raises a `UserError` if the data are not those that `remember` has seen."""
        before = read_json(pathlib.Path(training) / "data.json")
        for source, checksum in self._checksums().items():
            if before.get(source) != checksum:
                raise UserError(
                    f"{source} was prepared anew, expected the tokens that the unfinished run in {self._config.out} "
                    "began with; --overwrite starts anew"
                )

    def _checksums(self):
        # An index has the checksums of its shards.
        return {str(shards.directory): sha256_of_file(shards.directory / INDEX) for shards in self._shards}

    def parts(self):
        """What to train on, mixed by weight, and what to validate on, one after the other."""
        train = [shards.split("train") for shards in self._shards]
        validation = [shards.split("validation") for shards in self._shards]
        whole = TokenSplit(
            "validation",
            validation[0].directory,
            tuple(array for split in validation for array in split.arrays),
            sum(split.num_tokens for split in validation),
            sum(split.num_bytes for split in validation),
            tuple(starts for split in validation for starts in split.document_starts),
        )
        weights = self._config.data_weights
        if len(train) == 1 and weights is None:
            return train[0], whole
        return TokenMixture(tuple(train), tuple(weights or (split.num_tokens for split in train))), whole
