"""Every column of the catalog is known to the collection of garbage, and what it names is found."""

from __future__ import annotations

import re

from sqlalchemy import Text

from everloop.catalog import references, tables
from everloop.catalog.engine import Catalog
from everloop.catalog.types import Json


def text_columns() -> set[str]:
    return {
        f"{table.name}.{column.name}"
        for table in tables.metadata.tables.values()
        for column in table.columns
        if isinstance(column.type, Text)
    }


def other_text() -> set[str]:
    return {
        f"{table}.{column}"
        for table, columns in references.OTHER_TEXT.items()
        for column in columns.split()
    }


def test_every_text_column_is_in_one_of_the_lists() -> None:
    assert references.OBJECT_COLUMNS & other_text() == set()
    assert references.OBJECT_COLUMNS | other_text() == text_columns()


def test_only_json_that_is_there_is_left_unsearched() -> None:
    json_columns = {
        f"{table.name}.{column.name}"
        for table in tables.metadata.tables.values()
        for column in table.columns
        if isinstance(column.type, Json)
    }
    assert json_columns >= references.UNSEARCHED_JSON


def test_a_digest_in_any_searched_column_is_found(catalog: Catalog) -> None:
    """One row in each table, a digest of its own in each column that may name an object."""
    wanted = set()
    with catalog.write() as tx:
        for table in tables.metadata.sorted_tables:
            row = {}
            for column in table.columns:
                name = f"{table.name}.{column.name}"
                number = len(wanted)
                digest = f"{number:064x}"
                if name in references.OBJECT_COLUMNS:
                    row[column.name] = digest
                    wanted.add(digest)
                elif isinstance(column.type, Json):
                    row[column.name] = {"deep": [{"text": f'{{"$bytes":"{digest}"}}'}]}
                    if name not in references.UNSEARCHED_JSON:
                        wanted.add(digest)
                elif isinstance(column.type, Text):
                    row[column.name] = "x"
                elif re.search("Instant|DateTime", type(column.type).__name__):
                    row[column.name] = tx.now
                else:
                    row[column.name] = 1
            tx.execute(table.insert().values(row))
        found = references.find(tx)
    assert found.digests >= wanted
    assert len(wanted) > 20


def test_what_opens_into_others_is_told_apart(catalog: Catalog) -> None:
    code, long_text, plain = "a" * 64, "b" * 64, "c" * 64
    with catalog.write() as tx:
        row = {
            "key": "k", "step": "s", "parts": {}, "notes": [], "run_id": "r", "created_at": tx.now,
            "value": {"meta": {"text_object": long_text}, "digest": plain, "code": code},
        }  # fmt: skip
        tx.execute(tables.memos.insert().values(row))
        found = references.find(tx)
    assert found.opened == {code, long_text}
    assert found.digests == {code, long_text, plain}
