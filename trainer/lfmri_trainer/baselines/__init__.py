"""The methods that the benchmark compares, behind one interface; METHODS names them, in the order of the tables."""

from lfmri_trainer.baselines.dictionary import DeepDictionary
from lfmri_trainer.baselines.flow import Flow
from lfmri_trainer.baselines.forest import Forest
from lfmri_trainer.baselines.interpolation import Interpolation, MatchedInterpolation
from lfmri_trainer.baselines.method import Method
from lfmri_trainer.baselines.regression import Regression
from lfmri_trainer.baselines.siqt import Siqt

_ALL: tuple[type[Method], ...] = (
    Interpolation,
    MatchedInterpolation,
    Forest,
    Siqt,
    DeepDictionary,
    Regression,
    Flow,
)
METHODS = {method.key: method for method in _ALL}
