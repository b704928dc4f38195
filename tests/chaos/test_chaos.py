"""A few faults once each, at random moments of a running study; all of them: `python -m tests.chaos`."""

import os
from collections.abc import Iterator
from random import SystemRandom

import pytest

from tests.chaos.faults import FAULTS, Fault, Session, can_mount
from tests.chaos.study import tiny_base

# The short form; kill -9 of a trial's process and of a worker are in tests/search/test_size_study.py, SIGTERM in
# tests/test_jobs.py, a server that dies in tests/tracking/test_tracker.py. All faults: .ci/nightly.
SHORT = ("kill -9 of the driver",)
SEED = int(os.environ.get("CHAOS_SEED", SystemRandom().randrange(10**6)))

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]


@pytest.fixture(scope="session")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    root = tmp_path_factory.mktemp("chaos")
    session = Session(root, tiny_base(root / "bases"))
    yield session
    session.close()


@pytest.mark.parametrize(
    "fault", [fault for fault in FAULTS if fault.name in SHORT], ids=lambda fault: fault.name.replace(" ", "-")
)
def test_a_study_loses_repeats_and_changes_nothing(fault: Fault, session: Session):
    if fault.needs_mount and not can_mount(session.root / "mount"):
        pytest.skip("no right to mount")
    print(f"again: CHAOS_SEED={SEED} pytest -m chaos tests/chaos -k '{fault.name.replace(' ', '-')}'")
    verdict = session.play(fault, SEED)
    print("; ".join(verdict.notes))
    assert verdict.complaints == []
