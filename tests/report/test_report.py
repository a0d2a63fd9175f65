"""Tables, figures, status and comparisons from run folders that were made up."""

import json
import os
import re
import shutil

import pytest
from made_up_runs import write_run
from matplotlib.backends.backend_agg import FigureCanvasAgg

from recblr.report import figures
from recblr.report.__main__ import FIGURES, TABLES, main
from recblr.report.files import merged, read_csv, write_results
from recblr.report.grid import Cell, Grid, as_csv, latex, markdown
from recblr.report.results import overrides_of, read_results, settings_of, without_folders
from recblr.run_folder import METRICS
from recblr.training.cli import CONF


@pytest.fixture
def runs(tmp_path):
    """RecBLR with three seeds, SASRec with two, one ablation, one run that was cut."""
    for seed in (1, 2, 3):
        write_run(tmp_path / f"runs/recblr/s{seed}", seed=seed, skill=0.6)
    for seed in (1, 2):
        write_run(tmp_path / f"runs/sasrec/s{seed}", "sasrec", seed, skill=0.3)
    write_run(tmp_path / "runs/recblr-no_pffn/s1", skill=0.4, ablation="no_pffn")
    write_run(tmp_path / "runs/cut", "gru4rec", finished=False)
    return tmp_path / "runs"


def run(capsys, *arguments) -> str:
    main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def row(table: str, name: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_table1_has_means_marks_the_papers_values_and_what_was_not_run(runs, capsys, tmp_path):
    text = run(capsys, "table1", runs, "--out", tmp_path / "out")
    values = [r.metrics["ndcg@10"] for r in read_results([runs]) if r.setting[1:3] ==
              ("recblr", "default")]  # fmt: skip
    ours = row(text, "recblr (paper)")
    mean = sum(values) / 3
    deviation = (sum((v - mean) ** 2 for v in values) / 2) ** 0.5
    assert ours[:1] == ["3"]
    assert ours[2] == f"**{mean:.4f} ± {deviation:.4f}**"
    assert row(text, "sasrec (paper)")[2].startswith("<u>")
    assert row(text, "gru4rec") == ["0", *["not run"] * 6]
    assert row(text, "popularity")[1] != "not run"
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("| recblr (paper)"))
    assert lines[at + 1].startswith("| — paper |  | 0.0881 | 0.0446")
    assert f"{100 * (mean / 0.0446 - 1):+.1f} %" in lines[at + 2]
    assert "Improv." in text and "no_pffn" not in text
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"table1.md", "table1.tex", "table1_amazon-beauty.csv"}
    assert r"\textbf" in (tmp_path / "out/table1.tex").read_text()


def test_table3_has_every_ablation(runs, capsys):
    text = run(capsys, "table3", runs)
    assert row(text, "no_pffn")[0] == "1" and row(text, "default")[0] == "3"
    assert row(text, "constant_decay")[1] == "not run"
    assert text.count("— paper") == 6  # ours have none


def test_table3_keeps_recipes_apart(runs, capsys):
    write_run(runs / "best", seed=1, skill=0.9, recipe="best")
    write_run(runs / "whole", dataset="gowalla")  # no part of it was left out
    text = run(capsys, "table3", runs)
    assert "Table 3: amazon-beauty (paper)" in text and "(best)" not in text
    assert "gowalla" not in text and "gowalla (paper)" in run(capsys, "table3", runs / "whole")
    assert row(text, "default")[0] == "3"
    write_run(runs / "best-no_pffn", seed=1, skill=0.8, recipe="best", ablation="no_pffn")
    best, paper = run(capsys, "table3", runs).split("amazon-beauty (paper)")
    assert "amazon-beauty (best)" in best
    assert [row(part, "default")[0] for part in (best, paper)] == ["1", "3"]


def test_the_command_of_a_row_names_files_without_folders_however_often_it_is_read():
    once = without_folders("python train.py data.path=/data/logs/a.txt.gz paths.runs=/r seed=1")
    assert once == "python train.py data.path=a.txt.gz seed=1" == without_folders(once)


@pytest.mark.parametrize(
    "changes", [{"split_hash": "bb" * 32}, {"datamodule": {"target_mode": "prefix",
                "max_length": 50, "mask_history": True}}]
)  # fmt: skip
def test_other_splits_or_protocols_are_refused_unless_forced(runs, capsys, changes):
    write_run(runs / "other", "lrurec", **changes)
    with pytest.raises(SystemExit, match=r"different splits or protocols.*name fewer runs"):
        main(["table1", str(runs)])
    forced = run(capsys, "table1", runs, "--force")
    assert "lrurec (paper)" in forced and "MIXED: 2 splits or protocols" in forced
    with pytest.raises(SystemExit):
        main(["settings", str(runs), "--force"])  # has no meaning there


def test_the_papers_values_do_not_stand_beside_another_protocol(tmp_path, capsys):
    loader = {"target_mode": "all_positions", "max_length": 50, "mask_history": True}
    write_run(tmp_path / "runs/a", datamodule=loader)
    lines = run(capsys, "table1", tmp_path / "runs").splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("| recblr"))
    assert "paper |" not in lines[at + 1]


@pytest.mark.parametrize("order", ["item_id", "shuffled", "recbole_float32"])
def test_the_papers_values_do_not_stand_beside_an_order_that_was_asked_for(tmp_path, capsys, order):
    write_run(tmp_path / "a", order=order, command=f"python train.py data.order={order}")
    lines = run(capsys, "table1", tmp_path).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("| recblr"))
    assert "paper |" not in lines[at + 1]


def test_runs_of_a_recipe_that_changed_in_between_share_no_cell(tmp_path, capsys):
    before, after = {"lr": 0.001, "recipe": "best"}, {"lr": 0.003, "recipe": "best"}
    for seed in (1, 2):
        write_run(tmp_path / f"before/{seed}", seed=seed, **before)
    write_run(tmp_path / "after/3", seed=3, skill=0.9, repeat_bias=True, **after)
    with pytest.raises(SystemExit, match=r"lr=0\.00. and 0\.00.*the recipe has changed in between"):
        main(["table1", str(tmp_path)])
    write_run(tmp_path / "other", seed=1, command="python train.py lr=0.1", **before)
    with pytest.raises(SystemExit, match="the recipe has changed in between"):
        main(["settings", str(tmp_path)])
    files = tmp_path / "files"
    run(capsys, "collect", tmp_path / "before", "--to", files)
    assert "2 gone whose recipe has changed since" in run(
        capsys, "collect", tmp_path / "after", "--to", files
    )
    assert row(run(capsys, "table1", files), "recblr (best)")[0] == "1"
    assert len(list(files.rglob("*.parquet"))) == 1
    assert {line.split(",")[5] for line in (files / "curves.csv").open()} == {"seed", "3"}
    write_run(tmp_path / "later", seed=4, ahead_weight=0.0, **after)  # an option of later code
    run(capsys, "collect", tmp_path / "later", "--to", files)
    assert row(run(capsys, "table1", files), "recblr (best)")[0] == "2"


def test_a_run_with_a_longer_history_measures_no_second_floor(tmp_path, capsys):
    long = {"target_mode": "all_positions", "max_length": 200, "mask_history": False}
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", datamodule=long, command="python train.py max_length=200")
    assert "±" not in "".join(row(run(capsys, "table1", tmp_path), "popularity"))
    assert row(run(capsys, "table2", tmp_path), "amazon-beauty")[-1] == "50"


def test_smoke_runs_are_in_no_table_and_sweeps_only_where_nothing_else_is(tmp_path, capsys):
    write_run(tmp_path / "runs/a", smoke=True)
    assert "SMOKE RUNS" in run(capsys, "table1", tmp_path / "runs")
    write_run(tmp_path / "runs/b", command="python train.py model.expansion=4 data=x")
    text = run(capsys, "table1", tmp_path / "runs")
    assert "Table 1: amazon-beauty with model.expansion=4" in text and "SMOKE" not in text
    write_run(tmp_path / "runs/c", "sasrec")
    assert row(run(capsys, "table1", tmp_path / "runs"), "recblr")[1] == "not run"


def test_results_come_back_from_the_csv_and_give_the_same_table(runs, tmp_path, capsys):
    results, file = read_results([runs]), tmp_path / "accuracy.csv"
    assert len(merged(results, results)) == len(results)
    write_results(file, results)
    again = {(r.setting, r.seed): r for r in read_csv(file)}
    for result in results:
        other = again[result.setting, result.seed]
        assert other.metrics == pytest.approx(result.metrics, rel=1e-5)
        assert (other.protocol, other.seconds) == (result.protocol, result.seconds)
    write_run(runs / "recblr/s1", seed=1, skill=0.1)  # trained anew: replaces its row
    anew = merged(read_csv(file), read_results([runs]))
    assert len(anew) == len(results)
    (first,) = [r for r in anew if (r.model, r.variant, r.seed) == ("recblr", "default", 1)]
    assert first.metrics["hr@10"] < 0.2


@pytest.mark.parametrize(
    "command, expected",
    [
        ("python train.py data=x model=recblr seed=3 ablation=no_pffn", ""),
        ("python train.py experiment=figure5 data=x model.expansion=2 dropout=0.1",
         "dropout=0.1 model.expansion=2"),
        ("python train.py paths.runs=r logger=csv data.path=f recipe=usual/x", ""),
        ("python train.py recipe=best/x/recblr dropout=0.1", "dropout=0.1"),
        ("python train.py lr=0.1 trainer.enable_progress_bar=false", "lr=0.1"),
        ("python train.py data.order=shuffled", "data.order=shuffled"),
        ("python train.py data=custom data.name=x data.columns.user=u data.columns.item=i", ""),
    ],
)  # fmt: skip
def test_overrides_are_what_no_column_has(command, expected):
    assert overrides_of(command) == expected


def test_settings_are_what_a_recipe_may_set_and_no_scan():
    model = {"_target_": "a.B", "scan": "cpu", "usual": True}
    config = {"lr": 0.1, "seed": 3, "scan": "cpu", "paths": {"runs": "r"}, "model": model,
              "objective": {"_target_": "c.D"}, "trainer": {"max_epochs": 5}}  # fmt: skip
    assert settings_of(config) == "lr=0.1 model.usual=True trainer.max_epochs=5"


def test_settings_have_each_recipe_and_what_was_changed_in_it(tmp_path, capsys):
    changed = "python train.py data=amazon-beauty batch_size=512 lr=0.1"
    write_run(tmp_path / "runs/a", skill=0.6)
    write_run(tmp_path / "runs/b", skill=0.2, command=changed, seconds=59)
    write_run(tmp_path / "runs/c", "sasrec", skill=0.9)  # nothing changed in it
    write_run(tmp_path / "runs/d", command=f"{changed} ablation=x", ablation="no_pffn")
    write_run(tmp_path / "runs/e", "my_own", command=changed)  # no model of the paper
    write_run(tmp_path / "runs/f", "gru4rec", split_hash="bb" * 32,
              command="python train.py data=amazon-beauty data.order=shuffled lr=0.1")  # fmt: skip
    ours, other = run(capsys, "settings", tmp_path / "runs").split("### ")[1:]
    assert [name for name, _ in rows_of(ours)] == [
        "popularity",
        "recblr (paper)",
        "recblr (paper) batch_size=512 lr=0.1",
    ]
    cells = rows_of(ours)[-1][1]
    assert cells[0] == "1" and cells[3:] == ["3", "3"]
    assert [name for name, _ in rows_of(other)] == [
        "popularity",
        "gru4rec (paper) data.order=shuffled lr=0.1",
    ]
    with pytest.raises(SystemExit, match=r"settings: no finished run to show$"):
        main(["settings", str(tmp_path / "runs/a")])


def test_settings_put_the_orders_of_one_log_side_by_side(tmp_path, capsys):
    command, other = "python train.py data=amazon-beauty data.order=", {"split_hash": "bb" * 32}
    again = write_run(tmp_path / "runs/a", "gru4rec", skill=0.6, order="exact")
    again.asked_again(f"{command}exact")  # the log's own order: one run
    write_run(tmp_path / "runs/b", "gru4rec", order="recbole_float32",
              command=f"{command}recbole_float32", **other)  # fmt: skip
    masked = {"target_mode": "prefix", "max_length": 50, "mask_history": True}
    write_run(tmp_path / "runs/m", "gru4rec", seed=2, order="exact", datamodule=masked,
              command=f"{command}exact")  # fmt: skip
    write_run(tmp_path / "runs/c", "sasrec", order="item_id", command=f"{command}item_id", **other)
    write_run(tmp_path / "runs/d", "narm", order="exact")  # in no other order: has no row
    write_run(tmp_path / "runs/e", "sasrec", order="exact", command=f"{command}exact lr=0.1")
    orders = run(capsys, "settings", tmp_path / "runs").split("### ")[-1]
    assert orders.startswith("Orders: amazon-beauty, leave_one_out")
    assert "| | exact | recbole_float32 | item_id |" in orders
    by_order = {r.order: f"{r.metrics['ndcg@10']:.4f}" for r in read_results([tmp_path / "runs"])
                if r.model == "gru4rec" and not r.mask_history}  # fmt: skip
    cells = dict(rows_of(orders))
    assert list(cells) == ["popularity", "gru4rec (paper)", "sasrec (paper)"]
    assert cells["gru4rec (paper)"] == [by_order["exact"], by_order["recbole_float32"], "not run"]
    assert cells["sasrec (paper)"][:2] == ["not run", "not run"]  # lr=0.1 is not its recipe
    write_run(tmp_path / "one", order="shuffled", command=f"{command}shuffled")
    (alone,) = run(capsys, "settings", tmp_path / "one").split("### ")[1:]
    assert "| | shuffled |" in alone and "recblr (paper)" in alone
    main(["collect", str(tmp_path / "runs"), "--to", str(tmp_path / "files")])
    table = run(capsys, "table1", tmp_path / "files")  # the order of the data set alone
    assert row(table, "gru4rec (paper)")[0] == row(table, "narm (paper)")[0] == "1"
    assert row(table, "sasrec")[1] == "not run"
    main(["page", str(tmp_path / "files"), "--out", str(tmp_path / "page.md")])
    assert "### Differences" not in (tmp_path / "page.md").read_text()  # there is no RecBLR


def test_an_order_of_two_logs_is_two_columns(tmp_path, capsys):
    command = "python train.py data=amazon-beauty data.order="
    write_run(tmp_path / "a", "gru4rec", order="exact")
    write_run(tmp_path / "b", "gru4rec", seed=2, order="exact", split_hash="bb" * 32)
    write_run(tmp_path / "c", "gru4rec", order="shuffled", command=f"{command}shuffled")
    orders = run(capsys, "settings", tmp_path).split("### ")[-1]
    assert "| | exact aaaaaa | exact bbbbbb | shuffled |" in orders
    assert not re.search("±|not run", "".join(dict(rows_of(orders))["gru4rec (paper)"]))


def rows_of(table: str) -> list[tuple[str, list[str]]]:
    """Name and cells of each row of a Markdown table, without its head."""
    lines = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| ")]
    return [(name.strip(), [cell.strip() for cell in cells]) for name, *cells in lines[2:]]


def test_a_committed_command_names_no_folder_of_one_machine(tmp_path):
    command = "python train.py data=x data.path=/home/me/log.csv paths.runs=/scratch seed=1"
    write_run(tmp_path / "runs/a", command=command)
    write_results(tmp_path / "a.csv", read_results([tmp_path / "runs"]))
    assert {r.command for r in read_csv(tmp_path / "a.csv")} == {
        "python train.py data=x data.path=log.csv seed=1"
    }


def test_figures_are_drawn_from_sweeps(tmp_path, capsys):
    for k in (1, 2, 4):
        command = f"python train.py experiment=figure5 model.expansion={k} data=x"
        write_run(tmp_path / f"runs/{k}", seed=1, skill=0.1 * k, command=command)
    write_run(tmp_path / "runs/cut", "markov", command="python train.py 'data.cut=[0.8, 0.9]'")
    for name in ("figure5", "curves", "accuracy_against_time"):
        run(capsys, name, tmp_path / "runs", "--out", tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "figure5_amazon-beauty_paper.png" in names and "curves_amazon-beauty.svg" in names
    drawn = (tmp_path / "out/curves_amazon-beauty.svg").read_text()
    assert "scale(0.015625)" in drawn, "letters keep their size"
    assert not re.search(r"\b[1-9]\d*\.\d{3,}", drawn), "digits that differ between processors"


@pytest.mark.parametrize("name", [*TABLES, *FIGURES])
def test_a_report_without_runs_names_the_experiment_that_makes_them(tmp_path, name):
    with pytest.raises(SystemExit, match=f"{name}: no finished run to ") as error:
        main([name, str(tmp_path)])
    named = f"experiment={name} " in str(error.value)
    assert named == (CONF / "experiment" / f"{name}.yaml").exists()


def test_curves_of_ablations_stand_beside_their_own_recipe_and_labels_fit(runs):
    command = "python train.py data=x model.released=true target_mode=prefix max_length=50 lr=0.01"
    write_run(runs / "best", recipe="best")
    made = figures.curves(read_results([runs]))
    write_run(runs / "long", command=command)
    long = figures.curves(read_results([runs / "long"]))
    write_run(runs / "order", order="shuffled", split_hash="bb" * 32,
              command="python train.py data.order=shuffled")  # fmt: skip
    assert figures.curves(read_results([runs])).keys() == made.keys()
    both, ablated = made["curves_amazon-beauty"], made["curves_amazon-beauty_ablations_paper"]
    for figure, shown in ((both, 3), (ablated, 2), (long["curves_amazon-beauty"], 1)):
        (legend,), canvas = figure.legends, FigureCanvasAgg(figure)
        canvas.draw()
        assert len(legend.texts) == shown
        box, inside = legend.get_window_extent(), figure.bbox
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0


def test_a_run_that_two_figures_ask_for_is_in_both(tmp_path):
    one, three, half = ("model.expansion=1", "model.expansion=3", "dropout=0.5")
    for number, setting in enumerate((one, three, half, "dropout=0.1")):
        run = write_run(tmp_path / f"{number}", command=f"python train.py data=x {setting}")
        if setting == half:  # the recipe's own, as an expansion of 2 is the model's
            run.asked_again("python train.py data=x model.expansion=2")
            run.asked_again("python train.py data=x model.expansion=2")
    results = read_results([tmp_path])
    assert len([r for r in results if r.model == "recblr"]) == 5
    for make, at in ((figures.figure5, [1, 2, 3]), (figures.figure6, [0.1, 0.5])):
        (figure,) = make(results).values()
        assert figure.axes[0].lines[0].get_xdata().tolist() == at
    assert not figures.figure6([r for r in results if r.overrides == "dropout=0.1"])


def test_a_sweep_at_two_recipes_is_two_figures(tmp_path):
    for recipe, skill in (("paper", 0.2), ("best", 0.8)):
        for k in (1, 2):
            command = f"python train.py data=x model.expansion={k}"
            write_run(tmp_path / f"{recipe}{k}", skill=skill, recipe=recipe, command=command)
    made = figures.figure5(read_results([tmp_path]))
    assert list(made) == ["figure5_amazon-beauty_best", "figure5_amazon-beauty_paper"]
    for k in (1, 2):  # at another rate: where runs without are, these are not drawn
        command = f"python train.py data=x model.expansion={k} lr=0.1"
        write_run(tmp_path / f"fast{k}", command=command)
    assert figures.figure5(read_results([tmp_path])).keys() == made.keys()
    best, paper = (figure.axes[0].lines[0].get_ydata() for figure in made.values())
    assert min(best) > max(paper)


def test_what_a_figure_says_is_inside_of_it(tmp_path):
    for k in (1, 2):
        command = f"python train.py model.expansion={k} trainer.max_epochs=5 data.order=shuffled"
        write_run(tmp_path / f"{k}", seed=1, command=command)
    (figure,) = figures.figure5(read_results([tmp_path])).values()
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0
        assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def test_status_names_what_was_cut_and_why_it_failed(runs, capsys):
    failed = write_run(runs / "failed", "narm", finished=False)
    failed.write_json("failed.json", {"error": "ValueError: diverged"})
    running = write_run(runs / "running", "caser", finished=False)
    with running.lock():
        text = run(capsys, "status", runs)
    assert re.search(r"gru4rec +cut +cut +3", text)
    assert re.search(r"narm +failed +failed +3 .*diverged", text)
    assert re.search(r"caser +running +running", text)
    assert "older code" in text and "masked" not in text
    write_run(runs / "masked", smoke=True, datamodule={"mask_history": True})
    assert re.search(r"masked +finished .*smoke, masked", run(capsys, "status", runs))
    assert "6 finished, 1 running, 1 cut, 1 failed" in text


def test_compare_finds_a_difference_and_none_of_a_run_with_itself(runs, capsys):
    a, b = runs / "recblr", runs / "sasrec"
    found = json.loads(run(capsys, "compare", a, b, "--json"))
    assert found["difference"] > 0 and found["low"] > 0 and found["p_users"] < 0.001
    assert found["p_seeds"] is not None
    same = json.loads(run(capsys, "compare", a / "s1", a / "s1", "--json"))
    assert same["difference"] == 0 and same["p_users"] == 1 and same["p_seeds"] is None
    text = run(capsys, "compare", a / "s1", b / "s1", "--metric", "hr@20")
    assert "A: recblr (paper) on amazon-beauty, seed 1\n" in text
    assert "hr@20: A " in text and "not known: both need 2 seeds" in text


@pytest.mark.parametrize(
    "change, message",
    [
        ({"split_hash": "bb" * 32}, "not evaluated alike"),
        ({"users": 299}, "other users"),
    ],
)
def test_what_cannot_be_compared_is_refused(runs, change, message):
    write_run(runs / "other", **change)
    with pytest.raises(SystemExit, match=message):
        main(["compare", str(runs / "other"), str(runs / "sasrec/s1")])


def test_a_group_has_one_setting(runs, tmp_path):
    with pytest.raises(SystemExit, match="differ in more than their seed"):
        main(["compare", str(runs), str(runs / "sasrec")])
    shutil.copytree(runs / "sasrec", tmp_path / "again/sasrec")
    shutil.copytree(runs / "sasrec/s2", tmp_path / "again/copy")
    with pytest.raises(SystemExit, match=r"again/copy and .*sasrec/s2 have one seed"):
        main(["compare", str(tmp_path / "again"), str(runs / "sasrec")])
    with pytest.raises(SystemExit, match="no finished run"):
        main(["compare", str(runs / "cut"), str(runs / "sasrec")])
    with pytest.raises(SystemExit, match="no such folder"):
        main(["compare", str(runs / "absent"), str(runs / "sasrec")])
    with pytest.raises(SystemExit, match="metric=auc: valid: hr@10"):
        main(["compare", str(runs / "recblr"), str(runs / "sasrec"), "--metric", "auc"])


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("config.yaml", "", "config.yaml: no configuration; delete the folder"),
        ("test_metrics.json", '{"hr@10": 0.', "test_metrics.json: .*; delete the folder"),
    ],
)
def test_a_broken_run_folder_is_named(runs, name, content, said):
    (runs / "sasrec/s1" / name).write_text(content)
    with pytest.raises(SystemExit, match=f"sasrec/s1/{said}"):
        main(["table1", str(runs)])


def test_a_folder_that_cannot_be_read_is_not_passed_over(runs, monkeypatch):
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("sasrec"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(SystemExit, match=r"Permission denied.*sasrec"):
        main(["table1", str(runs)])


def test_pictures_lie_beside_what_they_were_drawn_from(runs, capsys):
    assert f"written: {runs}/figures/curves_amazon-beauty.png" in run(capsys, "curves", runs)


def test_a_grid_in_three_languages():
    grid = Grid("50 % of a_b", ["x", "y"], notes=["note_1"])
    grid.add("row_1", [Cell("1.0", "best"), Cell("2 %", "second")])
    assert "| row_1 | **1.0** | <u>2 %</u> |" in markdown(grid)
    assert r"row\_1 & \textbf{1.0} & \underline{2 \%} \\" in latex(grid)
    assert r"\caption{50 \% of a\_b}" in latex(grid)
    assert as_csv(grid) == ",x,y\nrow_1,1.0,2 %\n"
    assert len(METRICS) == 6
