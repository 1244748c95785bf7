"""`tide teachers`: the pools and who uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tide.cli.failures import clear_errors
from tide.cli.options import Output, OutputOption, UrlOption

if TYPE_CHECKING:
    from tide_core.contracts.resources import Teacher


def list_teachers(url: UrlOption = None, output: OutputOption = Output.TABLE) -> None:
    """List teacher pools and the jobs that use them."""
    with clear_errors(output):
        from tide.cli.opening import open_client
        from tide.cli.output import age, print_json, print_table

        with open_client(url) as client:
            pools = list(client.teachers.list())
        if output is Output.JSON:
            print_json(pools)
            return
        rows = [
            [
                pool.id,
                pool.status,
                f"{pool.ready_replicas}/{replica_bounds(pool)}",
                ",".join(lease.job_id for lease in pool.leases) or "-",
                pool.teacher.model,
                age(pool.last_used_at),
            ]
            for pool in pools
        ]
        titles = ["ID", "STATUS", "READY", "LEASED BY", "MODEL", "LAST USED"]
        print_table(titles, rows, when_empty="There are no teachers yet: a job brings its own up.")


def replica_bounds(pool: Teacher) -> str:
    """How many replicas a pool should have: a number, or the bounds of a pool that grows."""
    least, most = pool.replicas, pool.max_replicas
    return f"{least}" if most <= least else f"{least}-{most}"
