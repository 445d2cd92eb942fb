"""A server's life: load, open the ports, look for new versions, and on SIGTERM answer what is there and go."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import signal
import socket
import ssl
import threading
import time

import grpc
import uvicorn

from tfgpt.errors import UserError
from tfgpt.runtime.serving_messages import message
from tfgpt.server.access import Access
from tfgpt.server.batching import Batcher, BatchingParameters
from tfgpt.server.config_files import read_batching_parameters, read_model_config, read_monitoring_path
from tfgpt.server.grpc_services import GrpcServices
from tfgpt.server.models import Models
from tfgpt.server.openai_api import OpenAiApi
from tfgpt.server.prediction import Predictor
from tfgpt.server.rest import RestApi
from tfgpt.server.status import RequestError

LOGGER = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Server:
    """A server of SavedModels, or of releases on ONNX Runtime.

    Args:
        config: a `tfgpt.server.config.ServerConfig`.

    Attributes:
        rest_port, grpc_port: those that it listens on, once started.
    """

    def __init__(self, config):
        self.config = config
        self._stopping = threading.Event()
        self._read_config = self._config_reader()
        self._access = Access.from_file(config.token_file)
        self._monitoring_path = config.monitoring_config_file and read_monitoring_path(config.monitoring_config_file)
        self._credentials = self._tls_credentials()
        self._batcher = self._make_batcher()
        self.models = Models(self._load, config.allow_version_labels_for_unavailable_models)
        self._predictor = Predictor(self.models, self._batcher)
        self.rest_port = self.grpc_port = None

    def start(self):
        """Loads the models, then opens the ports.

        Raises:
            UserError: if a model cannot be loaded, or a port is taken.
        """
        with contextlib.ExitStack() as undo:
            listener = undo.enter_context(_listener(self.config.host, self.config.rest_port))
            self._configure()
            self._start_grpc()
            undo.pop_all()
        self._start_rest(listener)
        self._watcher = threading.Thread(target=self._watch, name="versions", daemon=True)
        self._watcher.start()
        scheme = "https" if self._credentials else "http"
        addresses = {"rest": f"{scheme}://{self.config.host}:{self.rest_port}"}
        addresses["grpc"] = f"{self.config.host}:{self.grpc_port}"
        LOGGER.info("serving", extra=addresses)

    def stop(self):
        """Takes no new requests, waits for those that are being answered, and unloads."""
        LOGGER.info("draining")
        self._stopping.set()
        stopped = self._grpc.stop(self.config.drain_seconds)
        self._rest.should_exit = True
        self._rest_thread.join(self.config.drain_seconds + 5)
        stopped.wait()
        self._watcher.join(self.config.drain_seconds)
        if self._batcher:
            self._batcher.close()
        self.models.close()
        LOGGER.info("stopped")

    def run(self):
        """Serves until SIGTERM or Ctrl-C; a second signal ends it at once, as `KeyboardInterrupt`."""
        signalled = threading.Event()

        def on_signal(*_):
            if signalled.is_set():
                raise KeyboardInterrupt
            signalled.set()

        before = {one: signal.signal(one, on_signal) for one in SIGNALS}
        try:
            self.start()
            while not signalled.wait(1.0) and self._rest_thread.is_alive():
                pass
            self.stop()
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    @property
    def ready(self):
        return not self._stopping.is_set() and self.models.ready

    def _load(self, name, path):
        config = self.config
        try:
            if config.engine == "saved_model":
                from tfgpt.server.saved_model_servable import SavedModelServable

                servable = SavedModelServable(path, config.threads)
                self._continue_texts(servable, name)
                return servable
            from tfgpt.server.onnx_servable import OnnxServable

            options = (config.variants, config.threads, config.slots, config.max_queue, name, config.chat_template)
            return OnnxServable(path, *options)
        except UserError as error:
            raise RequestError("FAILED_PRECONDITION", str(error)) from error

    def _continue_texts(self, servable, name):
        """Has OpenAI's API answered by a SavedModel, if that can be: TensorFlow Serving's alone is enough."""
        config = self.config
        try:
            servable.continue_texts(name, config.slots, config.max_queue, config.chat_template)
        except Exception as error:
            if config.chat_template is not None or not isinstance(error, UserError):
                servable.close()
                raise
            LOGGER.warning("OpenAI's API is not served: %s", error, extra={"model": name})

    def _make_batcher(self):
        path = self.config.batching_parameters_file
        if path and not self.config.enable_batching:
            raise UserError("batching_parameters_file is given without enable_batching, expected both or neither")
        if not self.config.enable_batching:
            return None
        return Batcher(read_batching_parameters(path) if path else BatchingParameters())

    def _config_reader(self):
        """A function that gives the `ModelServerConfig`, and the directory that relative paths in it start from."""
        path, base_path = self.config.model_config_file, self.config.model_base_path
        if (path is None) == (base_path is None):
            raise UserError("a model and a model_config_file are both given or both left out, expected one of them")
        if path is not None:
            return lambda: (read_model_config(path), pathlib.Path(path).resolve().parent)
        config = message("serving.ModelServerConfig")()
        config.model_config_list.config.add(
            name=self.config.model_name, base_path=str(pathlib.Path(base_path).resolve()), model_platform="tensorflow"
        )
        return lambda: (config, None)

    def _configure(self):
        config, root = self._read_config()
        self._configured = config
        try:
            self.models.configure(config, root)
        except RequestError as error:
            raise UserError(f"the models cannot be served: {error.message}") from error

    def _tls_credentials(self):
        files = (self.config.tls_key, self.config.tls_certificate)
        if files == (None, None):
            return None
        if None in files:
            raise UserError("of tls_certificate and tls_key one is given, expected both or neither")
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(files[1], files[0])
            return grpc.ssl_server_credentials([tuple(pathlib.Path(file).read_bytes() for file in files)])
        except OSError as error:  # of which ssl's errors are some
            reason = error.strerror or error
            raise UserError(
                f"{files[1]} and {files[0]} cannot be used, expected a certificate and its key: {reason}"
            ) from error

    def _start_grpc(self):
        services = GrpcServices(self._predictor, self._access, self.config.max_body_bytes, self.config.request_threads)
        self._grpc = services.server()
        where = f"{_bracketed(self.config.host)}:{self.config.grpc_port}"
        try:
            if self._credentials:
                self.grpc_port = self._grpc.add_secure_port(where, self._credentials)
            else:
                self.grpc_port = self._grpc.add_insecure_port(where)
        except RuntimeError as error:
            raise UserError(f"cannot listen on {where}, expected a free port of this machine") from error
        self._grpc.start()

    def _start_rest(self, listener):
        api = RestApi(
            self._predictor,
            self._access,
            lambda: self.ready,
            OpenAiApi(self.models, self.config.max_request_seconds, always=self.config.engine == "onnx"),
            self._monitoring_path,
            self.config.max_body_bytes,
            self.config.request_threads,
        )
        self.rest_port = listener.getsockname()[1]
        config = uvicorn.Config(
            api.app(),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ssl_certfile=self.config.tls_certificate,
            ssl_keyfile=self.config.tls_key,
            timeout_graceful_shutdown=max(1, round(self.config.drain_seconds)),
        )
        self._rest = uvicorn.Server(config)
        self._rest_thread = threading.Thread(target=self._rest.run, args=([listener],), name="rest", daemon=True)
        self._rest_thread.start()
        while not self._rest.started and self._rest_thread.is_alive():
            time.sleep(0.01)

    def _watch(self):
        """Looks for new versions, and for a changed models.config."""
        look, reread = self.config.file_system_poll_wait_seconds, self.config.model_config_file_poll_wait_seconds
        pauses = [seconds for seconds in (look, reread) if seconds > 0]
        if not pauses:
            return
        last_read = time.monotonic()
        while not self._stopping.wait(min(pauses)):
            try:
                if reread > 0 and time.monotonic() - last_read >= reread:
                    last_read = time.monotonic()
                    self._reconfigure()
                self.models.look()
            except Exception:  # of one look, after which comes the next
                LOGGER.exception("looking for versions failed")

    def _reconfigure(self):
        try:
            config, root = self._read_config()
            if config != self._configured:
                self.models.configure(config, root)
                self._configured = config
                LOGGER.info("configured anew", extra={"path": self.config.model_config_file})
        except UserError as error:
            LOGGER.error("%s", error)
        except RequestError as error:
            LOGGER.error("%s", error.message, extra={"path": self.config.model_config_file})


def _listener(host, port):
    """A bound socket, so that a port that is taken is known before a model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UserError(
            f"cannot listen on {host}:{port}, expected a free port of this machine: {error.strerror}"
        ) from error
    return listener


def _bracketed(host):
    return f"[{host}]" if ":" in host else host
