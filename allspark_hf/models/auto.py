"""transformers' Auto classes get to know the models at the first lookup: `import allspark_hf` imports none of them."""

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


AUTO_MODULE = "transformers.models.auto.configuration_auto"  # where every Auto class looks up a `model_type`
MODEL_TYPES = ("allspark", "allspark_backbone")


def register_at_first_lookup() -> None:
    """
    From now on transformers' lookup of one of [`MODEL_TYPES`] registers the models first. Nothing is imported here: if
    transformers' Auto classes are not imported yet, the first import of them installs the lookup.
    """
    module = sys.modules.get(AUTO_MODULE)
    if hasattr(module, "CONFIG_MAPPING"):
        _watch(module)
    else:
        sys.meta_path.insert(0, _Awaiting())


class _Awaiting(MetaPathFinder):
    """Finds [`AUTO_MODULE`] as the others do, and watches its mapping once the module is loaded."""

    def find_spec(self, name: str, path, target=None) -> ModuleSpec | None:
        if name != AUTO_MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_watch(module: ModuleType):
            execute(module)
            _watch(module)

        spec.loader.exec_module = execute_and_watch
        return spec


def _watch(module: ModuleType):
    """
    The mapping of configurations registers the models when it is asked for one. Not earlier: transformers imports the
    Auto classes in the midst of modules that the models need.
    """
    mapping = module.CONFIG_MAPPING
    plain = type(mapping)

    class Watched(plain):
        def __getitem__(self, key):
            register_if_own(key)
            return plain.__getitem__(self, key)

        def __contains__(self, key):
            register_if_own(key)
            return plain.__contains__(self, key)

    def register_if_own(key):
        if key in MODEL_TYPES:
            mapping.__class__ = plain
            importlib.import_module(".registration", __package__)

    mapping.__class__ = Watched
