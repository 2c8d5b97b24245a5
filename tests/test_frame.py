"""What the frame of the studies does beside their own tests."""

import jax
import jax.numpy as jnp
import pytest

from experiments import frame


@pytest.mark.parametrize("held, forgets", [(40, True), (20, False), (0, False)])
def test_compiled_programs_go_when_memory_maps_run_short(monkeypatch, held, forgets):
    traced = []

    @jax.jit
    def fn(x):
        traced.append(1)
        return x + 1

    fn(jnp.ones(3))
    monkeypatch.setattr(frame, "_memory_maps", lambda: (held, 65))
    frame.make_room()
    fn(jnp.ones(3))
    assert len(traced) == (2 if forgets else 1)


def test_memory_maps_are_counted():
    held, allowed = frame._memory_maps()
    assert 0 < held < allowed


def test_neighbours_of_one_group_run_beside_each_other_and_groups_do_not(tmp_path):
    import threading

    from jaxbp.store import Store

    both, order = threading.Barrier(2, timeout=20), []

    def meet(name):
        both.wait()  # breaks if the two do not run at the same time
        order.append(name)
        return {}

    def alone(name):
        order.append(name)
        return {}

    names = {"a1": ("a", meet), "a2": ("a", meet), "b": ("b", alone), "c": (None, alone), "d": (None, alone)}
    pieces = [frame.Piece(n, lambda n=n, work=work: work(n), group=group) for n, (group, work) in names.items()]
    with Store(tmp_path / "run", {"settings": 1}, {}) as store:
        frame.run_pieces(store, pieces, num_workers=2)
        assert all(name in store for name in names)
    assert set(order[:2]) == {"a1", "a2"}
    assert order[2:] == ["b", "c", "d"]
