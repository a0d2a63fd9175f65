"""A model of somebody else: one file and one YAML, outside the package."""

import os

from command_line import SMOKE, run_folders, spawn, write_log

from recblr.run_folder import RunFolder

MODEL = """
import torch
from torch import nn


class MeanOfItems(nn.Module):
    causal = True

    def __init__(self, n_items: int, d_model: int = 8):
        super().__init__()
        self.embedding = nn.Embedding(n_items + 1, d_model)

    def item_matrix(self):
        return self.embedding.weight

    def encode(self, batch):
        total = self.embedding(batch.items).cumsum(0)
        start = batch.cu_seqlens[:-1].repeat_interleave(batch.lengths)
        before = torch.cat([total.new_zeros(1, total.shape[1]), total])[start]
        place = torch.arange(len(total), device=total.device) - start
        return (total - before) / (place + 1)[:, None]

    def represent(self, batch):
        return self.encode(batch)[batch.last]
"""
YAML = "_target_: somebody.mean.MeanOfItems\nd_model: 4\n"


def test_it_trains_and_evaluates_with_one_file_and_one_yaml(tmp_path):
    write_log(tmp_path / "log.inter")
    for path, text in (("somebody/mean.py", MODEL), ("conf/model/mean.yaml", YAML)):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    arguments = ("model=mean", f"hydra.searchpath=[file://{tmp_path}/conf]", "model.d_model=6")
    done = spawn("train", *SMOKE, *arguments, cwd=tmp_path, PYTHONPATH=path)
    assert done.code == 0, done.err
    run = RunFolder(run_folders(tmp_path / "runs")[0])
    assert run.read_json("test_metrics.json")["users"] == 60
    checkpoint = f"ckpt_path={run.path}/checkpoints/best.ckpt"
    again = spawn("evaluate", checkpoint, cwd=tmp_path, PYTHONPATH=path)
    assert again.code == 0, again.err
    wrong = spawn("train", *SMOKE, *arguments[:2], "model.depth=3", cwd=tmp_path, PYTHONPATH=path)
    assert wrong.code == 1 and "depth" in wrong.err and "d_model" in wrong.err
