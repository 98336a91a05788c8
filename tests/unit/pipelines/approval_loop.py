"""A pipeline that asks before it goes on; loaded by its path, as a supervisor does."""

import contextlib

import everloop as ev


@ev.step
def train(name: str) -> str:
    return name


@ev.step
def asks(name: str) -> str:
    ev.approve("in a step?")
    return name


@ev.pipeline
def ask(name: str, twice: bool = False, four_eyes: bool = False) -> str:
    trained = train(name)
    with contextlib.suppress(ValueError):  # whatever a user catches, the run waits
        given = ev.approve("promote?", expires="3d", four_eyes=four_eyes)
    if twice:
        ev.approve("promote?")
    ev.approve("never asked", when=False)
    assert given is not None
    return f"{trained} {given.actor} {given.note}"


@ev.pipeline
def wrong(name: str) -> str:
    return asks(name)
