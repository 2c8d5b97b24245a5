"""The cost of compiled programs: the compiler's own figures where there is no loop, counts by hand where there are loops."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxbp.runtime import machines, program_cost
from jaxbp.runtime.program_cost import ProgramCost

X, W = jnp.ones((64, 32)), jnp.ones((32, 32))
PRODUCT = 2 * 64 * 32 * 32


def compiled(fn, *arguments):
    return jax.jit(fn).lower(*arguments).compile()


def kernel_gradient(images, kernel):
    def loss(kernel):
        labels = ("NHWC", "HWIO", "NHWC")
        return (lax.conv_general_dilated(images, kernel, (1, 1), "VALID", dimension_numbers=labels) ** 2).sum()

    return jax.grad(loss)(kernel)


@pytest.mark.parametrize(
    ("fn", "arguments"),
    [(kernel_gradient, (jnp.ones((8, 10, 10, 4)), jnp.ones((3, 3, 4, 6)))), (lambda x, w: (x @ w).sum(0), (X, W))],
    ids=["convolutions", "product and sum"],
)
def test_without_loops_it_is_the_compilers_own_account(fn, arguments):
    program = compiled(fn, *arguments)
    own, totals = program_cost.of_text(program.as_text()), program.cost_analysis()
    assert own.flops == pytest.approx(totals["flops"], rel=0.01)
    assert own.bytes_accessed == pytest.approx(totals["bytes accessed"], rel=0.05)


def test_loops_count_as_often_as_they_run():
    def steps(x, w):
        return lax.scan(lambda carry, _: (carry @ w, None), x, length=50)[0]

    program = compiled(steps, X, W)
    cost = program_cost.of_compiled(program)
    assert cost.flops == pytest.approx(50 * PRODUCT, rel=0.01)
    assert program.cost_analysis()["flops"] < 2 * PRODUCT  # which is why the program is read
    assert 50 * 4 * X.size < cost.bytes_accessed < 50 * 4 * (5 * X.size + W.size)  # a product, perhaps copies
    assert cost.launches >= 50
    assert cost.memory >= 4 * (2 * X.size + W.size)


def test_rounds_that_only_the_run_knows_count_as_rows_that_they_fill():
    def runs(count, starts, w):
        def body(index, rows):
            return rows.at[index].set(jnp.tanh(starts[index] @ w) @ w)

        return lax.fori_loop(0, count, body, jnp.zeros((6, *X.shape)))

    cost = program_cost.of_compiled(compiled(runs, jnp.int32(6), jnp.ones((6, *X.shape)), W))
    assert cost.flops == pytest.approx(6 * 2 * PRODUCT, rel=0.1)
    endless = compiled(lambda x, w: lax.while_loop(lambda x: x.sum() < 1e9, lambda x: x @ w, x), X, W)
    assert program_cost.of_compiled(endless).flops == pytest.approx(PRODUCT, rel=0.1)


def test_a_roofline_is_the_longest_of_its_parts():
    h100 = machines.named("h100")
    cost = ProgramCost(67e12, 3.35e12, 1000)
    assert machines.roofline(cost, h100, 0.5) == (2.0, "arithmetic")
    assert machines.roofline(ProgramCost(0.0, 6.7e12, 1000), h100, 1.0) == (2.0, "memory")
    assert machines.roofline(ProgramCost(1.0, 1.0, 1e6), h100, 1.0) == (pytest.approx(1e6 * h100.launch), "launches")


@pytest.mark.parametrize(("name", "devices"), [("a100", 1), ("8xh100", 8), ("v4-8", 4), ("v5e-8", 8), ("v5litepod-4", 4), ("v3-32", 16)])
def test_machines_have_names(name, devices):
    assert machines.named(name).num_devices == devices


@pytest.mark.parametrize("name", ["b1000", "v4", "v4-1", "0xh100", "v5e-0"])
def test_an_unknown_machine_is_answered_by_those_that_there_are(name):
    with pytest.raises(machines.MachineError, match=r"no peak figures of .*: choose one of t4, v100, a100(.*)v4-8"):
        machines.named(name)


def test_an_efficiency_is_a_share():
    with pytest.raises(machines.MachineError, match="above 0 and up to 1, got 2"):
        _ = machines.Elsewhere("h100", 2.0).machine
