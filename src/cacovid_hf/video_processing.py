"""Video processors that read video files themselves: the stock ones with `cacovid_hf.video.files` in place of torchcodec."""

import base64
import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlparse
from urllib.request import Request, url2pathname, urlopen

import numpy as np
from transformers import AutoVideoProcessor, LlavaOnevisionVideoProcessor, Qwen2VLVideoProcessor
from transformers.feature_extraction_utils import BatchFeature
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoInput, VideoMetadata, make_batched_videos

from .hub.auto_file import AUTO_MODULE, AUTO_SOURCE
from .video.files import iter_chosen_frames, read_chosen_frames, uniform_indices

_DOWNLOAD_TIMEOUT = 60  # seconds without a byte
_LlavaOnevisionKwargs: Any = LlavaOnevisionVideoProcessor.valid_kwargs
_Qwen2VLKwargs: Any = Qwen2VLVideoProcessor.valid_kwargs


class VideoFileMixin(BaseVideoProcessor):
    """Video files in, by path or URL, sampled as CaCoVID does; frames that are already decoded go the stock way.

    Settings, saved with the processor and overridable in each call: `num_frames`, at most so many frames of a video (32), and `max_fps`, at most
    so many a second of it (1.0); a call's `fps` is taken as its `max_fps`. They hold for every file, and for decoded frames with
    `do_sample_frames=True`.
    """

    num_frames = 32
    max_fps = 1.0

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoVideoProcessor") -> None:
        """Do nothing: what is saved names `AUTO_MODULE`, and this package's sources are not copied beside it."""

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Write the settings, and beside them the file in which they say that this class is found."""
        super().to_json_file(json_file_path)
        if getattr(self, "auto_map", None):
            Path(json_file_path).with_name(f"{AUTO_MODULE}.py").write_text(AUTO_SOURCE, encoding="utf-8")

    def preprocess(self, videos: VideoInput, **kwargs) -> BatchFeature:
        """Turn videos (decoded, or paths and URLs) into pixel values, as the stock video processor does.

        Raises:
            FileNotFoundError: no such file.
            ValueError: an unreadable video, settings out of range, or files mixed with decoded frames.
        """
        is_file = [isinstance(video, str) for video in make_batched_videos(videos)]
        if any(is_file):
            if not all(is_file):
                raise ValueError(
                    "The call mixes video files with decoded frames: decode them all (cacovid_hf.read_video) or none."
                )
            kwargs["do_sample_frames"] = True
        return super().preprocess(videos, **kwargs)

    def sample_frames(  # type: ignore[override]
        self,
        metadata: VideoMetadata,
        num_frames: int | None = None,
        fps: float | None = None,
        max_fps: float | None = None,
        **kwargs,
    ) -> np.ndarray:
        """Choose uniformly among the frames of a video (see `cacovid_hf.video.files.uniform_indices`): int64 `(n,)`."""
        if metadata.frames_indices is not None and len(metadata.frames_indices) != metadata.total_num_frames:
            raise ValueError(
                f"The video is sampled already ({len(metadata.frames_indices)} of {metadata.total_num_frames} frames): give do_sample_frames=False "
                "and no num_frames, or the file."
            )
        num_frames = self.num_frames if num_frames is None else num_frames
        max_fps = self.max_fps if max_fps is None else max_fps
        return uniform_indices(
            metadata.total_num_frames, metadata.duration, num_frames, max_fps if fps is None else fps
        )

    def fetch_videos(  # type: ignore[override]
        self, video_url_or_urls: str | list[str], sample_indices_fn: Callable[..., Any] | None = None
    ) -> tuple[np.ndarray, VideoMetadata] | tuple[list[np.ndarray], list[VideoMetadata]]:
        """Read one video or a list of them: paths, `file://`, `http://`, `https://` or `data:...;base64,`.

        Args:
            video_url_or_urls: where each video lies.
            sample_indices_fn: from a video's metadata to the ascending indices of its frames; the processor's settings if None.

        Returns:
            Frames uint8 `(T, H, W, 3)` and their metadata, or a list of each for a list.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a readable video, or an address that cannot be fetched.
        """
        choose = sample_indices_fn or self.sample_frames
        if isinstance(video_url_or_urls, list):
            pairs = [self._read(address, choose) for address in video_url_or_urls]
            return [frames for frames, _ in pairs], [metadata for _, metadata in pairs]
        return self._read(video_url_or_urls, choose)

    def iter_frames(
        self, address: str, frames_per_chunk: int, num_frames: int | None = None
    ) -> Iterator[tuple[np.ndarray, VideoMetadata]]:
        """Read one video as `fetch_videos` does, so many frames at a time, decoded when they are asked for.

        Args:
            address: where it lies.
            frames_per_chunk: at least 1.
            num_frames: at most so many frames of the video; None is the processor's setting.

        Yields:
            Frames uint8 `(n, H, W, 3)`, and the metadata of all of them.
        """
        with _local(address) as file:
            yield from iter_chosen_frames(
                file, lambda metadata: self.sample_frames(metadata=metadata, num_frames=num_frames), frames_per_chunk
            )

    def _read(self, address: str, choose: Callable[..., Any]) -> tuple[np.ndarray, VideoMetadata]:
        with _local(address) as file:
            return read_chosen_frames(file, lambda metadata: choose(metadata=metadata))


class CaCoVidLlavaOnevisionVideoProcessor(VideoFileMixin, LlavaOnevisionVideoProcessor):
    """LLaVA-OneVision's video processor, which reads video files (see `VideoFileMixin`)."""

    class Kwargs(_LlavaOnevisionKwargs, total=False):  # type: ignore[call-arg]
        """The stock keyword arguments and ours."""

        max_fps: float | int | None

    valid_kwargs = Kwargs


class CaCoVidQwen2VLVideoProcessor(VideoFileMixin, Qwen2VLVideoProcessor):  # type: ignore[misc]
    """The video processor of Qwen2-VL and Qwen2.5-VL, which reads video files (see `VideoFileMixin`)."""

    class Kwargs(_Qwen2VLKwargs, total=False):  # type: ignore[call-arg]
        """The stock keyword arguments and ours."""

        max_fps: float | int | None

    valid_kwargs = Kwargs


@contextlib.contextmanager
def _local(address: str) -> Iterator[str | BinaryIO]:
    """Give a path as it is, a `file://` address as a path, a download as a temporary file, and what a `data:` address holds as a file."""
    url = urlparse(address)
    if url.scheme == "file":
        yield url2pathname(url.path)
    elif url.scheme in ("http", "https"):
        with tempfile.TemporaryFile() as file:
            _download(address, cast(BinaryIO, file))
            yield cast(BinaryIO, file)
    elif url.scheme == "data":
        header, _, payload = address.partition(",")
        try:
            if not header.endswith(";base64"):
                raise ValueError("it does not say ';base64,'")
            content = base64.b64decode(payload, validate=True)
        except ValueError as error:
            raise ValueError(
                f"The video given as {address[:40]!r}... cannot be read: {error}. Write data:video/mp4;base64, and then the file in base64."
            ) from None
        yield io.BytesIO(content)
    else:
        yield address


def _download(address: str, file: BinaryIO) -> None:
    try:
        with urlopen(Request(address, headers={"User-Agent": "cacovid-hf"}), timeout=_DOWNLOAD_TIMEOUT) as response:
            while block := response.read(1 << 20):
                file.write(block)
    except (OSError, HTTPException) as error:
        raise ValueError(
            f"{address} cannot be fetched ({error}): check the address, or download it and give its path."
        ) from error
    file.flush()


# Each is its own key, because a stock config as key would replace the stock class. A saved processor is found by its class's name.
for _reader in (CaCoVidLlavaOnevisionVideoProcessor, CaCoVidQwen2VLVideoProcessor):
    AutoVideoProcessor.register(_reader, _reader, exist_ok=True)
