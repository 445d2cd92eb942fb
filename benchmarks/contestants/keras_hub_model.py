"""keras-hub's GPT-2: its own `generate`, as a TensorFlow graph or compiled by XLA."""

import keras_hub
import numpy as np
import tensorflow as tf


def prepare(model, folder, variants):
    return dict.fromkeys(variants, (model, [model / "model.safetensors"]))


def open_model(path, variant, threads):
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    model = keras_hub.models.GPT2CausalLM.from_preset(str(path), preprocessor=None)
    model.compile(sampler="greedy", jit_compile=variant == "XLA")

    def generate(prompts, new_tokens):
        room = (0, 0), (0, new_tokens)
        inputs = {
            "token_ids": np.pad(np.array(prompts, np.int32), room),
            "padding_mask": np.pad(np.ones((len(prompts), len(prompts[0])), bool), room),
        }
        output = model.generate(inputs, stop_token_ids=None)
        return np.asarray(output["token_ids"])[:, -new_tokens:].tolist()

    return generate
