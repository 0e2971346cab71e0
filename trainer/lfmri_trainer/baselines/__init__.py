"""The methods that the benchmark compares, behind one interface; METHODS names them, in the order of the tables."""

from lfmri_trainer.baselines.flow import Flow
from lfmri_trainer.baselines.interpolation import Interpolation
from lfmri_trainer.baselines.method import Method
from lfmri_trainer.baselines.regression import Regression

METHODS: dict[str, type[Method]] = {method.key: method for method in (Interpolation, Regression, Flow)}
