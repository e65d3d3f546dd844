// Package boot is the room of machines: computers whose root file system is an image.
//
// # Who owns what
//
//	boot/store     reads images from disk with no daemon: where their layers lie
//	boot/root      makes a root of an image and a writable layer, beside the old one, and swaps it in
//	boot/top       puts the files of one machine on top
//	boot/initrd    what runs in the initramfs: kernel options, plan, its steps, the screen that says why it failed
//	boot/image     initramfs, ISO and disk images
//	boot/machine   machine.toml, and the verbs of `berth machine`
//	cmd/berth-init the static program of the initramfs; PID 1 where the initramfs is Berth's own
//
// boot/store, boot/root, boot/top and boot/initrd end up in a static program without cgo in an initramfs: they import no
// engine, no containerd client, no D-Bus. What they need of containerd's records they read from its bolt file.
//
// # The life of a boot
//
//  1. The kernel's options are parsed into Options (boot/initrd). Berth's own begin with "berth."; those of
//     mkinitcpio-docker-hooks are understood verbatim and become the same Options.
//  2. Devices are waited for, and the file system of the store is mounted, read-only as long as that is enough.
//  3. The store finds the image; a plan is made of what is found. So far nothing on disk has changed. `--dry-run` ends here.
//  4. The root is made beside the current one (root.New); the top layer is put on it; it is checked: an init that can be
//     run, modules of the running kernel. What fails here leaves a root that is thrown away, and the old one as it was.
//  5. State is written and synced, and the new root swapped in by rename; the old one becomes the previous one.
//  6. The root is mounted where the generator of the initramfs wants it (/sysroot, /new_root, /root), and its init started.
//  7. In the running system berth-machine-good.service marks the root good. Only then, from there and never in the initramfs,
//     may roots older than the previous good one be deleted.
//
// Any failure: the reason on the whole screen and in the log on the store's file system, and after a time-out the last
// good root is booted, which is on disk untouched.
package boot
