"""The name by which scripts outside this repository know `helpers.models`.

They try every method on every one of `FAMILIES`, which are here those that no method refuses by name.
"""

from helpers.models import *  # noqa: F403
from helpers.models import BY_NAME

FAMILIES = tuple(name for name, family in BY_NAME.items() if family.cuts_inside and family.attends)
