"""What a run leaves on disk: write it, read it.

    <runs>/<data>/<model>[-<ablation>]/s<seed>-<hash8>/
        config.yaml  environment.json  metrics.csv  test_metrics.json  floors.json
        test_ranks.parquet  checkpoints/{best,last}.ckpt  run.log  README.md

`README.md` (the model card) is written last: a folder that has it is a finished run. One without
it goes on from `last.ckpt`, the end of its last whole epoch. `failed.json` says which error ended
it, if one did.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

Config = dict[str, Any]

log = logging.getLogger(__name__)

METRICS = ("hr@10", "ndcg@10", "mrr@10", "hr@20", "ndcg@20", "mrr@20")
_PACKAGES = ("torch", "triton", "lightning", "torchmetrics", "hydra-core", "omegaconf", "pandas")
_PACKAGES += ("numpy", "numba", "wandb")
# What cannot change a result: where things are, what is shown, what is only said of the data.
_NOT_IDENTITY = {
    "": {"paths", "logger", "resume", "test", "overwrite", "search"},
    "data": {"path", "urls", "sha256", "folder", "card"},
    "trainer": {"accelerator", "devices", "enable_progress_bar", "enable_model_summary"},
    "callbacks": {"record", "bar"},
}


class RunFolder:
    """One run on disk. Nothing is written before `start`."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"

    @classmethod
    def of(cls, config: Config, split_hash: str) -> RunFolder:
        """The folder that belongs to a resolved config and the split that it trains on."""
        name = f"s{config['seed']}-{identity(config, split_hash)}"
        return cls(
            Path(config["paths"]["runs"]) / config["data"]["name"] / variant_name(config) / name
        )

    def finished(self, test: bool = False) -> bool:
        """Whether the run came to its end and, if `test`, has test metrics."""
        needed = ["README.md"] + ["test_metrics.json"] * test
        return all((self.path / name).exists() for name in needed)

    @property
    def last(self) -> Path:
        """The checkpoint that an unfinished run goes on from, if it is there."""
        return self.checkpoints / "last.ckpt"

    def start(self, config: Config, environment: dict[str, Any]) -> None:
        """Create the folder anew and write what is known before training."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        import yaml

        self._write("config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        self.write_json("environment.json", environment)

    def go_on(self, environment: dict[str, Any]) -> None:
        """Keep what was done, and beside it where it goes on: `resumed` in `environment.json`."""
        known = self.read_json("environment.json")
        resumed = [*known.get("resumed", []), environment]
        self.write_json("environment.json", known | {"resumed": resumed})
        (self.path / "failed.json").unlink(missing_ok=True)

    def asked_again(self, command: str) -> None:
        """Keep another command of the same run, and of which commit: `also` in `environment.json`.

        A recipe's name may have meant another setting when the run was trained.
        """
        known = self.read_json("environment.json")
        also = known.get("also", [])
        if command not in (known["command"], *(one["command"] for one in also)):
            also = [*also, {"command": command, "commit": commit()}]
            self.write_json("environment.json", known | {"also": also})

    def keep_epochs(self, epochs: int) -> None:
        """Cut `metrics.csv` after that many epochs: what follows is done again."""
        path = self.path / "metrics.csv"
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            self._write("metrics.csv", "".join(lines[: 1 + epochs]))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from writing this run; the system frees it if this one dies."""
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.with_name(f"{self.path.name}.lock")
        with file.open("w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ValueError(
                    f"{self.path}: another process is writing this run; wait for it, or set "
                    "paths.runs to another folder"
                ) from None
            try:
                yield
            finally:
                file.unlink()

    def locked(self) -> bool:
        """Whether a process that lives is writing this run."""
        file = self.path.with_name(f"{self.path.name}.lock")
        try:
            import fcntl

            with file.open("r") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except (ImportError, FileNotFoundError):
            return False
        return False

    @contextmanager
    def log_to_file(self, earlier: MemoryHandler) -> Iterator[None]:
        """Send every log message, and an error that ends the run, to `run.log` too.

        earlier: a handler of the root logger that has kept the messages until now.
        """
        handler = logging.FileHandler(self.path / "run.log", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root = logging.getLogger()
        root.removeHandler(earlier)
        earlier.setTarget(handler)
        earlier.flush()
        root.addHandler(handler)
        try:
            yield
        except BaseException as error:
            info = (type(error), error, error.__traceback__)
            handler.handle(root.makeRecord("recblr", logging.ERROR, "", 0, "failed", (), info))
            if isinstance(error, Exception):
                self.write_json("failed.json", {"error": f"{type(error).__name__}: {error}"})
            how = "goes on with it" if self.last.exists() else "starts it anew"
            log.error("unfinished: %s; the same command %s", self.path, how)
            raise
        finally:
            root.removeHandler(handler)
            handler.close()

    def append_epoch(self, row: dict[str, float]) -> None:
        """One line of `metrics.csv`. Every row has the keys of the first."""
        path = self.path / "metrics.csv"
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)

    def read_epochs(self) -> list[dict[str, float]]:
        """The rows of `metrics.csv`; none for a floor, or before the first epoch's end."""
        path = self.path / "metrics.csv"
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]

    def read_config(self) -> Config:
        import yaml

        config = yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"{self.path / 'config.yaml'}: no configuration; delete the folder")
        return config

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        self._write(name, json.dumps(content, indent=2) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.path / name}: {error}; delete the folder") from None

    def write_ranks(self, columns: dict[str, Any]) -> None:
        """`test_ranks.parquet`: user_id, item_id (str), higher, equal (int32), a row per user."""
        import pandas as pd

        partial = self.path / "test_ranks.parquet.part"
        pd.DataFrame(columns).to_parquet(partial, index=False)
        partial.replace(self.path / "test_ranks.parquet")

    def finish(self, card: str) -> None:
        self._write("README.md", card)

    def _write(self, name: str, text: str) -> None:
        partial = self.path / f"{name}.part"  # a killed run leaves no half-written file
        partial.write_text(text, encoding="utf-8")
        partial.replace(self.path / name)


def keep_log() -> MemoryHandler:
    """Keep what is logged from now on, for the `run.log` of a folder that is not known yet."""
    handler = MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)
    logging.getLogger().addHandler(handler)
    return handler


def model_name(config: Config) -> str:
    """`recblr` for `_target_: recblr.models.recblr.RecBLR`: a model is one module."""
    return config["model"]["_target_"].split(".")[-2]


def variant_name(config: Config) -> str:
    """`recblr`, or `recblr-no_conv1d` for an ablation."""
    ablation = config.get("ablation", "default")
    return model_name(config) + ("" if ablation == "default" else f"-{ablation}")


def identity(config: Config, split_hash: str) -> str:
    """Eight hex digits over everything that may change the result, and the split."""
    kept = {key: value for key, value in config.items() if key not in _NOT_IDENTITY[""]}
    for section in ("data", "trainer", "callbacks"):
        ignored = _NOT_IDENTITY[section]
        kept[section] = {k: v for k, v in config[section].items() if k not in ignored}
    text = json.dumps([kept, split_hash], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def command_of(entry: str, overrides: list[str]) -> str:
    return shlex.join(["python", entry, *overrides])


def environment(entry: str, overrides: list[str]) -> dict[str, Any]:
    """Versions, commit, hardware and threads of this process; the command that repeats the run."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "command": command_of(entry, overrides),
        "started": datetime.now(timezone.utc).isoformat(timespec="microseconds"),
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version(name) for name in _PACKAGES},
        "cpu": cpu_name(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
    }


def cpu_name() -> str:
    """Model and the vectors that torch uses, `AMD EPYC (AVX2)`: one model can be of two speeds."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def cores() -> int | None:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Commit of the checkout that this file belongs to, `-dirty` with uncommitted changes.

    Changes in results/ and RESULTS.md do not count: reports and benchmarks write there.
    """

    def git(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )

    try:
        name = git("describe", "--always", "--abbrev=12").stdout.strip()
        same = (
            git(
                "diff",
                "--quiet",
                "HEAD",
                "--",
                ":/",
                ":(top,exclude)results",
                ":(top,exclude)RESULTS.md",
            ).returncode
            == 0
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (name if same else f"{name}-dirty") if name else None
