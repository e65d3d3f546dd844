// Package daemon puts the parts of Berth together in one process: the engine's programs, the session manager, the
// gateway and the API.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"berth/assets/web"
	"berth/display"
	"berth/display/gateway"
	"berth/internal/cli"
	"berth/internal/config"
	"berth/internal/hostcheck"
	"berth/orchestrator"
	"berth/orchestrator/containerd"
	"berth/orchestrator/images"
	"berth/orchestrator/private"
	"berth/session"
	"berth/session/api"
	"berth/session/api/server"
	"berth/session/export"
	"berth/session/probe"
)

// stopTimeout is how long the engine's programs get to end when the daemon does.
const stopTimeout = 30 * time.Second

// Run serves until ctx ends. What it starts it ends, but for the sessions: they go on, and the next Run finds them.
func Run(ctx context.Context, opt cli.DaemonOptions) (err error) {
	level := slog.LevelInfo
	if opt.Debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(opt.Log, &slog.HandlerOptions{Level: level}))
	l := opt.Layout
	cfg, err := config.Load(l.Config)
	if err != nil {
		return err
	}
	findings := hostcheck.Check(hostcheck.Real(), hostcheck.Options{Layout: l, Snapshotter: cfg.Engine.Snapshotter,
		Existing: cfg.Engine.Containerd != ""})
	if err := hostcheck.Err(findings); err != nil {
		return err
	}
	if err := os.MkdirAll(l.State, 0o711); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	programs, err := private.Start(ctx, private.Options{Layout: l, Containerd: cfg.Engine.Containerd, Snapshotter: cfg.Engine.Snapshotter,
		Runtime: cfg.Engine.Runtime, BuildkitIdle: cfg.Engine.BuildIdle, Log: log})
	if err != nil {
		return err
	}
	defer func() {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		err = errors.Join(err, programs.Stop(stop))
	}()
	engine, err := containerd.New(ctx, containerd.Options{Layout: l, Socket: programs.Socket(), Snapshotter: programs.Snapshotter(),
		Runtime: cfg.Engine.Runtime, Subnet: cfg.Engine.Subnet, Log: log})
	if err != nil {
		return err
	}
	defer engine.Close()

	var manager *session.Manager
	store, err := images.New(images.Options{Layout: l, Store: engine.Images(), Buildkit: programs.Buildkit, Sources: cfg.Images.Sources, Log: log,
		Event: func(what, ref string) {
			if manager != nil {
				manager.Announce(api.Event{Time: time.Now(), Type: what, Message: ref})
			}
		}})
	if err != nil {
		return err
	}
	admin, err := gateway.LoadToken(filepath.Join(l.State, "admin-token"))
	if err != nil {
		return err
	}
	d := &doors{}
	gw, err := gateway.New(gateway.Config{Web: cfg.Gateway.Listen, WebExact: cfg.Gateway.Listen != "",
		VNCHost: cfg.Gateway.VNCHost, VNCBase: cfg.Gateway.VNCPort, AllowedHosts: cfg.Gateway.Hosts,
		TLS: gateway.TLS{Cert: cfg.Gateway.TLSCert, Key: cfg.Gateway.TLSKey, SelfSigned: cfg.Gateway.TLSSelfSigned,
			Dir: filepath.Join(l.State, "tls"), Hosts: cfg.Gateway.Hosts}, LoginFile: filepath.Join(l.Run, "logins.json"), WebPortFile: filepath.Join(l.Run, "web-port"),
		AdminToken: admin, Pages: web.Files(), Log: log}, d)
	if err != nil {
		return err
	}
	d.gw = gw
	// Adopted sessions need the gateway's address, the gateway needs the manager to answer: first listen, last serve.
	if err := gw.Listen(); err != nil {
		return err
	}
	defer gw.Close()
	shown := exports{&export.Cache{Dir: l.Exports(), Images: engine.Images(), Inside: session.ExportsDir, Log: log}, store.Resolve}
	if manager, err = session.New(ctx, session.Options{Engine: engine, Images: store, Exports: shown, Layout: l, Plan: Plan, Probe: newProber,
		Cookie: cookie, Tell: probe.Tell, Screen: display.Screen{}, Gateway: d, Log: log, DefaultUser: cfg.Session.User, Patience: cfg.Session.Patience}); err != nil {
		return err
	}
	defer manager.Close()
	d.manager = manager
	if err := shown.Prune(ctx, manager.UsesExport); err != nil {
		log.Warn("exports of images", "error", err)
	}
	gw.Serve()

	listener, err := server.Listen(l.APISocket(), server.Group)
	if err != nil {
		return err
	}
	srv := server.New(server.Config{Manager: manager, Images: store, Shutdown: cancel, Log: log,
		Info: func(ctx context.Context) (api.DaemonInfo, error) {
			info, err := engine.Info(ctx)
			return api.DaemonInfo{Version: opt.Version, PID: os.Getpid(), Root: l.Root, Engine: info, Gateway: gw.URL(),
				Problems: hostcheck.Warnings(findings), AdminURL: gw.AdminURL(), Fingerprint: gw.Fingerprint()}, err
		}})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return srv.Serve(ctx, listener) })
	notifyReady(log)
	log.Info("berth serves", "socket", l.APISocket(), "gateway", gw.URL(), "pid", os.Getpid())
	return g.Wait()
}

// notifyReady tells systemd that the daemon serves (sd_notify(3)), where systemd started it.
func notifyReady(log *slog.Logger) {
	addr := os.Getenv("NOTIFY_SOCKET")
	if addr == "" {
		return
	}
	c, err := net.Dial("unixgram", addr)
	if err == nil {
		_, err = c.Write([]byte("READY=1"))
		c.Close()
	}
	if err != nil {
		log.Warn("notify systemd", "error", err)
	}
}

var _ orchestrator.Engine = (*containerd.Engine)(nil)
