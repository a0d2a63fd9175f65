"""Every command of the README is run, on generated data and with trainer=smoke."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import invoke, run_folders, write_log
from made_up_runs import write_run

from recblr.data.__main__ import main as data_command
from recblr.inference.__main__ import main as inference_command
from recblr.report.__main__ import main as report_command

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CARDS = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
PYTHON = (".venv/bin/python", "python")
RUN = re.compile(r"runs/ml-100k/recblr/s2024-1a2b3c4d")


def commands() -> list[str]:
    """The command lines of the bash blocks of README and data cards, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", README + CARDS, flags=re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def kind(command: str) -> str:
    """What runs a command; each kind has its test below."""
    program, *arguments = shlex.split(command)
    if program == "make":
        return "make"
    assert program in PYTHON, f"README: nothing runs {command!r}"
    return arguments[1] if arguments[0] == "-m" else Path(arguments[0]).stem


def test_no_command_of_the_readme_is_skipped():
    found = {kind(command) for command in commands()}
    programs = {"make", "train", "evaluate", "recommend"}
    assert found == programs | {"recblr.data", "recblr.report", "recblr.inference"}
    assert len(commands()) >= 10
    outside_blocks = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    for inline in re.findall(r"`((?:make|python|\.venv/bin/python) [^`]+)`", outside_blocks):
        known = ("make setup TORCH_INDEX=", "make test-gpu PYTHON=", "make bench-gpu PYTHON=")
        assert inline.startswith(known), f"not in a block: {inline}"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with every file that the README's commands name, and one finished run."""
    cwd = tmp_path_factory.mktemp("readme")
    write_log(cwd / "log.inter")
    rows = [line.split("\t") for line in (cwd / "log.inter").read_text().splitlines()[1:]]
    sequences: dict[str, list[str]] = {}
    for user, item, *_ in sorted(rows, key=lambda row: int(row[-1])):
        sequences.setdefault(user.strip("u"), []).append(item.strip("i"))
    for name in re.findall(r"data\.path=(\S+)", "\n".join(commands())):
        if name.endswith(".inter"):
            shutil.copy(cwd / "log.inter", cwd / name)
        elif ".txt" in name:
            lines = (" ".join([user, *items]) for user, items in sequences.items())
            (cwd / name).write_text("\n".join(lines) + "\n")
        elif name.endswith(".csv"):
            table = ["uid,sku,ts", *(f"{row[0]},{row[1]},{row[-1]}" for row in rows)]
            (cwd / name).write_text("\n".join(table) + "\n")
        else:
            raise AssertionError(f"README: no generator for data.path={name}")
    outcome = invoke(
        "train", "trainer=smoke", "logger=csv", "data=ml-100k", "data.path=log.inter", cwd=cwd
    )
    assert outcome.code == 0, outcome.err
    return cwd


@pytest.mark.parametrize("command", [c for c in commands() if kind(c) == "train"])
def test_train_command_of_the_readme_works(command, workplace, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # a GPU's scans are for a GPU
    arguments = shlex.split(command)[2:]
    if "data=" in command and not re.search(r"data=synthetic|data.path=", command):
        arguments.append("data.path=log.inter")  # in place of the download
    if "--help" not in arguments:
        timed = ["data.n_users=100", "data.n_items=20"]  # has a trainer of its own
        arguments += timed if "table5" in command else ["trainer=smoke"]
        arguments += ["logger=csv", "overwrite=true"]
    outcome = invoke("train", *arguments, cwd=workplace)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("command", [c for c in commands() if kind(c) == "recblr.data"])
def test_data_command_of_the_readme_works(command, workplace, monkeypatch, capsys):
    arguments = shlex.split(command)[3:]
    if "ml-100k" in arguments:
        arguments += ["--path", "log.inter"]  # in place of the download
    monkeypatch.chdir(workplace)
    data_command(arguments)
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", [c for c in commands() if kind(c) == "recblr.report"])
def test_report_command_of_the_readme_works(command, tmp_path, monkeypatch, capsys):
    arguments = shlex.split(command)[3:]
    for folder in (word for word in arguments if word.startswith("runs")):
        for seed in (1, 2):
            write_run(tmp_path / folder / f"s{seed}", seed=seed, dataset="ml-100k")
    (tmp_path / "results").mkdir()
    shutil.copy(ROOT / "results" / "speed.csv", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    report_command(arguments)
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [c for c in commands() if kind(c) in ("evaluate", "recommend", "recblr.inference")]
)
def test_command_of_the_readme_on_a_run_works(command, workplace, monkeypatch):
    run = str(run_folders(workplace / "runs" / "ml-100k" / "recblr")[0])
    command, replaced = RUN.subn(run, command)
    assert replaced == 1
    (workplace / "histories.jsonl").write_text('{"user": "new", "items": ["i1", "absent"]}\n')
    if kind(command) == "recblr.inference":
        monkeypatch.chdir(workplace)
        return inference_command(shlex.split(command)[3:])
    outcome = invoke(kind(command), *shlex.split(command)[2:], cwd=workplace)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("command", [c for c in commands() if kind(c) == "make"])
def test_make_command_of_the_readme_works(command, tmp_path):
    """With this environment in place of .venv, and in seconds: ARGS reaches the real command."""
    target = shlex.split(command)[1]
    fast = {
        "demo": f"trainer=smoke paths.runs={tmp_path}",
        "ablations": f"ablation=default,no_pffn trainer=smoke logger=csv paths.runs={tmp_path}",
        "table1": "",
        "figures": f"--out {tmp_path}",
        "report": f"--out {tmp_path / 'RESULTS.md'}",
        "test": "--collect-only tests/test_imports.py",
    }
    make = ["make", "-o", ".venv/ready", target, f"BIN={Path(sys.executable).parent}"]
    done = subprocess.run(
        [*make, f"ARGS={fast[target]}"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_a_setting_that_a_target_does_not_read_is_named():
    make = ["make", "-n", "-o", ".venv/ready", "table1"]
    done = subprocess.run([*make, "data=yelp"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "python" not in done.stdout
    assert "'data=yelp': `make ablations` alone takes settings" in done.stderr
    done = subprocess.run([*make, "RUNS=runs"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "recblr.report table1 runs" in done.stdout


def test_torch_index_of_the_readme_reaches_pip(tmp_path):
    (index,) = re.findall(r"make setup TORCH_INDEX=(\S+)`", README)
    done = subprocess.run(
        ["make", "-n", "-W", "requirements.txt", "setup", f"TORCH_INDEX={index}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    installs = [line for line in done.stdout.splitlines() if "pip install" in line]
    assert f"--index-url {index}" in installs[0] and "torch" in installs[0]
    assert "-r requirements.txt" in installs[1] and index not in installs[1]
