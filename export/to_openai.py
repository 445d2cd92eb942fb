"""A GPT-2 of any origin, detected, as OpenAI's TensorFlow checkpoint.

python export/to_openai.py SOURCE DESTINATION [--overwrite] [--tokenizer DIRECTORY]
"""

import sys

from tfgpt.cli import main

sys.exit(main(["convert", *sys.argv[1:], "--to", "openai"]))
