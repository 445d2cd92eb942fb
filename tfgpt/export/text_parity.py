"""Does the artifact read and write text as the model does? The tokenizer and the loop of its graph, on trial."""

from __future__ import annotations

from tfgpt.export.parity import Breach, identical_length, is_near_tie
from tfgpt.export.tolerances import TOLERANCES

NEW_TOKENS = 32


def check_text(report, runner, expected, tokenizer, stops):
    """Continues the prompts of the parity check as text, and adds a breach where it is not the model's.

    The tokenizer that the graph's is compared with is the `tokenizers` library's.

    Args:
        report: the runner's `RunnerReport`.
        runner: one with `complete`.
        expected: an `Expectation`.
        tokenizer: a `tfgpt.text` tokenizer.
        stops: the token ids that end the artifact's continuations.
    """
    reference, limit = expected.reference, TOLERANCES[report.precision].logit
    texts = [tokenizer.decode(prompt) for prompt in expected.prompts]
    # Another cut of the same text may be longer than the prompt was.
    texts = [text for text in texts if 0 < len(tokenizer.encode(text)) <= reference.window]
    prompts = [tokenizer.encode(text) for text in texts]
    found = runner.complete(texts, NEW_TOKENS)
    continuations = reference.greedy(prompts, NEW_TOKENS, stops)
    for number, (text, prompt, want, got) in enumerate(zip(texts, prompts, continuations, found, strict=True)):
        tokens = got["token_ids"]
        want = want[: len(tokens)] if got["finish_reason"] == "window" else want
        length = identical_length(want, tokens)
        if got["num_prompt_tokens"] != len(prompt):
            message = f"the prompt has {got['num_prompt_tokens']} tokens, expected {len(prompt)}"
        elif not length == len(want) == len(tokens):
            if is_near_tie(reference, prompt, want, tokens, length, limit):
                report.near_ties += 1
                continue
            message = f"the continuation parts with the model's after {length} tokens"
        elif got["text"] != text + tokenizer.decode(tokens[:-1] if tokens[-1] in stops else tokens):
            message = f"the text is {got['text']!r}, expected the model's"
        else:
            report.identical_texts += 1
            continue
        report.breaches.append(Breach(report.runtime, "text", number, length, message, excess=0.0))
    report.texts = len(texts)
