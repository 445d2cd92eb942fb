"""`python -m tfgpt.cli`."""

import sys

from tfgpt.cli import main

sys.exit(main())
