"""Imported by the server that forks: what runs need."""

from tests.support.in_process import import_libraries

import_libraries()
