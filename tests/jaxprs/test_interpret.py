"""The interpreter against the traced function itself, and its table of wrappers against JAX's own primitives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core as jex_core

from jaxbp.jaxprs import interpret, op_count


@jax.custom_jvp
def custom_jvp_fn(x):
    return jnp.sin(x) @ jnp.ones((3, 3))


custom_jvp_fn.defjvp(lambda primals, tangents: (custom_jvp_fn(*primals), tangents[0]))


@jax.custom_vjp
def custom_vjp_fn(x):
    return jnp.cos(x) @ jnp.ones((3, 3))


custom_vjp_fn.defvjp(lambda x: (custom_vjp_fn(x), None), lambda _, cotangent: (cotangent,))

WRAPPED = {
    "jit": (jax.jit(lambda x: x @ jnp.ones((3, 3))), interpret.CALL, 1),
    "remat": (jax.checkpoint(lambda x: x @ jnp.ones((3, 3))), interpret.CALL, 1),
    "custom_jvp": (custom_jvp_fn, interpret.CUSTOM_DERIVATIVE, 1),
    "custom_vjp": (custom_vjp_fn, interpret.CUSTOM_DERIVATIVE, 1),
    "scan": (lambda x: jax.lax.scan(lambda c, _: (c @ jnp.ones((3, 3)), None), x, length=4)[0], interpret.LOOP, 4),
    "while": (lambda x: jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: 2 + c @ jnp.ones((3, 3)), x), interpret.LOOP, 1),
    "cond": (
        lambda x: jax.lax.cond(x.sum() > 0, lambda c: (c @ jnp.ones((3, 3))) @ jnp.ones((3, 3)), lambda c: c, x),
        interpret.BRANCH,
        2,
    ),
}


def bind(operation, operands):
    return operation.apply(operands)


def operation_of_kind(fn, kind):
    return next(operation for operation in interpret.trace(fn, jnp.ones((2, 3))).operations if operation.kind == kind)


@pytest.mark.parametrize("opened", [(), (interpret.CALL,), (interpret.CALL, interpret.CUSTOM_DERIVATIVE)])
@pytest.mark.parametrize("name", WRAPPED)
def test_a_program_evaluates_to_the_function(name, opened):
    fn, kind, _ = WRAPPED[name]
    inputs = jax.random.normal(jax.random.key(0), (2, 3))
    names = []

    def rule_fn(operation, operands):
        names.append(operation.name)
        return bind(operation, operands)

    (output,) = interpret.trace(fn, inputs).evaluate([inputs], rule_fn, opened=opened)
    np.testing.assert_array_equal(output, fn(inputs))
    wrapper = operation_of_kind(fn, kind).name
    assert (wrapper in names) == (kind not in opened)
    assert ("dot_general" in names) == (kind in opened)


@pytest.mark.parametrize("name", WRAPPED)
def test_the_table_knows_every_wrapper_and_its_programs(name):
    fn, kind, num_products = WRAPPED[name]
    operation = operation_of_kind(fn, kind)
    assert len(operation.programs) == (2 if name in ("while", "cond") else 1)
    assert operation.num_repetitions == (4 if name == "scan" else 1)
    assert op_count.count(fn, jnp.ones((2, 3))) == op_count.OpCount(num_products, num_products * 2 * 3 * 3, False)


def test_programs_are_found_in_operations_outside_the_table():
    def fn(matrix, vector):
        return jax.lax.custom_linear_solve(lambda x: matrix @ x, vector, lambda matvec, b: b / 2, symmetric=True)

    (operation,) = [o for o in interpret.trace(fn, jnp.eye(3), jnp.ones(3)).operations if o.name == "custom_linear_solve"]
    assert operation.kind is None
    assert len(operation.programs) >= 2


def test_values_may_be_of_any_kind():
    """Intervals through a program: what an interpreter is for."""

    def rule_fn(operation, operands):
        low, high = zip(*operands, strict=True)
        ends = [operation.apply(values)[0] for values in (low, high)]
        return [(ends[0], ends[1])]

    offset = jnp.arange(3.0)  # a constant of the program
    program = interpret.trace(lambda x, y: jnp.exp(x) + y * 2.0 + offset, jnp.ones(3), jnp.ones(3))
    assert len(program.consts) == 1
    arguments = [(jnp.zeros(3), jnp.ones(3)), (jnp.ones(3), jnp.full(3, 2.0))]
    ((low, high),) = program.evaluate(arguments, rule_fn, constant_fn=lambda value: (value, value))
    np.testing.assert_allclose(low, 1 + 2 + np.arange(3))
    np.testing.assert_allclose(high, np.e + 4 + np.arange(3), rtol=1e-6)


def test_an_operation_applies_to_repeated_operands_literals_and_other_shapes():
    square, scaled, total = interpret.trace(lambda x: jnp.sum((x * x) * 3.0), jnp.ones(4)).operations[:3]
    assert square.equation.invars[0] is square.equation.invars[1]
    assert square.apply([jnp.full(4, 2.0)] * 2)[0].tolist() == [4.0] * 4
    assert any(isinstance(atom, jex_core.Literal) for atom in scaled.equation.invars)
    values = [None if isinstance(atom, jex_core.Literal) else jnp.ones(2) for atom in scaled.equation.invars]
    assert scaled.apply(values)[0].tolist() == [3.0, 3.0]
    assert float(total.apply([jnp.ones(7)])[0]) == 7


def test_shapes_of_a_program():
    program = interpret.trace(lambda x: x["a"] @ x["b"], {"a": jnp.ones((2, 3)), "b": jax.ShapeDtypeStruct((3, 5), jnp.float32)})
    assert program.input_types == [jax.ShapeDtypeStruct((2, 3), jnp.float32), jax.ShapeDtypeStruct((3, 5), jnp.float32)]
    (product,) = program.operations
    assert [a.shape for a in product.input_types] == [(2, 3), (3, 5)]
    assert [a.shape for a in product.output_types] == [(2, 5)]


@pytest.mark.parametrize("kind", [interpret.LOOP, interpret.BRANCH, "no kind"])
def test_loops_and_branches_are_not_opened(kind):
    program = interpret.trace(jnp.sin, jnp.ones(3))
    with pytest.raises(ValueError, match=f"opened must be of 'call' and 'custom derivative', got {kind}"):
        program.evaluate([jnp.ones(3)], bind, opened=(interpret.CALL, kind))
