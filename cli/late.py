"""PyTorch is imported when it is first used, so that what flags alone rule out is answered without waiting for it."""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any


def import_late(name: str) -> None:
    """Let ``import name`` give a module that is loaded with the first look into it. For the start of a process.

    `importlib.util.LazyLoader` would load it with the second ``import`` of it.
    """
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        return
    module = _Late(name)
    module.__spec__ = spec
    sys.modules[name] = module
    sys.meta_path.insert(0, _Loaded(name))


class _Loaded:
    """Finds submodules that are there already. Where ``import torch.distributed`` is the first look into torch, that
    look loads it too, and what was found then would be run a second time.
    """

    def __init__(self, package: str):
        self._package = package

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if not name.startswith(f"{self._package}.") or name not in sys.modules:
            return None
        self._spec = sys.modules[name].__spec__
        return importlib.util.spec_from_loader(name, self)

    def create_module(self, spec: Any) -> types.ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = self._spec


class _Late(types.ModuleType):
    def __getattr__(self, name: str) -> Any:  # also for __path__, with which an import of a submodule begins
        spec, self.__class__ = self.__spec__, types.ModuleType
        self.__loader__, self.__file__ = spec.loader, spec.origin
        self.__package__, self.__path__ = spec.name, spec.submodule_search_locations
        try:
            spec.loader.exec_module(self)
        except BaseException:
            sys.modules.pop(spec.name, None)
            raise
        return getattr(self, name)
