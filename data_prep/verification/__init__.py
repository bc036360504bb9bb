"""Verification of prepared datasets: everything is read again and compared with the manifest.

Nothing that lies on a disk is trusted here: what is damaged or hostile becomes a problem in a
list, never an exception, so that one run tells all that is wrong.
"""

from data_prep.verification.dataset import Verification, verify_dataset
from data_prep.verification.problems import Problem, Problems

__all__ = ["Problem", "Problems", "Verification", "verify_dataset"]
