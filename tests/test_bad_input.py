"""What a user can get wrong: one line that names it and the way out, and nothing left behind."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
import torch
from command_line import SMOKE, Outcome, invoke, run_folders, spawn, write_log

from recblr.run_folder import RunFolder, model_name
from recblr.training.cli import CONF

ABSENT = ("data=custom", "data.path=absent.csv", "logger=csv")  # read only after all checks

# arguments -> what the line says
CONFIGURATION = [
    ("dropuot=0.3", "dropuot: no such key", "did you mean dropout?"),
    ("modle=recblr", "modle: no such key", "did you mean model?"),
    ("model.expantion=1", "model.expantion: no such key", "did you mean expansion?"),
    ("data.columns.users=uid", "data.columns.users: no such key", "did you mean user?"),
    ("paths.run=here", "paths.run: no such key", "did you mean runs?"),
    ("+foo=1", "foo: no such key", "valid: ", "dropout"),
    ("++foo=1", "foo: no such key", "valid: ", "dropout"),
    ("+model.extra=1", "model.extra: RecBLR has no such argument", "valid: ", "expansion"),
    ("+trainer.epochs=1", "trainer.epochs: Trainer has no such argument", "max_epochs"),
    (
        "model=recblrr",
        "model=recblrr: no such model",
        "lrurec, markov, narm, popularity, recblr, sasrec",
    ),
    ("data=movielens", "data=movielens: no such data", "ml-100k, ml-1m, steam"),
    ("recipe=papre", "recipe=papre: no such recipe", "amazon-beauty, amazon-sports"),
    ("recipe=best/amazon-beauty/recbrl", "did you mean best/amazon-beauty/recblr?"),
    ("recipe=tuned/ml-1m/narm", "experiment=tune of its model and data set makes it; "),
    ("model.dropout=0.3", "model.dropout=0.3: the key is dropout"),
    ("direct_conv=51", "direct_conv=51: wider than max_length=50 items"),
    ("recipe=best", "recipe=best: no such recipe", "best/amazon-beauty/recblr, "),
    ("trainer=fast", "trainer=fast: no such trainer", "default, smoke"),
    ("logger=tensorboard", "logger=tensorboard: no such logger", "csv, wandb"),
    ("objective=ce", "objective=ce: no such objective", "bpr, cloze, cross_entropy"),
    ("scan=quick", "scan='quick'", "auto, reference, serial, parallel_sp, parallel_ep, fused, cpu"),
    ("precision=half", "precision='half'", "32-true, bf16-mixed"),
    ("target_mode=all", "target_mode='all'", "all_positions, prefix"),
    ("model.lambda_init=zero", "model.lambda_init='zero'", "uniform, linspace, random"),
    ("data.format=csv", "data.format='csv'", "auto, sequences, inter, table"),
    ("data.order=time", "data.order='time'", "auto, exact, recbole_float32"),
    ("data.repeats=none", "data.repeats='none'", "keep, first, last"),
    ("dropout=abc", "dropout='abc'", "a number"),
    ("dropout=null", "dropout=None", "a number"),
    ("max_length=1.5", "max_length=1.5", "an integer"),
    ("seed=x", "seed='x'", "an integer"),
    ("lr=abc", "lr='abc'", "a number"),
    ("test=maybe", "test='maybe'", "true or false"),
    ("overwrite=maybe", "overwrite='maybe'", "true or false"),
    ("mask_history=maybe", "mask_history='maybe'", "true or false"),
    ("trainer.max_epochs=many", "trainer.max_epochs='many'", "an integer"),
    ("data.min_interactions=few", "data.min_interactions='few'", "an integer"),
    ("dropout=1.5", "dropout=1.5", "[0, 1)"),
    ("dropout=-0.1", "dropout=-0.1", "[0, 1)"),
    ("max_length=0", "max_length=0", "1 or more"),
    ("batch_size=0", "batch_size=0", "1 or more"),
    ("eval_batch_size=-1", "eval_batch_size=-1", "1 or more"),
    ("model.expansion=0", "model.expansion=0", "1 or more"),
    ("model.conv_width=0", "model.conv_width=0", "1 or more"),
    ("seed=-1", "seed=-1", "0..4294967295"),
    ("lr=-1", "lr=-1", "learning rate"),
    ("weight_decay=-1", "weight_decay=-1"),
    ("repeat_bias=2", "repeat_bias=2", "true or false"),
    ("recipe=best/amazon-beauty/recblr", "are those of amazon-beauty/recblr, this run is custom/"),
    ("trainer.max_epochs=0", "trainer.max_epochs=0", "1 or more"),
    ("trainer.devices=9", "trainer.devices=9", "only 1 works"),
    ("trainer.accelerator=abacus", "abacus"),
    ("datamodule.eval_users=0", "datamodule.eval_users=0", "1 or more"),
    ("data.min_interactions=-1", "data.min_interactions=-1", "0 or more"),
    ("paths.runs=null", "paths.runs=None", "text"),
    ("dropout", "dropout", "EQUAL"),
]

EMPTY_CORE = [f"u{user},i{item},{user + item}" for user in range(6) for item in range(4)]
HEADER = "user_id,item_id,timestamp"
FILES = {  # name -> content and what the line says
    "empty.csv": (b"", "the file is empty"),
    "blank.csv": (b"\r\n\n", "the file is empty"),
    "header.csv": (HEADER.encode(), "nothing below the header", HEADER),
    "columns.csv": (b"uid,sku,when\n1,2,3\n", "'user_id'", "uid, sku, when", "data.columns.user="),
    "time.csv": (f"{HEADER}\na,b,1\na,c,2\na,d,soon\n".encode(), "line 4", "'soon'", "ISO 8601"),
    "ragged.csv": (f"{HEADER}\na,b,1\na,c\n".encode(), "line 3", "2 fields, expected 3"),
    "id.csv": (f"{HEADER}\na,b,1\n,c,2\n".encode(), "line 3", "user id is empty"),
    "latin.csv": (f"{HEADER}\na,b,1\né,c,2\n".encode("latin-1"), "line 3", "UTF-8"),
    "core.csv": ("\n".join([HEADER, *EMPTY_CORE]).encode(), "data.min_interactions=5", "0 / 0 / 0"),
    "short.csv": (
        f"{HEADER}\na,b,1\na,c,2\n".encode(),
        "data.min_interactions=5",
        "nothing is left",
    ),
    "cut.csv.gz": (gzip.compress(HEADER.encode() * 50)[:40], "gz", "cut short"),
}


def refused(outcome: Outcome, *fragments: str) -> str:
    """Asserts that this is one error line that has all fragments."""
    assert outcome.code == 1, outcome.out
    assert outcome.err.count("\n") == 1 and outcome.err.startswith("error: "), outcome.err
    for fragment in fragments:
        assert fragment in outcome.err
    return outcome.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A finished run; its checkpoint is in checkpoints/best.ckpt."""
    cwd = tmp_path_factory.mktemp("finished")
    write_log(cwd / "log.inter")
    assert invoke("train", *SMOKE, cwd=cwd).code == 0
    return run_folders(cwd / "runs")[0]


@pytest.mark.parametrize("argument, fragments", [(row[0], row[1:]) for row in CONFIGURATION])
def test_wrong_configuration_is_refused_before_data_is_read(tmp_path, argument, fragments):
    error = refused(invoke("train", *ABSENT, argument, cwd=tmp_path), *fragments)
    assert "absent.csv" not in error
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["dropout=0.3", "lr=0.1", "scan=cpu", "max_length=9"])
def test_key_that_the_model_does_not_read_is_refused(tmp_path, key):
    error = refused(invoke("train", *ABSENT, "model=popularity", key, cwd=tmp_path), "Popularity")
    assert error.startswith(f"error: {key}: ")
    assert not any(tmp_path.iterdir())


def test_in_a_sweep_over_models_it_is_left_out_of_the_run(tmp_path):
    write_log(tmp_path / "log.inter")
    models = ("-m", "model=popularity,markov", "dropout=0.1,0.3")
    outcome = invoke("train", *models, *SMOKE, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "dropout=0.3: Popularity does not read dropout; this run is without it" in outcome.out
    assert ": Markov does not read dropout; " in outcome.out
    folders = run_folders(tmp_path / "runs")
    assert len(folders) == 2
    for folder in folders:
        about = json.loads((folder / "environment.json").read_text())
        assert "dropout" not in about["command"] and "also" not in about


def test_a_setting_that_one_model_of_a_sweep_reads_is_its_alone(tmp_path):
    write_log(tmp_path / "log.inter")
    recipes = tmp_path / "extra" / "recipe"
    recipes.mkdir(parents=True)
    shutil.copy(CONF / "recipe" / "ml-1m.yaml", recipes / "mine.yaml")
    models = ("-m", "model=recblr,narm", "direct_conv=2", "recipe=mine")
    search = f"hydra.searchpath=[file://{recipes.parent}]"
    outcome = invoke("train", *models, search, *SMOKE, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    configs = [RunFolder(folder).read_config() for folder in run_folders(tmp_path / "runs")]
    assert {model_name(one): one["direct_conv"] for one in configs} == {"recblr": 2, "narm": 0}
    assert {one["recipe"] for one in configs} == {"mine"}


def test_in_a_sweep_over_models_each_keeps_its_usual_settings(tmp_path):
    write_log(tmp_path / "log.inter")
    models = ("-m", "model=narm,gru4rec", "direct_conv=2", "recipe=usual/${model}")
    outcome = invoke("train", *models, *SMOKE, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    configs = [RunFolder(folder).read_config() for folder in run_folders(tmp_path / "runs")]
    assert {model_name(one): one["dropout"] for one in configs} == {"narm": 0.25, "gru4rec": 0.3}


@pytest.mark.parametrize("recipe, name", [("ml-1m", "ml-1m"), ("custom", "ours")])
def test_a_recipe_of_another_data_set_keeps_its_name(tmp_path, recipe, name):
    write_log(tmp_path / "log.inter")
    outcome = invoke("train", "model=markov", f"recipe={recipe}", *SMOKE, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    (folder,) = run_folders(tmp_path / "runs")
    assert RunFolder(folder).read_config()["recipe"] == name


def test_sweep_goes_on_after_a_bad_job_and_ends_with_its_error(tmp_path):
    write_log(tmp_path / "log.inter")
    arguments = ("-m", "data.min_interactions=90,5", "model=markov", "seed=1")
    outcome = invoke("train", *arguments, *SMOKE, cwd=tmp_path)
    assert outcome.code == 1 and "Traceback" not in outcome.err
    assert "this job failed: data.min_interactions=90: nothing is" in outcome.out
    first, *which = outcome.err.splitlines()
    assert first == "error: 1 of 2 runs failed:"
    assert which[0].strip().startswith("data.min_interactions=90 model=markov")
    assert ": data.min_interactions=90: nothing is" in which[0]
    (folder,) = run_folders(tmp_path / "runs")
    assert (folder / "README.md").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the Triton scans run here")
def test_a_sweep_says_which_scan_does_not_run_here_and_has_not_failed(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    write_log(tmp_path / "log.inter")
    outcome = invoke("train", "-m", "scan=fused,cpu", *SMOKE, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "1 of 2 runs need a scan that does not run here:\n  scan=fused " in outcome.out
    assert len(run_folders(tmp_path / "runs")) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="the Triton scans run here")
@pytest.mark.parametrize("scan", ["fused", "parallel_sp", "parallel_ep"])
def test_triton_scan_without_a_gpu_is_refused_before_data_is_read(tmp_path, monkeypatch, scan):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    outcome = invoke("train", *ABSENT, f"scan={scan}", cwd=tmp_path)
    refused(outcome, f"scan={scan} cannot run", "CUDA", "reference, serial, cpu, auto do")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "data, fragments",
    [
        ("custom", ("data.path is not set", "data.path=FILE")),
        ("xlong", ("data.path is not set", "tianchi.aliyun.com", "data.path=FILE")),
        ("yelp", ("data.path is not set", "Yelp's open data set", "data.path=FILE")),
    ],
)
def test_data_set_without_its_file_is_refused(tmp_path, data, fragments):
    refused(invoke("train", f"data={data}", "logger=csv", cwd=tmp_path), *fragments)
    assert not any(tmp_path.iterdir())


def test_missing_file_and_folder_are_refused(tmp_path):
    refused(invoke("train", *ABSENT, cwd=tmp_path), "data.path=", "absent.csv", "no such file")
    (tmp_path / "folder").mkdir()
    arguments = ("data=custom", "data.path=folder", "logger=csv")
    refused(invoke("train", *arguments, cwd=tmp_path), "data.path=", "the folder has no files")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("name", FILES)
def test_unreadable_file_is_refused(tmp_path, name):
    content, *fragments = FILES[name]
    (tmp_path / name).write_bytes(content)
    outcome = invoke("train", "data=custom", f"data.path={name}", "logger=csv", cwd=tmp_path)
    error = refused(outcome, *fragments)
    assert name in error or "data.min_interactions" in error
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_emptied_core_shows_the_counts_of_each_round(tmp_path):
    """Six users of five items, of which one is rare: its users fall, then everything does."""
    rows = [f"u{u},i{i if i < 4 else 10 + u // 4},{i}" for u in range(6) for i in range(5)]
    (tmp_path / "log.csv").write_text("\n".join([HEADER, *rows]))
    outcome = invoke("train", "data=custom", "data.path=log.csv", "logger=csv", cwd=tmp_path)
    refused(outcome, "after each round: 24 / 6 / 4; 0 / 0 / 0")


def test_evaluate_needs_a_checkpoint_of_ours(trained, tmp_path):
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.ckpt")
    torch.save(trained, tmp_path / "pickle.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    cut = (trained / "checkpoints" / "best.ckpt").read_bytes()[:5000]
    (tmp_path / "cut.ckpt").write_bytes(cut)
    for arguments, *fragments in (
        ((), "ckpt_path is not set", "--help"),
        (("ckpt_path=absent.ckpt",), "ckpt_path=absent.ckpt", "no such file"),
        (("ckpt_path=text.ckpt",), "ckpt_path=text.ckpt", "not a checkpoint"),
        (("ckpt_path=cut.ckpt",), "ckpt_path=cut.ckpt", "not a checkpoint"),
        (("ckpt_path=pickle.ckpt",), "ckpt_path=pickle.ckpt", "not a checkpoint"),
        (("ckpt_path=other.ckpt",), "ckpt_path=other.ckpt", "not a checkpoint of train.py"),
    ):
        refused(invoke("evaluate", *arguments, cwd=tmp_path), *fragments)
    assert len(list(tmp_path.iterdir())) == 4


def test_evaluate_refuses_the_log_of_another_run_and_wrong_values(trained, tmp_path):
    text = (trained.parents[3] / "log.inter").read_text()
    (tmp_path / "other.inter").write_text(text.replace("u3\t", "another\t"))
    checkpoint = f"ckpt_path={trained}/checkpoints/best.ckpt"
    before = {path.name for path in trained.iterdir()}
    for argument, *fragments in (
        ("data.path=other.inter", "trained on other data", "data.path"),
        ("data.path=absent.inter", "absent.inter", "no such file"),
        ("split=foo", "split='foo'", "val, test"),
        ("mask_history=maybe", "mask_history='maybe'", "true or false"),
        ("+seed=3", "seed: no such key", "valid: ", "ckpt_path"),
        ("splot=val", "splot: no such key", "did you mean split?"),
    ):
        refused(invoke("evaluate", checkpoint, argument, cwd=tmp_path), *fragments)
    assert {path.name for path in trained.iterdir()} == before


def test_evaluate_says_where_the_log_was_when_it_has_moved(trained, tmp_path):
    shutil.copytree(trained.parents[3], tmp_path / "copy")
    moved = tmp_path / "copy" / trained.relative_to(trained.parents[3])
    log = trained.parents[3] / "log.inter"
    log.rename(log.with_suffix(".away"))
    try:
        outcome = invoke("evaluate", f"ckpt_path={moved}/checkpoints/best.ckpt", cwd=tmp_path)
    finally:
        log.with_suffix(".away").rename(log)
    refused(outcome, "data.path=", str(log), "no such file")


@pytest.mark.parametrize(
    "entry, arguments, fragment",
    [
        ("train", ("modle=recblr",), "modle: no such key"),
        ("train", ABSENT, "absent.csv': no such file"),
        pytest.param("evaluate", ("ckpt_path=a.ckpt",), "no such file", marks=pytest.mark.slow),
    ],
)
def test_process_ends_with_code_1_and_one_line(tmp_path, entry, arguments, fragment):
    refused(spawn(entry, *arguments, cwd=tmp_path), fragment)
    assert not any(tmp_path.iterdir())


def test_traceback_is_there_for_those_who_ask(tmp_path):
    outcome = spawn("train", "modle=recblr", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert outcome.code == 1 and "Traceback" in outcome.err


def test_log_of_users_too_short_to_evaluate_is_refused_before_a_run_is_written(tmp_path):
    (tmp_path / "log.csv").write_text(f"{HEADER}\na,b,1\na,c,2\nd,b,1\nd,c,2\n")
    arguments = ("data=custom", "data.path=log.csv", "data.min_interactions=1", "logger=csv")
    outcome = invoke("train", *arguments, cwd=tmp_path)
    refused(outcome, "data=custom", "no user has 3 events")
    assert not (tmp_path / "runs").exists()
