"""Batches: what runs together, what each request gets, and what happens where it fails."""

import threading
import time

import numpy as np
import pytest

from tests.server.conftest import send
from tfgpt.errors import UserError
from tfgpt.server.batching import Batcher, BatchingParameters
from tfgpt.server.config_files import read_batching_parameters
from tfgpt.server.status import RequestError, invalid


class Doubler:
    """Gives 2 x, remembers the batches, and can be held up."""

    def __init__(self):
        self.batches, self.gate, self.entered = [], threading.Event(), threading.Semaphore(0)
        self.gate.set()

    def run(self, signature, inputs, outputs):
        self.batches.append(inputs["x"].tolist())
        self.entered.release()
        self.gate.wait(30)
        if (inputs["x"] < 0).any():
            raise invalid("x is negative")
        if (inputs["x"] > 1e6).any():
            raise ZeroDivisionError("a bug")
        return {"y": 2 * inputs["x"], **({"sum": inputs["x"].sum()} if "sum" in outputs else {})}


@pytest.fixture
def doubler():
    return Doubler()


@pytest.fixture
def make(request):
    """Makes batchers that end with the test."""

    def make(**parameters):
        batcher = Batcher(BatchingParameters(**{"num_batch_threads": 1, **parameters}))
        request.addfinalizer(batcher.close)
        return batcher

    return make


def run_together(batcher, doubler, *requests, outputs=("y",)):
    """The outcomes of requests that all wait while a first one, [0], holds the only thread."""
    doubler.gate.clear()
    doubler.entered = threading.Semaphore(0)
    outcomes = [None] * (len(requests) + 1)

    def client(number, values):
        try:
            outcomes[number] = batcher.run(doubler, "s", {"x": np.float32(values)}, outputs)["y"].tolist()
        except RequestError as error:
            outcomes[number] = error.code

    threads = [threading.Thread(target=client, args=(i, values)) for i, values in enumerate([[0], *requests])]
    threads[0].start()
    assert doubler.entered.acquire(timeout=30)
    for thread in threads[1:]:
        thread.start()
        time.sleep(0.02)  # in this order
    doubler.gate.set()
    for thread in threads:
        thread.join()
    return outcomes[1:]


def test_requests_that_wait_run_as_one(make, doubler):
    outcomes = run_together(make(max_batch_size=8), doubler, [1], [2, 3], [4, 5, 6])
    assert outcomes == [[2], [4, 6], [8, 10, 12]] and doubler.batches == [[0], [1, 2, 3, 4, 5, 6]]


def test_a_batch_has_no_more_rows_than_allowed(make, doubler):
    outcomes = run_together(make(max_batch_size=4), doubler, [1, 2, 3], [4, 5], [6, 7], [8])
    assert outcomes == [[2, 4, 6], [8, 10], [12, 14], [16]]
    assert doubler.batches == [[0], [1, 2, 3], [4, 5, 6, 7], [8]]
    with pytest.raises(RequestError, match="larger than maximum") as error:
        make(max_batch_size=4).run(doubler, "s", {"x": np.zeros(5)}, ("y",))
    assert error.value.code == "INVALID_ARGUMENT"


def test_a_batch_is_filled_up_to_an_allowed_size(make, doubler):
    batcher = make(max_batch_size=8, allowed_batch_sizes=(4, 8))
    outcomes = run_together(batcher, doubler, [1, 2, 3], [4, 5])
    assert outcomes == [[2, 4, 6], [8, 10]]
    assert doubler.batches == [[0, 0, 0, 0], [1, 2, 3, 4, 5, 4, 4, 4]]  # the last request's first row


def test_a_batch_waits_for_more(make, doubler):
    """Not full, it runs when its time is up: in the meantime others join it."""
    batcher = make(max_batch_size=8, batch_timeout_micros=300_000)
    outcomes = {}

    def client(value):
        outcomes[value] = batcher.run(doubler, "s", {"x": np.float32([value])}, ("y",))["y"].tolist()

    threads = [threading.Thread(target=client, args=(value,)) for value in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {1: [2], 2: [4], 3: [6]} and len(doubler.batches) == 1


def test_one_bad_request_is_nobody_elses(make, doubler):
    assert run_together(make(), doubler, [1], [-1], [3]) == [[2], "INVALID_ARGUMENT", [6]]


def test_a_bug_is_everybodys_and_the_thread_lives(make, doubler):
    batcher = make()
    assert run_together(batcher, doubler, [1], [1e7]) == ["INTERNAL", "INTERNAL"]
    assert run_together(batcher, doubler, [1], [2]) == [[2], [4]]


def test_a_full_queue_refuses(make, doubler):
    outcomes = run_together(make(max_batch_size=2, max_enqueued_batches=2), doubler, [1, 2], [3, 4], [5], [6])
    assert outcomes == [[2, 4], [6, 8], "UNAVAILABLE", "UNAVAILABLE"]


def test_outputs_without_rows_cannot_be_batched(make, doubler):
    assert run_together(make(), doubler, [1], outputs=("y", "sum")) == ["FAILED_PRECONDITION"]


@pytest.mark.parametrize("inputs", [{}, {"x": np.float32(1)}, {"x": np.zeros(2), "z": np.zeros(3)}])
def test_inputs_without_rows_cannot_be_batched(make, doubler, inputs):
    with pytest.raises(RequestError, match="Batching Run") as error:
        make().run(doubler, "s", inputs, ("y",))
    assert error.value.code == "INVALID_ARGUMENT"


def test_widths(make, doubler):
    """Of unequal width, requests run alone, unless they may be padded, with their own first element."""
    requests = ([[1, 2]], [[3, 4, 5], [6, 7, 8]])
    assert run_together(make(), doubler, *requests) == [[[2, 4]], [[6, 8, 10], [12, 14, 16]]]
    assert doubler.batches[1:] == [[[1, 2]], [[3, 4, 5], [6, 7, 8]]]
    doubler.batches.clear()
    run_together(make(pad_variable_length_inputs=True), doubler, *requests)
    assert doubler.batches[1:] == [[[1, 2, 1], [3, 4, 5], [6, 7, 8]]]


def test_signatures_have_queues_of_their_own(make, doubler):
    batcher = make(num_batch_threads=2)
    other = Doubler()
    doubler.gate.clear()
    held = threading.Thread(target=batcher.run, args=(doubler, "s", {"x": np.float32([1])}, ("y",)))
    held.start()
    assert doubler.entered.acquire(timeout=30)
    assert batcher.run(other, "s", {"x": np.float32([5])}, ("y",))["y"].tolist() == [10]
    doubler.gate.set()
    held.join()
    assert not batcher._queues  # nor is a version kept that is gone


def test_what_waits_is_run_at_the_end(doubler):
    batcher = Batcher(BatchingParameters(num_batch_threads=1, batch_timeout_micros=60_000_000))
    outcome = []
    request = ("s", {"x": np.float32([1])}, ("y",))
    waiting = threading.Thread(target=lambda: outcome.append(batcher.run(doubler, *request)["y"].tolist()))
    waiting.start()
    while not batcher._queues:
        time.sleep(0.01)
    batcher.close()
    waiting.join()
    assert outcome == [[2]]
    with pytest.raises(RequestError) as error:
        batcher.run(doubler, *request)
    assert error.value.code == "UNAVAILABLE"


def test_the_file(tmp_path):
    path = tmp_path / "batching.config"
    path.write_text(
        "max_batch_size { value: 8 } allowed_batch_sizes: 2 allowed_batch_sizes: 8 num_batch_threads { value: 3 }"
    )
    parameters = read_batching_parameters(path)
    assert (parameters.max_batch_size, parameters.allowed_batch_sizes) == (8, (2, 8))
    assert (parameters.num_batch_threads, parameters.batch_timeout_micros) == (3, 0)
    for wrong in (
        "max_batch_size: 8",
        "max_batch_size { value: 0 }",
        "batch_timeout_micros { value: -1 }",
        "allowed_batch_sizes: 4 allowed_batch_sizes: 2 max_batch_size { value: 2 }",
        "allowed_batch_sizes: 4 max_batch_size { value: 8 }",
    ):
        path.write_text(wrong)
        with pytest.raises(UserError, match="expected"):
            read_batching_parameters(path)


def test_a_server_that_batches(start_server, models_folder, tmp_path):
    """Over REST, from many clients: each gets its own rows."""
    config = tmp_path / "batching.config"
    config.write_text(
        "max_batch_size { value: 16 } batch_timeout_micros { value: 20000 } num_batch_threads { value: 2 }"
    )
    fields = {"model_base_path": str(models_folder / "scale"), "model_name": "scale"}
    wrong = []
    with start_server(**fields, enable_batching=True, batching_parameters_file=str(config)) as server:

        def client(number):
            for i in range(5):
                values = [float(number * 10 + j) for j in range(i + 1)]
                expected = {"predictions": [3 * value + 2 for value in values]}
                if send(server, "POST", "/v1/models/scale:predict", {"instances": values})[1] != expected:
                    wrong.append(values)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert send(server, "POST", "/v1/models/scale:predict", {"instances": [1.0] * 17})[0] == 400
        assert send(server, "POST", "/v1/models/scale:predict", {"inputs": 1.0})[0] == 400
        text = send(server, "GET", "/metrics")[1].decode()
    line = next(line for line in text.splitlines() if line.startswith("tfgpt_batch_rows_count"))
    assert float(line.split()[-1]) > 0
