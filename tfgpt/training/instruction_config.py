"""The run that trains a GPT-2 to answer prompts: what it is told beside what language modelling is."""

from __future__ import annotations

import dataclasses
import string
from typing import ClassVar

from tfgpt.errors import UserError
from tfgpt.training.run_config import RunConfig


@dataclasses.dataclass(kw_only=True)
class InstructionConfig(RunConfig):
    """A run that trains a causal language model on prompts and answers, with the loss on the answers alone.

    Args:
        data: .jsonl files, each perhaps with .gz; every line is an object with the templates' fields.
        validation_data: the same, to validate on; by default `validation_fraction` of `data`.
        prompt_template: what the model reads, with fields of the data in braces, such as "Question: {question}".
        answer_template: what it is to write behind that; the end of text follows it.
        truncate: leave out the first tokens of a prompt that is too long for the window with its answer, rather than
            refuse it.
    """

    task: str = "instruction_tuning"
    validation_data: list[str] | None = None
    prompt_template: str = "{prompt}"
    answer_template: str = "{answer}"
    truncate: bool = False

    examples: ClassVar[str] = "examples"

    def __post_init__(self):
        """Checks ranges, and fills in what follows from other fields."""
        if isinstance(self.validation_data, str):
            self.validation_data = [self.validation_data]
        super().__post_init__()
        for name in ("data_weights", "max_bytes"):
            self._expect(name, getattr(self, name) is None, "none: every example is taken once an epoch")
        for name in ("prompt_template", "answer_template"):
            template_fields(getattr(self, name), name)
        self._expect("answer_template", template_fields(self.answer_template, "answer_template"), "one with a field")


def template_fields(template, name):
    """The names of the fields in a template, in order.

    Args:
        template: a string with fields in braces; "{{" is a brace.
        name: of the option, for messages.

    Raises:
        UserError: if it is no template, or asks for more than a field's text.

    Example:

    >>> template_fields("Q: {question} {{}}", "prompt_template")
    ['question']
    """
    fields = []
    try:
        for _, field, form, conversion in string.Formatter().parse(template):
            if field is None:
                continue
            if form or conversion or not field.isidentifier():
                raise ValueError("a field is a name in braces")
            fields.append(field)
    except ValueError as error:
        raise UserError(f"{name} is {template!r}, expected fields in braces such as {{question}}: {error}") from error
    return fields
