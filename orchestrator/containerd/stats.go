package containerd

import (
	"context"
	"errors"
	"io/fs"

	"berth/orchestrator"

	"golang.org/x/sys/unix"
)

// Stats implements orchestrator.Engine. It reads the cgroups itself; the shim is not asked.
func (e *Engine) Stats(ctx context.Context, pod string) (map[string]orchestrator.Stats, error) {
	list, err := e.podContainers(e.withNamespace(ctx), pod)
	if err != nil {
		return nil, podErr(pod, err)
	}
	all := make(map[string]orchestrator.Stats, len(list))
	for _, c := range list {
		_, name := splitID(c.ID)
		s, err := e.cgroups.stats(e.containerCgroup(c.ID))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			continue // does not run
		}
		if err != nil {
			return nil, containerErr(pod, name, err)
		}
		all[name] = s
	}
	return all, nil
}
