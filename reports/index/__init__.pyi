from .comparison import compare_page as compare_page
from .model import IndexedAudit as IndexedAudit
from .page import index_page as index_page
from .parts import AUDITS_A_PART as AUDITS_A_PART
from .parts import IndexPart as IndexPart
from .parts import index_parts as index_parts
from .serving import HOST as HOST
from .serving import report_server as report_server
