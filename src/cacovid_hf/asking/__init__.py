"""The former place of `sample_video`, for scripts written before it moved: import it from `cacovid_hf.processing`."""

import warnings

from ..processing import sample_video

__all__ = ["sample_video"]

warnings.warn(
    "cacovid_hf.asking is deprecated: import sample_video from cacovid_hf.processing.", DeprecationWarning, stacklevel=2
)
