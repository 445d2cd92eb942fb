"""transformers' GPT-2 in PyTorch, eager."""

import torch
from transformers import GenerationConfig, GPT2LMHeadModel


def prepare(model, folder, variants):
    return dict.fromkeys(variants, (model, [model / "model.safetensors"]))


def open_model(path, variant, threads):
    torch.set_num_threads(threads)
    return generate_function(GPT2LMHeadModel.from_pretrained(path).eval())


def generate_function(model):
    """`generate` of a contestant whose model has transformers' interface."""
    # In place of the model directory's own, which says that the end-of-text token ends a text.
    model.generation_config = GenerationConfig(do_sample=False, use_cache=True, pad_token_id=0)

    def generate(prompts, new_tokens):
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens)
        return output[:, ids.shape[1] :].tolist()

    return generate
