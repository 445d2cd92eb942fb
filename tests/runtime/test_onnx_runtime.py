import collections
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest

from tfgpt.cli.main import main
from tfgpt.errors import UserError
from tfgpt.export.quantization import write_variant
from tfgpt.generation import GenerationSettings
from tfgpt.runtime import onnx_runtime, open_runner
from tfgpt.runtime.onnx_runtime import OnnxDecoding

VARIANTS = ("portable", "float32")


@pytest.fixture
def release(exported, tmp_path):
    return shutil.copytree(exported.release, tmp_path / "release", ignore=shutil.ignore_patterns("saved_model"))


@pytest.fixture(scope="module")
def runner(exported):
    return open_runner(exported.release, "onnx", "float32")


def random_prompts(*lengths):
    return [np.random.default_rng(length).integers(0, 280, length).tolist() for length in lengths]


# === Without TensorFlow ===

IMPORTED = """
import sys
print(sorted({"tensorflow", "keras", "tf_keras", "tf2onnx", "onnx", "torch"} & set(sys.modules)))
"""

RUN = """
import json, sys
import numpy as np
from tfgpt.generation_settings import GenerationSettings
from tfgpt.runtime import open_runner
from tfgpt.text import load_tokenizer
release, variant = sys.argv[1:]
runner = open_runner(release, "onnx", variant)
token_ids = np.arange(12).reshape(2, 6)
beams = GenerationSettings(max_new_tokens=5, num_beams=3)
sampled = GenerationSettings(max_new_tokens=40, temperature=1.0, top_p=0.9, seed=2)
print(json.dumps({
    "logits": float(runner.cached_logits(token_ids, np.ones_like(token_ids), 4).sum()),
    "beams": runner.generate([[1, 2]], beams),
    "text": runner.continue_texts(load_tokenizer(release), ["some words"], sampled),
    "pieces": list(runner.stream_text(load_tokenizer(release), "some words", sampled)),
}))
"""

COMMAND = """
import sys
from tfgpt.cli.main import main
assert main(["generate", *sys.argv[1:]]) == 0
"""


def run_alone(code, *arguments):
    """Runs code in a process of its own, and returns the lines it prints."""
    command = [sys.executable, "-c", code + IMPORTED, *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    return process.stdout.splitlines()


@pytest.mark.parametrize("variant", VARIANTS)
def test_running_imports_neither_tensorflow_nor_keras(exported, variant):
    figures, imported = run_alone(RUN, exported.release, variant)
    assert imported == "[]"
    figures = json.loads(figures)
    sampled = {"max_new_tokens": 40, "temperature": 1.0, "top_p": 0.9, "seed": 2}
    assert figures["text"] == exported.model.generate(["some words"], **sampled)
    assert "some words" + "".join(figures["pieces"]) == figures["text"][0]
    expected = exported.model.generate([[1, 2]], max_new_tokens=5, num_beams=3, return_prompt=False)
    assert figures["beams"] == expected
    token_ids = np.arange(12).reshape(2, 6)
    logits = exported.keras.logits(token_ids, np.ones_like(token_ids)).sum()
    assert figures["logits"] == pytest.approx(float(logits), abs=0.1)


def test_the_command_imports_neither_tensorflow_nor_keras(exported):
    arguments = [exported.release, "--runtime", "onnx", "--variant", "float32", "--max_new_tokens", "50"]
    [expected] = exported.model.generate(["some words"], max_new_tokens=50)
    for option in ([], ["--stream"]):
        *text, imported = run_alone(COMMAND, *arguments, "--prompt", "some words", *option)
        assert imported == "[]"
        assert text == expected.splitlines()


# === The cache ===


def test_a_step_writes_into_the_cache_in_place(runner):
    """One key and one value a row, and copies nothing."""
    prompts = random_prompts(5, 3)
    decoding = OnnxDecoding(runner, prompts, 9)
    buffers = {name: buffer.ctypes.data for name, buffer in decoding.cache.items()}
    before = {name: buffer.copy() for name, buffer in decoding.cache.items()}
    assert set(before) == {f"past_key_values.{i}.{part}" for i in range(2) for part in ("key", "value")}
    decoding.advance(np.array([7, 8]))
    for name, buffer in decoding.cache.items():
        assert buffer.ctypes.data == buffers[name]
        changed = (buffer != before[name]).any(axis=(1, 3))
        np.testing.assert_array_equal(changed, np.arange(9) == [[5], [3]])
    call = decoding._step
    decoding.advance(np.array([1, 2]))
    assert decoding._step is call  # bound once
    assert decoding.lengths.tolist() == [7, 5]


def test_rows_are_continued_from_other_rows(runner):
    """As beams are, their caches with them."""
    first, second = random_prompts(5, 3)
    decoding = OnnxDecoding(runner, [first, second], 9)
    decoding.advance(np.array([7, 8]))
    decoding.advance(np.array([9, 10]), np.array([1, 1]))
    decoding.advance(np.array([11, 12]), np.array([1, 0]))
    for row, context in enumerate([second + [8, 10, 11], second + [8, 9, 12]]):
        expected = runner.logits(np.array([context]), np.ones((1, len(context)), int))[0, -1]
        np.testing.assert_allclose(decoding.logits[row], expected, atol=1e-4, rtol=0)


def test_copies_of_a_row_start_alike(runner):
    decoding = runner.start(random_prompts(5, 3), 4, copies=3)
    assert decoding.lengths.tolist() == [5] * 3 + [3] * 3
    assert decoding.logits.shape == (6, 280)
    for rows in (slice(0, 3), slice(3, 6)):
        assert (decoding.logits[rows] == decoding.logits[rows][:1]).all()
        assert all((buffer[rows] == buffer[rows][:1]).all() for buffer in decoding.cache.values())
    assert (decoding.logits[0] != decoding.logits[3]).any()


def test_no_more_logits_are_computed_than_are_asked_for(runner, monkeypatch):
    calls = record_calls(monkeypatch)
    runner.generate(random_prompts(20, 4), GenerationSettings(max_new_tokens=5))
    assert calls == [(2, 20, 1), (2, 1, 1)]  # a prompt of 20 tokens, and every step


def record_calls(monkeypatch):
    """(rows, new tokens, positions with logits) of each binding that is made."""
    calls, init = [], onnx_runtime.Call.__init__

    def recording(call, runner, cache, rows, width, num_logits):
        calls.append((rows, width, num_logits))
        init(call, runner, cache, rows, width, num_logits)

    monkeypatch.setattr(onnx_runtime.Call, "__init__", recording)
    return calls


# === Long prompts, piece by piece ===


@pytest.mark.parametrize("chunk", [1, 2, 5, 7, 31, 32])
def test_logits_of_prompts_that_are_read_piece_by_piece(runner, exported, monkeypatch, chunk):
    rng = np.random.default_rng(chunk)
    token_ids, mask = rng.integers(0, 280, (4, 32)), np.ones((4, 32), int)
    for row, length in enumerate((32, 3, 17, 29)):
        mask[row, : 32 - length] = 0
    expected = exported.keras.logits(token_ids, mask)
    monkeypatch.setattr(onnx_runtime, "CHUNK", chunk)
    calls = record_calls(monkeypatch)
    for prompt_length in (32, 30):
        calls.clear()
        found = runner.cached_logits(token_ids, mask, prompt_length)
        np.testing.assert_allclose(found[mask == 1], expected[mask == 1], atol=1e-4, rtol=0)
        assert max(width for _, width, _ in calls) <= chunk
    found = runner.logits(token_ids, mask)
    np.testing.assert_allclose(found[mask == 1], expected[mask == 1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("chunk", [1, 3, 8])
@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 1.0, "repetition_penalty": 1.2, "seed": 8}, {"num_beams": 3, "stop_token_ids": (9, 60, 200)}],
    ids=str,
)
def test_continuations_of_prompts_that_are_read_piece_by_piece(runner, monkeypatch, settings, chunk):
    beams = "num_beams" in settings
    prompts = random_prompts(18, 1, 8, 9) if beams else random_prompts(18, 1, 8, 32, 40)
    settings = GenerationSettings(max_new_tokens=14 if beams else 50, **settings)
    expected = runner.generate(prompts, settings)
    monkeypatch.setattr(onnx_runtime, "CHUNK", chunk)
    calls = record_calls(monkeypatch)
    assert runner.generate(prompts, settings) == expected
    assert {width for _, width, _ in calls} >= {1, chunk} and max(width for _, width, _ in calls) == chunk
    assert {logits for _, _, logits in calls} == {1}


def test_each_piece_is_read_once(runner, monkeypatch):
    monkeypatch.setattr(onnx_runtime, "CHUNK", 8)
    calls = record_calls(monkeypatch)
    runner.start(random_prompts(20, 8, 3), 4)
    assert collections.Counter(calls) == {(1, 8, 1): 3, (1, 4, 1): 1, (1, 3, 1): 1}


# === Settings of the session ===


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_number_of_threads_changes_no_token(release, exported, variant):
    runner = open_runner(release, "onnx", variant, threads=1)
    assert runner.session.get_session_options().intra_op_num_threads == 1
    token_ids = np.arange(20)[None]
    np.testing.assert_allclose(
        runner.logits(token_ids, np.ones_like(token_ids)),
        exported.keras.logits(token_ids, np.ones_like(token_ids)),
        atol=1e-4,
    )


def test_names_and_precisions(release):
    for variant in ("int8", "float16"):
        write_variant(release / "onnx", variant)
    runners = [open_runner(release, "onnx", variant) for variant in ("portable", "float32", "int8", "float16")]
    assert [runner.name for runner in runners] == ["onnx", "onnx/float32", "onnx/int8", "onnx/float16"]
    assert [runner.precision for runner in runners] == ["float32", "float32", "int8", "float16"]
    assert open_runner(release, "onnx").name == "onnx/float32"


@pytest.mark.parametrize("variant", ["int8", "int8_weight_only", "int4", "float16"])
def test_a_quantized_variant_continues_what_it_reads(release, variant):
    """Token by token the likeliest of its own logits, whose rows do not look at each other."""
    write_variant(release / "onnx", variant)
    runner = open_runner(release, "onnx", variant)
    [prompt] = random_prompts(9)
    [new] = runner.greedy([prompt], 20)
    context = np.array([prompt + new])
    for prompt_length in (9, 20):
        logits = runner.cached_logits(context, np.ones_like(context), prompt_length)[0]
        best = np.sort(logits, axis=-1)[:, -2:]
        clear = (best[:, 1] - best[:, 0] > 0.05 * np.abs(logits).max())[8:-1]
        assert clear.sum() >= 3
        np.testing.assert_array_equal(logits[8:-1].argmax(axis=-1)[clear], np.array(new)[clear])


# === Files that are not what they were ===


def refused(release, variant="float32", verify=True):
    """The one sentence with which a release is refused."""
    with pytest.raises(UserError) as error:
        open_runner(release, "onnx", variant, verify=verify)
    assert "\n" not in str(error.value)
    return str(error.value)


def flip(path, offset=-100):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_a_variant_that_is_not_there(release):
    for variant in ("int8", "int8_weight_only", "int4", "float16"):
        assert refused(release, variant) == (
            f"{release} has no ONNX variant {variant!r}, expected one of those it has: portable, float32"
        )
    (release / "onnx" / "model_float32.onnx").unlink()
    assert refused(release) == f"{release} has no ONNX variant 'float32', expected one of those it has: portable"
    (release / "onnx" / "model.onnx").unlink()
    assert refused(release) == f"{release}/onnx holds no model, expected a release exported with the format onnx"


def test_a_variant_that_nobody_knows(release):
    assert refused(release, "int3") == (
        "unknown variant 'int3', expected one of portable, float32, float16, int8, int8_weight_only, int4"
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_with_one_bit_changed(release, variant):
    """Nothing but the checksum can tell."""
    data = release / "onnx" / "model.onnx.data"
    flip(data)
    sentence = refused(release, variant)
    assert re.fullmatch(
        f"{data}: the file has sha256 [0-9a-f]{{12}}…, expected [0-9a-f]{{12}}… as in manifest.json", sentence
    )
    open_runner(release, "onnx", variant, verify=False)


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_that_are_truncated(release, variant):
    data = release / "onnx" / "model.onnx.data"
    size = data.stat().st_size
    data.write_bytes(data.read_bytes()[:-1000])
    expected = f"{data}: the file has {size - 1000} bytes, expected {size} as in manifest.json"
    assert refused(release, variant) == expected
    assert f"{variant_path(release, variant)} cannot be loaded by ONNX Runtime" in refused(release, variant, False)


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_that_are_missing(release, variant):
    (release / "onnx" / "model.onnx.data").unlink()
    for verify in (True, False):
        assert refused(release, variant, verify) == (
            f"{release}/onnx/model.onnx.data is missing, expected the file beside the others of its release"
        )


def variant_path(release, variant):
    return release / "onnx" / ("model.onnx" if variant == "portable" else f"model_{variant}.onnx")


@pytest.mark.parametrize("content", [b"", b"no model", None])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_graph_that_is_none(release, variant, content):
    path = variant_path(release, variant)
    path.write_bytes(path.read_bytes()[:-500] if content is None else content)
    assert re.fullmatch(rf"{path}: the file has \d+ bytes, expected \d+ as in manifest.json", refused(release, variant))
    version = onnxruntime.__version__
    assert refused(release, variant, False).startswith(f"{path} cannot be loaded by ONNX Runtime {version}: ")


def test_a_graph_with_one_bit_changed(release):
    path = release / "onnx" / "model_float32.onnx"
    flip(path)
    assert refused(release).startswith(f"{path}: the file has sha256 ")


def test_a_file_of_another_variant_does_not_matter(release):
    flip(release / "onnx" / "model_float32.onnx")
    open_runner(release, "onnx", "portable")


def test_a_manifest_that_is_none(release):
    (release / "manifest.json").write_text("{}")
    assert refused(release).startswith(
        f"{release}/manifest.json cannot be read, expected a release with its manifest: "
    )


# === Models from the future ===


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_operator_set_that_is_too_new(release, variant):
    (release / "manifest.json").unlink()
    path = variant_path(release, variant)
    model = onnx.load(path, load_external_data=False)
    next(opset for opset in model.opset_import if not opset.domain).version = 99
    path.write_bytes(model.SerializeToString())
    newest = r"expected at most \d+; upgrade onnxruntime"
    sentence = rf"cannot be loaded by ONNX Runtime {re.escape(onnxruntime.__version__)}: it needs version 99 of the "
    assert re.fullmatch(rf"{path} {sentence}operator set ai\.onnx, {newest}", refused(release, variant))


def test_an_operator_that_the_runtime_does_not_have(release):
    (release / "manifest.json").unlink()
    path = release / "onnx" / "model_float32.onnx"
    model = onnx.load(path, load_external_data=False)
    next(node for node in model.graph.node if node.op_type == "FastGelu").op_type = "FasterGelu"
    path.write_bytes(model.SerializeToString())
    assert "com.microsoft:FasterGelu" in refused(release)


# === On the command line ===


def failure(capsys, *arguments):
    code = main(["generate", *map(str, arguments)])
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    [line] = captured.err.splitlines()
    return line


def test_a_prompt_past_the_window(exported, capsys):
    prompt = "no one will ever read that again " * 4
    length = len(exported.model.tokenizer.encode(prompt))
    arguments = [exported.release, "--runtime", "onnx", "--max_new_tokens", "8", "--prompt", "some", prompt]
    assert failure(capsys, *arguments) == (
        f"tfgpt: prompt 1 has {length} tokens, expected at most the context window's 32; --truncate reads its last 16"
    )
    assert main(["generate", *map(str, arguments), "--truncate"]) == 0
    expected = exported.model.generate(["some", prompt], max_new_tokens=8)
    assert capsys.readouterr().out.splitlines() == "\n".join(expected).splitlines()


def test_a_variant_of_a_runtime_that_has_none(exported, capsys):
    for runtime, model in (("keras", exported.directory), ("saved_model", exported.release)):
        line = failure(capsys, model, "--runtime", runtime, "--variant", "int8", "--prompt", "some")
        assert line == (
            f"tfgpt: variant is 'int8' on the runtime {runtime}, expected --runtime onnx, which has variants"
        )


def test_a_stream_of_what_cannot_be_streamed(exported, capsys):
    sentence = "tfgpt: --stream prints one text of a release, expected one prompt and --runtime onnx or saved_model"
    onnx_arguments = [exported.release, "--runtime", "onnx", "--stream", "--prompt", "some"]
    assert failure(capsys, *onnx_arguments, "words") == sentence
    assert failure(capsys, exported.directory, "--stream", "--prompt", "some") == sentence


def test_a_stream_of_beams(exported, capsys):
    line = failure(capsys, exported.release, "--runtime", "onnx", "--stream", "--prompt", "some", "--num_beams", "2")
    assert line == "tfgpt: num_beams is 2, expected 1 with --stream: beam search knows its text at the end"


@pytest.mark.parametrize("runtime", ["onnx", "saved_model"])
def test_a_stream_prints_the_text(exported, tmp_path, capsys, runtime):
    arguments = ["generate", str(exported.release), "--runtime", runtime, "--prompt", "some words"]
    options = ["--max_new_tokens", "40", "--temperature", "0.9", "--seed", "4", "--json", str(tmp_path / "texts.json")]
    texts = []
    for extra in ([], ["--stream"]):
        assert main([*arguments, *options, *extra]) == 0
        texts.append((capsys.readouterr().out, json.loads((tmp_path / "texts.json").read_text())["texts"]))
    assert texts[0] == texts[1]
    assert len(texts[0][0]) > 30


def test_a_corrupted_release_on_the_command_line(release, capsys):
    flip(release / "onnx" / "model.onnx.data")
    line = failure(capsys, release, "--runtime", "onnx", "--prompt", "some")
    assert line.startswith(f"tfgpt: {release}/onnx/model.onnx.data: the file has sha256 ")
