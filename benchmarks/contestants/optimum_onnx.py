"""Optimum's export from PyTorch, on ONNX Runtime behind transformers' `generate`."""

import onnxruntime
import torch
from optimum.onnxruntime import ORTModelForCausalLM

from benchmarks.contestants.hugging_face import generate_function


def prepare(model, folder, variants):
    ORTModelForCausalLM.from_pretrained(model, export=True).save_pretrained(folder)
    return dict.fromkeys(variants, (folder, sorted(folder.glob("*.onnx*"))))


def open_model(path, variant, threads):
    torch.set_num_threads(threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return generate_function(ORTModelForCausalLM.from_pretrained(path, session_options=options))
