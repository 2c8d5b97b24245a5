"""The bound by the product of Frobenius norms (Neyshabur, Tomioka and Srebro, COLT 2015; Golowich, Rakhlin and Shamir, COLT 2018).

For N inputs X, L layers and C outputs,

    N R <= prod_i ||W_i||_F ||X||_F sqrt(C) min(2^((L-1)/2), 1 + sqrt(2 ((L-1) log 2 + log C))).

Norms are those of the operators: a convolution counts as the matrix that it is.
"""

import math
from typing import Any, Literal

from jaxbp.bounds._anatomy import Anatomy
from jaxbp.bounds._bound import Bound, log, note_on


def peeling(anatomy: Anatomy, inputs: Any, *, form: Literal["best", "root", "union"] = "best") -> Bound:
    """Bound the Rademacher complexity of all networks of this shape whose layers have the Frobenius norms of ``anatomy``'s operators.

    Args:
      anatomy: the network.
      inputs: (N, ...).
      form: "root" peels squares, 2^((L-1)/2); "union" peels exponentials, with a union over outputs; "best" is the smaller.

    Raises:
      ValueError: another form, or inputs that do not fit.
    """
    depth, outputs, norms = anatomy.depth, anatomy.num_outputs, anatomy.log_norms("operator_frobenius")
    forms = {
        "root": (depth - 1) / 2 * math.log(2),
        "union": math.log1p(math.sqrt(2 * ((depth - 1) * math.log(2) + math.log(outputs)))),
    }
    if form not in ("best", *forms):
        raise ValueError(f"form must be best, root or union, got {form!r}")
    chosen = min(forms, key=forms.__getitem__) if form == "best" else form
    factors = {
        "norms": norms,
        "pooling": anatomy.log_pooling,
        "data": log(float(anatomy.energies(inputs).sum())) / 2,
        "outputs": math.log(outputs) / 2,
        "depth": forms[chosen],
        "examples": -math.log(len(inputs)),
    }
    return Bound(f"peeling, {chosen}", factors, len(inputs), note=note_on(norms))
