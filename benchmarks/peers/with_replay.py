"""RePlay's SASRec: its own Parquet module, transforms, Lightning module.

Its `LengthBucketedQueryEncoder`, off unless built by hand, is left off.
Its transforms make a user's first event a target too, after padding alone: it counts as one.
"""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path

import lightning
import pyarrow as pa
import pyarrow.parquet as pq
from clock import Clock, Job, rows_per_step, run
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import ParquetModule, TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.nn.lightning import LightningModule
from replay.nn.sequential import SasRec
from replay.nn.transform.template import make_default_sasrec_transforms


def main(job: Job) -> None:
    clock, targets = Clock(job), job.window_targets(first=0)
    rows = rows_per_step(job, targets)
    path = Path(job.folder, "histories.parquet")
    write_histories(job, path)
    n_items = int(job.events("all")[0].max())
    schema = TensorSchema(
        TensorFeatureInfo(
            "item_id",
            is_seq=True,
            feature_type=FeatureType.CATEGORICAL,
            embedding_dim=job.d_model,
            padding_value=n_items,
            cardinality=n_items,
            feature_hint=FeatureHint.ITEM_ID,
            feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")],
        )
    )
    warnings.simplefilter("ignore")  # no data but for training; how parts fit batches
    data = ParquetModule(
        batch_size=rows,
        metadata={"train": {"item_id": {"shape": job.max_length + 1, "padding": n_items}}},
        transforms=make_default_sasrec_transforms(schema),
        train_path=str(path),
    )
    model = SasRec.from_params(
        schema,
        embedding_dim=job.d_model,
        num_blocks=job.n_layers,
        max_sequence_length=job.max_length,
        dropout=job.dropout,
    )
    stop = clock.callback(lightning.Callback, lambda batch: batch["target_padding_mask"].sum())
    lightning.Trainer(
        max_epochs=-1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[stop],
    ).fit(LightningModule(model), datamodule=data)
    clock.report(
        targets.sum(),
        rows,
        n_items,
        *("replay-rec", "torch", "lightning", "numpy"),
    )


def write_histories(job: Job, path: Path) -> None:
    """One row per user with a target: its last events, as ids from 0."""
    items, offsets = job.events("training")
    histories = [
        items[max(start, stop - job.max_length - 1) : stop].astype("int64") - 1
        for start, stop in pairwise(offsets)
        if stop - start > 1
    ]
    pq.write_table(pa.table({"item_id": histories}), path)


if __name__ == "__main__":
    run(main)
