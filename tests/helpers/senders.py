"""Senders of live video on this machine."""

import http.server
import socket
import threading
import time
from contextlib import contextmanager

import av
from helpers.media import numbered_picture


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def send(address, count, format, options=None, pause=0.0, stop=None) -> None:
    """Write `count` numbered pictures, ten a second by their clock, or fewer if `stop` is set."""
    with av.open(address, "w", format=format, options=options or {}) as container:
        stream = container.add_stream("mpeg2video" if format == "mpegts" else "libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = 5
        stream.codec_context.max_b_frames = 0
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(numbered_picture(i), format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
            time.sleep(pause)
            if stop is not None and stop.is_set():
                break
        container.mux(stream.encode(None))


@contextmanager
def sent_over_udp(pause=0.01):
    """A sender over UDP; yields its address, and the event that stops it."""
    port, stop = free_port(), threading.Event()
    address = f"udp://127.0.0.1:{port}"
    arguments = (f"{address}?pkt_size=1316", 4000, "mpegts", None, pause, stop)
    sender = threading.Thread(target=send, args=arguments, daemon=True)
    sender.start()
    try:
        yield address, stop
    finally:
        stop.set()
        sender.join(20)


@contextmanager
def served_folder(folder):
    """A folder over HTTP; yields its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
