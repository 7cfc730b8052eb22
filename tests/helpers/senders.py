"""Senders of live video on this machine."""

import http.server
import socket
import subprocess
import threading
import time
from contextlib import contextmanager, suppress

import av
from helpers.media import numbered_picture


def free_port(kind: socket.SocketKind = socket.SOCK_DGRAM) -> int:
    with socket.socket(socket.AF_INET, kind) as taken:
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
def raw_over_tcp(folder, count, seconds):
    """A raw H.264 stream for one client, in so many seconds; yields its address. PyAV cannot open one for writing."""
    recorded = folder / "recorded.h264"
    send(str(recorded), count, "h264")
    data = recorded.read_bytes()
    size = -(-len(data) // 50)

    def serve():
        client, _ = listening.accept()
        with client, suppress(OSError):  # the client is gone
            for begin in range(0, len(data), size):
                client.sendall(data[begin : begin + size])
                time.sleep(seconds / 50)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        sender = threading.Thread(target=serve, daemon=True)
        sender.start()
        yield f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        sender.join(20)


@contextmanager
def served_over_rtmp(folder, count=100):
    """FFmpeg as an RTMP server for one client, ten times as fast as the pictures' clock; yields the address once it listens. PyAV cannot open one for writing."""
    recorded = folder / "recorded.flv"
    send(str(recorded), count, "flv")
    address = f"rtmp://127.0.0.1:{free_port(socket.SOCK_STREAM)}/live/one"
    server = subprocess.Popen(
        ["ffmpeg", "-nostdin", "-loglevel", "error", "-readrate", "10", "-i", recorded, "-c", "copy", "-f", "flv"]
        + ["-listen", "1", "-timeout", "20", address]
    )
    try:
        _wait_until_it_listens(int(address.split(":")[2].split("/")[0]))
        yield address
    finally:
        server.terminate()
        server.wait(20)


def _wait_until_it_listens(port: int) -> None:
    """Read off the system's table, since the server would take a connection for its one client."""
    for _ in range(200):
        with open("/proc/net/tcp") as lines:
            if any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in list(lines)[1:]):
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens at port {port}")


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
