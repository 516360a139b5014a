"""A Hugging Face hub on loopback: repositories in memory, spoken to by huggingface_hub's own client.

It checks a card's metadata as the hub does before a commit, takes large files by LFS, and refuses what it never had.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results

from kinfolk.card.licenses import LANGUAGE, LICENSES

TOKEN = "hf_" + "stub" * 9


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    commits: list[list[str]] = field(default_factory=list)


@dataclass
class Hub:
    """What the stub has seen and holds."""

    endpoint: str = ""
    user: str = "me"
    role: str = "write"
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    """SHA-256 of the large files that were sent, in order."""
    fail_commits: int = 0
    corrupt: bool = False

    @property
    def writes(self) -> list[str]:
        ways = ("/api/repos/create", "/commit/", "/lfs/")
        return [path for method, path in self.requests if method != "GET" and any(way in path for way in ways)]


def metadata_faults(card: str) -> list[str]:
    """What the hub has against the YAML block of a model card."""
    block = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    if block is None:
        return ["no metadata"]
    try:
        data = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return [str(error)]
    found = []
    if "license" in data and data["license"] not in LICENSES:
        found.append('"license" must be one of the known identifiers')
    if not all(LANGUAGE.fullmatch(language) for language in data.get("language") or []):
        found.append('"language" must be ISO 639-1, 639-2 or 639-3')
    for key in ("tags", "datasets", "base_model", "language"):
        value = data.get(key, [])
        if not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
            found.append(f'"{key}" must be a list of strings')
    if not all(re.fullmatch(r"[\w.-]+/[\w.-]+", name) for name in data.get("base_model") or []):
        found.append('"base_model" is no repository')
    if data.get("base_model_relation", "finetune") not in ("adapter", "merge", "quantized", "finetune"):
        found.append('"base_model_relation" is not known')
    if "model-index" in data:
        try:
            model_index_to_eval_results(data["model-index"])
        except (KeyError, TypeError, ValueError) as error:
            found.append(f'"model-index" is not valid: {error}')
    return found


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def _answer(self, value: Any, status: int = 200, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(body)

    def _allowed(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._answer({"error": "Invalid credentials in Authorization header"}, 401)
        return False

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self) -> None:
        self.hub.requests.append(("GET", self.path))
        if not self._allowed():
            return
        if self.path == "/api/whoami-v2":
            token = {"accessToken": {"displayName": "t", "role": self.hub.role}}
            self._answer({"name": self.hub.user, "type": "user", "orgs": [{"name": "org"}], "auth": token})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/?]+)(\?.*)?", self.path):
            self._model(found[1])
        else:
            self._answer({"error": "not found"}, 404)

    def _model(self, name: str) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            return
        siblings = [{"rfilename": file} for file in repository.files]
        sha = f"{len(repository.commits):040x}"
        self._answer({"id": name, "sha": sha, "private": repository.private, "siblings": siblings, "tags": []})

    def do_PUT(self) -> None:
        self.hub.requests.append(("PUT", self.path))
        content = self._body()
        oid = self.path.removeprefix("/lfs/")
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.sent.append(oid)
        self.hub.objects[oid] = content
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.hub.requests.append(("POST", self.path))
        body = self._body()
        if not self._allowed():
            return
        path = self.path.split("?")[0]
        if path == "/api/validate-yaml":
            self._validate(json.loads(body))
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|paths-info|commit)/main", path):
            getattr(self, "_" + found[2].replace("-", "_"))(found[1], self.hub.repositories[found[1]], body)
        else:
            self._answer({"error": "not found"}, 404)

    def _validate(self, body: dict[str, Any]) -> None:
        faults = metadata_faults(body["content"])
        self._answer({"errors": [{"message": fault} for fault in faults], "warnings": []}, 400 if faults else 200)

    def _create(self, body: dict[str, Any]) -> None:
        name = f"{body.get('organization') or self.hub.user}/{body['name']}"
        if name in self.hub.repositories:
            self._answer({"error": "exists", "url": f"{self.hub.endpoint}/{name}"}, 409)
            return
        self.hub.repositories[name] = Repository(
            private=body.get("visibility") == "private" or bool(body.get("private"))
        )
        self._answer({"url": f"{self.hub.endpoint}/{name}"})

    def _preupload(self, name: str, repository: Repository, body: bytes) -> None:
        answers = []
        for each in json.loads(body)["files"]:
            path = each["path"]
            large = path.endswith((".safetensors", ".gguf")) or each["size"] > 10_000_000
            content = repository.files.get(path)
            oid = None
            if content is not None:
                oid = hashlib.sha256(content).hexdigest() if large else _git_hash(content)
            mode = "lfs" if large else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._answer({"files": answers})

    def _batch(self, body: dict[str, Any]) -> None:
        objects = []
        for each in body["objects"]:
            answer = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.hub.objects:
                answer["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs/{each['oid']}", "header": {}}}
            objects.append(answer)
        self._answer({"transfer": "basic", "objects": objects})

    def _paths_info(self, name: str, repository: Repository, body: bytes) -> None:
        wanted = json.loads(body)["paths"] if body.startswith(b"{") else re.findall(r"paths=([^&]+)", body.decode())
        found = []
        for path in wanted:
            content = repository.files.get(path)
            if content is None:
                continue
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _git_hash(content)}
            if path in repository.large:
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
            found.append(entry)
        self._answer(found)

    def _commit(self, name: str, repository: Repository, body: bytes) -> None:
        if self.hub.fail_commits:
            self.hub.fail_commits -= 1
            self._answer({"error": "the stub is out of order"}, 500)
            return
        lines = [json.loads(line) for line in body.splitlines()]
        names = []
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.objects[value["oid"]]
                repository.large.add(value["path"])
            if line["key"] != "header":
                names.append(value["path"])
        if self.hub.corrupt:
            repository.files[names[0]] += b" "
        repository.commits.append(names)
        oid = f"{len(repository.commits):040x}"
        self._answer({"commitUrl": f"{self.hub.endpoint}/{name}/commit/{oid}", "commitOid": oid, "success": True})


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub on a free port of loopback."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
