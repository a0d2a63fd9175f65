"""Train a recommender, evaluate it, keep the run: `python train.py --help`."""

import logging
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from recblr.training.cli import one_line_errors

log = logging.getLogger("recblr")
CONFIG = Path(__file__).parent / "conf" / "train.yaml"


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@one_line_errors(in_job=True)
def main(cfg: DictConfig) -> None:
    import lightning as L

    from recblr.report.tables import model_card, print_run
    from recblr.run_folder import RunFolder, environment, keep_log
    from recblr.training.evaluate import evaluate, floor_metrics, load_weights, read_checkpoint
    from recblr.training.loggers import close, quiet_lightning
    from recblr.training.module import SequentialRecommender
    from recblr.training.validate import build, check_run, choose_scan, is_floor

    quiet_lightning()
    check_run(cfg, CONFIG)
    scan = None if is_floor(cfg) else choose_scan(cfg)
    if cfg.data.get("path"):
        cfg.data.path = str(Path(cfg.data.path).absolute())
    config = OmegaConf.to_container(cfg, resolve=True)

    earlier = keep_log()
    data = build(cfg.datamodule, log=build(cfg.data))
    data.load()
    run = RunFolder.of(config, data.split_hash)
    if run.finished(cfg.test) and not cfg.overwrite:
        log.info("finished before; overwrite=true trains anew")
        return print_run(run)

    run.start(config, environment() | {"scan": scan})
    with run.log_to_file(earlier):
        L.seed_everything(cfg.seed, verbose=False)
        split = "test" if cfg.test else "val"
        run.write_json("floors.json", floor_metrics(data, split))
        model = build(cfg.model, n_items=data.store.n_items)
        loggers = [build(node, run=run, config=config) for node in cfg.logger.values()]
        if is_floor(cfg):
            model.fit(**data.training_part())
        else:
            log.info("scan=%s runs as %s", cfg.scan, scan)
            identity = {"config": config, "split_hash": data.split_hash}
            identity["item_ids"] = data.store.item_ids.tolist()
            module = SequentialRecommender(
                model, data.store.n_items, build(cfg.objective), build(cfg.optimizer), identity
            )
            cfg.callbacks.checkpoint.dirpath = str(run.checkpoints)
            callbacks = [build(node) for node in cfg.callbacks.values()]
            trainer = build(cfg.trainer, callbacks=callbacks, logger=loggers)
            trainer.fit(module, datamodule=data)
            load_weights(model, read_checkpoint(run.checkpoints / "best.ckpt"))

        metrics, ranks = evaluate(
            model, data.evaluation_loader(split), data.store.n_items, cfg.trainer.accelerator
        )
        close(loggers, {f"{split}/{name}": value for name, value in metrics.items()})
        result = metrics | {"split_hash": data.split_hash, "order": data.store.order}
        result["smoke"] = cfg.smoke
        if cfg.test:
            run.write_ranks(
                {
                    "user_id": data.store.user_ids[ranks["user"]],
                    "item_id": data.store.item_ids[ranks["item"]],
                    "higher": ranks["higher"].int(),
                    "equal": ranks["equal"].int(),
                }
            )
        run.write_json("test_metrics.json" if cfg.test else "evaluate_val.json", result)
        run.finish(model_card(run))
    print_run(run)


if __name__ == "__main__":
    with one_line_errors():
        main()
