from . import announcements as announcements
from . import deliveries as deliveries
from . import trace_answers as trace_answers
from .deliveries import counts as counts
from .deliveries import severe as severe
