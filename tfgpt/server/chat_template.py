"""How a conversation becomes a prompt: a Jinja template, as Hugging Face's tokenizers carry one."""

from __future__ import annotations

import json
import pathlib

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tfgpt.errors import UserError
from tfgpt.server.status import invalid

# For models that name none: what `configs/dialogue.yaml` may be trained on, and a plain language model understands.
DEFAULT = (
    "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


class ChatTemplate:
    """A template.

    Args:
        source: Jinja's text.
        where: that it comes from, for messages.
        variables: of the template, such as `eos_token`.

    Raises:
        UserError: if it is no template.

    Example:
        >>> template = ChatTemplate(DEFAULT, "the default")
        >>> template.render([{"role": "user", "content": "Hello!"}])
        'User: Hello!\\nAssistant:'
    """

    def __init__(self, source, where, variables=None):
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        self._variables = variables or {}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise UserError(f"{where} is no chat template, expected one of Jinja: {error}") from error

    def render(self, messages):
        """The prompt that an answer to these messages continues.

        Raises:
            RequestError: INVALID_ARGUMENT if the template refuses them.
        """
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._variables)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise invalid(f"the chat template refuses these messages: {error}") from error


def read_chat_template(release, path=None):
    """The template of a file, of a release's chat_template.jinja or tokenizer_config.json, or the default.

    Raises:
        UserError: if it cannot be read, or is none.
    """
    release = pathlib.Path(release)
    config = release / "tokenizer_config.json"
    variables, source = {}, None
    try:
        if config.is_file():
            document = json.loads(config.read_text(encoding="utf-8"))
            tokens = {name: token for name, token in document.items() if name.endswith("_token")}
            variables = {name: one.get("content") if isinstance(one, dict) else one for name, one in tokens.items()}
            source = document.get("chat_template")
        separate = pathlib.Path(path) if path is not None else release / "chat_template.jinja"
        if path is not None or separate.is_file():
            source, config = separate.read_text(encoding="utf-8"), separate
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path or config} cannot be read, expected a chat template: {error}") from error
    if isinstance(source, list):  # several by name
        source = next((one.get("template") for one in source if one.get("name") == "default"), None)
    if source is None:
        return ChatTemplate(DEFAULT, "the default")
    if not isinstance(source, str):
        raise UserError(f"{config} has chat_template {source!r}, expected a string")
    return ChatTemplate(source, config, variables)


def _refuse(message):
    raise jinja2.TemplateError(message)
