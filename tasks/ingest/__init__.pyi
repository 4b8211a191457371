from . import preparations as preparations
from . import taking_in as taking_in
from .preparations import Preparation as Preparation
from .registering import TrainedWeights as TrainedWeights
from .registering import read_checkpoints as read_checkpoints
from .registering import register_model as register_model
from .taking_in import already_ingested as already_ingested
from .taking_in import resolve_version as resolve_version
