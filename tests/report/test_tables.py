"""Which rows stand in one table."""

import pytest

from recblr.report.tables import paper_row, result_rows

CARD = {"paper": {"users": 22363, "items": 12101, "interactions": 198502}}
OURS = {"ndcg@10": 0.3, "users": 22363, "interactions": 198502}
FLOORS = {"popularity": {"ndcg@10": 0.1}, "markov": {"ndcg@10": 0.2}}


def config(**changes):
    loader = {"mask_history": changes.pop("mask_history", False)}
    base = {"data": {"name": "amazon-beauty", "card": CARD}, "recipe": "paper", "smoke": False}
    base |= {"ablation": "default"}
    model = {"_target_": "recblr.models.recblr.RecBLR"}
    return base | {"model": model, "datamodule": loader} | changes


def test_papers_row_is_its_table_1():
    assert paper_row("table1", "amazon-beauty", "recblr") == {
        "hr@10": 0.0881, "ndcg@10": 0.0446, "mrr@10": 0.0313,
        "hr@20": 0.1243, "ndcg@20": 0.0538, "mrr@20": 0.0338,
    }  # fmt: skip
    assert paper_row("table1", "custom", "recblr") == {}


def test_papers_row_stands_beside_test_figures_of_its_recipe():
    rows = result_rows(config(), "test", FLOORS, OURS)
    assert list(rows) == ["popularity", "markov", "recblr", "recblr, paper's Table 1"]


def test_beside_an_ablation_stands_the_papers_table_3():
    rows = result_rows(config(ablation="no_pffn"), "test", FLOORS, OURS)
    assert list(rows)[2:] == ["recblr-no_pffn", "recblr-no_pffn, paper's Table 3"]
    assert rows["recblr-no_pffn, paper's Table 3"]["ndcg@10"] == 0.0425
    assert len(result_rows(config(ablation="no_gate_z"), "test", FLOORS, OURS)) == 3  # ours


@pytest.mark.parametrize(
    "split, changes",
    [
        ("val", {}),
        ("test", {"mask_history": True}),
        ("test", {"smoke": True}),
        ("test", {"recipe": "ours"}),
        ("test", {"data": {"name": "custom"}}),
        ("test", {"data": {"name": "amazon-beauty", "split": "temporal", "card": CARD}}),
    ],
)
def test_papers_row_never_stands_beside_another_protocol(split, changes):
    rows = result_rows(config(**changes), split, FLOORS, OURS)
    assert list(rows) == ["popularity", "markov", "recblr"]


@pytest.mark.parametrize("other", [{"users": 940}, {"interactions": 198501}])
def test_papers_row_never_stands_beside_another_log_of_the_same_name(other):
    rows = result_rows(config(), "test", FLOORS, OURS | other)
    assert list(rows) == ["popularity", "markov", "recblr"]
