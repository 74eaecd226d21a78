# Starts Redis with the settings beside this file and the password of a secret, which is on no command line.
set -eu
umask 077
{
  cat /etc/statestream/redis.conf
  printf 'requirepass "%s"\n' "$(cat /run/secrets/redis_password)"
} >/tmp/redis.conf
chown redis:redis /tmp/redis.conf /data
exec setpriv --reuid redis --regid redis --init-groups --no-new-privs redis-server /tmp/redis.conf
