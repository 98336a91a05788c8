"""What a function refers to is found on every version of Python, or the step is not cached."""

from __future__ import annotations

import dis
import importlib.util
import symtable
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

from everloop.pipelines import code as code_module
from everloop.pipelines import facts, instructions
from everloop.pipelines.code import fingerprint
from everloop.pipelines.instructions import unknown_instructions
from everloop.pipelines.scan import references, texts_of


def function_code(source: str, name: str = "step") -> CodeType:
    """The code of the function `name`, wherever it stands in `source`."""
    todo = [compile(textwrap.dedent(source), "flow.py", "exec", dont_inherit=True)]
    for code in todo:
        if code.co_name == name:
            return code
        todo.extend(item for item in code.co_consts if isinstance(item, CodeType))
    raise AssertionError(name)


# What is read, in all the ways that some version has an instruction of its own for

READS = {
    "two locals at once": (
        "def step(x):\n    import lib as m\n    return x, m\n",
        {"import lib"},
    ),
    "import and use on a line": (
        "def step():\n    import lib; return lib.f()\n",
        {"import lib", "import lib f"},
    ),
    "local that may be unbound": (
        "def step(x):\n    if x:\n        import lib\n    return lib.f()\n",
        {"import lib", "import lib f"},
    ),
    "deleted local": (
        "def step(x):\n    import lib\n    if x:\n        del lib\n    return lib.f()\n",
        {"import lib", "import lib f"},
    ),
    "either of two imports": (
        """
        def step():
            try:
                import a as m
            except ImportError:
                import b as m
            return m.f()
        """,
        {"import a", "import b", "import a f", "import b f", "global ImportError"},
    ),
    "parts of a package": (
        "def step():\n    import a.b.c\n    return a.b.c.f()\n",
        {"import a", "import a.b", "import a.b.c", "import a b c f"},
    ),
    "part of a package under a name": (
        "def step():\n    import a.b.c as d\n    return d.f()\n",
        {"import a", "import a.b", "import a.b.c", "import a.b.c f"},
    ),
    "from a relative package": (
        "def step():\n    from ..p import q, r as s\n    return q(s.t)\n",
        {"import ..p q", "import ..p r", "import ..p r t"},
    ),
    "import bound to a global": (
        "def step():\n    global lib\n    import lib\n    return lib.f()\n",
        {"import lib", "global lib f"},
    ),
    "comprehension": (
        "def step(rows):\n    return [clean(lib.f(row)) for row in rows if row in KEEP]\n",
        {"global clean", "global lib f", "global KEEP"},
    ),
    "comprehension with a variable named as a global": (
        "def step(rows):\n    return [f for f in rows], f(1)\n",
        {"global f"},
    ),
    "comprehension with a variable named as one of the closure": (
        """
        def outer(f):
            def step(rows):
                return [f for f in rows], f(1)
            return step
        """,
        {"closure f"},
    ),
    "lambda in a comprehension over the closure": (
        """
        def outer(f):
            def step(rows):
                return [lambda: f(row) for row in rows]
            return step
        """,
        {"closure f"},
    ),
    "closure handed on": (
        """
        def outer(m):
            def step():
                def inner():
                    return m.f()
                return inner
            return step
        """,
        {"closure m", "closure m f"},
    ),
    "super without arguments": (
        "class C(B):\n    def step(self):\n        return super().f()\n",
        {"closure __class__", "global super"},
    ),
    "attribute of super": (
        "class C(B):\n    def step(self):\n        return super(C, self).f + super().g\n",
        {"closure __class__", "global super", "global C"},
    ),
    "class within": (
        """
        def outer(f):
            def step():
                class C(Base):
                    a = f(RATE)
                    b = [g(row) for row in ROWS]
                return C
            return step
        """,
        {"closure f", "global Base", "global RATE", "global g", "global ROWS"}
        | {"global __name__"},
    ),
    "try, with, match and formatted text": (
        """
        def step(x):
            with opened(x) as file:
                match file:
                    case Shape(a=1) | lib.RED:
                        return f"{rate!r:{width}}"
            try:
                x = x[low:high]
            except* lib.Failed:
                x = not flag
            return x
        """,
        {"global opened", "global Shape", "global lib RED", "global rate", "global width"}
        | {"global low", "global high", "global lib Failed", "global flag"},
    ),
}  # fmt: skip


def shown(code: CodeType) -> set[str]:
    """References as text, without closures over what is a local of `code` itself."""
    return {
        " ".join((kind, *path))
        for kind, path in references(code)
        if kind != "closure" or path[0] in code.co_freevars
    }


@pytest.mark.parametrize("name", READS)
def test_read_is_found(name: str) -> None:
    source, expected = READS[name]
    code = function_code(source)
    assert unknown_instructions(code) == frozenset()
    assert shown(code) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def step(x):\n    def g[T: Bound](x: T) -> T: return h(x)\n    return g", {"Bound", "h"}),
        ("def step(x):\n    class C[T](Base): a: T = f(x)\n    return C", {"Base", "f"}),
        ("def step(x):\n    type Rows = list[lib.Row]\n    return Rows", {"list", "lib"}),
    ],
    ids=["function", "class", "alias"],
)
def test_type_parameters_are_looked_into(source: str, expected: set[str]) -> None:
    if sys.version_info < (3, 12):
        with pytest.raises(SyntaxError):
            function_code(source)
        return
    code = function_code(source)
    assert unknown_instructions(code) == frozenset()
    assert expected <= {item.path[0] for item in references(code) if item.kind == "global"}


def test_function_with_very_many_names_is_read_to_the_end() -> None:
    many = "\n".join(f"    x = lib.a{number}" for number in range(600))
    source = f"def step(x):\n{many}\n    import late as m\n    return m.f(x), lib.last\n"
    found = shown(function_code(source))
    assert {"import late", "import late f", "global lib a0", "global lib last"} <= found
    assert "global lib" not in found


# Against another witness: the compiler's own table of symbols

MODULES = ["argparse", "ast", "asyncio.base_events", "email.message", "inspect", "tarfile"]


def globals_by_symtable(table: symtable.SymbolTable) -> set[str]:
    found = {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
    for child in table.get_children():
        found |= globals_by_symtable(child)
    return found


def functions(table: symtable.SymbolTable, code: CodeType) -> Iterator[tuple[set[str], CodeType]]:
    """Each function and method that can be told by name and line, by symbols and by code."""
    codes = {(c.co_name, c.co_firstlineno): c for c in code.co_consts if isinstance(c, CodeType)}
    for child in table.get_children():
        nested = codes.get((child.get_name(), child.get_lineno()))
        if nested is None:
            continue
        if child.get_type() == "class":
            yield from functions(child, nested)
        else:
            yield globals_by_symtable(child), nested


@pytest.mark.parametrize("module", MODULES)
def test_no_global_that_the_compiler_knows_is_missed(module: str) -> None:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).read_text("utf-8")
    code = compile(text, spec.origin, "exec", dont_inherit=True)
    seen = 0
    for known, function in functions(symtable.symtable(text, spec.origin, "exec"), code):
        found = {item.path[0] for item in references(function) if item.kind == "global"}
        assert known - {"__debug__"} <= found, function.co_qualname
        seen += len(known)
    assert seen > 50


# Instructions that are not known


def test_every_instruction_of_this_python_is_known_or_never_compiled_to() -> None:
    # The rest are put in at run time, for tracing and speed, and co_code never shows them; or they
    # exist within the compiler alone, and are numbered above all that bytecode can hold.
    inner = {"ENTER_EXECUTOR", "EXIT_INIT_CHECK", "INTERPRETER_EXIT", "RESERVED"}
    unknown = {
        name
        for name, number in dis.opmap.items()
        if number < 256 and not name.startswith("INSTRUMENTED_") and name not in inner
    } - instructions._KNOWN
    assert unknown == set()


def plain_step(x: int) -> int:
    return sum([x + row for row in (1, 2)])


def test_each_instruction_that_is_not_known_makes_a_step_uncacheable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = plain_step.__code__
    used = {step.opname for step in instructions.instructions_of(code)}
    known = instructions._KNOWN
    assert len(used) > 8
    for name in used:
        monkeypatch.setattr(instructions, "_KNOWN", known - {name})
        code_module._memo.clear()
        facts._forget()
        made = fingerprint(plain_step)
        assert not made.cacheable
        assert any(f"not known here ({name}); not cached" in note for note in made.notes)
    monkeypatch.setattr(instructions, "_KNOWN", known)
    code_module._memo.clear()
    facts._forget()
    assert fingerprint(plain_step).cacheable


def test_unknown_instruction_in_nested_code_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    code = function_code("def step(x):\n    return lambda: x[0].name")
    assert "LOAD_ATTR" not in {step.opname for step in dis.get_instructions(code)}
    monkeypatch.setattr(instructions, "_KNOWN", instructions._KNOWN - {"LOAD_ATTR"})
    assert unknown_instructions(code) == {"LOAD_ATTR"}


def test_two_versions_of_python_share_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fingerprint(plain_step).parts["python"] == "{}.{}".format(*sys.version_info)
    digests = set()
    for version in ("3.11", "3.12", "3.13"):
        monkeypatch.setattr(code_module, "PYTHON", version)
        code_module._memo.clear()
        digests.add(fingerprint(plain_step).digest)
    assert len(digests) == 3
    code_module._memo.clear()


def test_docstring_is_no_text_that_may_name_a_file() -> None:
    source = """
    def step(x):
        '''flow.py'''
        def inner():
            return 'one.csv'
        return lambda: 'two.csv', inner, ('three.csv', x)
    """
    assert texts_of(function_code(source)) >= {"one.csv", "two.csv", "three.csv"}
    assert "flow.py" not in texts_of(function_code(source))
