"""llama.cpp by way of its Python binding, from GGUF files made of the model directory's weights."""

import ctypes
import itertools
import json

import llama_cpp

FILE_TYPES = {"q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}

# GGUF's name of a block's layer -> Hugging Face's
BLOCK = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


@llama_cpp.llama_log_callback
def _ignore(level, text, user_data):
    pass


# Kept for as long as the process runs, since the library calls it; `verbose=False` alone lets some lines through.
llama_cpp.llama_log_set(_ignore, ctypes.c_void_p(0))


def prepare(model, folder, variants):
    base = folder / "model-f32.gguf"
    if not base.exists():
        temporary = base.with_suffix(".partial")
        write_gguf(model, temporary)
        temporary.rename(base)
    prepared = {}
    for variant in variants:
        path = folder / f"model-{variant}.gguf"
        if variant in FILE_TYPES:
            options = llama_cpp.llama_model_quantize_default_params()
            options.ftype = FILE_TYPES[variant]
            status = llama_cpp.llama_model_quantize(str(base).encode(), str(path).encode(), ctypes.byref(options))
            if status:
                raise SystemExit(f"llama.cpp could not write {path.name}: status {status}")
        prepared[variant] = path, [path]
    return prepared


def write_gguf(model, path):
    """Writes a model directory as GGUF in float32. The output projection is the token embedding, stored once."""
    import gguf
    import numpy as np
    from safetensors.numpy import load_file

    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    vocabulary = json.loads((model / "vocab.json").read_text(encoding="utf-8"))
    weights = load_file(model / "model.safetensors")

    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(config["n_inner"])
    writer.add_block_count(config["n_layer"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_file_type(llama_cpp.LLAMA_FTYPE_ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([word.encode() for word in sorted(vocabulary, key=vocabulary.get)])
    writer.add_token_types([gguf.TokenType.NORMAL] * len(vocabulary))
    writer.add_token_merges(["a b"])  # the placeholder vocabulary has none, and an empty list cannot be stored
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])

    writer.add_tensor("token_embd.weight", weights["transformer.wte.weight"])
    writer.add_tensor("position_embd.weight", weights["transformer.wpe.weight"])
    layers = {"output_norm": "transformer.ln_f"}
    layers |= {
        f"blk.{i}.{theirs}": f"transformer.h.{i}.{ours}"
        for i in range(config["n_layer"])
        for theirs, ours in BLOCK.items()
    }
    for theirs, ours in layers.items():
        # GGUF has kernels as [out, in], GPT-2 as [in, out]; vectors are their own transpose.
        writer.add_tensor(f"{theirs}.weight", np.ascontiguousarray(weights[f"{ours}.weight"].T))
        writer.add_tensor(f"{theirs}.bias", weights[f"{ours}.bias"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def open_model(path, variant, threads):
    model = llama_cpp.Llama(
        str(path),
        n_ctx=0,  # the model's own window
        n_threads=threads,
        n_threads_batch=threads,
        flash_attn=True,  # as llama.cpp's own programs choose here; the binding leaves it off, which is slower
        verbose=False,
    )

    def generate(prompts, new_tokens):
        (prompt,) = prompts
        model.reset()  # else a prompt that it has seen before is not computed again
        return [list(itertools.islice(model.generate(prompt, temp=0.0), new_tokens))]

    return generate
