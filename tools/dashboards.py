"""The Grafana dashboards as code; `python -m tools` writes their JSON into the chart.

Several control planes export the same jobs and teachers, so every query takes the maximum over them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import GraphTresholdsStyleMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    GridPos,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
    VariableSort,
)

from tide_core.contracts import figures
from tide_core.contracts.figures import Figure, Unit

TARGET = Path(__file__).parents[1] / "helm" / "tide" / "files" / "dashboards"
_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_LINE = GraphTresholdsStyleMode.LINE
_PANELS_A_ROW = 2
_WIDTH, _HEIGHT = 12, 8


@dataclass(frozen=True)
class Panel:
    """One graph: its queries by legend, its unit, and the value above which it is red."""

    title: str
    unit: str
    queries: dict[str, str]
    red_above: float | None = None
    job: str | None = None
    """The variable with the job's id, for links to its page and log."""
    absent: str | None = None
    """Why a run without trouble has no data here."""


@dataclass(frozen=True)
class Page:
    """One dashboard."""

    title: str
    panels: tuple[Panel, ...]
    variable: tuple[str, str] | None = None
    """Name and query of a variable to choose by."""


_UNITS = {
    Unit.NATS: "short",
    Unit.NATS_PER_TOKEN: "short",
    Unit.RATIO: "percentunit",
    Unit.SECONDS: "s",
    Unit.TOKENS_PER_SECOND: "short",
    Unit.BYTES: "bytes",
    Unit.NONE: "short",
}
"""Grafana's names."""
_POOL = '{application=~"$application"}'
_JOB = '{job_id=~"$job_id"}'


def _newest(figure: Figure) -> str:
    """The query of a figure's newest value in the chosen job, of each member where it has some."""
    by = f" by ({figure.member_label}) " if figure.member_label else ""
    return f"max{by}({figure.gauge_name}{_JOB})"


def _graph_of(figure: Figure, legend: str, **more: Any) -> Panel:
    """The panel of one figure."""
    return Panel(figure.title, more.pop("unit", _UNITS[figure.unit]), {legend: _newest(figure)}, **more)


PAGES = {
    "fleet": Page(
        "Tide / Fleet",
        (
            Panel("Jobs by state", "short", {"{{state}}": "max by (state) (tide_jobs)"}),
            Panel(
                "Age of the oldest queued job",
                "s",
                {"age": "max(tide_queue_oldest_age_seconds)"},
                red_above=3600,
            ),
            Panel(
                "Progress of unfinished jobs",
                "percentunit",
                {"{{job_id}} {{phase}}": "max by (job_id, phase) (tide_job_progress_ratio)"},
                job="${__field.labels.job_id}",
            ),
            Panel(
                "Time remaining",
                "s",
                {"{{job_id}} {{phase}}": "max by (job_id, phase) (tide_job_eta_seconds)"},
            ),
            Panel("Teacher pools by state", "short", {"{{state}}": "max by (state) (tide_teachers)"}),
            Panel("Attempts", "short", {"{{job_id}}": "max by (job_id) (tide_job_attempt)"}),
            Panel(
                "Failed jobs by code",
                "short",
                {"{{code}}": "max by (code) (tide_jobs_failed)"},
                absent="no job failed",
            ),
            Panel(
                "Mean duration of a phase",
                "s",
                {
                    "{{phase}}": "sum by (phase) (increase(tide_phase_duration_seconds_sum[1d]))"
                    " / sum by (phase) (increase(tide_phase_duration_seconds_count[1d]))"
                },
            ),
            Panel(
                "Phases ended per day",
                "short",
                {
                    "{{phase}} {{outcome}}": "sum by (phase, outcome)"
                    " (increase(tide_phase_duration_seconds_count[1d]))"
                },
            ),
        ),
    ),
    "job": Page(
        "Tide / One job",
        (
            _graph_of(figures.LOSS, "{{term}}", job="${job_id}"),
            _graph_of(figures.HELD_OUT, "{{figure}}"),
            _graph_of(figures.GRADIENT_NORM, "norm", red_above=1000),
            Panel(
                "Mask rate and trust in the teacher (lambda)",
                _UNITS[figures.MASK_RATE.unit],
                {"masked": _newest(figures.MASK_RATE), "lambda": _newest(figures.LAMBDA)},
            ),
            _graph_of(figures.TOKENS_PER_SECOND, "tokens a second"),
            Panel(
                figures.STEP_SECONDS.title,
                _UNITS[figures.STEP_SECONDS.unit],
                {
                    "step": _newest(figures.STEP_SECONDS),
                    "waits for the teacher": _newest(figures.TEACHER_WAIT_SECONDS),
                    "waits for data": _newest(figures.FEED_WAIT_SECONDS),
                },
            ),
            Panel(
                "Share of the step time that waits for the teacher",
                "percentunit",
                {"share": f"max(job:tide_teacher_wait:ratio{_JOB})"},
                red_above=0.3,
            ),
            Panel("Time remaining", "s", {"{{phase}}": f"max by (phase) (tide_job_eta_seconds{_JOB})"}),
            Panel("Optimiser step", "short", {"step": f"max(tide_job_step{_JOB})"}),
            _graph_of(figures.LEARNING_RATE, "rate", unit="sci"),
            Panel(
                "Time of the teacher's answers",
                _UNITS[figures.TEACHER_COMPUTE_SECONDS.unit],
                {
                    "longest queue": _newest(figures.TEACHER_QUEUE_SECONDS),
                    "compute": _newest(figures.TEACHER_COMPUTE_SECONDS),
                },
            ),
            Panel(
                "Score cache hits, and the mass that top-k leaves out",
                _UNITS[figures.TEACHER_CACHE_HIT_RATIO.unit],
                {
                    "cache hits": _newest(figures.TEACHER_CACHE_HIT_RATIO),
                    "tail at temperature {{temperature}}": _newest(figures.TEACHER_TAIL_MASS),
                },
            ),
            Panel(
                "Age of the running phase and of its last report",
                "s",
                {
                    "{{phase}}": f"max by (phase) (tide_job_phase_age_seconds{_JOB})",
                    "{{phase}}, last report": f"max by (phase) (tide_job_report_age_seconds{_JOB})",
                },
            ),
            _graph_of(figures.TEACHER_BYTES, "a step"),
        ),
        variable=("job_id", "label_values(tide_job_attempt, job_id)"),
    ),
    "teachers": Page(
        "Tide / Teacher pools",
        (
            Panel("Pools by state", "short", {"{{state}}": "max by (state) (tide_teachers)"}),
            Panel(
                "Ready replicas",
                "short",
                {"{{application}}": f"max by (application) (tide_teacher_ready_replicas{_POOL})"},
            ),
            Panel("Leases", "short", {"leases": "max(tide_teacher_leases)"}),
            Panel(
                "Share of the step time that waits for the teacher",
                "percentunit",
                {"{{job_id}}": "job:tide_teacher_wait:ratio"},
                red_above=0.3,
            ),
            Panel(
                "Time in the queue",
                "s",
                {
                    "{{application}} median": "histogram_quantile(0.5, sum by (le, application)"
                    f" (rate(tide_teacher_queue_delay_seconds_bucket{_POOL}[5m])))",
                    "{{application}} 95 %": "histogram_quantile(0.95, sum by (le, application)"
                    f" (rate(tide_teacher_queue_delay_seconds_bucket{_POOL}[5m])))",
                },
                red_above=1,
            ),
            Panel(
                "Queued tokens",
                "short",
                {"{{application}}": f"sum by (application) (tide_teacher_queued_tokens{_POOL})"},
            ),
            Panel(
                "Tokens per second",
                "short",
                {
                    "{{application}} {{kind}}": "sum by (application, kind)"
                    f" (rate(tide_teacher_tokens_total{_POOL}[5m]))"
                },
            ),
            Panel(
                "Tokens per second by job",
                "short",
                {"{{job_id}}": f"sum by (job_id) (tide_teacher_job_tokens_per_second{_POOL})"},
            ),
            Panel(
                "Share of the pool by job",
                "percentunit",
                {
                    "{{application}} {{job_id}}": "sum by (application, job_id)"
                    f" (tide_teacher_job_tokens_per_second{_POOL}) / on (application) group_left"
                    f" sum by (application) (tide_teacher_job_tokens_per_second{_POOL})"
                },
            ),
            Panel(
                "Batch occupancy and busy time",
                "percentunit",
                {
                    "{{application}} batch": "sum by (application)"
                    f" (rate(tide_teacher_batch_occupancy_ratio_sum{_POOL}[5m])) / sum by (application)"
                    f" (rate(tide_teacher_batch_occupancy_ratio_count{_POOL}[5m]))",
                    "{{application}} busy": "avg by (application)"
                    f" (rate(tide_teacher_compute_seconds_total{_POOL}[5m]))",
                },
            ),
            Panel(
                "Requests",
                "reqps",
                {
                    "{{application}} {{outcome}}": "sum by (application, outcome)"
                    f" (rate(tide_teacher_requests_total{_POOL}[5m]))"
                },
            ),
            Panel(
                "Queued jobs",
                "short",
                {"{{application}}": f"max by (application) (tide_teacher_queued_jobs{_POOL})"},
            ),
            Panel(
                "Sound replicas and attestations per hour",
                "short",
                {
                    "{{application}} sound": f"sum by (application) (tide_teacher_is_sound{_POOL})",
                    "{{application}} {{result}} rounds an hour": "sum by (application, result)"
                    f" (rate(tide_teacher_attestations_total{_POOL}[1h]) * 3600)",
                },
            ),
            Panel(
                "Memory of the largest replica",
                "bytes",
                {
                    "{{application}} {{kind}}": "max by (application, kind)"
                    f" (tide_teacher_memory_bytes{_POOL})"
                },
            ),
        ),
        variable=("application", "label_values(tide_teacher_ready_replicas, application)"),
    ),
    "control-plane": Page(
        "Tide / Control plane",
        (
            Panel(
                "Requests",
                "reqps",
                {"{{route}} {{status}}": "sum by (route, status) (rate(tide_http_requests_total[5m]))"},
            ),
            Panel(
                "Request latency (p95)",
                "s",
                {"{{route}}": "route:tide_http_request_duration_seconds:p95_5m"},
                red_above=1,
            ),
            Panel(
                "Request error rate",
                "percentunit",
                {
                    "share": 'sum(rate(tide_http_requests_total{status=~"5.."}[5m]))'
                    " / sum(rate(tide_http_requests_total[5m]))"
                },
                red_above=0.05,
                absent="no request failed",
            ),
            Panel("Leaders", "short", {"leaders": "sum(tide_reconciler_is_leader)"}),
            Panel(
                "Time since the reconciler's last look",
                "s",
                {"{{instance}}": "max by (instance) (tide_reconciler_look_age_seconds)"},
                red_above=120,
            ),
            Panel(
                "Database connections",
                "short",
                {
                    "{{instance}} {{state}}": "max by (instance, state) (tide_database_connections)",
                    "{{instance}} limit": "max by (instance) (tide_database_connections_limit)",
                },
            ),
            Panel(
                "Reports stored", "reqps", {"{{type}}": "sum by (type) (rate(tide_reports_stored_total[5m]))"}
            ),
            Panel(
                "Duration of the reconciler's looks (p95)",
                "s",
                {
                    "{{instance}}": "histogram_quantile(0.95, sum by (le, instance)"
                    " (rate(tide_reconciler_look_duration_seconds_bucket[5m])))"
                },
                red_above=10,
            ),
            Panel(
                "Reconciler actions",
                "short",
                {"{{action}}": "sum by (action) (increase(tide_reconciler_actions_total[5m]))"},
            ),
            Panel(
                "Time left on the leader's lease",
                "s",
                {"{{role}}": "max by (role) (tide_leader_lease_remaining_seconds)"},
            ),
            Panel(
                "Fencing number of the leader",
                "short",
                {"{{role}}": "max by (role) (tide_leader_lease_fencing)"},
            ),
            Panel(
                "Requests refused because of their token",
                "reqps",
                {"{{code}}": "sum by (code) (rate(tide_authentication_failures_total[5m]))"},
            ),
        ),
    ),
}


def queries() -> dict[str, str | None]:
    """Every query of every panel, and why it has no data in a run without trouble (None: it has data)."""
    return {
        query: panel.absent
        for page in PAGES.values()
        for panel in page.panels
        for query in panel.queries.values()
    }


def with_variables(query: str, job_id: str, application: str) -> str:
    """A query as Grafana sends it after a job and a pool are chosen."""
    return query.replace("$job_id", job_id).replace("$application", application)


def document(name: str) -> str:
    """A dashboard's JSON."""
    page = PAGES[name]
    builder = (
        dashboard.Dashboard(page.title)
        .uid(f"tide-{name}")
        .tags(["tide"])
        .refresh("30s")
        .time("now-3h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(
            dashboard.TextBoxVariable("tide_url")
            .label("Tide's address")
            .default_value("http://127.0.0.1:8700")
        )
    )
    if page.variable is not None:
        variable, query = page.variable
        chosen = (
            dashboard.QueryVariable(variable)
            .datasource(_SOURCE)
            .query(query)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        )
        builder = builder.with_variable(chosen.sort(VariableSort.ALPHABETICAL_ASC))
    for number, panel in enumerate(page.panels):
        row, column = divmod(number, _PANELS_A_ROW)
        builder = builder.with_panel(_graph(panel, row * _HEIGHT, column * _WIDTH))
    return JSONEncoder(sort_keys=True, indent=2).encode(builder.build()) + "\n"


def _graph(panel: Panel, top: int, left: int) -> timeseries.Panel:
    graph = (
        timeseries.Panel()
        .title(panel.title)
        .unit(panel.unit)
        .min(0)
        .datasource(_SOURCE)
        .grid_pos(GridPos(h=_HEIGHT, w=_WIDTH, x=left, y=top))
    )
    for legend, query in panel.queries.items():
        graph = graph.with_target(prometheus.Dataquery().expr(query).legend_format(legend))
    if panel.red_above is not None:
        steps = [Threshold(color="green", value=None), Threshold(color="red", value=panel.red_above)]
        limits = dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
        graph = graph.thresholds(limits).thresholds_style(common.GraphThresholdsStyleConfig().mode(_LINE))
    if panel.job is not None:
        job = f"${{tide_url}}/v1/jobs/{panel.job}"
        graph = graph.data_links(
            [
                dashboard.DashboardLink("Job").url(job),
                dashboard.DashboardLink("Log of the job").url(f"{job}/logs"),
            ]
        )
    return graph
