"""tfgpt's Keras model itself, as `tfgpt generate MODEL` runs it."""

import tensorflow as tf

from tfgpt.models import GPT2CausalLM


def prepare(model, folder, variants):
    return dict.fromkeys(variants, (model, [model / "model.safetensors"]))


def open_model(path, variant, threads):
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    model = GPT2CausalLM.from_preset(path)

    def generate(prompts, new_tokens):
        return model.generate(prompts, max_new_tokens=new_tokens, stop_token_ids=(), return_prompt=False)

    return generate
