// Package initrd is what runs in the initramfs: it reads the kernel's options, plans, and carries the plan out.
//
// Options come from /proc/cmdline. Berth's own:
//
//	berth.store=DEVICE[:PATH]   the device and directory of the image store and of the roots; DEVICE is /dev/…, LABEL=, UUID=, PARTUUID=, PARTLABEL=
//	berth.storeflags=OPTIONS    mount options of that file system; berth.storefstype=TYPE
//	berth.roots=PATH            the roots' directory on the same file system; without it the file system's top directory
//	berth.image=REF             the image: name, tag or digest; a later one wins, as with every option
//	berth.root=NAME             the root's name; without it "berth-root"
//	berth.mode=ephemeral|persistent
//	berth.keep=/PATH[,/PATH]…   what outlives every root
//	berth.top=[DEVICE:]PATH     a source of the top layer, may be given several times; without a device on the store's file system
//	berth.previous              boot the previous root (the boot entry that is there for it)
//	berth.tries=N               failed boots after which the previous root is booted; 3
//	berth.timeout=SECONDS       how long a failure is shown before the previous root is booted; 30, 0 waits for a key
//	berth.wait=SECONDS          how long devices are waited for; 60
//	berth.debug                 every step on the console
//
// and those of mkinitcpio-docker-hooks, verbatim, with the same meaning: root=, rootflags=subvol=NAME, docker_path=, toplayer=,
// toplayerfstype=, toplayerflags=, toplayer_path=, with the image from /etc/docker-btrfs.json ("docker_image", "docker_tag") of the
// initramfs. A "berth." option overrides its counterpart.
//
// Parse, Plan and the rendering of a plan are pure. Run does the effects through System, which tests replace.
package initrd

import "time"

// Options are the kernel's options as far as they concern Berth, those of both families.
type Options struct {
	Store   Place // the store's file system and directory
	Roots   string
	Image   string
	Root    string
	Mode    string
	Keep    []string
	Top     []Place
	Init    string // init=, without it /sbin/init
	Prev    bool
	Tries   int
	Timeout time.Duration
	Wait    time.Duration
	Debug   bool
	// From says for every option that was set which word of the command line or which file it came from, for the plan's trace.
	From map[string]string
}

// Place is a directory or file on a device.
type Place struct {
	Device string // /dev/…, LABEL=…, UUID=…, PARTUUID=…, PARTLABEL=…; empty: the store's
	FSType string
	Flags  string
	Path   string // relative to the file system's root
}
