#!/usr/bin/env bash
# mlflow-skinny 3.17.2 with a sqlite store.
# Guess: after the experiment's and the runs' artifact locations were changed in the store (a folder that was moved), the
#        next log_text of the same process goes to the new place.
# Seen: the artifact repository of a run is kept by run id for the life of the process. The file is written to the old
#       folder, which is created anew; a new process writes to the new one.
# Source: mlflow/tracking/_tracking_service/client.py and utils.py (_artifact_repos_cache).
# Output: same process: old/artifacts/…/second.txt / new process: new/artifacts/…/third.txt
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "mlflow-skinny==3.17.2" "sqlalchemy<2.1" alembic pandas
cd "$folder"
cat > log.py <<'PY'
import os, shutil, sqlite3, sys
from mlflow import MlflowClient

if sys.argv[1] == "before":
    os.makedirs("old")
    client = MlflowClient("sqlite:///old/mlflow.db")
    experiment = client.create_experiment("one", artifact_location=os.path.abspath("old/artifacts"))
    run = client.create_run(experiment).info.run_id
    client.log_text(run, "1", "first.txt")
    shutil.copytree("old", "new")
    shutil.rmtree("old")
    with sqlite3.connect("new/mlflow.db") as database:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            database.execute(f"UPDATE {table} SET {column} = replace({column}, '/old/', '/new/')")
    moved = MlflowClient("sqlite:///new/mlflow.db")
    assert "/new/" in moved.get_run(run).info.artifact_uri
    moved.log_text(run, "2", "second.txt")
    print(run)
else:
    MlflowClient("sqlite:///new/mlflow.db").log_text(sys.argv[2], "3", "third.txt")
PY
run=$("$folder/venv/bin/python" log.py before 2>/dev/null | tail -n 1)
"$folder/venv/bin/python" log.py after "$run" 2>/dev/null
echo "same process: $(find old new -name second.txt)"
echo "new process:  $(find old new -name third.txt)"
test -n "$(find old -name second.txt 2>/dev/null)" || { echo "the behaviour changed"; exit 1; }
test -n "$(find new -name third.txt)" || { echo "the behaviour changed"; exit 1; }
