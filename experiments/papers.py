"""The papers that the studies test, as the pages cite them."""

from jaxbp.report import Publication

TRUTH = Publication(
    "goldblum2020truth",
    "Truth or Backpropaganda? An Empirical Investigation of Deep Learning Theory",
    ("Micah Goldblum", "Jonas Geiping", "Avi Schwarzschild", "Michael Moeller", "Tom Goldstein"),
    2020,
    venue="International Conference on Learning Representations",
    arxiv="1910.00359",
)
LOW_RANK = Publication(
    "pinto2025generalization",
    "On Generalization Bounds for Neural Networks with Low Rank Layers",
    ("Andrea Pinto", "Akshay Rangamani", "Tomaso Poggio"),
    2025,
    venue="International Conference on Algorithmic Learning Theory, PMLR 272, pages 921-936",
    arxiv="2411.13733",
)
STABILITY = Publication(
    "chandramoorthy2022generalization",
    "On the generalization of learning algorithms that do not converge",
    ("Nisha Chandramoorthy", "Andreas Loukas", "Khashayar Gatmiry", "Stefanie Jegelka"),
    2022,
    venue="Advances in Neural Information Processing Systems",
    arxiv="2208.07951",
)
UNLEARNABLE = Publication(
    "sandovalsegura2023what",
    "What Can We Learn from Unlearnable Datasets?",
    ("Pedro Sandoval-Segura", "Vasu Singla", "Jonas Geiping", "Micah Goldblum", "Tom Goldstein"),
    2023,
    venue="Advances in Neural Information Processing Systems",
    arxiv="2305.19254",
)
SPARSE = Publication(
    "galanti2023norm",
    "Norm-based Generalization Bounds for Sparse Neural Networks",
    ("Tomer Galanti", "Mengjia Xu", "Liane Galanti", "Tomaso Poggio"),
    2023,
    venue="Advances in Neural Information Processing Systems",
    arxiv="2301.12033",
)
SOFT_BIASES = Publication(
    "wilson2025position",
    "Position: Deep Learning is Not So Mysterious or Different",
    ("Andrew Gordon Wilson",),
    2025,
    venue="International Conference on Machine Learning, PMLR 267, pages 82326-82346",
    arxiv="2503.02113",
)
