#!/bin/sh
# What the official image's entrypoint does with these variables, for a container that runs as any user.
set -eu
password="$(cat "$POSTGRES_PASSWORD_FILE")"
if ! getent passwd "$(id -u)" >/dev/null; then  # initdb wants a name for whom it runs as
    echo "postgres:x:$(id -u):$(id -g):PostgreSQL:$PGDATA:/bin/false" >/tmp/passwd
    echo "postgres:x:$(id -g):" >/tmp/group
    export NSS_WRAPPER_PASSWD=/tmp/passwd NSS_WRAPPER_GROUP=/tmp/group LD_PRELOAD=libnss_wrapper.so
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    printf '%s' "$password" >/tmp/password
    initdb --pgdata "$PGDATA" --username "$POSTGRES_USER" --pwfile /tmp/password --auth-host scram-sha-256 \
        --auth-local trust --encoding UTF8 --no-locale >/dev/null
    rm /tmp/password
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    pg_ctl --pgdata "$PGDATA" --options "-c listen_addresses=" --wait start >/dev/null
    psql --host /run/postgresql --username "$POSTGRES_USER" --dbname postgres --quiet --command "CREATE DATABASE \"$POSTGRES_DB\""
    pg_ctl --pgdata "$PGDATA" --mode fast --wait stop >/dev/null
fi
unset LD_PRELOAD NSS_WRAPPER_PASSWD NSS_WRAPPER_GROUP
exec "$@" -c listen_addresses=*
