"""Evaluate a checkpoint with nothing but its path: `python evaluate.py --help`."""

import logging
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from recblr.training.cli import one_line_errors

log = logging.getLogger("recblr")
CONFIG = Path(__file__).parent / "conf" / "evaluate.yaml"


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
@one_line_errors(in_job=True)
def main(cfg: DictConfig) -> None:
    from recblr.models.saved import (
        CHECKPOINT_KEY,
        build,
        build_model,
        choose_scan,
        load_weights,
        read_checkpoint,
    )
    from recblr.report.tables import print_results, result_rows
    from recblr.run_folder import RunFolder, model_name
    from recblr.training.evaluate import evaluate, floor_metrics
    from recblr.training.loggers import quiet_lightning
    from recblr.training.validate import EVALUATE_KEYS, check_keys, choose_accelerator, known_keys

    quiet_lightning()
    check_keys(cfg, known_keys(CONFIG), EVALUATE_KEYS)
    path = Path(cfg.ckpt_path)
    checkpoint = read_checkpoint(path)
    saved = checkpoint[CHECKPOINT_KEY]
    trained = OmegaConf.create(saved["config"])
    if cfg.data.path is not None and "path" not in trained.data:
        raise ValueError(f"data.path={cfg.data.path}: data={trained.data.name} has no file")
    if cfg.data.path is not None:
        trained.data.path = str(Path(cfg.data.path).expanduser().absolute())
    if cfg.mask_history is not None:
        trained.datamodule.mask_history = cfg.mask_history
    if cfg.scan is not None and "scan" not in trained.model:
        raise ValueError(f"scan={cfg.scan}: {model_name(trained)} has no scan")
    if cfg.scan is not None:
        trained.model.scan = cfg.scan
    accelerator = choose_accelerator(trained.trainer.accelerator)
    if scan := choose_scan(trained.model, accelerator):
        log.info("scan=%s runs as %s", trained.model.scan, scan)

    data = build(trained.datamodule, log=build(trained.data))
    data.load()
    if data.split_hash != saved["split_hash"]:
        raise ValueError(
            f"ckpt_path={path}: trained on other data (split {saved['split_hash'][:12]}, now "
            f"{data.split_hash[:12]}); give the log that it was trained on as data.path"
        )
    model = build_model(trained.model, data.store.n_items, data.store.n_users)
    load_weights(model, checkpoint)
    loader = data.evaluation_loader(cfg.split)
    metrics, _ = evaluate(model, loader, data.store.n_items, accelerator)
    config = OmegaConf.to_container(trained, resolve=True)
    metrics |= data.about
    rows = result_rows(config, cfg.split, floor_metrics(data, cfg.split), metrics)
    print_results(config, cfg.split, data.store.order, rows)
    run = RunFolder(path.absolute().parent.parent)
    if run.finished():
        asked = {"mask_history": cfg.mask_history, "scan": cfg.scan}
        given = "".join(f"_{k}={v}".lower() for k, v in asked.items() if v is not None)
        name = f"evaluate_{cfg.split}{given}.json"
        result = metrics | {"mask_history": trained.datamodule.mask_history, "scan": scan}
        run.write_json(name, result | {"checkpoint": path.name, "smoke": trained.smoke})
        log.info("written: %s", run.path / name)


if __name__ == "__main__":
    with one_line_errors():
        main()
