package main

import (
	"context"
	"fmt"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
)

// desktops are the images that disk adds up.
var desktops = []string{"xfce", "gnome", "kde", "lxqt", "mate", "xfce-13", "gnome-13", "kde-13"}

// disk prints what the desktop images take together, beside the sum of what each would take alone. Images that are not
// built are left out, and named.
func disk(ctx context.Context, b *bench) error {
	if _, err := b.do(ctx, "image", "build", "bus"); err != nil { // which starts the daemon
		return err
	}
	client, err := containerd.New(b.inst.Layout.ContainerdSocket(), containerd.WithDefaultNamespace(b.inst.Layout.Instance()))
	if err != nil {
		return err
	}
	defer client.Close()
	ctx = namespaces.WithNamespace(ctx, b.inst.Layout.Instance())
	layers := map[digest.Digest]int64{}
	var alone int64
	fmt.Println("disk, unpacked")
	for _, name := range desktops {
		img, err := client.GetImage(ctx, "localhost/berth/"+name+":latest")
		if errdefs.IsNotFound(err) {
			fmt.Printf("  %-20s  not built, left out\n", name)
			continue
		}
		if err != nil {
			return err
		}
		diffIDs, err := img.RootFS(ctx)
		if err != nil {
			return err
		}
		var sum int64
		for _, chain := range identity.ChainIDs(diffIDs) {
			size, known := layers[chain]
			if !known {
				u, err := client.SnapshotService("overlayfs").Usage(ctx, chain.String())
				if err != nil {
					return fmt.Errorf("image %q: %w", name, err)
				}
				size = u.Size
				layers[chain] = size
			}
			sum += size
		}
		fmt.Printf("  %-20s  %6.0f MiB alone\n", name, float64(sum)/(1<<20))
		alone += sum
	}
	var together int64
	for _, size := range layers {
		together += size
	}
	fmt.Printf("  each alone, sum       %6.0f MiB\n", float64(alone)/(1<<20))
	fmt.Printf("  together              %6.0f MiB\n", float64(together)/(1<<20))
	fmt.Printf("  ratio                 %6.2f\n", float64(together)/float64(max(1, alone)))
	return nil
}
