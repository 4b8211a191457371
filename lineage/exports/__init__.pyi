from .cyclonedx import bill_of_materials as bill_of_materials
from .openlineage_events import run_events as run_events
from .openlineage_sending import append_to_file as append_to_file
from .openlineage_sending import send as send
from .parquet_export import export_parquet as export_parquet
from .provenance import provenance_json as provenance_json
