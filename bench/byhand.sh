#!/bin/bash
# byhand.sh ROOT [programs|startxfce4]: an XFCE session as a practised person starts it without Berth, in one root file
# system that holds all of it (recipe byhand), as a plain user.
#
# It cleans up after the run before, prints "ready", waits for a line, and starts everything; when its input ends, so
# does everything. What the clock sees is what comes after the line. The display is ROOT/tmp/.X11-unix/X0, its cookie
# ROOT/tmp/Xauthority.
#
# With "programs", the default, the single programs are started at once, as soon as display and bus answer: nothing
# could be quicker by hand. With "startxfce4" XFCE's own session manager starts them, in its own order.
set -euo pipefail
root=$(realpath "$1")
mode=${2:-programs}
if [ "${3-}" != inside ]; then
    # One PID namespace makes the end of this script the end of everything it has started; a network namespace keeps its
    # clients from the abstract socket of another display :0.
    exec unshare --mount --pid --ipc --uts --net --fork --kill-child --mount-proc "$BASH" "$0" "$root" "$mode" inside
fi

uid=1000 run=$root/run/user/1000
mount --make-rprivate /
mount --bind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t proc proc "$root/proc"
rm -rf "$root"/tmp/.[!.]* "$root"/tmp/* "$root/home/user" "$run"
install -d -m 1777 "$root/tmp" "$root/tmp/.X11-unix" "$root/tmp/.ICE-unix"
install -d -m 700 -o $uid -g $uid "$run" "$root/home/user"
if ! grep -q ^user: "$root/etc/passwd"; then
    echo "user:x:$uid:$uid:User:/home/user:/bin/bash" >>"$root/etc/passwd"
    echo "user:x:$uid:" >>"$root/etc/group"
fi
if [ ! -s "$root/etc/machine-id" ]; then chroot "$root" dbus-uuidgen >"$root/etc/machine-id"; fi

if [ "$mode" = startxfce4 ]; then
    # What XFCE's session manager starts as it comes: in Berth's images it has nothing left to start.
    conf=$root/home/user/.config/xfce4/xfconf/xfce-perchannel-xml
    install -d "$conf"
    {
        echo '<?xml version="1.0" encoding="UTF-8"?><channel name="xfce4-session" version="1.0">'
        echo '<property name="sessions" type="empty"><property name="Failsafe" type="empty">'
        echo '<property name="Count" type="int" value="5"/>'
        n=0
        for c in xfwm4 xfsettingsd xfce4-panel "Thunar --daemon" xfdesktop; do
            echo "<property name=\"Client${n}_Priority\" type=\"int\" value=\"$((15 + 5 * n))\"/>"
            echo "<property name=\"Client${n}_Command\" type=\"array\">"
            for w in $c; do echo "<value type=\"string\" value=\"$w\"/>"; done
            echo '</property>'
            n=$((n + 1))
        done
        echo '</property></property></channel>'
    } >"$conf/xfce4-session.xml"
    chown -R $uid:$uid "$root/home/user/.config"
fi

env=(PATH=/usr/local/bin:/usr/bin:/bin HOME=/home/user USER=user LOGNAME=user LANG=C.UTF-8 DISPLAY=:0
    XAUTHORITY=/tmp/Xauthority XDG_RUNTIME_DIR=/run/user/1000 DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/bus
    PULSE_SERVER=unix:/run/user/1000/pulse/native NO_AT_BRIDGE=1 XDG_SESSION_TYPE=x11 XDG_CURRENT_DESKTOP=XFCE
    XDG_MENU_PREFIX=xfce- GVFS_DISABLE_FUSE=1)
user() { exec chroot --userspec=$uid:$uid "$root" env -i -C /home/user "${env[@]}" "$@"; }
log=$root/tmp/log
mkdir "$log"
bg() { (user "$@" >"$log/${1##*/}" 2>&1 </dev/null) & }

# Both servers tell on a pipe when they answer.
mkfifo "$log/display" "$log/bus"
exec 3<>"$log/display" 4<>"$log/bus"

echo ready
read -r _

(user xauth -q add :0 . "$(mcookie)" >/dev/null 2>&1)
(user Xvfb :0 -screen 0 1920x1080x24 -dpi 96 -auth /tmp/Xauthority -nolisten tcp -nolisten local -noreset -s 0 -dpms \
    -displayfd 3 >"$log/Xvfb" 2>&1 </dev/null) &
(user dbus-daemon --session --nofork --nopidfile --address=unix:path=/run/user/1000/bus --print-address=4 \
    >"$log/dbus-daemon" 2>&1 </dev/null) &
bg pipewire
read -r _ <&4
bg wireplumber
bg pipewire-pulse
read -r _ <&3
case $mode in
programs)
    bg xfwm4
    bg xfce4-panel --disable-wm-check
    bg xfdesktop --disable-wm-check
    bg xfce4-session
    bg xfce4-notifyd
    ;;
startxfce4) bg startxfce4 ;;
*)
    echo "byhand.sh: $mode: want programs or startxfce4" >&2
    exit 2
    ;;
esac
bg x11vnc -display :0 -auth /tmp/Xauthority -unixsock /run/user/1000/vnc.sock -rfbport 0 -rfbportv6 -1 -norc -nopw \
    -forever -shared -nobell -noipv6 -no6 -xrandr newfbsize -xkb -repeat -cursor arrow -nodpms -ncache 0 -q

while read -r _; do :; done
