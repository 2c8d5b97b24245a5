from jaxbp.ntk.batch_norm.layers import batch_norm_relu
from jaxbp.ntk.batch_norm.sums import Branch, sampled_sum_relu
