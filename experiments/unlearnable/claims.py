"""Claims S8.a to S8.g, with the rules that turn intervals into verdicts, fixed before a run.

The rules have round margins and were put down after pilots of two seeds had been seen; S8.c and S8.g follow from what the paper's
experiments leave open. Seeds here are not the pilots'. Values of the paper are as reported, unchecked, but for AR's and OPS's accuracy.
S8.a is the premise of S8.b to S8.f: data that can be learnt from as they are say nothing about what is learnt from unlearnable ones.
"""

from jaxbp.claims import CLEAR_MAJORITY, Above, Below, Claim, Within

DROP = 10.0  # percentage points of test accuracy that make data unlearnable
HARMLESS = 2.0

_SOURCE = "Sandoval-Segura et al., NeurIPS 2023"

FAIL = Claim(
    "S8.a",
    "Networks trained on the perturbed data fail on clean data.",
    f"{_SOURCE}, and the poisons' own papers",
    "test accuracy, perturbed minus clean, percentage points",
    Below(-DROP),
    "about -80 (AR)",
    belief="The perturbed data are unlearnable (Huang et al., ICLR 2021).",
    smallest_effect=DROP / 2,
)
REWEIGHED = Claim(
    "S8.b",
    "Their features, reweighed, beat those of an untrained network.",
    _SOURCE,
    "accuracy of the refitted head, perturbed minus untrained, percentage points",
    Above(0.0),
    "so for most poisons (as reported, unchecked)",
    belief="Networks on such data learn shortcuts only (Yu et al., KDD 2022).",
    premise="S8.a",
    smallest_effect=HARMLESS,
)
BEYOND_SUBSET = Claim(
    "S8.c",
    "Reweighed, they beat what the clean images used for reweighing teach by themselves.",
    f"{_SOURCE}; not tested there",
    "accuracy of the refitted head minus that of a network trained on the clean subset, percentage points",
    Above(0.0),
    belief="Useful features can be had from unlearnable data (Sandoval-Segura et al., NeurIPS 2023).",
    premise="S8.a",
    smallest_effect=HARMLESS,
)
INSEPARABLE = Claim(
    "S8.d",
    "Perturbations that no linear classifier separates make data unlearnable, too.",
    _SOURCE,
    "share of seeds with proven inseparability and an accuracy at least 10 points below clean",
    Above(0.5),
    "1 of 1 (AR)",
    belief="Linear separability is why such perturbations work (Yu et al., KDD 2022).",
    premise="S8.a",
    smallest_effect=CLEAR_MAJORITY,
)
RECOVERED = Claim(
    "S8.e",
    "Orthogonal projection recovers accuracy from class-wise perturbations.",
    _SOURCE,
    "test accuracy, perturbed minus clean, both projected alike, percentage points",
    Above(-DROP),
    "OPS: above 87 %, about -7 (the latter as reported, unchecked)",
    belief="Such perturbations protect data (Huang et al., ICLR 2021).",
    premise="S8.a",
    smallest_effect=DROP / 2,
)
KEPT = Claim(
    "S8.f",
    "Orthogonal projection does not recover it from inseparable perturbations.",
    f"{_SOURCE}; arXiv 2406.02883",
    "test accuracy gained by projection, percentage points",
    Below(DROP),
    "weak on AR",
    belief="A linear projection removes linear perturbations only.",
    premise="S8.a",
    smallest_effect=DROP,
)
HARMLESS_ON_CLEAN = Claim(
    "S8.g",
    "The projection leaves clean data as learnable as they were.",
    f"{_SOURCE}; not tested there",
    "test accuracy, clean data projected by their own weights minus clean, percentage points",
    Within(HARMLESS),
    belief="The projection is a simple, harmless remedy.",
    smallest_effect=HARMLESS,
)
