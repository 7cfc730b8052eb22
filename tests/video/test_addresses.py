"""Addresses of videos: every usual spelling of a path, `data:` contents as clients write them, downloads within bounds, private hosts."""

import base64
import contextlib
import http.server
import io
import threading
import time

import pytest

from cacovid_hf.video.addresses import AddressRules, address_rules, is_public, local_path, opened_address
from cacovid_hf.video.limits import ReadingLimits, reading_limits

CONTENT = bytes(range(256)) * 3 + b"\xfb\xff\xfe"  # its base64 has + and /, and it ends without padding
BASE64 = base64.b64encode(CONTENT).decode()


def content_of(address):
    with opened_address(address) as file:
        return file.read() if isinstance(file, io.IOBase) or hasattr(file, "read") else open(file, "rb").read()


@pytest.mark.parametrize(
    "name", ["a#1.mp4", "what?.mp4", "100%.mp4", "a%20b.mp4", "a b.mp4", "ü.mp4", "a;b=c.mp4", "C:d.mp4"]
)
def test_names_of_files(name, tmp_path, monkeypatch):
    """Behind `file://` a path may be quoted or as it is."""
    path = tmp_path / name
    path.write_bytes(CONTENT)
    monkeypatch.chdir(tmp_path)
    for address in (
        str(path),
        name,
        path.as_uri(),
        f"file://{path}",
        f"FILE://localhost{path}",
        f"file://127.0.0.1{path}",
        f"file://[::1]{path}",
        f"file:{path}",
        f"file://{name}",
    ):
        assert content_of(address) == CONTENT, address


def test_the_quoted_reading_comes_first(tmp_path):
    (tmp_path / "a%20b").write_text("as it is")
    (tmp_path / "a b").write_text("quoted")
    assert content_of(f"file://{tmp_path}/a%20b") == b"quoted"
    assert content_of(f"{tmp_path}/a%20b") == b"as it is"


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "film.mp4").write_bytes(CONTENT)
    files = ("file://~/", "file:///~/", "file://localhost/~/", "file://127.0.0.1/~/")
    for address in ("~/film.mp4", *(f"{start}film.mp4" for start in files)):
        assert content_of(address) == CONTENT
    assert local_path("~/other.mp4") == "~/other.mp4"
    (tmp_path / "~").mkdir()
    (tmp_path / "~" / "film.mp4").write_text("a folder of this name")
    monkeypatch.chdir(tmp_path)
    assert content_of("~/film.mp4") == b"a folder of this name"


def test_windows_paths():
    assert local_path("C:\\films\\a.mp4") == "C:\\films\\a.mp4"
    assert local_path("C:/films/a.mp4") == "C:/films/a.mp4"
    for address in ("file:///C:/films/a%20b.mp4", "file://C:/films/a%20b.mp4"):
        assert local_path(address) == "C:/films/a b.mp4"
    assert local_path("file://C:\\films\\a.mp4") == "C:\\films\\a.mp4"


@pytest.mark.parametrize("scheme", ["s3", "ftp", "rtsp", "hf"])
def test_other_schemes_are_named(scheme):
    with pytest.raises(ValueError, match=f"{scheme}://bucket/a.mp4: {scheme} addresses are not read"):
        local_path(f"{scheme}://bucket/a.mp4")


@pytest.mark.parametrize(
    "address",
    [
        f"data:video/mp4;base64,{BASE64}",
        f"DATA:Video/MP4;Base64,{BASE64}",
        f'data:video/mp4;codecs="avc1.42E01E, mp4a.40.2";base64,{BASE64}',
        f"data:;base64,{BASE64}",
        f" data:video/mp4;charset=utf-8; base64 ,\n{BASE64}\n",
        "data:video/mp4;base64," + "\r\n".join(BASE64[i : i + 76] for i in range(0, len(BASE64), 76)),
        "data:video/mp4;base64," + base64.urlsafe_b64encode(CONTENT[:-1]).decode().rstrip("="),
        "data:video/mp4;base64," + BASE64.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
    ],
)
def test_base64_as_clients_write_it(address):
    assert content_of(address) in (CONTENT, CONTENT[:-1])


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 7, 64])
def test_base64_in_parts(step, monkeypatch):
    """Wherever the parts end: within four digits, a quoted character, white space, the padding."""
    from cacovid_hf.video import addresses

    monkeypatch.setattr(addresses, "_STEP", step)
    padded = base64.b64encode(CONTENT[:-2]).decode()
    assert padded.endswith("==")
    for text in (
        padded,
        padded[:-1],
        padded[:-2],
        padded.replace("/", "%2F").replace("=", "%3d"),
        " ".join(padded),
        f"\n{padded}%20%0A",
    ):
        assert content_of(f"data:video/mp4;base64,{text}") == CONTENT[:-2]
    for wrong in (f"{padded}{padded}", f"AA=A{padded}", f"{padded[:-2]}=%", "A", f"{padded[:-2]}é", "AAAA%"):
        with pytest.raises(ValueError, match="cannot be read"):
            content_of(f"data:video/mp4;base64,{wrong}")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("data:video/mp4;base64," + "é" * 60_000, "cannot be read"),
        ("data:video/mp4;base64,", "it holds nothing"),
        ("data:video/mp4;base64," + "\u0661AAA" * 30, "cannot be read"),
        ("data:video/mp4," + "x" * 60_000, "does not say ';base64,'"),
        (BASE64 * 60, "too many for a path: write data:video/mp4;base64,"),
        ("http://127.0.0.1:1/" + "x" * 60_000, "cannot be fetched"),
    ],
)
def test_errors_are_short(address, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        content_of(address)
    assert len(str(caught.value)) < 300


def test_contents_within_bounds():
    with address_rules(AddressRules(max_bytes=len(CONTENT) - 3)), pytest.raises(ValueError, match="holds more than"):
        content_of(f"data:video/mp4;base64,{BASE64}")
    assert content_of(f"data:video/mp4;base64,{BASE64}") == CONTENT


class Handler(http.server.BaseHTTPRequestHandler):
    """`/whole` and `/unsaid` give the content, with and without its length; `/slow` a byte at a time, `/drip` its headers so; `/to?X` redirects to X."""

    protocol_version = "HTTP/1.0"

    def log_message(self, *args):
        pass

    def do_GET(self):
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
            return
        if self.path == "/drip":
            with contextlib.suppress(OSError):
                self.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
                for _ in range(200):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            return
        self.send_response(200)
        if self.path == "/cut":
            self.send_header("Content-Length", str(2 * len(CONTENT)))
        if self.path == "/whole":
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        try:
            for piece in [CONTENT] if self.path != "/slow" else [bytes([byte]) for byte in CONTENT]:
                self.wfile.write(piece)
                if self.path == "/slow":
                    time.sleep(0.05)
        except OSError:
            pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


def test_downloads_within_bounds(server):
    for path in ("/whole", "/unsaid", f"/to?{server}/whole"):
        assert content_of(server + path) == CONTENT
    for path in ("/whole", "/unsaid"):
        with address_rules(AddressRules(max_bytes=100)), pytest.raises(ValueError, match=r"bytes, (over )?the limit"):
            content_of(server + path)
    with pytest.raises(ValueError, match=f"ends after {len(CONTENT)} of {2 * len(CONTENT)} bytes"):
        content_of(server + "/cut")
    started = time.monotonic()
    for path in ("/slow", "/drip"):
        with address_rules(AddressRules(max_seconds=0.3)), pytest.raises(ValueError, match=r"longer than 0\.3 s"):
            content_of(server + path)
    assert time.monotonic() - started < 5


def test_redirects_stay_in_http(server, tmp_path):
    (tmp_path / "secret").write_text("secret")
    for target in (f"file://{tmp_path}/secret", "ftp://127.0.0.1/secret", "data:text/plain,secret"):
        with pytest.raises(ValueError, match="cannot be fetched"):
            content_of(f"{server}/to?{target}")


def test_private_hosts_where_the_caller_forbids_them(server):
    port = server.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "0.0.0.0", "[::ffff:127.0.0.1]"):
        with (
            address_rules(AddressRules(private=False, timeout=2)),
            pytest.raises(ValueError, match=r"cannot be fetched \([^<>]* is not on the public internet"),
        ):
            content_of(f"http://{host}:{port}/whole")
    with address_rules(AddressRules(private=False)), pytest.raises(ValueError, match="--allow-private-addresses"):
        content_of(f"https://127.0.0.1:{port}/whole")
    assert content_of(server + "/whole") == CONTENT  # the rule ends with its block


def test_what_was_checked_is_connected_to(server, monkeypatch):
    """A name that resolves to a public address when it is looked at, and to this machine when it is looked at again."""
    import socket

    real, calls = socket.getaddrinfo, []

    def rebinding(host, port, *args, **kwargs):
        calls.append(host)
        return real("127.0.0.1" if host != "8.8.8.8" and len(calls) > 1 else "8.8.8.8", port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    port = server.rpartition(":")[2]
    with address_rules(AddressRules(private=False, timeout=0.3)), pytest.raises(ValueError, match="cannot be fetched"):
        content_of(f"http://films.example:{port}/whole")
    assert calls == ["films.example", "8.8.8.8"]


def test_redirects_are_checked(server, monkeypatch):
    """The first host passes as public, the one that it redirects to does not."""
    from cacovid_hf.video import addresses

    port = server.rpartition(":")[2]
    monkeypatch.setattr(addresses, "is_public", lambda number: number == "127.0.0.1")
    with address_rules(AddressRules(private=False)):
        assert content_of(f"{server}/to?http://127.0.0.1:{port}/whole") == CONTENT
        with pytest.raises(ValueError, match=r"127\.0\.0\.2 is not on the public internet"):
            content_of(f"{server}/to?http://127.0.0.2:{port}/whole")


def test_allowed_hosts(server, monkeypatch):
    """Of redirects too; the names are compared, whatever they resolve to."""
    port = server.rpartition(":")[2]
    with address_rules(AddressRules(hosts=("127.0.0.1",))):
        assert content_of(server + "/whole") == CONTENT
        for address in (f"http://localhost:{port}/whole", f"{server}/to?http://localhost:{port}/whole"):
            with pytest.raises(
                ValueError, match="localhost is not an allowed host: `cacovid serve --allowed-media-domains`"
            ):
                content_of(address)


def test_files_below_a_folder(tmp_path):
    """What lies elsewhere, by `..` and by links too, is refused in the same words whether it is there or not."""
    inside, outside = tmp_path / "films", tmp_path / "films of others"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.mp4").write_bytes(CONTENT)
    (inside / "link.mp4").symlink_to(outside / "a.mp4")
    wrong = [outside / "a.mp4", outside / "b.mp4", inside / ".." / "films of others" / "a.mp4", inside / "link.mp4"]
    with address_rules(AddressRules(folders=(str(inside),))):
        for address in (f"{inside}/a.mp4", f"file://{inside}/a.mp4", f"{outside}/../films/a.mp4"):
            assert content_of(address) == CONTENT
        for path in wrong:
            for address in (str(path), f"file://{path}", "a\0.mp4", ""):
                with pytest.raises(ValueError, match="may not be read: it is not in a folder that is allowed"):
                    content_of(address)
    with address_rules(AddressRules(folders=())):
        for address in (f"{inside}/a.mp4", "/dev/zero", "ftp://a/b.mp4", ""):
            with pytest.raises(ValueError, match="may not be read: no folder is allowed"):
                content_of(address)


def test_contents_in_place_of_addresses(tmp_path):
    (tmp_path / "a.mp4").write_bytes(CONTENT)
    contents = {"video 1": io.BytesIO(CONTENT), "video 2": str(tmp_path / "a.mp4")}
    with address_rules(AddressRules(private=False, folders=(), contents=contents)):
        for address in ("video 1", "video 1", "video 2"):
            assert content_of(address) == CONTENT
        with pytest.raises(ValueError, match="may not be read"):
            content_of("video 3")


def test_a_guard_ends_a_download(server):
    class Impatient:
        def going_on(self):
            raise InterruptedError("enough")

    with reading_limits(ReadingLimits(), Impatient()), pytest.raises(ValueError, match="enough"):
        content_of(server + "/slow")


@pytest.mark.parametrize(
    ("number", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700:4700::1111", True),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::808:808", True),
        ("64:ff9b:1::7f00:1", False),
        ("::127.0.0.1", False),
        ("::ffff:0:127.0.0.1", False),
        ("fec0::1", False),
        ("2001:0:7f00:1::", False),
        ("192.0.0.192", False),
        ("168.63.129.16", False),
    ],
)
def test_public_addresses(number, public):
    assert is_public(number) is public


@pytest.mark.parametrize("form", [" {}", "{}\n", "\n file://{} "])
def test_white_space_around_a_path(form, tmp_path):
    file = tmp_path / "a b.mp4"
    file.write_bytes(b"")
    assert local_path(form.format(file)) == str(file)
