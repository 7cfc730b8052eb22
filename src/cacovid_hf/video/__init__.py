"""Video files: frames, times and metadata."""

from .files import read_video

__all__ = ["read_video"]
