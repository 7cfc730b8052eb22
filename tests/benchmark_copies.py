"""The name by which scripts outside this repository know `helpers.benchmark_copies`."""

from helpers.benchmark_copies import *  # noqa: F403
