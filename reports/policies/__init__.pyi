from .evaluation import evaluate as evaluate
from .facts import EarlierAudit as EarlierAudit
from .facts import Likeness as Likeness
from .facts import PolicyFacts as PolicyFacts
from .facts import RankedExample as RankedExample
from .file import Policy as Policy
from .registry import listed as listed
from .sql import evidence_sql as evidence_sql
