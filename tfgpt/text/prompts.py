"""Prompts and their answers: templates over JSON Lines, and batches in which the answers alone count."""

import dataclasses

import numpy as np
import tensorflow as tf

from tfgpt.errors import UserError
from tfgpt.text.labelled import json_rows
from tfgpt.text.permutation import EpochOrder
from tfgpt.text.windows import PREFETCH, rows_of_pipeline, without_autotune


@dataclasses.dataclass(frozen=True, slots=True)
class PromptedText:
    """A prompt and its answer.

    Attributes:
        prompt, answer: str.
        place: the file and line that they come from, for messages.
    """

    prompt: str
    answer: str
    place: str


@dataclasses.dataclass(frozen=True)
class PromptedTokens:
    """The same as token ids.

    Attributes:
        token_ids: an int array of prompt, answer and end of text, for each example.
        num_prompt_tokens: how many of each are the prompt's.
        num_answer_bytes: of all answers, in UTF-8.
    """

    token_ids: tuple
    num_prompt_tokens: tuple
    num_answer_bytes: int


def read_prompted(paths, prompt_template, answer_template):
    """Reads prompts and answers from JSON Lines files, each line an object with the templates' fields.

    A field is a string or a number, or a list of strings, whose items come a line each, as the turns of a dialogue.

    Args:
        paths: files that end in .jsonl, or in .jsonl.gz.
        prompt_template, answer_template: strings with fields in braces.

    Returns:
        A list of `PromptedText`s, in the files' order.

    Raises:
        UserError: for a file that is missing or empty, a malformed line, a field that is missing or no text, or an
            answer that is empty; each names file and line.
    """
    examples = []
    for path in paths:
        before = len(examples)
        for number, row in json_rows(path):
            place = f"{path}, line {number}"
            fields = _Fields(row, place)
            answer = answer_template.format_map(fields)
            if not answer.strip():
                raise UserError(f"{place} has an empty answer, expected some characters")
            examples.append(PromptedText(prompt_template.format_map(fields), answer, place))
        if len(examples) == before:
            raise UserError(f"{path} holds no examples, expected at least one line of them")
    return examples


class _Fields:
    """An object of JSON as templates read it."""

    def __init__(self, row, place):
        self.row, self.place = row, place

    def __getitem__(self, name):
        if name not in self.row:
            fields = ", ".join(self.row) or "none"
            raise UserError(f"{self.place} has the fields {fields}, expected one named {name!r} for the template")
        value = self.row[name]
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return "\n".join(value)
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise UserError(f"{self.place} has {name} {value!r}, expected a string, a number or a list of strings")
        return str(value)


def encode_prompted(tokenizer, examples, window, truncate=False):
    """Token ids of prompts and answers, each of the two by itself, as at generation, and the end of text behind them.

    Args:
        tokenizer: a `tfgpt.text.Tokenizer`.
        examples: `PromptedText`s.
        window: the most tokens that a model reads; what it reads lacks an example's last token.
        truncate: leave out the first tokens of prompts that are too long, rather than refuse them.

    Returns:
        `PromptedTokens`.

    Raises:
        UserError: for an example that is longer than the window, or of a tokenizer without prompt or end of text.
    """
    end = [] if tokenizer.end_token_id is None else [tokenizer.end_token_id]
    prompts = tokenizer.encode_batch([example.prompt for example in examples])
    answers = tokenizer.encode_batch([example.answer for example in examples])
    rows, counts = [], []
    for example, prompt, answer in zip(examples, prompts, answers, strict=True):
        prompt, answer = prompt or end, answer + end  # an empty prompt begins behind the end of another text
        excess = len(prompt) + len(answer) - 1 - window
        if excess >= len(prompt):
            raise UserError(
                f"{example.place} has an answer of {len(answer)} tokens, expected at most the window's {window}"
            )
        if excess > 0 and not truncate:
            raise UserError(
                f"{example.place} has {len(prompt)} tokens of prompt and {len(answer)} of answer, expected at most the "
                f"window's {window + 1}; --truncate leaves out the first ones of such prompts"
            )
        prompt = prompt[max(excess, 0) :]
        rows.append(np.array(prompt + answer, np.int32))
        counts.append(len(prompt))
    return PromptedTokens(tuple(rows), tuple(counts), sum(len(example.answer.encode()) for example in examples))


def prompted_batch(tokens, chosen, width):
    """The batch of some examples: inputs, targets and weights (B, T), each padded on the right with zeros.

    A target counts, weight 1, where it is of the answer or the end of text; prompts and padding weigh 0.

    Args:
        tokens: `PromptedTokens`.
        chosen: the numbers of the examples; -1 is a row of padding.
        width: T.
    """
    inputs = np.zeros((len(chosen), width), np.int32)
    targets, weights = np.zeros_like(inputs), np.zeros(inputs.shape, np.float32)
    for row, number in enumerate(chosen):
        if number < 0:
            continue
        token_ids, prompt = tokens.token_ids[number], tokens.num_prompt_tokens[number]
        inputs[row, : len(token_ids) - 1], targets[row, : len(token_ids) - 1] = token_ids[:-1], token_ids[1:]
        weights[row, prompt - 1 : len(token_ids) - 1] = 1
    return inputs, targets, weights


def prompted_training(tokens, width, batch_size, seed, start_step=0, num_pipelines=1, pipeline=0):
    """An endless dataset of `(inputs, targets, weights)`; batch `i` depends on `seed` and `start_step + i` alone.

    Args:
        tokens: `PromptedTokens`, each of which comes once an epoch.
        width: T, which batches are padded to.
        batch_size, seed, start_step, num_pipelines, pipeline: as in `tfgpt.text.training_windows`.
    """
    order = EpochOrder(len(tokens.token_ids), seed)
    part = rows_of_pipeline(batch_size, num_pipelines, pipeline)

    def read(step):
        return prompted_batch(tokens, order(int(step) * batch_size + np.arange(batch_size))[part], width)

    return _dataset(tf.data.Dataset.counter(start=start_step), read, (batch_size // num_pipelines, width))


def prompted_validation(tokens, width, batch_size, num_batches=None, num_pipelines=1, pipeline=0):
    """A finite dataset of `(inputs, targets, weights)` in which every example is once.

    Args:
        tokens, width, batch_size: as in `prompted_training`.
        num_batches: take so many batches at most, from the first on; by default all.
        num_pipelines, pipeline: as in `tfgpt.text.training_windows`.
    """
    count = len(tokens.token_ids)
    part = rows_of_pipeline(batch_size, num_pipelines, pipeline)
    batches = min(-(-count // batch_size), num_batches or count)

    def read(number):
        chosen = int(number) * batch_size + np.arange(batch_size)
        return prompted_batch(tokens, np.where(chosen < count, chosen, -1)[part], width)

    return _dataset(tf.data.Dataset.range(batches), read, (batch_size // num_pipelines, width))


def _dataset(numbers, read, shape):
    def arrays(number):
        found = tf.numpy_function(read, [number], (tf.int32, tf.int32, tf.float32), stateful=False)
        return tuple(tf.ensure_shape(array, shape) for array in found)

    return without_autotune(numbers.map(arrays).prefetch(PREFETCH))
