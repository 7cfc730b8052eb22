"""Decoded frames to upright RGB, with the same colours in every version of the decoder library."""

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
from transformers.utils import logging

logger = logging.get_logger(__name__)

_TICK = Fraction(1, 1000)  # the filter needs one
_BT601, _BT2020 = 5, 9
_RESERVED, _CONSTANT_LUMINANCE = 3, 10
# Matrices that FFmpeg converts by their own coefficients, numbered as in ITU-T H.273; 2 is unspecified, taken for BT.601.
_KNOWN_MATRICES = (0, 1, 2, 4, 5, 6, 7, 9)


class RGBConverter:
    """Converts frames to upright RGB as FFmpeg's own `scale` filter does, with the matrix, range and chroma places that each frame names.

    The filter gives the same pixels in every version of the library. PyAV's `to_ndarray` does not: before 17, it takes all for BT.601.
    """

    def __init__(self):
        self.key: tuple | None = None
        self.graph: Any = None
        self.turn: tuple[int, ...] | None = None
        self.is_turn_known = False

    def __call__(self, frame, width: int, height: int) -> np.ndarray:
        """Return a frame as `(H, W, 3)` uint8, scaled to a stored size, then turned as its display matrix says (by the nearest right angle)."""
        image = self._scaled(frame, width, height)
        matrix = self._matrix(frame)
        if matrix is None:
            return image
        # A pixel at column x, row y is shown at (a x + c y, b x + d y).
        a, b, c, d = matrix
        if abs(b) > abs(a):
            image, a, d = image.transpose(1, 0, 2), c, b
        return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]

    def _matrix(self, frame) -> tuple[int, ...] | None:
        """Return the display matrix of a clip, read from the first frame, as FFmpeg does.

        A frame that is asked for its side data stays in memory until Python looks for cycles, so that one is asked.
        """
        from av.sidedata.sidedata import Type

        if not self.is_turn_known:
            data = frame.side_data.get(Type.DISPLAYMATRIX)
            self.turn = None if data is None else tuple(np.frombuffer(bytes(data), np.int32)[[0, 1, 3, 4]].tolist())
            self.is_turn_known = True
        return self.turn

    def _scaled(self, frame, width: int, height: int) -> np.ndarray:
        import av.filter

        self._name_known_matrix(frame)
        looks = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if self.key != (*looks, width, height):
            graph = av.filter.Graph()
            steps = [
                graph.add_buffer(width=frame.width, height=frame.height, format=frame.format.name, time_base=_TICK),
                graph.add("scale", f"{width}:{height}:flags=bicubic"),
                graph.add("format", "rgb24"),
                graph.add("buffersink"),
            ]
            for one, next_one in itertools.pairwise(steps):
                one.link_to(next_one)
            graph.configure()
            self.key, self.graph = (*looks, width, height), graph
        self.graph.push(frame)
        return self.graph.pull().to_ndarray()

    def _name_known_matrix(self, frame) -> None:
        """Name a matrix that FFmpeg from 8 on refuses as the one by which earlier versions convert: BT.2020, or else BT.601."""
        if frame.colorspace in _KNOWN_MATRICES or frame.format.is_rgb:
            return
        if frame.colorspace not in (_RESERVED, _CONSTANT_LUMINANCE):
            logger.warning_once(
                f"The colours of a video are in matrix {int(frame.colorspace)} of ITU-T H.273, which FFmpeg shows as BT.601. Convert it for its own."
            )
        frame.colorspace = _BT2020 if frame.colorspace == _CONSTANT_LUMINANCE else _BT601
