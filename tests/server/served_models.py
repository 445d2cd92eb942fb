"""Small SavedModels that a server is tried with, made as TensorFlow's users make them."""

import pathlib
import shutil

import tensorflow as tf

NUMBERS = ("float32", "float64", "int8", "uint8", "int16", "int32", "int64", "uint32", "uint64", "bool")
UNWRITABLE = ("float16", "bfloat16", "uint16", "complex64")  # no JSON in TensorFlow Serving


class Scale(tf.Module):
    """3 x + offset, of a vector."""

    def __init__(self, offset):
        super().__init__()
        self.offset = tf.Variable(offset, dtype=tf.float32)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def predict(self, x):
        return {"y": 3 * x + self.offset}


class Types(tf.Module):
    """A signature a dtype, which gives back what it gets; and some whose outputs are peculiar."""

    def signatures(self):
        names = (*NUMBERS, *UNWRITABLE, "string")
        functions = {name: self._echo(tf.as_dtype(name)) for name in names}
        functions["scalar"] = tf.function(
            lambda x: {"total": tf.reduce_sum(x)}, input_signature=[tf.TensorSpec([None], tf.float32, name="x")]
        )
        functions["halved"] = tf.function(
            lambda x: {"half": x[: tf.shape(x)[0] // 2], "whole": x},
            input_signature=[tf.TensorSpec([None], tf.float32, name="x")],
        )
        return functions

    @staticmethod
    def _echo(dtype):
        return tf.function(lambda x: {"y": tf.identity(x)}, input_signature=[tf.TensorSpec(None, dtype, name="x")])


WEIGHTS = tf.constant([[0.5, 0.25]])


class Greeting(tf.Module):
    """Several inputs and outputs, one of them of raw bytes, one input with a default."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, name="name"),
            tf.TensorSpec([None], tf.int32, name="times"),
            tf.TensorSpec([None, None], tf.float32, name="weights"),
        ]
    )
    def predict(self, name, times, weights=WEIGHTS):
        with tf.control_dependencies([tf.debugging.assert_positive(times, "times must be positive")]):
            greeting = tf.strings.join(["hello ", name])
        return {"greeting": greeting, "name_bytes": name, "sums": tf.reduce_sum(weights, 1), "times": times}


class Work(tf.Module):
    """Takes its time: multiplies matrices `rounds` times."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="rounds")])
    def predict(self, rounds):
        matrix = tf.eye(128) * 0.5
        count = tf.reduce_max(rounds)
        _, product = tf.while_loop(lambda i, _: i < count, lambda i, m: (i + 1, m @ matrix + matrix), [0, matrix])
        return {"done": rounds + tf.cast(tf.reduce_min(product), tf.int32) * 0}


def save_examples_model(path):
    """Signatures that classify and regress parsed examples: x and y, two classes, and their sum."""
    graph = tf.Graph()
    v1 = tf.compat.v1
    with graph.as_default(), v1.Session(graph=graph) as session:
        serialized = v1.placeholder(tf.string, [None], "examples")
        default = v1.FixedLenFeature([1], tf.float32, default_value=[0.0])
        features = v1.parse_example(serialized, {"x": default, "y": default})
        scores = tf.concat([features["x"], features["y"]], axis=1)
        classes = tf.tile(tf.constant([["first", "second"]]), [tf.shape(serialized)[0], 1])
        utils = v1.saved_model.signature_def_utils
        signatures = {
            "serving_default": utils.classification_signature_def(serialized, classes, scores),
            "scores_only": utils.classification_signature_def(serialized, None, scores),
            "sum": utils.regression_signature_def(serialized, features["x"] + features["y"]),
        }
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, [v1.saved_model.SERVING], signatures)
        builder.save()


def save_scale(path, offset):
    module = Scale(offset)
    tf.saved_model.save(module, str(path), signatures=module.predict)


def save_models(folder):
    """Base paths scale (versions 1 and 2), types, greeting, work and examples; and models.config."""
    folder = pathlib.Path(folder)
    for version in (1, 2):
        save_scale(folder / "scale" / str(version), float(version))
    module = Types()
    tf.saved_model.save(module, str(folder / "types" / "1"), signatures=module.signatures())
    for name, module in (("greeting", Greeting()), ("work", Work())):
        tf.saved_model.save(module, str(folder / name / "1"), signatures=module.predict)
    save_examples_model(folder / "examples" / "1")
    (folder / "models.config").write_text(CONFIG)


def add_version(source, target):
    """Copies a version under a hidden name and renames it, as `tfgpt publish` does."""
    hidden = target.with_name(f".{target.name}.copy")
    shutil.copytree(source, hidden)
    hidden.rename(target)


CONFIG = """
model_config_list {
  config {
    name: "scale" base_path: "scale" model_platform: "tensorflow"
    model_version_policy { specific { versions: 1 versions: 2 } }
    version_labels { key: "stable" value: 1 }
    version_labels { key: "canary" value: 2 }
  }
  config { name: "types" base_path: "types" model_platform: "tensorflow" }
  config { name: "greeting" base_path: "greeting" model_platform: "tensorflow" }
  config { name: "work" base_path: "work" model_platform: "tensorflow" }
  config { name: "examples" base_path: "examples" model_platform: "tensorflow" }
}
"""
