#!/bin/sh
# Make every secret that compose.yaml mounts, in the folder that is given (default: secrets beside this file). What is
# there already stays as it is.
set -eu
umask 077
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"

write() { # name: standard input becomes the file, unless it exists
    [ -e "$folder/$1" ] || cat > "$folder/$1"
}
word() { # 48 letters and digits of randomness
    head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n'
}

head -c 32 /dev/urandom | write master.key
head -c 32 /dev/urandom | write signing.key
word | write idiolect_metrics_token
word | write postgres_password
word | write keys_password
word | write redis_password
word | write idiolect_s3_access_key_id
word | write idiolect_s3_secret_access_key
printf 'postgresql://idiolect:%s@postgres:5432/idiolect' "$(cat "$folder/postgres_password")" | write idiolect_database_url
printf 'postgresql://idiolect:%s@keys:5432/keys' "$(cat "$folder/keys_password")" | write idiolect_keys_url
printf 'redis://:%s@redis:6379/0' "$(cat "$folder/redis_password")" | write idiolect_redis_url
printf '{"identities": [{"name": "idiolect", "credentials": [{"accessKey": "%s", "secretKey": "%s"}], "actions": ["Admin"]}]}' \
    "$(cat "$folder/idiolect_s3_access_key_id")" "$(cat "$folder/idiolect_s3_secret_access_key")" | write s3.json
# Containers run as other users than you: the folder keeps others out, the files let them in.
chmod 0444 "$folder"/*
