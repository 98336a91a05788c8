"""The edit matrix: projects, an edit of each, and what has to run again because of it.

A whole small project is edited in many places; what needs a construct of its own is a project of one
step. In all of them `PKG` stands for the package's name, and the step `other` must never run again.
"""

from __future__ import annotations

from os.path import normpath
from typing import NamedTuple

# A package as people write them

FLOW = """
    from __future__ import annotations
    import asyncio
    from typing import TYPE_CHECKING
    import everloop as ev
    from PKG import VAT, scale, settings
    from . import shapes, text
    from .maths import *
    from .maths import offset as shift
    if TYPE_CHECKING:
        from .hints import Hint
    try:
        from .fast import speed
    except ImportError:
        from .slow import speed

    UNUSED = 1

    def unrelated(x):
        return x

    @ev.step
    def totals(x: int = 3) -> float:
        '''Numbers.'''
        y = scale(x) + deep(x) + shift(x) + VAT + settings.LEVELS["high"]  # sum
        y += sum(row for row in rows(x)) + asyncio.run(later(x)) + speed(x) + remembered(x)
        return y + maker(x) + plus(x) + part() + kinds[0](x) + kinds[1](x) + table["twice"](x)

    @ev.step
    def objects(x: int = 3) -> list:
        with text.opened(x) as got:
            pass
        shape = shapes.Square(x)
        return [got, shape.area(), shape.name, shapes.Square.sides, shapes.COLOUR.value,
                shapes.Config().depth, shapes.Config().extra, shapes.Point(1, x).x,
                shapes.double(x), shapes.double("a"), shapes.Registered.known,
                shapes.Made.made, shapes.described(x), shapes.size(shape)]

    @ev.step
    def texts(x: int = 3) -> list:
        return [text.query(), text.levels(), text.HELLO.search("hello 12").group(0),
                text.greeting(), text.WEIGHTS.sum(), int(text.FRAME["a"].sum()), text.found(),
                text.level()]

    @ev.step
    def other(x: int = 3) -> int:
        return x + 1

    @ev.pipeline
    def main() -> list:
        return [totals(), objects(), texts(), other()]
"""
INIT = """
    from .maths import scale
    from .settings import VAT
    VERSION = 1
"""
MATHS = """
    import functools
    from .deeper import deepest
    __all__ = ["deep", "rows", "later", "remembered", "maker", "plus", "part", "kinds", "table"]
    FACTOR = 2

    def scale(x):
        # multiplies
        return x * FACTOR

    def offset(x):
        return x + 1

    def swapped(x):
        return x + 100

    def deep(x):
        return deepest(x)

    def rows(x):
        for row in range(x):
            yield row

    async def later(x):
        return x

    @functools.cache
    def remembered(x):
        return x * 1

    def bounded(high):
        def within(function):
            def bound(x):
                return min(function(x), high)
            return bound
        return within

    @bounded(50)
    def maker(x, start=5):
        return x + start

    def adder(n):
        return lambda x: x + n

    plus, minus = adder(1), adder(-1)
    part = functools.partial(offset, 7)
    kinds = [lambda x: x + 1, lambda x: x - 1]
    table = {"twice": lambda x: 2 * x, "thrice": offset}
"""
DEEPER = """
    def deepest(x):
        return x
"""
SETTINGS = """
    from datetime import timedelta
    VAT = 0.19
    LEVELS = {"low": 1, "high": 9, "wait": timedelta(seconds=3)}
"""
SHAPES = """
    import enum
    import functools
    import operator
    from dataclasses import dataclass, field
    from .base import Base, Meta

    class Square(Base):
        __slots__ = ("side",)
        sides = 4

        def __init__(self, side):
            self.side = side

        @property
        def name(self):
            return "square"

    class Colour(enum.Enum):
        RED = 1
        BLUE = 2

    COLOUR = Colour.RED

    def extras():
        return [1]

    @dataclass
    class Config:
        depth: int = 2
        extra: list = field(default_factory=extras)

    @dataclass(frozen=True)
    class Point:
        x: int
        y: int

    @functools.singledispatch
    def double(x):
        return x

    @double.register
    def _(x: int):
        return x * 2

    @double.register
    def _(x: str):
        return x + x

    class Plugin:
        def __init_subclass__(cls):
            cls.known = "plugin " + cls.__name__

    class Registered(Plugin):
        pass

    class Made(metaclass=Meta):
        pass

    def stamp(cls):
        cls.stamped = 1
        return cls

    @stamp
    class Stamped:
        pass

    def described(x):
        match [x, Stamped.stamped]:
            case [3, found]:
                return (total := found + 1)
            case _:
                return 0

    size = operator.attrgetter("side")
"""
BASE = """
    class Base:
        def area(self):
            return self.side * self.side

    class Meta(type):
        def __new__(mcs, name, bases, space):
            return super().__new__(mcs, name, bases, {**space, "made": 1})
"""
TEXT = """
    import contextlib
    import importlib.resources
    import os
    import re
    from pathlib import Path
    import numpy as np
    import pandas as pd

    HERE = Path(__file__).parent
    HELLO = re.compile("hello [0-9]+")
    WEIGHTS = np.array([1.0, 2.0])
    FRAME = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    LEVEL = "MATRIX_INDIRECT"

    @contextlib.contextmanager
    def opened(x):
        yield x + 1

    def query():
        return (HERE / "query.sql").read_text()

    def levels():
        return importlib.resources.files("PKG").joinpath("data/levels.txt").read_text()

    def greeting():
        return Greeter()(os.environ.get("MATRIX_DIRECT", "none"))

    def found():
        return open("beside.txt").read()

    def level():
        return os.environ[LEVEL]

    class Greeter:
        def __call__(self, name):
            return f"hello {name}"
"""
PROJECT = {
    "PKG/__init__.py": INIT,
    "PKG/flow.py": FLOW,
    "PKG/maths.py": MATHS,
    "PKG/deeper.py": DEEPER,
    "PKG/settings.py": SETTINGS,
    "PKG/shapes.py": SHAPES,
    "PKG/base.py": BASE,
    "PKG/text.py": TEXT,
    "PKG/slow.py": "def speed(x):\n    return x\n",
    "PKG/hints.py": "Hint = int\n",
    "PKG/query.sql": "select 1",
    "PKG/data/levels.txt": "1 2 3",
    "PKG/notes.md": "nothing",
    "beside.txt": "beside",
    "settings.json": '{"MATRIX_DIRECT": "world", "MATRIX_INDIRECT": "7"}',
}


class Case(NamedTuple):
    """One edit.

    Attributes:
        name: What is edited.
        file: Where; empty for a new version of the project's whole set of files.
        old: Text there, or empty for a file that is new.
        new: What it becomes.
        ran: The steps that must run again.
        part: The part of the key that must be named as what decided, or a piece of the note.
        project: The files before.
    """

    name: str
    file: str
    old: str
    new: str
    ran: tuple[str, ...]
    part: str = ""
    project: dict[str, str] = PROJECT


T, O, X = ("totals",), ("objects",), ("texts",)  # noqa: E741

EDITS = [
    Case("step body", "PKG/flow.py", "y = scale(x)", "y = 1 + scale(x)", T, "code:PKG.flow.totals"),
    Case("default of a step", "PKG/flow.py", "totals(x: int = 3)", "totals(x: int = 4)", T, "param:x"),
    Case("re-exported helper", "PKG/maths.py", "x * FACTOR", "x / FACTOR", T, "code:PKG.maths.scale"),
    Case("helper of a helper", "PKG/deeper.py", "return x", "return -x", T, "code:PKG.deeper.deepest"),
    Case("constant of a helper", "PKG/maths.py", "FACTOR = 2", "FACTOR = 3", T, "const:PKG.maths.FACTOR"),
    Case("re-exported constant", "PKG/settings.py", "0.19", "0.2", T, "const:PKG.flow.VAT"),
    Case("re-export of another", "PKG/__init__.py", "import scale", "import swapped as scale", T, "code:PKG.maths.swapped"),
    Case("constant in a dict", "PKG/settings.py", '"high": 9', '"high": 8', T, "const:PKG.settings.LEVELS"),
    Case("duration in a dict", "PKG/settings.py", "seconds=3", "seconds=4", T, "const:PKG.settings.LEVELS"),
    Case("star import", "PKG/maths.py", "for row in range(x)", "for row in range(x + 1)", T, "code:PKG.maths.rows"),
    Case("alias", "PKG/flow.py", "import offset as shift", "import swapped as shift", T, "code:PKG.maths.swapped"),
    Case("conditional import that now works", "PKG/fast.py", "", "def speed(x):\n    return 2 * x\n", T, "code:PKG.fast.speed"),
    Case("the other side of a conditional import", "PKG/slow.py", "return x", "return x + 5", T, "code:PKG.slow.speed"),
    Case("async helper", "PKG/maths.py", "async def later(x):\n        return x", "async def later(x):\n        return -x", T, "code:PKG.maths.later"),
    Case("cached helper", "PKG/maths.py", "x * 1", "x * 3", T, "code:PKG.maths.remembered"),
    Case("decorator from outside", "PKG/maths.py", "min(function(x), high)", "max(function(x), high)", T, "code:PKG.maths.bounded.<locals>.within.<locals>.bound"),
    Case("argument of a decorator", "PKG/maths.py", "@bounded(50)", "@bounded(7)", T, "high"),
    Case("what is decorated", "PKG/maths.py", "return x + start", "return x - start", T, "code:PKG.maths.maker"),
    Case("default of a decorated helper", "PKG/maths.py", "start=5", "start=6", T, "code:PKG.maths.maker"),
    Case("closure value", "PKG/maths.py", "adder(1), adder(-1)", "adder(2), adder(-1)", T, ".n"),
    Case("closures swapped", "PKG/maths.py", "plus, minus = adder(1), adder(-1)", "minus, plus = adder(1), adder(-1)", T, ".n"),
    Case("argument of a partial", "PKG/maths.py", "partial(offset, 7)", "partial(offset, 8)", T, "code:PKG.flow.totals"),
    Case("function of a partial", "PKG/maths.py", "partial(offset, 7)", "partial(swapped, 7)", T, "code:PKG.maths.swapped"),
    Case("one of two lambdas on a line", "PKG/maths.py", "lambda x: x - 1]", "lambda x: x - 2]", T, "lambda"),
    Case("order of lambdas on a line", "PKG/maths.py", "[lambda x: x + 1, lambda x: x - 1]", "[lambda x: x - 1, lambda x: 0 * x]", T, "lambda"),
    Case("function in a dict", "PKG/maths.py", '"twice": lambda x: 2 * x', '"twice": lambda x: 4 * x', T, "lambda"),
    Case("dict holds another function", "PKG/maths.py", '"twice": lambda x: 2 * x', '"twice": swapped', T, "code:PKG.maths.swapped"),
    Case("inherited method in another module", "PKG/base.py", "self.side * self.side", "self.side + 1", O, "code:PKG.base.Base"),
    Case("property", "PKG/shapes.py", 'return "square"', 'return "SQUARE"', O, "code:PKG.shapes.Square.name"),
    Case("class attribute", "PKG/shapes.py", "sides = 4", "sides = 5", O, "const:PKG.shapes.Square.sides"),
    Case("base class", "PKG/shapes.py", "class Square(Base)", "class Square(Base, Exception)", O, "code:PKG.shapes.Square"),
    Case("enum value", "PKG/shapes.py", "RED = 1", "RED = 3", O, "Colour"),
    Case("other enum member chosen", "PKG/shapes.py", "COLOUR = Colour.RED", "COLOUR = Colour.BLUE", O, "const:PKG.shapes.COLOUR"),
    Case("default of a dataclass", "PKG/shapes.py", "depth: int = 2", "depth: int = 4", O, "Config"),
    Case("default factory", "PKG/shapes.py", "return [1]", "return [2]", O, "code:PKG.shapes.extras"),
    Case("order of fields", "PKG/shapes.py", "x: int\n        y: int", "y: int\n        x: int", O, "Point"),
    Case("registered for a type", "PKG/shapes.py", "return x * 2", "return x * 3", O, "code:PKG.shapes._"),
    Case("not registered any more", "PKG/shapes.py", "@double.register\n    def _(x: str)", "def _(x: str)", O, "code:"),
    Case("__init_subclass__", "PKG/shapes.py", '"plugin "', '"plug-in "', O, "Registered"),
    Case("metaclass", "PKG/base.py", '"made": 1', '"made": 2', O, "code:PKG.base.Meta"),
    Case("class decorator", "PKG/shapes.py", "cls.stamped = 1", "cls.stamped = 2", O, "Stamped"),
    Case("match and walrus", "PKG/shapes.py", "found + 1", "found + 2", O, "code:PKG.shapes.described"),
    Case("attrgetter", "PKG/shapes.py", 'attrgetter("side")', 'attrgetter("sides")', O, "const:PKG.shapes.size"),
    Case("context manager", "PKG/text.py", "yield x + 1", "yield x + 2", O, "code:PKG.text.opened"),
    Case("regular expression", "PKG/text.py", "[0-9]+", "[0-9]", X, "const:PKG.text.HELLO"),
    Case("array", "PKG/text.py", "[1.0, 2.0]", "[1.0, 3.0]", X, "const:PKG.text.WEIGHTS"),
    Case("data frame", "PKG/text.py", '"a": [1, 2]', '"a": [1, 3]', X, "const:PKG.text.FRAME"),
    Case("__call__ of an object", "PKG/text.py", "hello {name}", "bye {name}", X, "code:PKG.text.Greeter.__call__"),
    Case("file beside the code", "PKG/query.sql", "select 1", "select 2", X, "query.sql"),
    Case("package data", "PKG/data/levels.txt", "1 2 3", "1 2 4", X, "file:"),
    Case("file in the current folder", "beside.txt", "beside", "other", X, "file:beside.txt"),
    Case("environment variable", "settings.json", "world", "you", X, "env:MATRIX_DIRECT"),
    Case("environment variable by a constant", "settings.json", '"7"', '"8"', X, "env:MATRIX_INDIRECT"),
    Case("name of that constant", "PKG/text.py", '"MATRIX_INDIRECT"', '"MATRIX_DIRECT"', X, "env:MATRIX"),
    # Harmless
    Case("nothing", "PKG/flow.py", "y = scale(x)", "y = scale(x)", ()),
    Case("comment", "PKG/maths.py", "# multiplies", "# multiplies\n        # twice", ()),
    Case("comment beside", "PKG/flow.py", "# sum", "# the sum", ()),
    Case("type comment", "PKG/flow.py", "# sum", "# type: float", ()),
    Case("docstring", "PKG/flow.py", "Numbers.", "All the numbers.", ()),
    Case("docstring that is new", "PKG/deeper.py", "return x", "'''Deep.'''\n        return x", ()),
    Case("formatting", "PKG/maths.py", "return x * FACTOR", "return (\n            x\n            *   FACTOR\n        )", ()),
    Case("moved lines", "PKG/maths.py", "FACTOR = 2", "\n\n\n\nFACTOR = 2", ()),
    Case("quotes", "PKG/shapes.py", 'return "square"', "return 'square'", ()),
    Case("unrelated function", "PKG/flow.py", "def unrelated(x):\n        return x", "def unrelated(x):\n        return 7", ()),
    Case("unrelated constant", "PKG/flow.py", "UNUSED = 1", "UNUSED = 2", ()),
    Case("unused name of a package", "PKG/__init__.py", "VERSION = 1", "VERSION = 2", ()),
    Case("unrelated module", "PKG/unrelated.py", "", "X = 1\n", ()),
    Case("typing-only import", "PKG/hints.py", "Hint = int", "Hint = str", ()),
    Case("functions in another order", "PKG/maths.py", "def swapped(x):\n        return x + 100\n\n    def deep(x):\n        return deepest(x)", "def deep(x):\n        return deepest(x)\n\n    def swapped(x):\n        return x + 100", ()),
    Case("order of methods", "PKG/shapes.py", "sides = 4\n", "name_of_nothing = None\n        del name_of_nothing\n        sides = 4\n", ()),
    Case("import in another order", "PKG/flow.py", "from . import shapes, text", "from . import text\n    from . import shapes", ()),
    Case("other file beside the code", "PKG/slow.sql", "", "select 9", ("texts",), "file:"),
    Case("options of a step", "PKG/flow.py", "@ev.step\n    def totals", "@ev.step(retries=1)\n    def totals", ()),
    Case("salt of a step", "PKG/flow.py", "@ev.step\n    def totals", '@ev.step(version="2")\n    def totals', T, "version"),
    Case("renamed step", "PKG/flow.py", "totals", "sums", ("sums",), ""),
]  # fmt: skip


def small(head: str, body: str, **files: str) -> dict[str, str]:
    """A project of one step."""
    lines = "\n".join(f"        {line}" for line in body.strip().splitlines())
    flow = (
        f"    import everloop as ev\n{head}\n    @ev.step\n    def step(x: int = 3) -> object:\n"
        f"{lines}\n    @ev.step\n    def other(x: int = 3) -> tuple:\n        return (x, 5)\n"
        "    @ev.pipeline\n    def main() -> list:\n        return [step(), other()]\n"
    )
    rest = {normpath(f"PKG/{name.replace('__dot__', '.')}"): text for name, text in files.items()}
    return {"PKG/__init__.py": "", "PKG/flow.py": flow, "settings.json": "{}", **rest}


def one(
    name: str,
    head: str,
    body: str,
    old: str,
    new: str,
    part: str = "",
    file: str = "",
    **files: str,
) -> Case:
    """A case of one step that has to run again."""
    where = normpath(f"PKG/{file or 'flow.py'}")
    return Case(name, where, old, new, ("step",), part, small(head, body, **files))


LIB = "lib__dot__py"
ADVERSARIAL = [
    one("slots of an object from another module", "    from .lib import POINT", "return POINT.x", "Point(1)", "Point(2)", "const:PKG.flow.POINT", "lib.py",
        **{LIB: "class Point:\n    __slots__ = ('x',)\n    def __init__(self, x):\n        self.x = x\nPOINT = Point(1)\n"}),
    one("frame made in another module", "    from .lib import FRAME", "return int(FRAME['a'].sum())", "[1, 2]", "[1, 5]", "const:PKG.flow.FRAME", "lib.py",
        **{LIB: "import pandas as pd\nFRAME = pd.DataFrame({'a': [1, 2], 'b': ['x', None]})\n"}),
    one("polars frame made in another module", "    from .lib import FRAME", "return int(FRAME['a'].sum())", "[1, 2]", "[1, 5]", "const:PKG.flow.FRAME", "lib.py",
        **{LIB: "import polars as pl\nFRAME = pl.DataFrame({'a': [1, 2]})\n"}),
    one("Arrow table made in another module", "    from .lib import FRAME", "return FRAME['a'][1].as_py()", "[1, 2]", "[1, 5]", "const:PKG.flow.FRAME", "lib.py",
        **{LIB: "import pyarrow as pa\nFRAME = pa.table({'a': [1, 2]})\n"}),
    one("array of objects", "    import numpy as np\n    A = np.array(['a', None], dtype=object)", "return str(A[0])", "['a', None]", "['b', None]", "const:PKG.flow.A"),
    one("thing that cannot be copied, of another module", "    from .lib import HELD", "return HELD[1]()", "return 1", "return 2", "", "lib.py",
        **{LIB: "import threading\ndef make():\n    return 1\nHELD = (threading.Lock(), make)\n"}),
    one("what the module of an uncopiable thing imports", "    from .lib import LOCKED", "return LOCKED.value", "VALUE = 1", "VALUE = 2", "", "deep.py",
        **{LIB: "import threading\nfrom .deep import VALUE\nclass Locked:\n    def __init__(self):\n        self.lock = threading.Lock()\n        self.value = VALUE\nLOCKED = Locked()\n", "deep__dot__py": "VALUE = 1\n"}),
    one("decorator object", "    import functools\n    class Repeat:\n        def __init__(self, f):\n            functools.update_wrapper(self, f)\n            self.f = f\n        def __call__(self, x):\n            return self.f(x) * 2\n    @Repeat\n    def helper(x):\n        return x", "return helper(x)", "self.f(x) * 2", "self.f(x) * 3", "code:PKG.flow.Repeat.__call__"),
    one("argument of a decorator object", "    import functools\n    class Times:\n        def __init__(self, n):\n            self.n = n\n        def __call__(self, f):\n            self.f = f\n            functools.update_wrapper(self, f)\n            return Called(self)\n    class Called:\n        def __init__(self, times):\n            self.times = times\n        def __call__(self, x):\n            return self.times.f(x) * self.times.n\n    @Times(2)\n    def helper(x):\n        return x", "return helper(x)", "@Times(2)", "@Times(3)", "const:PKG.flow.helper"),
    one("attribute of a function", "    def helper(x):\n        return x * helper.factor\n    helper.factor = 2", "return helper(x)", "factor = 2", "factor = 3", "code:PKG.flow.helper"),
    one("docstring that is read", "    def query():\n        '''select 1'''\n        return query.__doc__", "return query()", "select 1", "select 2", "docs"),
    one("docstring of a class that is read", "    class Query:\n        '''select 1'''\n    def read(kind):\n        return kind.__doc__", "return read(Query)", "select 1", "select 2", "docs"),
    one("subclasses by registry", "    class Base:\n        pass\n    class A(Base):\n        def f(self):\n            return 1", "return [kind().f() for kind in Base.__subclasses__()]", "return 1", "return 2", "code:PKG.flow.A.f"),
    one("new subclass", "    class Base:\n        pass\n    class A(Base):\n        f = 1", "return [kind.f for kind in Base.__subclasses__()]", "f = 1", "f = 1\n    class B(Base):\n        f = 2", "code:PKG.flow.B"),
    one("patch of an installed module", "    import json\n    from . import lib", "return json.encoded(x)", "return x", "return -x", "code:PKG.lib.encoded", "lib.py",
        **{LIB: "import json\ndef encoded(x):\n    return x\njson.encoded = encoded\n"}),
    one("name put among the builtins", "    from . import lib", "return doubled(x)", "2 * x", "3 * x", "code:PKG.lib.doubled_PKG", "lib.py",
        **{LIB: "import builtins\ndef doubled_PKG(x):\n    return 2 * x\nbuiltins.doubled = doubled_PKG\n"}),
    one("method set on a class at import", "    class C:\n        pass\n    def late(self):\n        return 1\n    setattr(C, 'f', late)", "return C().f()", "return 1", "return 2", "code:PKG.flow.late"),
    one("method of an object bound to it", "    class C:\n        def __init__(self):\n            self.go = self.run\n        def run(self):\n            return 1\n    OBJECT = C()", "return OBJECT.go()", "return 1", "return 2", "code:PKG.flow.C.run"),
    one("builtin method of a table", "    TABLE = {3: 1}\n    get = TABLE.get", "return get(x)", "{3: 1}", "{3: 2}", "get"),
    one("cached property", "    import functools\n    class C:\n        @functools.cached_property\n        def f(self):\n            return 1", "return C().f", "return 1", "return 2", "code:PKG.flow.C.f"),
    one("attribute that is no field of a dataclass", "    from dataclasses import dataclass\n    @dataclass\n    class C:\n        x: int = 1\n    HELD = C()\n    HELD.extra = 5", "return HELD.extra", "extra = 5", "extra = 6", "const:PKG.flow.HELD"),
    one("type of a field", "    import msgspec\n    class Inner(msgspec.Struct):\n        a: int = 1\n    class Outer(msgspec.Struct):\n        inner: Inner", "return msgspec.json.decode(b'{\"inner\": {}}', type=Outer).inner.a", "a: int = 1", "a: int = 2", "Inner"),
    one("type of a field, in quotes", "    import msgspec\n    class Inner(msgspec.Struct):\n        a: int = 1\n    class Outer(msgspec.Struct):\n        inner: 'list[Inner]'", "return msgspec.json.decode(b'{\"inner\": [{}]}', type=Outer).inner[0].a", "a: int = 1", "a: int = 2", "Inner"),
    one("order of matched attributes", "    class C:\n        __match_args__ = ('a', 'b')\n        a, b = 1, 2", "match C():\n    case C(found, _):\n        return found", "('a', 'b')", "('b', 'a')", "const:PKG.flow.C.__match_args__"),
    one("attribute that a module makes", "    from . import lib", "return lib.made", "return 1", "return 2", "module:PKG.lib", "lib.py",
        **{LIB: "def __getattr__(name):\n    if name != 'made':\n        raise AttributeError(name)\n    return 1\n"}),
    one("function by its name in globals", "    def helper(x):\n        return x", "return globals()['hel' + 'per'](x)", "return x", "return -x", "module:PKG.flow"),
    one("module under a local name", "    from . import lib", "m = lib\nreturn m.f(x)", "return x", "return -x", "module:PKG.lib", "lib.py", **{LIB: "def f(x):\n    return x\n"}),
    one("import within a helper", "    def helper(x):\n        from .lib import f\n        return f(x)", "return helper(x)", "return x", "return -x", "code:PKG.lib.f", "lib.py", **{LIB: "def f(x):\n    return x\n"}),
    one("nested function with a default from outside", "    RATE = 2\n    def helper(x):\n        def inner(y=RATE):\n            return x * y\n        return inner()", "return helper(x)", "RATE = 2", "RATE = 3", "const:PKG.flow.RATE"),
    one("comprehension over a constant", "    KEYS = ('a', 'b')", "return {key: [key for key in KEYS] for key in KEYS}", "('a', 'b')", "('a', 'c')", "const:PKG.flow.KEYS"),
    one("global that is set by a helper", "    COUNT = 0\n    def bump(n):\n        global COUNT\n        COUNT = n\n    bump(1)", "return COUNT", "bump(1)", "bump(2)", "const:PKG.flow.COUNT"),
    one("closure that is changed by another", "    def pair():\n        n = 1\n        def get():\n            return n\n        def put(v):\n            nonlocal n\n            n = v\n        return get, put\n    get, put = pair()\n    put(2)", "return get()", "put(2)", "put(3)", ".n"),
    one("object that holds itself", "    class Node:\n        pass\n    NODE = Node()\n    NODE.next = NODE\n    NODE.value = 1", "return NODE.next.value", "value = 1", "value = 2", "const:PKG.flow.NODE"),
    one("file that a text names", "", "return open('PKG/rows.csv').read()", "1", "2", "file:PKG/rows.csv", "rows.csv", rows__dot__csv="1"),
    one("file that a list names", "    FILES = ['PKG/rows.csv']", "return [open(name).read() for name in FILES]", "1", "2", "file:PKG/rows.csv", "rows.csv", rows__dot__csv="1"),
    one("file found by a pattern", "    import glob", "return [open(name).read() for name in sorted(glob.glob('PKG/data/*.csv'))]", "1", "2", "file:PKG/data", "data/rows.csv", **{"data/rows__dot__csv": "1"}),
    one("file new to a pattern", "    import glob", "return sorted(glob.glob('PKG/data/*.csv'))", "", "2", "file:PKG/data", "data/more.csv", **{"data/rows__dot__csv": "1"}),
    one("file under a folder that a text names", "    import os", "return open(os.path.join('PKG', 'da' + 'ta', 'rows.csv')).read()", "1", "2", "file:PKG", "data/rows.csv", **{"data/rows__dot__csv": "1"}),
    one("file by a name made at run time", "    from pathlib import Path\n    def name():\n        return 'rows'", "return (Path('PKG') / f'{name()}.csv').read_text()", "1", "2", "file:PKG", "rows.csv", rows__dot__csv="1"),
    one("file beside __file__", "    import os", "return open(os.path.join(os.path.dirname(__file__), 'rows.csv')).read()", "1", "2", "file:", "rows.csv", rows__dot__csv="1"),
    one("file above __file__", "    from pathlib import Path", "return (Path(__file__).parent.parent / 'top.txt').read_text()", "1", "2", "file:", "../top.txt", **{"../top__dot__txt": "1"}),
    one("file by a path held by an object", "    from pathlib import Path\n    class Source:\n        def __init__(self, path):\n            self.path = path\n    SOURCE = Source(Path(__file__).parent / 'rows.csv')", "return SOURCE.path.read_text()", "1", "2", "rows.csv", "rows.csv", rows__dot__csv="1"),
    one("program that is executed from a file", "    from pathlib import Path\n    HERE = Path(__file__).parent", "space = {}\nexec((HERE / 'more.py').read_text(), space)\nreturn space['X']", "X = 1", "X = 2", "file:", "more.py", more__dot__py="X = 1\n"),
    one("data of a package through pkgutil", "    import pkgutil", "return pkgutil.get_data('PKG', 'rows.csv').decode()", "1", "2", "file:", "rows.csv", rows__dot__csv="1"),
    one("package named to a helper", "    from importlib import resources\n    def read(package, name):\n        return (resources.files(package) / name).read_text()", "return read('PKG', 'rows.csv')", "1", "2", "file:", "rows.csv", rows__dot__csv="1"),
    one("variable asked for by `in`", "    import os", "return 'MATRIX_SET' in os.environ", "{}", '{"MATRIX_SET": "1"}', "env:MATRIX_SET", "../settings.json"),
    one("variable under another name of getenv", "    from os import getenv as env", "return env('MATRIX_ENV')", "{}", '{"MATRIX_ENV": "1"}', "env:MATRIX_ENV", "../settings.json"),
    one("abstract base with an installed metaclass", "    import abc\n    class Base(abc.ABC):\n        @abc.abstractmethod\n        def f(self): ...\n        def g(self):\n            return self.f() + 1\n    class C(Base):\n        def f(self):\n            return 1", "return C().g()", "self.f() + 1", "self.f() + 2", "code:PKG.flow.Base.g"),
    one("named tuple", "    from typing import NamedTuple\n    class P(NamedTuple):\n        a: int = 1", "return P().a", "a: int = 1", "a: int = 2", "P"),
    one("named tuple made by a call", "    from collections import namedtuple\n    P = namedtuple('P', 'a b')", "return P(1, 2).a", "'a b'", "'b a'", "P"),
    one("descriptor", "    class D:\n        def __get__(self, owner, kind):\n            return 1\n    class C:\n        f = D()", "return C().f", "return 1", "return 2", "code:PKG.flow.D.__get__"),
    one("partial method", "    import functools\n    class C:\n        def f(self, y):\n            return y\n        g = functools.partialmethod(f, 1)", "return C().g()", "(f, 1)", "(f, 2)", "const:PKG.flow.C.g"),
    one("single dispatch by method", "    import functools\n    class C:\n        @functools.singledispatchmethod\n        def f(self, x):\n            return 0\n        @f.register\n        def _(self, x: int):\n            return 1", "return C().f(x)", "return 1", "return 2", "code:PKG.flow.C._"),
    one("lru_cache of a method's helper", "    import functools\n    @functools.lru_cache(maxsize=2)\n    def helper(x):\n        return inner(x)\n    def inner(x):\n        return x", "return helper(x)", "def inner(x):\n        return x", "def inner(x):\n        return -x", "code:PKG.flow.inner"),
    one("exception class", "    class Failed(Exception):\n        def __str__(self):\n            return 'one'", "try:\n    raise Failed\nexcept Failed as error:\n    return str(error)", "'one'", "'two'", "code:PKG.flow.Failed.__str__"),
    one("generator method of a class", "    class C:\n        def __iter__(self):\n            yield from (1, 2)", "return list(C())", "(1, 2)", "(1, 3)", "code:PKG.flow.C.__iter__"),
    one("string template", "    import string\n    T = string.Template('$a one')", "return T.substitute(a=x)", "one", "two", "const:PKG.flow.T"),
    one("sub-class of a dict with attributes", "    class D(dict):\n        pass\n    HELD = D()\n    HELD.extra = 1", "return HELD.extra", "extra = 1", "extra = 2", "const:PKG.flow.HELD"),
    one("default dict's factory", "    from collections import defaultdict\n    HELD = defaultdict(lambda: 1)", "return HELD[1]", "lambda: 1", "lambda: 2", "lambda"),
    one("ordered set of words", "    WORDS = frozenset({'a', 'b'})", "return sorted(WORDS)", "'b'", "'c'", "const:PKG.flow.WORDS"),
    one("sentinel compared with", "    class Missing:\n        def __bool__(self):\n            return False\n    MISSING = Missing()", "return bool(MISSING)", "return False", "return True", "code:PKG.flow.Missing.__bool__"),
    one("vectorised function", "    import numpy as np\n    def f(x):\n        return x\n    V = np.vectorize(f)", "return int(V(x))", "return x", "return -x", "code:PKG.flow.f"),
]  # fmt: skip

#: Cannot be followed: these run again each time, edited or not, and the note says why.
NEVER = [
    one("import by a name made at run time", "    import importlib", "return importlib.import_module('PKG.' + 'lib').X", "X = 1", "X = 2", "imports by a name", "lib.py", **{LIB: "X = 1\n"}),
    one("import of a constant name", "    import importlib", "return importlib.import_module('PKG.lib').X", "X = 1", "X = 2", "imports by a name", "lib.py", **{LIB: "X = 1\n"}),
    one("module run by its path", "    import runpy", "return runpy.run_path('PKG/lib.py')['X']", "X = 1", "X = 2", "can reach any code", "lib.py", **{LIB: "X = 1\n"}),
    one("unpickled object", "    import pickle\n    from .lib import C\n    DATA = pickle.dumps(C())\n    del C", "return pickle.loads(DATA).f()", "return 1", "return 2", "can reach any code", "lib.py", **{LIB: "class C:\n    def f(self):\n        return 1\n"}),
    one("variable by a name made at run time", "    import os\n    def get(name):\n        return os.environ.get(name, 'none')", "return get('MATRIX_' + 'LATE')", "{}", '{"MATRIX_LATE": "1"}', "names made at run time", "../settings.json"),
    one("environment as a whole", "    import os", "return sorted(os.environ.items())[0][0] and dict(os.environ).get('MATRIX_W')", "{}", '{"MATRIX_W": "1"}', "names made at run time", "../settings.json"),
    one("globals of another function", "    from .lib import f", "return f.__globals__['X']", "X = 1", "X = 2", "globals of other code", "lib.py", **{LIB: "X = 1\ndef f():\n    return 0\n"}),
]  # fmt: skip
