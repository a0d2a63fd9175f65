"""experiment=tune: trials are ordinary runs, and a search that was cut goes on as if it was not."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from command_line import ON_LOG, ROOT, Outcome, invoke, run_folders, write_log

from recblr.report.__main__ import main as report_command
from recblr.run_folder import RunFolder
from recblr.training.callbacks import EpochRecord

optuna = pytest.importorskip("optuna", reason="pip install -e .[tune]")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*num_workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*log_every_n_steps.*"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
]

TRIALS = 4
SEARCH = (
    "experiment=tune", "model=gru4rec", *ON_LOG, "batch_size=64",
    "search.recipes=conf/recipe/tuned", f"search.trials={TRIALS}", "search.epochs=3",
    "search.warmup_epochs=1", "search.space.batch_size=[128]", "search.space.lr=[1e-5,0.01]",
    "~search.space.weight_decay",
)  # fmt: skip
RECIPE = "conf/recipe/tuned/custom/gru4rec.yaml"


class Cut(BaseException):
    """Ends a search where it is raised, as a signal would."""


def journal(cwd: Path) -> Path:
    (file,) = cwd.rglob("search-*.journal")
    return file


def trials(cwd: Path) -> list[tuple]:
    """What was asked and told, in order, of the trials that ended."""
    file = str(journal(cwd))
    lock = optuna.storages.journal.JournalFileOpenLock(file)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(file, lock))
    study = optuna.load_study(study_name=journal(cwd).stem, storage=storage)
    return [
        (t.params, t.state.name, t.value, t.intermediate_values)
        for t in study.trials
        if t.state.is_finished() and t.state.name != "FAIL"
    ]


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> tuple[Path, Outcome]:
    torch.set_num_threads(1)  # as in every test: sums depend on it
    cwd = tmp_path_factory.mktemp("search")
    write_log(cwd / "log.inter")
    outcome = invoke("train", *SEARCH, cwd=cwd)
    assert outcome.code == 0, outcome.err
    return cwd, outcome


def test_the_budget_is_kept_and_the_first_trial_is_the_recipes_own(searched):
    cwd, outcome = searched
    made = trials(cwd)
    own = {"dropout": 0.2, "lr": 0.001, "batch_size": 64}
    assert len(made) == TRIALS and made[0][0] == own
    assert {params["lr"] for params, *_ in made} <= {1e-5, 0.001, 0.01}
    assert len({str(params) for params, *_ in made}) == TRIALS
    assert max(max(epochs) for *_, epochs in made) == 3
    assert f"trial {TRIALS} of {TRIALS}" in outcome.out


def test_no_trial_has_a_test_metric(searched):
    cwd, _ = searched
    assert not list(cwd.rglob("test_metrics.json")) and not list(cwd.rglob("test_ranks.parquet"))
    assert all(not RunFolder(f).read_config()["test"] for f in run_folders(cwd / "runs"))


def test_a_trial_is_the_run_of_its_own_command(searched):
    cwd, _ = searched
    folders = [f for f in run_folders(cwd / "runs") if RunFolder(f).finished()]
    command = RunFolder(folders[0]).read_json("environment.json")["command"]
    keys = [word.split("=")[0] for word in shlex.split(command)[2:]]
    assert len(keys) == len(set(keys)) and not {"experiment", "search.trials"} & set(keys)
    outcome = invoke("train", *shlex.split(command)[2:], cwd=cwd)
    assert outcome.code == 0 and "finished before" in outcome.out
    assert str(folders[0].relative_to(cwd)) in outcome.out.replace("\n", "")


def test_a_trial_behind_the_median_is_pruned_and_status_says_so(searched, capsys):
    cwd, _ = searched
    pruned = [epochs for _, state, _, epochs in trials(cwd) if state == "PRUNED"]
    assert pruned and all(len(epochs) < 3 for epochs in pruned)
    report_command(["status", str(cwd / "runs")])
    out = capsys.readouterr().out
    assert f"{len(pruned)} pruned" in out and f"{TRIALS - len(pruned)} finished" in out
    assert "0 failed" in out


def test_the_best_is_written_with_its_budget_and_used_as_a_recipe(searched, tmp_path):
    cwd, outcome = searched
    text = (cwd / RECIPE).read_text()
    best = max((t for t in trials(cwd) if t[1] == "COMPLETE"), key=lambda t: t[2])
    recipe = yaml.safe_load(text)
    assert {key: recipe[key] for key in best[0]} == best[0]
    assert recipe["repeat_bias"] is False  # what is not searched is kept, too
    whole = sum(t[1] == "COMPLETE" for t in trials(cwd))
    for said in (
        f"NDCG@10 {best[2]:.4f}, the best of {TRIALS} trials\n# ({whole} to their end)",
        "of at most 3 epochs",
        "# Commit ",
    ):
        assert said in text
    assert "recipe=tuned/custom/gru4rec" in outcome.out.replace("\n", "")
    used = ("model=gru4rec", *ON_LOG, "trainer=smoke", "recipe=tuned/custom/gru4rec",
            f"hydra.searchpath=[file://{cwd}/conf]", f"paths.runs={tmp_path}")  # fmt: skip
    assert invoke("train", *used, cwd=cwd).code == 0
    config = RunFolder(run_folders(tmp_path)[0]).read_config()
    assert {key: config[key] for key in recipe} == recipe and config["recipe"] == "tuned"
    wrong = invoke("train", *used, "model=sasrec", cwd=cwd)
    assert (
        wrong.code == 1
        and "its values are those of custom/gru4rec, this run is custom/sasrec" in wrong.err
    )


def test_the_same_command_again_trains_nothing(searched, monkeypatch):
    cwd, _ = searched
    made = trials(cwd)
    monkeypatch.setattr(EpochRecord, "on_train_epoch_start", lambda *a: pytest.fail("it trains"))
    assert invoke("train", *SEARCH, cwd=cwd).code == 0
    assert trials(cwd) == made


@pytest.mark.parametrize("call", [10, 40])
def test_a_search_cut_anywhere_ends_as_the_undisturbed_one(searched, tmp_path, monkeypatch, call):
    write_log(tmp_path / "log.inter")
    original, calls = EpochRecord.on_train_batch_end, []

    def counted(*arguments):
        calls.append(0)
        if len(calls) == call:
            raise Cut
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(EpochRecord, "on_train_batch_end", counted)
        with pytest.raises(Cut):
            invoke("train", *SEARCH, cwd=tmp_path)
    assert len(trials(tmp_path)) < TRIALS
    with journal(tmp_path).open("ab") as file:  # the power failed in the middle of a line
        file.write(b'{"op_code":')
    Path(f"{journal(tmp_path)}.lock").touch()  # that a killed process held
    outcome = invoke("train", *SEARCH, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert trials(tmp_path) == trials(searched[0])
    assert len(run_folders(tmp_path / "runs")) == len(run_folders(searched[0] / "runs"))


def test_a_setting_that_diverges_is_given_up_and_the_search_goes_on(tmp_path):
    write_log(tmp_path / "log.inter")
    outcome = invoke(
        "train", *SEARCH, "search.space.lr=[1e30]", "search.trials=3", "search.epochs=2",
        cwd=tmp_path,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert {(params["lr"], state) for params, state, *_ in trials(tmp_path)} == {
        (0.001, "COMPLETE"), (1e30, "PRUNED")
    }  # fmt: skip
    assert yaml.safe_load((tmp_path / RECIPE).read_text())["lr"] == 0.001


@pytest.mark.parametrize(
    "changes, message",
    [
        (["test=true"], "test=true: a search must not see a test metric"),
        (["search.trials=0"], "search.trials=0: must be 1 or more"),
        (["search.space.dropout=0.2"], r"search.space.dropout=0.2: must be a list, as [0.1,0.2]"),
        (["search.space.dropout=[0.2,1.5]"], "dropout=1.5"),
        (["+search.space.d_model=[8]"], "search.space.d_model: not in a recipe; valid: dropout"),
        (["model=markov"], "markov is counted, it has no settings"),
        (["model=fpmc", "~search.space.lr", "~search.space.batch_size"], "fpmc reads none of it"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_trained(tmp_path, changes, message):
    write_log(tmp_path / "log.inter")
    base = [word for word in SEARCH if word != "batch_size=64"]
    outcome = invoke("train", *base, *changes, cwd=tmp_path)
    assert outcome.code == 1 and message in outcome.err
    assert not (tmp_path / "runs").exists()


def test_a_key_that_the_model_does_not_read_is_left_out(tmp_path):
    write_log(tmp_path / "log.inter")
    changes = ("model=fpmc", "search.trials=1", "search.epochs=1")
    outcome = invoke("train", *SEARCH, *changes, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "search.space.dropout: fpmc does not read it" in outcome.out
    assert trials(tmp_path)[0][0].keys() == {"lr", "batch_size"}


def test_a_smoke_search_writes_no_recipe(tmp_path):
    write_log(tmp_path / "log.inter")
    outcome = invoke("train", *SEARCH, "trainer=smoke", "search.trials=1", cwd=tmp_path)
    assert outcome.code == 0 and "a smoke search writes no recipe" in outcome.out
    assert not (tmp_path / "conf").exists()


def test_missing_optuna_is_one_line_that_says_what_to_install(tmp_path, monkeypatch):
    write_log(tmp_path / "log.inter")
    monkeypatch.delitem(sys.modules, "recblr.training.search")
    monkeypatch.setitem(sys.modules, "optuna", None)
    outcome = invoke("train", *SEARCH, cwd=tmp_path)
    assert outcome.code == 1
    assert outcome.err == "error: experiment=tune needs Optuna: pip install -e .[tune]\n"


@pytest.mark.slow
def test_a_search_that_was_killed_ends_as_the_undisturbed_one(searched, tmp_path):
    write_log(tmp_path / "log.inter")
    command = [sys.executable, str(ROOT / "train.py"), *SEARCH]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, **quiet)
    while not list(tmp_path.rglob("search-*.journal")) or not trials(tmp_path):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(trials(tmp_path)) < TRIALS
    assert subprocess.run(command, cwd=tmp_path, env=environment, **quiet).returncode == 0
    assert trials(tmp_path) == trials(searched[0])
