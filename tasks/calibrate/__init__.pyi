from . import calibrations as calibrations
from .figures import MethodFidelity as MethodFidelity
from .plans import CalibrateOptions as CalibrateOptions
from .plans import CalibrationPlan as CalibrationPlan
from .plans import LEARNED_OBJECTIVES as LEARNED_OBJECTIVES
from .plans import calibrate_options as calibrate_options
from .queries import query_roles as query_roles
