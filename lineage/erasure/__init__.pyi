from . import erasures as erasures
from .erasures import Erasure as Erasure
from .erasures import erased_subjects as erased_subjects
from .erasures import unfinished_erasures as unfinished_erasures
from .plan import ErasureRequest as ErasureRequest
from .plan import names_refused as names_refused
from .rewriting import rewrite_database as rewrite_database
