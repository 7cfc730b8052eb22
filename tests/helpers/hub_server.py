"""A small Hub on loopback: the part of the Hugging Face Hub's HTTP protocol that pushing and pulling models uses, for the real client.

Repositories live in memory as commits of path -> content, with branches, pull requests, LFS storage, private repositories, tokens and faults
that a test plants. It stores and checks what the client sends (sizes, hashes, parents), so that a wrong request fails as it would there.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".png")
OWNER, READER = "hf_owner", "hf_reader"  # tokens: may do everything; may read, and see no private repository


@dataclass(frozen=True)
class Blob:
    """A file of a commit."""

    data: bytes
    lfs: bool

    @property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @property
    def etag(self) -> str:
        return hashlib.sha256(self.data).hexdigest() if self.lfs else self.git_oid


@dataclass
class Repository:
    """Commits by id, and where the branches and pull requests stand."""

    private: bool = False
    gated: bool = False
    sdk: str | None = None  # of a Space
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    titles: dict[str, str] = field(default_factory=dict)

    def commit(self, ref: str, files: dict[str, Blob], title: str) -> str:
        text = f"{ref} {len(self.log)} {title} {sorted((path, blob.git_oid) for path, blob in files.items())}"
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha], self.refs[ref], self.titles[sha] = files, sha, title
        self.log.append(sha)
        return sha

    def sha(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Fault:
    """What to do with the next `times` requests whose "METHOD path" matches."""

    pattern: str
    action: (
        int | str | Callable[[], None]
    )  # a status; "drop" half-way through the request or answer; or something to do before answering
    times: int = 1


class _Error(Exception):
    def __init__(self, status: int, code: str = "", message: str = ""):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class LoopbackHub:
    """The server; `url` is what HF_ENDPOINT must be."""

    def __init__(self, part_size: int | None = None):
        self.part_size = part_size  # uploads of more bytes go in parts
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}  # LFS objects by sha256
        self.parts: dict[tuple[str, int], bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.tokens_seen: set[str | None] = set()
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.storage_url = self.url.replace(
            "127.0.0.1", "localhost"
        )  # large files come from another host, as on the Hub

    def fail(self, pattern: str, action, times: int = 1) -> None:
        """Plant a fault."""
        self.faults.append(Fault(pattern, action, times))

    def fault(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None

    def create(self, repo_id: str, private: bool = False) -> Repository:
        """A repository with a first, empty commit, as the Hub makes one."""
        repository = self.repositories[repo_id] = Repository(private)
        repository.commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)}, "initial commit")
        return repository

    def edit(
        self, repo_id: str, path: str, data: bytes | None, ref: str = "main", title: str = "Edit on the web"
    ) -> str:
        """Change (or with None delete) one file, as somebody else would."""
        with self.lock:
            repository = self.repositories[repo_id]
            files = dict(repository.commits[repository.refs[ref]])
            files.pop(path, None)
            if data is not None:
                files[path] = Blob(data, path.endswith(LFS_SUFFIXES))
            return repository.commit(ref, files, title)

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Content of every file."""
        repository = self.repositories[repo_id]
        sha = repository.sha(revision)
        assert sha is not None
        return {path: blob.data for path, blob in repository.commits[sha].items()}

    @contextlib.contextmanager
    def running(self) -> Iterator["LoopbackHub"]:
        thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            self.server.server_close()


def use(hub: LoopbackHub, cache: Path, monkeypatch, token: str | None = OWNER) -> None:
    """Point huggingface_hub and transformers of this process at `hub`, with a cache of their own, as their environment variables would."""
    from huggingface_hub import constants
    from transformers.utils import hub as transformers_hub

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(transformers_hub, "_hf_api", None, raising=False)
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN", raising=False)


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):
        """Silent."""

    def do_GET(self):
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    # ---------------------------------------------------------------- one request

    def answer(self) -> None:
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        request = f"{self.command} {unquote(url.path)}"
        self.hub.requests.append(request)
        fault = self.hub.fault(request)
        length = int(self.headers.get("Content-Length") or 0)
        if fault and fault.action == "drop":
            self.rfile.read(length // 2)
            self.drop()
            return
        self.body = self.read_body(length)
        try:
            if fault and isinstance(fault.action, int):
                raise _Error(fault.action, message="planted")
            if fault and callable(fault.action):
                fault.action()
            self.is_space = url.path.startswith(("/api/spaces/", "/spaces/"))
            path = url.path.replace("/api/spaces/", "/api/models/", 1).removeprefix("/spaces")
            with self.hub.lock:
                for method, pattern, handler in ROUTES:
                    match = re.fullmatch(pattern, path)
                    if match and self.command in method.split():
                        handler(self, *map(unquote, match.groups()))
                        return
            raise _Error(404, message=f"no route for {request}")
        except _Error as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": error.message}
            self.reply({"error": error.message}, error.status, {k: v for k, v in headers.items() if v})

    def read_body(self, length: int) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(length)
        body = b""
        while size := int(self.rfile.readline().strip(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def drop(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)
        self.connection.close()

    def reply(self, value, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # ---------------------------------------------------------------- who may do what

    def token(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.tokens_seen.add(token)
        if token not in (None, OWNER, READER):
            raise _Error(401, message="Invalid credentials in Authorization header")
        return token

    def repository(self, repo_id: str, write: bool = False) -> Repository:
        token, repository = self.token(), self.hub.repositories.get(repo_id)
        is_other = repository is not None and bool(repository.sdk) != self.is_space
        if repository is None or is_other or (repository.private and token != OWNER):
            raise _Error(404 if token else 401, "RepoNotFound", "Repository not found")
        if repository.gated and token is None:
            raise _Error(401, "GatedRepo", f"Access to model {repo_id} is restricted.")
        if write and token != OWNER:
            raise _Error(403 if token else 401, message="You have read access but not the required permissions")
        return repository

    def revision(self, repository: Repository, revision: str) -> str:
        sha = repository.sha(revision)
        if sha is None:
            raise _Error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    # ---------------------------------------------------------------- the routes

    def create(self) -> None:
        values = json.loads(self.body)
        if self.token() != OWNER:
            raise _Error(401 if self.token() is None else 403, message="You don't have the rights to create a model")
        repo_id = f"{values.get('organization') or 'owner'}/{values['name']}"
        is_space = values.get("type") == "space"
        if is_space and not values.get("sdk"):
            raise _Error(400, message="A Space needs an SDK")
        url = {"url": f"{self.hub.url}/{'spaces/' * is_space}{repo_id}", "name": repo_id}
        if repo_id in self.hub.repositories:
            self.reply({**url, "error": "You already created this model repo"}, 409)
            return
        made = self.hub.create(repo_id, private=values.get("visibility") == "private" or bool(values.get("private")))
        made.sdk = values.get("sdk") if is_space else None
        self.reply(url)

    def validate_yaml(self) -> None:
        self.reply({"errors": [], "warnings": []})

    def branch(self, repo_id: str, branch: str) -> None:
        repository = self.repository(repo_id, write=True)
        if branch in repository.refs:
            raise _Error(409, message="Reference already exists")
        start = self.revision(repository, (json.loads(self.body or b"{}")).get("startingPoint", "main"))
        repository.refs[branch] = start
        self.reply({})

    def info(self, repo_id: str, revision: str = "main") -> None:
        repository = self.repository(repo_id)
        sha = self.revision(repository, revision)
        files = [self.described(path, blob) for path, blob in repository.commits[sha].items()]
        self.reply(
            {
                "_id": "0" * 24,
                "id": repo_id,
                "modelId": repo_id,
                "sha": sha,
                "private": repository.private,
                "gated": False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": [{"rfilename": file["path"], **file} for file in files],
            }
        )

    def described(self, path: str, blob: Blob) -> dict:
        lfs = {"lfs": {"oid": blob.etag, "sha256": blob.etag, "size": len(blob.data), "pointerSize": 134}}
        return {
            "type": "file",
            "path": path,
            "oid": blob.git_oid,
            "blobId": blob.git_oid,
            "size": len(blob.data),
            **(lfs if blob.lfs else {}),
        }

    def tree(self, repo_id: str, revision: str, folder: str = "") -> None:
        repository = self.repository(repo_id)
        files = repository.commits[self.revision(repository, revision)]
        folder = folder.strip("/")
        inside = [
            self.described(path, blob) for path, blob in files.items() if path.startswith(f"{folder}/" * bool(folder))
        ]
        if folder and not inside:
            raise _Error(404, "EntryNotFound", f"{folder} does not exist")
        if self.query.get("recursive", "False").lower() in ("false", "0"):
            inside = [file for file in inside if "/" not in file["path"][len(folder) + bool(folder) :]]
        self.reply(inside)

    def paths_info(self, repo_id: str, revision: str) -> None:
        repository = self.repository(repo_id)
        files = repository.commits[self.revision(repository, revision)]
        form = self.headers.get("Content-Type", "").startswith("application/x-www-form-urlencoded")
        paths = parse_qs(self.body.decode())["paths"] if form else json.loads(self.body)["paths"]
        self.reply([self.described(path, files[path]) for path in paths if path in files])

    def preupload(self, repo_id: str, revision: str) -> None:
        repository = self.repository(repo_id, write="create_pr" not in self.query)
        files = repository.commits[self.revision(repository, revision)]
        answer = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular"
            there = files.get(file["path"])
            answer.append({**file, "uploadMode": mode, "shouldIgnore": False, "oid": there and there.etag})
        self.reply({"files": answer})

    def batch(self, repo_id: str) -> None:
        self.token()
        objects = []
        for item in json.loads(self.body)["objects"]:
            oid, size = item["oid"], item["size"]
            upload = {"href": f"{self.hub.url}/storage/{oid}"}
            if self.hub.part_size and size > self.hub.part_size:
                count = -(-size // self.hub.part_size)
                parts = {f"{n:05d}": f"{self.hub.url}/storage/{oid}/part/{n}" for n in range(1, count + 1)}
                upload = {
                    "href": f"{self.hub.url}/storage/{oid}/complete",
                    "header": {"chunk_size": str(self.hub.part_size), **parts},
                }
            actions = {"upload": upload, "verify": {"href": f"{self.hub.url}/storage/{oid}/verify"}}
            objects.append({**item, **({} if oid in self.hub.stored else {"actions": actions})})
        self.reply({"transfer": "multipart" if self.hub.part_size else "basic", "objects": objects})

    def store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Error(400, message="the content is not what its hash says")
        self.hub.stored[oid] = self.body
        self.reply({})

    def store_part(self, oid: str, number: str) -> None:
        self.hub.parts[oid, int(number)] = self.body
        self.reply({}, headers={"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})

    def complete(self, oid: str) -> None:
        parts = json.loads(self.body)["parts"]
        self.body = b"".join(self.hub.parts.pop((oid, part["partNumber"])) for part in parts)
        self.store(oid)

    def verify(self, oid: str) -> None:
        if len(self.hub.stored.get(oid, b"")) != json.loads(self.body)["size"]:
            raise _Error(400, message="the object is not there, or not whole")
        self.reply({})

    def commit(self, repo_id: str, revision: str) -> None:
        pull = "create_pr" in self.query
        repository = self.repository(repo_id, write=not pull)
        head = self.revision(repository, revision)
        files, title = dict(repository.commits[head]), ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            kind, value = entry["key"], entry["value"]
            if kind == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, head):
                    raise _Error(412, message="A commit has happened since. Please refresh and try again.")
            elif kind == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif kind == "lfsFile":
                if len(self.hub.stored.get(value["oid"], b"")) != value["size"]:
                    raise _Error(400, message=f"LFS object {value['oid']} is not there")
                files[value["path"]] = Blob(self.hub.stored[value["oid"]], True)
            elif kind == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise _Error(404, "EntryNotFound", "A file with this name doesn't exist")
            else:
                inside = [path for path in files if path.startswith(value["path"].rstrip("/") + "/")]
                for path in inside:
                    del files[path]
        number = 1 + sum(ref.startswith("refs/pr/") for ref in repository.refs)
        ref = f"refs/pr/{number}" if pull else revision
        sha = repository.commit(ref, files, title)
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}"}
        if pull:
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo_id}/discussions/{number}"
        self.reply(answer)

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        repository = self.repository(repo_id)
        sha = self.revision(repository, revision)
        blob = repository.commits[sha].get(path)
        headers = {"X-Repo-Commit": sha}
        if blob is None:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            self.reply({}, 404, headers)
            return
        headers["ETag"] = f'"{blob.etag}"'
        if blob.lfs:
            self.hub.stored[blob.etag] = blob.data
            headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
            self.reply(b"", 302, {**headers, "Location": f"{self.hub.storage_url}/storage/{blob.etag}"})
        else:
            self.content(blob.data, headers)

    def stored(self, oid: str) -> None:
        self.content(self.hub.stored[oid], {"ETag": f'"{oid}"'})

    def content(self, data: bytes, headers: dict[str, str]) -> None:
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        total, status = len(data), 200
        headers = {"Accept-Ranges": "bytes", **headers}
        if span:
            start, end = int(span[1]), min(int(span[2] or total), total - 1)
            data, status = data[start : end + 1], 206
            headers["Content-Range"] = f"bytes {start}-{end}/{total}"
        if self.command == "GET" and (fault := self.hub.fault(f"SEND {urlsplit(self.path).path}")):
            assert fault.action == "drop"
            self.send_response(status)
            for name, text in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.drop()
            return
        self.reply(data, status, headers)


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("POST", rf"/api/models/{REPO}/branch/(.+)", _Handler.branch),
    ("GET", rf"/api/models/{REPO}", _Handler.info),
    ("GET", rf"/api/models/{REPO}/revision/([^/]+)", _Handler.info),
    ("GET", rf"/api/models/{REPO}/tree/([^/]+)", _Handler.tree),
    ("GET", rf"/api/models/{REPO}/tree/([^/]+)/(.*)", _Handler.tree),
    ("POST", rf"/api/models/{REPO}/paths-info/([^/]+)", _Handler.paths_info),
    ("POST", rf"/api/models/{REPO}/preupload/([^/]+)", _Handler.preupload),
    ("POST", rf"/api/models/{REPO}/commit/([^/]+)", _Handler.commit),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/storage/(\w+)", _Handler.store),
    ("PUT", r"/storage/(\w+)/part/(\d+)", _Handler.store_part),
    ("POST", r"/storage/(\w+)/complete", _Handler.complete),
    ("POST", r"/storage/(\w+)/verify", _Handler.verify),
    ("GET HEAD", r"/storage/(\w+)", _Handler.stored),
    ("GET HEAD", rf"/{REPO}/resolve/([^/]+)/(.+)", _Handler.resolve),
]
