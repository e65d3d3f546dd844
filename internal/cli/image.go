package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"berth/orchestrator"
	"berth/session/api"
	"berth/session/api/client"
)

func (c *CLI) imageCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "image",
		Short: "List, build, move and remove images",
		Long: "List, build, move and remove the images that sessions are made of. An image is named like a built-in recipe\n" +
			"(xfce, xfce-13) or by a reference (registry.example/desktop:1).",
		Example: "  berth image ls\n  berth image build xfce\n  berth image pull registry.example/desktop:1",
	})
	cmd.AddCommand(c.imageLs(), c.imageBuild(), c.imagePull(), c.imagePush(), c.imageImport(), c.imageExport(), c.imageTag(),
		c.imageRm(), c.imagePrune())
	return cmd
}

func (c *CLI) imageLs() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "ls",
		Short:             "List images and the recipes that can be built",
		Example:           "  berth image ls\n  berth image ls --json",
		Args:              nargs(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			list, err := cl.Images(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return c.printJSON(list)
			}
			rows := [][]string{{"IMAGE", "DIGEST", "SIZE", "PACKED", "USED", "AGE"}}
			have := map[string]bool{}
			for _, i := range list.Images {
				used := "no"
				if i.InUse {
					used = "yes"
				}
				have[i.Ref] = true
				rows = append(rows, []string{i.Ref, shorten(i.Digest), size(i.Size), size(i.Packed), used, age(c.Now().Sub(i.Created))})
			}
			for _, r := range list.Recipes {
				if !have["localhost/berth/"+r+":latest"] {
					rows = append(rows, []string{r, "not built", "-", "-", "-", "-"})
				}
			}
			return writeTable(c.Stdout, rows)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print images and recipes as JSON")
	return cmd
}

// change runs a change of images with the daemon, which it starts if needed, and shows its progress.
func (c *CLI) change(ctx context.Context, title string, do func(cl *client.Client, p *progress) error) error {
	if err := c.ensureDaemon(ctx); err != nil {
		return err
	}
	cl, err := c.client()
	if err != nil {
		return err
	}
	p := c.startProgress(title)
	stop := context.AfterFunc(ctx, func() { p.message("interrupted: taking back what was begun") })
	err = do(cl, p)
	stop()
	p.close()
	return interrupted(ctx, err, undone)
}

func (c *CLI) imageBuild() *cobra.Command {
	var req api.BuildRequest
	cmd := &cobra.Command{
		Use:               "build NAME...",
		Short:             "Build images of built-in recipes",
		Long:              "Build images of built-in recipes, with what they are based on, in order. What is up to date is left alone.",
		Example:           "  berth image build xfce\n  berth image build --force xfce xfce-13",
		Args:              nargs(1, -1),
		ValidArgsFunction: c.completeImage(false, true, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Names = args
			return c.change(cmd.Context(), "building", func(cl *client.Client, p *progress) error {
				return cl.Build(cmd.Context(), req, p.image)
			})
		},
	}
	cmd.Flags().BoolVar(&req.Force, "force", false, "build even what is up to date")
	cmd.Flags().BoolVar(&req.NoCache, "no-cache", false, "do not use the build cache")
	return cmd
}

func (c *CLI) imagePull() *cobra.Command {
	return c.imageTransfer(&cobra.Command{
		Use:     "pull REF",
		Short:   "Fetch an image from its registry",
		Long:    "Fetch an image from its registry; for root with the credentials of root's Docker configuration file, for others without.",
		Example: "  berth image pull registry.example/desktop:1",
	}, "pulling", "accept plain HTTP and any certificate; root only",
		func(ctx context.Context, cl *client.Client, req api.RefRequest, p *progress) (string, error) {
			image, err := cl.Pull(ctx, req, p.image)
			return image.Ref + "\n", err
		})
}

func (c *CLI) imagePush() *cobra.Command {
	return c.imageTransfer(&cobra.Command{
		Use:     "push REF",
		Short:   "Send an image to its registry",
		Long:    "Send an image to its registry, with the credentials of root's Docker configuration file.",
		Example: "  berth image tag xfce registry.example/desktop:1\n  berth image push registry.example/desktop:1",
	}, "pushing", "accept plain HTTP and any certificate",
		func(ctx context.Context, cl *client.Client, req api.RefRequest, p *progress) (string, error) {
			return "", cl.Push(ctx, req, p.image)
		})
}

// imageTransfer makes cmd a command that moves the image REF to or from its registry; insecure is that flag's help. What
// move returns is printed once the progress line is gone.
func (c *CLI) imageTransfer(cmd *cobra.Command, title, insecure string,
	move func(ctx context.Context, cl *client.Client, req api.RefRequest, p *progress) (string, error)) *cobra.Command {
	var req api.RefRequest
	cmd.Args, cmd.ValidArgsFunction = nargs(1, 1), c.completeImage(true, false, 1)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		req.Ref = args[0]
		printed := ""
		err := c.change(cmd.Context(), title+" "+req.Ref, func(cl *client.Client, p *progress) (err error) {
			printed, err = move(cmd.Context(), cl, req, p)
			return err
		})
		if err != nil {
			return err
		}
		_, err = io.WriteString(c.Stdout, printed)
		return err
	}
	cmd.Flags().BoolVar(&req.Insecure, "insecure", false, insecure)
	return cmd
}

func (c *CLI) imageImport() *cobra.Command {
	return &cobra.Command{
		Use:   "import FILE",
		Short: "Import an archive of images",
		Long: "Import an archive made by `docker save` or an OCI layout in a tar file, plain or compressed with gzip or zstd;\n" +
			"- is stdin. Prints the images it held.",
		Example: "  berth image import desktop.tar\n  docker save desktop | berth image import -",
		Args:    nargs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, total := c.Stdin, int64(0)
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return fmt.Errorf("archive %w", cleanPathError(err))
				}
				defer f.Close()
				if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
					total = info.Size()
				}
				r = f
			}
			var images []orchestrator.Image
			err := c.change(cmd.Context(), "importing "+filepath.Base(args[0]), func(cl *client.Client, p *progress) (err error) {
				images, err = cl.Import(cmd.Context(), p.counted(r, total), p.image)
				return err
			})
			if errors.Is(err, orchestrator.ErrInvalid) { // the daemon knows no file names
				return fmt.Errorf("file %q: %w", args[0], err)
			}
			if err != nil {
				return err
			}
			for _, i := range images {
				fmt.Fprintln(c.Stdout, i.Ref)
			}
			return nil
		},
	}
}

// cleanPathError is `"file": cause` without the name of the system call.
func cleanPathError(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return fmt.Errorf("%q: %w", pe.Path, pe.Err)
	}
	return err
}

func (c *CLI) imageExport() *cobra.Command {
	return &cobra.Command{
		Use:     "export REF... FILE",
		Short:   "Export images as an archive",
		Long:    "Export images as one OCI layout archive that `docker load` also reads; FILE may be - for stdout.",
		Example: "  berth image export xfce xfce.tar\n  berth image export xfce - | docker load",
		Args:    nargs(2, -1),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			out, _ := c.completeImage(true, true, -1)(cmd, args, word)
			return out, cobra.ShellCompDirectiveDefault
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			refs, file := args[:len(args)-1], args[len(args)-1]
			if _, tty := terminal(c.Stdout); tty && c.isStdout(file) {
				return usagef("an archive on the terminal would only be noise; name a file or send it to a pipe")
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			archive, err := cl.Export(cmd.Context(), refs...)
			if err != nil {
				return err
			}
			defer archive.Close()
			p := c.startProgress("exporting")
			defer p.close()
			return c.output(file, p.counted(archive, 0))
		},
	}
}

func (c *CLI) imageTag() *cobra.Command {
	return &cobra.Command{
		Use:               "tag SOURCE NAME",
		Short:             "Give an image a further name",
		Example:           "  berth image tag xfce registry.example/desktop:1",
		Args:              nargs(2, 2),
		ValidArgsFunction: c.completeImage(true, true, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			return cl.Tag(cmd.Context(), args[0], args[1])
		},
	}
}

func (c *CLI) imageRm() *cobra.Command {
	return &cobra.Command{
		Use:               "rm REF...",
		Short:             "Remove images",
		Long:              "Remove images' names; what no name needs any more goes too.",
		Example:           "  berth image rm registry.example/desktop:1",
		Args:              nargs(1, -1),
		ValidArgsFunction: c.completeImage(true, false, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.each(cmd.Context(), "removing", args, func(ctx context.Context, cl *client.Client, ref string) error {
				return cl.RemoveImage(ctx, ref)
			})
		},
	}
}

func (c *CLI) imagePrune() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "prune",
		Short:             "Remove what no image needs any more",
		Long:              "Remove images of recipes that were replaced, build cache, and content without a name.",
		Example:           "  berth image prune",
		Args:              nargs(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			p := c.startProgress("pruning")
			freed, err := cl.Prune(cmd.Context())
			p.close()
			if err != nil {
				return err
			}
			if asJSON {
				return c.printJSON(api.PruneResult{Freed: freed})
			}
			_, err = fmt.Fprintf(c.Stdout, "freed %s\n", size(freed))
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON")
	return cmd
}
