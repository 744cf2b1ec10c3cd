"""What the tests of more than one module share."""

from __future__ import annotations

import pytest

from tests.support.values import TOPIC
from xaps_watch.authority import LocalAuthority, PushCertificate


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> LocalAuthority:
    return LocalAuthority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def certificate(authority: LocalAuthority) -> PushCertificate:
    return authority.push_certificate(TOPIC)
