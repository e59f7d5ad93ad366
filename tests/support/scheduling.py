"""Which tests run in the same worker of pytest-xdist."""

from __future__ import annotations

from functools import cache

from xdist.scheduler import LoadScopeScheduling

from tests.support.paths import REPOSITORY


class TestsWithSharedFixturesTogether(LoadScopeScheduling):
    """Tests of a file that has a module's fixture run in one worker, which sets it up once; others run anywhere.

    Not by the marker `xdist_group`: pytest-xdist 3.8 changes the ids of tests for it in a way that pytest 9.2 ignores.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if _has_shared_fixture(file) else nodeid


@cache
def _has_shared_fixture(file: str) -> bool:
    return 'scope="module"' in (REPOSITORY / file).read_text(encoding="utf-8")
