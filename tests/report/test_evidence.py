"""Stars, curves, counts and costs: from run folders, and again from the files of `results/`."""

import math
import re
import shutil

import numpy as np
import pytest
from made_up_runs import write_run

from recblr.report import differences as differences_module
from recblr.report.__main__ import main
from recblr.report.differences import after_holm, differences
from recblr.report.evidence import Evidence
from recblr.report.files import read_rows
from recblr.report.ranks import UserRanks, keep_ranks, read_ranks
from recblr.report.results import read_results
from recblr.report.timed import UNITS, read_timed
from recblr.run_folder import METRICS


def row(table: str, name: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def run(capsys, *arguments) -> str:
    main([str(argument) for argument in arguments])
    return capsys.readouterr().out


@pytest.fixture
def seeds(tmp_path):
    """RecBLR well above SASRec (5 and 3 seeds) and level with GRU4Rec (one seed)."""
    for seed in range(5):
        write_run(tmp_path / f"runs/recblr/s{seed}", seed=seed, skill=0.6, users=500)
    for seed in range(3):
        write_run(tmp_path / f"runs/sasrec/s{seed}", "sasrec", seed, skill=0.3, users=500)
    return tmp_path / "runs"


def test_a_star_where_seeds_and_users_show_a_difference(seeds, capsys):
    found = {one.metric: one for one in differences(read_results([seeds]))}
    assert found["ndcg@10"].star and found["ndcg@10"].low > 0
    assert (found["ndcg@10"].runs, found["ndcg@10"].baseline_runs) == (5, 3)
    text = run(capsys, "table1", seeds)
    assert row(text, "recblr (paper)")[2].endswith(r"\***")
    assert r"\*" not in row(text, "sasrec (paper)")[2]


def test_no_star_over_a_better_baseline_of_one_seed(seeds, capsys):
    write_run(seeds / "gru4rec/s9", "gru4rec", 9, skill=0.5, users=500)
    found = after_holm(differences(read_results([seeds])))
    over = {(one.baseline, one.metric): one for one in found}
    assert math.isnan(over["gru4rec", "ndcg@10"].p_seeds) and not over["gru4rec", "ndcg@10"].star
    assert over["sasrec", "ndcg@10"].star
    # Holm over two baselines, one of which has no p over seeds.
    assert r"\*" not in row(run(capsys, "table1", seeds), "recblr (paper)")[2]


def test_a_worse_model_has_no_star(tmp_path):
    for seed in range(5):
        write_run(tmp_path / f"runs/recblr/s{seed}", seed=seed, skill=0.3, users=500)
        write_run(tmp_path / f"runs/sasrec/s{seed}", "sasrec", seed, skill=0.6, users=500)
    found = differences(read_results([tmp_path / "runs"]))
    assert len(found) == 6 and not any(one.star for one in found)
    assert all(one.difference < 0 and one.p_users < 0.01 for one in found)


def test_a_fresh_clone_rebuilds_the_same_tables_from_results(seeds, tmp_path, capsys, monkeypatch):
    write_run(seeds / "timed", scan="cpu", steps=20, smoke=True, dataset="xlong")
    monkeypatch.chdir(tmp_path)
    names = ("table1", "table2", "table5")
    expected = [run(capsys, name, seeds) for name in names]
    first = run(capsys, "collect", seeds)
    assert "9 runs and floors added, 9 in the file" in first and "1 timed runs" in first
    files = sorted(file for file in (tmp_path / "results").rglob("*") if file.is_file())
    assert len(files) == 4 + 8  # a file of ranks per trained run
    before = [file.read_bytes() for file in files]
    run(capsys, "collect", seeds)
    assert [file.read_bytes() for file in files] == before
    assert [run(capsys, name) for name in names] == expected
    curves = read_rows(tmp_path / "results/curves.csv")
    assert len(curves) == 8 * 3 and curves[1]["seconds"] == "6.0"
    assert "curves_amazon-beauty.png" in run(capsys, "curves")
    (tmp_path / "results/notes.md").write_text("## Tried\n\nA note.\n")
    run(capsys, "page")
    page = (tmp_path / "RESULTS.md").read_text()
    for part in (
        "## Tried\n\nA note.\n\n## Accuracy",
        "Table 1: amazon-beauty",
        "Table 5",
        "recblr (paper) − sasrec",
        "](results/fig",
    ):
        assert part in page
    (claim,) = [
        line for line in page.splitlines() if line.startswith("- **amazon-beauty**, recblr")
    ]
    ours, theirs = (
        float(re.search(r"0\.\d{4}", row(expected[0], f"{model} (paper)")[2])[0])
        for model in ("recblr", "sasrec")
    )
    assert claim.startswith(f"- **amazon-beauty**, recblr (paper), 5 seeds: {ours:.4f} ± ")
    percent = re.search(r"; (\+.*) % against the paper's 0\.0446; ", claim)
    assert float(percent[1]) == pytest.approx(100 * (ours / 0.0446 - 1), abs=0.2)
    over = re.search(r"minus the baselines: sasrec \(paper\) (\+.*)\\\*\.$", claim)
    assert float(over[1]) == pytest.approx(ours - theirs, abs=2e-4)
    assert "Nothing was measured on a GPU" in page


def test_runs_whose_folders_are_gone_are_compared_with_new_ones(seeds, tmp_path, capsys):
    together, apart = tmp_path / "together", tmp_path / "apart"
    run(capsys, "collect", seeds, "--to", together)
    for model in ("sasrec", "recblr"):
        run(capsys, "collect", seeds / model, "--to", apart)
        shutil.rmtree(seeds / model)
    for name in ("significance.csv", "accuracy.csv"):
        assert (apart / name).read_text() == (together / name).read_text()
    assert len(read_rows(apart / "significance.csv")) == len(METRICS)
    assert run(capsys, "table1", apart) == run(capsys, "table1", together)
    run(capsys, "page", apart, "--out", tmp_path / "page.md")
    assert "### Differences of HR@10: amazon-beauty" in (tmp_path / "page.md").read_text()
    with pytest.raises(SystemExit, match=r"apart/ranks: no accuracy\.csv; `collect RUNS --to`"):
        main(["page", str(apart / "ranks"), "--out", str(tmp_path / "page.md")])
    head, *_ = (apart / "accuracy.csv").read_text().splitlines(True)
    (tmp_path / "accuracy.csv").write_text(head)
    with pytest.raises(SystemExit, match=f"page: no finished run in {tmp_path}"):
        main(["page", str(tmp_path), "--out", str(tmp_path / "page.md")])
    file = next((apart / "ranks").rglob("recblr_paper_s0_*.parquet"))
    (ndcg,) = [
        float(r["value"])
        for r in read_rows(apart / "accuracy.csv")
        if (r["model"], r["seed"], r["metric"]) == ("recblr", "0", "ndcg@10")
    ]
    assert read_ranks(file).metric("ndcg@10").mean() == pytest.approx(ndcg, rel=1e-5)


def test_only_differences_of_new_runs_are_computed_again(seeds, tmp_path, capsys, monkeypatch):
    for seed in range(3):
        write_run(seeds / f"gru4rec/s{seed}", "gru4rec", seed, skill=0.5, users=500)
    run(capsys, "collect", seeds, "--to", tmp_path / "kept")
    shutil.rmtree(seeds / "sasrec/s2")
    write_run(seeds / "sasrec/s2", "sasrec", 2, skill=0.9, users=500)  # trained anew
    write_run(tmp_path / "new/sasrec/s3", "sasrec", 3, skill=0.4, users=500)
    shutil.copytree(seeds / "sasrec/s2", tmp_path / "new/sasrec/s2")
    computed = []
    whole = differences_module.compare_groups
    monkeypatch.setattr(
        differences_module,
        "compare_groups",
        lambda a, b, metric: computed.append(b.runs[0].model) or whole(a, b, metric),
    )
    run(capsys, "collect", tmp_path / "new", "--to", tmp_path / "kept")
    assert computed == ["sasrec"] * len(METRICS)
    run(capsys, "collect", seeds, tmp_path / "new", "--to", tmp_path / "whole")
    kept, again = (tmp_path / name / "significance.csv" for name in ("kept", "whole"))
    assert kept.read_text() == again.read_text()


def test_runs_of_another_log_or_protocol_are_collected_beside_and_not_compared(
    seeds, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run(capsys, "collect", seeds)
    masked = {"target_mode": "all_positions", "max_length": 50, "mask_history": True}
    write_run(tmp_path / "new/masked", seed=1, datamodule=masked,
              command="python train.py data=amazon-beauty mask_history=true")  # fmt: skip
    run(capsys, "collect", tmp_path / "new")
    assert len(read_rows(tmp_path / "results/significance.csv")) == len(METRICS)
    run(capsys, "page")  # the masked run and its floor are not in Table 1
    page = (tmp_path / "RESULTS.md").read_text()
    assert page.count("### Table 1: amazon-beauty") == 1
    assert page.count("### Settings: amazon-beauty, split aaaaaa, history not ranked") == 1
    assert "curves_amazon-beauty.png" in run(capsys, "figures")
    write_run(tmp_path / "grown/a", seed=1, split_hash="bb" * 32)
    run(capsys, "collect", tmp_path / "grown")  # the log has grown: another split
    assert len(list((tmp_path / "results/ranks").rglob("recblr_paper_s1_*.parquet"))) == 3
    with pytest.raises(SystemExit, match="different splits or protocols"):
        run(capsys, "table1")


def test_curves_of_another_split_are_collected_beside(tmp_path, capsys):
    files = tmp_path / "files"
    for name, split, seconds in (("a", "aa", 2.0), ("b", "bb", 5.0)):
        write_run(tmp_path / name, split_hash=split * 32, seconds=seconds)
        run(capsys, "collect", tmp_path / name, "--to", files)
    ends = {r.split_hash[:2]: r.curve[-1][1] for r in Evidence.of([files]).results if r.curve}
    assert ends == {"aa": 9.0, "bb": 18.0}


def test_differences_of_changed_settings_leave_the_page_when_the_recipes_are_run(tmp_path, capsys):
    files, page = tmp_path / "files", tmp_path / "page.md"
    for name, command in (("changed", "python train.py lr=0.1"), ("plain", "python train.py")):
        for model in ("recblr", "sasrec"):
            write_run(tmp_path / name / model, model, command=f"{command} model={model}")
        run(capsys, "collect", tmp_path / name, "--to", files)
        run(capsys, "page", files, "--out", page)
        assert ("amazon-beauty with lr=0.1" in page.read_text()) == (name == "changed")
        assert page.read_text().count("### Differences") == 2  # of NDCG@10 and of HR@10


def test_a_validation_run_beside_test_runs_leaves_their_differences(
    seeds, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run(capsys, "collect", seeds)
    before = Evidence.of([]).differences
    folder = write_run(tmp_path / "new/val", seed=1).path
    (folder / "test_metrics.json").rename(folder / "val_metrics.json")
    (folder / "test_ranks.parquet").unlink()
    run(capsys, "collect", tmp_path / "new")
    assert {row["evaluated_on"] for row in read_rows(tmp_path / "results/accuracy.csv")} == {
        "test",
        "val",
    }
    assert Evidence.of([]).differences == before and len(before) == len(METRICS)


def test_a_run_without_ranks_is_named(seeds, capsys):
    (seeds / "recblr/s3/test_ranks.parquet").unlink()
    with pytest.raises(SystemExit, match=r"recblr/s3: test_ranks\.parquet is missing"):
        main(["compare", str(seeds / "recblr"), str(seeds / "sasrec")])


@pytest.mark.parametrize(
    "changes, said",
    [
        ({}, r"\+.* % against the paper's 0\.0446; \+.* % against popularity's 0\.\d{4}\."),
        ({"order": "item_id"}, "not comparable with the paper's: another order"),
        ({"dataset": "own"}, r"\+300\.0 % against popularity's 0\.\d{4}\."),
    ],
)
def test_claims_say_what_can_be_said(changes, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/a", **changes)
    run(capsys, "collect", tmp_path / "runs")
    run(capsys, "page")
    claims = (tmp_path / "RESULTS.md").read_text().split("## Claims")[1].split("## Accuracy")[0]
    assert re.search(r"recblr \(paper\), 1 seed: 0\.\d{4}; " + said, claims), claims
    write_run(tmp_path / "runs/b", "sasrec", **changes)
    run(capsys, "collect", tmp_path / "runs")
    (tmp_path / "results/significance.csv").unlink()
    run(capsys, "page")
    page = (tmp_path / "RESULTS.md").read_text()
    assert "until all their runs are collected: sasrec (paper)" in page


def test_without_a_run_of_recblr_nothing_is_claimed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/a", "sasrec")
    run(capsys, "collect", tmp_path / "runs")
    run(capsys, "page")
    assert "- no run of RecBLR yet" in (tmp_path / "RESULTS.md").read_text()


def test_kept_ranks_give_every_metric_of_every_user(tmp_path):
    random = np.random.default_rng(0)
    whole = UserRanks("ab" * 32, random.integers(0, 60, 5000), random.integers(0, 90, 5000))
    keep_ranks(whole, tmp_path / "ranks/a.parquet")
    kept = read_ranks(tmp_path / "ranks/a.parquet")
    assert kept.users == whole.users
    for name in METRICS:
        assert (kept.metric(name) == whole.metric(name)).all() and whole.metric(name).any()


def test_several_folders_are_read_and_not_the_results_of_the_repository(
    seeds, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "other/a", "gru4rec", dataset="gowalla")
    run(capsys, "collect", tmp_path / "other")
    text = run(capsys, "table1", seeds / "recblr", seeds / "sasrec")
    assert "gowalla" not in text and row(text, "sasrec (paper)")[0] == "3"
    with pytest.raises(SystemExit, match="absent: no such folder"):
        main(["table1", str(seeds), "absent"])
    collected = run(capsys, "collect", seeds / "recblr", seeds / "sasrec")
    assert "9 runs and floors added, 11 in the file" in collected


@pytest.mark.parametrize(
    "before, after, said",
    [
        ("split_hash,settings", "split_hash,other", "no column settings in .*accuracy.csv"),
        ("hr@20,", "", "line 5 of .*accuracy.csv has not as many columns"),
        ("ndcg@20,0.", "ndcg@20,zero", "accuracy.csv: could not convert string to float"),
        ("mrr@20", "auc", "accuracy.csv: .*: no row of mrr@20"),
    ],
)
def test_a_broken_file_of_results_is_named(tmp_path, capsys, monkeypatch, before, after, said):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/a")
    run(capsys, "collect", tmp_path / "runs")
    file = tmp_path / "results/accuracy.csv"
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after, 1))
    with pytest.raises(SystemExit, match=said):
        main(["table1"])


def test_without_run_folders_and_results_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="name a folder of runs"):
        main(["table1"])


def test_table2_counts_logs_beside_the_papers(tmp_path, capsys):
    write_run(tmp_path / "runs/a", "popularity", counts=(300, 900))
    write_run(tmp_path / "runs/b", "popularity", counts=(300, 900), dataset="own")
    text = run(capsys, "table2", tmp_path / "runs")
    assert row(text, "amazon-beauty") == ["300", "40", "900", "3.0", "50"]
    assert row(text, "own") == row(text, "amazon-beauty")
    assert row(text, "gowalla")[0] == "not run"
    assert text.count("— paper") == 6 and "| 22,363 | 12,101 | 198,502 | 8.9 | 50 |" in text
    write_run(tmp_path / "runs/c", "markov", counts=(200, 900), split_hash="bb" * 32)
    with pytest.raises(SystemExit, match="amazon-beauty: runs on different logs"):
        main(["table2", str(tmp_path / "runs")])


def test_the_cost_of_a_part_is_extrapolated_and_says_so(tmp_path):
    write_run(tmp_path / "runs/a", scan="cpu", steps=20, seconds=4.0, smoke=True)
    write_run(tmp_path / "runs/b", scan="cpu", seconds=3.0)  # nobody kept others from its machine
    (one,) = read_timed([tmp_path / "runs"])
    # 1000 targets at 2.5 per second; one second for half of the users.
    assert one.values == dict(zip(UNITS, (400.0, 2.0, 50.0)))
    assert (one.part, one.scan, one.max_length) == ("20 steps and 300 users", "cpu", 50)


def test_table5_says_what_needs_cuda_and_keeps_the_papers_apart(tmp_path, capsys):
    write_run(tmp_path / "runs/a", scan="serial", steps=20, seconds=4.0, smoke=True)
    write_run(tmp_path / "runs/b", scan="cpu", seconds=1.0, smoke=True, n_evaluated=300)
    write_run(tmp_path / "runs/c", scan="cpu", steps=20, seconds=9.0, smoke=True)
    write_run(tmp_path / "runs/d", "lrurec", scan="cpu", seconds=0.1, smoke=True)
    ours, papers = run(capsys, "table5", tmp_path / "runs").split("### Table 5: the paper's")
    assert row(ours, "serial scan") == ["400.0"]
    assert row(ours, "cpu (ours)") == ["100.0"]  # whole epochs before 20 steps
    assert row(ours, "fused (ours)") == ["not run (needs CUDA)"]
    assert "Extrapolated from 20 steps and 300 users." in ours and "5958" not in ours
    assert row(papers, "serial scan") == ["1022", "908", "5958"]


def test_table4_has_the_cost_of_timed_steps_and_no_accuracy_of_them(tmp_path, capsys):
    for model, seconds in (("sasrec", 8.0), ("recblr", 2.0)):
        write_run(tmp_path / f"runs/{model}", model, steps=20, seconds=seconds, smoke=True,
                  dataset="synthetic-xlong")  # fmt: skip
    ours, papers = run(capsys, "table4", tmp_path / "runs").split("### Table 4: the paper's")
    assert row(ours, "sasrec") == ["not run"] * 4 + ["50", "800.0", "2.0", "50.0"]
    assert row(ours, "lrurec") == ["not run"] * 4 + [""] + ["not run"] * 3
    assert row(papers, "recblr")[:2] == ["0.2696", "0.2675"]
    command = "python train.py experiment=table4 data=xlong data.path=f trainer=default"
    write_run(tmp_path / "runs/real", dataset="xlong", command=command)
    xlong = run(capsys, "table4", tmp_path / "runs").split("### Table 4: ")[2]
    assert xlong.startswith("xlong\n")
    (metric,) = [r.metrics["hr@10"] for r in read_results([tmp_path / "runs/real"]) if r.epochs]
    assert row(xlong, "recblr") == [f"{metric:.4f}", *row(xlong, "recblr")[1:5], *["not run"] * 3]


def test_figure4_is_drawn(tmp_path, capsys):
    for length in (100, 200):
        loader = {"target_mode": "all_positions", "max_length": length, "mask_history": False}
        for model in ("sasrec", "recblr"):
            write_run(tmp_path / f"runs/{model}{length}", model, steps=20, smoke=True,
                      seconds=length, dataset="synthetic-xlong", datamodule=loader)  # fmt: skip
    text = run(capsys, "figure4", tmp_path / "runs", "--out", tmp_path / "out")
    assert "figure4_synthetic-xlong.svg" in text


def test_machines_and_settings_are_never_averaged(tmp_path, capsys):
    timed = {"scan": "cpu", "steps": 20, "smoke": True}
    write_run(tmp_path / "runs/a", seconds=2.0, **timed)
    write_run(tmp_path / "runs/b", seconds=8.0, cpu="Other", **timed)
    command = "python train.py batch_size=64 trainer=timing data.path=f"
    write_run(tmp_path / "runs/c", seconds=4.0, command=command, **timed)
    write_run(tmp_path / "runs/d", seconds=6.0, recipe="best", **timed)
    text = run(capsys, "table5", tmp_path / "runs")
    assert text.count("### Table 5: seconds per epoch") == 2
    lines = [line for line in text.splitlines() if line.startswith("| cpu (ours)")]
    assert lines == ["| cpu (ours) | 200.0 | 400.0 | 600.0 |", "| cpu (ours) | 800.0 |"]
    names = run(capsys, "figure4", tmp_path / "runs", "--out", tmp_path / "out")
    assert names.count(".png") == 4


def test_whole_epochs_and_all_users_are_not_extrapolated(tmp_path):
    write_run(tmp_path / "runs/a", scan="cpu", steps=1.0, smoke=True, n_evaluated=300)
    write_run(tmp_path / "runs/b", scan="cpu", steps=0.1, smoke=True, n_evaluated=300)
    parts = {one.part for one in read_timed([tmp_path / "runs"])}
    assert parts == {"whole epochs", "10% of an epoch"}


def test_holm_is_over_the_baselines_that_were_collected_at_any_time(
    seeds, tmp_path, capsys, monkeypatch
):
    for seed in range(3):
        write_run(seeds / f"gru4rec/s{seed}", "gru4rec", seed, skill=0.58, users=500)
    together = after_holm(differences(read_results([seeds])))
    monkeypatch.chdir(tmp_path)
    for name in ("sasrec", "recblr", "gru4rec"):
        run(capsys, "collect", seeds / name)
    apart = {one.sides: one for one in Evidence.of([]).differences}
    assert len(apart) == 12
    for one in together:
        assert apart[one.sides].p_users == pytest.approx(one.p_users, rel=1e-4)
    write_run(seeds / "gru4rec/s9", "gru4rec", 9, skill=0.58, users=500)
    shutil.rmtree("results/ranks")
    run(capsys, "collect", seeds / "gru4rec")  # its differences are of three seeds: not up to date
    assert {one.baseline for one in Evidence.of([]).differences} == {"sasrec"}


def test_smoke_runs_have_no_difference(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / f"runs/{seed}", seed=seed, smoke=True, users=30 + seed)
        write_run(tmp_path / f"runs/s{seed}", "sasrec", seed, smoke=True, users=30 + seed)
    assert not differences(read_results([tmp_path / "runs"]))


def test_the_papers_values_stand_beside_no_other_log_of_its_name(tmp_path, capsys):
    write_run(tmp_path / "runs/a")
    write_run(tmp_path / "runs/b", dataset="gowalla", counts=(1000, 9000))
    for name in ("table1", "table3"):
        beauty, gowalla = run(capsys, name, tmp_path / "runs").split("gowalla")
        assert "— paper" in beauty and "— paper" not in gowalla
