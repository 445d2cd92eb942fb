"""How OpenAI's API writes texts: choices that grow token by token, and the JSON of both kinds of completions."""

from __future__ import annotations

import collections
import secrets
import time

from tfgpt.server.text_requests import Finished, Prompt, Token
from tfgpt.server.text_stream import TextStream


class Choice:
    """A text that grows.

    Args:
        text_model: the `TextModel`.
        asked: the `GenerationRequest`.
        index: of the choice.
        prompt_text: of its prompt.

    Attributes:
        text: all of it that is certain.
        new: what came with the last event.
        tokens: those described so far, if they were asked for; `new_tokens` the last of them.
        token_ids: of the text, with the stop token; `new_ids` the last of them.
        count: of new tokens.
        reason: why it ended, or None.
    """

    def __init__(self, text_model, asked, index, prompt_text):
        self.index, self.reason, self.count = index, None, 0
        self.text = self.new = prompt_text if asked.echo else ""
        self.tokens, self.new_tokens = [], []
        self.token_ids, self.new_ids = [], []
        self._tokenizer, self._asked = text_model.tokenizer, asked
        self._stops = text_model.defaults.stop_token_ids
        self._stream = TextStream(asked.stops)

    def take(self, event):
        """Takes a token up, or the end, or what is known of the prompt."""
        self.new, self.new_tokens, self.new_ids = "", [], []
        if isinstance(event, Prompt):
            self.new_tokens = list(event.tokens)
        elif isinstance(event, Token):
            self.count += 1
            self.new_ids = [event.token_id]
            if event.token_id not in self._stops:
                self.new = self._stream.push(self._tokenizer.token_bytes([event.token_id])[0])
                if self._asked.num_logprobs is not None:
                    self.new_tokens = [event]
            if self._stream.stopped:
                self.reason = "stop"
        elif isinstance(event, Finished):
            self.new, self.reason = self._stream.finish(), event.reason
            if self._stream.stopped:
                self.reason = "stop"
        self.text += self.new
        self.tokens += self.new_tokens
        self.token_ids += self.new_ids


class Shape:
    """How an answer is written.

    Args:
        text_model: the `TextModel`.
        asked: the `GenerationRequest`.
        prompts: token ids.
    """

    kind = streamed_kind = prefix = ""
    one_prompt = False  # of all choices

    def __init__(self, text_model, asked, prompts):
        self.text_model, self.asked, self.prompts = text_model, asked, prompts
        self.count = len(prompts) * asked.num_choices
        self._identity, self._created = f"{self.prefix}-{secrets.token_hex(12)}", int(time.time())
        self._begun = set()  # indices of choices

    def whole(self, choices):
        """The answer in one piece."""
        written = [self._choice(choice) for choice in choices]
        answer = {**self._head(self.kind), "choices": written, "usage": self._usage(choices)}
        for choice in choices:
            self._add_token_ids(answer, written[choice.index], choice.index, choice.token_ids)
        return answer

    def usage_piece(self, choices):
        """The last piece of a stream: what was counted."""
        return {**self._head(self.streamed_kind), "choices": [], "usage": self._usage(choices)}

    def _piece(self, choice, **fields):
        one = {"index": choice.index, **fields, "logprobs": None, "finish_reason": None}
        piece = {**self._head(self.streamed_kind), "choices": [one]}
        self._add_token_ids(piece, one, choice.index, choice.new_ids)
        return piece | ({"usage": None} if self.asked.include_usage else {})

    def pieces(self, choice):
        """Those of a stream that the last event makes."""
        if not (choice.new or choice.new_tokens or choice.reason or (choice.new_ids and self.asked.token_ids)):
            return
        piece = self._piece(choice, **self._content(choice.new))
        if choice.new_tokens:
            piece["choices"][0]["logprobs"] = self._logprobs(choice.new_tokens, choice)
        piece["choices"][0]["finish_reason"] = choice.reason
        yield piece

    def _add_token_ids(self, answer, choice, index, token_ids):
        """Adds what `return_token_ids` asks for, where vLLM has it: those of the prompt once a choice."""
        if not self.asked.token_ids:
            return
        choice["token_ids"] = token_ids
        if index not in self._begun:
            place = answer if self.one_prompt else choice
            place["prompt_token_ids"] = self.prompts[index // self.asked.num_choices]
        self._begun.add(index)

    def _head(self, kind):
        return {"id": self._identity, "object": kind, "created": self._created, "model": self.text_model.name}

    def _usage(self, choices):
        prompt, new = sum(map(len, self.prompts)), sum(choice.count for choice in choices)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def _texts(self, tokens):
        return self.text_model.tokenizer.token_texts(tokens)


class CompletionShape(Shape):
    """An answer of /v1/completions."""

    kind = streamed_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, *args):
        super().__init__(*args)
        self._offsets = collections.defaultdict(int)

    def beginning(self, choice):
        """The pieces that come before any token."""
        if choice.new:
            yield self._piece(choice, text=choice.new)

    def _content(self, text):
        return {"text": text}

    def _choice(self, choice):
        return {
            "text": choice.text,
            "index": choice.index,
            "logprobs": self._logprobs(choice.tokens, choice) if self.asked.num_logprobs is not None else None,
            "finish_reason": choice.reason,
        }

    def _logprobs(self, tokens, choice):
        texts = self._texts([token.token_id for token in tokens])
        offsets = []
        for text in texts:
            offsets.append(self._offsets[choice.index])
            self._offsets[choice.index] += len(text)
        top = [
            dict(zip(self._texts([i for i, _ in token.alternatives]), [value for _, value in token.alternatives]))
            if token.logprob is not None
            else None
            for token in tokens
        ]
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": top,
            "text_offset": offsets,
        }


class ChatShape(Shape):
    """An answer of /v1/chat/completions."""

    kind, streamed_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"
    one_prompt = True

    def beginning(self, choice):
        """The piece that says who speaks."""
        yield self._piece(choice, delta={"role": "assistant", "content": "", "refusal": None})

    def _content(self, text):
        return {"delta": {"content": text} if text else {}}

    def _choice(self, choice):
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self._logprobs(choice.tokens, choice) if self.asked.num_logprobs is not None else None,
            "finish_reason": choice.reason,
        }

    def _logprobs(self, tokens, _):
        def described(token_id, logprob):
            piece = self.text_model.tokenizer.token_bytes([token_id])[0]
            return {"token": self._texts([token_id])[0], "logprob": logprob, "bytes": list(piece)}

        content = [
            {
                **described(token.token_id, token.logprob),
                "top_logprobs": [described(*one) for one in token.alternatives],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}
