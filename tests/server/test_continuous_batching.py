import queue
import random
import threading
import time

import numpy as np
import pytest

from tfgpt.export.onnx_decoder import export_onnx
from tfgpt.export.quantization import write_variant
from tfgpt.export.release import load_for_export
from tfgpt.generation import GenerationSettings
from tfgpt.models import GPT2CausalLM
from tfgpt.runtime.onnx_runtime import OnnxRunner, open_session
from tfgpt.runtime.onnx_slots import OnnxSlots
from tfgpt.runtime.slots import CHUNK
from tfgpt.server.continuous_batching import ContinuousBatcher
from tfgpt.server.status import RequestError
from tfgpt.server.text_requests import Finished, Prompt, Request, Token

VARIANTS = ("float32", "int8", "int8_weight_only", "int4")
WINDOW, VOCABULARY = 512, 280


@pytest.fixture(scope="module")
def runners(tmp_path_factory):
    """A random model with a long window, whose text is varied, in several variants."""
    folder = tmp_path_factory.mktemp("batched")
    model = GPT2CausalLM.from_preset(
        "gpt2-test", load_weights=False, seed=1, vocabulary_size=VOCABULARY, max_sequence_length=WINDOW, hidden_dim=64
    )
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign(variable * 8.0)
    model.save_to_preset(folder / "model")
    export_onnx(load_for_export(folder / "model"), folder / "onnx", "model")
    for variant in VARIANTS[1:]:
        write_variant(folder / "onnx", variant)
    config = {"n_positions": WINDOW, "vocab_size": VOCABULARY}
    config |= {"n_layer": model.backbone.num_layers, "n_head": model.backbone.num_heads, "n_embd": 64}
    return {
        variant: OnnxRunner(config, open_session(folder / "onnx" / f"model_{variant}.onnx", 2), variant)
        for variant in VARIANTS
    }


@pytest.fixture
def batcher(runners):
    batcher = ContinuousBatcher(OnnxSlots(runners["float32"], 3), max_queue=4)
    yield batcher
    batcher.close()


def random_prompt(length, seed=None):
    return np.random.default_rng(length if seed is None else seed).integers(0, VOCABULARY, length).tolist()


def greedy(count):
    return GenerationSettings(max_new_tokens=count, stop_token_ids=())


class Answer:
    """Submits a request, and collects what comes."""

    def __init__(self, batcher, prompt, settings, **options):
        self.events, self.ended = [], threading.Event()
        self.arrived = queue.Queue()
        self.request = Request(prompt, settings, self._notify, **options)
        batcher.submit(self.request)

    def _notify(self, event):
        self.events.append(event)
        self.arrived.put(event)
        if isinstance(event, (Finished, RequestError)):
            self.ended.set()

    def result(self):
        assert self.ended.wait(60)
        if isinstance(self.events[-1], RequestError):
            raise self.events[-1]
        return self.events[-1].reason, [event.token_id for event in self.events if isinstance(event, Token)]


# === The same text as alone ===


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_do_not_depend_on_each_other(runners, variant):
    """Bit for bit, whoever stands beside them, in whichever slot."""
    runner, prompts = runners[variant], [random_prompt(length) for length in (5, 130, 17, 255, 64, 129, 33, 1)]

    def read(slots, slot, prompt):
        for start in range(0, len(prompt), CHUNK):
            logits = slots.read(slot, prompt[start : start + CHUNK])
        return logits

    together = OnnxSlots(runner, len(prompts))
    first = [read(together, slot, prompt) for slot, prompt in enumerate(prompts)]
    # Rows 1 and 3 stay as they are in the second step.
    steps = [together.step(tokens).copy() for tokens in ([7] * 8, [8, None, 8, None, 8, 8, 8, 8], [9] * 3)]
    assert together.lengths[:4].tolist() == [8, 132, 20, 256]
    for slot, prompt in enumerate(prompts):
        alone = OnnxSlots(runner, 1)
        assert np.array_equal(read(alone, 0, prompt), first[slot])
        assert np.array_equal(alone.step([7])[0], steps[0][slot])
        if slot not in (1, 3):
            assert np.array_equal(alone.step([8])[0], steps[1][slot])
        if slot < 3:
            assert np.array_equal(alone.step([9])[0], steps[2][slot])


@pytest.mark.parametrize("variant", ["float32", "int8"])
def test_texts_are_those_of_the_runner(runners, variant):
    """Many clients, prompts of all lengths, greedy and sampled, some leaving early, in few slots."""
    runner, rng = runners[variant], random.Random(0)
    batcher = ContinuousBatcher(OnnxSlots(runner, 4))
    cases = []
    for number in range(24):
        prompt = random_prompt(rng.choice([1, 2, 9, 40, 127, 128, 129, 200, 257]), number)
        settings = rng.choice(
            [
                greedy(rng.randrange(1, 40)),
                GenerationSettings(max_new_tokens=20, temperature=0.9, top_k=40, stop_token_ids=(3, 4), seed=number),
                GenerationSettings(max_new_tokens=20, repetition_penalty=1.3, temperature=0.7, top_p=0.9, seed=-number),
            ]
        )
        if settings.stop_token_ids is None:
            settings = GenerationSettings(**{**vars(settings), "stop_token_ids": (5,)})
        cases.append((prompt, settings, number % 6 == 5))
    found = [None] * len(cases)

    def client(numbers):
        for number in numbers:
            prompt, settings, leaves = cases[number]
            answer = Answer(batcher, prompt, settings)
            if leaves:
                answer.arrived.get()
                answer.request.cancel()
            else:
                found[number] = answer.result()

    threads = [threading.Thread(target=client, args=(range(start, len(cases), 6),)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    batcher.close()
    for (prompt, settings, leaves), answer in zip(cases, found, strict=True):
        if not leaves:
            expected = runner.generate([prompt], settings)[0]
            stopped = expected[-1] in settings.stop_token_ids
            assert answer == ("stop" if stopped else "length", expected)
    assert batcher.load == (0, 0)


def test_shared_beginnings_are_read_once(runners):
    read = []
    batcher = ContinuousBatcher(OnnxSlots(runners["float32"], 2))
    slots_read = batcher._slots.read
    batcher._slots.read = lambda slot, ids, all_logits=False: read.append(len(ids)) or slots_read(slot, ids, all_logits)
    shared = random_prompt(200)
    prompts = [shared + random_prompt(10), shared + random_prompt(7), shared, shared + random_prompt(10)]
    answers = [Answer(batcher, prompt, greedy(12)) for prompt in prompts]
    texts = [answer.result()[1] for answer in answers]
    batcher.close()
    assert texts == [runners["float32"].generate([prompt], greedy(12))[0] for prompt in prompts]
    assert read == [128, 82, 79, 72, 82]


def test_log_probabilities(runners, batcher):
    prompt, runner = random_prompt(150), runners["float32"]
    answer = Answer(batcher, prompt, greedy(5), num_logprobs=3, prompt_logprobs=True)
    _, tokens = answer.result()
    whole = np.array([prompt + tokens])
    logits = runner.logits(whole, np.ones_like(whole))[0].astype(np.float64)
    logprobs = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    logprobs -= logits.max(-1, keepdims=True)
    read = next(event for event in answer.events if isinstance(event, Prompt))
    described = [*read.tokens, *(event for event in answer.events if isinstance(event, Token))]
    assert [token.token_id for token in described] == whole[0].tolist() and described[0] == Token(prompt[0])
    for token, line in zip(described[1:], logprobs):
        assert token.logprob == pytest.approx(line[token.token_id], abs=1e-4)
        best = np.argsort(-line)[:3]
        assert [i for i, _ in token.alternatives] == best.tolist()
        assert [value for _, value in token.alternatives] == pytest.approx(line[best], abs=1e-4)
    alone = Answer(batcher, prompt, greedy(5), num_logprobs=0, prompt_logprobs=True, prompt_only=True)
    assert alone.result() == ("length", []) and len(alone.events[0].tokens) == 150
    assert alone.events[0].tokens[1] == read.tokens[1]._replace(alternatives=())


# === Limits ===


def slow_down(batcher):
    """Makes a step take 10 ms and more, so that 400 tokens take seconds on any machine."""
    step = batcher._slots.step
    batcher._slots.step = lambda tokens: time.sleep(0.01) or step(tokens)


def test_a_prompt_beyond_the_window(batcher):
    with pytest.raises(RequestError, match="has 500 tokens and 14 are to follow, expected at most the window's 512"):
        Answer(batcher, random_prompt(500), greedy(14))
    assert len(Answer(batcher, random_prompt(500), greedy(13)).result()[1]) == 13
    assert len(Answer(batcher, random_prompt(512), greedy(1)).result()[1]) == 1


def test_a_full_queue_says_when_to_come_back(batcher):
    slow_down(batcher)
    running = [Answer(batcher, [i], greedy(400)) for i in range(3)]
    for answer in running:
        answer.arrived.get()
    waiting = [Answer(batcher, [i], greedy(1)) for i in range(4)]
    with pytest.raises(RequestError, match="4 requests are waiting, try again later") as error:
        Answer(batcher, [1], greedy(1))
    assert error.value.code == "RESOURCE_EXHAUSTED" and 1 <= error.value.retry_after <= 60
    assert all(len(answer.result()[1]) == 400 for answer in running)
    assert all(len(answer.result()[1]) == 1 for answer in waiting)


def test_deadlines(batcher):
    slow_down(batcher)
    running = [Answer(batcher, [i], greedy(500), deadline=time.monotonic() + 2) for i in range(3)]
    for answer in running:
        answer.arrived.get()
    late = Answer(batcher, [5], greedy(1), deadline=time.monotonic() + 0.05)
    with pytest.raises(RequestError, match="waited longer than its deadline"):
        late.result()
    for answer in running:
        with pytest.raises(RequestError, match="not complete at its deadline"):
            answer.result()
        assert 1 < len(answer.events) < 501


def test_nobody_waits_for_those_who_left(batcher):
    slow_down(batcher)
    answers = [Answer(batcher, [i], greedy(500)) for i in range(3)]
    waiting = Answer(batcher, [4], greedy(500))
    waiting.request.cancel()
    for answer in answers:
        answer.arrived.get()
        answer.request.cancel()
    assert Answer(batcher, [9], greedy(3)).result()[0] == "length"
    assert not waiting.events and batcher.load[1] == 0


def test_a_step_that_fails_ends_its_texts_alone(runners):
    batcher = ContinuousBatcher(OnnxSlots(runners["float32"], 2))
    step, failing = batcher._slots.step, [True]

    def broken(tokens):
        if failing:
            failing.pop()
            raise RuntimeError("no memory")
        return step(tokens)

    batcher._slots.step = broken
    with pytest.raises(RequestError, match="the batch failed in the server"):
        Answer(batcher, [1, 2, 3], greedy(5)).result()
    assert Answer(batcher, [1, 2, 3], greedy(5)).result()[1] == runners["float32"].generate([[1, 2, 3]], greedy(5))[0]
    batcher.close()


def test_closing_finishes_what_was_submitted(runners):
    batcher = ContinuousBatcher(OnnxSlots(runners["float32"], 2))
    answers = [Answer(batcher, [i], greedy(30)) for i in range(5)]
    batcher.close()
    assert all(len(answer.result()[1]) == 30 for answer in answers)
    with pytest.raises(RequestError, match="shutting down"):
        Answer(batcher, [1], greedy(1))


def test_a_listener_that_fails_is_not_heard_again(runners):
    batcher = ContinuousBatcher(OnnxSlots(runners["float32"], 2))

    def raises(_):
        raise ValueError("no")

    batcher.submit(Request([1], greedy(50), raises))
    assert len(Answer(batcher, [2], greedy(10)).result()[1]) == 10
    batcher.close()
    assert batcher.load == (0, 0)
