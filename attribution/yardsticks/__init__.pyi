from .baselines import lexical_pass as lexical_pass
from .baselines import neighbour_pass as neighbour_pass
from .baselines import random_pass as random_pass
from .lds import Retrained as Retrained
from .retraining import Retraining as Retraining
from .retraining import retrain_on_subsets as retrain_on_subsets
