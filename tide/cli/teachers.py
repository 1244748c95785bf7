"""`tide teachers`: the pools and who uses them."""

from __future__ import annotations

from typing import Any

from tide.cli.failures import clear_errors
from tide.cli.options import Output, OutputOption, UrlOption


def list_teachers(url: UrlOption = None, output: OutputOption = Output.TABLE) -> None:
    """List teacher pools and the jobs that use them."""
    with clear_errors(output):
        from tide.cli.client import ControlPlane
        from tide.cli.output import age, print_json, print_table

        with ControlPlane(url) as control:
            pools = control.get("/v1/teachers")["data"]
        if output is Output.JSON:
            print_json(pools)
            return
        rows = [
            [
                pool["id"],
                pool["status"],
                f"{pool['ready_replicas']}/{wanted_replicas(pool)}",
                ",".join(lease["job_id"] for lease in pool["leases"]) or "-",
                pool["teacher"]["model"],
                age(pool["last_used_at"]),
            ]
            for pool in pools
        ]
        titles = ["ID", "STATUS", "READY", "LEASED BY", "MODEL", "LAST USED"]
        print_table(titles, rows, when_empty="There are no teachers yet: a job brings its own up.")


def wanted_replicas(pool: dict[str, Any]) -> str:
    """How many replicas a pool is to have: a number, or the bounds of one that grows."""
    least, most = pool["replicas"], pool["max_replicas"]
    return f"{least}" if most <= least else f"{least}-{most}"
