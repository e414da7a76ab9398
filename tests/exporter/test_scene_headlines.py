"""Each scene of the demo names its trouble in the live page's headline, and none is well while a promise burns.

All scenes play side by side, in fast motion; the headlines are collected until each has said what it should.
"""

import contextlib
import json
import time

import pytest
from support.http import get
from support.programs import Exporter
from support.waiting import wait_for

pytestmark = pytest.mark.waits

TROUBLE = {
    "steady": "All well: 2 engines, 8 GPUs",
    "burst": "TTFT, ",
    "kv-pressure": "the KV cache overflows at llama-3.1-70b",
    "slow-prefill": "burn: TTFT, ",
    "gpu-throttle": "GPU 2 (slowed down: too hot)",
    "xid": "GPU 1 (lost, it fell off the bus)",
    "engine-crash": "1 engine down: llama-3.1-70b (refused)",
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    with contextlib.ExitStack() as stack:
        demos = {}
        for scene in TROUBLE:
            options = ("--scene", scene, "--speed", 3, "--base-port", 0, "--host", "off", "--sample-interval", "1s")
            demos[scene] = Exporter(*options, log=folder / f"{scene}.log", command="demo")
            stack.callback(demos[scene].stop)
        yield demos


@pytest.mark.parametrize("scene", TROUBLE)
def test_the_headline_names_the_trouble_of_the_scene(scenes, scene):
    seen: set[str] = set()
    begun = time.monotonic()

    def told():
        found = get(f"{scenes[scene].url}/api/vitals?history=off").json
        words = found["verdict"]["words"]
        seen.add(words)
        burning = [row["title"] for row in found["promises"] if row["state"] == "burning"]
        if burning and "All well" in words:
            pytest.fail(f"{words!r} while {burning} burn")
        return TROUBLE[scene] in words

    try:
        wait_for(told, TROUBLE[scene], seconds=150, pause=0.5)
    except AssertionError:
        pytest.fail(f"after {time.monotonic() - begun:.0f} s only {json.dumps(sorted(seen), indent=1)}")
