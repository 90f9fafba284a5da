"""The lifelong learning strategies, one module each. All modules of this package are imported, which registers them.

A new strategy is one file here, or one file of your own that ``--import`` names on the command line. The project has no
other list of strategies: use :func:`strategy_names` and :func:`strategy_class`.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2distill_policy.errors import ConfigError, closest
from training.lifelong.strategy import REGISTERED, Strategy

if TYPE_CHECKING:
    from training.lifelong.memory import Memory
    from training.run_config import RunConfig

#: Files and modules that :func:`import_strategies` has imported. Processes that this process starts import them too.
IMPORTED: list[str] = []

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def strategy_names() -> tuple[str, ...]:
    """Return the names of all registered strategies, in alphabetical order."""
    return tuple(sorted(REGISTERED))


def strategy_class(name: str) -> type[Strategy]:
    """Return the class of the strategy called ``name``.

    Raises:
        ConfigError: No strategy of this name is registered.
    """
    try:
        return REGISTERED[name]
    except KeyError:
        raise ConfigError(
            f"strategy is '{name[:80]}'; allowed are {', '.join(strategy_names())}"
            f"{closest(name, strategy_names()) or '.'} A strategy of your own is loaded by "
            "--import FILE_OR_MODULE on the command line"
        ) from None


def sections() -> dict[str, type[Any]]:
    """Return the configuration section of each strategy that has one: name of the section -> its dataclass."""
    return {
        found.section: found.config_class
        for found in (REGISTERED[name] for name in strategy_names())
        if found.config_class is not None
    }


def make_strategy(config: RunConfig, memory: Memory, history: int) -> Strategy:
    """Make the strategy that a configuration names.

    Args:
        config: Settings of the run. The strategy gets its own section of them.
        memory: Replay buffer of the run.
        history: Number of steps in a window.
    """
    found = strategy_class(config.strategy)
    own = None if found.config_class is None else config.section(found.config_class)
    return found(memory, history, own, config.optim.single_steps)


def import_strategies(sources: Iterable[str]) -> None:
    """Import modules that define strategies, which registers them.

    This runs the code of those modules. They can therefore be named only on the command line or by a program.
    Configuration files and run folders hold just the name of a strategy, and never cause an import.

    Args:
        sources: Paths of Python files (``folder/my_strategy.py``) or names of importable modules
            (``my_package.my_strategy``).

    Raises:
        ConfigError: A file or module is missing, or defines no strategy.
    """
    for source in sources:
        before = set(REGISTERED)
        name = Path(source).stem if source.endswith(".py") else source
        if name not in sys.modules:
            if source.endswith(".py"):
                _import_file(Path(source), name)
            else:
                _import_module(name)
        module = sys.modules[name]
        if set(REGISTERED) == before and not any(c.__module__ == module.__name__ for c in REGISTERED.values()):
            raise ConfigError(
                f"--import {source} registers no strategy; define a subclass of training.lifelong.strategy.Strategy "
                "with a 'name' in it"
            )
        if source not in IMPORTED:
            IMPORTED.append(source)


def import_options() -> list[str]:
    """Return the ``--import`` options with which another process registers the same strategies."""
    return [word for source in IMPORTED for word in ("--import", source)]


def _import_file(path: Path, name: str) -> None:
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"--import {path}: there is no such file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before the module runs, because dataclasses look their module up in sys.modules
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _import_module(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module exists, but a module that it imports does not
        raise ConfigError(
            f"--import {name}: there is no such module on the Python path; name the file itself, such as "
            "--import folder/my_strategy.py"
        ) from error
