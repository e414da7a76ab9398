"""Puts dashboards into a Grafana through its HTTP API, into one folder, over what is there under the same uid."""

import json
import urllib.parse
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from ..runtime.exchange import exchange
from ..settings.scalars import ConfigError

FOLDER: Final = "vllm-vitals"
_FOLDER_TITLE: Final = "vLLM vitals"
_LONGEST_ANSWER: Final = 1 << 20
_ADVICE: Final = {
    401: "the token is not accepted; make one for a service account of the role Editor",
    403: "the token may not do this; its service account needs the role Editor",
    404: "nothing is there; is this the address of Grafana itself, with its sub-path?",
}


class Grafana(NamedTuple):
    """Where Grafana is and how it knows us.

    Attributes:
        url: with its sub-path, if it has one.
        token: of a service account; empty for a Grafana that lets anybody edit.
        timeout: seconds for each call as a whole.
    """

    url: str
    token: str
    timeout: float = 10.0


class GrafanaError(Exception):
    """Grafana did not do what was asked; the text says why and what would help."""


def make_folder(grafana: Grafana, uid: str = FOLDER) -> None:
    """Make sure that the folder is there; raises GrafanaError."""
    status, answer = _call(
        grafana, "POST", "/api/folders", {"uid": uid, "title": _FOLDER_TITLE if uid == FOLDER else uid}
    )
    if status not in {200, 409, 412}:  # it is there already: 409, of older releases 412
        raise _failure(grafana, f"the folder {uid}", status, answer)


def push(grafana: Grafana, data: Mapping[str, Any], folder: str = FOLDER) -> str:
    """Save a dashboard; returns its address. Raises GrafanaError."""
    body = {
        "dashboard": {**data, "id": None},
        "folderUid": folder,
        "overwrite": True,
        "message": "vllm-vitals dashboards",
    }
    status, answer = _call(grafana, "POST", "/api/dashboards/db", body)
    if status != 200:
        raise _failure(grafana, f"the dashboard {data['uid']}", status, answer)
    path = str(answer.get("url") or f"/d/{data['uid']}")
    parts = urllib.parse.urlsplit(grafana.url)
    return f"{parts.scheme}://{parts.netloc}{path}"


def _call(grafana: Grafana, method: str, path: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    url = grafana.url.rstrip("/") + path
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise ConfigError(f"--grafana: expected an address such as http://127.0.0.1:3000, found {grafana.url!r}")
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if grafana.token:
        headers["Authorization"] = f"Bearer {grafana.token}"
    try:
        answer = exchange(
            url,
            method=method,
            headers=headers,
            body=json.dumps(body).encode(),
            deadline=grafana.timeout,
            limit=_LONGEST_ANSWER,
            use_proxy=True,
        )
    except (OSError, ValueError) as error:
        raise GrafanaError(f"{url}: {error}") from None
    return answer.status, _object(answer.body)


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _failure(grafana: Grafana, what: str, status: int, answer: Mapping[str, Any]) -> GrafanaError:
    words = ": ".join(str(part) for part in (answer.get("message", ""), _ADVICE.get(status, "")) if part)
    return GrafanaError(f"{grafana.url}: {what} was not saved: HTTP {status}{f': {words}' if words else ''}")
