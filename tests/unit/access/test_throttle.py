"""Who tries passwords is slowed down; who knows theirs is not."""

from __future__ import annotations

from everloop.access.throttle import (
    FORGOTTEN_S,
    FREE_OF_ADDRESS,
    FREE_OF_NAME,
    LONGEST_S,
    Throttle,
)


def waits(throttle: Throttle, tries: int, *, name: str = "ann", at_s: float = 0) -> list[float]:
    """The pauses of one who tries again as soon as may be."""
    found, now_s = [], at_s
    for _ in range(tries):
        wait_s = throttle.begin(name, "10.0.0.1", now_s)
        if wait_s:
            now_s += wait_s
            assert throttle.begin(name, "10.0.0.1", now_s) == 0
        found.append(wait_s)
    return found


def test_the_first_are_free_then_the_pauses_double_up_to_a_minute() -> None:
    found = waits(Throttle(), FREE_OF_NAME + 9)
    assert found[:FREE_OF_NAME] == [0] * FREE_OF_NAME
    assert found[FREE_OF_NAME:] == [1, 2, 4, 8, 16, 32, LONGEST_S, LONGEST_S, LONGEST_S]


def test_a_try_counts_when_it_begins() -> None:
    throttle = Throttle()
    taken = [throttle.begin("ann", "a", 0.0) for _ in range(50)]
    assert taken.count(0) == FREE_OF_NAME


def test_a_right_one_starts_afresh() -> None:
    throttle = Throttle()
    waits(throttle, FREE_OF_NAME - 1)
    throttle.begin("ann", "10.0.0.1", 0.0)
    throttle.succeed("ann", "10.0.0.1")
    assert waits(throttle, FREE_OF_NAME) == [0] * FREE_OF_NAME


def test_others_and_other_addresses_are_not_slowed() -> None:
    throttle = Throttle()
    waits(throttle, FREE_OF_NAME + 5)
    assert throttle.begin("ann", "10.0.0.2", 0.0) == 0
    assert throttle.begin("bob", "10.0.0.1", 0.0) == 0


def test_many_names_from_one_address_are_slowed() -> None:
    throttle = Throttle()
    taken = [throttle.begin(f"user-{n}", "a", 0.0) for n in range(FREE_OF_ADDRESS + 50)]
    assert taken.count(0) == FREE_OF_ADDRESS


def test_right_ones_do_not_count_for_their_address() -> None:
    throttle = Throttle()
    for number in range(3 * FREE_OF_ADDRESS):
        assert throttle.begin(f"user-{number}", "a", 0.0) == 0
        throttle.succeed(f"user-{number}", "a")


def test_all_is_forgotten_in_time() -> None:
    throttle = Throttle()
    waits(throttle, FREE_OF_NAME + 5)
    assert throttle.begin("ann", "10.0.0.1", 200 + FORGOTTEN_S) == 0
    assert throttle.begin("ann", "10.0.0.1", 200 + FORGOTTEN_S) == 0


def test_it_does_not_grow_without_end() -> None:
    throttle = Throttle()
    for number in range(50_000):
        throttle.begin("ann", f"address-{number}", 0.0)
    assert len(throttle._tries) <= 20_000
