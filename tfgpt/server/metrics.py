"""Metrics for Prometheus, under TensorFlow Serving's names, so that its alert rules and dashboards read them too."""

from __future__ import annotations

import prometheus_client

# Microseconds, as in TensorFlow Serving: 10 * 1.8^i, to about 20 minutes.
REQUEST_BUCKETS = [10 * 1.8**i for i in range(33)]
QUEUE_BUCKETS = [100 * 1.2**i for i in range(52)]
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
        self.in_flight = gauge("tfgpt_requests_in_flight", "Requests that are being answered.")

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
