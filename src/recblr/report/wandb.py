"""A project's workspace on W&B, made from code: `python -m recblr.report wandb --project P`.

Its panels show the keys that a run of train.py logs: rows of epochs, test metrics, config.
"""

from __future__ import annotations

import json
import sys
from typing import Any

NDCG = "test/ndcg@10"


def workspace(project: str, entity: str = "", data: str | None = None) -> Any:
    """The comparison panels, over all runs or over those on one data set, whose names begin so."""
    try:
        import wandb_workspaces.reports.v2.interface as wr
        import wandb_workspaces.workspaces as ws
    except ImportError:
        raise ValueError("this needs wandb-workspaces: pip install -e .[wandb]") from None

    accuracy, columns = wr.SummaryMetric(NDCG), ("dropout", "model.expansion")
    panels = [
        wr.LinePlot(title="Validation NDCG@10 by epoch", x="epoch", y=["val/ndcg@10"]),
        wr.LinePlot(title="Validation NDCG@10 by seconds", x="_runtime", y=["val/ndcg@10"]),
        wr.ScatterPlot(
            title="Test NDCG@10 against seconds", x=wr.SummaryMetric("_runtime"), y=accuracy
        ),
        wr.BarPlot(title="Models and ablations", metrics=[NDCG], groupby="JobType"),
        wr.ParallelCoordinatesPlot(
            title="Dropout and expansion",
            columns=[
                *(wr.ParallelCoordinatesPlotColumn(metric=wr.Config(name)) for name in columns),
                wr.ParallelCoordinatesPlotColumn(metric=accuracy),
            ],
        ),
        wr.BarPlot(
            title="Targets per second by scan",
            metrics=["train/targets_per_s"],
            groupby=wr.Config("model.scan"),
        ),
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=" ".join(filter(None, ["RecBLR Lab", data])),
        sections=[ws.Section(name="Comparison", panels=panels, is_open=True)],
        settings=ws.WorkspaceSettings(max_runs=100),
        runset_settings=ws.RunsetSettings(query=f"^{data}/" if data else "", regex_query=True),
    )


def definition(workspace: Any) -> dict[str, Any]:
    """What would be uploaded, as plain containers."""
    return workspace._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)


def publish(project: str, entity: str | None, data: str | None, dry_run: bool) -> None:
    """Save the workspace on W&B, or print its definition: dry_run, or nobody is logged in."""
    if dry_run or not _logged_in():
        print(json.dumps(definition(workspace(project, entity or "", data)), indent=2))
        if not dry_run:
            print("not logged in (`wandb login`): printed, not uploaded", file=sys.stderr)
        return
    import wandb
    from wandb.errors import Error

    try:
        saved = workspace(project, entity or wandb.Api().default_entity or "", data).save()
    except Error as error:
        raise ValueError(f"W&B: {' '.join(str(error).split())}") from None
    print(f"saved: {saved.url}")


def _logged_in() -> bool:
    import wandb
    from wandb.errors import AuthenticationError

    try:
        return wandb.login(prompt=False)
    except AuthenticationError:
        return False
