"""Tells the user's project from what is installed: by file for modules, by name for versions.

A project module is one whose file lies outside the standard library and outside the folders of
installed packages; editable installs therefore count as project. Everything else enters a step's
key as the name and version of its distribution.
"""

from __future__ import annotations

import functools
import site
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

__all__ = ["distribution_of", "distributions_of", "is_project", "module_file", "module_name"]

_OURS = str(Path(__file__).parents[1])


@functools.cache
def _installed_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders.update(site.getsitepackages(), [site.getusersitepackages()])
    folders.update({str(Path(folder).resolve()) for folder in folders})
    return (*(f"{folder}/" for folder in folders), f"{_OURS}/")


def module_file(module: ModuleType) -> str:
    """The file of a module, or empty (built-in, notebook, interactive)."""
    return getattr(module, "__file__", None) or ""


def module_name(name: str) -> str:
    """`name`, or for the main script the name that it would be imported by."""
    if name != "__main__":
        return name
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name).removesuffix(".__main__")
    file = module_file(main)
    return Path(file).stem if file else name


@functools.cache
def _is_project_file(file: str) -> bool:
    return not file.startswith(_installed_folders()) and "/site-packages/" not in file


def is_project(name: str) -> bool:
    """Whether the module called `name` belongs to the user's project."""
    module = sys.modules.get(name)
    if module is None or name == "builtins":
        return False
    file = module_file(module)
    if file:
        return _is_project_file(file)
    if getattr(module, "__path__", None):  # a namespace package: by where its first folder lies
        return _is_project_file(f"{next(iter(module.__path__))}/")
    return name == "__main__"


@functools.cache
def distributions_of(name: str) -> dict[str, str]:
    """Versions of all distributions that the module `name` may be of; see `distribution_of`.

    Of a namespace package there are several, as each brings a part of it.
    """
    first, version = distribution_of(name)
    if not first:
        return {}
    top = name.partition(".")[0]
    module = sys.modules.get(top)
    if module is None or module_file(module):
        return {first: version}
    import importlib.metadata

    owners = _owners().get(top, [])
    return {owner: importlib.metadata.version(owner) for owner in owners} or {first: version}


@functools.cache
def distribution_of(name: str) -> tuple[str, str]:
    """Name and version of the distribution that holds the module `name`.

    Empty name for the standard library; empty version where there is no metadata.
    """
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top == "builtins":
        return "", ""
    if top == __name__.partition(".")[0]:  # our own
        return top, str(vars(sys.modules[top])["__version__"])
    import importlib.metadata  # with its parser of mails it takes as long as Python itself

    try:
        return top, importlib.metadata.version(top)
    except importlib.metadata.PackageNotFoundError:
        pass
    owners = _owners().get(top, [])
    if owners:
        owner = sorted(owners)[0]
        return owner, importlib.metadata.version(owner)
    return top, str(getattr(sys.modules.get(top), "__version__", ""))


@functools.cache
def _owners() -> dict[str, list[str]]:
    import importlib.metadata

    return dict(importlib.metadata.packages_distributions())
