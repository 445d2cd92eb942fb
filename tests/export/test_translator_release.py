"""A translation model's release: what it holds, what it answers, and that the gate is shut to what is not the model."""

import json
import math
import re
import shutil
import types

import numpy as np
import onnx
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tests.export.served_model import ServedModel, strings
from tests.export.served_translator import held_out, make_directory, write_held_out
from tests.export.test_operators import ALLOWED
from tests.export.test_warm_up import read
from tfgpt.cli.main import main
from tfgpt.errors import UserError
from tfgpt.export import export_release
from tfgpt.export.keras_translator import KerasTranslator
from tfgpt.export.translation_parity import TranslationExpectation, check_translator
from tfgpt.export.translator_release import checked_settings, held_out_pairs, load
from tfgpt.runtime import open_translator
from tfgpt.translation_sources import encode_sources, pad_sources

TEXTS = [source for source, _ in held_out()]
BOS, EOS = 1, 2
DIFFERENCE = r"the largest logit difference is \S+ of max\(1, \|logit\|\) = \S+, expected at most 1e-04"
LOGITS, CACHED = ("one pass", "from the caches"), ("from the caches",)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "model"
    make_directory(folder)
    return folder


@pytest.fixture(scope="module")
def exported(directory, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "release"
    return types.SimpleNamespace(path=path, reports=export_release(directory, path, name="served"))


@pytest.fixture(scope="module")
def expected(directory):
    """The Keras model, and what it gives for the held-out pairs."""
    model = load(directory)
    pairs = held_out_pairs(directory, model)
    return TranslationExpectation(KerasTranslator(model), *pairs, checked_settings(directory, model))


@pytest.fixture(scope="module")
def model(expected):
    return expected.reference.model


@pytest.fixture(scope="module")
def served(exported):
    return ServedModel(exported.path / "saved_model" / "served" / "1")


@pytest.fixture(scope="module")
def ask(served):
    """Calls `translate`, greedily where a test says nothing."""

    def call(texts, num_beams=1, length_penalty=1.0, max_new_tokens=0):
        return served(
            "translate",
            text=texts,
            num_beams=num_beams,
            length_penalty=length_penalty,
            max_new_tokens=max_new_tokens,
        )

    return call


@pytest.fixture
def copied(exported, tmp_path):
    """A copy of the release with ONNX alone, to be damaged."""
    return shutil.copytree(exported.path, tmp_path / "copy", ignore=shutil.ignore_patterns("saved_model"))


# === The release ===


def test_the_release_is_the_model(exported, directory):
    assert [report.runtime for report in exported.reports] == ["saved_model", "onnx"]
    parity = json.loads((exported.path / "parity.json").read_text())
    assert parity["passed"] is True
    for report, stored in zip(exported.reports, parity["runtimes"], strict=True):
        assert (report.sentences, report.identical_greedy, report.identical_beam_search) == (24, 24, 24)
        assert (report.num_beams, report.near_ties, report.breaches) == (5, 0, [])
        assert 0 < report.scaled_logit_difference < 1e-5
        assert report.positions > 300
        assert 1 < report.perplexity < 10
        assert stored["identical_beam_search"] == 24
    assert [report.identical_texts for report in exported.reports] == [24, 0]
    text = (exported.path / "parity.md").read_text()
    assert "greedy 24/24, beam 5 24/24, 24/24 texts" in text
    assert "greedily and by beam search. Perplexity" in text


def test_files_and_manifest(exported, directory):
    files = {str(path.relative_to(exported.path)) for path in exported.path.rglob("*") if path.is_file()}
    graphs = {f"onnx/{name}.onnx" for name in ("encoder_model", "decoder_model", "decoder_with_past_model")}
    assert files >= graphs | {"onnx/model.onnx.data", "config.json", "generation_config.json", "tokenizer.json"}
    manifest = json.loads((exported.path / "manifest.json").read_text())
    assert set(manifest["files"]) == files - {"manifest.json", "parity.json", "parity.md", "parity.png"}
    assert manifest["source"]["model_directory"] == "model"
    assert manifest["tolerances"]["float32"]["logit"] == 1e-4


@pytest.mark.parametrize("runtime", ["onnx", "saved_model"])
def test_the_translate_command(exported, model, runtime, capsys, tmp_path):
    figures = tmp_path / "figures.json"
    command = ["translate", str(exported.path), "--runtime", runtime, "--json", str(figures), "--text"]
    assert main([*command, *TEXTS[:3]]) == 0
    wanted = model.translate(TEXTS[:3])
    assert capsys.readouterr().out.split("\n")[:3] == wanted
    found = json.loads(figures.read_text())
    assert (found["translations"], found["runtime"], found["num_beams"]) == (wanted, runtime, 5)
    assert main([*command, TEXTS[0], "--num_beams", "1"]) == 0
    assert capsys.readouterr().out.strip() == model.translate(TEXTS[0], num_beams=1)
    assert main(["inspect", str(exported.path)]) == 0
    assert "EncoderDecoderTransformer: 2 layers, 2 decoder layers, 2 heads, 32 wide" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command, sentence",
    [
        (["generate", "RELEASE", "--runtime", "onnx", "--prompt", "a"], "expected it with `tfgpt translate`"),
        (["translate", "RELEASE", "--text", "a"], "is a release directory, expected --runtime saved_model or onnx"),
        (["translate", "RELEASE", "--runtime", "tpu", "--text", "a"], "unknown runtime 'tpu', expected one of"),
        (["translate", "RELEASE", "--runtime", "onnx", "--text", " "], "text 0 is ' ', expected a sentence"),
    ],
)
def test_commands_that_do_not_go_with_a_release(exported, command, sentence, capsys):
    assert main([str(exported.path) if word == "RELEASE" else word for word in command]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in errors if line.startswith("tfgpt: ")]) == 1
    assert sentence in errors[-1]


# === Signatures ===


def test_text_alone_is_translated_as_the_generation_config_says(served, model):
    assert strings(served("serving_default", text=TEXTS).text) == model.translate(TEXTS)
    odd = ["  One\u00a0TWO three \n", "\u3000Ten. </s>", b"one \xff two".decode("utf-8", "replace")]
    assert strings(served("serving_default", text=odd).text) == model.translate(odd)
    broken = served("serving_default", text=[b"one \xff two"]).text
    assert strings(broken) == model.translate(odd[2:])


def test_rows_of_a_batch_are_independent(ask, model):
    beams, penalties, limits = [1, 5, 5, 1, 5], [1.0, 0.0, 2.0, 1.0, 1.0], [0, 3, 0, 2, 32]
    together = ask(TEXTS[:5], beams, penalties, limits)
    for row, settings in enumerate(zip(beams, penalties, limits, strict=True)):
        alone = ask(TEXTS[row : row + 1], *([value] for value in settings))
        count = alone.num_new_tokens[0]
        assert together.num_new_tokens[row] == count
        assert together.token_ids[row, :count].tolist() == alone.token_ids[0].tolist()
        assert not together.token_ids[row, count:].any()
        np.testing.assert_allclose(together.scores[row], alone.scores[0], rtol=1e-4)
        num_beams, length_penalty, limit = settings
        wanted = model.translate(
            TEXTS[row], num_beams=num_beams, length_penalty=length_penalty, max_new_tokens=limit or None
        )
        assert together.text[row].decode() == wanted
    assert strings(together.finish_reason) == ["stop", "length", "stop", "length", "stop"]


def own_score(model, source, tokens):
    return float(model.score(np.array([source]), np.array([[BOS, *tokens]]))[0])


def test_scores_are_the_models_own(served, ask, model):
    penalties = np.array([1, 1, 0, 2])
    outputs = ask(TEXTS[:4], [1, 5, 1, 5], penalties)
    sources = encode_sources(model.tokenizer, TEXTS[:4])
    for row, (source, count) in enumerate(zip(sources, outputs.num_new_tokens, strict=True)):
        wanted = own_score(model, source, outputs.token_ids[row, :count])
        np.testing.assert_allclose(outputs.scores[row] * float(count) ** penalties[row], wanted, rtol=1e-4)


def test_score(served, model):
    targets = [target for _, target in held_out(3)] + [""]
    scored = served("score", text=TEXTS[:4], target=targets)
    for row, (source, target) in enumerate(zip(encode_sources(model.tokenizer, TEXTS[:4]), targets, strict=True)):
        ids = [*model.tokenizer.encode(target), EOS]
        assert scored.num_tokens[row] == len(ids)
        assert scored.token_ids[row].tolist() == ids + [0] * (scored.token_ids.shape[1] - len(ids))
        wanted = own_score(model, source, ids)
        np.testing.assert_allclose(scored.log_probability[row], wanted, rtol=1e-4)
        np.testing.assert_allclose(scored.log_probabilities[row, : len(ids)].sum(), wanted, rtol=1e-4)
        assert not scored.log_probabilities[row, len(ids) :].any()


def test_padding_may_stand_on_either_side(served, model):
    sources = encode_sources(model.tokenizer, TEXTS[:6])
    ids, mask = pad_sources(sources, 20)
    settings = {"num_beams": 1, "length_penalty": 1.0, "max_new_tokens": 0}
    right = served("translate_tokens", source_ids=ids, source_padding_mask=mask, **settings)
    left = served(
        "translate_tokens", source_ids=np.roll(ids, 3, axis=1), source_padding_mask=np.roll(mask, 3, axis=1), **settings
    )
    np.testing.assert_array_equal(left.token_ids, right.token_ids)
    assert right.num_source_tokens.tolist() == list(map(len, sources))


def test_a_client_can_decode_step_by_step(served, ask, model):
    wanted = ask(TEXTS[:3])
    ids, mask = pad_sources(encode_sources(model.tokenizer, TEXTS[:3]))
    encoded = vars(served("encode", source_ids=ids, source_padding_mask=mask))
    np.testing.assert_allclose(encoded["last_hidden_state"], model.encode(ids, mask), atol=1e-5)
    past = {name.replace("present", "past_key_values"): value for name, value in encoded.items() if "present" in name}
    empty = np.zeros((3, 2, 0, 16), np.float32)
    past |= {f"past_key_values_{i}_decoder_{part}": empty for i in range(2) for part in ("key", "value")}
    tokens, found = np.full((3, 1), BOS), []
    for _ in range(wanted.token_ids.shape[1]):
        mask_of_cache = encoded["encoder_attention_mask"]
        outputs = vars(served("decode_step", encoder_attention_mask=mask_of_cache, input_ids=tokens, **past))
        past |= {n.replace("present", "past_key_values"): x for n, x in outputs.items() if n != "logits"}
        tokens = outputs["logits"][:, -1].argmax(axis=-1)[:, None]
        found.append(tokens)
    found = np.concatenate(found, axis=1)
    real = np.arange(found.shape[1]) < wanted.num_new_tokens[:, None]
    np.testing.assert_array_equal(found[real], wanted.token_ids[real])


LONG = " ".join(["one two"] * 30)


@pytest.mark.parametrize(
    "texts, settings, sentence",
    [
        (["one", " \n"], {}, "the number of tokens with the end of row 1 is 1, expected at least 2: a sentence"),
        ([LONG], {}, r"the number of tokens with the end of row 0 is \d+, expected at most 32, the window"),
        (["one"], {"num_beams": 3}, "num_beams of row 0 is 3, expected 1 or 5, the beam that was exported"),
        (["one"], {"length_penalty": math.nan}, "length_penalty of row 0 is nan, expected a finite number"),
        (["one"], {"max_new_tokens": 33}, "max_new_tokens of row 0 is 33, expected 0 to 32, the window"),
        (["one"], {"max_new_tokens": -1}, "max_new_tokens of row 0 is -1, expected 0 to 32, the window"),
        (["one", "two"], {"num_beams": [1]}, "the rows are text 2, num_beams 1, .*expected as many of each"),
        ([], {}, "the rows are text 0, .*expected as many of each, and at least 1"),
    ],
)
def test_a_bad_request_is_one_sentence_and_the_session_lives_on(ask, texts, settings, sentence):
    with pytest.raises(tf.errors.InvalidArgumentError, match=sentence):
        ask(texts, **settings)
    assert ask(["one two"]).finish_reason.tolist() == [b"stop"]


def test_token_ids_outside_the_vocabulary(served):
    size = json.loads((served.path.parents[2] / "config.json").read_text())["vocab_size"]
    sources = {"source_ids": [[3, EOS]], "source_padding_mask": [[1, 1]]}
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"row 0 is {size}, expected 0 to {size - 1}"):
        served("logits", **sources, target_ids=[[BOS, size]])
    with pytest.raises(tf.errors.InvalidArgumentError, match="the number of tokens of row 0 is 0, expected at least 1"):
        served("encode", source_ids=[[3]], source_padding_mask=[[0]])


def test_operators_are_tensorflows_own_and_weights_are_stored_once(served, model):
    proto = saved_model_pb2.SavedModel.FromString((served.path / "saved_model.pb").read_bytes())
    (meta_graph,) = proto.meta_graphs
    functions = meta_graph.graph_def.library.function
    nodes = [*meta_graph.graph_def.node, *(node for f in functions for node in f.node_def)]
    assert {node.op for node in nodes} - {f.signature.name for f in functions} - ALLOWED == set()
    weights = sum(variable.numpy().nbytes for variable in model.variables)
    data = (served.path / "variables" / "variables.data-00000-of-00001").stat().st_size
    assert weights <= data <= weights + 16_384  # the rest is TensorFlow's object graph
    stored = tf.train.list_variables(str(served.path / "variables" / "variables"))
    assert sum(int(np.prod(shape)) for _, shape in stored if shape) == model.count_params()


def test_warm_up_requests_take_both_branches(served):
    requests = read(served.path)
    assert sorted(request.model_spec.signature_name for request in requests) == sorted(served.signatures)
    for request in requests:
        inputs = {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}
        if "num_beams" in inputs:
            assert inputs["num_beams"].tolist() == [1, 5]
            assert inputs["max_new_tokens"].min() > 1
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        for name, tensor in served.signatures[request.model_spec.signature_name](**tensors).items():
            assert not tensor.dtype.is_floating or np.isfinite(tensor).all(), name


# === Damage ===


def breaches(expected, translator, checks, message):
    report = check_translator(expected, translator)
    assert not report.passed
    worst = max(report.breaches, key=lambda breach: breach.excess)
    where = rf"{translator.name}, ({'|'.join(checks)}), prompt \d+, position \d+"
    assert re.fullmatch(f"{where}: {message}", str(worst)), worst
    return report


def edit_graph(path, change):
    model = onnx.load(path, load_external_data=False)
    change(model.graph)
    path.write_bytes(model.SerializeToString())


def test_the_undamaged_one_passes(expected, copied):
    assert check_translator(expected, open_translator(copied, "onnx")).passed


@pytest.mark.parametrize(
    "name, place",
    [
        ("embedding.weight", (-1, 3)),  # of a token that is in no text, but among the answers
        ("encoder.layers.0.attention.query_key_value.weight", (4, 5)),
        ("decoder.layers.1.memory_attention.key_value.bias", (40,)),
        ("decoder.layers.0.feed_forward.output.weight", (5, 6)),
        ("decoder.norm.weight", (31,)),
    ],
)
def test_one_weight_changed(expected, copied, onnx_weights, name, place):
    for file in ("encoder_model.onnx", "decoder_model.onnx"):
        weights = onnx_weights(copied / "onnx" / file)
        if name in weights.entries:
            break
    with weights.edit(name) as weight:
        weight[place] += 0.5
    breaches(expected, open_translator(copied, "onnx", verify=False), LOGITS, DIFFERENCE)
    with pytest.raises(UserError, match="has sha256 .* expected .* as in manifest.json"):
        open_translator(copied, "onnx")


def test_keys_and_values_of_cross_attention_swapped_in_the_first_step(expected, copied):
    def swap(graph):
        split = next(node for node in graph.node if node.op_type == "Split" and len(node.output) == 2)
        split.output[0], split.output[1] = split.output[1], split.output[0]

    edit_graph(copied / "onnx" / "decoder_model.onnx", swap)
    breaches(expected, open_translator(copied, "onnx", verify=False), LOGITS, DIFFERENCE)


def test_keys_and_values_of_cross_attention_swapped_in_later_steps(expected, copied):
    """A target's first tokens do not tell."""

    def swap(graph):
        names = ["past_key_values.1.encoder.key", "past_key_values.1.encoder.value"]
        for node in graph.node:
            for i, name in enumerate(node.input):
                if name in names:
                    node.input[i] = names[1 - names.index(name)]

    edit_graph(copied / "onnx" / "decoder_with_past_model.onnx", swap)
    breaches(expected, open_translator(copied, "onnx", verify=False), CACHED, DIFFERENCE)


def test_a_cache_off_by_one(expected, copied):
    """Later steps take their tokens for those one place before."""

    def shift(graph):
        ranges = {node.output[0] for node in graph.node if node.op_type == "Range"}
        positions = next(n for n in graph.node if n.op_type == "Add" and ranges & set(n.input))
        [past] = set(positions.input) - ranges
        one = onnx.numpy_helper.from_array(np.array(1, np.int32), "one")
        graph.initializer.append(one)
        place = list(graph.node).index(positions)
        graph.node.insert(place, onnx.helper.make_node("Sub", [past, "one"], ["one_less"]))
        positions = graph.node[place + 1]
        positions.input[list(positions.input).index(past)] = "one_less"

    edit_graph(copied / "onnx" / "decoder_with_past_model.onnx", shift)
    breaches(expected, open_translator(copied, "onnx", verify=False), CACHED, DIFFERENCE)


def test_an_encoder_that_reads_padding(expected, copied):
    def unmask(graph):
        for node in list(graph.node):
            if node.op_type == "Where":
                mask = node.input[0]
                node.input[0] = "everything"
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "everything"))
        assert mask

    edit_graph(copied / "onnx" / "encoder_model.onnx", unmask)
    breaches(expected, open_translator(copied, "onnx", verify=False), LOGITS, DIFFERENCE)


@pytest.mark.parametrize("index", [0, 20])
def test_one_variable_changed_in_the_saved_model(expected, exported, index):
    translator = open_translator(exported.path, "saved_model")
    variable = translator._module.weights[index]
    damaged = variable.numpy()
    damaged.flat[damaged.size // 2] += 0.5
    variable.assign(damaged)
    breaches(expected, translator, LOGITS, DIFFERENCE)


def test_translations_that_part_with_the_models(expected, copied, monkeypatch):
    translator = open_translator(copied, "onnx")
    found = translator.translate_token_ids(expected.sources)

    def other(sources, num_beams=1, **settings):
        (first, _), *others = expected.greedy if num_beams == 1 else expected.served
        return [([first[0], EOS] if num_beams > 1 else first, 0.0), *others]

    monkeypatch.setattr(translator, "translate_token_ids", other)
    report = breaches(expected, translator, ["beam search"], rf"the translation has token {EOS}, expected \d+")
    assert (report.identical_greedy, report.identical_beam_search) == (24, 23)
    assert found


def test_text_that_is_not_the_models(expected, copied, monkeypatch):
    translator = open_translator(copied, "onnx")
    translator.serve = lambda texts: [expected.served_texts[0].upper(), *expected.served_texts[1:]]
    report = breaches(expected, translator, ["text"], r"the text is '.*', expected '.*'")
    assert (report.identical_texts, report.texts) == (23, 24)


def test_the_parity_command_says_where_in_one_sentence_and_exits_with_1(copied, directory, onnx_weights, capsys):
    with onnx_weights(copied / "onnx" / "encoder_model.onnx").edit("encoder.layers.1.attention.output.bias") as bias:
        bias[3] += 0.5
    assert main(["parity", str(copied), "--model", str(directory)]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tfgpt: ")]
    where = rf"onnx, ({'|'.join(LOGITS)}), prompt \d+, position \d+"
    assert re.fullmatch(f"tfgpt: parity failed: {where}: {DIFFERENCE}", lines[0])
    assert re.fullmatch(r"tfgpt: and \d+ more breaches", lines[1])
    assert "| onnx |" in (copied / "parity.md").read_text()


# === Bad input ===


@pytest.fixture
def changed(directory, tmp_path):
    """A function that gives a copy of the model directory with another generation_config.json."""

    def copy(**settings):
        folder = shutil.copytree(directory, tmp_path / "model")
        path = folder / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        return folder

    return copy


@pytest.mark.parametrize(
    "settings, sentence",
    [
        (
            {"do_sample": True, "num_beams": 1},
            "asks for sampling or a repetition_penalty, expected beam search or greedy",
        ),
        ({"max_new_tokens": 33}, "max_new_tokens is 33, expected at most the window's 32"),
        ({"num_beams": 10_000}, "num_beams is 10000, expected at most the vocabulary's"),
        ({"eos_token_id": 7}, "eos_token_id is 7, expected 2, the tokenizer's </s>"),
    ],
)
def test_a_generation_config_that_cannot_be_served(changed, tmp_path, settings, sentence):
    with pytest.raises(UserError, match=f"generation_config.json.*{sentence}"):
        export_release(changed(**settings), tmp_path / "release")
    assert not (tmp_path / "release").exists()


def test_what_an_export_needs(changed, tmp_path):
    folder = changed()
    with pytest.raises(UserError, match="quantized variants are of language models, expected none of"):
        export_release(folder, tmp_path / "release", quantize=("int8",))
    shutil.rmtree(folder / "training")
    with pytest.raises(UserError, match="has no held-out sentence pairs for the parity check, expected --data"):
        export_release(folder, tmp_path / "release")
    (tmp_path / "long.tsv").write_text(f"{LONG}\t{LONG}\n")
    with pytest.raises(UserError, match=r"long.tsv has no pair of sentences that fits the model's window"):
        export_release(folder, tmp_path / "release", text=tmp_path / "long.tsv")
    for file in ("tokenizer.json", "vocab.json", "merges.txt"):
        (folder / file).unlink()
    with pytest.raises(UserError, match="has no tokenizer with a begin and end of sentence, expected one for text"):
        export_release(folder, tmp_path / "release")
    assert not (tmp_path / "release").exists()


@pytest.mark.parametrize("way", ["data", "files"])
def test_where_held_out_pairs_come_from(directory, model, tmp_path, way):
    folder = tmp_path / "model"
    folder.mkdir()
    pairs = held_out(3)
    if way == "files":
        write_held_out(folder / "training", pairs)
    (tmp_path / "pairs.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in pairs))
    found = held_out_pairs(folder, model, tmp_path / "pairs.tsv" if way == "data" else None)
    assert found[2] == [source for source, _ in pairs]
    assert found[1] == [[*model.tokenizer.encode(target), EOS] for _, target in pairs]
