#!/bin/sh
# MinIO's variables for Versity S3 Gateway. Called as MinIO is: server FOLDER.
set -eu
[ "$1" = server ] || { echo "expected: server FOLDER, found: $*" >&2; exit 2; }
ROOT_ACCESS_KEY="$(cat "$MINIO_ROOT_USER_FILE")"
ROOT_SECRET_KEY="$(cat "$MINIO_ROOT_PASSWORD_FILE")"
export ROOT_ACCESS_KEY ROOT_SECRET_KEY
exec versitygw --quiet --keep-alive --port 0.0.0.0:9000 --health /minio/health/live \
    --cors-allow-origin "${MINIO_API_CORS_ALLOW_ORIGIN:-}" posix "$2"
