"""The instructions of Python's bytecode: what each kind of them says about names.

Every release of Python changes some. Those here are all that CPython 3.11, 3.12 and 3.13 compile
to; code that holds any other is not understood, and `unknown_instructions` says so.
"""

from __future__ import annotations

import dis
import functools
from types import CodeType

__all__ = ["ATTRIBUTES", "GLOBALS", "LOCALS", "STORES", "instructions_of", "unknown_instructions"]

#: Read a name among the globals (or, in the body of a class, in it first).
GLOBALS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})

#: Read an attribute of what was read just before.
ATTRIBUTES = frozenset({"LOAD_ATTR", "LOAD_METHOD"})

#: Read a variable of this function or of one around it; two of them at once since 3.13.
LOCALS = frozenset(
    {
        "LOAD_CLASSDEREF", "LOAD_CLOSURE", "LOAD_DEREF", "LOAD_FAST", "LOAD_FAST_AND_CLEAR",
        "LOAD_FAST_CHECK", "LOAD_FAST_LOAD_FAST", "LOAD_FROM_DICT_OR_DEREF",
        "STORE_FAST_LOAD_FAST",
    }
)  # fmt: skip

#: Bind what was made just before; where two names are given, the first.
STORES = frozenset(
    {
        "STORE_DEREF", "STORE_FAST", "STORE_FAST_LOAD_FAST", "STORE_FAST_STORE_FAST",
        "STORE_GLOBAL", "STORE_NAME",
    }
)  # fmt: skip

_IMPORTS = frozenset({"IMPORT_FROM", "IMPORT_NAME"})

# Those that read no name from outside. LOAD_SUPER_ATTR and its like are here: what it reads from
# (super, the class, self) is loaded by instructions before it.
_NEUTRAL = frozenset(
    {
        "ASYNC_GEN_WRAP", "BEFORE_ASYNC_WITH", "BEFORE_WITH", "BINARY_OP", "BINARY_SLICE",
        "BINARY_SUBSCR", "BUILD_CONST_KEY_MAP", "BUILD_LIST", "BUILD_MAP", "BUILD_SET",
        "BUILD_SLICE", "BUILD_STRING", "BUILD_TUPLE", "CACHE", "CALL", "CALL_FUNCTION_EX",
        "CALL_INTRINSIC_1", "CALL_INTRINSIC_2", "CALL_KW", "CHECK_EG_MATCH",
        "CHECK_EXC_MATCH", "CLEANUP_THROW", "COMPARE_OP", "CONTAINS_OP", "CONVERT_VALUE",
        "COPY", "COPY_FREE_VARS", "DELETE_ATTR", "DELETE_DEREF", "DELETE_FAST",
        "DELETE_GLOBAL", "DELETE_NAME", "DELETE_SUBSCR", "DICT_MERGE", "DICT_UPDATE",
        "END_ASYNC_FOR", "END_FOR", "END_SEND", "EXTENDED_ARG", "FORMAT_SIMPLE",
        "FORMAT_VALUE", "FORMAT_WITH_SPEC", "FOR_ITER", "GET_AITER", "GET_ANEXT",
        "GET_AWAITABLE", "GET_ITER", "GET_LEN", "GET_YIELD_FROM_ITER", "IMPORT_STAR",
        "IS_OP", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "JUMP_FORWARD",
        "JUMP_IF_FALSE_OR_POP", "JUMP_IF_TRUE_OR_POP", "KW_NAMES", "LIST_APPEND",
        "LIST_EXTEND", "LIST_TO_TUPLE", "LOAD_ASSERTION_ERROR", "LOAD_BUILD_CLASS",
        "LOAD_CONST", "LOAD_LOCALS", "LOAD_SUPER_ATTR", "MAKE_CELL", "MAKE_FUNCTION",
        "MAP_ADD", "MATCH_CLASS", "MATCH_KEYS", "MATCH_MAPPING", "MATCH_SEQUENCE", "NOP",
        "POP_EXCEPT", "POP_JUMP_BACKWARD_IF_FALSE", "POP_JUMP_BACKWARD_IF_NONE",
        "POP_JUMP_BACKWARD_IF_NOT_NONE", "POP_JUMP_BACKWARD_IF_TRUE",
        "POP_JUMP_FORWARD_IF_FALSE", "POP_JUMP_FORWARD_IF_NONE",
        "POP_JUMP_FORWARD_IF_NOT_NONE", "POP_JUMP_FORWARD_IF_TRUE", "POP_JUMP_IF_FALSE",
        "POP_JUMP_IF_NONE", "POP_JUMP_IF_NOT_NONE", "POP_JUMP_IF_TRUE", "POP_TOP",
        "PRECALL", "PREP_RERAISE_STAR", "PRINT_EXPR", "PUSH_EXC_INFO", "PUSH_NULL",
        "RAISE_VARARGS", "RERAISE", "RESUME", "RETURN_CONST", "RETURN_GENERATOR",
        "RETURN_VALUE", "SEND", "SETUP_ANNOTATIONS", "SET_ADD", "SET_FUNCTION_ATTRIBUTE",
        "SET_UPDATE", "STORE_ATTR", "STORE_SLICE", "STORE_SUBSCR", "SWAP", "TO_BOOL",
        "UNARY_INVERT", "UNARY_NEGATIVE", "UNARY_NOT", "UNARY_POSITIVE", "UNPACK_EX",
        "UNPACK_SEQUENCE", "WITH_EXCEPT_START", "YIELD_VALUE",
    }
)  # fmt: skip
_KNOWN = GLOBALS | ATTRIBUTES | LOCALS | STORES | _IMPORTS | _NEUTRAL

# They stand between others and do nothing; an EXTENDED_ARG is part of the one after it.
_FILLERS = frozenset({"CACHE", "EXTENDED_ARG", "NOP"})


# A new function is looked at three times in a row, and to read its instructions is most of that.
@functools.lru_cache(maxsize=1024)
def instructions_of(code: CodeType) -> list[dis.Instruction]:
    """The instructions of `code`, without those that only fill the space between others."""
    return [step for step in dis.get_instructions(code) if step.opname not in _FILLERS]


def unknown_instructions(code: CodeType) -> frozenset[str]:
    """Names of the instructions of `code`, and of code nested in it, that are not known here."""
    return _used(code) - _KNOWN


@functools.cache
def _used(code: CodeType) -> frozenset[str]:
    nested = (_used(item) for item in code.co_consts if isinstance(item, CodeType))
    return frozenset(step.opname for step in instructions_of(code)).union(*nested)
