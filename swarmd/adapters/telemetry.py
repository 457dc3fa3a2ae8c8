"""What a process tells about itself: Prometheus metrics and two health questions, over HTTP.

Job: keep the named metrics of one role, answer `/metrics`, `/livez` and `/readyz`, and merge the texts of several
processes into one. Invariants: only the metrics in `METRICS` exist (docs/metrics.md names each); answering runs on a
thread of its own, so a stalled event loop is reported and not waited for. Must not know what the numbers mean.
"""

from __future__ import annotations

import logging
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

from swarmd.core.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

log = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STALL_S = 10.0
"""An event loop that has not ticked for so long is taken for dead."""

LATENCY_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
DURATION_S = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0)


class Metric(Struct, frozen=True):
    """One family. Names follow Prometheus: base units, counters end in `_total`."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS = (
    Metric("gauge", "swarmd_info", "Constant 1; the labels say what runs.", ("version",)),
    Metric("counter", "swarmd_tasks_submitted_total", "Tasks that the fold accepted.", ("agent",)),
    Metric("counter", "swarmd_tasks_total", "Tasks that reached a verdict.", ("agent", "outcome")),
    Metric("histogram", "swarmd_task_seconds", "From submission to verdict.", ("agent",), DURATION_S),
    Metric("counter", "swarmd_submissions_rejected_total", "Submissions refused.", ("reason",)),
    Metric("gauge", "swarmd_queue_tasks", "Tasks that wait for a slot."),
    Metric("gauge", "swarmd_live_tasks", "Tasks without a verdict."),
    Metric("gauge", "swarmd_dead_tasks", "Tasks that failed for good and can be redriven."),
    Metric("counter", "swarmd_feed_dropped_total", "Events that the live feed left out under load."),
    Metric("gauge", "swarmd_suspended_tasks", "Tasks that wait without a slot."),
    Metric("counter", "swarmd_retries_total", "Attempts that failed and were queued again."),
    Metric("counter", "swarmd_reassigned_total", "Attempts taken from a member before they ended.", ("reason",)),
    Metric("gauge", "swarmd_members", "Members by state as the leader sees them.", ("state",)),
    Metric("gauge", "swarmd_workers", "Worker processes that take work."),
    Metric("gauge", "swarmd_workers_desired", "Worker processes that there should be."),
    Metric("gauge", "swarmd_slots", "Capacity of the members.", ("state",)),
    Metric("gauge", "swarmd_heartbeat_age_seconds", "Age of the oldest heartbeat of a live member."),
    Metric("gauge", "swarmd_phi_max", "How odd the oddest silence of a live member is: phi, given up from 8 on."),
    Metric("counter", "swarmd_dispatch_total", "Attempts handed to members."),
    Metric("gauge", "swarmd_budget_limit", "What may be spent.", ("account", "measure")),
    Metric("gauge", "swarmd_budget_spent", "What was spent in the present period.", ("account", "measure")),
    Metric("gauge", "swarmd_budget_reserved", "What attempts may spend and have not.", ("account", "measure")),
    Metric("gauge", "swarmd_grants_wanted", "Attempts that wait for a grant."),
    Metric("gauge", "swarmd_leader", "1 while this process leads its swarm."),
    Metric("gauge", "swarmd_term", "The term this process has folded."),
    Metric("histogram", "swarmd_log_append_seconds", "From sending a commit to its receipt.", (), LATENCY_S),
    Metric("histogram", "swarmd_commit_events", "Events in one commit.", (), SIZES),
    Metric("histogram", "swarmd_commit_bytes", "Size of one commit.", (), tuple(64.0 * 4**n for n in range(8))),
    Metric("counter", "swarmd_events_folded_total", "Events applied by the fold."),
    Metric("counter", "swarmd_commits_void_total", "Commits that could not be read and were skipped."),
    Metric("counter", "swarmd_events_void_total", "Events in readable commits that changed nothing.", ("reason",)),
    Metric("gauge", "swarmd_fold_sequence", "Log sequence the fold has reached."),
    Metric("gauge", "swarmd_fold_lag_messages", "Stored messages that the fold has not reached yet."),
    Metric("histogram", "swarmd_snapshot_seconds", "Time to take and store a snapshot.", (), LATENCY_S),
    Metric("gauge", "swarmd_store_bytes", "Bytes in a store.", ("store",)),
    Metric("gauge", "swarmd_store_limit_bytes", "Size limit of a store; new work is refused when full.", ("store",)),
    Metric("gauge", "swarmd_running_attempts", "Attempts that run in this process."),
    Metric("gauge", "swarmd_capacity_attempts", "Attempts that this process can run at once."),
    Metric("counter", "swarmd_attempts_total", "Attempts that ended in this process.", ("agent", "outcome")),
    Metric("counter", "swarmd_steps_total", "Steps recorded.", ("kind",)),
    Metric("histogram", "swarmd_step_seconds", "Time of one step.", ("kind",), DURATION_S),
    Metric("counter", "swarmd_steps_resumed_total", "Recorded steps that a resumed attempt did not repeat.", ("kind",)),
    Metric("counter", "swarmd_model_calls_total", "Calls of a model.", ("model", "outcome")),
    Metric("counter", "swarmd_model_tokens_total", "Tokens by type: input, output.", ("model", "type")),
    Metric("counter", "swarmd_model_cost_usd_total", "Cost of model calls, where it is known.", ("model",)),
    Metric("counter", "swarmd_model_unpriced_total", "Calls of models without a price.", ("model",)),
    Metric("counter", "swarmd_model_bad_tool_calls_total", "Tool calls with unreadable arguments.", ("model",)),
    Metric("histogram", "swarmd_model_first_token_seconds", "Until a stream's first piece.", ("model",), DURATION_S),
    Metric("gauge", "swarmd_model_concurrency", "Calls at once that an endpoint is found to bear.", ("provider",)),
    Metric("gauge", "swarmd_model_circuit_open", "1 while an endpoint that fails is left alone.", ("provider",)),
    Metric("counter", "swarmd_tool_calls_total", "Calls of a tool.", ("tool", "outcome")),
    Metric(
        "counter",
        "swarmd_reuse_total",
        "Results that were looked for (`hit`, `miss`, `unavailable`), or not kept (`not_kept`, `too_large`).",
        ("agent", "outcome"),
    ),
    Metric("gauge", "swarmd_memories", "Memories that can be recalled.", ("memory",)),
    Metric("counter", "swarmd_remembered_total", "Memories folded into the store.", ("memory",)),
    Metric("histogram", "swarmd_recall_seconds", "Time to answer one recall.", ("memory",), LATENCY_S),
    Metric("gauge", "swarmd_memory_lag_messages", "Messages of the memory log not in the store yet.", ("memory",)),
    Metric(
        "counter",
        "swarmd_memory_requests_total",
        "Requests that were answered: `ok`, or the code of their error.",
        ("memory", "verb", "outcome"),
    ),
    Metric(
        "counter",
        "swarmd_memory_unembedded_total",
        "Texts that the embedder refused: embedded by their `beginning`, or found by their `words` only.",
        ("memory", "how"),
    ),
    Metric(
        "counter",
        "swarmd_memory_refused_total",
        "Memories that the store refused: they are not found until it takes them.",
        ("memory",),
    ),
    Metric("gauge", "swarmd_watches", "Semantic subscriptions.", ("memory",)),
    Metric("counter", "swarmd_matches_total", "Matches of watches.", ("memory",)),
    Metric(
        "gauge",
        "swarmd_unmatched_messages",
        "Messages of the memory log not matched against the watches yet.",
        ("memory",),
    ),
    Metric("counter", "swarmd_broker_disconnects_total", "Times the connection to the broker was lost."),
    Metric("counter", "swarmd_broker_restarts_total", "Times the embedded broker was restarted."),
    Metric("gauge", "swarmd_process_up", "1 if the process answered when `up` asked for its metrics.", ("process",)),
    Metric("gauge", "swarmd_loop_tick_age_seconds", "Seconds since the event loop last ticked."),
)


class Telemetry:
    """The metrics of one role; every sample carries `role` and `swarm`. Safe to call from any thread."""

    def __init__(self, role: str, swarm: str) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second gauge per counter that no rule of ours reads

        self.registry = CollectorRegistry()
        self._common = (role, swarm)
        self._families: dict[str, Counter | Gauge | Histogram] = {}
        self._children: dict[tuple[str, ...], Any] = {}
        for metric in METRICS:
            labels = ("role", "swarm", *metric.labels)
            if metric.kind == "counter":
                family: Counter | Gauge | Histogram = Counter(metric.name, metric.help, labels, registry=self.registry)
            elif metric.kind == "gauge":
                family = Gauge(metric.name, metric.help, labels, registry=self.registry)
            else:
                family = Histogram(metric.name, metric.help, labels, registry=self.registry, buckets=metric.buckets)
            self._families[metric.name] = family

    def count(self, name: str, *labels: str, by: float = 1) -> None:
        """Add to a counter; labels in the order of its definition."""
        self._child(name, labels).inc(by)

    def gauge(self, name: str, value: float, *labels: str) -> None:
        self._child(name, labels).set(value)

    def observe(self, name: str, value: float, *labels: str) -> None:
        """Add a sample to a histogram, in seconds, bytes or pieces as its name says."""
        self._child(name, labels).observe(value)

    def text(self) -> str:
        """The exposition that `/metrics` answers with."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry).decode()

    def _child(self, name: str, labels: tuple[str, ...]) -> Any:
        key = (name, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._families[name].labels(*self._common, *labels)
        return child


class Health:
    """Answers to "is it alive" and "is it ready". The event loop ticks; readiness is a set of named conditions."""

    def __init__(
        self, *conditions: str, stall_s: float = STALL_S, monotonic: Callable[[], float] | None = None
    ) -> None:
        self._monotonic = monotonic or time.monotonic
        self._stall_s = stall_s
        self._ticked = self._monotonic()
        self._missing = dict.fromkeys(conditions, "not yet")

    def tick(self) -> None:
        """Called from the event loop, about once a second."""
        self._ticked = self._monotonic()

    def tick_age_s(self) -> float:
        return self._monotonic() - self._ticked

    def ready(self, condition: str) -> None:
        self._missing = {name: why for name, why in self._missing.items() if name != condition}

    def not_ready(self, condition: str, why: str) -> None:
        self._missing = {**self._missing, condition: why}

    def live(self) -> tuple[bool, str]:
        age = self.tick_age_s()
        return age < self._stall_s, "ok" if age < self._stall_s else f"the event loop stands still for {age:.0f} s"

    def readiness(self) -> tuple[bool, str]:
        missing = self._missing
        return not missing, "ok" if not missing else "\n".join(f"{name}: {why}" for name, why in missing.items())


class HealthServer:
    """`/metrics`, `/livez` and `/readyz` on a thread; `port` 0 takes a free one, `port` then says which."""

    def __init__(self, metrics: Callable[[], str], health: Health, host: str = "127.0.0.1", port: int = 0) -> None:
        self.host, self.port = host, port
        self._metrics = metrics
        self._health = health
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def start(self) -> None:
        """Raises `Rejected("port_in_use")`."""
        pages: dict[str, Callable[[], tuple[bool, str]]] = {
            "/metrics": lambda: (True, self._metrics()),
            "/livez": self._health.live,
            "/readyz": self._health.readiness,
        }
        try:
            self._server = _Server((self.host, self.port), _page_server(pages))
        except OSError as error:
            raise Rejected(
                "port_in_use",
                f"cannot serve metrics on {self.host}:{self.port} ({error.strerror}): choose another port with "
                "--metrics-port, or 0 for any",
            ) from error
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Idempotent; waits for the thread, which never blocks on the event loop."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False


def _page_server(pages: Mapping[str, Callable[[], tuple[bool, str]]]) -> type[BaseHTTPRequestHandler]:
    class Pages(BaseHTTPRequestHandler):
        timeout = 10  # seconds for one request: an idle peer must not hold a thread

        def do_GET(self) -> None:
            page = pages.get(self.path.partition("?")[0])
            if page is None:
                self._answer(404, f"there are {', '.join(pages)}\n", "text/plain; charset=utf-8")
                return
            good, text = page()
            kind = CONTENT_TYPE if page is pages["/metrics"] else "text/plain; charset=utf-8"
            self._answer(200 if good else 503, text if text.endswith("\n") else text + "\n", kind)

        do_HEAD = do_GET

        def _answer(self, status: int, text: str, kind: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            log.debug(format, *args)

    return Pages


def merge_metrics(sources: Iterable[tuple[Mapping[str, str], str]]) -> str:
    """One exposition from several: each source's labels are added to its samples, each family is announced once.

    A label that a sample has already is kept. Raises `ValueError` for text that is no exposition.
    """
    from prometheus_client.core import Metric as Family
    from prometheus_client.exposition import generate_latest
    from prometheus_client.parser import text_string_to_metric_families
    from prometheus_client.registry import CollectorRegistry

    merged: dict[str, Family] = {}
    for labels, text in sources:
        for family in text_string_to_metric_families(text):
            into = merged.setdefault(family.name, Family(family.name, family.documentation, family.type))
            if into.type != family.type:
                raise ValueError(f"{family.name} is a {into.type} in one source and a {family.type} in another")
            into.samples += [sample._replace(labels={**labels, **sample.labels}) for sample in family.samples]

    class Merged:
        def collect(self) -> Iterable[Family]:
            return merged.values()

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Merged())
    return generate_latest(registry).decode()


def scrape(
    targets: Iterable[tuple[Mapping[str, str], str]], timeout_s: float = 2.0
) -> list[tuple[dict[str, str], str]]:
    """Fetch `(labels, url)` into `(labels, text)` for `merge_metrics`; a silent process is one with an empty text.

    Blocking: call it from the thread that answers `/metrics`.
    """
    from urllib.request import ProxyHandler, build_opener

    opener = build_opener(ProxyHandler({}))  # the targets are our own processes, never behind a proxy
    texts = []
    for labels, url in targets:
        try:
            with opener.open(url, timeout=timeout_s) as answer:
                text = answer.read().decode()
        except (OSError, ValueError) as error:
            log.warning("no metrics from %s: %s", url, error)
            text = ""
        texts.append((dict(labels), text))
    return texts


def gather(own: Telemetry, targets: Iterable[tuple[Mapping[str, str], str]]) -> str:
    """The one exposition for all processes of `up`: its own metrics, those of `targets`, and who did not answer.

    Each target's labels must hold `process`. A process whose text is damaged counts as one that did not answer.
    """
    good: list[tuple[Mapping[str, str], str]] = []
    for labels, text in scrape(targets):
        try:
            merge_metrics([(labels, text)])
        except ValueError as error:
            log.warning("damaged metrics from %s: %s", labels.get("process"), error)
            text = ""
        own.gauge("swarmd_process_up", float(bool(text)), labels["process"])
        good.append((labels, text))
    return merge_metrics([({}, own.text()), *good])
