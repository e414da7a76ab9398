"""Plays the part of Elasticsearch's and Kibana's API that the bundle's scripts use; refuses whatever it does not know.

After the API reference of 9.5 (elastic.co/docs/api/doc/elasticsearch and .../kibana). Needs nothing but Python: it also
lies in the images of the stand-ins (tests/docker_engine).
"""

import base64
import binascii
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

# What a body may hold, by path; a role's and a template's inner parts are checked by the tests of the files.
_KEYS = {
    "/_security/role": {"cluster", "indices"},
    "/_security/user": {"password", "roles"},
    "/_ilm/policy": {"policy"},
    "/_component_template": {"template", "_meta"},
    "/_index_template": {
        "index_patterns",
        "priority",
        "data_stream",
        "composed_of",
        "allow_auto_create",
        "template",
        "_meta",
    },
    "/_ingest/pipeline": {"description", "processors", "on_failure", "_meta"},
}

STREAM = "logs-vllm-default"
# What is made at the first set-up only; `stream` is the data stream of logs.
MADE_ONCE = {"stream", "/jaeger-span-000001", "/jaeger-service-000001"}
# Paths of all that is there when Elasticsearch is set up.
SET_UP = {
    "/_security/user/kibana_system/_password",
    *(f"/_security/{kind}/{name}" for kind in ("role", "user")
      for name in ("filebeat_writer", "jaeger_writer", "grafana_reader", "retention")),
    "/_ilm/policy/vllm-vitals-logs",
    "/_ilm/policy/vllm-vitals-spans",
    "/_ilm/policy/vllm-vitals-traces",
    "/_component_template/vllm-vitals-logs-mappings",
    "/_component_template/vllm-vitals-logs-settings",
    "/_ingest/pipeline/vllm-vitals-logs",
    "/_ingest/pipeline/vllm-vitals-logs-json",
    "/_index_template/vllm-vitals-logs",
    *(f"/_index_template/jaeger-{name}" for name in ("span", "service", "dependencies", "sampling")),
    *(f"/jaeger-{name}-*/_alias/jaeger-{name}-read" for name in ("span", "service")),
    *MADE_ONCE,
}  # fmt: skip


def login(headers: Any) -> tuple[str, str] | None:
    """Return name and password of a request, if it has them."""
    kind, _, token = (headers.get("Authorization") or "").partition(" ")
    try:
        name, colon, password = base64.b64decode(token, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return (name, password) if kind == "Basic" and colon else None


def index_of(created: int, size: int | None, aliases: dict[str, bool | None] | None = None) -> dict[str, Any]:
    """Return an index: milliseconds, bytes (None when nobody knows), alias -> whether it is written to by that name."""
    return {"created": created, "size": size, "aliases": aliases or {}}


def backing(name: str) -> bool:
    """Whether an index belongs to the data stream."""
    return name.startswith(f".ds-{STREAM}-")


@dataclass
class Store:
    """What a server was told; set `faults` to PATH -> (status, body) to make it fail."""

    password: str
    calls: list[tuple[str, str]] = field(default_factory=list)
    things: dict[str, Any] = field(default_factory=dict)
    indices: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: dict[str, tuple[int, str]] = field(default_factory=dict)
    unready: int = 0
    conflicting: bool = False
    url: str = ""

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, Any]:
        """Return status and body."""
        self.calls.append((method, path))
        given = login(headers)
        if given is None:
            return 401, {"error": {"reason": f"missing authentication credentials for REST request [{path}]"}}
        if not self.knows(*given):
            return 401, {"error": {"reason": f"unable to authenticate user [{given[0]}]"}}
        if (method, path) == ("GET", "/_security/_authenticate"):
            return 200, {"username": given[0]}
        if given[0] != "elastic" and not self._may(given[0], method, path):
            return 403, {"error": {"reason": f"action is unauthorized for user [{given[0]}]"}}
        if path in self.faults:
            status, text = self.faults[path]
            return status, text
        return self.elasticsearch(method, path, body)

    def _may(self, user: str, method: str, path: str) -> bool:
        """Whether a user's roles allow a call; what nobody but elastic shall ask is allowed to nobody else."""
        found = re.fullmatch(r"(?:/(_cat/indices|_cat/aliases|_data_stream))?/([^/?]+)(?:\?.*)?", path)
        if not found:
            return False
        cluster, needed = {
            ("GET", "_cat/indices"): ("monitor", "monitor"),
            ("GET", "_cat/aliases"): (None, "view_index_metadata"),
            ("GET", "_data_stream"): (None, "view_index_metadata"),
            ("DELETE", None): (None, "delete_index"),
        }.get((method, found[1]), (None, None))
        if needed is None:
            return False
        names = [found[2], STREAM] if backing(found[2]) else [found[2]]  # what a stream allows, its indices allow
        roles = [self.things[f"/_security/role/{role}"]
                 for role in self.things.get(f"/_security/user/{user}", {}).get("roles", ())]  # fmt: skip
        return any(cluster in {None, *role["cluster"]} for role in roles) and any(
            needed in grant["privileges"] and fnmatchcase(name, pattern)
            for role in roles for grant in role["indices"] for pattern in grant["names"] for name in names
        )  # fmt: skip

    def knows(self, name: str, password: str) -> bool:
        """Whether it is the password of this user."""
        if name == "elastic":
            return password == self.password
        paths = (f"/_security/user/{name}/_password", f"/_security/user/{name}")
        return any(self.things.get(path, {}).get("password") == password for path in paths)

    def elasticsearch(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Answer as Elasticsearch does."""
        if path == "/_cluster/health?wait_for_status=yellow&timeout=10s" and method == "GET":
            self.unready -= 1
            return (503, {"error": "not yet"}) if self.unready >= 0 else (200, {"status": "green"})
        if path.partition("?")[0] == f"/_data_stream/{STREAM}":
            return self._data_stream(method, path.partition("?")[2])
        if method == "GET" and path.startswith("/_cat/"):
            return self._cat(path)
        if method == "DELETE":
            return self._delete(path.removeprefix("/"))
        if re.fullmatch(r"/_alias/[a-z-]+|/jaeger-[a-z]+-(\d{6}|\*/_alias/[a-z-]+)", path):
            return self._index(method, path, body)
        if path == "/logs-vllm-default/_mapping?write_index_only=true" and method == "PUT":
            return self._new_fields(json.loads(body))
        if path == "/logs-vllm-default/_rollover?lazy=true" and method == "POST":
            return 200, {"lazy": True}
        sent = json.loads(body)
        if path == "/_security/user/kibana_system/_password" and method == "POST":
            assert set(sent) == {"password"}
            self.things[path] = sent
            return 200, {}
        folder, _, name = path.rpartition("/")
        if method != "PUT" or folder not in _KEYS or not re.fullmatch(r"[a-z_-]+", name):
            return 400, {"error": f"no handler found for uri [{path}] and method [{method}]"}
        if unknown := set(sent) - _KEYS[folder]:
            return 400, {"error": f"unknown field {unknown}"}
        missing = self._missing(folder, sent)
        if missing:
            return 400, {"error": f"not there: {missing}"}
        created = path not in self.things
        self.things[path] = sent
        return (200, {"created": created}) if "_security" in path else (200, {"acknowledged": True})

    def _missing(self, folder: str, sent: Any) -> list[str]:
        """Return what Elasticsearch wants to know before: component templates, and roles of a user by our own rule."""
        wanted = [f"/_component_template/{name}" for name in sent.get("composed_of", ())]
        wanted += [f"/_security/role/{name}" for name in sent.get("roles", ())] if folder.endswith("user") else []
        text = json.dumps(sent)
        wanted += [f"/_ilm/policy/{name}" for name in re.findall(r'"index.lifecycle.name": "([^"]+)"', text)]
        wanted += [f"/_ingest/pipeline/{name}" for name in re.findall(r'"index.default_pipeline": "([^"]+)"', text)]
        if folder == "/_ingest/pipeline":
            wanted += [f"{folder}/{name}" for name in re.findall(r'{"pipeline": {"name": "([^"]+)"', text)]
        return [path for path in wanted if path not in self.things]

    def _data_stream(self, method: str, query: str) -> tuple[int, Any]:
        there = "stream" in self.things
        if method == "GET":
            assert query in {"", "filter_path=data_streams.indices.index_name"}
            found = {"data_streams": [{"indices": [{"index_name": name} for name in self._backing()]}]}
            return (200, found) if there else (404, {"error": "no such index"})
        assert method == "PUT"
        if there:
            return 400, {"error": {"type": "resource_already_exists_exception"}}
        assert "/_index_template/vllm-vitals-logs" in self.things, "the template comes before its data stream"
        self.things["stream"] = True
        self.indices[f".ds-{STREAM}-2026.01.01-000001"] = index_of(int(time.time() * 1000), 300)
        return 200, {"acknowledged": True}

    def _backing(self) -> list[str]:
        """Return the data stream's indices; the last one is written to."""
        return sorted(name for name in self.indices if backing(name))

    def _index(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Make an index, give several an alias, or say whether there is one."""
        target, _, alias = path[1:].partition("/_alias/")
        if method == "GET" and path.startswith("/_alias/"):
            alias = path.removeprefix("/_alias/")
            found = {name: {} for name, one in self.indices.items() if alias in one["aliases"]}
            return (200, found) if found else (404, {"error": f"alias [{alias}] missing"})
        assert method == "PUT"
        if alias:
            for name in (named := [name for name in self.indices if fnmatchcase(name, target)]):
                self.indices[name]["aliases"][alias] = None
            self.things[path] = True
            return (200, {"acknowledged": True}) if named else (404, {"error": f"no such index [{target}]"})
        if target in self.indices:
            return 400, {"error": {"type": "resource_already_exists_exception"}}
        template = self.things[f"/_index_template/{target.rpartition('-')[0]}"]["template"]
        sent = json.loads(body)
        assert set(sent) == {"aliases"}
        written = {name: settings["is_write_index"] for name, settings in sent["aliases"].items()}
        self.indices[target] = index_of(int(time.time() * 1000), 250, dict.fromkeys(template["aliases"]) | written)
        self.things[path] = sent
        return 200, {"acknowledged": True, "index": target}

    def _cat(self, path: str) -> tuple[int, Any]:
        kind, _, rest = path.removeprefix("/_cat/").partition("/")
        target, _, query = rest.partition("?")
        if kind == "aliases":
            assert dict(parse_qsl(query)) == {"h": "index,is_write_index"}
            words = {None: "-", True: "true", False: "false"}
            return 200, "".join(f"{name:<20} {words[one['aliases'][target]]}\n"
                                for name, one in sorted(self.indices.items()) if target in one["aliases"])  # fmt: skip
        assert kind == "indices"
        columns = {"h": "index,creation.date,store.size", "bytes": "b", "s": "creation.date,index"}
        assert dict(parse_qsl(query)) == columns
        names = self._backing() if target == STREAM else [one for one in self.indices if fnmatchcase(one, target)]
        if not names and "*" not in target:
            return 404, {"error": f"no such index [{target}]"}
        rows = sorted((self.indices[name]["created"], name) for name in names)
        sizes = {name: self.indices[name]["size"] for name in names}
        return 200, "".join(f"{name:<45} {created} {'' if sizes[name] is None else sizes[name]:>12}\n"
                            for created, name in rows)  # fmt: skip

    def _delete(self, name: str) -> tuple[int, Any]:
        if name in self._backing()[-1:]:
            reason = f"index [{name}] is the write index for data stream [{STREAM}] and cannot be deleted"
            return 400, {"error": {"type": "illegal_argument_exception", "reason": reason}}
        if self.indices.pop(name, None) is None:
            return 404, {"error": {"type": "index_not_found_exception", "reason": f"no such index [{name}]"}}
        return 200, {"acknowledged": True}

    def _new_fields(self, sent: Any) -> tuple[int, Any]:
        assert set(sent) == {"dynamic", "properties"}
        return (400, {"error": "mapper cannot be changed"}) if self.conflicting else (200, {"acknowledged": True})


class KibanaStore(Store):
    """Kibana, as far as its set-up asks."""

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, Any]:
        """Every call needs kbn-xsrf; the import takes a form with one file."""
        if headers.get("kbn-xsrf") is None:
            return 400, {"message": "Request must contain a kbn-xsrf header."}
        self.content_type = headers.get("Content-Type", "")
        return super().answer(method, path, headers, body)

    def elasticsearch(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Answer as Kibana does."""
        if (method, path) == ("GET", "/api/status"):
            self.unready -= 1
            level = "unavailable" if self.unready >= 0 else "available"
            return (503 if self.unready >= 0 else 200), {"status": {"overall": {"level": level}}}
        if (method, path) != ("POST", "/api/saved_objects/_import?overwrite=true"):
            return 404, {"message": "Not Found"}
        assert self.content_type.startswith("multipart/form-data; boundary=")
        boundary = self.content_type.partition("boundary=")[2].encode()
        (part,) = body.split(b"--" + boundary)[1:-1]
        head, _, content = part.partition(b"\r\n\r\n")
        assert b'name="file"; filename="objects.ndjson"' in head
        lines = content.decode().strip().splitlines()
        self.things["objects"] = [json.loads(line) for line in lines]
        return 200, {"successCount": len(lines), "success": True, "warnings": [], "successResults": []}


def server_of(store: Store, address: tuple[str, int]) -> ThreadingHTTPServer:
    """Return a server of a store, bound and not yet serving."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, answer = store.answer(self.command, self.path, self.headers, body)
            data = answer.encode() if isinstance(answer, str) else json.dumps(answer, separators=(",", ":")).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = _any  # noqa: N815  http.server looks for these

        def log_message(self, *_):
            pass

    return ThreadingHTTPServer(address, Handler)


@contextmanager
def serving(store: Store, port: int = 0) -> Iterator[Store]:
    """Serve a store on loopback."""
    server = server_of(store, ("127.0.0.1", port))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    store.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
