import pathlib

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from tfgpt.server.config_files import server_message

SERVING = pathlib.Path(__file__).resolve().parents[2] / "serving"


def parse(name, message):
    return text_format.Parse((SERVING / name).read_text(encoding="utf-8"), message())


@pytest.fixture(scope="module")
def model():
    [model] = parse("models.config", model_server_config_pb2.ModelServerConfig).model_config_list.config
    return model


@pytest.fixture(scope="module")
def batching():
    return parse("batching.config", server_message("BatchingParameters"))


def test_labels_name_versions_that_stay_loaded(model):
    loaded = list(model.model_version_policy.specific.versions)
    assert len(loaded) == len(set(loaded)) == 2
    assert set(model.version_labels) == {"stable", "canary"}
    assert sorted(model.version_labels.values()) == sorted(loaded)
    # A request without a label goes to the highest version; models.config says that it is the canary.
    assert model.version_labels["canary"] == max(loaded)


def test_the_model_lies_where_publish_puts_it(model):
    assert model.model_platform == "tensorflow" and model.base_path == f"/models/{model.name}"


def test_batch_sizes(batching):
    """The server refuses sizes that do not ascend, or end in another than max_batch_size."""
    sizes = list(batching.allowed_batch_sizes)
    assert sizes == sorted(set(sizes)) and sizes[0] == 1
    assert sizes[-1] == batching.max_batch_size.value
    for name in ("batch_timeout_micros", "num_batch_threads", "max_enqueued_batches"):
        assert batching.HasField(name) and getattr(batching, name).value > 0


def test_matrices_are_not_padded(batching):
    """The server would pad a padding mask with its first element, a one."""
    assert not batching.pad_variable_length_inputs
    assert "pad_variable_length_inputs: false" in (SERVING / "batching.config").read_text()


def test_monitoring():
    config = parse("monitoring.config", server_message("MonitoringConfig")).prometheus_config
    assert config.enable and config.path == "/monitoring/prometheus/metrics"


@pytest.mark.parametrize("text", ["max_batch_size: 8", "max_batchsize { value: 8 }", "allowed_batch_sizes: 1.5"])
def test_what_the_server_refuses_does_not_parse(text):
    with pytest.raises(text_format.ParseError):
        text_format.Parse(text, server_message("BatchingParameters")())
