"""The commands that look into a model and into the Transformer itself, as in `tfgpt.cli.commands`."""

from __future__ import annotations

import pathlib

from tfgpt.cli.figures import write_json
from tfgpt.cli.quiet import import_tensorflow


def ablate(
    out: str,
    data: list[str] = ("stdlib",),
    depths: list[int] = (2, 6, 12, 24),
    variants: list[str] = ("pre", "post", "none", "no_residual"),
    steps: int = 300,
    warmup_steps: int = 100,
    learning_rate: float = 3e-3,
    hidden_dim: int = 64,
    num_heads: int = 4,
    window: int = 64,
    batch_size: int = 8,
    tokenizer: str = "character",
    vocabulary_size: int = 512,
    seed: int = 0,
    overwrite: bool = False,
    redraw: bool = False,
    json: str | None = None,
):
    """Show what residual connections and normalization are for: train a network with and without them, by depth.

    Args:
        out: the folder to be made, with the measurements, the figures and report.md.
        data: files, folders, globs, or "stdlib" for the Python standard library's source; at most 2^20 characters.
        depths: numbers of blocks.
        variants: any of pre, post, none (no normalization) and no_residual.
        steps: of each run.
        warmup_steps: of the runs with warm-up; each network is trained with and without.
        learning_rate: the highest.
        hidden_dim: the width.
        num_heads: attention heads.
        window: tokens.
        batch_size: windows a step.
        tokenizer: "character", "bpe", or a directory with one.
        vocabulary_size: of a tokenizer that is trained with "bpe".
        seed: of initial weights and batches.
        overwrite: replace what `out` holds.
        redraw: train nothing, but draw figures and report anew from the measurements in `out`.
        json: also write the final losses to this file.
    """
    options = {name: value for name, value in locals().items() if name not in ("redraw", "json")}
    from tfgpt.cli.progress import print_table, show_fraction

    import_tensorflow()
    from tfgpt.experiments.ablation import redraw_report, run_ablation
    from tfgpt.experiments.ablation.report import table_of_losses

    if redraw:
        ablation = redraw_report(out)
    else:
        with show_fraction("training, by depth and variant") as on_progress:
            ablation = run_ablation(**options, on_progress=on_progress)
    print_table(*table_of_losses(ablation))
    print(f"held-out losses in nats a token; × is not below the unigram entropy of {ablation.unigram_entropy:.3f}")
    print(f"report: {pathlib.Path(out) / 'report.md'}")
    runs = [dict(zip(("variant", "depth", "warmup", "residual_scaling"), run.key)) for run in ablation.runs]
    for run, figures in zip(ablation.runs, runs):
        figures |= {"final_loss": run.final_loss if run.final_loss == run.final_loss else None}
        figures |= {"trains": ablation.trains(run)}
    write_json(json, {"unigram_entropy": ablation.unigram_entropy, "runs": runs})


def attention(
    model: str,
    text: str,
    out: str,
    target: str | None = None,
    top_k: int = 5,
    overwrite: bool = False,
):
    """Show where each token of a text looks, by layer and head, and what each layer would say next.

    Args:
        model: a model directory, of GPT-2 or of a translator.
        text: that is read; of a translator the source.
        out: the folder to be made, with attention.html, a page without network, and PNGs of attention and logit lens.
        target: of a translator, the translation to be looked at; by default its own.
        top_k: tokens of the logit lens.
        overwrite: replace what `out` holds.
    """
    from tfgpt.cli.progress import show_status

    with show_status("loading the model"):
        import_tensorflow()
        from tfgpt.experiments.attention import show_attention

        views, _ = show_attention(model, text, out, target, top_k, overwrite)
    for name, view in views.items():
        layers, heads, queries, keys = view.weights.shape
        print(f"{name}: {layers} layers of {heads} heads, {queries} tokens that look at {keys}")
    print(f"page: {pathlib.Path(out) / 'attention.html'}")
