"""Write tests/data/vllm-signatures.json: what the hooks lean on, as the sources of vLLM's releases have it.

python tests/vllm_signatures/collect.py [FOLDER]     FOLDER: unpacked sources, one folder per version; else from PyPI
"""

import ast
import concurrent.futures
import io
import json
import sys
import tarfile
import tempfile
import urllib.request
from pathlib import Path

RESULT = Path(__file__).parents[1] / "data/vllm-signatures.json"
INDEX = "https://pypi.org/simple/vllm/"
FIRST = (0, 10, 2)
FUNCTIONS = {
    "vllm/v1/engine/output_processor.py": {
        "OutputProcessor": (
            "add_request", "abort_requests", "propagate_error", "do_tracing", "_update_stats_from_finished",
        ),
    },
    "vllm/v1/metrics/stats.py": {"IterationStats": ("update_from_events", "update_from_finished_request")},
    "vllm/v1/metrics/loggers.py": {"StatLoggerBase": ("record",), "AggregateStatLoggerBase": ("__init__",)},
}  # fmt: skip
FIELDS = {
    "vllm/v1/engine/output_processor.py": ("RequestState",),
    "vllm/v1/metrics/stats.py": ("RequestStateStats", "FinishedRequestStats"),
    "vllm/v1/engine/__init__.py": ("EngineCoreRequest", "EngineCoreEventType"),
}


def functions(path: Path, wanted: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """Return Class.method -> its parameters as the source writes them, without annotations."""
    found = {}
    for owner in classes(path):
        for part in owner.body:
            if isinstance(part, ast.FunctionDef) and part.name in wanted.get(owner.name, ()):
                for argument in [*part.args.posonlyargs, *part.args.args, *part.args.kwonlyargs]:
                    argument.annotation = None
                found[f"{owner.name}.{part.name}"] = ast.unparse(part.args)
    return found


def fields(path: Path, wanted: tuple[str, ...]) -> dict[str, list[str]]:
    """Return class -> names of its fields: of its body, and what its constructor sets on self."""
    found = {}
    for owner in classes(path):
        if owner.name not in wanted:
            continue
        names = [p.target.id for p in owner.body if isinstance(p, ast.AnnAssign) and isinstance(p.target, ast.Name)]
        names += [t.id for p in owner.body if isinstance(p, ast.Assign) for t in p.targets if isinstance(t, ast.Name)]
        for part in owner.body:
            if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                names += [
                    n.attr for n in ast.walk(part) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)
                ]
        found[owner.name] = sorted(set(names))
    return found


def classes(path: Path) -> list[ast.ClassDef]:
    """Return the classes of a file; none where there is no such file."""
    if not path.is_file():
        return []
    return [part for part in ast.parse(path.read_text()).body if isinstance(part, ast.ClassDef)]


def download(folder: Path) -> None:
    """Bring the files that matter of the last patch of every release."""
    request = urllib.request.Request(INDEX, headers={"accept": "application/vnd.pypi.simple.v1+json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        files = json.load(answer)["files"]
    newest: dict[tuple[int, ...], tuple[tuple[int, ...], str]] = {}
    for file in files:
        text = file["filename"].removeprefix("vllm-").removesuffix(".tar.gz")
        if file["filename"].endswith(".tar.gz") and text.replace(".", "").isdigit():
            version = tuple(map(int, text.split(".")))
            # 0.10 to 0.11 changed within patch releases
            key = version if version < (0, 12) else version[:2]
            if version >= FIRST:
                newest[key] = max(newest.get(key, (version, file["url"])), (version, file["url"]))

    def bring(one: tuple[tuple[int, ...], str]) -> None:
        version, url = one
        with urllib.request.urlopen(url, timeout=600) as answer, tarfile.open(fileobj=io.BytesIO(answer.read())) as tar:
            for member in tar:
                name = member.name.partition("/")[2]
                if name in FUNCTIONS | FIELDS:
                    target = folder / ".".join(map(str, version)) / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(tar.extractfile(member).read())

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        list(pool.map(bring, newest.values()))


def main() -> None:
    """Write the file."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary)
        if len(sys.argv) < 2:
            download(folder)
        result = {}
        for version in sorted(
            (p for p in folder.iterdir() if p.is_dir()), key=lambda p: [*map(int, p.name.split("."))]
        ):
            signatures: dict[str, str] = {}
            names: dict[str, list[str]] = {}
            for file, wanted in FUNCTIONS.items():
                signatures |= functions(version / file, wanted)
            for file, owners in FIELDS.items():
                names |= fields(version / file, owners)
            result[version.name] = {"signatures": signatures, "fields": names}
    # Compact: a version says only what differs from the one before.
    compact, last = {}, {"signatures": {}, "fields": {}}
    for version, facts in result.items():
        compact[version] = {
            part: {name: value for name, value in facts[part].items() if last[part].get(name) != value}
            | {name: None for name in last[part] if name not in facts[part]}
            for part in facts
        }
        last = facts
    RESULT.write_text(json.dumps(compact, indent=1) + "\n")


if __name__ == "__main__":
    main()
