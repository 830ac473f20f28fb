#!/bin/sh
# Once, when compose's Postgres makes its database: row-level security does not bind a superuser, and the one that the
# image makes is one. So Idiolect gets an ordinary user, who owns its database.
set -eu
psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username=postgres --dbname=postgres \
    --set=password="$(cat "$POSTGRES_PASSWORD_FILE")" <<'SQL'
CREATE ROLE idiolect LOGIN PASSWORD :'password';
CREATE DATABASE idiolect OWNER idiolect;
SQL
