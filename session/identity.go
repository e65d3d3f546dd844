package session

import (
	"bytes"
	"cmp"
	"fmt"
	"os/user"
	"path"
	"strconv"
	"strings"

	"berth/orchestrator"
)

// Identity is the user whom a session's components run as.
type Identity struct {
	UID    int    `json:"uid"`
	GID    int    `json:"gid"`
	Name   string `json:"name"`
	Home   string `json:"home"` // inside the containers
	Groups []int  `json:"groups,omitempty"`
}

// The user of root's sessions when nothing else is configured: desktops do not run as root. The uid belongs to nobody, so
// that nobody on the host reaches those sessions' sockets and homes by being somebody: neither adduser (1000 to 59999) nor
// systemd (https://systemd.io/UIDS-GIDS) gives it out.
const (
	defaultUID  = 61000
	defaultName = "user"
)

// lookupIdentity finds the host user called name.
func lookupIdentity(name string) (Identity, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return Identity{}, fmt.Errorf("user %q: %w", name, orchestrator.ErrNotFound)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err1 != nil || err2 != nil {
		return Identity{}, fmt.Errorf("user %q: ids %q, %q: %w", name, u.Uid, u.Gid, orchestrator.ErrInvalid)
	}
	if uid == 0 {
		return Identity{}, fmt.Errorf("user %q: desktops do not run as root: %w", name, orchestrator.ErrInvalid)
	}
	return Identity{UID: uid, GID: gid, Name: u.Username, Home: "/home/" + u.Username}, nil
}

// defaultShell is the user's in an image that does not say what shell it has.
const defaultShell = "/bin/bash"

// shellOf is the shell of uid in a passwd(5), "" if there is none that anybody could use.
func shellOf(passwd []byte, uid int) string {
	for l := range strings.Lines(string(passwd)) {
		f := strings.Split(strings.TrimRight(l, "\n"), ":")
		if len(f) == 7 && f[2] == strconv.Itoa(uid) {
			if base := path.Base(f[6]); !path.IsAbs(f[6]) || base == "nologin" || base == "false" {
				return ""
			}
			return f[6]
		}
	}
	return ""
}

// passwdWith returns an image's passwd(5) with id's user in place of any entry of the same name or uid. The shell is that
// of the image's root: not every image has bash.
func passwdWith(base []byte, id Identity) []byte {
	line := fmt.Sprintf("%s:x:%d:%d:%s:%s:%s", id.Name, id.UID, id.GID, id.Name, id.Home, cmp.Or(shellOf(base, 0), defaultShell))
	return replaceEntry(base, id.Name, id.UID, line)
}

// groupWith returns an image's group(5) with id's own group in place of any entry of the same name or gid.
func groupWith(base []byte, id Identity) []byte {
	return replaceEntry(base, id.Name, id.GID, fmt.Sprintf("%s:x:%d:", id.Name, id.GID))
}

func replaceEntry(base []byte, name string, id int, line string) []byte {
	var out bytes.Buffer
	for l := range strings.Lines(string(base)) {
		f := strings.Split(strings.TrimRight(l, "\n"), ":")
		if len(f) < 3 || f[0] == name || f[2] == strconv.Itoa(id) {
			continue
		}
		out.WriteString(strings.TrimRight(l, "\n") + "\n")
	}
	out.WriteString(line + "\n")
	return out.Bytes()
}
