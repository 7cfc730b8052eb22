"""The name by which scripts outside this repository know `helpers.processors`."""

from helpers.processors import *  # noqa: F403
