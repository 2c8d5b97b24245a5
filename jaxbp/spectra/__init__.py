"""Study 4's instrument: singular values of layers as operators, the ranks they show, and nets cut or capped to a rank."""

from jaxbp.spectra import extremes, symbol, values
from jaxbp.spectra.geometry import Geometry
from jaxbp.spectra.measures import (
    effective_rank,
    entropy_rank,
    frobenius_norm,
    nuclear_norm,
    numerical_rank,
    stable_rank,
)
from jaxbp.spectra.network import Layer, inner_convolutions, layers_of, of_network
from jaxbp.spectra.projection import LayerReport, rank_max, rank_min
from jaxbp.spectra.spectrum import Spectrum, of_geometry, singular_values
