"""What continues texts: a release's tokenizer and settings, and the batch in which one variant of it runs."""

from __future__ import annotations

import pathlib
import time

from tfgpt.errors import UserError
from tfgpt.generation_settings import GenerationSettings
from tfgpt.json_file import read_json
from tfgpt.runtime.runner import with_stop
from tfgpt.server.chat_template import read_chat_template
from tfgpt.server.continuous_batching import ContinuousBatcher
from tfgpt.text import load_tokenizer


class TextFiles:
    """Of a release, what all its variants share.

    Args:
        release: its directory.
        chat_template: a file; by default the release's own.

    Attributes:
        tokenizer: the release's.
        template: a `ChatTemplate`.
        defaults: the `GenerationSettings` of the release, with stop tokens.
        longest_token: in bytes.

    Raises:
        UserError: if the release's texts cannot be continued token by token.
    """

    def __init__(self, release, chat_template=None):
        self.tokenizer = load_tokenizer(release)
        self.template = read_chat_template(release, chat_template)
        self.defaults = with_stop(_defaults(pathlib.Path(release)), self.tokenizer)
        tokens = self.tokenizer.token_bytes(range(self.tokenizer.vocabulary_size))
        self.longest_token = max(map(len, tokens))


class TextModel:
    """A variant that is being served.

    Args:
        name: what requests call it.
        root: of the model that it is a variant of.
        variant: of `tfgpt.runtime.variants.VARIANTS`, or "saved_model".
        files: `TextFiles`.
        slots: `OnnxSlots` or `SavedModelSlots`.
        max_queue: as `ContinuousBatcher` takes it.
        attention: an `AttentionObserver`, or None.

    Attributes:
        name, root, variant, attention: as given.
        created: when, in seconds since 1970.
        tokenizer, template, defaults: those of `files`.
        window, vocabulary_size, gives_hidden_states: those of `slots`.
        most_prompt_bytes: of a text that can be as short as the window in tokens.
        batcher: a `ContinuousBatcher`.
    """

    def __init__(self, name, root, variant, files, slots, max_queue=256, attention=None):
        self.name, self.root, self.variant, self.attention = name, root, variant, attention
        self.created = int(time.time())
        self.tokenizer, self.template, self.defaults = files.tokenizer, files.template, files.defaults
        self.window, self.vocabulary_size = slots.window, slots.vocabulary_size
        self.gives_hidden_states = slots.gives_hidden_states
        self.most_prompt_bytes = slots.window * files.longest_token
        self.batcher = ContinuousBatcher(slots, max_queue, name)

    def close(self):
        """Finishes what was submitted."""
        self.batcher.close()


def _defaults(release):
    path = release / "generation_config.json"
    if not path.is_file():
        return GenerationSettings()
    settings = GenerationSettings.from_hugging_face(read_json(path))
    if settings.num_beams > 1:
        raise UserError(
            f"{path} has num_beams {settings.num_beams}, expected 1: beam search cannot be batched by token"
        )
    return settings
