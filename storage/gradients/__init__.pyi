from .appending import Appending as Appending
from .appending import COMMIT_BYTES as COMMIT_BYTES
from .measured import first_few as first_few
from .rows import Column as Column
from .store import GradientStore as GradientStore
from .table import IndexTable as IndexTable
from .vector_codes import VectorType as VectorType
