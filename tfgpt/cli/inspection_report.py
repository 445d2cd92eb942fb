"""What `tfgpt inspect` prints."""

from __future__ import annotations

import re

SIZES = {
    "num_layers": "{} layers",
    "num_decoder_layers": "{} decoder layers",
    "num_heads": "{} heads",
    "hidden_dim": "{} wide",
    "intermediate_dim": "feed-forward {}",
    "max_sequence_length": "window {}",
    "vocabulary_size": "vocabulary {}",
    "activation": "{}",
}


def print_description(described):
    """Prints what `tfgpt.cli.inspection.describe` found."""
    print(f"{described['path']}: {described['kind']}")
    for heading, text in _lines(described):
        print(f"  {heading:14s} {text}")
    for name, model in described.get("onnx", {}).items():
        _print_onnx(name, model)
    for name, model in described.get("saved_models", {}).items():
        _print_saved_model(name, model)
    print("files")
    width = max(map(len, described["files"]), default=0)
    for name, entry in described["files"].items():
        print(f"  {name:{width}s} {entry['bytes']:>14,} bytes  {entry.get('sha256', '')}".rstrip())


def _lines(described):
    if "architecture" in described:
        architecture = described["architecture"]
        sizes = [form.format(architecture[key]) for key, form in SIZES.items() if key in architecture]
        yield "architecture", f"{architecture['name'] or architecture['model_type']}: {', '.join(sizes)}"
    if "parameters" in described:
        yield "parameters", f"{described['parameters']:,}"
    if "dtypes" in described:
        yield "weights", _dtypes(described["dtypes"])
    if "optimizer" in described:
        yield "optimizer", _dtypes(described["optimizer"]["dtypes"])
    if "step" in described:
        yield "step", described["step"]
    if "tokenizer" in described:
        found = described["tokenizer"]
        end = "no end of text" if found["end_token_id"] is None else f"end of text {found['end_token_id']}"
        yield "tokenizer", f"{found['class']} of {found['vocabulary_size']:,} tokens, {end}, {found['sha256']}"
    if described.get("checkpoints"):
        yield "checkpoints", ", ".join(described["checkpoints"])
    if "source" in described:
        yield "made", f"{described.get('created')} from {_pairs(described['source'])}"
    if "versions" in described:
        yield "made with", _pairs(described["versions"])


def _print_onnx(name, model):
    print(f"{name}: ONNX by {model['producer']}")
    print(f"  {'opsets':14s} {_pairs(model['opsets'])}, IR version {model['ir_version']}")
    _print_values("inputs", model["inputs"])
    _print_values("outputs", model["outputs"])
    counts = ", ".join(f"{count} {operator}" for operator, count in model["operators"].items())
    print(f"  {'operators':14s} {sum(model['operators'].values())}: {counts}")
    print(f"  {'weights':14s} {_dtypes(model['weights'])}")
    for file, size in model["external_data"].items():
        print(f"  {'external data':14s} {size:,} bytes in {file}")


def _print_saved_model(name, model):
    print(f"{name}: SavedModel by TensorFlow {model['tensorflow_version']}, tags {', '.join(model['tags'])}")
    print(f"  {'weights':14s} {_dtypes(model['weights'])}")
    for signature, found in model["signatures"].items():
        print(f"  signature {signature}")
        _print_values("  inputs", found["inputs"])
        _print_values("  outputs", found["outputs"])


def _print_values(heading, values):
    """Inputs or outputs, with those of all layers in one line."""
    lines = {}
    for name, value in values.items():
        lengths = ", ".join("?" if length is None else str(length) for length in value["shape"] or ())
        kind = f"{value['dtype']} " + ("of any shape" if value["shape"] is None else f"[{lengths}]")
        lines.setdefault((re.sub(r"(?<=[._])\d+(?=[._])", "{i}", name), kind), []).append(name)
    for i, ((form, kind), names) in enumerate(lines.items()):
        several = f"{form}: {kind} × {len(names)}" if len(names) > 1 else f"{names[0]}: {kind}"
        print(f"  {heading if i == 0 else '':14s} {several}")


def _dtypes(dtypes):
    counts = ((d, c["elements"], c["tensors"]) for d, c in dtypes.items())
    return "; ".join(f"{d}: {n:,} numbers in {t:,} tensor{'s' * (t != 1)}" for d, n, t in counts) or "none"


def _pairs(values):
    return ", ".join(f"{key} {value}" for key, value in values.items())
