from . import building as building
from .building import IndexOutcome as IndexOutcome
from .eigenbases import basis_problem as basis_problem
from .opened import OpenIndex as OpenIndex
from .opened import method_indexes as method_indexes
from .opened import open_index as open_index
from .opened import open_index_with_model as open_index_with_model
from .options import IndexOptions as IndexOptions
