# MLflow's server with the driver for PostgreSQL, in the version that Potstill is tested with.
FROM python:3.12-slim
COPY constraints.txt /tmp/constraints.txt
RUN pip install --no-cache-dir -c /tmp/constraints.txt mlflow psycopg2-binary && useradd --uid 10001 --create-home mlflow \
 && mkdir /mlartifacts && chown mlflow /mlartifacts
USER 10001
