"""tfgpt's SavedModel, by the signature that TensorFlow Serving's clients call: `generate`."""

import numpy as np
import tensorflow as tf


def prepare(model, folder, variants):
    from tfgpt.export.release import load_for_export
    from tfgpt.export.saved_model import export_saved_model

    # No stop tokens: every contestant generates as many tokens as it is asked for.
    from tfgpt.generation_settings import GenerationSettings

    path = folder / "model" / "1"
    export_saved_model(load_for_export(model), path, GenerationSettings(stop_token_ids=()))
    files = [path / "saved_model.pb", path / "variables" / "variables.data-00000-of-00001"]
    return dict.fromkeys(variants, (path, files))


def open_model(path, variant, threads):
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    module = tf.saved_model.load(str(path))

    def generate(prompts, new_tokens):
        rows = len(prompts)
        outputs = module.signatures["generate"](
            token_ids=tf.constant(prompts, tf.int32),
            padding_mask=tf.ones_like(prompts, tf.int32),
            max_new_tokens=tf.fill([rows], new_tokens),
            temperature=tf.zeros([rows]),
            top_k=tf.zeros([rows], tf.int32),
            top_p=tf.ones([rows]),
            repetition_penalty=tf.ones([rows]),
            seed=tf.zeros([rows], tf.int64),
        )
        return np.asarray(outputs["token_ids"]).tolist()

    return generate
