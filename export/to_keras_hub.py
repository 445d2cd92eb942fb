"""A GPT-2 of any origin, detected, as keras-hub's preset.

python export/to_keras_hub.py SOURCE DESTINATION [--overwrite] [--tokenizer DIRECTORY]
"""

import sys

from tfgpt.cli import main

sys.exit(main(["convert", *sys.argv[1:], "--to", "keras_hub"]))
