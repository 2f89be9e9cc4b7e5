"""The rivals side by side: python -m benchmarks, or make bench."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
# The servers are found, got and run as the tests do it.
sys.path.insert(0, str(ROOT / "tests"))
