"""The name by which scripts outside this repository know `helpers.models`."""

from helpers.models import *  # noqa: F403
