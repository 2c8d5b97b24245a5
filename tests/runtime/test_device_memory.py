"""How much memory a program may take."""

import types

from jaxbp.runtime import device_memory


def test_an_accelerator_gives_most_of_what_is_free():
    device = types.SimpleNamespace(memory_stats=lambda: {"bytes_limit": 1000, "bytes_in_use": 200})
    assert device_memory.default_bound(device, 4) == 720


def test_processors_share_half_of_what_the_host_has(monkeypatch):
    monkeypatch.setattr(device_memory.os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4}.get)
    host = types.SimpleNamespace(memory_stats=lambda: None)
    assert device_memory.default_bound(host, 1) == 2000
    assert device_memory.default_bound(host, 4) == 500
