"""Stands in for torchvision, which timm imports and its optimizers do not use.

Not every build of torch has one. As a script, it runs another script with its arguments.
"""

import importlib.abc
import importlib.machinery
import runpy
import sys
import unittest.mock


class Empty(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module without content in the place of each module of torchvision."""

    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def exec_module(self, module):
        module.__getattr__ = lambda name: unittest.mock.MagicMock()


if __name__ == "__main__":
    del sys.path[0]  # the folder of this file
    sys.meta_path.insert(0, Empty())
    runpy.run_path(sys.argv.pop(1), run_name="__main__")
