"""A GPT-2 of any origin, detected, as tfgpt's model directory, which is Hugging Face's.

python export/to_tfgpt.py SOURCE DESTINATION [--overwrite] [--tokenizer DIRECTORY]
"""

import sys

from tfgpt.cli import main

sys.exit(main(["convert", *sys.argv[1:], "--to", "tfgpt"]))
