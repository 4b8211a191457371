from .signatures import AuditSignature as AuditSignature
from .signatures import new_keys as new_keys
from .signatures import read_public_key as read_public_key
from .signatures import sign_audit as sign_audit
from .signatures import signature_of as signature_of
from .verifying import Problem as Problem
from .verifying import verify_ledger as verify_ledger
