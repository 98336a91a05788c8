"""The maker's signature over a manifest, with the key of the settings (``core/seal.py``)."""

from __future__ import annotations

import hmac
from typing import Any, Literal

import msgspec
from sqlalchemy import select

from everloop import settings
from everloop.catalog import tables
from everloop.catalog.transaction import Transaction
from everloop.core.schema import canonical_json
from everloop.core.seal import SCHEME, key_id, mac_of

__all__ = ["changed", "key_id", "renew", "sealed", "signer_of", "verdict"]

_SEAL = "seal"


def sealed(manifest: dict[str, Any], name: str, version: int, key: str) -> dict[str, Any]:
    """The manifest with a signature that holds for this version of this model; as it is, no key."""
    if not key:
        return manifest
    seal = {"scheme": SCHEME, "key": key_id(key), "mac": _mac(manifest, name, version, key)}
    return {**manifest, _SEAL: seal}


def signer_of(manifest: dict[str, Any]) -> str:
    """The id of the key that a manifest says it was signed with, or empty."""
    return str(manifest.get(_SEAL, {}).get("key", ""))


def verdict(
    manifest: dict[str, Any], name: str, version: int, key: str
) -> Literal["valid", "invalid", "unsigned", "unknown key"]:
    """What the signature of a manifest is worth to somebody who has `key` (or none)."""
    seal = manifest.get(_SEAL)
    if not seal:
        return "unsigned"
    if not key or seal.get("key") != key_id(key):
        return "unknown key"
    mac = _mac(manifest, name, version, key)
    return "valid" if hmac.compare_digest(str(seal.get("mac")), mac) else "invalid"


def changed(
    manifest: dict[str, Any],
    name: str,
    version: int,
    values: dict[str, Any],
    *,
    to: str = "",
    number: int = 0,
) -> dict[str, Any]:
    """The manifest with other values, of a model renamed `to`, or under a `number`, signed anew.

    One whose signature is not valid here keeps the old one, which then holds no more: a change
    must not turn a forged manifest into a signed one.
    """
    key = settings.load().signing_key
    after = {**manifest, **values}
    if verdict(manifest, name, version, key) != "valid":
        return after
    return sealed(after, to or name, number or version, key)


def renew(tx: Transaction, name: str, new_name: str) -> None:
    """Sign the versions of a model for its new name; they are still under the old one."""
    table = tables.model_versions
    for row in tx.all(select(table.c.version, table.c.manifest).where(table.c.name == name)):
        after = changed(row.manifest, name, row.version, {}, to=new_name)
        if after != row.manifest:
            its = (table.c.name == name, table.c.version == row.version)
            tx.execute(table.update().where(*its).values(manifest=after))


def _mac(manifest: dict[str, Any], name: str, version: int, key: str) -> str:
    # As the catalog gives it back, so that signing and checking see the same.
    plain = msgspec.json.decode(msgspec.json.encode(manifest), type=dict[str, Any])
    plain.pop(_SEAL, None)
    signed = canonical_json({"name": name, "version": version, "manifest": plain})
    return mac_of(signed, key)
