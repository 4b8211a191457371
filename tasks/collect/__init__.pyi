from . import collecting as collecting
from .collecting import Collection as Collection
from .collecting import require_finished as require_finished
from .collecting import require_sources as require_sources
from .outputs_as_examples import output_example as output_example
from .outputs_as_examples import output_examples as output_examples
from .source_states import list_sources as list_sources
from .traced import trace_pages as trace_pages
