from .answering import run_sql as run_sql
from .answering import schema_text as schema_text
from .formats import encode_answer as encode_answer
