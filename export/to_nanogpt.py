"""A GPT-2 of any origin, detected, as nanoGPT's ckpt.pt (needs PyTorch: pip install 'tfgpt[torch]').

python export/to_nanogpt.py SOURCE DESTINATION [--overwrite] [--tokenizer DIRECTORY]
"""

import sys

from tfgpt.cli import main

sys.exit(main(["convert", *sys.argv[1:], "--to", "nanogpt"]))
