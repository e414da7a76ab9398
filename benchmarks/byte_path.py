"""The byte path against prometheus_client: parse + relabel + generate, on a real vLLM page whose values move.

    python benchmarks/byte_path.py

CPU time, minimum over the rounds, both ways in turns in one process. The pages differ in their values from round to
round as an engine's do between scrapes, so nothing but constant families can be remembered.
"""

import re
import time
from collections.abc import Callable

from measured import PAGE, table
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from vllm_vitals.exporter.pages.families import merge
from vllm_vitals.exporter.pages.relabel import Relabeler

ROUNDS = 30
ENGINES = 64
_VALUE = re.compile(rb"(?m)^(?![^\n]*_created)([^#\n][^\n]*) (\d+)\.0$")


def variant(page: bytes, n: int) -> bytes:
    """Return the page with every whole number but the _created ones moved on by n."""
    return _VALUE.sub(lambda match: b"%b %d.0" % (match[1], int(match[2]) + n), page)


def with_models(page: bytes, count: int) -> bytes:
    """Return the page with each vLLM series under several model names: a larger page of the same shape."""
    lines = []
    for line in page.splitlines(keepends=True):
        names = [b"tiny", *(b"tiny-%d" % n for n in range(1, count))] if b'model_name="tiny"' in line else [b"tiny"]
        lines += [line.replace(b'model_name="tiny"', b'model_name="%b"' % name) for name in names]
    return b"".join(lines)


class Parsed:
    """A collector over families that the parser returned."""

    def __init__(self, families: list) -> None:
        self.families = families

    def collect(self) -> list:
        """Return them."""
        return self.families


def parse_and_generate(page: bytes) -> bytes:
    """Do it the usual way."""
    families = list(text_string_to_metric_families(page.decode()))
    for family in families:
        family.samples = [sample._replace(labels={**sample.labels, "server": "s"}) for sample in family.samples]
    registry = CollectorRegistry()
    registry.register(Parsed(families))
    return generate_latest(registry)


def cpu(work: Callable[[], object]) -> float:
    """Return the CPU milliseconds of a call."""
    started = time.process_time()
    work()
    return (time.process_time() - started) * 1e3


def main() -> None:
    captured = PAGE.read_bytes()
    rows = []
    for name, page in (("captured page", captured), ("four models", with_models(captured, 4))):
        pages = [variant(page, n) for n in range(ROUNDS)]
        relabeler = Relabeler("127.0.0.1:8000")
        samples = relabeler.relabel(page).samples
        bytes_ms, parsed_ms = [], []
        for moved in pages:
            bytes_ms.append(cpu(lambda moved=moved, one=relabeler: merge([one.relabel(moved)])))
            parsed_ms.append(cpu(lambda moved=moved: parse_and_generate(moved)))
        ratio = sorted(b / a for a, b in zip(bytes_ms, parsed_ms, strict=True))[ROUNDS // 2]
        best = min(bytes_ms)
        rows.append(
            (name, samples, f"{best:.3f}", f"{min(parsed_ms):.1f}", f"{min(parsed_ms) / best:.0f}", f"{ratio:.0f}")
        )
    table(("page", "samples", "bytes, ms", "parse + generate, ms", "ratio of minima", "median of paired ratios"), rows)

    print()
    page = with_models(captured, 4)
    rows = []
    for engines in (1, 4, 16, ENGINES):
        relabelers = [Relabeler(f"engine-{n}") for n in range(engines)]
        for relabeler in relabelers:
            relabeler.relabel(page)
        times = []
        for n in range(8):
            moved = variant(page, n)
            times.append(cpu(lambda moved=moved, many=relabelers: merge([one.relabel(moved) for one in many])))
        samples = engines * relabelers[0].relabel(page).samples
        rows.append((engines, f"{samples:,}", f"{min(times):.1f}", f"{min(times) / samples * 1e6:.0f}"))
    table(("engines", "samples", "relabel and merge, CPU ms", "ns per sample"), rows)


if __name__ == "__main__":
    main()
