"""DESIGN.md's table of rooms, enforced on every module's imports, lazy ones included."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "tfgpt"

MAY_IMPORT = {
    "layers": set(),
    "models": {"layers"},
    "text": set(),
    "generation": {"models"},
    # Layers beside DESIGN.md's table: training chooses the kernels of what they mark as fusible.
    "training": {"layers", "models", "text", "generation"},
    "weights": {"models", "text"},
    "export": {"models", "text", "generation", "runtime"},
    "runtime": set(),
    "server": {"runtime", "text"},
    "experiments": {"layers", "models", "text", "training"},
}
MAY_IMPORT["cli"] = set(MAY_IMPORT)

# Modules of no room, for every room: errors, atomic, checksum and the like.
OPEN = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}

# What takes seconds to import. TensorFlow Serving's stubs import TensorFlow.
STACKS = {"tensorflow", "tensorflow_serving", "onnx", "onnx_ir", "onnxscript"}

KERAS = {"keras", "tf_keras", "keras_hub", "keras_nlp"}

# Of runners and servers' engines, those that run TensorFlow; another engine's server starts without it.
TENSORFLOW_ENGINES = {"tfgpt.runtime.saved_model", "tfgpt.server.saved_model_servable"}

# (module, function, library): what a runner takes to do something rare, when it is asked for.
ON_DEMAND = {("tfgpt.runtime.onnx_attention", "with_attention_weights", "onnx")}

# Rooms' modules without TensorFlow, which the command line may import before it knows what to do.
LIGHT = {"tfgpt.training.run_config", "tfgpt.training.tasks", "tfgpt.server.config"}

# (module, function, room): imports against the table, lazy and in that function alone.
EXCEPTIONS = {
    # Users expect `model.generate("...")` on the model.
    ("tfgpt.models.gpt2.causal_lm", "GPT2CausalLM.generate", "generation"),
    # The tokenizer comes with the model directory, so that a loaded model takes and gives text.
    ("tfgpt.models.gpt2.model_directory", "read_tokenizer", "text"),
    # The same two of the encoder–decoder Transformer.
    ("tfgpt.models.encoder_decoder.transformer", "EncoderDecoderTransformer.translate", "generation"),
    ("tfgpt.models.encoder_decoder.model_directory", "read_tokenizer", "text"),
}

# keras.ops has no write in place, and no small product without oneDNN.
DECODING_KERNELS = "tfgpt.layers.decoding_kernels"


def imports(module, source):
    """What a module imports: (dotted name, class and function around the import or "", whether it is lazy)."""
    found = []

    def visit(node, place, lazy):
        for name in _imported(module, node):
            found.append((name, place, lazy))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            place = f"{place}.{node.name}".lstrip(".")
            lazy = lazy or not isinstance(node, ast.ClassDef)
        for child in ast.iter_child_nodes(node):
            visit(child, place, lazy)

    visit(ast.parse(source), "", False)
    return found


def _imported(module, node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = module.split(".")[: -node.level] if node.level else []
        base += node.module.split(".") if node.module else []
        return [".".join([*base, alias.name]) for alias in node.names]
    by_name = isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)
    if by_name and ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__"):
        return [node.args[0].value]
    if isinstance(node, ast.Attribute) and ast.unparse(node) in ("tf.keras", "tensorflow.keras"):
        return ["tensorflow.keras"]
    return []


def violations(module, source):
    """The imports of a module that its room does not allow, as sentences.

    Args:
        module: its dotted name, with `.__init__` for a package.
        source: its text.
    """
    parts = module.split(".")
    room = parts[1] if len(parts) > 2 else None  # of tfgpt/errors.py and its like there is none
    if room is not None and room not in MAY_IMPORT:
        return [f"{module}: tfgpt/{room} is no room of DESIGN.md"]
    wrong = []
    for name, place, lazy in imports(module, source):
        reason = _objection(module, room, name, place, lazy)
        if reason:
            wrong.append(f"{module} imports {name}: {reason}")
    return wrong


def _objection(module, room, name, place, lazy):
    top, *rest = name.split(".")
    if top != "tfgpt":
        return None if (module, place, top) in ON_DEMAND else _objection_to_library(module, room, top, rest, lazy)
    if not rest or rest[0] in OPEN or rest[0] == room:
        return None
    if room is None:
        return "a module of no room imports no room"
    if rest[0] not in MAY_IMPORT[room] and (module, place, rest[0]) not in EXCEPTIONS:
        return f"{room} may not import {rest[0]}"
    if room == "cli" and not lazy and not any(f"{name}.".startswith(f"{light}.") for light in LIGHT):
        return "the command line imports rooms lazily"
    return None


def _objection_to_library(module, room, top, rest, lazy):
    is_keras = top in KERAS or [top, *rest][:2] == ["tensorflow", "keras"]
    if room == "layers" and top != "keras" and top not in sys.stdlib_module_names and module != DECODING_KERNELS:
        return "layers import Keras only"
    if room in ("runtime", "server") and is_keras:
        return "runners and servers do without Keras"
    if room in ("runtime", "server") and top in STACKS and module not in TENSORFLOW_ENGINES:
        return "ONNX Runtime alone runs ONNX, TensorFlow is for its own engines, stubs are read by serving_messages"
    if room is None and (is_keras or top == "tensorflow"):
        return "a module of no room does without TensorFlow and Keras"
    if room == "cli" and not lazy and (is_keras or top == "tensorflow"):
        return "the command line imports TensorFlow when it needs it"
    return None


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts), path.read_text(encoding="utf-8")


def test_every_module_keeps_to_its_room():
    names = [name for name, _ in modules()]
    assert {"tfgpt.layers.attention", "tfgpt.runtime.__init__", "tfgpt.errors", "tfgpt.cli.main"} <= set(names)
    assert [sentence for name, source in modules() for sentence in violations(name, source)] == []


def test_every_exception_is_in_use():
    used = {
        (module, place, name.split(".")[1])
        for module, source in modules()
        for name, place, lazy in imports(module, source)
        if name.startswith("tfgpt.") and lazy
    }
    assert used >= EXCEPTIONS


@pytest.mark.parametrize(
    "module, source",
    [
        ("tfgpt.layers.new", "import tensorflow as tf"),
        ("tfgpt.layers.new", "import numpy as np"),
        ("tfgpt.layers.new", "def f():\n    from tensorflow import math"),
        ("tfgpt.layers.new", "from tfgpt.models import GPT2CausalLM"),
        ("tfgpt.models.new", "from tfgpt.generation import generate"),
        ("tfgpt.models.new", "def f():\n    import tfgpt.text.tokenizer"),
        ("tfgpt.models.gpt2.causal_lm", "from tfgpt.generation import generate"),
        ("tfgpt.models.gpt2.causal_lm", "def generate():\n    from tfgpt.generation import generate"),
        ("tfgpt.models.gpt2.causal_lm", "class GPT2CausalLM:\n    def generate(self):\n        import tfgpt.training"),
        ("tfgpt.text.new", "from tfgpt import models"),
        ("tfgpt.text.new", "from ..models import GPT2CausalLM"),
        ("tfgpt.text.__init__", "from ..models import GPT2CausalLM"),
        ("tfgpt.text.__init__", "import importlib\nimportlib.import_module('tfgpt.models')"),
        ("tfgpt.generation.new", "from tfgpt.text import Tokenizer"),
        ("tfgpt.training.new", "from tfgpt.export import export_release"),
        ("tfgpt.weights.new", "from tfgpt.training.trainer import train"),
        ("tfgpt.export.new", "from tfgpt.training.run_config import RunConfig"),
        ("tfgpt.runtime.new", "import keras"),
        ("tfgpt.runtime.new", "def f():\n    from keras import ops"),
        ("tfgpt.runtime.saved_model", "import tensorflow as tf\nmodel = tf.keras.Model()"),
        ("tfgpt.runtime.saved_model", "from tensorflow import keras"),
        ("tfgpt.runtime.new", "import tensorflow as tf"),
        ("tfgpt.runtime.onnx_runtime", "def f():\n    import onnx"),
        ("tfgpt.runtime.new", "from tfgpt.generation import GenerationSettings"),
        ("tfgpt.runtime.new", "from tensorflow_serving.apis import predict_pb2"),
        ("tfgpt.server.new", "import tensorflow"),
        ("tfgpt.server.new", "import keras"),
        ("tfgpt.server.saved_model_servable", "import keras"),
        ("tfgpt.server.new", "from tfgpt.export.versions import versions_of"),
        ("tfgpt.runtime.new", "from tfgpt.server.status import RequestError"),
        ("tfgpt.runtime.new", "from tfgpt.models.gpt2 import GPT2Backbone"),
        ("tfgpt.cli.new", "from tfgpt.export import export_release"),
        ("tfgpt.cli.new", "if True:\n    from tfgpt.training.trainer import train"),
        ("tfgpt.cli.new", "import tensorflow"),
        ("tfgpt.new", "import tfgpt.text"),
        ("tfgpt.new", "import tensorflow as tf"),
        ("tfgpt.new", "def f():\n    from keras import ops"),
        ("tfgpt.helpers.new", "import os"),
        ("tfgpt.models.new", "from tfgpt.helpers import f"),
    ],
)
def test_a_forbidden_import_is_found(module, source):
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    "module, source",
    [
        (
            "tfgpt.layers.new",
            "import math\nimport keras\nfrom keras import ops\nfrom tfgpt.layers.masks import causal_mask",
        ),
        ("tfgpt.layers.new", "from .masks import causal_mask\nfrom tfgpt.errors import UserError"),
        ("tfgpt.models.new", "from tfgpt.layers import Dense\nimport tfgpt.atomic"),
        (
            "tfgpt.models.gpt2.causal_lm",
            "class GPT2CausalLM:\n    def generate(self):\n        import tfgpt.generation",
        ),
        ("tfgpt.generation.new", "import tensorflow as tf\nfrom tfgpt.models import GPT2CausalLM"),
        ("tfgpt.export.new", "from tfgpt.runtime import open_runner\nfrom tfgpt.text import load_tokenizer"),
        ("tfgpt.runtime.saved_model", "import tensorflow as tf\nfrom tfgpt.context_window import pad_left"),
        ("tfgpt.server.saved_model_servable", "import tensorflow as tf\nfrom tfgpt.runtime import serving_messages"),
        ("tfgpt.server.new", "import starlette\nfrom tfgpt.text import load_tokenizer\nimport tfgpt.base_path"),
        ("tfgpt.runtime.new", "import onnxruntime\nfrom tfgpt.generation_settings import GenerationSettings"),
        ("tfgpt.cli.new", "from tfgpt.training.run_config import RunConfig\nfrom tfgpt.cli import commands"),
        ("tfgpt.cli.new", "def f():\n    import tensorflow\n    from tfgpt.export import export_release"),
        ("tfgpt.new", "import numpy\nfrom tfgpt.errors import UserError"),
    ],
)
def test_an_allowed_import_passes(module, source):
    assert violations(module, source) == []


@pytest.mark.parametrize(
    "code",
    [
        "import tfgpt",
        "import tfgpt.runtime.onnx_runtime, tfgpt.runtime.sampling, tfgpt.runtime.beam_search",
        "import tfgpt.generation_settings, tfgpt.context_window",
        "import tfgpt.runtime.rest_client, tfgpt.runtime.grpc_client, tfgpt.runtime.remote, tfgpt.server.serve",
        "import tfgpt.text; tfgpt.text.load_tokenizer",
        "from tfgpt.cli.main import build_parser; build_parser()",
    ],
)
def test_imports_neither_tensorflow_nor_keras(code):
    code += "; import sys; print(sorted({'tensorflow', 'keras', 'tfgpt'} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert (process.stdout.strip(), process.returncode) == ("['tfgpt']", 0), process.stderr
