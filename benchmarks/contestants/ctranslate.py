"""CTranslate2, which converts from Hugging Face's layout."""

import json

import ctranslate2


def prepare(model, folder, variants):
    # Here and not above: the converter imports PyTorch, which running does not need.
    from ctranslate2.converters import TransformersConverter

    prepared = {}
    for variant in variants:
        path = folder / variant
        TransformersConverter(str(model)).convert(str(path), quantization=variant, force=True)
        prepared[variant] = path, [path / "model.bin"]
    return prepared


def open_model(path, variant, threads):
    model = ctranslate2.Generator(str(path), compute_type=variant, inter_threads=1, intra_threads=threads)
    # It takes and gives words; its file lists them in the order of their ids.
    words = json.loads((path / "vocabulary.json").read_text(encoding="utf-8"))

    def generate(prompts, new_tokens):
        results = model.generate_batch(
            [[words[token] for token in prompt] for prompt in prompts],
            max_length=new_tokens,
            sampling_topk=1,
            end_token=[],  # nothing ends a text
            include_prompt_in_result=False,
        )
        return [result.sequences_ids[0] for result in results]

    return generate
