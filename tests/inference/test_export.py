import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from batches import batch_of, random_sequences
from made_up_model import LONGEST, V, checkpoint, made_up
from torch.utils._pytree import tree_leaves

from recblr.inference import export as module
from recblr.inference.__main__ import main
from recblr.inference.export import export, missing_packages
from recblr.models.base import block_scorer

pytestmark = pytest.mark.skipif(
    bool(missing_packages()), reason="needs pip install 'recblr[serving]'"
)
NO_ITEMS = "has a repeat bias: its state does not hold the items that it is for"
LENGTHS = [1, 9, LONGEST + 10, 2]  # a longer one than `recommend` sees
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import numpy as np, onnxruntime
arrays = dict(np.load(sys.argv[1]))
run = lambda name, given: onnxruntime.InferenceSession(f"{sys.argv[2]}/{name}").run(None, given)
lengths = arrays["lengths"]
found = run("full.onnx", {"items": arrays["items"], "lengths": lengths})
last = arrays["items"][np.arange(len(lengths)), lengths - 1]
shorter = run("full.onnx", {"items": arrays["items"], "lengths": lengths - 1})
states = {f"state_{n}": state for n, state in enumerate(shorter[2:])}
step = run("step.onnx", {"items": last} | states)
np.savez(sys.argv[3], **{f"full_{n}": a for n, a in enumerate(found)},
         **{f"step_{n}": a for n, a in enumerate(step)}, none=run("full.onnx", {
             "items": np.zeros((2, 1), np.int64), "lengths": np.zeros(2, np.int64)})[0])
"""


def expected(rec, sequences):
    """Representations, scores of all items and the parts of the state."""
    states = []
    with torch.no_grad():
        for sequence in sequences:
            state = rec.model.init_state(1)
            for item in sequence:
                _, state = rec.model.step(torch.tensor([item]), state)
            states.append(tree_leaves(state))
        batch = batch_of(sequences)
        scores = block_scorer(rec.model, batch)(1, V + 1)
        return rec.model.represent(batch), scores, list(zip(*states))


@pytest.mark.parametrize(
    "name, changes",
    [
        ("recblr", {}),
        pytest.param("recblr", {"released": True, "max_length": 50}, marks=pytest.mark.slow),
        pytest.param("recblr", {"bd_lru_only": True, "pffn": False}, marks=pytest.mark.slow),
        pytest.param("gru4rec", {"n_layers": 2}, marks=pytest.mark.slow),
        pytest.param("lrurec", {}, marks=pytest.mark.slow),
        pytest.param("lrurec", {"direct_conv": 3}, marks=pytest.mark.slow),
        pytest.param("recblr", {"direct_conv": 3, "recurrence": False}, marks=pytest.mark.slow),
    ],
)
def test_full_pass_and_step_run_without_torch_and_are_its_results(name, changes, tmp_path):
    rec = made_up(name, **changes)
    names = ["model.safetensors", "item_ids.json", "step.onnx", "full.onnx"]
    assert [path.name for path in export(rec, tmp_path / "exported")] == names
    sequences = random_sequences(LENGTHS, V)
    items = np.zeros((len(LENGTHS), max(LENGTHS)), np.int64)
    for row, sequence in zip(items, sequences):
        row[: len(sequence)] = sequence
    np.savez(tmp_path / "in.npz", items=items, lengths=np.array(LENGTHS))
    files = [str(tmp_path / file) for file in ("in.npz", "exported", "out.npz")]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *files], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    found = np.load(files[2])

    representation, scores, states = expected(rec, sequences)
    for which in ("full", "step"):
        got = [found[f"{which}_{number}"] for number in range(2 + len(states))]
        assert_close(got[0], representation)
        assert_close(got[1][:, 1:], scores)
        assert (got[1][:, 0] == -np.inf).all()
        for part, of_users in zip(got[2:], states):
            one = of_users[0]
            dim = next(d for d, size in enumerate(part.shape) if size != one.shape[d])
            assert_close(part, torch.cat(of_users, dim))
    assert (found["none"] == 0).all()


def assert_close(got, exact):
    largest = np.abs(exact.numpy()).max(initial=0)
    np.testing.assert_allclose(got, exact.numpy(), rtol=0, atol=1e-5 * largest)


def test_weights_and_ids_are_files_that_others_read(tmp_path):
    from safetensors import safe_open

    rec = made_up("sasrec")
    assert len(export(rec, tmp_path)) == 2
    with safe_open(tmp_path / "model.safetensors", "numpy") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert json.loads(file.metadata()["config"]) == rec.about["config"]
    for name, weight in rec.model.state_dict().items():
        assert (weights[name] == weight.numpy()).all()
    assert json.loads((tmp_path / "item_ids.json").read_text()) == rec.about["item_ids"]


@pytest.mark.parametrize(
    "name, changes, why",
    [
        ("sasrec", {}, "has no step()"),
        ("fpmc", {}, "starts from a vector of the user"),
        ("recblr", {"repeat_bias": True}, NO_ITEMS),
    ],
)
def test_a_model_that_onnx_cannot_hold_is_exported_without(name, changes, why, tmp_path, capsys):
    run = str(checkpoint(made_up(name, **changes), tmp_path, **changes))
    main(["export", run, "--out", str(tmp_path / "exported")])
    names = {path.name for path in (tmp_path / "exported").iterdir()}
    users = {"user_ids.json"} if name == "fpmc" else set()
    assert names == {"model.safetensors", "item_ids.json"} | users
    modes = {path.stat().st_mode for path in (tmp_path / "exported").iterdir()}
    assert len(modes) == 1
    assert f"\n{name} {why}: no ONNX\n" in capsys.readouterr().out


def test_a_run_of_a_scan_that_only_a_gpu_has_is_exported(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("recblr.inference.__main__.export", lambda rec, folder: [folder / "made"])
    run = str(checkpoint(made_up(), tmp_path, scan="fused"))
    main(["export", run, "--out", "exported"])
    assert capsys.readouterr().out == "written: exported/made\n"


def test_an_export_that_fails_leaves_the_log_level(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no graph")

    logger = logging.getLogger("torch.onnx")
    level = logger.level
    monkeypatch.setattr(module.torch.onnx, "export", fail)
    with pytest.raises(RuntimeError, match="no graph"):
        module.step_graph(made_up().model)
    assert logger.level == level != logging.ERROR


def test_a_package_that_is_missing_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(module, "PACKAGES", ("numpy", "no_such_onnx"))
    with pytest.raises(ValueError, match=r"no_such_onnx: not installed; pip install 'recblr\["):
        export(made_up(), tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
    with pytest.raises(SystemExit, match=r"^error: ckpt_path=absent: no such file$"):
        main(["export", "absent", "--out", str(tmp_path)])
