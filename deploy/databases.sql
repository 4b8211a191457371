-- MLflow's database is the one that Postgres makes itself; Prefect gets its own.
CREATE DATABASE prefect;
