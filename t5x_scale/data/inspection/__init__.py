"""Looking at data: what a store holds, what an objective makes of it, what a step of a run saw.

Text for people; `tools/inspect_token_store.py` prints it.
"""

from t5x_scale.data.inspection.effective import describe_mixture
from t5x_scale.data.inspection.examples import OBJECTIVES, describe_examples, make_objective
from t5x_scale.data.inspection.steps import describe_step, step_documents
from t5x_scale.data.inspection.stores import describe_document, describe_store, find_vocabulary
from t5x_scale.data.inspection.text import visible

__all__ = [
    "OBJECTIVES",
    "describe_document",
    "describe_examples",
    "describe_mixture",
    "describe_step",
    "describe_store",
    "find_vocabulary",
    "make_objective",
    "step_documents",
    "visible",
]
