"""Pages as the reference parser of prometheus_client reads them."""

from collections import Counter

from prometheus_client.parser import text_string_to_metric_families

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def families(page: str):
    return {family.name: family for family in text_string_to_metric_families(page)}


def series(page: str) -> Series:
    """Return every sample; two samples of one series are an error."""
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    keys = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in samples]
    repeated = [key for key, count in Counter(keys).items() if count > 1]
    assert not repeated, repeated[:3]
    return {key: sample.value for key, sample in zip(keys, samples, strict=True)}


def values(page: str, name: str, **labels: str) -> list[float]:
    """Return the values of a sample name whose labels include these."""
    return [
        value
        for (found, pairs), value in series(page).items()
        if found == name and labels.items() <= dict(pairs).items()
    ]


def value(page: str, name: str, **labels: str) -> float:
    found = values(page, name, **labels)
    assert len(found) == 1, f"{name} {labels}: {found}"
    return found[0]


def labels_of(page: str, name: str) -> list[dict[str, str]]:
    return [dict(pairs) for found, pairs in series(page) if found == name]
