"""Who takes part in the comparison of generation speed.

Each module of this folder is a contestant, imported only in a process of its own, in the Python that has what it needs:

- `prepare(model, folder, variants)` makes, in an existing folder, the files that it opens, from a model directory, and
  gives for each variant what `open_model` opens and the files with weights or graph that it then reads;
- `open_model(path, variant, threads)` opens them and gives a function `generate(prompts, new_tokens)` that continues
  token id lists of one length greedily by exactly `new_tokens` tokens and gives these, whatever tokens they are.
"""

import dataclasses

from tfgpt.runtime.variants import VARIANTS


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One row of the table.

    Args:
        who: the software.
        variant: of it; the name that its module knows.
        module: in this folder.
        needs: the distributions that it imports, the one whose version names it first.
        exact: whether it computes in float32, so that it has to give the tokens that tfgpt gives.
        batches: whether it continues several prompts at once.
        ours: whether it is tfgpt; its files are made anew in every run, since its exporter is what changes.
    """

    who: str
    variant: str
    module: str
    needs: tuple[str, ...]
    exact: bool = False
    batches: bool = True
    ours: bool = False

    @property
    def name(self):
        return f"{self.who} {self.variant}"


CONTESTANTS = (
    *(
        Contestant(
            "tfgpt", variant, "tfgpt_onnx", ("tfgpt", "onnxruntime"), variant in ("portable", "float32"), ours=True
        )
        for variant in VARIANTS
    ),
    Contestant(
        "tfgpt SavedModel", "float32", "tfgpt_saved_model", ("tfgpt", "tensorflow", "keras"), exact=True, ours=True
    ),
    Contestant("tfgpt Keras", "float32", "tfgpt_keras", ("tfgpt", "tensorflow", "keras"), exact=True, ours=True),
    *(
        Contestant(
            "llama.cpp",
            variant,
            "llama",
            ("llama-cpp-python", "gguf", "safetensors", "numpy"),
            exact=variant == "f32",
            batches=False,  # its Python binding continues one text at a time
        )
        for variant in ("f32", "q8_0", "q4_0")
    ),
    *(
        Contestant("CTranslate2", variant, "ctranslate", ("ctranslate2", "transformers", "torch"), variant == "float32")
        for variant in ("float32", "int8")
    ),
    Contestant(
        "Optimum ONNX Runtime",
        "float32",
        "optimum_onnx",
        ("optimum-onnx", "onnxruntime", "transformers", "torch"),
        exact=True,
    ),
    Contestant("transformers", "float32", "hugging_face", ("transformers", "torch"), exact=True),
    Contestant("keras-hub", "graph", "keras_hub_model", ("keras-hub", "keras", "tensorflow"), exact=True),
    Contestant("keras-hub", "XLA", "keras_hub_model", ("keras-hub", "keras", "tensorflow"), exact=True),
)
