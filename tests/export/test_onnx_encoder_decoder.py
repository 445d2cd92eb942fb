"""An encoder–decoder Transformer in Optimum's layout: three graphs of standard operators, one file of weights."""

import types

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.models import encoder_decoder_numpy as witness
from tests.models.gpt2_numpy import relative_error
from tfgpt.export import onnx_encoder_decoder
from tfgpt.export.onnx_encoder_decoder import export_encoder_decoder_onnx
from tfgpt.export.onnx_rules import RewriteError
from tfgpt.models import EncoderDecoderTransformer
from tfgpt.models.encoder_decoder.model_directory import named_variables

FILES = ("encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx")
RANDOM = np.random.default_rng(0)
SOURCES, MASK = RANDOM.integers(0, 300, (3, 9)), (np.arange(9) < np.array([[9], [4], [1]])).astype(np.int64)
TARGETS = RANDOM.integers(0, 300, (3, 7))
VARIANTS = {
    "pre": {"num_decoder_layers": 3},
    "post": {"normalization": "post", "positions": "learned", "share_embeddings": False, "activation": "gelu"},
    "none": {"normalization": "none", "num_decoder_layers": 1, "scale_embeddings": False, "activation": "gelu_tanh"},
}


def made(**options):
    model = EncoderDecoderTransformer.from_preset("transformer-test", load_weights=False, **options)
    variables = named_variables(model.backbone)
    weights = witness.randomized({name: variable.shape for name, variable in variables.items()})
    for name, variable in variables.items():
        variable.assign(weights[name])
    return model


@pytest.fixture(scope="module", params=VARIANTS)
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    model = made(**VARIANTS[request.param])
    export_encoder_decoder_onnx(model, folder, source="somewhere")
    graphs = {file: onnx.load(folder / file, load_external_data=False) for file in FILES}
    return types.SimpleNamespace(folder=folder, model=model, graphs=graphs)


def session(exported, file):
    """A function of named arrays that gives named arrays."""
    opened = onnxruntime.InferenceSession(exported.folder / file)
    names = [output.name for output in opened.get_outputs()]
    return lambda **feeds: dict(zip(names, opened.run(None, feeds), strict=True))


def renamed(outputs):
    return {name.replace("present", "past_key_values"): x for name, x in outputs.items() if name != "logits"}


def test_names_and_axes_are_optimums(exported):
    layers = range(exported.model.backbone.num_decoder_layers)

    def cache(prefix, *stacks):
        return [f"{prefix}.{i}.{stack}.{part}" for i in layers for stack in stacks for part in ("key", "value")]

    names = {
        file: ([i.name for i in model.graph.input], [o.name for o in model.graph.output])
        for file, model in exported.graphs.items()
    }
    assert names["encoder_model.onnx"] == (["input_ids", "attention_mask"], ["last_hidden_state"])
    assert names["decoder_model.onnx"] == (
        ["encoder_attention_mask", "input_ids", "encoder_hidden_states"],
        ["logits", *cache("present", "decoder", "encoder")],
    )
    assert names["decoder_with_past_model.onnx"] == (
        ["encoder_attention_mask", "input_ids", *cache("past_key_values", "decoder", "encoder")],
        ["logits", *cache("present", "decoder")],
    )
    for model in exported.graphs.values():
        for value in [*model.graph.input, *model.graph.output]:
            axes = value.type.tensor_type.shape.dim
            assert axes[0].dim_param == "batch_size", value.name
            assert all(axis.dim_param or axis.dim_value for axis in axes), value.name


def test_operators_are_standard_ones(exported):
    for model in exported.graphs.values():
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
        assert {node.domain for node in model.graph.node} == {""}
        assert {entry.key: entry.value for entry in model.metadata_props}["source"] == "somewhere"


def test_each_weight_is_stored_once_and_none_in_a_graph(exported):
    places = {}
    for model in exported.graphs.values():
        for tensor in model.graph.initializer:
            entry = {item.key: item.value for item in tensor.external_data}
            if entry:
                assert entry["location"] == "model.onnx.data"
                assert places.setdefault(tensor.name, entry["offset"]) == entry["offset"]
            else:
                assert np.prod(tensor.dims) <= 32, tensor.name  # constants of shapes and wavelengths
    assert set(places) == set(named_variables(exported.model.backbone))
    assert len(set(places.values())) == len(places)
    data = (exported.folder / "model.onnx.data").stat().st_size
    weights = 4 * exported.model.count_params()
    assert weights <= data <= weights + 64 * len(places)


def test_logits_in_one_pass_and_by_the_caches(exported):
    expected = np.asarray(exported.model({"source_ids": SOURCES, "source_padding_mask": MASK, "target_ids": TARGETS}))
    memory = session(exported, FILES[0])(input_ids=SOURCES, attention_mask=MASK)["last_hidden_state"]
    decoder, with_past = (session(exported, file) for file in FILES[1:])
    source = {"encoder_hidden_states": memory, "encoder_attention_mask": MASK}
    assert relative_error(decoder(input_ids=TARGETS, **source)["logits"], expected) < 1e-5

    outputs = decoder(input_ids=TARGETS[:, :2], **source)
    logits, past, start = [outputs["logits"]], renamed(outputs), 2
    for count in (1, 3, 1):
        tokens = TARGETS[:, start : start + count]
        outputs = with_past(input_ids=tokens, encoder_attention_mask=MASK, **past)
        logits.append(outputs["logits"])
        past |= renamed(outputs)
        start += count
    assert relative_error(np.concatenate(logits, axis=1), expected) < 1e-5


def test_a_rule_that_does_not_fire_is_an_error(monkeypatch):
    rules = onnx_encoder_decoder.part_rules

    def one_more(step, backbone):
        first, *others = rules(step, backbone)
        first.count += 1
        return [first, *others]

    monkeypatch.setattr(onnx_encoder_decoder, "part_rules", one_more)
    step = onnx_encoder_decoder.STEPS[0](made())
    with pytest.raises(RewriteError, match="the rewriting rule PlainGather fired 1 times, expected 2"):
        onnx_encoder_decoder.convert_part(step)
