from .json_columns import as_json as as_json
from .json_columns import json_text as json_text
from .statements import statement as statement
from .tables import COMMITMENT_SCHEMA as COMMITMENT_SCHEMA
from .tables import TABLES as TABLES
from .tables import Table as Table
