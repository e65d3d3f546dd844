package test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"berth/display/x11"
	"berth/test/berthtest"
)

// TestOthersImage starts the desktop in an image that other tools built from a plain Dockerfile, whose user, entrypoint,
// working directory and environment would start nothing anywhere.
func TestOthersImage(t *testing.T) {
	buildah, err := exec.LookPath("buildah")
	if err != nil {
		t.Skip("needs package buildah")
	}
	inst.NothingLeft(t)
	dir := t.TempDir()
	base := "oci:" + inst.Layout.Bases() + ":debian:bookworm"
	text := "FROM " + base + `
RUN apt-get update -q && apt-get install -qy --no-install-recommends dbus-daemon icewm
ENV DISPLAY=:7 HOME=/nowhere XDG_RUNTIME_DIR=/nowhere
WORKDIR /srv/odd
USER 4711:4711
ENTRYPOINT ["/bin/false"]
`
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	const ref = "other.example/people/desk:1"
	archive := filepath.Join(dir, "desk.tar")
	run := func(args ...string) {
		t.Helper()
		args = append([]string{"--root", filepath.Join(dir, "store"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs"}, args...)
		if out, err := exec.Command(buildah, args...).CombinedOutput(); err != nil {
			t.Fatalf("buildah %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	run("bud", "--isolation", "chroot", "--tag", ref, dir)
	run("push", "--quiet", ref, "docker-archive:"+archive+":"+ref)
	inst.Run(t, "image", "import", archive)
	t.Cleanup(func() { inst.Run(t, "image", "rm", ref) })

	r, err := inst.Do(context.Background(), "up", "--image", ref, "--name", "t-others", "--set", `home.kind="ephemeral"`)
	if err != nil || r.Code != 0 {
		t.Fatalf("berth up --image: code %d, %v\n%s", r.Code, err, r.Stderr)
	}
	t.Cleanup(func() { inst.Do(context.Background(), "stop", "t-others") })
	if want := "berth: image " + ref + ": IceWM Session (/usr/bin/icewm-session), from /usr/share/xsessions/icewm-session.desktop"; !strings.Contains(r.Stderr, want) {
		t.Errorf("stderr lacks %q:\n%s", want, r.Stderr)
	}
	s := inst.Show(t, "t-others")
	waitFor(t, screen(t, s), x11.WM)
	if got := inst.Exec(t, s.Name, "desktop", "sh", "-c", "echo $(id -u) $HOME $(pwd) $DISPLAY"); got != "61000 /home/user /home/user :0\n" {
		t.Errorf("the desktop runs as %q", got)
	}
	berthtest.WaitUntil(t, "a drawn desktop", func() bool {
		img := shot(t, s.Name, "others-image")
		first := img.At(0, 0)
		for x := range 100 { // somewhere in the task bar and the wallpaper there is another colour
			if img.At(x*img.Bounds().Dx()/100, img.Bounds().Dy()-4) != first {
				return true
			}
		}
		return false
	})

	// What the guess writes down starts the same.
	file := filepath.Join(dir, "desk.toml")
	inst.Run(t, "profile", "new", "--image", ref, "-o", file)
	inst.Run(t, "profile", "check", file)
	again := inst.Up(t, file, "--name", "t-again", "--set", `home.kind="ephemeral"`)
	waitFor(t, screen(t, again), x11.WM)

	// Leaving IceWM is the log-out.
	inst.Exec(t, again.Name, "desktop", "sh", "-c", "kill -TERM $(grep -l icewm-session /proc/[0-9]*/comm | head -n 1 | tr -dc 0-9)")
	berthtest.WaitUntil(t, "the end of the session", func() bool {
		for _, one := range inst.List(t) {
			if one.Name == again.Name {
				return false
			}
		}
		return true
	})

	if got := inst.Fail(t, "up", "--image", ref, "--session", "iecwm-session"); !strings.Contains(got, `session "iecwm-session": not found; did you mean "icewm-session"?`) {
		t.Errorf("a misspelt session = %s", got)
	}
	if got := inst.Fail(t, "up", "--image", "bus"); !strings.Contains(got, "desktop not found; looked for:") || !strings.Contains(got, "/usr/share/xsessions") {
		t.Errorf("an image without a desktop = %s", got)
	}
}
