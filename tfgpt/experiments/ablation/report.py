"""The report: tables and sentences, every one of them made of the records."""

import math
import pathlib

from tfgpt.atomic import write_text
from tfgpt.experiments.ablation.claims import TOLERANCE, findings
from tfgpt.experiments.ablation.figures import ARRANGEMENTS, FIGURES, TITLES, describe, draw_figures
from tfgpt.experiments.ablation.records import LOSSES, NORMS, RESULTS, read_ablation
from tfgpt.experiments.pictures import expect_matplotlib

REPORT = "report.md"


def write_report(ablation, folder):
    """Writes report.md."""
    write_text(pathlib.Path(folder) / REPORT, report_text(ablation))


def redraw_report(folder):
    """Draws figures and report anew from the data in a folder that `run_ablation` made.

    Returns:
        The `Ablation`.

    Raises:
        UserError: if there is no such data.
    """
    expect_matplotlib()
    ablation = read_ablation(folder)
    draw_figures(ablation, folder)
    write_report(ablation, folder)
    return ablation


def table_of_losses(ablation):
    """Headings and rows: the held-out loss at the end, of every arrangement by depth."""
    depths = sorted(ablation.settings["depths"])
    rows = []
    for variant in ablation.settings["variants"]:
        for warmup, scaling in ARRANGEMENTS:
            runs = {r.depth: r for r in ablation.find(variant=variant, warmup=warmup, residual_scaling=scaling)}
            if runs:
                rows.append([TITLES[variant], describe(warmup, scaling), *(_cell(ablation, runs[d]) for d in depths)])
    return ["network", "training", *(f"depth {depth}" for depth in depths)], rows


def report_text(ablation):
    """The report as Markdown."""
    settings = ablation.settings
    lines = [
        "# Residual connections and normalization, ablated",
        "",
        f"The same causal language model, {settings['hidden_dim']} wide with {settings['num_heads']} heads, with "
        f"{_enumerated([TITLES[v] for v in settings['variants']])}, at depths "
        f"{_enumerated(map(str, settings['depths']))}: {settings['steps']} steps of Adam on {settings['batch_size']} "
        f"windows of {settings['window']} tokens ({settings['tokenizer']} tokenizer, {settings['vocabulary']} tokens) "
        f"of {', '.join(settings['data'])}, at a learning rate of {settings['learning_rate']:g} that falls linearly to "
        f"0, reached over {settings['warmup_steps']} steps with warm-up and at once without. No clipping, no dropout, "
        "no weight decay. All variants of a depth begin with the same kernels and see the same batches; without "
        "residual connections normalization stays where pre-norm has it.",
        "",
        f"Seed {settings['seed']}, one run of each kind, {len(ablation.runs)} runs in {settings['seconds']:.0f} s: "
        f"differences below {TOLERANCE} nats count as none, and what takes longer than {settings['steps']} steps to "
        "show is not seen here.",
        "",
        "## Where training stops",
        "",
        f"A run trains if its loss on {settings['held_out_tokens']} held-out tokens ends below "
        f"{ablation.unigram_entropy:.3f} nats, the entropy of these tokens' own frequencies: no model that ignores the "
        "context can get there. × marks runs that do not train.",
        "",
        *_markdown_table(*table_of_losses(ablation)),
        "",
        *_limits(ablation),
        "",
        "![Final loss by depth](depth_limits.png)",
        "",
        "## Beside the papers",
        "",
        *_markdown_table(
            ["claim", "measured here", "agrees"], [[f.claim, f.measured, f.verdict] for f in findings(ablation)]
        ),
        "",
        "## Figures",
        "",
        *(f"![{name.replace('_', ' ')}]({name}.png)\n" for name in FIGURES if name != "depth_limits"),
        "Gradient norms are those of one step's batch, before its update; dots are measurements.",
        "",
        f"Their data: {RESULTS}, {LOSSES} and {NORMS}; `tfgpt ablate --out FOLDER --redraw` draws them anew.",
        "",
    ]
    return "\n".join(lines)


def _limits(ablation):
    """A sentence for each variant and arrangement: at which depths it trains."""
    for variant in ablation.settings["variants"]:
        for warmup, scaling in ARRANGEMENTS:
            runs = ablation.find(variant=variant, warmup=warmup, residual_scaling=scaling)
            if runs:
                yield f"- {TITLES[variant]}, {describe(warmup, scaling)}: {_limit(ablation, runs)}"


def _limit(ablation, runs):
    runs = sorted(runs, key=lambda run: run.depth)
    failed = [run.depth for run in runs if not ablation.trains(run)]
    if not failed:
        return f"trains at every depth, up to {runs[-1].depth}."
    if len(failed) == len(runs):
        return f"trains at no depth, from {runs[0].depth} on."
    again = [str(run.depth) for run in runs if run.depth > failed[0] and ablation.trains(run)]
    return f"stops training at depth {failed[0]}" + (f", and trains at {_enumerated(again)}." if again else ".")


def _cell(ablation, run):
    if not math.isfinite(run.losses[-1]):
        return f"× not finite at step {len(run.losses) - 1}"
    return f"{'' if ablation.trains(run) else '× '}{run.final_loss:.3f}"


def _markdown_table(headings, rows):
    return [f"| {' | '.join(row)} |" for row in (headings, ["---"] * len(headings), *rows)]


def _enumerated(words):
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
