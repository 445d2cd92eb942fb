"""What residual connections and normalization are for: the same network with and without them, by depth."""

from tfgpt.experiments.ablation.experiment import run_ablation
from tfgpt.experiments.ablation.figures import draw_figures
from tfgpt.experiments.ablation.network import VARIANTS, AblationNetwork
from tfgpt.experiments.ablation.records import Ablation, Run, read_ablation, write_ablation
from tfgpt.experiments.ablation.report import redraw_report, write_report
