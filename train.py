"""Train a recommender, evaluate it, keep the run: `python train.py --help`."""

import logging
from collections.abc import Callable
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from recblr.training.cli import one_line_errors

log = logging.getLogger("recblr")
CONFIG = Path(__file__).parent / "conf" / "train.yaml"


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> Path:
    with one_line_errors(in_job=True):  # as a decorator it cannot be sent to a launcher's process
        from recblr.training import validate
        from recblr.training.loggers import quiet_lightning

        quiet_lightning()
        if cfg.resume:
            cfg = validate.resumed(cfg)
        cfg, overrides = validate.check_run(cfg, CONFIG)
        if cfg.get("search"):
            from recblr.training.search import search

            return search(cfg, overrides, train)
        return train(cfg, overrides)


def train(cfg: DictConfig, overrides: list[str], watch: Callable | None = None) -> Path:
    """The run of a checked config, in its folder, which is returned.

    overrides: of the command that repeats it. watch: makes one more callback from the run folder.
    """
    import lightning as L

    from recblr.models.saved import build, build_model, choose_scan, load_weights, read_checkpoint
    from recblr.report.tables import model_card, print_config, print_run
    from recblr.run_folder import RunFolder, command_of, environment, keep_log
    from recblr.training import validate
    from recblr.training.evaluate import evaluate, floor_metrics, raw_ranks
    from recblr.training.loggers import closing

    is_floor = validate.is_floor(cfg)
    accelerator = validate.choose_accelerator(cfg.trainer.accelerator)
    scan = choose_scan(cfg.model, accelerator)
    cfg.paths.data = str(Path(cfg.paths.data).expanduser().absolute())
    if cfg.data.get("path"):
        cfg.data.path = str(Path(cfg.data.path).expanduser().absolute())
    config = OmegaConf.to_container(cfg, resolve=True)

    earlier = keep_log()
    data = build(cfg.datamodule, log=build(cfg.data))
    data.load()
    run = RunFolder(cfg.resume) if cfg.resume else RunFolder.of(config, data.split_hash)
    if run.finished(cfg.test) and not cfg.overwrite:
        run.asked_again(command_of("train.py", overrides))
        log.info("finished before; overwrite=true trains anew")
        print_run(run)
        return run.path
    print_config(config)
    with run.lock():
        trained = run.finished() and not cfg.overwrite  # with test=false: only the test is missing
        about = environment("train.py", overrides) | {"scan": scan}
        if not trained and run.last.exists() and not cfg.overwrite:
            run.go_on(about)
        elif not trained:
            run.start(config, about)
        loggers = [build(node, run=run, config=config) for node in cfg.logger.values()]
        with run.log_to_file(earlier), closing(loggers) as summary:
            L.seed_everything(cfg.seed, verbose=False)
            split = "test" if cfg.test else "val"
            run.write_json("floors.json", floor_metrics(data, split))
            model = build_model(cfg.model, data.store.n_items, data.store.n_users)
            if is_floor:
                model.fit(**data.training_part())
            else:
                if not trained:
                    if scan:
                        log.info("scan=%s runs as %s", cfg.scan, scan)
                    validate.warn_of_other_masks(accelerator)
                    if cfg.precision == "bf16-mixed":
                        validate.warn_of_slow_bf16(accelerator)
                    cfg.trainer.accelerator = accelerator
                    fit(cfg, config, data, model, run, loggers, watch)
                load_weights(model, read_checkpoint(run.checkpoints / "best.ckpt"))
            loader, n_items = data.evaluation_loader(split), data.store.n_items
            metrics, ranks = evaluate(model, loader, n_items, accelerator)
            summary.update({f"{split}/{name}": value for name, value in metrics.items()})
            run.write_json(f"{split}_metrics.json", metrics | data.about | {"smoke": cfg.smoke})
            if cfg.test:
                run.write_ranks(raw_ranks(data.store, ranks))
            run.finish(model_card(run))
    print_run(run)
    return run.path


def fit(cfg: DictConfig, config: dict, data, model, run, loggers: list, watch=None) -> None:
    """Train to early stopping, on from last.ckpt if there is one; leaves it and best.ckpt."""
    from recblr.models.popularity import training_counts
    from recblr.models.saved import build, has_users
    from recblr.training.evaluate import epochs_done
    from recblr.training.module import SequentialRecommender

    if run.last.exists():
        epochs, done = epochs_done(run.last, data.split_hash)
        run.keep_epochs(epochs)
        log.info("going on after epoch %d of %s", epochs, run.path)
        if done:
            return

    store = data.store
    identity = {"config": config, "split_hash": data.split_hash}
    identity["item_ids"] = store.item_ids.tolist()
    identity["item_counts"] = training_counts(
        **data.training_part(), size=store.n_items + 1
    ).tolist()
    if has_users(cfg.model):
        identity["user_ids"] = store.user_ids.tolist()
    module = SequentialRecommender(
        model,
        store.n_items,
        build(cfg.objective),
        build(cfg.optimizer),
        identity,
        cfg.precision,
        cfg.seed,
    )
    if cfg.trainer.accelerator == "cpu":
        seconds = module.warm_up(next(iter(data.train_dataloader())))
        log.info("kernels ready after %.1f s", seconds)
    cfg.callbacks.best.dirpath = cfg.callbacks.last.dirpath = str(run.checkpoints)
    callbacks = [build(node) for node in cfg.callbacks.values()]
    callbacks += [watch(run)] if watch else []
    trainer = build(cfg.trainer, callbacks=callbacks, logger=loggers)
    trainer.fit(module, datamodule=data, ckpt_path=run.last if run.last.exists() else None)


if __name__ == "__main__":
    with one_line_errors():
        main()
