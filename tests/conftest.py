"""What all tests share: Hypothesis profiles, the skips that CI accepts, a port for ranks."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator

import pytest
from hypothesis import settings

# With CI set the examples are the same in every run, so that a failure is the change's.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")

# Reasons that no installed extra can remove. With CI set every other skip fails the run.
ACCEPTED_SKIPS = re.compile(
    "|".join(
        [
            "needs a CUDA device",
            "needs KeOps",
            "gensim has no wheel for Python 3.14",
            "needs Chromium and its driver",
            "needs SLURM and root",
            "needs unshare to be another machine",
            r"cannot take torch\.\w+ features on cpu",
            "interpreted kernels cannot be compiled",
            "takes memory that only a host lends untouched",
            "this system does not tell the highest resident size",
            "a small disk can only be mounted by root",
            "cannot be cloned",
            "Barlow Twins shares the dimension",
            "stable-pretraining is tested in its own environment",
        ]
    )
)


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a test or a module was skipped."""
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With CI set, fail a run in which a test was skipped for a reason that is not accepted."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not os.environ.get("CI"):  # workers of xdist have no reporter
        return
    reasons = {reason_of(report) for report in reporter.stats.get("skipped", [])}
    for reason in sorted(reason for reason in reasons if not ACCEPTED_SKIPS.search(reason)):
        reporter.write_line(f"\nCI accepts no skip because of: {reason}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def master_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A port on which the ranks of a test meet, kept from other processes until they do.

    A port that is merely looked up may be taken before the ranks have started. This one stays
    bound: who asks the system for any port gets another, and a rank may still listen on it.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        yield port
