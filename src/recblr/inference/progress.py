"""A bar over users while recommendations are written. Only on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from recblr.inference.recommender import Top


def counted(tops: Iterable[Top], total: int | None) -> Iterator[Top]:
    """The same batches; users so far, of `total` if known, and time left."""
    with Progress(
        BarColumn(),
        TextColumn("{task.completed:,.0f} users"),
        TimeRemainingColumn(elapsed_when_finished=False),
        transient=True,
        disable=not sys.stdout.isatty(),
    ) as progress:
        bar = progress.add_task("", total=total)
        for top in tops:
            yield top
            progress.advance(bar, len(top.user_ids))
