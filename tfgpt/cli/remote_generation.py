"""`tfgpt generate` with a server of TensorFlow Serving's protocol."""

from __future__ import annotations

import os
import pathlib
import sys

from tfgpt.errors import UserError


def generate_remotely(address, prompts, settings, stream, tokenizer, token_file=None, **options):
    """Prints the continuation of prompts, and returns them.

    Args:
        address: of the served model.
        prompts: strings.
        settings: the fields of `GenerationSettings`.
        stream: print one text as it grows.
        tokenizer: the directory of the tokenizer, to stream.
        token_file: a file with the server's token.
        **options: of `ServingClient`.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what goes wrong is raised, too
    from tfgpt.generation_settings import GenerationSettings
    from tfgpt.runtime.remote import continue_remotely
    from tfgpt.runtime.serving_client import open_client

    settings = GenerationSettings(**settings)
    if stream and (len(prompts) > 1 or tokenizer is None):
        message = "expected one prompt and --tokenizer, the directory that the served model came from"
        raise UserError(f"--stream chooses the tokens of one text here, {message}")
    with open_client(address, token=read_token(token_file), **options) as client:
        if stream:
            return [_stream(client, prompts[0], settings, tokenizer)]
        continuations = continue_remotely(client, prompts, settings)
    for number, continuation in enumerate(continuations):
        print(continuation.text)
        if continuation.finish_reason == "window":
            count = continuation.num_new_tokens
            print(f"tfgpt: prompt {number} filled the context window after {count} new tokens", file=sys.stderr)
    return [continuation.text for continuation in continuations]


def _stream(client, prompt, settings, directory):
    from tfgpt.cli.commands import stream_to_terminal
    from tfgpt.runtime.release_files import read_release_config
    from tfgpt.runtime.remote import RemoteRunner
    from tfgpt.text import load_tokenizer

    runner = RemoteRunner(read_release_config(directory), client)
    return stream_to_terminal(runner, load_tokenizer(directory), prompt, settings)


def read_token(path):
    """The token in a file, or None without one; a file, because others can read a process's arguments.

    Raises:
        UserError: if there is none.
    """
    if path is None:
        return None
    try:
        token = pathlib.Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read, expected a token: {error}") from error
    if not token.isascii() or not token.isprintable() or not token or " " in token:
        raise UserError(f"{path} holds no token, expected one line of printable ASCII without spaces")
    return token
