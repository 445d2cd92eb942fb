"""What a server is told; imports nothing that takes time, because the command line reads it."""

from __future__ import annotations

import dataclasses

from tfgpt.errors import UserError

ENGINES = ("saved_model", "onnx")


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """How to serve; names and defaults are TensorFlow Serving's where it has the same.

    Args:
        host: the address to listen on.
        rest_port: 0 for any that is free.
        grpc_port: likewise.
        model_config_file: a models.config.
        model_config_file_poll_wait_seconds: read it anew so often; 0 for never.
        model_name: of the one model that is served without a models.config.
        model_base_path: likewise its directory of versions.
        file_system_poll_wait_seconds: how often to look for versions; 0 for never.
        allow_version_labels_for_unavailable_models: whether a new label may name a version that is not loaded.
        enable_batching: join requests.
        batching_parameters_file: how; a file of BatchingParameters.
        monitoring_config_file: where else than at /metrics the metrics are; a file of MonitoringConfig.
        token_file: tokens, one a line, of which a request must bring one.
        tls_certificate: a PEM file, for https and encrypted gRPC.
        tls_key: its key.
        max_body_bytes: of a request.
        request_threads: how many requests of either protocol are answered at the same time.
        threads: of one operator; 0 lets TensorFlow or ONNX Runtime choose.
        engine: "saved_model", or "onnx": release directories, whose texts are continued in one running batch, without
            TensorFlow.
        variant: of the ONNX engine: float32, float16, int8, int8_weight_only or int4, or several, comma-separated,
            of which the first answers where none is named.
        slots: of OpenAI's API: how many texts grow at the same time.
        max_queue: of OpenAI's API: how many more may wait; beyond them requests fail with status 429.
        max_request_seconds: of OpenAI's API: that an answer may take.
        chat_template: of OpenAI's API: a file; by default the release's own.
        drain_seconds: how long SIGTERM waits for requests that are being answered.
    """

    host: str = "127.0.0.1"
    rest_port: int = 8501
    grpc_port: int = 8500
    model_config_file: str | None = None
    model_config_file_poll_wait_seconds: float = 0.0
    model_name: str = "default"
    model_base_path: str | None = None
    file_system_poll_wait_seconds: float = 1.0
    allow_version_labels_for_unavailable_models: bool = False
    enable_batching: bool = False
    batching_parameters_file: str | None = None
    monitoring_config_file: str | None = None
    token_file: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    max_body_bytes: int = 2**26
    request_threads: int = 64
    threads: int = 0
    engine: str = "saved_model"
    variant: str = "float32"
    slots: int = 16
    max_queue: int = 256
    max_request_seconds: float = 600.0
    chat_template: str | None = None
    drain_seconds: float = 60.0

    def __post_init__(self):
        for name in ("rest_port", "grpc_port"):
            if not 0 <= getattr(self, name) < 2**16:
                raise UserError(f"{name} is {getattr(self, name)}, expected 0 to {2**16 - 1}")
        if self.engine not in ENGINES:
            raise UserError(f"engine is {self.engine!r}, expected one of {', '.join(ENGINES)}")
        if self.engine != "onnx":
            if self.variant != ServerConfig.variant:
                raise UserError("variant is given without engine onnx, expected both or neither")
        elif self.enable_batching:
            raise UserError("enable_batching is given with engine onnx, expected it without: it batches by itself")
        if len(set(self.variants)) < len(self.variants):
            raise UserError(f"variant is {self.variant!r}, expected each variant once")
        if not self.max_request_seconds > 0:
            raise UserError(f"max_request_seconds is {self.max_request_seconds}, expected more than 0")
        for name in ("max_body_bytes", "request_threads", "slots", "max_queue"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in (
            "model_config_file_poll_wait_seconds",
            "file_system_poll_wait_seconds",
            "drain_seconds",
            "threads",
        ):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} is {getattr(self, name)}, expected 0 or more")

    @property
    def variants(self):
        """The variants of the ONNX engine, the default first."""
        return tuple(part.strip() for part in self.variant.split(","))
