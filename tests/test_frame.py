"""What the frame of the studies does beside their own tests."""

import jax
import jax.numpy as jnp
import pytest

from experiments import frame
from jaxbp import sweep


@pytest.mark.parametrize("held, forgets", [(40, True), (20, False), (0, False)])
def test_compiled_programs_go_when_memory_maps_run_short(monkeypatch, held, forgets):
    traced = []

    @jax.jit
    def fn(x):
        traced.append(1)
        return x + 1

    fn(jnp.ones(3))
    monkeypatch.setattr(sweep.plans, "memory_maps", lambda: (held, 65))
    sweep.make_room()
    fn(jnp.ones(3))
    assert len(traced) == (2 if forgets else 1)


def test_memory_maps_are_counted():
    held, allowed = sweep.plans.memory_maps()
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


def test_a_study_leaves_a_log_and_a_status(tmp_path, capsys):
    from jaxbp import progress
    from jaxbp.store import Store

    def fail():
        raise ValueError("no data")

    stages = []

    def look():
        (log,) = (tmp_path / "run").glob("log.txt")
        stages.append(log.read_text().splitlines()[-1].split(" ", 1)[1])
        return {}

    pieces = [frame.Piece("first", look, weight=1.0), frame.Piece("second", look, weight=3.0)]
    with Store(tmp_path / "run", {"settings": 1}, {}) as store:
        with pytest.raises(ValueError, match="no data"):
            frame.run_pieces(store, [*pieces, frame.Piece("third", fail)])
        found = progress.read(tmp_path / "run")
        assert (found.state, found.error, found.done) == ("failed", "ValueError: no data", ("first", "second"))
        assert found.failed == {"third": "ValueError: no data"}
        capsys.readouterr()
        frame.run_pieces(store, [*pieces, frame.Piece("third", look)])
    assert stages == ["started first", "started second", "started third"]
    assert progress.read(tmp_path / "run").state == "finished"
    assert "[3/3] third, 0 s, about 0 s left" in capsys.readouterr().out


def test_a_piece_that_fails_in_a_thread_is_told_and_those_beside_it_are_left(tmp_path):
    import threading

    from jaxbp import progress
    from jaxbp.store import Store

    beside, told = threading.Event(), threading.Event()

    def fail():
        assert beside.wait(20)
        raise ValueError("no data")

    def slow():
        beside.set()
        told.wait(20)
        return {}

    pieces = [frame.Piece("bad", fail, group="a"), frame.Piece("slow", slow, group="a")]
    with Store(tmp_path / "run", {"settings": 1}, {}) as store, pytest.raises(ValueError, match="no data"):
        frame.run_pieces(store, pieces, num_workers=2)
    found = progress.read(tmp_path / "run")
    told.set()
    assert (found.state, found.failed, found.left) == ("failed", {"bad": "ValueError: no data"}, ("slow",))
