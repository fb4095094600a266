#!/bin/sh
# Start a server and a sentinel beside it. The first pod begins as the master; later the sentinels know who it is, and a
# pod that comes back asks them first.
set -eu
me="$(hostname).redis"
role="${1:?server or sentinel}"

master() {
  for peer in redis-0.redis redis-1.redis redis-2.redis; do
    known=$(timeout 2 redis-cli -h "$peer" -p 26379 sentinel get-master-addr-by-name mesh 2>/dev/null | head -n 1) || continue
    if [ -n "$known" ]; then echo "$known"; return; fi
  done
  echo redis-0.redis
}

now="$(master)"
if [ "$role" = server ]; then
  set -- --save "" --appendonly no --maxmemory 200mb --dir /data --replica-announce-ip "$me" \
    --repl-diskless-sync-delay 0
  [ "$now" = "$me" ] || set -- "$@" --replicaof "$now" 6379
  exec redis-server "$@"
fi
cat > /data/sentinel.conf <<EOF
port 26379
dir /data
sentinel resolve-hostnames yes
sentinel announce-hostnames yes
sentinel announce-ip $me
sentinel monitor mesh $now 6379 2
sentinel down-after-milliseconds mesh 1000
sentinel failover-timeout mesh 10000
EOF
exec redis-sentinel /data/sentinel.conf
