#!@RCD_SCRIPTS_SHELL@
#
# $NetBSD$
# SPDX-License-Identifier: BSD-3-Clause
#
# PROVIDE: lingerd
# REQUIRE: DAEMON
# KEYWORD: shutdown
#
# In rc.conf(5):
#
# lingerd=YES			start lingerd(8)
# lingerd_flags="..."		its options, but for -p and -r. Default:
#				-u @LINGERD_USER@ -g @APACHE_GROUP@, the latter being the group
#				of Apache's processes
# lingerd_pidfile="..."		Default: /var/run/lingerd/lingerd.pid
#
# stop and restart wait until what lingers has ended, for 10 s at most (-W).
# reload starts the installed lingerd with what rc.conf says now; it takes everything over from the
# one that runs, and no connection is closed.

if [ -f /etc/rc.subr ]; then
	. /etc/rc.subr
fi

name="lingerd"
rcvar=$name
command="@PREFIX@/sbin/lingerd"
extra_commands="reload"
reload_cmd="lingerd_reload"

# As start does it, but not minding the one that runs.
lingerd_reload()
{
	if [ -z "$rc_pid" ]; then
		echo 1>&2 "${name} not running? (check ${pidfile})."
		return 1
	fi
	command_args="-r ${command_args}"
	run_rc_command faststart
}

load_rc_config $name

: "${lingerd_flags=-u @LINGERD_USER@ -g @APACHE_GROUP@}"
: "${lingerd_pidfile:=/var/run/lingerd/lingerd.pid}"
pidfile="${lingerd_pidfile}"
command_args="-p ${lingerd_pidfile}"

run_rc_command "$1"
