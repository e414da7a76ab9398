import pytest
from vllm_vitals.alerts.sla_file import load
from vllm_vitals.dashboards.build import dashboards, query_schema
from vllm_vitals.dashboards.limits import limits_of
from vllm_vitals.dashboards.lint import Context

SLUGS = ("overview", "engine", "gpu", "slo", "fleet", "requests", "pipeline")


@pytest.fixture(scope="session")
def sla():
    """The SLA that we ship."""
    return load()


@pytest.fixture(scope="session")
def context(sla):
    return Context(query_schema(sla), limits_of(sla))


@pytest.fixture(scope="session")
def made(sla):
    """Every dashboard by its slug; tests change copies."""
    return dashboards(sla)


@pytest.fixture(params=SLUGS)
def dashboard(request, made):
    return made[request.param]


@pytest.fixture
def sla_file(tmp_path):
    """Write an SLA of services that differ in what they promise; returns its path."""

    def write(*promises: str, rest: str = "") -> object:
        services = "".join(
            f"  - name: s{number}\n    selector: {{job: vllm-vitals, model_name: m{number}}}\n"
            f"    custom_buckets: on\n{rest}    objectives: {{ttft: {promise}, availability: 99.9%}}\n"
            for number, promise in enumerate(promises)
        )
        path = tmp_path / "sla.yaml"
        path.write_text(f"services:\n{services}")
        return path

    return write
