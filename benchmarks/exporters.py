"""One exporter's process: python -m benchmarks.exporters NAME MODEL OUT, in the Python that has the exporter.

Each opens a model directory with its weights and writes ONNX, or a SavedModel, to the folder OUT; all that the process
does is timed.
"""

import pathlib
import sys


def tfgpt_onnx(model, out):
    """tfgpt's exporter alone, set up as in `tfgpt export`: the portable and the tuned decoder, which share weights."""
    from tfgpt.cli.quiet import import_tensorflow

    import_tensorflow(return_memory=True)
    from tfgpt.export.onnx_decoder import export_onnx
    from tfgpt.export.release import load_for_export

    export_onnx(load_for_export(model), out, model.name)


def tfgpt_saved_model(model, out):
    """tfgpt's SavedModel with all its signatures and the tokenizer, set up as in `tfgpt export`."""
    from tfgpt.cli.quiet import import_tensorflow

    import_tensorflow(return_memory=True)
    from tfgpt.export.release import load_for_export
    from tfgpt.export.saved_model import export_saved_model

    export_saved_model(load_for_export(model), out / "model" / "1")


def keras_hub(model, out):
    """Keras' exporter, of keras-hub's model."""
    import numpy as np
    from keras_hub.models import GPT2CausalLM

    causal_lm = GPT2CausalLM.from_preset(str(model), preprocessor=None)
    causal_lm({"token_ids": np.ones((1, 8), "int32"), "padding_mask": np.ones((1, 8), "int32")})  # Keras demands a call
    causal_lm.export(str(out / "model.onnx"), format="onnx")


def optimum(model, out, validate=False):
    """Optimum's exporter, of transformers' model."""
    from optimum.exporters.onnx import main_export

    main_export(str(model), output=out, task="text-generation-with-past", do_validation=validate)


def optimum_validated(model, out):
    """The same, and Optimum's own comparison with PyTorch."""
    optimum(model, out, validate=True)


EXPORTERS = {
    function.__name__: function for function in (tfgpt_onnx, tfgpt_saved_model, keras_hub, optimum, optimum_validated)
}

if __name__ == "__main__":
    name, model_directory, folder = sys.argv[1:]
    pathlib.Path(folder).mkdir(parents=True)
    EXPORTERS[name](pathlib.Path(model_directory), pathlib.Path(folder))
