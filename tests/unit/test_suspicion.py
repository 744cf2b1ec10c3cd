"""BadDeviceToken: one phone, or the environment?"""

from __future__ import annotations

from tests.support.values import device
from xaps_watch.suspicion import ENOUGH, Suspicion


def test_a_single_refusal_falls_on_the_phone() -> None:
    assert Suspicion().falls_on(device(1))


def test_once_a_push_was_accepted_every_refusal_falls_on_the_phone() -> None:
    suspicion = Suspicion()
    suspicion.accepted()
    assert all(suspicion.falls_on(device(number)) for number in range(100))


def test_refusals_alone_fall_on_the_environment_and_acquit_the_first_phones() -> None:
    suspicion = Suspicion()
    verdicts = [suspicion.falls_on(device(number)) for number in range(ENOUGH)]
    assert verdicts == [True] * (ENOUGH - 1) + [False]
    assert {acquitted.id for acquitted in suspicion.acquitted()} == set(range(ENOUGH))


def test_the_same_phone_counts_once() -> None:
    suspicion = Suspicion()
    assert all(suspicion.falls_on(device(1)) for _ in range(100))
