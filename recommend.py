"""The k best items for anyone, from a checkpoint: `python recommend.py --help`."""

import logging
from pathlib import Path

import hydra
from omegaconf import DictConfig

from recblr.training.cli import one_line_errors

log = logging.getLogger("recblr")
CONFIG = Path(__file__).parent / "conf" / "recommend.yaml"


@hydra.main(version_base="1.3", config_path="conf", config_name="recommend")
@one_line_errors(in_job=True)
def main(cfg: DictConfig) -> None:
    from recblr.inference import Recommender
    from recblr.inference.files import check_output, read_histories, read_ids, writing
    from recblr.inference.progress import counted
    from recblr.inference.recommender import histories_of
    from recblr.training.validate import RECOMMEND_KEYS, check_keys, known_keys

    check_keys(cfg, known_keys(CONFIG), RECOMMEND_KEYS)
    output = Path(cfg.output).expanduser()
    check_output(output)
    if cfg.input != "log" and Path(cfg.input).expanduser().resolve() == output.resolve():
        raise ValueError(
            f"output={output}: is the input, which it would replace; name another file"
        )
    recommender = Recommender.load(cfg.ckpt_path, cfg.scan)
    batch_size = cfg.batch_size
    if batch_size is None:
        batch_size = recommender.about["config"]["eval_batch_size"]
    options = {
        "exclude_seen": cfg.exclude_seen,
        "allow": read_ids("allow", cfg.allow) if cfg.allow else None,
        "deny": read_ids("deny", cfg.deny) if cfg.deny else (),
        "batch_size": batch_size,
    }
    total = None
    if cfg.input == "log":
        store = recommender.log(cfg.data.path)
        histories, total = histories_of(store), store.n_users
    else:
        histories = read_histories(cfg.input, cfg.columns)
    seen = "not recommended" if cfg.exclude_seen else "recommended too"
    log.info(
        "%s, top %d of %s items, items of the history %s (exclude_seen=%s)",
        *(recommender.name, cfg.k, f"{recommender.n_items:,}", seen, str(cfg.exclude_seen).lower()),
    )
    users = popular = unseen = skipped = filled = 0
    with writing(output) as file:
        for top in counted(recommender.batches(histories, cfg.k, **options), total):
            file.write(top)
            users += len(top.user_ids)
            popular += int((top.sources == "popularity").sum())
            unseen += sum(user not in recommender.users for user in top.user_ids)
            skipped, filled = skipped + top.skipped, filled + top.filled
    log.info("%s users, %s of them by popularity: no known item", f"{users:,}", f"{popular:,}")
    log.info("%s unknown items of the histories skipped", f"{skipped:,}")
    if recommender.users and unseen:
        log.warning(
            "%s has no vector for %s users: not in its log, scored by their items alone",
            *(recommender.name, f"{unseen:,}"),
        )
    if filled:
        log.warning("%s users have met all but fewer than k items: some again", f"{filled:,}")
    log.info("written: %s (%s rows)", output, f"{users * cfg.k:,}")


if __name__ == "__main__":
    with one_line_errors():
        main()
