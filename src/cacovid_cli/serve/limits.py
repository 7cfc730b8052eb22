"""What the operator of a server allows. Nothing heavy is imported here, because the command line shows the defaults."""

from dataclasses import dataclass

_MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds of a server; sizes are in bytes, times in seconds.

    Attributes:
        api_keys: one of which a request to `/v1/` must bring, each of visible ASCII; no key: none is asked for.
        hosts: values of the `Host` header that are answered, without port; None: any.
        media_hosts: names of the hosts that videos and pictures may be fetched from; None: any.
        media_folders: below which files of the server may be read.
        private_addresses: whether hosts off the public internet may be asked.
        videos: in a request.
        images: in a request.
        messages: in a request, and parts in a message.
        frames: of a video, the most that a request may ask for.
        new_tokens: of an answer.
        beams: of a request.
        positions: of a prompt and its answer together; None: the model's own.
        body: of a request.
        bodies: of all requests together that are being answered.
        download: of all videos and pictures of a request.
        reading_seconds: to fetch all that a request shows, and again to decode it.
        frame_pixels: of one frame or picture.
        held_pixels: of all sampled frames and pictures of a request.
        readers: requests whose videos are fetched and held at the same time.
        decoders: of these, so many are decoded at the same time.
        requests: that are read, wait and are answered at the same time; further ones are refused with status 503.
        connections: open at the same time; above, the one that has waited longest without a request is closed.
        header_seconds: from a connection's beginning, or its last answer, to the end of the next request's headers.
        body_seconds: for the body of a request, and for each part of an answer to be taken.
        shutdown_seconds: for what runs when the server is told to end.

    Raises:
        ValueError: an API key that no header can bring, or that everybody brings.
    """

    api_keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = None
    media_hosts: tuple[str, ...] | None = None
    media_folders: tuple[str, ...] = ()
    private_addresses: bool = False
    videos: int = 4
    images: int = 8
    messages: int = 256
    frames: int = 64
    new_tokens: int = 1024
    beams: int = 4
    positions: int | None = None
    body: int = 64 * _MIB
    bodies: int = 512 * _MIB
    download: int = 256 * _MIB
    reading_seconds: float = 60.0
    frame_pixels: int = 1 << 25
    held_pixels: int = 1 << 26
    readers: int = 16
    decoders: int = 2
    requests: int = 64
    connections: int = 512
    header_seconds: float = 20.0
    body_seconds: float = 60.0
    shutdown_seconds: float = 30.0

    def __post_init__(self):
        if not all(key and all("!" <= character <= "~" for character in key) for key in self.api_keys):
            raise ValueError(
                "An API key is empty, or has spaces or characters other than visible ASCII: give another --api-key."
            )
