"""The recipe of configs/shakespeare_char_cpu.yaml in PyTorch with transformers' GPT-2: torch_shakespeare.py DATA JSON.

Eager float32, two threads, fused AdamW: what nanoGPT does on a CPU. Initialization is transformers' own.
"""

import json
import math
import pathlib
import sys

import torch
import transformers
from torch.nn import functional

WINDOW, BATCH, STEPS, WARMUP = 64, 12, 2000, 100


def learning_rate(step):
    """Linear warm-up to 1e-3, then a half cosine to 1e-4."""
    if step < WARMUP:
        return 1e-3 * (step + 1) / (WARMUP + 1)
    return 1e-4 + 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))) * 9e-4


def batch_loss(model, tokens, starts):
    """Mean cross-entropy of windows that begin at `starts`."""
    windows = torch.stack([tokens[start : start + WINDOW + 1] for start in starts])
    logits = model(windows[:, :-1]).logits
    return functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def main(data, out):
    """Trains, evaluates the whole validation split in windows that share nothing, writes the loss."""
    torch.set_num_threads(2)
    torch.manual_seed(1337)
    text = pathlib.Path(data).read_text(encoding="utf-8")
    ids = {character: i for i, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([ids[character] for character in text])
    train, validation = tokens.tensor_split([int(len(tokens) * 0.9)])
    config = transformers.GPT2Config(
        vocab_size=len(ids),
        n_positions=WINDOW,
        n_embd=128,
        n_layer=4,
        n_head=4,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    )
    model = transformers.GPT2LMHeadModel(config).train()
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        loss = batch_loss(model, train, torch.randint(len(train) - WINDOW, (BATCH,)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        starts = torch.arange(0, len(validation) - WINDOW - 1, WINDOW)
        losses = [batch_loss(model, validation, part).item() * len(part) for part in starts.split(64)]
    pathlib.Path(out).write_text(json.dumps({"loss": sum(losses) / len(starts)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
