"""Metrics and health as a scraper and an operator see them; the documentation names each metric."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

import pytest
from prometheus_client.parser import text_string_to_metric_families

from swarmd.adapters.telemetry import METRICS, Health, HealthServer, Telemetry, gather, merge_metrics
from swarmd.core.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


def get(url: str) -> tuple[int, str]:
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Samples by name and sorted labels."""
    return {
        (sample.name, *(f"{key}={value}" for key, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class HandClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def served() -> Iterator[tuple[HealthServer, Telemetry, Health, HandClock]]:
    clock = HandClock()
    telemetry, health = Telemetry("worker", "main"), Health("broker", "log", stall_s=5, monotonic=clock)
    server = HealthServer(telemetry.text, health)
    server.start()
    try:
        yield server, telemetry, health, clock
    finally:
        server.stop()


def test_a_scraper_reads_what_was_counted(served: tuple[HealthServer, Telemetry, Health, HandClock]) -> None:
    server, telemetry, _, _ = served
    telemetry.count("swarmd_tasks_total", "echo", "completed")
    telemetry.count("swarmd_tasks_total", "echo", "completed", by=2)
    telemetry.gauge("swarmd_queue_tasks", 7)
    telemetry.observe("swarmd_log_append_seconds", 0.003)
    status, text = get(f"{server.url}/metrics")
    assert status == 200
    read = samples(text)
    assert read["swarmd_tasks_total", "agent=echo", "outcome=completed", "role=worker", "swarm=main"] == 3
    assert read["swarmd_queue_tasks", "role=worker", "swarm=main"] == 7
    assert read["swarmd_log_append_seconds_bucket", "le=0.005", "role=worker", "swarm=main"] == 1
    assert read["swarmd_log_append_seconds_bucket", "le=0.002", "role=worker", "swarm=main"] == 0


def test_live_fails_when_the_loop_stands_still(served: tuple[HealthServer, Telemetry, Health, HandClock]) -> None:
    server, _, health, clock = served
    assert get(f"{server.url}/livez") == (200, "ok\n")
    clock.now += 6
    assert get(f"{server.url}/livez") == (503, "the event loop stands still for 6 s\n")
    health.tick()
    assert get(f"{server.url}/livez")[0] == 200


def test_ready_names_what_is_missing(served: tuple[HealthServer, Telemetry, Health, HandClock]) -> None:
    server, _, health, _ = served
    assert get(f"{server.url}/readyz") == (503, "broker: not yet\nlog: not yet\n")
    health.ready("broker")
    health.ready("log")
    assert get(f"{server.url}/readyz") == (200, "ok\n")
    health.not_ready("broker", "reconnecting")
    assert get(f"{server.url}/readyz") == (503, "broker: reconnecting\n")


def test_another_page_is_not_found(served: tuple[HealthServer, Telemetry, Health, HandClock]) -> None:
    assert get(f"{served[0].url}/etc/passwd") == (404, "there are /metrics, /livez, /readyz\n")


def test_a_port_in_use_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = HealthServer(str, Health(), port=taken.getsockname()[1])
        with pytest.raises(Rejected, match="choose another port with --metrics-port"):
            server.start()
        server.stop()


def test_two_telemetries_in_one_process_do_not_meet() -> None:
    one, two = Telemetry("worker", "a"), Telemetry("worker", "b")
    one.count("swarmd_retries_total")
    assert "swarm=a" in str(samples(one.text()))
    assert ("swarmd_retries_total", "role=worker", "swarm=b") not in samples(two.text())


def test_merging_announces_each_family_once_and_keeps_every_sample() -> None:
    texts = []
    for index, process in enumerate(("w1", "w2")):
        telemetry = Telemetry("worker", "main")
        telemetry.count("swarmd_tasks_total", 'a"b\\c\n', "completed", by=index + 1)
        telemetry.observe("swarmd_commit_events", 3)
        texts.append(({"process": process}, telemetry.text()))
    merged = merge_metrics(texts)
    announced = re.findall(r"^# TYPE (\S+)", merged, re.MULTILINE)
    assert len(announced) == len(set(announced))
    assert re.findall(r"^# HELP (\S+)", merged, re.MULTILINE) == announced
    for added, text in texts:
        for (name, *labels), value in samples(text).items():
            key = (name, *sorted([*labels, f"process={added['process']}"]))
            assert samples(merged)[key] == value


def test_merging_keeps_a_label_that_is_there_and_refuses_two_kinds() -> None:
    source = '# TYPE a gauge\na{process="own"} 1\n'
    assert 'a{process="own"} 1.0' in merge_metrics([({"process": "other"}, source)])
    with pytest.raises(ValueError, match="a is a gauge in one source and a counter"):
        merge_metrics([({}, source), ({}, "# TYPE a counter\na_total 1\n")])


def test_one_page_for_all_processes_tells_who_is_silent(
    served: tuple[HealthServer, Telemetry, Health, HandClock],
) -> None:
    server, telemetry, _, _ = served
    telemetry.gauge("swarmd_queue_tasks", 7)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        dead = f"http://127.0.0.1:{probe.getsockname()[1]}/metrics"
    read = samples(
        gather(Telemetry("up", ""), [({"process": "w1"}, f"{server.url}/metrics"), ({"process": "w2"}, dead)])
    )
    assert read["swarmd_queue_tasks", "process=w1", "role=worker", "swarm=main"] == 7
    assert read["swarmd_process_up", "process=w1", "role=up", "swarm="] == 1
    assert read["swarmd_process_up", "process=w2", "role=up", "swarm="] == 0


def test_the_documentation_names_each_metric() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    documented = re.findall(r"^\| `(swarmd_\w+)` \| (\w+) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    expected = [
        (metric.name, metric.kind, ", ".join(f"`{label}`" for label in metric.labels) or "none", metric.help)
        for metric in METRICS
    ]
    assert documented == expected


def test_names_follow_the_conventions_of_prometheus() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"swarmd_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert not metric.name.endswith("_ms")
        assert bool(metric.buckets) == (metric.kind == "histogram"), metric.name
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_alert_rules_use_metrics_that_exist() -> None:
    names = {metric.name for metric in METRICS}
    text = (ROOT / "ops" / "alerts.yml").read_text() + (ROOT / "docs" / "metrics.md").read_text()
    used = {re.sub(r"_bucket$", "", name) for name in re.findall(r"swarmd_\w+", text)}
    assert used <= names
