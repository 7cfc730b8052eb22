"""Where a video or a picture lies: paths, `file://`, `http(s)://` and `data:` addresses, and which of them may be fetched."""

import base64
import contextlib
import io
import ipaddress
import os
import re
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, BinaryIO, cast
from urllib import request
from urllib.error import URLError
from urllib.parse import unquote

from .limits import current_guard

_SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]+):", re.IGNORECASE)
_DATA_HEADER = re.compile(r"\s*data:(?P<type>.{0,1000}?);\s*base64\s*,", re.IGNORECASE | re.DOTALL)
_DRIVE = re.compile(r"/?[a-z]:[\\/]", re.IGNORECASE)
_THIS_MACHINE = re.compile(r"^(localhost|127\.0\.0\.1|\[::1\])(?=/)", re.IGNORECASE)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
# Of IPv4, what providers of machines answer at in spite of its looks: metadata, and agents of theirs.
_OF_PROVIDERS = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "168.63.129.16/32")))
_LONGEST_PATH = 4096  # characters; longer ones are contents in the place of an address
_STEP = 1 << 20  # characters of base64 that are decoded at a time
_STANDARD = str.maketrans("-_", "+/")
_SHOWN = 60  # characters of an address in a message


@dataclass(frozen=True)
class AddressRules:
    """What may be read and fetched, and how much.

    Attributes:
        private: whether hosts that are not on the public internet may be asked (loopback, private, link-local, reserved, multicast). False looks
            at the addresses that a name resolves to, of each redirect too, and connects to one of those; proxies of the environment are not used then.
        hosts: names of the hosts that may be asked, of redirects too; None: any.
        folders: below which files of this machine may be read, symbolic links followed; None: any file.
        contents: what stands for some addresses (a path, or a binary file that can seek), whatever the other rules say.
        max_bytes: largest download, or content of a `data:` address.
        max_seconds: longest download.
        timeout: seconds without a byte.
    """

    private: bool = True
    hosts: tuple[str, ...] | None = None
    folders: tuple[str, ...] | None = None
    contents: Mapping[str, str | BinaryIO] = field(default_factory=dict)
    max_bytes: int = 4 << 30
    max_seconds: float = 900.0
    timeout: float = 60.0


_DEFAULT = AddressRules()
_rules: ContextVar[AddressRules] = ContextVar("address_rules", default=_DEFAULT)


@contextlib.contextmanager
def address_rules(rules: AddressRules) -> Iterator[None]:
    """Within the block, this thread (or asynchronous task) fetches under these rules; without it, under those of `AddressRules()`."""
    token = _rules.set(rules)
    try:
        yield
    finally:
        _rules.reset(token)


@contextlib.contextmanager
def opened_address(address: str) -> Iterator[str | BinaryIO]:
    """Give what an address names as a path or as a binary file.

    Args:
        address: a path (`~` is the home folder), `file://` and a path (quoted or as it is), `http(s)://`, or `data:` with base64 (white space,
            the url-safe alphabet and missing padding are accepted).

    Yields:
        The path, whether or not there is such a file; the content of other addresses, gone at the end of the block.

    Raises:
        ValueError: an address of another kind, what cannot be fetched, or what the rules (`address_rules`) do not allow.
    """
    rules = _rules.get()
    found = _SCHEME.match(address)
    scheme = found.group(1).lower() if found else ""
    if (content := rules.contents.get(address)) is not None:
        if not isinstance(content, str):
            content.seek(0)
        yield content
    elif scheme in ("http", "https"):
        with tempfile.TemporaryFile() as file:
            _download(address.strip(), cast(BinaryIO, file), rules)
            yield cast(BinaryIO, file)
    elif scheme == "data":
        yield io.BytesIO(_data_content(address, rules.max_bytes))
    else:
        yield _allowed_path(address, rules.folders)


def current_rules() -> AddressRules:
    """Those of the block around the caller, or the defaults."""
    return _rules.get()


def _allowed_path(address: str, folders: tuple[str, ...] | None) -> str:
    """Return the path of an address, if it lies below one of the folders; whether there is such a file is not told otherwise."""
    if folders is None:
        return local_path(address)
    try:
        path = os.path.realpath(local_path(address)) if folders else ""
    except (ValueError, OSError):
        path = ""
    if not any(os.path.commonpath([path, folder]) == folder for folder in map(os.path.realpath, folders) if path):
        why = (
            "it is not in a folder that is allowed"
            if folders
            else "no folder is allowed (`cacovid serve --allowed-local-media-path DIR`)"
        )
        raise ValueError(
            f"{shown(address)} may not be read: {why}. Give an http(s) address, or data:video/mp4;base64,..."
        )
    return path


def local_path(address: str) -> str:
    """Return the path that a path or a `file://` address means: what exists, else the usual reading of it.

    Raises:
        ValueError: an address of another kind, or contents in the place of an address.
    """
    if len(address) > _LONGEST_PATH:
        raise ValueError(
            f"{shown(address)} has {len(address)} characters, too many for a path: write data:video/mp4;base64, in front of contents in base64."
        )
    if not os.path.exists(address):
        address = address.strip()  # white space around what was pasted
    if address[:5].lower() == "file:":
        readings = _readings_of_file_address(address[5:])
    elif "://" in address and (found := _SCHEME.match(address)) and not os.path.exists(address):
        raise ValueError(
            f"{shown(address)}: {found.group(1)} addresses are not read. Download it and give its path, or an http(s) address."
        )
    else:
        readings = [address]
    readings += [os.path.expanduser(path) for path in readings if path.startswith("~")]
    return next((path for path in readings if os.path.exists(path)), readings[0])


def shown(address: str) -> str:
    """Return an address as messages name it: of a long one the beginning, as of contents in base64."""
    most = _SHOWN if address[:5].lower() == "data:" else 4 * _SHOWN
    return address if len(address) <= most else f"{address[:_SHOWN]}..."


def _readings_of_file_address(rest: str) -> list[str]:
    """Return what may be meant behind `file:`, the standard's reading first: quoted characters, then the path as it is."""
    if rest.startswith("//"):
        rest = rest[2:]
        rest = _THIS_MACHINE.sub("", rest)
    forms = [unquote(rest), rest]
    forms += [form[1:] for form in forms if form.startswith("/~")]
    if _DRIVE.match(rest) and rest.startswith("/"):
        forms = [form[1:] for form in forms] + forms
    return forms


def _data_content(address: str, max_bytes: int) -> bytes:
    """Return what a `data:` address holds."""
    try:
        header = _DATA_HEADER.match(address)
        if header is None:
            raise ValueError("it does not say ';base64,'")
        if 3 * ((len(address) - header.end()) // 4) > max_bytes:
            raise ValueError(f"it holds more than {max_bytes} bytes")
        content = _base64_content(address, header.end())
        if not content:
            raise ValueError("it holds nothing")
        return content
    except ValueError as error:
        raise ValueError(
            f"What is given as {address[:40]!r}... cannot be read: {error}. Write such as data:video/mp4;base64, and then the file in base64."
        ) from None


def _base64_content(text: str, start: int) -> bytes:
    """Return what stands in base64 from a place of a text on: a part at a time, so that other threads get their turns."""
    content = bytearray()
    quoted = left = ""
    has_ended = False
    for place in range(start, len(text), _STEP):
        part = quoted + text[place : place + _STEP]
        # A quoted character may go on in the next part.
        cut = part.rfind("%", len(part) - 2) if place + _STEP < len(text) else -1
        part, quoted = (part, "") if cut < 0 else (part[:cut], part[cut:])
        part = "".join((unquote(part) if "%" in part else part).split()).translate(_STANDARD)
        digits, padding, behind = part.partition("=")
        if (has_ended and digits) or behind.strip("="):
            raise ValueError("it goes on behind its padding")
        has_ended |= bool(padding)
        digits = left + digits
        whole = len(digits) - len(digits) % 4
        content += base64.b64decode(digits[:whole], validate=True)
        left = digits[whole:]
    content += base64.b64decode(left + "=" * (-len(left) % 4), validate=True)
    return bytes(content)


def _download(address: str, file: BinaryIO, rules: AddressRules) -> None:
    """Write what an http(s) address gives."""
    ends = time.monotonic() + rules.max_seconds
    connections: list[HTTPConnection] = []
    # A host may send its headers a byte at a time, and no timeout of the socket ends that.
    guard = threading.Timer(rules.max_seconds, _shut_down, [connections])
    guard.daemon = True
    guard.start()
    guard_of_caller = current_guard()
    try:
        with _opener(rules, connections).open(
            request.Request(address, headers={"User-Agent": "cacovid-hf"}),
            timeout=min(rules.timeout, rules.max_seconds),
        ) as response:
            size = 0
            announced = response.headers.get("Content-Length", "")
            if announced.isdigit() and int(announced) > rules.max_bytes:
                raise OSError(f"it has {announced} bytes, over the limit of {rules.max_bytes}")
            while block := response.read1(1 << 20):
                guard_of_caller.going_on()
                size += len(block)
                if size > rules.max_bytes:
                    raise OSError(f"it has more than {rules.max_bytes} bytes, the limit")
                file.write(block)
                if time.monotonic() > ends:
                    break
            if time.monotonic() > ends:
                raise TimeoutError
            if announced.isdigit() and size != int(announced):
                raise OSError(f"it ends after {size} of {announced} bytes")
    except (OSError, HTTPException, ValueError) as error:
        late = time.monotonic() > ends
        inner = error.reason if type(error) is URLError else error  # which prints as "<urlopen error ...>"
        reason = f"it takes longer than {rules.max_seconds:g} s, the limit" if late else inner
        raise ValueError(
            f"{shown(address)} cannot be fetched ({reason}): check the address, or download it and give its path."
        ) from error
    finally:
        guard.cancel()
    file.seek(0)


def _shut_down(connections: list[HTTPConnection]) -> None:
    for connection in connections:
        with contextlib.suppress(OSError, AttributeError):  # closed, or not connected yet
            connection.sock.shutdown(socket.SHUT_RDWR)


def _opener(rules: AddressRules, connections: list[HTTPConnection]) -> request.OpenerDirector:
    """Follows redirects to http and https alone, with each connection checked, and noted in `connections`."""
    opener = request.OpenerDirector()
    handlers: list[request.BaseHandler] = [
        request.UnknownHandler(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPRedirectHandler(),
        request.HTTPErrorProcessor(),
        _HTTPHandler(HTTPConnection if rules.private else _PublicConnection, rules, connections),
        _HTTPSHandler(HTTPSConnection if rules.private else _PublicTLSConnection, rules, connections),
    ]
    if rules.private:
        handlers.append(request.ProxyHandler())
    for handler in handlers:
        opener.add_handler(handler)
    return opener


class _PublicConnection(HTTPConnection):
    """Connects to hosts on the public internet alone."""

    def connect(self) -> None:
        """Connect to an address that was checked: a second look-up of the name could give another one."""
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        numbers = list(dict.fromkeys(str(place[0]) for *_, place in found))
        if not all(map(is_public, numbers)):
            raise OSError(
                f"{self.host} is not on the public internet: `cacovid serve --allow-private-addresses` asks it"
            )
        failed = OSError(f"{self.host} has no address")
        for number in numbers:
            try:
                self.sock = socket.create_connection((number, self.port), self.timeout)
                return
            except OSError as error:
                failed = error
        raise failed


class _PublicTLSConnection(HTTPSConnection, _PublicConnection):
    """The same with TLS, which is spoken after the check."""


class _HTTPHandler(request.HTTPHandler):
    """Connects by connections of one kind, and notes each."""

    def __init__(self, kind: type[HTTPConnection], rules: AddressRules, connections: list[HTTPConnection]):
        super().__init__()
        self.made = _Noted(kind, rules.hosts, connections)

    def http_open(self, req: request.Request) -> Any:
        return self.do_open(self.made, req)  # type: ignore[arg-type]


class _HTTPSHandler(request.HTTPSHandler):
    """The same with TLS."""

    def __init__(self, kind: type[HTTPConnection], rules: AddressRules, connections: list[HTTPConnection]):
        super().__init__()
        self.made = _Noted(kind, rules.hosts, connections)

    def https_open(self, req: request.Request) -> Any:
        return self.do_open(self.made, req, context=ssl.create_default_context())  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Noted:
    """Makes connections of one kind to the hosts that may be asked, and notes them."""

    kind: type[HTTPConnection]
    hosts: tuple[str, ...] | None
    connections: list[HTTPConnection]

    def __call__(self, host: str, **settings: Any) -> HTTPConnection:
        made = self.kind(host, **settings)
        if self.hosts is not None and made.host.lower() not in self.hosts:
            raise OSError(
                f"{shown(made.host)} is not an allowed host: `cacovid serve --allowed-media-domains` names them"
            )
        self.connections.append(made)
        return made


def is_public(number: str) -> bool:
    """Whether an IP address, given as text, is one of the public internet; of one that wraps an IPv4 address, whether that is."""
    place = ipaddress.ip_address(number.partition("%")[0])
    if isinstance(place, ipaddress.IPv6Address):
        inner = place.ipv4_mapped or place.sixtofour
        if inner is None and place in _NAT64:
            inner = ipaddress.IPv4Address(int(place) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if place not in _GLOBAL_UNICAST:
            return False
    elif any(place in network for network in _OF_PROVIDERS):
        return False
    return place.is_global and not place.is_multicast
