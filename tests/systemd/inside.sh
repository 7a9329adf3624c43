#!/bin/bash
# Run inside the booted machine by test_boot.py: installs examsend's units and uses them as an administrator does. Writes what it sees to /out.
set -u
exec >/out/log 2>&1
set -x
trap 'touch /out/ended; systemctl poweroff' EXIT
touch /out/began
PATH=/opt/examsend/bin:$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1):/usr/bin:/usr/sbin:/bin:/sbin
as_user() { runuser -u examsend -- env PATH="$PATH" "$@"; }
until_true() { # seconds, command...
  { set +x; } 2>/dev/null
  local end=$((SECONDS + $1)) code=1
  shift
  while [ $SECONDS -lt $end ]; do
    "$@" && code=0 && break
    sleep 0.5
  done
  set -x
  return $code
}

install -d -o postgres -m 700 /pg
install -d -o postgres /run/postgresql
runuser -u postgres -- env PATH="$PATH" initdb -D /pg -A peer -E UTF8 --locale=C
postgres_up() {
  runuser -u postgres -- env PATH="$PATH" pg_ctl -D /pg -w -l /pg/log -o "-c listen_addresses='' -k /run/postgresql -c fsync=off" start
}
postgres_up
# --- what docs/installing.md says, word for word ------------------------------------------------------------------------------------------
bash -ex /out/guide-database
echo $? >/out/guide.code

install -d /received
storescp -od /received -fe .dcm 4242 &
receiver=$!

# --- an administrator installs -----------------------------------------------------------------------------------------------------------
cd /
bash -ex /out/guide-install >/out/install
echo $? >/out/install.code
# A shell uses the settings file that the installation has written.
bash -ex /out/guide-destination
echo $? >/out/add.code
as_user examsend destination set pacs --quiet-period 1
examsend systemd install --drop-dir /srv/drop >/out/install.again
examsend systemd install --drop-dir '/srv/drop one' >/out/install.other
stat -c '%a %U %G %n' /etc/examsend/* /srv/drop '/srv/drop one' >/out/modes
systemctl is-active examsend.target examsend-finalize.timer examsend-send.timer examsend-confirm.timer 'examsend-ingest@srv-drop\x20one.path' >/out/active

# --- a study moves -----------------------------------------------------------------------------------------------------------------------
cp /out/study/* '/srv/drop one/'
sent() { [ "$(as_user examsend status --json --state SENT | grep -c '"SENT"')" -ge 1 ]; }
until_true 90 sent && echo yes >/out/sent
ls /received | wc -l >/out/received
systemctl list-timers --all >/out/timers
systemctl show -p Id,Result,ExecMainStatus examsend-finalize.service examsend-send.service 'examsend-ingest@srv-drop\x20one.service' >/out/results

# --- the others, each in its sandbox -----------------------------------------------------------------------------------------------------
systemctl enable --now examsend-listen.socket examsend-metrics.timer
echoscu -aec EXAMSEND 127.0.0.1 11112 && echo yes >/out/echo
until_true 30 test -s /run/examsend-metrics/examsend.prom
runuser -u nobody -- cat /run/examsend-metrics/examsend.prom >/out/metrics
# storescp knows neither query nor Storage Commitment: the archive cannot be asked, which is for the next pass.
as_user examsend destination set pacs --confirm query --confirm-after 0
systemctl start examsend-confirm.service
echo $? >/out/confirm.code
as_user examsend confirm --since 1h >/out/confirm
# Where sources go, the sandbox has a way to write.
mkdir -p /etc/systemd/system/examsend-confirm.service.d
printf '[Service]\nReadWritePaths="/srv/drop one"\nExecStart=\nExecStart=/bin/sh -c "touch /srv/drop\\ one/written && ! touch /srv/drop/written"\n' \
  >/etc/systemd/system/examsend-confirm.service.d/override.conf
systemctl daemon-reload
systemctl start examsend-confirm.service
echo $? >/out/confirm.writes
rm -r /etc/systemd/system/examsend-confirm.service.d
systemctl daemon-reload
systemctl start examsend-prune.service
echo $? >/out/prune.code
systemctl start examsend-send@pacs.service
echo $? >/out/send_pacs.code

# --- the database goes away, and comes back ----------------------------------------------------------------------------------------------
runuser -u postgres -- env PATH="$PATH" pg_ctl -D /pg -m immediate stop
alerted() { journalctl -q -t examsend-alert -p err --no-pager | grep -q 'examsend-send.service failed: exit-code, exit status 69'; }
until_true 60 alerted
again() { [ "$(journalctl -q -u examsend-send.service --no-pager | grep -c 'status=69')" -ge 2 ]; }
until_true 60 again
sleep 4
ls -laR /run/examsend-alert >/out/stamps
journalctl -q -t examsend-alert -p err --no-pager >/out/alerts
postgres_up
back() { [ "$(systemctl show -p Result --value examsend-send.service)" = success ]; }
until_true 60 back && echo yes >/out/back

# --- and everything goes -----------------------------------------------------------------------------------------------------------------
systemctl stop examsend.target
# What is part of the target is stopped with it, and systemctl waits for the target alone.
still() { systemctl list-units --state=active,activating,deactivating --plain --no-legend 'examsend*' | grep -v alert; }
stopped() { ! still; }
until_true 30 stopped
still >/out/active_after_stop
systemctl start examsend.target
systemctl is-active examsend-send.timer examsend-listen.socket >/out/active_after_start
examsend systemd uninstall >/out/uninstall
echo $? >/out/uninstall.code
ls /etc/systemd/system /etc/sysusers.d /etc/tmpfiles.d | grep examsend >/out/files_after_uninstall
still >/out/active_after_uninstall
stat -c '%n' /etc/examsend/examsend.toml /etc/examsend/database_url >/out/kept
journalctl -q --no-pager -o short >/out/journal
kill $receiver
