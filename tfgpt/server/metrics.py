"""Metrics for Prometheus, under TensorFlow Serving's names, so that its alert rules and dashboards read them too."""

from __future__ import annotations

import prometheus_client

# Microseconds, as in TensorFlow Serving: 10 * 1.8^i, to about 20 minutes.
REQUEST_BUCKETS = [10 * 1.8**i for i in range(33)]
QUEUE_BUCKETS = [100 * 1.2**i for i in range(52)]
SECONDS = [0.001 * 1.6**i for i in range(28)]  # to about 5 minutes
SERVING, SAVED_MODEL = ":tensorflow:serving:", ":tensorflow:cc:saved_model:"


class Metrics:
    """What a server counts.

    TensorFlow Serving's counters have no `_total` at the end, which this library puts at every counter's: so here they
    are gauges that only rise.
    """

    def __init__(self):
        self.registry = prometheus_client.CollectorRegistry()

        def gauge(name, text, *labels):
            return prometheus_client.Gauge(name, text, labels, registry=self.registry)

        def histogram(name, text, buckets, *labels):
            return prometheus_client.Histogram(name, text, labels, registry=self.registry, buckets=buckets)

        self._requests = gauge(f"{SERVING}request_count", "The total number of requests.", "model_name", "status")
        self._latency = histogram(
            f"{SERVING}request_latency",
            "Microseconds of a request.",
            REQUEST_BUCKETS,
            "model_name",
            "API",
            "entrypoint",
        )
        self._runtime = histogram(
            f"{SERVING}runtime_latency", "Microseconds in the runtime.", REQUEST_BUCKETS, "model_name", "API", "runtime"
        )
        self._queue = histogram(
            f"{SERVING}batching_session:queuing_latency",
            "Microseconds in the queue, one observation a request.",
            QUEUE_BUCKETS,
            "thread_pool_name",
        )
        self._batches = gauge(f"{SERVING}batching_session:wrapped_run_count", "Batches that were run.")
        self._batch_rows = histogram("tfgpt_batch_rows", "Rows of a batch, without padding.", [2**i for i in range(13)])
        self._loads = gauge(f"{SAVED_MODEL}load_attempt_count", "Loads, by outcome.", "model_path", "status")
        self._load_time = gauge(f"{SAVED_MODEL}load_latency", "Microseconds of loading.", "model_path")
        self._continuous_batching(gauge, histogram)
        self.in_flight = gauge("tfgpt_requests_in_flight", "Requests that are being answered.")

    def _continuous_batching(self, gauge, histogram):
        def counter(name, text, *labels):
            return prometheus_client.Counter(name, text, labels, registry=self.registry)

        model = "model_name"
        self._queued = gauge("tfgpt_queue_length", "Requests that wait for a slot.", model)
        self._wait = histogram("tfgpt_queue_seconds", "Seconds until a slot was free.", SECONDS, model)
        self._texts = histogram("tfgpt_step_rows", "Texts that a step continued.", [2**i for i in range(9)], model)
        self._first = histogram("tfgpt_time_to_first_token_seconds", "From arrival.", SECONDS, model)
        self._next = histogram("tfgpt_inter_token_seconds", "From one token of a text to its next.", SECONDS, model)
        self._new_tokens = counter("tfgpt_generated_tokens", "New tokens.", model)
        self._prompt_tokens = counter("tfgpt_prompt_tokens", "Tokens of prompts.", model, "source")
        self._finished = counter("tfgpt_texts", "Texts that ended, by reason or error.", model, "reason")

    def answered(self, model, api, entrypoint, status, seconds):
        """A request of a known model was answered."""
        self._requests.labels(model, status).inc()
        self._latency.labels(model, api, entrypoint).observe(seconds * 1e6)

    def ran(self, model, seconds):
        """A model was run for a request."""
        self._runtime.labels(model, "Predict", "TF1").observe(seconds * 1e6)

    def batched(self, pool, waits, rows):
        """A batch was run, whose requests had waited for so many seconds each."""
        for seconds in waits:
            self._queue.labels(pool).observe(seconds * 1e6)
        self._batches.inc()
        self._batch_rows.observe(rows)

    def queued(self, model, length):
        """So many requests wait for a slot."""
        self._queued.labels(model).set(length)

    def admitted(self, model, seconds):
        """A request got a slot after so many seconds."""
        self._wait.labels(model).observe(seconds)

    def prompt(self, model, tokens, known):
        """A prompt of so many tokens is being read, of which `known` need not be."""
        self._prompt_tokens.labels(model, "reused").inc(known)
        self._prompt_tokens.labels(model, "read").inc(tokens - known)

    def stepped(self, model, rows):
        """So many texts were continued together."""
        self._texts.labels(model).observe(rows)

    def new_token(self, model, first, seconds):
        """A text grew by a token, so long after its request came, if it is the first, or after the one before."""
        self._new_tokens.labels(model).inc()
        (self._first if first else self._next).labels(model).observe(seconds)

    def finished(self, model, reason):
        """A text ended."""
        self._finished.labels(model, reason).inc()

    def loaded(self, path, seconds):
        """A version was loaded."""
        self._loads.labels(str(path), "success").inc()
        self._load_time.labels(str(path)).inc(seconds * 1e6)

    def load_failed(self, path):
        """A version could not be loaded."""
        self._loads.labels(str(path), "fail").inc()

    def text(self):
        """All of them in Prometheus' text format."""
        return prometheus_client.generate_latest(self.registry)


METRICS = Metrics()
