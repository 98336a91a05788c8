"""Which edits change a step's key, and which do not: a wrong hit is a bug of the worst kind."""

from __future__ import annotations

import importlib
import linecache
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from everloop.pipelines import code, facts, source
from everloop.pipelines.code import CodePrint, fingerprint

FLOW = """
    import functools
    import math
    from dataclasses import dataclass

    import everloop.pipelines.api as ev
    import lib
    from lib import LIMIT, scale
    from lib import scale as other

    RATE = 3
    TABLE = {"a": 1, "b": [1, 2]}

    def helper(x):
        '''Help.'''
        # a comment
        return x + RATE

    def adder(n):
        def add(x):
            return x + n
        return add

    plus, plus_too = adder(1), adder(2)
    first, second = lambda x: x + 1, lambda x: x * 2
    part = functools.partial(helper, 5)

    @dataclass
    class Config:
        depth: int = 2

        def leaves(self):
            return 2 ** self.depth

    class Base:
        def area(self):
            return 1

    class Shape(Base):
        pass

    CONFIG = Config(3)

    def unrelated(x):
        return x

    def decorate(function):
        @functools.wraps(function)
        def wrapper(*args):
            return function(*args) + 0
        return wrapper

    @decorate
    def decorated(x):
        return x

    @ev.step
    def step(x, rows=10):
        total = helper(x) + scale(x) + other(x) + lib.deep(x) + TABLE["a"] + LIMIT
        total += plus(x) - plus_too(x) + first(x) - second(x) + part()
        total += Config().leaves() + CONFIG.leaves() + Shape().area() + decorated(x)
        from late import late
        import late as late_module
        return total + math.sqrt(late(x)) + late_module.TWICE
"""
LIB = """
    LIMIT = 10
    FACTOR = 2

    def scale(x):
        return x * FACTOR

    def deep(x):
        return deeper(x)

    def deeper(x):
        return x

    def swapped(x):
        return -x
"""
LATE = """
    TWICE = 2
    def late(x):
        return x
"""
MODULES = {"flow": FLOW, "lib": LIB, "late": LATE}


class Project:
    """Modules in a folder that can be edited and imported again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in MODULES.items():
            self.write(name, text)

    def write(self, name: str, text: str) -> None:
        file = self.folder / f"{name}.py"
        file.write_text(textwrap.dedent(text))
        os.utime(file, (1_000_000_000, 1_000_000_000))  # older than this process, as most are

    def edit(self, module: str, old: str, new: str) -> None:
        text = textwrap.dedent(MODULES[module])
        assert old in text
        self.write(module, text.replace(old, new))

    def key(self, name: str = "step") -> CodePrint:
        for module in MODULES:
            sys.modules.pop(module, None)
        importlib.invalidate_caches()
        return fingerprint(getattr(importlib.import_module("flow"), name).function)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield Project(tmp_path)
    for module in (*MODULES, "pack", "pack.part"):
        sys.modules.pop(module, None)


CHANGES = [
    ("step body", "flow", "total = helper(x)", "total = 1 + helper(x)"),
    ("default of the step", "flow", "rows=10", "rows=11"),
    ("helper in the module", "flow", "return x + RATE", "return x - RATE"),
    ("imported helper", "lib", "return x * FACTOR", "return x / FACTOR"),
    ("helper's helper", "lib", "def deeper(x):\n    return x", "def deeper(x):\n    return x + 1"),
    ("module constant", "flow", "RATE = 3", "RATE = 4"),
    ("module constant of another type", "flow", "RATE = 3", "RATE = 3.0"),
    ("imported constant", "lib", "LIMIT = 10", "LIMIT = 11"),
    ("constant of an imported helper", "lib", "FACTOR = 2", "FACTOR = 3"),
    ("dict constant", "flow", '"b": [1, 2]', '"b": [1, 3]'),
    ("closure value", "flow", "adder(1), adder(2)", "adder(1), adder(3)"),
    ("closures swapped", "flow", "adder(1), adder(2)", "adder(2), adder(1)"),
    ("one of two lambdas on a line", "flow", "x + 1, lambda x: x * 2", "x + 1, lambda x: x * 3"),
    ("lambdas swapped", "flow", "first, second =", "second, first ="),
    ("partial argument", "flow", "partial(helper, 5)", "partial(helper, 6)"),
    ("method of a class used", "flow", "2 ** self.depth", "3 ** self.depth"),
    ("default of a dataclass", "flow", "depth: int = 2", "depth: int = 4"),
    ("instance held by the module", "flow", "CONFIG = Config(3)", "CONFIG = Config(4)"),
    ("method of a base class", "flow", "return 1", "return 2"),
    ("base class", "flow", "class Shape(Base)", "class Shape(Config)"),
    ("decorator", "flow", "function(*args) + 0", "function(*args) + 1"),
    ("what is decorated", "flow", "decorated(x):\n    return", "decorated(x):\n    return -"),
    ("alias to another function", "flow", "scale as other", "swapped as other"),
    ("alias swapped", "flow", "LIMIT, scale\n", "LIMIT, swapped as scale\n"),
    ("import within the step", "late", "return x", "return x + 1"),
    ("attribute of a module imported within", "late", "TWICE = 2", "TWICE = 3"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "old", "new"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES]
)
def test_edit_changes_the_key(project: Project, module: str, old: str, new: str) -> None:
    before = project.key()
    assert before.cacheable
    project.edit(module, old, new)
    assert project.key().digest != before.digest


SAME = [
    ("nothing", "flow", "RATE = 3", "RATE = 3"),
    ("comment", "flow", "# a comment", "# another\n    # and more"),
    ("docstring", "flow", "Help.", "Help well."),
    (
        "unrelated function",
        "flow",
        "def unrelated(x):\n    return x",
        "def unrelated(x):\n    return 0",
    ),
    ("unrelated constant", "lib", "LIMIT = 10", "LIMIT = 10\nUNUSED = 1"),
    ("position", "flow", "RATE = 3", "\n\n\nRATE = 3"),
    ("blank space", "flow", "return x + RATE", "return (x   +   RATE)"),
    ("our own decorator", "flow", "@ev.step", "@ev.step(retries=2)"),
]


@pytest.mark.parametrize(("module", "old", "new"), [c[1:] for c in SAME], ids=[c[0] for c in SAME])
def test_edit_keeps_the_key(project: Project, module: str, old: str, new: str) -> None:
    before = project.key()
    project.edit(module, old, new)
    assert project.key().parts == before.parts


def test_parts_name_what_was_reached(project: Project) -> None:
    parts = project.key().parts
    assert {"code:flow.step", "code:flow.helper", "code:lib.deeper", "code:late.late"} <= set(parts)
    assert parts["const:flow.LIMIT"] == "int:10"
    assert "code:flow.unrelated" not in parts
    assert "dist:everloop" not in parts


def variant(project: Project, body: str, head: str = "") -> CodePrint:
    """The key of a step with this body."""
    indented = textwrap.indent(textwrap.dedent(body).strip(), "    ")
    head = textwrap.dedent(head)
    text = f"import everloop.pipelines.api as ev\n{head}\n@ev.step\ndef step(x=0):\n{indented}\n"
    project.write("flow", text)
    return project.key()


def test_eval_takes_the_whole_module(project: Project) -> None:
    before = variant(project, "return eval('f')(x)", "def f(x):\n    return x")
    assert before.cacheable
    assert any("eval" in note for note in before.notes)
    assert (
        variant(project, "return eval('f')(x)", "def f(x):\n    return -x").digest != before.digest
    )


def test_getattr_by_text_on_a_module_takes_the_whole_of_it(project: Project) -> None:
    body = "return getattr(lib, 'dee' + 'p')(x)"
    before = variant(project, body, "import lib")
    assert before.cacheable
    project.edit("lib", "def deeper(x):\n    return x", "def deeper(x):\n    return 2 * x")
    assert project.key().digest != before.digest


def test_import_by_a_name_made_at_run_time_is_not_cached(project: Project) -> None:
    for head, call in [
        ("import importlib", "importlib.import_module('li' + 'b')"),
        ("from importlib import import_module", "import_module('li' + 'b')"),
        ("", "__import__('li' + 'b')"),
        ("import sys", "sys.modules['li' + 'b']"),
    ]:
        made = variant(project, f"return {call}.deep(x)", head)
        assert not made.cacheable
        assert any("not cached" in note for note in made.notes)


def test_star_import_is_followed(project: Project) -> None:
    before = variant(project, "return deep(x)", "from lib import *")
    project.edit("lib", "def deeper(x):\n    return x", "def deeper(x):\n    return 2 * x")
    assert project.key().digest != before.digest


def test_conditional_import_counts_by_what_it_gave(project: Project) -> None:
    head = "try:\n    from lib import {} as f\nexcept ImportError:\n    from late import late as f"
    before = variant(project, "return f(x)", head.format("deep"))
    assert variant(project, "return f(x)", head.format("missing")).digest != before.digest


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("", "from pack import part\nreturn part.f(x)"),
        ("", "from pack.part import f\nreturn f(x)"),
        ("", "import pack.part\nreturn pack.part.f(x)"),
        ("", "import pack.part as part\nreturn part.f(x)"),
        ("", "global pack\nimport pack.part\nreturn pack.part.f(x)"),
        ("import pack", "return pack.part.f(x)"),
    ],
    ids=["from package", "from module", "import", "import as", "into a global", "of a package"],
)
def test_part_of_a_package_that_is_not_yet_imported_is_followed(
    project: Project, head: str, body: str
) -> None:
    (project.folder / "pack").mkdir()
    project.write("pack/__init__", "")
    digests = set()
    for text in ("return x", "return -x", "return x"):
        project.write("pack/part", f"def f(x):\n    {text}")
        for module in ("pack", "pack.part"):
            sys.modules.pop(module, None)
        made = variant(project, body, head)
        assert made.cacheable
        digests.add(made.digest)
    assert len(digests) == 2


def test_attribute_that_a_module_makes_takes_the_whole_of_it(project: Project) -> None:
    text = "def __getattr__(name):\n    return lambda x: x{}"
    digests = set()
    for change in ("", " + 1"):
        project.write("lib", text.format(change))
        made = variant(project, "return lib.f(x)", "import lib")
        assert made.cacheable
        assert any("made by __getattr__" in note for note in made.notes)
        digests.add(made.digest)
    assert len(digests) == 2


def test_method_by_itself_brings_the_base_that_it_calls_by_super(project: Project) -> None:
    head = """
    class Base:
        def f(self): return {}
    class Shape(Base):
        def g(self): return super().f()
    g = Shape.g
    """
    before = variant(project, "return g(x)", head.format(1))
    assert variant(project, "return g(x)", head.format(2)).digest != before.digest


def test_functions_in_a_registry_are_followed(project: Project) -> None:
    head = "def f(x):\n    return x{}\nREGISTRY = {{'f': f}}"
    before = variant(project, "return REGISTRY['f'](x)", head.format(""))
    assert variant(project, "return REGISTRY['f'](x)", head.format(" + 1")).digest != before.digest


def test_property_static_and_class_methods_are_followed(project: Project) -> None:
    head = """
    class C:
        @property
        def a(self): return {}
        @staticmethod
        def b(): return {}
        @classmethod
        def c(cls): return {}
    """
    base = variant(project, "return C().a + C.b() + C.c()", head.format(1, 2, 3)).digest
    for change in [(0, 2, 3), (1, 0, 3), (1, 2, 0)]:
        assert variant(project, "return C().a + C.b() + C.c()", head.format(*change)).digest != base


def test_cached_function_is_followed(project: Project) -> None:
    head = "import functools\n@functools.lru_cache\ndef f(x):\n    return x{}"
    before = variant(project, "return f(x)", head.format(""))
    assert before.cacheable
    assert variant(project, "return f(x)", head.format(" + 1")).digest != before.digest


def test_recursion_and_circles_end(project: Project) -> None:
    head = "def f(x):\n    return g(x)\ndef g(x):\n    return f(x) if x else step.function(x)"
    assert "code:flow.g" in variant(project, "return f(x)", head).parts


def test_unknown_object_takes_the_module_and_says_so(project: Project) -> None:
    head = "import threading\nLOCK = threading.Lock()\ndef f(x):\n    return x{}"
    before = variant(project, "with LOCK:\n    return x", head.format(""))
    assert before.cacheable
    assert any("no canonical form" in note for note in before.notes)
    assert variant(project, "with LOCK:\n    return x", head.format(" + 1")).digest != before.digest


def test_module_that_was_written_after_the_start_is_not_guessed(project: Project) -> None:
    made = variant(project, "return eval('x')")
    assert made.cacheable
    os.utime(project.folder / "flow.py")
    made = project.key()
    assert not made.cacheable


def test_file_edited_after_import_does_not_count_before_it_is_imported_again(
    project: Project,
) -> None:
    before = project.key()
    function = sys.modules["flow"].step.function
    project.edit("flow", "total = helper(x)", "total = 7 + helper(x)")
    changed = project.key()
    again = fingerprint(function)  # the old code, whose source is gone
    assert again.digest != changed.digest
    assert before.digest != changed.digest


Patch = Callable[[pytest.MonkeyPatch], None]


@pytest.mark.parametrize(
    "patch",
    [
        lambda m: m.setattr("lib.deeper", lambda x: 0),
        lambda m: m.setattr("lib.FACTOR", 5),
        lambda m: m.setattr("flow.Config.leaves", lambda self: 0),
        lambda m: m.setitem(sys.modules["flow"].TABLE, "a", 9),
        lambda m: sys.modules["flow"].TABLE["b"].append(4),
        lambda m: m.setattr(sys.modules["flow"].CONFIG, "depth", 9),
        lambda m: m.setattr(sys.modules["flow"].step.function, "__defaults__", (11,)),
    ],
    ids=["function", "constant", "method", "dict", "list inside", "instance", "default"],
)
def test_patch_while_the_process_runs_is_seen(
    project: Project, monkeypatch: pytest.MonkeyPatch, patch: Patch
) -> None:
    before = project.key()
    function = sys.modules["flow"].step.function
    assert fingerprint(function) is before  # remembered
    patch(monkeypatch)
    assert fingerprint(function).digest != before.digest


def test_version_of_an_imported_package_changes_the_key(tmp_path: Path) -> None:
    packages = tmp_path / "site-packages"
    info = packages / "somelib-1.0.dist-info"
    info.mkdir(parents=True)
    (packages / "somelib.py").write_text("def f(x):\n    return x\n")
    (tmp_path / "flow.py").write_text("import somelib\ndef step(x):\n    return somelib.f(x)\n")
    script = (
        "from everloop.pipelines.code import fingerprint; import flow;"
        "print(fingerprint(flow.step).parts['dist:somelib'])"
    )
    path = os.pathsep.join([str(packages), str(tmp_path), *sys.path])
    for version in ("1.0", "1.1"):
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: somelib\nVersion: {version}\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == version


def test_key_is_the_same_in_another_process(project: Project) -> None:
    script = (
        "from everloop.pipelines.code import fingerprint; import flow;"
        "print(fingerprint(flow.step.function).digest)"
    )
    path = os.pathsep.join([str(project.folder), *sys.path])
    digests = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout.strip())
    assert digests == {project.key().digest}


def test_threads_that_digest_one_file_agree(project: Project) -> None:
    project.key()
    flow = sys.modules["flow"]
    roots = [flow.step.function, flow.decorate, flow.adder, flow.Config]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    found = set()
    try:
        for _ in range(20):
            facts._forget()
            source._source.cache_clear()
            code._memo.clear()
            with ThreadPoolExecutor(len(roots)) as pool:
                found.add(tuple(made.digest for made in pool.map(fingerprint, roots)))
    finally:
        sys.setswitchinterval(interval)
    assert len(found) == 1


def cell(number: int, text: str, namespace: dict[str, object]) -> None:
    """Execute a cell as a notebook does: a name of its own for each, the source in `linecache`."""
    name = f"<cell {number}>"
    lines = textwrap.dedent(text).splitlines(keepends=True)
    linecache.cache[name] = (len(text), None, lines, name)
    exec(compile("".join(lines), name, "exec"), namespace)


def test_functions_of_notebook_cells_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", notebook)
    namespace = vars(notebook)
    cell(1, "RATE = 2\ndef helper(x):\n    return x * RATE  # twice\n", namespace)
    cell(2, "def step(x):\n    return helper(x)\n", namespace)
    step = namespace["step"]
    before = fingerprint(step)
    assert before.cacheable
    cell(3, "def helper(x):\n    # a comment\n    return (x * RATE)\n", namespace)
    assert fingerprint(step).digest == before.digest
    cell(4, "def helper(x):\n    return x + RATE\n", namespace)
    changed = fingerprint(step)
    assert changed.digest != before.digest
    cell(5, "RATE = 3\n", namespace)
    assert fingerprint(step).digest != changed.digest
    cell(6, "def step(x):\n    return eval('helper')(x)\n", namespace)
    assert not fingerprint(namespace["step"]).cacheable  # a notebook has no file to count whole


def test_compiled_module_of_the_project_counts_by_its_bytes(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = project.folder / "fast.so"
    digests = set()
    for data in (b"one", b"two", b"one"):
        binary.write_bytes(data)
        os.utime(binary, (1_000_000_000, 1_000_000_000))
        compiled = ModuleType("fast")
        compiled.__file__ = str(binary)
        monkeypatch.setitem(sys.modules, "fast", compiled)
        made = variant(project, "m = fast\nreturn m.speed(x)", "import fast")
        assert made.cacheable
        digests.add(made.digest)
    assert len(digests) == 2
