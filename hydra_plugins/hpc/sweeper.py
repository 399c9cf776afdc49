"""``hydra/sweeper=hpc``: all combinations of a sweep at once, composed as ``hpc.combinations`` does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper

if TYPE_CHECKING:
    from hydra.types import HydraContext, TaskFunction
    from omegaconf import DictConfig

ConfigStore.instance().store(
    group="hydra/sweeper",
    name="hpc",
    node={"_target_": "hydra_plugins.hpc.sweeper.HpcSweeper", "params": None},
    provider="hpc",
)


class HpcSweeper(Sweeper):
    """Hands the task function of ``hpc submit`` all typed configurations; to any other application's it is Hydra's
    basic sweeper without batches.

    Args:
        params: as of Hydra's basic sweeper: what to sweep over, by key, beside what is typed.
    """

    def __init__(self, params: Mapping[str, str] | None = None) -> None:
        self.params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def sweep(self, arguments: list[str]) -> Any:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        from hpc import combinations

        assert self.hydra_context is not None and self.config is not None, "setup comes first"
        loader, master = self.hydra_context.config_loader, self.config
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        found = combinations.expand(OverridesParser.create(config_loader=loader).parse_overrides(words))
        many = getattr(self.task_function, "many", None)
        if many is None:
            return [self._launcher().launch(found, initial_job_idx=0)]

        def compose(words: list[str]) -> Any:
            from omegaconf import open_dict

            tree = loader.load_sweep_config(master, words)
            with open_dict(tree):
                del tree["hydra"]
            return tree

        many(found, combinations.compose(found, compose, lambda key: bool(loader.get_group_options(key))))
        return None

    def _launcher(self) -> Any:
        from hydra.core.plugins import Plugins

        assert self.hydra_context is not None and self.task_function is not None and self.config is not None
        return Plugins.instance().instantiate_launcher(
            hydra_context=self.hydra_context, task_function=self.task_function, config=self.config
        )
