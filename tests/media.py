"""The name by which scripts outside this repository know `helpers.media`."""

from helpers.media import *  # noqa: F403
