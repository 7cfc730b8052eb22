"""Every method by its name. The package fills the table with what it imports, so that a method may look others up without importing them."""

from ..policies.settings import SelectionConfig
from ..utils.names import nearest
from .base import Compressor
from .cacovid import CaCoVid

COMPRESSORS: dict[str, type[Compressor]] = {}


def resolve_compressor(compressor: "str | Compressor | None", config: SelectionConfig | None = None) -> Compressor:
    """Return a compressor from its name (default settings) or itself; a `ValueError` lists the known names.

    None and `"cacovid"` are the policy, with the settings of a config if one is given.
    """
    if isinstance(compressor, Compressor):
        return compressor
    if compressor is None or compressor == CaCoVid.name:
        return CaCoVid() if config is None else CaCoVid.of(config)
    if compressor not in COMPRESSORS:
        remedy = nearest(compressor, COMPRESSORS, f"choose one of {', '.join(COMPRESSORS)}.")
        raise ValueError(f"compressor={compressor!r} is unknown: {remedy}")
    return COMPRESSORS[compressor]()
