"""Operations of networks: convolutions that are fast in compiled loops, and the platform of the traced program.

>>> from jaxbp.ops import convolution
>>> convolution.choose("cpu", (64, 28, 28, 16), (3, 3, 16, 16), (64, 28, 28, 16))
'vjp'
"""
