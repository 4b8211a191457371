from .outputs_as_examples import output_example as output_example
from .outputs_as_examples import output_examples as output_examples
from .source_states import list_sources as list_sources
from .traced import trace_pages as trace_pages
