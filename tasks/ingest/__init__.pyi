from .registering import TrainedWeights as TrainedWeights
from .registering import register_model as register_model
